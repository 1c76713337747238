"""Folders of every format as people have them, told apart; and those that are not to be told."""

import json

import pytest

from mlic_jax.data import sources
from mlic_jax.data.class_names import NUSWIDE
from mlic_jax.data.detect import FORMATS, detect, roles_of
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import Failure, UsageError

XML = (
    "<annotation><object><name>gear</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>"
    "<ymax>2</ymax></bndbox></object></annotation>"
)
HEADER = "filepath,label,split_name\n"


def coco(*file_names):
    """A file in COCO's format; of each image an object of the class gear."""
    box = {"bbox": [0, 0, 2, 2], "category_id": 3}
    return json.dumps(
        {
            "info": {},
            "images": [{"id": i, "file_name": name} for i, name in enumerate(file_names)],
            "annotations": [{"id": i, "image_id": i, **box} for i in range(len(file_names))],
            "categories": [{"id": 3, "name": "gear"}],
        }
    )


@pytest.fixture
def plant(tmp_path, jpeg):
    """plant({name: text}) -> a folder of these files; names of images need no text."""

    def make(files):
        for i, (name, text) in enumerate(files.items()):
            file = tmp_path / "data" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(i) if text is None else text.encode())
        return tmp_path / "data"

    return make


def images(*names):
    return dict.fromkeys(names)


# Name -> files, --images, --annotations, the format, image_dir, annotations and the root below
# the folder (None: the source has no such option), the image ids of the set.
FOLDERS = {
    "coco": (
        images("train/a.jpg", "val/b.jpg")
        | {"instances_train.json": coco("a.jpg"), "instances_val.json": coco("b.jpg")},
        ("", None),
        ("coco", "{split}", "instances_{split}.json", ""),
        {"a.jpg", "b.jpg"},
    ),
    "COCO 2017": (
        images("images/train2017/a.jpg", "images/val2017/b.jpg")
        | {f"annotations/instances_{s}2017.json": coco(i) for s, i in (("train", "a.jpg"),)}
        | {f"annotations/instances_{s}2017.json": coco(i) for s, i in (("val", "b.jpg"),)}
        | {"annotations/captions_val2017.json": coco("b.jpg")},
        ("", None),
        ("coco", "images/{split}", "annotations/instances_{split}.json", ""),
        {"a.jpg", "b.jpg"},
    ),
    "COCO of an annotation tool": (
        images("train/a.jpg", "valid/b.jpg", "test/c.jpg")
        | {f"{s}/_annotations.coco.json": coco("a.jpg") for s in ("train",)}
        | {f"{s}/_annotations.coco.json": coco("b.jpg") for s in ("valid",)}
        | {f"{s}/_annotations.coco.json": coco("c.jpg") for s in ("test",)},
        ("", None),
        ("coco", "{split}", "{split}/_annotations.coco.json", ""),
        {"a.jpg", "b.jpg", "c.jpg"},
    ),
    "one file of COCO among others": (
        images("photos/a.jpg", "photos/b.jpg")
        | {"labels/mine.json": coco("a.jpg", "b.jpg"), "package.json": "{}", "train.json": "[]"},
        ("", None),
        ("coco", "photos", "labels/mine.json", ""),
        {"a.jpg", "b.jpg"},
    ),
    "COCO, paths from the file": (
        images("photos/a.jpg", "photos/b.jpg")
        | {"mine.json": coco("photos/a.jpg", "photos/b.jpg")},
        ("photos", "mine.json"),
        ("coco", "", "mine.json", ""),
        {"photos/a.jpg", "photos/b.jpg"},
    ),
    "patterns": (
        images("x/train/a.jpg", "x/val/b.jpg")
        | {"y/of-train.json": coco("a.jpg"), "y/of-val.json": coco("b.jpg")},
        ("x/{split}", "y/of-{split}.json"),
        ("coco", "x/{split}", "y/of-{split}.json", ""),
        {"a.jpg", "b.jpg"},
    ),
    "VOC": (
        images("JPEGImages/a.jpg", "JPEGImages/b.png", "SegmentationClass/z.png")
        | {"Annotations/a.xml": XML, "Annotations/b.xml": XML},
        ("", None),
        ("voc", "JPEGImages", "Annotations", ""),
        {"a", "b"},
    ),
    "a VOC devkit": (
        images("VOC2012/JPEGImages/a.jpg", "VOC2012/JPEGImages/b.jpg")
        | {"VOC2012/Annotations/a.xml": XML, "VOC2012/Annotations/b.xml": XML}
        | {f"VOC2012/ImageSets/Main/{s}.txt": i for s, i in (("train", "a"), ("val", "b"))},
        ("", None),
        ("voc", "JPEGImages", "Annotations", "VOC2012"),
        {"a", "b"},
    ),
    "the images of VOC": (
        images("JPEGImages/a.jpg", "JPEGImages/b.jpg")
        | {"Annotations/a.xml": XML, "Annotations/b.xml": XML},
        ("JPEGImages", None),
        ("voc", "JPEGImages", "Annotations", ""),
        {"a", "b"},
    ),
    "XML beside the images": (
        images("photos/a.jpg", "photos/b.jpg") | {"photos/a.xml": XML, "photos/b.xml": XML},
        ("photos", None),
        ("voc", "photos", "photos", ""),
        {"a", "b"},
    ),
    "XML in a folder that is named": (
        images("photos/a.jpg", "photos/b.jpg") | {"xml/a.xml": XML, "xml/b.xml": XML},
        ("photos", "xml"),
        ("voc", "photos", "xml", ""),
        {"a", "b"},
    ),
    "csv": (
        images("a.jpg", "b.jpg") | {"labels.csv": "image,gear\na.jpg,1\nb.jpg,?\n"},
        ("", None),
        ("csv", "", "labels.csv", ""),
        {"a.jpg", "b.jpg"},
    ),
    "csv beside the images": (
        images("photos/a.jpg", "photos/b.jpg") | {"labels.csv": "image,gear\na.jpg,1\nb.jpg,?\n"},
        ("", None),
        ("csv", "photos", "labels.csv", ""),
        {"a.jpg", "b.jpg"},
    ),
    "csv, paths from the file": (
        images("photos/a.jpg", "photos/b.jpg")
        | {"labels.csv": "image,gear\nphotos/a.jpg,1\nphotos/b.jpg,?\n"},
        ("photos", "labels.csv"),
        ("csv", "", "labels.csv", ""),
        {"photos/a.jpg", "photos/b.jpg"},
    ),
    "jsonl": (
        images("photos/a.jpg", "photos/b.jpg")
        | {"x/l.jsonl": "\n".join(f'{{"image": "{i}.jpg", "labels": ["g"]}}' for i in "ab")},
        ("photos", "x/l.jsonl"),
        ("jsonl", "photos", "x/l.jsonl", ""),
        {"a.jpg", "b.jpg"},
    ),
    "NUS-WIDE": (
        images("photos/a.jpg", "photos/b.jpg")
        | {
            "n.csv": f'{HEADER}photos/a.jpg,"{list(NUSWIDE)}",train\nphotos/b.jpg,"[\'dog\']",val\n'
        },
        ("", None),
        ("nuswide", "", "n.csv", ""),
        {"photos/a.jpg", "photos/b.jpg"},
    ),
    "its columns, other classes": (
        images("a.jpg", "b.jpg") | {"n.csv": f"{HEADER}a.jpg,['gear'],train\nb.jpg,['dog'],val\n"},
        ("", None),
        ("csv", "", "n.csv", ""),
        {"a.jpg", "b.jpg"},
    ),
    "folders": (
        images("gear/a.jpg", "bolt/b.jpg", ".thumbnails/a.jpg") | {"readme.txt": ""},
        ("", None),
        ("folders", None, None, ""),
        {"gear/a.jpg", "bolt/b.jpg"},
    ),
    "folders of splits": (
        images("train/gear/a.jpg", "val/gear/b.jpg", "train/bolt/c.jpg"),
        ("", None),
        ("folders", None, None, ""),
        {"train/gear/a.jpg", "val/gear/b.jpg", "train/bolt/c.jpg"},
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_formats(plant, name):
    files, (where, annotations), (kind, *expected), image_ids = FOLDERS[name]
    folder = plant(files)
    annotations = annotations and str(folder / annotations)
    layout = detect(str(folder / where), annotations)
    assert layout.format == kind
    image_dir, annotations_found, root = expected
    assert layout.options["root"] == str(folder / root if root else folder)
    assert layout.options.get("image_dir") == image_dir
    assert layout.options.get("annotations") == annotations_found
    assert detect(str(folder / where), annotations, kind) == layout
    assert _read(layout) == image_ids


def _read(layout):
    """The images that the source finds with the options of a layout; each is there."""
    from mlic_jax.config import default_config

    data = default_config().data
    data.update({"source": layout.format, "name": "mine", "splits": {}, **layout.options})
    with data.unlocked():
        data.splits = roles_of(sources.create(DataOptions.of(data)).own_splits)
    source = sources.create(DataOptions.of(data))
    examples = [example for split in source.splits for example in source.examples(split)]
    assert all(example.image.is_file() for example in examples)
    return {example.image_id for example in examples}


def test_a_format_that_is_named_need_not_be_told(plant):
    folder = plant(images("red_dress/a.jpg", "blue_shirt/b.jpg"))
    with pytest.raises(UsageError, match=r"apparel \(2 folders .* or folders \(.*--format$"):
        detect(str(folder))
    for kind in ("apparel", "folders"):
        assert detect(str(folder), None, kind).format == kind
    plant({"n.csv": f"{HEADER}a.jpg,['dog'],train\nb.jpg,['cat'],val\n"})
    with pytest.raises(UsageError, match=r"could be csv \(n.csv\) or nuswide \(the columns file"):
        detect(str(folder))
    assert detect(str(folder), None, "nuswide").format == "nuswide"
    assert detect(str(folder), None, "csv").format == "csv"


@pytest.mark.parametrize("kind", FORMATS)
def test_files_of_another_format(plant, kind):
    folder = plant(images("a.jpg", "b.jpg"))
    with pytest.raises(UsageError, match=f"--format {kind} needs .*data has nothing") as error:
        detect(str(folder), None, kind)
    assert FORMATS[kind].needs in str(error.value)


@pytest.mark.parametrize(
    ("files", "where", "message"),
    [
        ({}, ("nowhere", None), "--images .*nowhere: there is no such file or folder"),
        ({}, ("a.jpg", None), "--images .*a.jpg is not a folder"),
        ({}, ("", "labels.csv"), "--annotations .*labels.csv: there is no such file or folder"),
        ({}, ("", None), "data has nothing of any format that is known"),
        ({"l.txt": ""}, ("", "l.txt"), "l.txt is nothing of any format that is known"),
        ({"l.json": "{}"}, ("", "l.json"), "l.json is nothing of any format that is known"),
        (images("train/a.jpg", "val/a.jpg"), ("", None), "data has nothing of any format"),
        (
            {"l.csv": "image,gear\na.jpg,1\n", "l.json": coco("a.jpg")},
            ("", None),
            r"data could be coco \(l.json\) or csv \(l.csv\): say which with --format$",
        ),
        (
            {"a.csv": "image,gear\na.jpg,1\n", "b.csv": "image,gear\na.jpg,1\n"},
            ("", None),
            "several files of the format csv: a.csv, b.csv; say which with --annotations",
        ),
        (
            {"a.json": coco("a.jpg"), "b.json": coco("a.jpg")},
            ("", None),
            "in COCO's format: a.json, b.json; say which",
        ),
        ({"x/a.xml": XML, "y/a.xml": XML}, ("", None), "folders of XML annotations: x, y; say"),
        (
            {"VOC2007/Annotations/a.xml": XML, "VOC2012/Annotations/a.xml": XML},
            ("", None),
            "several VOC devkits: VOC2007, VOC2012; say which with --images",
        ),
        ({}, ("", "of_{split}.json"), "no file fits --annotations .*of_{split}.json"),
    ],
)
def test_what_cannot_be_told(plant, files, where, message):
    folder = plant(images("a.jpg") | files)
    annotations = where[1] and str(folder / where[1])
    with pytest.raises(UsageError, match=message) as error:
        detect(str(folder / where[0]), annotations)
    assert "\n" not in str(error.value)


def test_a_table_that_is_malformed(plant):
    folder = plant(images("a.jpg") | {"l.csv": "image,gear\na.jpg,yes\n"})
    with pytest.raises(Failure, match=r"l.csv, line 2, column 'gear': 'yes' is neither"):
        detect(str(folder))


@pytest.mark.parametrize(
    ("splits", "roles"),
    [
        ((), ("train", "val", "val")),
        (("train", "val"), ("train", "val", "val")),
        (("test", "train"), ("train", "test", "test")),
        (("test", "train", "valid"), ("train", "valid", "test")),
        (("dev", "test", "train", "trainval"), ("train", "dev", "test")),
        (("test", "trainval"), ("trainval", "test", "test")),
        (("train2017", "val2017"), ("train2017", "val2017", "val2017")),
    ],
)
def test_roles(splits, roles):
    assert roles_of(splits) == dict(zip(("train", "val", "test"), roles, strict=True))


@pytest.mark.parametrize(
    ("splits", "divided", "roles"),
    [
        ((), ("val", "test"), ("train", "val", "test")),
        (("train",), ("test",), ("train", "test", "test")),
        (("test", "trainval"), ("val",), ("trainval", "val", "test")),
        (("train", "valid"), ("test",), ("train", "valid", "test")),
    ],
)
def test_roles_of_what_is_divided(splits, divided, roles):
    assert roles_of(splits, divided) == dict(zip(("train", "val", "test"), roles, strict=True))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train",), "splits of the set are train; there must be one whose name begins"),
        (("test", "val"), "splits of the set are test, val; there must be one"),
        (("a", "b"), "splits of the set are a, b"),
        (("train2014", "train2017", "val"), "for train: train2014, train2017"),
    ],
)
def test_splits_without_roles(splits, message):
    with pytest.raises(UsageError, match=message):
        roles_of(splits)


def test_splits_that_differ_in_case_alone_are_asked_about():
    with pytest.raises(UsageError, match="are Train and train one split"):
        roles_of(["Train", "train", "val"])
