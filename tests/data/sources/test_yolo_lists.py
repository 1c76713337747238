"""YOLO's lists of photos: which photo is in which split, and what is refused."""

import pytest

from mlic_jax.errors import Failure, UsageError

NAMES = {"classes.txt": "cat\ndog\n"}
PHOTOS = [f"images/{stem}.jpg" for stem in "abcd"]
LABELS = {f"labels/{stem}.txt": f"{i % 2} .1 .1 .1 .1\n" for i, stem in enumerate("abc")}
TRAIN = {"images/a.jpg": {"cat"}, "images/d.jpg": set()}
VAL = {"images/b.jpg": {"dog"}, "images/c.jpg": {"cat"}}
YAML = "names: [cat, dog]\ntrain: {}\nval: {}\n"


def lists(line="{}", place="{}.txt"):
    return {
        place.format(split): "".join(f"{line.format(photo)}\n" for photo in part)
        for split, part in (("train", TRAIN), ("val", VAL))
    }


@pytest.mark.parametrize("line", ["{}", "./{}", "../{}", "/users/me/set/{}", "C:\\set\\{}", "x/{}"])
@pytest.mark.parametrize("place", ["{}.txt", "lists/{}_list.txt"])
def test_lists(plant, read_own, line, place):
    own = read_own(plant(NAMES | LABELS | lists(line, place), PHOTOS))
    assert own.of == {"train": TRAIN, "val": VAL}
    assert "photos and splits are those of" in own.notes


@pytest.mark.parametrize(
    ("train", "val", "files"),
    [
        ("train.txt", "val.txt", lists()),
        ("./train.txt", "[val.txt]", lists()),
        ("lists/train.txt", "/users/me/set/lists/val.txt", lists(place="lists/{}.txt")),
        ("train.txt", "val.txt\ntest: val.txt", lists()),  # of the same photos: one split
        ("train.txt", "val.txt\npath: ../set", lists()),
    ],
)
def test_yaml_that_names_lists(plant, read_own, train, val, files):
    own = read_own(plant({"data.yaml": YAML.format(train, val)} | LABELS | files, PHOTOS))
    assert own.of == {"train": TRAIN, "val": VAL} and own.source.class_names == ("cat", "dog")


@pytest.mark.parametrize(("images", "labels"), [("images/{}", "labels/{}"), ("{}/images",) * 2])
def test_yaml_that_names_folders(plant, read_own, images, labels):
    """Of which the names say no split; labels are in folders `labels`, or beside the photos."""
    photos = [f"{images.format(folder)}/a.jpg" for folder in ("monday", "tuesday", "sunday")]
    files = {f"{labels.format('monday')}/a.txt": "0 .1 .1 .1 .1"}
    files |= {f"{labels.format('sunday')}/a.txt": "1 .1 .1 .1 .1"}
    train = f"[{images.format('monday')}, ../{images.format('tuesday')}]"
    files["data.yaml"] = YAML.format(train, images.format("sunday"))
    own = read_own(plant(files, photos))
    assert own.of["train"] == {photos[0]: {"cat"}, photos[1]: set()}
    assert own.of["val"] == {photos[2]: {"dog"}}


def test_annotations_that_are_named(plant, read_own):
    files = {"sets/mine.yaml": YAML.format("train.txt", "val.txt")} | LABELS
    folder = plant(files | lists(place="sets/{}.txt"), PHOTOS)
    assert read_own(folder, "sets/mine.yaml").of == {"train": TRAIN, "val": VAL}
    plant(NAMES)
    assert read_own(folder, "sets/{split}.txt", "yolo").of == {"train": TRAIN, "val": VAL}


def test_folders_that_are_not_there(plant, read_own):
    """A YAML file from where the set lay before says only the names."""
    files = {"data.yaml": YAML.format("../first/images", "../second/images")} | LABELS
    own = read_own(plant(files, PHOTOS))
    assert own.own_splits == () and own.labels == TRAIN | VAL


def test_lists_of_another_format(plant, read_own):
    """Lists beside a table, and YAML that is none, are not YOLO's."""
    text = "image,labels\n" + "".join(f"{photo},cat\n" for photo in PHOTOS)
    own = read_own(plant({"t.csv": text, "a.yaml": "a: [", **lists()}, PHOTOS))
    assert own.layout.format == "csv"


def test_the_names_are_those_of_the_set(plant, read_own):
    """Not those of another YAML file beside the one of the lists, or above."""
    others = {"a.yaml": "names: [car, bus]", "../a.yaml": "names: [car, bus]"}
    files = LABELS | lists() | others
    own = read_own(plant(files | {"data.yaml": YAML.format("train.txt", "val.txt")}, PHOTOS))
    assert own.source.class_names == ("cat", "dog")
    folder = plant()
    for name in ("a.yaml", "data.yaml"):
        (folder / name).unlink()
    with pytest.raises(Failure, match=r"nothing in .* names the classes of its YOLO labels"):
        read_own(folder)


def test_lists_of_other_photos(plant, read_own):
    own = read_own(plant(NAMES | LABELS | lists("{}x.jpg"), PHOTOS))
    assert own.own_splits == () and own.labels == TRAIN | VAL
    assert "{split}.txt names no photo that has labels, and is not read" in own.notes


def test_a_photo_that_is_listed_twice(plant, read_own):
    files = lists() | {"val.txt": "images/b.jpg\nimages/b.jpg\n"}
    own = read_own(plant(NAMES | LABELS | files, PHOTOS))
    assert [*own.of["val"]] == ["images/b.jpg"] and "1 row says of a photo what" in own.notes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            lists() | {"val.txt": "images/b.jpg\nimages/z.jpg\n"},
            "val.txt, line 2: there is no photo z.jpg in ",
        ),
        (lists() | {"val.txt": "images/b.jpg\nimages/a.jpg\n"}, "a.jpg is listed already, in .*tr"),
        (lists() | {"val.txt": "images/b.jpg\na\0b\n"}, "val.txt, line 2: .* has a zero byte"),
        (lists() | {"labels/c.txt": "7 .1 .1 .1 .1\n"}, "c.txt, line 1: '7' is not the number"),
        ({"d.yaml": YAML.format("train.txt", "val.txt")}, "d.yaml: train: there is no 'train.txt'"),
    ],
)
def test_what_is_refused(plant, read_own, files, message):
    with pytest.raises(Failure, match=message) as failure:
        read_own(plant(NAMES | LABELS | files, PHOTOS))
    assert "\n" not in str(failure.value)


def test_no_list(plant, read_own):
    with pytest.raises(UsageError, match=r"there is no such file|--format yolo needs"):
        read_own(plant(NAMES | LABELS, PHOTOS), "{split}.txt", "yolo")
