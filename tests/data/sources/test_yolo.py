"""YOLO's text files: where they lie, who names the classes, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data.records import Example, open_split, prepare
from mlic_jax.data.records.writing import placed_boxes
from mlic_jax.data.transforms import Look, turn_boxes
from mlic_jax.errors import Failure, UsageError

LINES = {"a": "1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.1 0.1\n1 .2 .2 .1 .1\n", "b": "1 .1 .2 .3 .4 .5 .6\n"}
PHOTOS = ["a.jpg", "b.jpg", "c.jpg"]
EXPECTED = {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}, "c.jpg": set()}
NAMES = {"classes.txt": "cat\ndog\n"}


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        {"data.yaml": "names:\n- cat\n- dog\n"},
        {"set.yaml": "path: .\nnames:\n  0: cat\n  1: dog\n"},
        {"labels/classes.txt": "cat\r\ndog\r\n"},
        {"obj.names": "cat\ndog"},
    ],
)
def test_names_of_classes(plant, read_own, names):
    files = {f"labels/{stem}.txt": text for stem, text in LINES.items()}
    own = read_own(plant(files | names, [f"images/{name}" for name in PHOTOS]))
    assert own.source.class_names == ("cat", "dog")
    assert own.labels == {f"images/{name}": labels for name, labels in EXPECTED.items()}


@pytest.mark.parametrize(
    ("labels", "images"),
    [("labels/{}", "images/{}"), ("{}/labels", "{}/images"), ("{}", "{}")],
)
def test_places(plant, read_own, labels, images):
    files = {f"{labels.format('train')}/a.txt": LINES["a"]}
    files[f"{labels.format('val')}/b.txt"] = LINES["b"]
    photos = [f"{images.format('train')}/a.jpg", f"{images.format('val')}/b.jpg"]
    own = read_own(plant(files | NAMES, photos))
    assert own.own_splits == ("train", "val")
    assert own.of["train"] == {photos[0]: {"cat", "dog"}} and own.of["val"] == {photos[1]: {"dog"}}


def test_side_by_side_and_named(plant, read_own):
    files = {f"x/{stem}.txt": text for stem, text in LINES.items()} | NAMES
    own = read_own(plant(files, [f"x/{name}" for name in PHOTOS]) / "x", "../x", "yolo")
    assert own.labels == EXPECTED


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels/a.txt": LINES["a"]}, "names the classes of its YOLO labels: put a file classes"),
        ({"labels/a.txt": "2 .1 .1 .1 .1"} | NAMES, "a.txt, line 1: '2' is not the number of a cl"),
        (
            {"labels/a.txt": LINES["a"], "labels/b.txt": "cat 1"} | NAMES,
            "b.txt, line 1: 'cat' is not the number",
        ),
        ({"labels/a.txt": LINES["a"], "d.yaml": "names: {0: cat, 2: dog}"}, "must be 0, 1, 2 and"),
        ({"labels/a.txt": LINES["a"], "d.yaml": "names: {0: cat, x: dog}"}, "must be 0, 1, 2 and"),
        ({"labels/a.txt": LINES["a"], "d.yaml": "names: ["}, "d.yaml is not YAML"),
    ],
)
def test_what_is_refused(plant, read_own, files, message):
    with pytest.raises(Failure, match=message) as failure:
        read_own(plant(files, [f"images/{name}" for name in PHOTOS]))
    assert "\n" not in str(failure.value)


def test_texts_of_something_else(plant, read_own):
    with pytest.raises(UsageError, match="nothing of any format"):
        read_own(plant({"notes.txt": "10 good photos", "labels/a.txt": "a dog"}, PHOTOS))


def test_photos_of_one_name_would_share_labels(plant, read_own):
    files = {"labels/a.txt": LINES["a"]} | NAMES
    with pytest.raises(Failure, match=r"a\.jpg and a\.png would have the same labels"):
        read_own(plant(files, ["images/a.jpg", "images/a.png"]))


@pytest.mark.parametrize(("text", "line"), [("cat\n\ndog\n\n", 2), ("\ncat\ndog", 1)])
def test_an_empty_line_does_not_renumber_classes(plant, read_own, text, line):
    files = {"labels/a.txt": LINES["a"], "classes.txt": text}
    with pytest.raises(Failure, match=rf"classes\.txt, line {line} is empty"):
        read_own(plant(files, ["images/a.jpg"]))


@pytest.mark.parametrize("names", ["[no, 010]", "{1: 010, 0: no}", "{'0': no, '1': 010}"])
def test_names_are_as_they_are_written(plant, read_own, names):
    files = {"labels/a.txt": LINES["a"], "data.yaml": f"names: {names}\n"}
    assert read_own(plant(files, ["images/a.jpg"])).source.class_names == ("no", "010")


def test_two_files_that_name_other_classes(plant, read_own):
    files = {
        "labels/a.txt": LINES["a"],
        "data.yaml": "names: [cat, dog]\n",
        "obj.names": "cat\ndog",
    }
    told = "2 names of classes are those of data.yaml"
    own = read_own(plant(files | {"classes.txt": "dog\ncat\n"}, ["images/a.jpg"]))
    assert f"{told}, and not those of classes.txt, which differ" in own.source.notes


def test_boxes_are_those_of_the_photo_as_it_is_seen(plant, read_own, tmp_path):
    """Of a photo that is stored on its side too; a polygon has the box around it."""
    lines = ["1 0.5 0.25 0.5 0.5", "0 0.25 0.5 0.75 0.5 0.5 1", "1", "0 x 1 1 1", "0 nan 1 1 1"]
    turned = Image.Exif()
    turned[0x0112] = 6  # stored 40 x 20, seen 20 x 40
    photos = {}
    for name, exif in (("flat", Image.Exif()), ("square", turned), ("turned", turned)):
        file = io.BytesIO()
        Image.new("RGB", (20 if name == "square" else 40, 20)).save(file, "JPEG", exif=exif)
        photos |= {f"images/{name}.jpg": file.getvalue()}
    labels = {f"labels/{name}.txt": "\n".join(lines) for name in ("flat", "square", "turned")}
    source = read_own(plant(photos | labels | NAMES)).source
    folder = prepare(source, tmp_path / "prepared", upright=True)
    records = [record for split in source.splits for record in open_split(folder, split)]
    sizes = {"flat": (20, 40), "square": (20, 20), "turned": (40, 20)}
    assert len(records) == len(sizes)
    for record in records:
        height, width = sizes[Path(record.image_id).stem]
        assert (record.height, record.width) == (height, width)
        expected = [
            [0, 0.25 * width, 0.5 * height, 0.75 * width],
            [0.5 * height, 0.25 * width, height, 0.75 * width],
        ]
        np.testing.assert_array_equal(record.boxes, expected)
        np.testing.assert_array_equal(record.box_classes, [1, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_photos_that_are_not_turned_are_turned_back(orientation):
    look = Look(20, 40, orientation)
    boxes = np.array([[0.1, 0.2, 0.5, 0.4], [0, 0, 1, 0.25]])
    example = Example("a", b"", np.zeros(1), boxes, np.zeros(2), relative=True)
    (seen, fit), (stored, fits) = (
        placed_boxes(example, look, upright) for upright in (True, False)
    )
    np.testing.assert_array_equal(seen, boxes * np.array(look.size(True) * 2))
    np.testing.assert_array_equal(turn_boxes(stored, look), seen)
    assert fit and fits


def test_other_boxes_are_another_set(plant, read_own, tmp_path):
    """Though classes and labels stay the same."""
    files = {"labels/a.txt": "0 0.5 0.5 0.2 0.2", "labels/b.txt": "0 0.5 0.5 1 1"}
    folder = plant(files | NAMES, ["images/a.jpg", "images/b.jpg"])
    for text, expected in (("", [[3, 3, 5, 5]]), ("0 0.25 0.5 0.4 0.9", [[0, 0, 8, 4]])):
        if text:
            (folder / "labels" / "a.txt").write_text(text)
        source = read_own(folder).source
        prepared = prepare(source, tmp_path / "prepared", upright=True)
        records = [record for split in source.splits for record in open_split(prepared, split)]
        (box,) = (record.boxes for record in records if record.image_id.endswith("a.jpg"))
        np.testing.assert_array_equal(box, expected)
