"""The VOC devkit's layout in miniature, and its malformations."""

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.sources.voc import CLASS_NAMES, VocFolder
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
        ("<object><name>dog</name></object>", "is malformed"),
        ("<object>", "is malformed: mismatched tag"),
    ],
)
def test_a_malformed_annotation_is_named(devkit, xml, message):
    file = devkit / "VOC2007" / "Annotations" / "000005.xml"
    file.write_text(f"<annotation>{xml}</annotation>")
    with pytest.raises(Failure, match=message) as failure:
        _examples(devkit)
    assert str(file) in str(failure.value)


def test_a_missing_annotation_is_named(devkit):
    (devkit / "VOC2007" / "Annotations" / "000005.xml").unlink()
    with pytest.raises(Failure, match=r"image 000005 has no annotation: .*000005.xml"):
        _examples(devkit)


def test_a_split_without_any_annotation(devkit):
    (devkit / "VOC2007" / "Annotations" / "000007.xml").unlink()
    with pytest.raises(UsageError, match="VOC2012 test split are not public"):
        _examples(devkit, "test")


def test_missing_paths(devkit):
    with pytest.raises(UsageError, match=r"no split 'val': .*val.txt does not exist"):
        _examples(devkit, "val")
    with pytest.raises(UsageError, match=r"no VOC devkit in .*Annotations"):
        _examples(devkit / "VOC2007" / "Annotations")
    with pytest.raises(UsageError, match=r"no VOC devkit in .*VOC2012/ImageSets"):
        VocFolder("voc2012", devkit, ("trainval",), year="2012").examples("trainval")
