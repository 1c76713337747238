"""CVAT's XML of images: shapes, tags, subsets, and what is refused."""

import pytest

from mlic_jax.errors import Failure

SHAPES = (
    '<box label="cat" occluded="0" xtl="1" ytl="1" xbr="3" ybr="3"><attribute name="age">2'
    '</attribute></box><polygon label="dog" points="1,1;2,2;3,1"/><box label="cat" xtl="1"/>'
)
TAG = '<tag label="traffic  light" source="manual"></tag>'
SKELETON = '<skeleton label="dog"><points label="nose" points="1,1"/></skeleton>'
META = """<meta><task><name>mine</name><labels><label><name>cat</name><attributes/></label><label>
<name>dog</name></label><label><name>traffic light</name></label></labels></task></meta>"""


def xml(*images, meta=META, more=""):
    """Images are (name, what it holds, its other attributes)."""
    parts = "".join(
        f'<image id="{i}" name="{name}" width="8" height="8" {attributes}>{inside}</image>'
        for i, (name, inside, attributes) in enumerate(images)
    )
    start = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
    return f"{start}{meta}{parts}{more}</annotations>"


IMAGES = (
    ("a.jpg", SHAPES, ""),
    ("sub/b.jpg", TAG + SKELETON, ""),
    ("c.jpg", "", ""),
)
PHOTOS = ["images/a.jpg", "images/sub/b.jpg", "images/c.jpg"]


@pytest.mark.parametrize("meta", [META, META.replace("task", "job"), "", "<meta/>"])
def test_a_task(plant, read_own, meta):
    own = read_own(plant({"annotations.xml": xml(*IMAGES, meta=meta)}, PHOTOS))
    assert own.layout.format == "cvat" and own.own_splits == ()
    labels = {"cat", "dog"}, {"traffic light", "dog"}, set()
    assert own.labels == dict(zip(PHOTOS, labels, strict=True))


def test_subsets(plant, read_own):
    images = [("a.jpg", SHAPES, 'subset="Train"'), ("a.jpg", TAG, 'subset="Validation"')]
    photos = ["images/Train/a.jpg", "images/Validation/a.jpg"]
    own = read_own(plant({"annotations.xml": xml(*images)}, photos))
    assert own.of == {
        "Train": {photos[0]: {"cat", "dog"}},
        "Validation": {photos[1]: {"traffic light"}},
    }


def test_one_subset_is_divided(plant, read_own):
    images = [(name, inside, 'subset="default"') for name, inside, _ in IMAGES]
    own = read_own(plant({"annotations.xml": xml(*images)}, PHOTOS), "annotations.xml", "cvat")
    assert own.own_splits == () and len(own.labels) == 3


@pytest.mark.parametrize("subset", ["", 'subset="default"'])
def test_splits_from_the_folders_of_names(plant, read_own, subset):
    images = [("train/a.jpg", SHAPES, subset), ("test/b.jpg", TAG, subset)]
    photos = ["images/train/a.jpg", "images/test/b.jpg"]
    own = read_own(plant({"annotations.xml": xml(*images)}, photos))
    assert own.of["train"] == {photos[0]: {"cat", "dog"}}
    assert own.of["test"] == {photos[1]: {"traffic light"}}
    assert "splits are the folders of the paths: test, train" in own.notes


def test_a_file_a_split(plant, read_own):
    files = {
        f"{split}/annotations.xml": xml(("a.jpg", inside, ""))
        for split, inside in (("train", SHAPES), ("val", TAG))
    }
    own = read_own(plant(files, ["train/images/a.jpg", "val/images/a.jpg"]))
    assert own.of["val"] == {"val/images/a.jpg": {"traffic light"}}


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e "ha">]>' + xml(*IMAGES).partition("\n")[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml(*IMAGES)[:-30], "is not as cvat writes it: no element found|unclosed|mismatched"),
        (xml(*IMAGES, ("a.jpg", TAG, "")), "photo 4: a.jpg is listed already, in .*photo 1"),
        (xml(), "no image is listed"),
        (
            xml(("a.jpg", '<box label="cow"/>', "")),
            "'a.jpg' has the label 'cow', which is none of its",
        ),
        (xml(("a.jpg", "<box/>", ""), meta=""), "'a.jpg' has the label '', which is none"),
        (xml(more="<image id='1'/>"), "photo 1: its path must be a path"),
        (xml(more='<track id="0" label="cat"/>'), "it is of a video; export it as CVAT for ima"),
        (BOMB, "it declares entities"),
        (xml(*IMAGES).replace("utf-8", "no-such"), "is not as cvat writes it: unknown encoding"),
    ],
)
def test_what_is_refused(plant, read_own, content, message):
    with pytest.raises(Failure, match=message) as failure:
        read_own(plant({"annotations.xml": content}, PHOTOS))
    assert "\n" not in str(failure.value)


def test_one_name_in_the_folders_of_two_splits(plant, read_own):
    images = [("train/a.jpg", SHAPES, ""), ("val/a.jpg", TAG, "")]
    own = read_own(plant({"annotations.xml": xml(*images)}, ["train/a.jpg", "val/a.jpg"]))
    assert own.own_splits == ("train", "val")
    assert own.of == {
        "train": {"train/a.jpg": {"cat", "dog"}},
        "val": {"val/a.jpg": {"traffic light"}},
    }
