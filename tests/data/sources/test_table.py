"""Own data in CSV and JSON Lines: what is understood, and what is refused in one line."""

import json

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.sources.table import Table
from mlic_jax.errors import Failure, UsageError

WIDE = """\
image,dog,traffic light,cat,split
a.jpg,1,0,?,train
sub/b.jpg,0,0,0,val
c.jpg,1,1,0,train
"""
LONG = """\
image,labels
a.jpg,dog;cat?
sub/b.jpg,
c.jpg,"traffic light, dog"
d.jpg,"['cat', 'dog?']"
e.jpg,cat|dog
"""
JSONL = """\
{"image": "a.jpg", "labels": ["dog"], "unknown": ["cat"], "split": "train", "width": 24}

{"image": "./sub/b.jpg", "labels": [], "split": "val"}
{"image": "c.jpg", "labels": ["traffic light", "dog"], "unknown": [], "split": "train"}
"""


@pytest.fixture
def root(tmp_path, jpeg):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for i, name in enumerate(("a", "sub/b", "c", "d", "e")):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(jpeg(i))
    return tmp_path


def _table(root, content, kind="csv", splits=("train", "val"), **options):
    (root / "labels.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    options = {"annotations": "labels.txt", "image_dir": "photos", **options}
    return Table("mine", root, splits, kind=kind, **options)


def _labels(source):
    """Image id -> labels, of all splits."""
    return {
        example.image_id: example.labels.tolist()
        for split in source.splits
        for example in source.examples(split)
    }


def test_a_column_a_class(root):
    source = _table(root, WIDE)
    assert source.class_names == ("dog", "traffic light", "cat")  # the order of the columns
    a, c = source.examples("train")
    assert (a.image_id, a.image) == ("a.jpg", root / "photos" / "a.jpg")
    np.testing.assert_array_equal(a.labels, [1, -1, 0])
    np.testing.assert_array_equal(c.labels, [1, 1, -1])
    assert a.labels.dtype == np.int8 and a.boxes.shape == (0, 4) and a.box_classes.shape == (0,)
    (b,) = source.examples("val")
    assert (b.image_id, b.image) == ("sub/b.jpg", root / "photos" / "sub" / "b.jpg")
    np.testing.assert_array_equal(b.labels, [-1, -1, -1])


def test_a_column_of_labels(root):
    source = _table(root, LONG)
    assert source.class_names == ("cat", "dog", "traffic light")
    assert _labels(source) == {
        "a.jpg": [0, 1, -1],
        "sub/b.jpg": [-1, -1, -1],  # no labels: it shows none of the classes
        "c.jpg": [-1, 1, 1],
        "d.jpg": [1, 0, -1],
        "e.jpg": [1, 1, -1],
    }


def test_json_lines(root):
    source = _table(root, JSONL, "jsonl")
    assert source.class_names == ("cat", "dog", "traffic light")
    assert [example.image_id for example in source.examples("train")] == ["a.jpg", "c.jpg"]
    assert _labels(source) == {
        "a.jpg": [0, 1, -1],
        "c.jpg": [-1, 1, 1],
        "sub/b.jpg": [-1, -1, -1],
    }


@pytest.mark.parametrize("name", ["image", "Path", "filepath", "file", "photograph"])
def test_names_of_the_image_column(root, name):
    assert _table(root, f"{name},dog\na.jpg,1\nc.jpg,0\n").class_names == ("dog",)


def test_columns_are_known_in_any_case(root):
    source = _table(root, "SPLIT,Labels,Image\nval,dog,a.jpg\ntrain,cat,c.jpg\n")
    assert source.class_names == ("cat", "dog")
    assert [example.image_id for example in source.examples("val")] == ["a.jpg"]


@pytest.mark.parametrize(
    "content, kind",
    [
        ("labels,image\ndog,a.jpg\n,c.jpg\n", "csv"),
        ("dog,image\n1,a.jpg\n0,c.jpg\n", "csv"),
        (JSONL, "jsonl"),
    ],
)
def test_a_byte_order_mark_is_part_of_nothing(root, content, kind):
    def read(encoding):
        source = _table(root, content.encode(encoding), kind)
        return source.class_names, _labels(source)

    assert read("utf-8-sig") == read("utf-8")
    assert "dog" in read("utf-8")[0]


@pytest.mark.parametrize("cell", ["dog ?;cat", " cat | dog? ", "\"['dog ?', ' cat']\""])
def test_blanks_around_names_do_not_count(root, cell):
    source = _table(root, f"image,labels\na.jpg,{cell}\nc.jpg,dog\n")
    assert source.class_names == ("cat", "dog")
    assert _labels(source)["a.jpg"] == [1, 0]


def test_columns_in_any_order(root):
    source = _table(root, "label,split_name,filepath\ndog,val,a.jpg\n['cat'],train,c.jpg\n")
    assert source.class_names == ("cat", "dog")
    (example,) = source.examples("val")
    np.testing.assert_array_equal(example.labels, [-1, 1])
    assert example.image_id == "a.jpg"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode("utf-8-sig"),  # as spreadsheets save it
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.removesuffix("\n"),
    ],
)
def test_spellings_of_csv(root, change):
    assert _labels(_table(root, change(WIDE))) == _labels(_table(root, WIDE))


def test_prepared_and_read_back(root):
    folder = records.prepare(_table(root, WIDE), root / "prepared")
    split = records.open_split(folder, "train")
    assert split.class_names == ("dog", "traffic light", "cat")
    np.testing.assert_array_equal(split.labels(), [[1, -1, 0], [1, 1, -1]])
    assert split[1].image == (root / "photos" / "c.jpg").read_bytes()
    (root / "labels.txt").unlink()  # not needed any more


def test_a_table_without_splits_is_divided(root, jpeg):
    lines = [json.dumps({"image": f"{i}.jpg", "labels": ["dog"] * (i < 3)}) for i in range(10)]
    for i in range(10):
        (root / "photos" / f"{i}.jpg").write_bytes(jpeg(i))
    for held_out in ("val", "test"):
        source = _table(root, "\n".join(lines), "jsonl", ("train", held_out), train_share=0.7)
        folder = records.prepare(source, root / f"prepared_{held_out}")
        train, rest = (records.open_split(folder, split) for split in ("train", held_out))
        assert (len(train), len(rest)) == (7, 3)
        assert (train.labels() == 1).sum() == 2 and (rest.labels() == 1).sum() == 1
    held_out_ids = {record.image_id for record in rest}
    assert held_out_ids | {record.image_id for record in train} == {f"{i}.jpg" for i in range(10)}
    shuffled = _table(root, "\n".join(lines[::-1]), "jsonl", train_share=0.7)
    assert {example.image_id for example in shuffled.examples("val")} == held_out_ids
    other = _table(root, "\n".join(lines), "jsonl", train_share=0.7, split_seed=1)
    assert {example.image_id for example in other.examples("val")} != held_out_ids


@pytest.mark.parametrize("splits", [("test", "train", "val"), ("trainval",), ("holdout", "train")])
def test_a_table_without_splits_has_two(root, splits):
    with pytest.raises(UsageError, match=r"no splits of its own, .* train and either val or test"):
        _table(root, LONG, splits=splits).examples(splits[0])


def test_a_split_that_the_table_does_not_name(root):
    with pytest.raises(UsageError, match="set mine has no split 'test'; it has train, val"):
        _table(root, WIDE, splits=("test", "train")).examples("test")


def test_missing_images_fail_or_are_left_out(root):
    (root / "photos" / "a.jpg").unlink()
    with pytest.raises(Failure, match=r"1 unreadable images: train: a.jpg \(.*No such file"):
        records.prepare(_table(root, WIDE), root / "prepared")
    folder = records.prepare(_table(root, WIDE), root / "prepared", on_corrupt="skip")
    split = records.open_split(folder, "train")
    assert [record.image_id for record in split] == ["c.jpg"]
    assert split.skipped == [f"a.jpg ({root / 'photos' / 'a.jpg'})"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("image,dog\na.jpg,1,0\n", "line 2: 3 columns, and the header has 2"),
        ("image,dog\n\na.jpg\n", "line 3: 1 columns, and the header has 2"),
        ("image,dog,dog\na.jpg,1,0\n", "line 1: two columns are named 'dog'"),
        ("image,,dog\na.jpg,x,1\n", "line 1: column 2 has no name"),
        ("image,split\na.jpg,train\n", "line 1: .* either the column labels or a column a class"),
        ("image/dog/cat\na.jpg/1/0\n", "line 1: .* there are 'image/dog/cat'"),
        (
            "image,labels,dog\na.jpg,cat,1\nc.jpg,cat,0\n",
            "line 1: .* there are 'image', 'labels', 'dog'; which counts\\? Say --label-column",
        ),
        ("image,dog\na.jpg,2\n", "line 2, column 'dog': '2' is neither 1 .* nor 0 .* nor ?"),
        ("image,dog\na.jpg,1\nc.jpg,yes\n", "line 3, column 'dog': 'yes' is neither"),
        ("image,dog\na.jpg,yes\n", "line 2, column 'dog': 'yes' is neither"),
        ("image,dog\n,1\n", "line 2, column 'image' is empty"),
        ("image,dog\na.jpg,1\n./a.jpg,0\n", "line 3: a.jpg is listed already, in .*line 2"),
        ("image,dog,split\na.jpg,1,train\nc.jpg,1,\n", "line 3: it names no split, and other"),
        ("image,dog,split\na.jpg,1,\nc.jpg,1,val\n", "line 2: it names no split, and other"),
        (
            "image,labels\na.jpg,dog;;cat\n",
            "line 2, column 'labels': a name in 'dog;;cat' is empty",
        ),
        ("image,labels\na.jpg,dog;?\n", "line 2, column 'labels': a name in .* is empty"),
        ("image,labels\na.jpg,dog;dog?\n", "line 2: 'dog' is both present and unknown"),
        ("image,labels\na.jpg,[dog]\n", r"line 2, column 'labels': '\[dog\]' is not a Python list"),
        ("image,labels\na.jpg,\"['a', 1]\"\n", "is not a Python list of names"),
        ('image,labels\n"a.jpg,dog\n', "line 2 is not CSV: unexpected end of data"),
        (b"image,labels\na.jpg,caf\xe9\x81\n", "is not text in UTF-8, nor in cp1252"),
        ("image,labels\n", "set mine: no image is listed"),
        ("", "labels.txt is empty: it must have a header"),
    ],
)
def test_malformed_csv(root, content, message):
    _check_fails(_table(root, content), message)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"image": "a.jpg", "labels": ["dog"]}\n{"image": "c.jpg"', "line 2 is not JSON: "),
        ('["a.jpg", "dog"]', "line 1: it must be an object with the fields image and labels"),
        ('{"photos": "a.jpg", "labels": []}', "line 1: the field image must be a path"),
        ('{"image": "", "labels": []}', "line 1: the field image is empty"),
        ('{"image": "a.jpg", "of": ["dog"]}', "line 1: the field labels must be a list of name"),
        ('{"image": "a.jpg", "labels": 3}', "line 1: the field labels must be a list of names"),
        ('{"image": "a.jpg", "labels": ""}', "line 1: the field labels must be a list of names"),
        ('{"image": "a.jpg", "labels": [""]}', "line 1: the field labels must be a list of names"),
        ('{"image": "a.jpg", "labels": [], "unknown": [1]}', "the field unknown must be a list of"),
        ('{"image": "a.jpg", "labels": [], "split": 1}', "line 1: the field split must be a name"),
        ('{"image": "a.jpg", "labels": ["x"], "unknown": ["x"]}', "'x' is both present and unknow"),
        (b'{"image": "caf\xe9.jpg", "labels": []}', "is not text in UTF-8"),
        ("\n", "set mine: no image is listed"),
    ],
)
def test_malformed_json_lines(root, content, message):
    _check_fails(_table(root, content, "jsonl"), message)


def _check_fails(source, message):
    with pytest.raises(Failure, match=message) as failure:
        source.examples("train")
    assert "\n" not in str(failure.value)
    assert "labels.txt" in str(failure.value) or "set mine" in str(failure.value)


def test_no_code_of_a_table_is_run(root):
    victim = root / "victim"
    text = f"[__import__('os').mkdir('{victim}')]"
    with pytest.raises(Failure, match="is not a Python list of names"):
        _table(root, f'image,labels\na.jpg,"{text}"\n').examples("train")
    assert not victim.exists()
    with pytest.raises(Failure, match="is not a Python list of names"):
        _table(root, f"image,labels\na.jpg,{'[' * 100_000}\n").examples("train")


def test_missing_paths(root):
    with pytest.raises(UsageError, match=r"annotation file .*none.csv: No such file .*: check"):
        _ = _table(root, WIDE, annotations="none.csv").class_names
    with pytest.raises(UsageError, match=r"no image folder .*/pictures: check `root` and"):
        _table(root, WIDE, image_dir="pictures").examples("train")


def test_real_photographs(shared, tmp_path):
    folder = shared / "images"
    options = {"kind": "jsonl", "annotations": "labels.jsonl"}
    source = Table("photos", folder, ("train", "val"), **options)
    prepared = records.prepare(source, tmp_path)
    lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    expected = {line["image"]: set(line["labels"]) for line in lines}
    found = {}
    for name in ("train", "val"):
        split = records.open_split(prepared, name)
        for record in split:
            found[record.image_id] = {split.class_names[c] for c in np.where(record.labels == 1)[0]}
            assert record.image == (folder / record.image_id).read_bytes()
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "image,labels\na\0.jpg,dog\n", "line 2, column 'image': .* has a zero byte"),
        ("csv", "image,labels\na.jpg,['do\0g']\n", "line 2, column 'labels': .* not a Python list"),
        (
            "csv",
            "image,labels\na.jpg,['\\x']\n",
            "line 2, column 'labels': .* not a Python list of",
        ),
        ("csv", f"image,labels\n{'a' * 300}.jpg,dog\n", "line 2, .* longer than a path can be"),
        ("csv", f"image,labels\n{'a' * 200_000}.jpg,dog\n", "line 2 is not CSV: field larger"),
        ("csv", "image,labels\n".encode("utf-16") + b"x", "is not text in UTF-8, nor in utf-16"),
        ("jsonl", '{"image": "\\ud800", "labels": []}', "line 1 has an escape of half a character"),
        ("jsonl", '{"image": "a", "labels": ["\\udfff"]}', "line 1 has an escape of half a"),
        ("jsonl", '{"image": "a\\u0000", "labels": []}', "line 1: the field image: .* zero byte"),
        ("jsonl", "[" * 100_000, "line 1 is not JSON that can be read: it is nested too deep"),
        ("jsonl", "9" * 5000, "line 1 is not JSON: Exceeds the limit"),
        ("jsonl", '{"image": {}, "labels": []}', "line 1: the field image must be a path"),
    ],
    ids=lambda value: "" if len(value) > 99 else None,
)
def test_hostile_tables_fail_in_one_line(root, kind, content, message):
    _check_fails(_table(root, content, kind), message)


def test_a_label_for_each_image_is_no_class(root):
    """Less than half a megabyte, of which labels of 400 MB would be made."""
    rows = "".join(f"{i}.jpg,{i}\n" for i in range(20_000))
    _check_fails(
        _table(root, "image,labels\n" + rows, label_column="labels"),
        "20,000 images have 20,000 different labels: are texts",
    )


@pytest.mark.parametrize("path", ["{}/{}.jpg", "{}\\{}.jpg", "data/{}/x/{}.jpg", "./{}/{}.jpg"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_splits_from_the_folders_of_paths(plant, read_own, path, kind):
    places = [("train", "a"), ("train", "b"), ("Val", "a"), ("test2", "c")]
    paths = [path.format(split, name) for split, name in places]
    photos = [name.replace("\\", "/").removeprefix("./") for name in paths]
    lines = {
        "csv": ["image,labels", *(f"{name},cat" for name in paths)],
        "jsonl": [json.dumps({"image": name, "labels": ["cat"]}) for name in paths],
    }
    own = read_own(plant({f"t.{kind}": "\n".join(lines[kind])}, photos))
    assert own.own_splits == ("Val", "test2", "train")
    assert {split: list(part) for split, part in own.of.items()} == {
        "train": photos[:2],
        "Val": photos[2:3],
        "test2": photos[3:],
    }
    assert "splits are the folders of the paths: Val, test2, train" in own.notes


def test_splits_from_later_folders_of_paths(plant, read_own):
    photos = [f"{year}/{split}/a.jpg" for year in (2019, 2020) for split in ("train", "val")]
    own = read_own(
        plant({"t.csv": "\n".join(["image,labels", *(f"{p},cat" for p in photos)])}, photos)
    )
    assert {split: list(of) for split, of in own.of.items()} == {
        "train": photos[::2],
        "val": photos[1::2],
    }


def test_folders_of_paths_that_are_no_splits(plant, read_own):
    """A column of splits counts before them; and trains are a class beside buses."""
    text = "image,labels,split\ntrain/a.jpg,cat,val\nval/b.jpg,dog,train\n"
    own = read_own(plant({"t.csv": text}, ["train/a.jpg", "val/b.jpg"]))
    assert own.of == {"train": {"val/b.jpg": {"dog"}}, "val": {"train/a.jpg": {"cat"}}}
    text = "image,labels\ntrain/a.jpg,fast\nbus/b.jpg,slow\n"
    own = read_own(plant({"t.csv": text}, ["train/a.jpg", "bus/b.jpg"]))
    assert own.own_splits == () and len(own.labels) == 2


def test_an_empty_column_is_no_class_beside_one_of_words(plant, read_own):
    text = "image;Etiketten;Notiz\na.jpg;dog, cat;\nb.jpg;cat;\n"
    folder = plant({"t.csv": text}, ["a.jpg", "b.jpg"])
    with pytest.raises(Failure, match="say --label-column"):
        read_own(folder)
    own = read_own(folder, label_column="Etiketten")
    assert own.labels == {"a.jpg": {"cat", "dog"}, "b.jpg": {"cat"}}


@pytest.mark.parametrize("other", ["more/c.jpg", "c.jpg"])
def test_folders_of_paths_of_which_some_are_splits(plant, read_own, other):
    photos = ["train/a.jpg", "val/b.jpg", other]
    text = "image,labels\n" + "".join(f"{name},cat\n" for name in photos)
    with pytest.raises(UsageError, match=f"line 4: the folder of {other} is not .* of train/a.jpg"):
        read_own(plant({"t.csv": text}, photos))
