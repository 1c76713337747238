"""Preparing a set and reading it back; killed, damaged and wrong sets included."""

import dataclasses
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import pipeline, records, transforms
from mlic_jax.data.records import checking, lock, shards, writing
from mlic_jax.errors import Failure, UsageError


def test_records_come_back_as_they_were(toy_source, tmp_path):
    source = toy_source(train=10, val=4)
    folder = records.prepare(source, tmp_path)
    assert folder == tmp_path / "toy"
    assert [f.name for f in tmp_path.iterdir()] == ["toy"]
    for name, size in (("train", 10), ("val", 4)):
        split = records.open_split(folder, name)
        assert (len(split), split.name, split.split) == (size, "toy", name)
        assert split.class_names == ("ant", "bee", "cat")
        assert split.description == {"kind": "toy"}
        assert split.skipped == []
        for i, want in enumerate(source.examples(name)):
            record = split[i]
            assert record.image == want.image
            assert record.image_id == split.image_id(i) == want.image_id
            assert (record.height, record.width) == (16 + i % 3, 20 + i % 5)
            for got, expected in (
                (record.labels, want.labels),
                (record.boxes, want.boxes),
                (record.box_classes, want.box_classes),
            ):
                assert got.dtype == expected.dtype and got.shape == expected.shape
                np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(split.labels()[i], want.labels)
        assert split.labels().dtype == np.int8
        for outside in (size, -1):
            with pytest.raises(IndexError, match=f"position {outside} of a split of {size} images"):
                split[outside]


def test_order_holds_over_many_shards(toy_source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 7)
    folder = records.prepare(toy_source(train=30), tmp_path)
    assert len(list(folder.glob("*train*array_record*"))) == 5
    split = records.open_split(folder, "train")
    assert [record.image_id for record in split] == [f"photo{i}" for i in range(30)]
    assert [split.image_id(i) for i in range(30)] == [f"photo{i}" for i in range(30)]


def test_images_in_files_and_their_bytes(toy_source, toy_example, tmp_path):
    source = toy_source(train=3)
    for i, example in enumerate(source.contents["train"]):
        file = tmp_path / f"{i}.jpg"
        file.write_bytes(example.image)
        source.contents["train"][i] = toy_example(i, image=file)
    split = records.open_split(records.prepare(source, tmp_path / "prepared"), "train")
    assert [r.image for r in split] == [(tmp_path / f"{i}.jpg").read_bytes() for i in range(3)]


def test_boxes_are_clipped_to_the_decoded_image(toy_source, toy_example, tmp_path):
    boxes = np.array([[-3, -2, 99, 99], [4, 50, 9, 60], [2, 3, 4, 5]], np.int32)
    example = toy_example(0, boxes=boxes, box_classes=np.array([0, 1, 2], np.int32))
    source = toy_source(train=1)
    source.contents["train"] = [example]
    record = records.open_split(records.prepare(source, tmp_path), "train")[0]
    np.testing.assert_array_equal(record.boxes, [[0, 0, 16, 20], [2, 3, 4, 5]])
    np.testing.assert_array_equal(record.box_classes, [0, 2])


def _turned(toy_example, **changes):
    """An example whose 24 x 18 image a tag turns clockwise, with a box on its bright part."""
    pixels = np.zeros((18, 24, 3), np.uint8)
    pixels[2:5, 3:10] = 255
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    given = {"boxes": np.array([[2, 3, 5, 10]], np.int32), "box_classes": np.array([1], np.int32)}
    return toy_example(0, image=buffer.getvalue(), **(given | changes))


@pytest.mark.parametrize("given", ["stored", "upright", "no"])
def test_an_upright_set_turns_images_and_boxes(given, toy_source, toy_example, tmp_path):
    """Wherever the boxes were drawn, which the size tells that the annotations give."""
    size = {"stored": (18, 24), "upright": (24, 18), "no": None}[given]
    example = _turned(toy_example, size=size)
    if given == "upright":
        example = dataclasses.replace(example, boxes=np.array([[3, 13, 10, 16]], np.int32))
    source = toy_source(train=1)
    source.contents["train"] = [example]
    split = records.open_split(records.prepare(source, tmp_path, upright=True), "train")
    (record,) = split
    assert (record.height, record.width, split.upright, split.misfits) == (24, 18, True, [])
    (y1, x1, y2, x2), pixels = record.boxes[0], np.asarray(split.decode(record))
    assert (pixels[y1:y2, x1:x2] == 255).all() and pixels.sum() == 255 * 3 * 21
    (batch,) = pipeline.batches(split, batch_size=1, image_size=32, shuffle=False)
    want = transforms.resize(transforms.decode(record.image, upright=True), 32)
    np.testing.assert_array_equal(batch["image"][0], want)


def test_a_set_that_is_to_be_upright_now_is_prepared_again(
    toy_source, toy_example, tmp_path, capsys
):
    source = toy_source(train=1)
    source.contents["train"] = [_turned(toy_example)]
    (record,) = records.open_split(records.prepare(source, tmp_path), "train")
    assert (record.height, record.width) == (18, 24)
    np.testing.assert_array_equal(record.boxes, [[2, 3, 5, 10]])
    capsys.readouterr()
    (record,) = records.open_split(records.prepare(source, tmp_path, upright=True), "train")
    assert (record.height, record.width) == (24, 18)
    assert "toy is prepared again: data.upright is True now\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"boxes": [[2, 3, 19, 25]]}, True),  # a pixel is rounding
        ({"boxes": [[2, 3, 20, 24]]}, False),
        ({"boxes": [[-2, 3, 4, 5]]}, False),
        ({"boxes": [[2, 30, 4, 34]]}, False),
        ({"boxes": [[2, 3, 2, 5]]}, False),
        ({"size": (36, 48)}, False),  # the picture was made smaller, its boxes were not
        ({"size": (36, 48), "boxes": np.zeros((0, 4)), "box_classes": []}, True),
    ],
)
def test_boxes_that_do_not_fit_are_noted(changes, fits, toy_source, toy_example, tmp_path, capsys):
    arrays = {k: v if k == "size" else np.array(v, np.int32) for k, v in changes.items()}
    source = toy_source(train=2)
    source.contents["train"].append(_turned(toy_example, image_id="x", **arrays))
    folder = records.prepare(source, tmp_path)
    assert records.open_split(folder, "train").misfits == ([] if fits else ["x"])
    assert ("boxes do not fit their image in x" in capsys.readouterr().out) != fits


@pytest.mark.parametrize("given", [None, (0, 8191)])
def test_deep_images_have_the_range_of_the_set_or_the_one_given(
    given, toy_source, toy_example, tmp_path
):
    source, images = toy_source(train=1, val=1), {}
    for split, values in (("train", [0, 1000]), ("val", [0, 4000])):
        buffer = io.BytesIO()
        Image.fromarray(np.array([values], np.uint16)).save(buffer, "PNG")
        images[split] = buffer.getvalue()
        source.contents[split] = [toy_example(0, image=images[split])]
    folder = records.prepare(source, tmp_path, value_range=given)
    assert records.prepare(source, tmp_path, value_range=given) == folder
    for name, value in (("train", 1000), ("val", 4000)):
        split = records.open_split(folder, name)
        assert split.value_range == (given or (0, 4095))
        gray = np.asarray(split.decode(split[0]))[0, 1]
        np.testing.assert_array_equal(gray, [value * 256 // (8192 if given else 4096)] * 3)


def test_a_split_pickles_as_its_path(toy_split):
    data = pickle.dumps(toy_split)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again[3].image == toy_split[3].image and again.class_names == toy_split.class_names


def test_tensorflow_is_not_imported(toy_split):
    code = (
        "import sys\n"
        "from mlic_jax.data import pipeline, records\n"
        f"split = records.open_split({str(toy_split.directory)!r}, 'train')\n"
        "batch = next(pipeline.batches(split, batch_size=2, image_size=8, shuffle=True))\n"
        "assert batch['image'].shape == (2, 8, 8, 3)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("renamed", [0, 4])  # the first and the last
def test_a_source_that_changed_before_it_was_written_fails(renamed, toy_source, tmp_path):
    """Its images are another set of files when they are written than when they were checked."""

    class Shifting(list):
        reads = 0

        def __getitem__(self, i):
            example = super().__getitem__(i)
            if i != renamed:
                return example
            Shifting.reads += 1
            return dataclasses.replace(example, image_id=f"read{Shifting.reads}")

    source = toy_source(train=5)
    source.contents["train"] = Shifting(source.contents["train"])
    with pytest.raises(Failure, match=r"image read1: its record is of read.*not written where"):
        records.prepare(source, tmp_path)
    assert not (tmp_path / "toy").exists()


def test_records_that_were_lost_while_writing_are_missed(toy_source, tmp_path, monkeypatch):
    rows = writing._rows
    monkeypatch.setattr(writing, "_rows", lambda *options: list(rows(*options))[:-1])
    with pytest.raises(Failure, match=r"index_train\.npz is of other images"):
        records.prepare(toy_source(train=10), tmp_path)
    assert not (tmp_path / "toy").exists()


# --- an existing set ---


def test_preparing_again_is_a_no_op(toy_source, tmp_path, capsys):
    source = toy_source(train=3)
    folder = records.prepare(source, tmp_path)
    before = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    capsys.readouterr()
    assert records.prepare(source, tmp_path) == folder
    assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == before
    assert capsys.readouterr().out == ""


def test_what_a_kill_after_the_renames_left_is_in_nobodys_way(toy_source, tmp_path):
    folder = records.prepare(toy_source(train=3), tmp_path)
    shutil.copytree(folder, tmp_path / "toy.incomplete" / "old")
    records.prepare(toy_source(train=3, val=2), tmp_path)
    assert len(records.open_split(folder, "val")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_another_source_under_the_same_name_is_refused(toy_source, tmp_path):
    source = toy_source(train=3)
    source.description = {"kind": "toy", "order": "a", "sizes": (1, 2)}
    records.prepare(source, tmp_path)
    records.prepare(source, tmp_path)  # a tuple became a list on disk: still the same
    source.description = {"kind": "toy", "order": "b", "sizes": (1, 2)}
    with pytest.raises(UsageError, match=r"order='a'.*'b'.*another name or delete"):
        records.prepare(source, tmp_path)
    source.description = {"kind": "toy", "order": "a", "sizes": (1, 2), "year": 2007}
    with pytest.raises(
        UsageError, match=r"without year, and now it is with year=2007: .*another name"
    ):
        records.prepare(source, tmp_path)
    source.description = {"kind": "toy", "order": "a"}
    with pytest.raises(
        UsageError, match=r"with sizes=\[1, 2\], and now it is without sizes: .*another"
    ):
        records.prepare(source, tmp_path)


def test_a_split_that_was_not_prepared_is_added(toy_source, tmp_path, capsys):
    records.prepare(toy_source(train=3, val=2), tmp_path)
    records.prepare(toy_source(val=2), tmp_path)  # fewer splits are fine
    capsys.readouterr()
    folder = records.prepare(toy_source(train=3, test=2), tmp_path)
    printed = capsys.readouterr().out
    assert "is prepared again: it was prepared without test" in printed
    assert "as before: train" in printed
    assert [len(records.open_split(folder, split)) for split in ("train", "test")] == [3, 2]


def test_a_folder_that_is_no_set_is_not_touched(toy_source, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not a prepared set"):
        records.prepare(toy_source(train=3), tmp_path)
    assert (tmp_path / "toy" / "mine.txt").read_text() == "keep"


def test_a_missing_set_or_split_is_answered_with_what_exists(toy_source, tmp_path):
    with pytest.raises(UsageError, match="no prepared sets"):
        records.open_split(tmp_path / "toy", "train")
    records.prepare(toy_source("one", train=2, val=2), tmp_path)
    records.prepare(toy_source("two", train=2), tmp_path)
    with pytest.raises(UsageError, match=r"no prepared set at .*three; .* has one, two"):
        records.open_split(tmp_path / "three", "train")
    with pytest.raises(UsageError, match=r"no split 'test' .* it has train, val"):
        records.open_split(tmp_path / "one", "test")


def test_a_missing_file_of_a_set_is_named(toy_source, tmp_path):
    folder = records.prepare(toy_source(train=2), tmp_path)
    (shard,) = folder.glob("*array_record*")
    shard.unlink()
    with pytest.raises(Failure, match=f"damaged.*{shard.name}"):
        records.open_split(folder, "train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.json", "{", "metadata.json is not JSON"),
        ("metadata.json", "[]", "is damaged .*metadata.json lacks one of class_names, source"),
        (
            "metadata.json",
            '{"class_names": [1, 2, 3], "source": {}, "skipped": {}}',
            "the class names are no names",
        ),
        ("dataset_info.json", "[" * 100_000, "dataset_info.json is not JSON .*nested too deep"),
        ("dataset_info.json", '{"splits": [{}]}', "is damaged .*dataset_info.json"),
        ("dataset_info.json", '{"splits": [{"name": "train"}]}', "is damaged"),
        ("features.json", "{}", "is damaged"),
        ("features.json", None, "is damaged"),
    ],
)
def test_damaged_metadata_are_one_line(file, content, message, toy_source, tmp_path):
    folder = records.prepare(toy_source(), tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(Failure, match=message) as failure:
        records.open_split(folder, "train")
    assert str(folder) in str(failure.value) and "\n" not in str(failure.value)


def test_features_import_nothing(toy_source, tmp_path, monkeypatch):
    """TFDS imports the module that each feature names."""
    folder = records.prepare(toy_source(), tmp_path / "prepared")
    (tmp_path / "harmful.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    features = (folder / "features.json").read_text()
    assert "tensorflow_datasets.core.features.text_feature.Text" in features
    changed = features.replace(
        "tensorflow_datasets.core.features.text_feature.Text", "harmful.Text"
    )
    (folder / "features.json").write_text(changed)
    with pytest.raises(Failure, match=r"features\.json names 'harmful\.Text': not imported"):
        records.open_split(folder, "train")
    assert "harmful" not in sys.modules


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"labels": np.zeros((10, 3), np.int8)}, "lacks image_ids or labels"),
        ({"image_ids": np.array(["a"])}, "lacks image_ids or labels"),
        ({"image_ids": np.array(["a"]), "labels": np.zeros((1, 3), np.int8)}, "is of other images"),
        (
            {"image_ids": np.zeros(10), "labels": np.zeros((10, 3), np.int8)},
            "image_ids must be text",
        ),
        ({"image_ids": np.array([{}]), "labels": np.zeros((10, 3), np.int8)}, "holds object"),
    ],
)
def test_a_damaged_index_is_one_line(index, message, toy_source, tmp_path):
    folder = records.prepare(toy_source(), tmp_path)
    (folder / "prepared.json").unlink()  # which knows how large it was
    np.savez(folder / "index_train.npz", **index)
    with pytest.raises(Failure, match=message) as failure:
        records.open_split(folder, "train").labels()
    assert str(folder) in str(failure.value) and "\n" not in str(failure.value)


def test_damaged_records_are_named(toy_source, tmp_path):
    folder = records.prepare(toy_source(train=4), tmp_path)
    (shard,) = folder.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    where = content.find(toy_source(train=4).examples("train")[2].image[-60:-20])
    assert where > 0
    content[where] ^= 0xFF
    shard.write_bytes(content)
    split = records.open_split(folder, "train")
    assert split[1].image_id == "photo1"
    with pytest.raises(Failure, match="set toy, split train, image photo2 cannot be read"):
        split[2]


# --- bad sources ---


@pytest.fixture
def folder_source(toy_source, toy_example, tmp_path):
    """A source of eight files, of which 2 is cut short, 4 is missing, 5 is empty, 6 is a text."""
    source = toy_source(train=8)
    for i, example in enumerate(source.contents["train"]):
        file = tmp_path / "images" / f"{i}.jpg"
        file.parent.mkdir(exist_ok=True)
        content = {2: example.image[:-200], 5: b"", 6: b"a text"}.get(i, example.image)
        if i != 4:
            file.write_bytes(content)
        source.contents["train"][i] = toy_example(i, image=file)
    return source


def test_every_unreadable_image_is_reported(folder_source, tmp_path):
    with pytest.raises(Failure) as failure:
        records.prepare(folder_source, tmp_path)
    for i in (2, 4, 5, 6):
        assert f"photo{i} ({tmp_path / 'images' / f'{i}.jpg'})" in str(failure.value)
    list_file = tmp_path / "toy.incomplete" / "unreadable.txt"
    assert str(list_file) in str(failure.value)
    assert len(list_file.read_text().splitlines()) == 4
    assert not (tmp_path / "toy").exists()
    with pytest.raises(UsageError, match="did not finish"):
        records.open_split(tmp_path / "toy", "train")


def test_a_long_list_is_cut_in_the_message_and_whole_in_the_file(toy_source, toy_example, tmp_path):
    source = toy_source(train=1)
    source.contents["train"] = [toy_example(i, image=b"broken") for i in range(20)]
    with pytest.raises(Failure, match=r"20 unreadable images.* and 15 more") as failure:
        records.prepare(source, tmp_path)
    assert "photo19" not in str(failure.value)
    assert "photo19" in (tmp_path / "toy.incomplete" / "unreadable.txt").read_text()


def test_unreadable_images_are_skipped_on_demand(folder_source, tmp_path, capsys):
    folder = records.prepare(folder_source, tmp_path, on_corrupt="skip")
    split = records.open_split(folder, "train")
    assert [record.image_id for record in split] == ["photo0", "photo1", "photo3", "photo7"]
    assert [name.split()[0] for name in split.skipped] == ["photo2", "photo4", "photo5", "photo6"]
    printed = capsys.readouterr().out
    assert "4 unreadable images are left out" in printed and "photo6" in printed


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.clear(), "split train has no images"),
        (lambda e: e.append(e[1]), "split train: image ids occur more than once: photo1"),
        (lambda e: e.append(_with_labels(e[0], [1, 1])), "image x: labels must be 3 int8 values"),
        (lambda e: e.append(_with_labels(e[0], [1, 1, 2])), "image x: labels must be 3 int8"),
    ],
)
def test_a_wrong_split_fails(toy_source, tmp_path, change, message):
    source = toy_source(train=3)
    change(source.contents["train"])
    with pytest.raises(Failure, match=message):
        records.prepare(source, tmp_path)
    assert not (tmp_path / "toy").exists()


def _with_labels(example, labels):
    return dataclasses.replace(example, image_id="x", labels=np.array(labels, np.int8))


def test_wrong_class_names_fail(toy_source, tmp_path):
    source = toy_source(train=3)
    source.class_names = ("ant", " ", "bee")
    with pytest.raises(Failure, match="a class has no name, or one of blanks alone"):
        records.prepare(source, tmp_path)
    source.class_names = ("ant", "bee", "ant")
    with pytest.raises(Failure, match="class names occur more than once: ant"):
        records.prepare(source, tmp_path)
    source.class_names = ()
    with pytest.raises(Failure, match="no classes"):
        records.prepare(source, tmp_path)


def test_wrong_requests(toy_source, tmp_path):
    with pytest.raises(UsageError, match="'My Set' cannot name a prepared set"):
        records.prepare(toy_source("My Set", train=3), tmp_path)
    for split in ("a-b", "", "../train", "train\n"):
        with pytest.raises(UsageError, match=f"{split!r} cannot name a split".replace("\\", ".")):
            records.prepare(toy_source(**{split: 3}), tmp_path)
    nothing = toy_source(train=3)
    nothing.contents = {}
    with pytest.raises(UsageError, match="toy: no splits to prepare"):
        records.prepare(nothing, tmp_path)
    with pytest.raises(UsageError, match="on_corrupt is 'ignore'"):
        records.prepare(toy_source(train=3), tmp_path, on_corrupt="ignore")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        records.prepare(toy_source(train=3), tmp_path / "file")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


# --- killed and resumed ---

_SLOW_PREPARE = """
import sys, time
from pathlib import Path
from mlic_jax.data import records
from mlic_jax.data.sources.coco import CocoFolder

stage, root, prepared = sys.argv[1:]
class Slow(list):
    seen = [0] * 100
    def __getitem__(self, i):
        self.seen[i] += 1
        if stage == "scan" and i >= 40:
            time.sleep(1000)
        if stage == "write" and i == 70 and self.seen[i] == 2:
            print("writing", flush=True)
            time.sleep(1000)
        return super().__getitem__(i)
    def __iter__(self):
        return (self[i] for i in range(len(self)))
class SlowFolder(CocoFolder):
    def examples(self, split):
        return Slow(super().examples(split))
records.prepare(SlowFolder("toy", Path(root), ("train",)), prepared, workers=2)
"""


@pytest.fixture
def coco_of_100(tmp_path, jpeg):
    import json

    from mlic_jax.data.sources.coco import CocoFolder

    root = tmp_path / "coco"
    (root / "train").mkdir(parents=True)
    for i in range(100):
        (root / "train" / f"{i}.jpg").write_bytes(jpeg(i))
    content = {
        "categories": [{"id": 1, "name": "ant"}],
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(100)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 4, 4]} for i in range(100)
        ],
    }
    (root / "instances_train.json").write_text(json.dumps(content))
    return CocoFolder("toy", root, ("train",))


def _kill_while(stage: str, source, prepared, reached) -> None:
    """Prepares in a process of its own and kills it as soon as `reached(its output)`."""
    arguments = [stage, source.description["root"], str(prepared)]
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_PREPARE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.time() + 60
        while not reached(process):
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def _check_prepared(source, prepared) -> None:
    split = records.open_split(records.prepare(source, prepared), "train")
    assert [r.image for r in split] == [e.image.read_bytes() for e in source.examples("train")]
    assert [f.name for f in prepared.iterdir()] == ["toy"]


def test_a_prepare_killed_while_checking_goes_on_where_it_was(coco_of_100, tmp_path, capsys):
    prepared = tmp_path / "prepared"
    journal = prepared / "toy.incomplete" / "readable.jsonl"

    def forty_checked(process):
        return journal.exists() and len(journal.read_text().split("\n")) >= 40

    _kill_while("scan", coco_of_100, prepared, forty_checked)
    with pytest.raises(UsageError, match="did not finish"):
        records.open_split(prepared / "toy", "train")
    with journal.open("a") as file:
        file.write('[["/half/a/li')  # as a kill in the middle of a write leaves it
    _check_prepared(coco_of_100, prepared)
    noted = int(capsys.readouterr().out.split(" images were found readable")[0])
    assert 38 <= noted <= 40


def test_a_prepare_killed_while_writing_starts_the_writing_again(coco_of_100, tmp_path, capsys):
    prepared = tmp_path / "prepared"
    _kill_while("write", coco_of_100, prepared, lambda process: process.stdout.readline())
    assert list((prepared / "toy.incomplete" / "records").glob("*array_record*"))
    assert not (prepared / "toy").exists()
    with pytest.raises(UsageError, match="did not finish"):
        records.open_split(prepared / "toy", "train")
    _check_prepared(coco_of_100, prepared)
    assert "100 images were found readable by an earlier run" in capsys.readouterr().out


def test_only_changed_files_are_checked_again(toy_source, toy_example, tmp_path, monkeypatch):
    source = toy_source(train=3)
    files = [tmp_path / f"{i}.jpg" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(source.contents["train"][i].image)
        source.contents["train"][i] = toy_example(i, image=file)
    source.contents["train"].append(toy_example(3, image=b"broken"))
    with pytest.raises(Failure, match="1 unreadable"):
        records.prepare(source, tmp_path / "prepared")
    # Of image 1 the size tells that it was ruined, of 2 the time at which its inode changed.
    for file, more in ((files[1], 1), (files[2], 0)):
        stat = file.stat()
        file.write_bytes(bytes(stat.st_size + more))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    looked_at = []
    look = transforms.look
    monkeypatch.setattr(transforms, "look", lambda image: looked_at.append(image) or look(image))
    with pytest.raises(Failure) as failure:
        records.prepare(source, tmp_path / "prepared")
    assert all(f"photo{i}" in str(failure.value) for i in (1, 2, 3))
    assert "photo0" not in str(failure.value) and len(looked_at) == 3


def test_a_line_of_the_journal_that_was_cut_costs_its_own_image_alone(jpeg, tmp_path):
    """Wherever a kill cut it: the lines before it count, and so do those that follow."""
    path = tmp_path / "readable.jsonl"
    with checking.Journal(path, None) as journal:
        looks = [journal.photo(jpeg(i, 20 + i, 16))[0].look for i in range(2)]
    assert [look.size(False) for look in looks] == [(16, 20), (16, 21)]
    whole = path.read_bytes().rstrip(b"\n")
    for cut in range(1, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        with checking.Journal(path, None) as journal:
            assert len(journal) == 1
            assert journal.photo(jpeg(2))[0].look.size(False) == (18, 24)
        with checking.Journal(path, None) as journal:
            assert len(journal) == 2


def test_two_processes_preparing_at_once_make_one_set(coco_of_100, tmp_path):
    arguments = ["none", coco_of_100.description["root"], str(tmp_path / "prepared")]
    command = [sys.executable, "-c", _SLOW_PREPARE, *arguments]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    printed = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("100 train" in text for text in printed) == 1  # only one of them wrote
    _check_prepared(coco_of_100, tmp_path / "prepared")


def test_one_at_a_time_holds_the_lock_of_a_set(tmp_path, capsys):
    """Though each deletes its file as it goes, at which others may be waiting."""
    inside, most, taken = [0], [0], [0]

    def take_turns(_):
        for _ in range(40):
            with lock.locked(tmp_path / "toy"):
                inside[0] += 1
                most[0], taken[0] = max(most[0], inside[0]), taken[0] + 1
                time.sleep(1e-5)
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take_turns, range(8)))
    assert (most, taken) == ([1], [320])
    assert list(tmp_path.iterdir()) == []
