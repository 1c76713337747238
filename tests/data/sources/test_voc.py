"""The VOC devkit's layout in miniature, and its malformations."""

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.sources.voc import CLASS_NAMES, VocFolder
from mlic_jax.data.sources.voc_layout import VocLayout
from mlic_jax.errors import Failure, UsageError


def _object(name, box, difficult=0, more=""):
    xmin, ymin, xmax, ymax = box
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{difficult}</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>{more}</object>"
    )


PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
ANNOTATIONS = {
    "000005": [
        _object("dog", (1, 1, 24, 18)),
        _object("person", (3, 4, 10, 12), 1),
        _object("dog", (2, 2, 3, 3), 1),
    ],
    "000007": [_object("person", (5, 6, 7, 8), more=PART + "</bndbox></part>")],
    "000009": [_object("tvmonitor", (1.5, 2.25, 8.75, 9), 1)],
}


@pytest.fixture
def devkit(tmp_path, jpeg):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for i, (image_id, objects) in enumerate(ANNOTATIONS.items()):
        (folder / "JPEGImages" / f"{image_id}.jpg").write_bytes(jpeg(i))
        xml = f"<annotation><size><width>24</width></size>{''.join(objects)}</annotation>"
        (folder / "Annotations" / f"{image_id}.xml").write_text(xml)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000009\n000005\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000007\n\n")
    return folder.parent


def _examples(root, split="trainval"):
    return VocFolder("voc2007", root, ("trainval", "test")).examples(split)


def _labels(**values):
    return [values.get(name, -1) for name in CLASS_NAMES]


def test_classes_are_the_20_in_alphabetical_order():
    assert len(CLASS_NAMES) == 20 and list(CLASS_NAMES) == sorted(CLASS_NAMES)
    assert VocFolder("voc2007", None, ()).class_names == CLASS_NAMES


def test_labels_and_boxes(devkit):
    nine, five = _examples(devkit)
    assert (nine.image_id, five.image_id) == ("000009", "000005")
    assert five.image == devkit / "VOC2007" / "JPEGImages" / "000005.jpg"
    # A dog that is not difficult beside one that is; a person that is.
    np.testing.assert_array_equal(five.labels, _labels(dog=1, person=0))
    np.testing.assert_array_equal(nine.labels, _labels(tvmonitor=0))
    # 1-based and inclusive became 0-based and exclusive; difficult objects keep their boxes.
    np.testing.assert_array_equal(five.boxes, [[0, 0, 18, 24], [3, 2, 12, 10], [1, 1, 3, 3]])
    np.testing.assert_array_equal(five.box_classes, [11, 14, 11])
    np.testing.assert_array_equal(nine.boxes, [[1, 0, 9, 9]])
    assert five.labels.dtype == np.int8 and five.boxes.dtype == five.box_classes.dtype == np.int32


def test_parts_of_an_object_are_not_objects(devkit):
    (seven,) = _examples(devkit, "test")
    np.testing.assert_array_equal(seven.boxes, [[5, 4, 8, 7]])


def test_the_root_may_be_the_folder_itself(devkit):
    assert [e.image_id for e in _examples(devkit / "VOC2007")] == ["000009", "000005"]


def test_an_image_without_objects(devkit):
    (devkit / "VOC2007" / "Annotations" / "000007.xml").write_text("<annotation></annotation>")
    (example,) = _examples(devkit, "test")
    assert (example.labels == -1).all() and example.boxes.shape == (0, 4)


def test_the_split_of_a_class_lists_images_with_its_labels_beside_them(devkit):
    """As in VOC's own dog_trainval.txt; what is shown is what the annotations say."""
    file = devkit / "VOC2007" / "ImageSets" / "Main" / "dog_trainval.txt"
    file.write_text("000009 -1\n000005  1\n000007  0\n")
    examples = _examples(devkit, "dog_trainval")
    assert [e.image_id for e in examples] == ["000009", "000005", "000007"]
    assert [e.labels[CLASS_NAMES.index("dog")] for e in examples] == [-1, 1, -1]


def test_prepared_and_read_back(devkit, tmp_path):
    source = VocFolder("voc2007", devkit, ("trainval", "test"))
    split = records.open_split(records.prepare(source, tmp_path / "prepared"), "trainval")
    assert split[1].image == (devkit / "VOC2007" / "JPEGImages" / "000005.jpg").read_bytes()
    np.testing.assert_array_equal(split[1].boxes[0], [0, 0, 18, 24])


@pytest.mark.parametrize(
    "xml, message",
    [
        (_object("unicorn", (1, 1, 2, 2)), "unknown class 'unicorn'"),
        (_object("dog", (1, 1, "x", 2)), "is malformed: .*'x'"),
        ("<object><name>dog</name><bndbox></bndbox></object>", "is malformed"),
        ("<object>", "is malformed: mismatched tag"),
        (_object("dog", (1, 1, "nan", 2)), "a side of a bndbox is no number of pixels"),
        (_object("dog", (1, 1, "1e300", 2)), "a side of a bndbox is no number of pixels"),
        ("<a>" * 100_000, "is malformed: mismatched tag"),
    ],
)
def test_a_malformed_annotation_is_named(devkit, xml, message):
    file = devkit / "VOC2007" / "Annotations" / "000005.xml"
    file.write_text(f"<annotation>{xml}</annotation>")
    with pytest.raises(Failure, match=message) as failure:
        _examples(devkit)
    assert str(file) in str(failure.value)


ENTITIES = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
LAUGHS = f'<!DOCTYPE a [<!ENTITY e0 "lol">{ENTITIES}]><annotation>&e9;</annotation>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LAUGHS.encode(), "it declares entities"),
        (LAUGHS.encode("utf-16"), "it declares entities"),
        (b'<?xml version="1.0" encoding="nothing"?><annotation/>', "unknown encoding"),
        (b'<?xml version="1.0" encoding="utf-7"?><annotation/>', "encoding"),
        (b"", "no element found"),
        (b"<annotation>" + b" " * 2**24 + b"</annotation>", "larger than 16,777,216 bytes"),
    ],
    ids=["entities", "of UTF-16", "unknown", "utf-7", "empty", "large"],
)
def test_a_hostile_annotation_is_named(devkit, content, reason):
    (devkit / "VOC2007" / "Annotations" / "000005.xml").write_bytes(content)
    with pytest.raises(Failure, match=rf"000005\.xml is malformed: .*{reason}") as failure:
        _examples(devkit)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9\n", "is not text in UTF-8"), (b"a\0b\n", "zero byte"), (b"a" * 300, "longer than")],
)
def test_a_hostile_list_of_images_is_named(devkit, content, message):
    (devkit / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").write_bytes(content)
    with pytest.raises(Failure, match=rf"trainval\.txt.* {message}"):
        _examples(devkit)


def test_a_missing_annotation_is_named(devkit):
    (devkit / "VOC2007" / "Annotations" / "000005.xml").unlink()
    with pytest.raises(Failure, match=r"image 000005 has no annotation: .*000005.xml"):
        _examples(devkit)


def test_a_split_without_any_annotation_is_unknown(devkit, tmp_path):
    (devkit / "VOC2007" / "Annotations" / "000007.xml").unlink()
    (example,) = _examples(devkit, "test")
    np.testing.assert_array_equal(example.labels, np.zeros(20, np.int8))
    assert example.labels.dtype == np.int8 and example.image.name == "000007.jpg"
    assert example.boxes.shape == (0, 4) and example.box_classes.shape == (0,)
    source = VocFolder("voc2012", devkit, ("test", "trainval"))
    split = records.open_split(records.prepare(source, tmp_path / "prepared"), "test")
    assert (split.labels() == 0).all()


def test_missing_paths(devkit):
    with pytest.raises(UsageError, match=r"no split 'val': .*val.txt does not exist"):
        _examples(devkit, "val")
    with pytest.raises(UsageError, match=r"no VOC devkit in .*Annotations"):
        _examples(devkit / "VOC2007" / "Annotations")
    with pytest.raises(UsageError, match=r"no VOC devkit in .*VOC2012/ImageSets"):
        VocFolder("voc2012", devkit, ("trainval",), year="2012").examples("trainval")


# --- own data


OWN = {
    "b": [_object("widget", (1, 1, 24, 18)), _object("gear", (3, 4, 10, 12), 1)],
    "a": [_object("bolt", (5, 6, 7, 8))],
    "c.d": [],
}


@pytest.fixture
def own(tmp_path, jpeg):
    """own(annotations, images) -> a folder of these two folders, without splits."""

    def make(annotations="Annotations", images="JPEGImages"):
        folder = tmp_path / "own"
        for name in (annotations, images):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for i, (image_id, objects) in enumerate(OWN.items()):
            suffix = (".jpg", ".PNG", ".jpeg")[i]
            (folder / images / f"{image_id}{suffix}").write_bytes(jpeg(i))
            xml = f"<annotation>{''.join(objects)}</annotation>"
            (folder / annotations / f"{image_id}.xml").write_text(xml)
        return folder

    return make


def _write_splits(folder, **splits):
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, image_ids in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(image_ids) + "\n")


def _layout(folder, splits=("train", "val"), **options):
    return VocLayout("own", folder, splits, **options)


def test_own_classes_and_splits(own):
    folder = own()
    _write_splits(folder, train=["b", "c.d"], val=["a"], gear_train=["b  1", "c.d -1"])
    source = _layout(folder)
    assert source.class_names == ("bolt", "gear", "widget")
    assert source.own_splits == ("train", "val")
    b, c = source.examples("train")
    assert (b.image_id, b.image) == ("b", folder / "JPEGImages" / "b.jpg")
    assert (c.image_id, c.image) == ("c.d", folder / "JPEGImages" / "c.d.jpeg")
    np.testing.assert_array_equal(b.labels, [-1, 0, 1])
    np.testing.assert_array_equal(b.boxes, [[0, 0, 18, 24], [3, 2, 12, 10]])
    np.testing.assert_array_equal(b.box_classes, [2, 1])
    np.testing.assert_array_equal(c.labels, [-1, -1, -1])
    (a,) = source.examples("val")
    assert a.image.name == "a.PNG"
    np.testing.assert_array_equal(a.labels, [1, -1, -1])


def test_own_data_without_splits_are_divided(own, jpeg):
    folder = own(annotations="photos", images="photos")  # side by side, as some tools write them
    for i in range(20):
        (folder / "photos" / f"{i}.jpg").write_bytes(jpeg(i))
        xml = f"<annotation>{_object(('bolt', 'gear')[i % 2], (1, 1, 5, 5))}</annotation>"
        (folder / "photos" / f"{i}.xml").write_text(xml)
    (folder / "photos" / "unannotated.jpg").write_bytes(jpeg(99))
    options = {"annotations": "photos", "image_dir": "photos", "train_share": 0.7}
    source = _layout(folder, **options)
    assert source.own_splits == ()
    ids = {split: [e.image_id for e in source.examples(split)] for split in source.splits}
    assert len(ids["train"]) == 16 and len(ids["val"]) == 7
    assert sorted(ids["train"] + ids["val"]) == sorted([*map(str, range(20)), *OWN])
    again = _layout(folder, ("test", "train"), **options)
    assert [e.image_id for e in again.examples("test")] == ids["val"]
    other = _layout(folder, split_seed=1, **options)
    assert [e.image_id for e in other.examples("val")] != ids["val"]


def test_an_own_split_without_any_annotation_is_unknown(own):
    folder = own()
    _write_splits(folder, train=["b", "a"], test=["x", "y"])
    source = _layout(folder, ("train", "test"))
    assert source.own_splits == ()  # but one of them has labels
    x, y = source.examples("test")
    np.testing.assert_array_equal([x.labels, y.labels], np.zeros((2, 3)))
    assert y.image == folder / "JPEGImages" / "y.jpg"


def test_own_data_that_contradict_themselves(own, jpeg):
    folder = own()
    _write_splits(folder, train=["b", "missing"], val=["a"])
    with pytest.raises(Failure, match=r"image missing has no annotation: .*missing.xml"):
        _layout(folder).examples("train")
    with pytest.raises(UsageError, match=r"no split 'test': .*test.txt does not exist"):
        _layout(folder, ("test",)).examples("test")
    (folder / "JPEGImages" / "b.png").write_bytes(jpeg(5))
    with pytest.raises(Failure, match=r"b.png and b.jpg: which is the image b\?"):
        _layout(folder).examples("val")
    with pytest.raises(UsageError, match=r"no image folder .*photos: check `root` and `image_dir`"):
        _layout(folder, image_dir="photos").examples("val")
    with pytest.raises(UsageError, match=r"no annotations, <image id>.xml, in .*photos"):
        _ = _layout(folder, annotations="photos").class_names
    for nameless in (
        _object(" ", (1, 1, 5, 5)),
        _object("", (1, 1, 5, 5)).replace("<name></name>", ""),
    ):
        (folder / "Annotations" / "c.d.xml").write_text(f"<annotation>{nameless}</annotation>")
        with pytest.raises(Failure, match=r"c.d.xml is malformed: an object has no name"):
            _ = _layout(folder).class_names
    (folder / "Annotations" / "c.d.xml").write_text("<annotation><object></object></annotation>")
    with pytest.raises(Failure, match=r"c.d.xml is malformed"):
        _ = _layout(folder).class_names


def test_an_annotation_without_its_image_is_listed(own, tmp_path):
    folder = own()
    (folder / "JPEGImages" / "a.PNG").unlink()
    _write_splits(folder, train=["b"], val=["a"])
    with pytest.raises(Failure, match=r"1 unreadable images: val: a \(.*a.jpg\): No such file"):
        records.prepare(_layout(folder), tmp_path / "prepared")
