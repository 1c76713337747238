"""COCO's layout in miniature, its malformations, and the real photographs."""

import copy
import json

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.sources.coco import CocoFolder
from mlic_jax.errors import Failure, UsageError

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}]


def _annotation(number, image, category, box, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "iscrowd": crowd,
    }


TRAIN = {
    "categories": CATEGORIES,
    "images": [
        {"id": 9, "file_name": "nine.jpg", "width": 24, "height": 18},
        {"id": 4, "file_name": "sub/four.jpg", "width": 24, "height": 18},
        {"id": 7, "file_name": "seven.jpg", "width": 24, "height": 18},
    ],
    "annotations": [
        _annotation(100, 9, 18, [1.08, 2.5, 10.02, 4.25]),
        _annotation(101, 9, 1, [0, 0, 24, 18], crowd=1),
        _annotation(102, 4, 44, [3.0, 4.0, 5.0, 6.0]),
        _annotation(103, 4, 44, [0, 0, 2, 2], crowd=1),
        _annotation(104, 9, 18, [0.1, 0.2, 20.2, 10.1]),
    ],
}
VAL = {
    "categories": CATEGORIES,
    "images": [{"id": 1, "file_name": "one.jpg"}],
    "annotations": [_annotation(1, 1, 1, [0, 0, 5, 5])],
}


@pytest.fixture
def root(tmp_path, jpeg):
    for i, name in enumerate(("train/nine.jpg", "train/sub/four.jpg", "train/seven.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(i))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "one.jpg").write_bytes(jpeg(9))
    _write(tmp_path, train=TRAIN, val=VAL)
    return tmp_path


def _write(root, **contents):
    for split, content in contents.items():
        (root / f"instances_{split}.json").write_text(json.dumps(content))


def _source(root, **options):
    return CocoFolder("mini", root, ("train", "val"), **options)


def test_labels_and_boxes(root):
    source = _source(root)
    assert source.class_names == ("bottle", "dog", "person")
    nine, four = source.examples("train")
    assert (nine.image_id, nine.image) == ("nine.jpg", root / "train" / "nine.jpg")
    np.testing.assert_array_equal(nine.labels, [-1, 1, 0])  # person: only a crowd
    assert nine.labels.dtype == np.int8
    # The smallest boxes that cover [x, y, x + w, y + h]; 0.2 + 10.1 is 10.299999999999999.
    np.testing.assert_array_equal(nine.boxes, [[2, 1, 7, 12], [0, 0, 11, 21]])
    np.testing.assert_array_equal(nine.box_classes, [1, 1])
    assert four.image_id == "sub/four.jpg"
    np.testing.assert_array_equal(four.labels, [1, -1, -1])  # one bottle is no crowd
    np.testing.assert_array_equal(four.boxes, [[4, 3, 10, 8]])
    assert nine.boxes.dtype == nine.box_classes.dtype == np.int32


def test_a_sum_of_floats_does_not_grow_a_box(root):
    content = copy.deepcopy(VAL)
    content["annotations"][0]["bbox"] = [0.1, 187.69, 2.9 + 1e-9, 285.31]  # ends at 3.0 and 473.0
    _write(root, val=content)
    np.testing.assert_array_equal(_source(root).examples("val")[0].boxes, [[187, 0, 473, 3]])


def test_annotation_order(root):
    source = _source(root, class_order="annotation")
    assert source.class_names == ("person", "dog", "bottle")
    np.testing.assert_array_equal(source.examples("train")[0].labels, [0, 1, -1])
    np.testing.assert_array_equal(source.examples("train")[1].box_classes, [2])


def test_unlabelled_images_are_dropped_or_kept(root):
    kept = _source(root, keep_unlabelled=True).examples("train")
    assert [example.image_id for example in kept] == ["nine.jpg", "sub/four.jpg", "seven.jpg"]
    np.testing.assert_array_equal(kept[2].labels, [-1, -1, -1])
    assert kept[2].boxes.shape == (0, 4) and kept[2].box_classes.shape == (0,)


def test_an_image_with_only_a_crowd_is_labelled(root):
    content = copy.deepcopy(VAL)
    content["annotations"][0]["iscrowd"] = 1
    _write(root, val=content)
    (example,) = _source(root).examples("val")
    np.testing.assert_array_equal(example.labels, [-1, -1, 0])
    assert example.boxes.shape == (0, 4)


def test_patterns(root):
    (root / "annotations").mkdir()
    (root / "instances_val.json").rename(root / "annotations" / "val_set.json")
    (root / "val").rename(root / "val2014")
    source = CocoFolder(
        "mini", root, ("val",), image_dir="{split}2014", annotations="annotations/{split}_set.json"
    )
    assert source.examples("val")[0].image == root / "val2014" / "one.jpg"


def test_the_splits_that_there_are(root):
    assert _source(root).own_splits == ("train", "val")
    for split in ("train", "valid"):
        (root / f"export [1]/{split}").mkdir(parents=True)
        (root / f"export [1]/{split}/coco_{split}.json").write_text("{}")
    (root / "export [1]/valid/coco_train.json").write_text("{}")
    pattern = "export [1]/{split}/coco_{split}.json"
    assert CocoFolder("mini", root, (), annotations=pattern).own_splits == ("train", "valid")


@pytest.fixture
def one_file(root):
    """Images in one folder and one file of annotations for all of them."""
    content = {
        "categories": CATEGORIES,
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(12)],
        "annotations": [
            _annotation(i, i, (1, 18)[i % 2], [0, 0, 5, 5], crowd=i == 7) for i in range(10)
        ],
    }
    _write(root, all=content)
    return root


def _divided(root, splits=("train", "val"), **options):
    options = {"image_dir": "train", "annotations": "instances_all.json", **options}
    return CocoFolder("mini", root, splits, **options)


def test_one_file_is_divided(one_file):
    source = _divided(one_file, train_share=0.6)
    assert source.own_splits == () and source.class_names == ("bottle", "dog", "person")
    train, val = source.examples("train"), source.examples("val")
    ids = [example.image_id for example in (*train, *val)]
    assert (len(train), len(val)) == (6, 4)  # of ten: two have no annotation
    assert sorted(ids) == [f"{i}.jpg" for i in range(10)]
    labels = {example.image_id: example.labels.tolist() for example in (*train, *val)}
    assert labels["7.jpg"] == [-1, 0, -1] and labels["4.jpg"] == [-1, -1, 1]
    assert train[0].image.parent == one_file / "train"
    held_out = [example.image_id for example in val]
    test = _divided(one_file, ("test", "train"), train_share=0.6).examples("test")
    assert [example.image_id for example in test] == held_out
    other = _divided(one_file, train_share=0.6, split_seed=1).examples("val")
    assert [example.image_id for example in other] != held_out
    assert len(_divided(one_file, keep_unlabelled=True, train_share=0.5).examples("val")) == 6


def test_one_file_that_cannot_be_divided(one_file):
    with pytest.raises(UsageError, match=r"no splits of its own, .* train and either val"):
        _divided(one_file, ("train", "val", "test")).examples("train")
    with pytest.raises(UsageError, match=r"image_dir must be one folder, and it is '{split}'"):
        _divided(one_file, image_dir="{split}")
    _write(one_file, all={**VAL, "annotations": []})
    assert _divided(one_file).examples("train") == []


def test_the_description_of_files_of_splits_is_as_it_was(root):
    assert "train_share" not in _source(root).description
    assert _divided(root, split_seed=4).description["split_seed"] == 4


def test_prepared_and_read_back(root, tmp_path):
    folder = records.prepare(_source(root), tmp_path / "prepared")
    record = records.open_split(folder, "train")[0]
    assert record.image == (root / "train" / "nine.jpg").read_bytes()
    np.testing.assert_array_equal(record.boxes, [[2, 1, 7, 12], [0, 0, 11, 21]])
    for split in ("train", "val"):
        (root / f"instances_{split}.json").unlink()  # not needed any more
    assert records.prepare(_source(root), tmp_path / "prepared") == folder


def _changed(**changes):
    return {**TRAIN, **changes}


@pytest.mark.parametrize(
    "content, message",
    [
        (
            _changed(annotations=[_annotation(5, 77, 1, [0, 0, 1, 1])]),
            "annotation 5 is of image 77, which the file does not list",
        ),
        (
            _changed(annotations=[_annotation(5, 9, 99, [0, 0, 1, 1])]),
            "annotation 5 is of category 99, which the file does not list",
        ),
        (
            _changed(annotations=[_annotation(5, 9, 1, [0, 0, 1])]),
            r"annotation 5, field 'bbox' must be 4",
        ),
        (
            _changed(annotations=[_annotation(5, 9, 1, "abcd")]),
            r"annotation 5, field 'bbox' must be 4",
        ),
        (
            _changed(annotations=[_annotation(5, 9, 1, [0, 0, float("nan"), 1])]),
            r"annotation 5, field 'bbox' must be 4 finite numbers",
        ),
        (_changed(annotations=[{"id": 1}]), "lacks the field 'image_id'"),
        (_changed(images=[{"id": 9}]), "lacks the field 'file_name'"),
        (_changed(images=TRAIN["images"] * 2), "image ids occur more than once"),
        (_changed(categories=CATEGORIES + CATEGORIES[:1]), "category ids occur more than once"),
        (_changed(categories=CATEGORIES[:2]), "category 44, which the file does not list"),
        (
            _changed(categories=[*CATEGORIES[:2], {"id": 44, "name": "cup"}]),
            r"the categories of .*instances_train.json and .*instances_val.json are not the same",
        ),
        (_changed(images=[{"id": {"a": 1}, "file_name": "a"}]), "'id' must be a number or a text"),
        (_changed(categories=[{"id": [1], "name": "cat"}]), "'id' must be a number or a text"),
        (_changed(images=[{"id": 10**400, "file_name": "a"}]), "'id' must be a number or a text"),
        (_changed(images=[{"id": True, "file_name": "a"}]), "'id' must be a number or a text"),
        (_changed(categories=[{"id": 1, "name": ["cat"]}]), "'name' must be a name"),
        (_changed(categories=[{"id": 1, "name": 3}]), "'name' must be a name"),
        (_changed(images=[{"id": 9, "file_name": 3}]), "'file_name' must be a path"),
        (_changed(images=[{"id": 9, "file_name": "a\0"}]), "is no path, it has a zero byte"),
        (_changed(images=[{"id": 9, "file_name": "a" * 300}]), "is longer than a path can be"),
        (_changed(images=[{"id": 9, "file_name": "\ud800"}]), "an escape of half a character"),
        (_changed(images=[7]), r"images\[0\] must be an object"),
        (_changed(images={"id": 9}), "'images' must be a list"),
        (
            _changed(annotations=[_annotation(5, [9], 1, [0, 0, 1, 1])]),
            "'image_id' must be a number",
        ),
        (_changed(annotations=[_annotation(5, 9, {}, [0, 0, 1, 1])]), "'category_id' must be a"),
        (_changed(annotations=[_annotation(5, 9, 1, [0, 0, 10**400, 1])]), "4 finite numbers"),
        (_changed(annotations=[_annotation(5, 9, 1, [0, 0, 1e300, 1])]), "4 finite numbers"),
        ({}, "lacks the field 'categories'"),
        ([], "is not in COCO's format"),
    ],
)
def test_a_malformed_file_fails_in_one_line(root, content, message):
    _write(root, train=content)
    with pytest.raises(Failure, match=message) as failure:
        _source(root).examples("train")
    assert "instances_train.json" in str(failure.value) and "\n" not in str(failure.value)


def test_broken_json_fails_in_one_line(root):
    (root / "instances_val.json").write_text('{"images": [')
    with pytest.raises(Failure, match=r"instances_val.json is not JSON: .* line 1") as failure:
        _source(root).examples("val")
    assert "\n" not in str(failure.value)


def test_missing_paths(root):
    with pytest.raises(UsageError, match=r"no annotation file .*instances_test.json"):
        CocoFolder("mini", root, ("test",)).examples("test")
    with pytest.raises(UsageError, match=r"no image folder .*images"):
        _source(root, image_dir="images").examples("val")


def test_coco128(shared, tmp_path):
    folder = shared / "coco128"
    source = CocoFolder("coco128", folder, ("train", "val"))
    prepared = records.prepare(source, tmp_path)
    for name in ("train", "val"):
        content = json.loads((folder / f"instances_{name}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        split = records.open_split(prepared, name)
        assert len(split) == len({a["image_id"] for a in content["annotations"]})
        files = {image["file_name"]: image for image in content["images"]}
        for record in split:
            image = files[record.image_id]
            assert (record.height, record.width) == (image["height"], image["width"])
            present = {
                names[a["category_id"]]
                for a in content["annotations"]
                if a["image_id"] == image["id"] and not a["iscrowd"]
            }
            assert {split.class_names[c] for c in np.flatnonzero(record.labels == 1)} == present
            assert {split.class_names[c] for c in record.box_classes} == present
            assert (record.boxes[:, :2] < record.boxes[:, 2:]).all()


def test_splits_from_the_folders_of_file_names(plant, read_own):
    photos = ["train/a.jpg", "train/b.jpg", "val/a.jpg"]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(photos)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    own = read_own(plant({"all.json": json.dumps(content)}, photos))
    assert own.of == {
        "train": {photos[0]: {"cat"}, photos[1]: {"dog"}},
        "val": {photos[2]: {"cat"}},
    }
    assert "splits are the folders of the paths: train, val" in own.source.notes
