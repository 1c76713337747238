"""Which photo a label belongs to: never another one of the same name without a word."""

import json

import pytest

from mlic_jax.data.sources.photos import Photos
from mlic_jax.errors import Failure, UsageError

NAMES = [f"{i:04}.png" for i in range(12)]
BOTH = [f"{split}/{name}" for split in ("train", "test") for name in NAMES]
CLASSES = ("cat", "dog", "car")
OF = {name: {CLASSES[i % 3]} for i, name in enumerate(NAMES)}
CSV = "image,labels\n" + "".join(f"{name},{min(OF[name])}\n" for name in NAMES)
JSONL = "\n".join(json.dumps({"file_name": n, "labels": [*OF[n]]}) for n in NAMES)
COCO = json.dumps(
    {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
        "categories": [{"id": c, "name": name} for c, name in enumerate(CLASSES)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 3} for i in range(12)],
    }
)


def xml(name):
    return f"<annotation><object><name>{name}</name></object></annotation>"


def of_train(own):
    return own.labels == {f"train/{name}": names for name, names in OF.items()}


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("train/annotations.json", COCO, "the folder of the annotations"),
        ("train/labels.csv", CSV, "the folder of the annotations"),
        ("train/metadata.jsonl", JSONL, "the folder of the annotations"),
        ("train.csv", CSV, "named like the annotations"),
        ("train.json", COCO, "named like the annotations"),
        ("train_labels.csv", CSV, "named like the annotations"),
        ("annotations/instances_train.json", COCO, "named like the annotations"),
    ],
)
@pytest.mark.parametrize("said", [False, True])
def test_photos_of_the_same_names_in_two_splits(plant, read_own, file, content, why, said):
    folder = plant({file: content}, BOTH)
    own = read_own(folder, file if said else None)
    assert of_train(own)
    assert f"photos are taken from train ({why})" in own.notes
    assert "others of the same names, not read, in test" in own.notes


def test_xml_beside_photos_of_the_same_names(plant, read_own):
    files = {f"train/{name[:-4]}.xml": xml(min(OF[name])) for name in NAMES}
    files |= {f"test/{name[:-4]}.xml": xml("car") for name in NAMES}
    folder = plant(files, BOTH)
    assert of_train(read_own(folder, "train"))
    own = read_own(folder)
    assert own.own_splits == ("test", "train")
    assert own.of["train"] == {f"train/{name}": names for name, names in OF.items()}
    assert set(map(tuple, own.of["test"].values())) == {("car",)}


def test_two_folders_of_the_same_names_are_asked_about(plant, read_own):
    folder = plant(
        {"labels.csv": CSV}, [f"{place}/{n}" for place in ("left", "right") for n in NAMES]
    )
    with pytest.raises(UsageError, match=r"left and right both hold photos .*: say .* --images"):
        read_own(folder)
    own = read_own(folder / "right", "../labels.csv")
    assert own.labels == OF


def test_only_another_split_has_them(plant, read_own):
    folder = plant({"train.csv": CSV}, [f"test/{name}" for name in NAMES])
    with pytest.raises(UsageError, match=r"train.csv is of train, and only test holds photos"):
        read_own(folder)


def test_annotations_of_another_split_than_images(plant, read_own):
    folder = plant({"train/labels.csv": CSV}, BOTH)
    with pytest.raises(UsageError, match=r"--images is test, and labels.csv is of train: are the"):
        read_own(folder / "test", "../train/labels.csv")
    own = read_own(
        plant({"old/labels.csv": CSV}, [f"old/{n}" for n in NAMES]) / "test", "../old/labels.csv"
    )
    assert own.labels == OF
    assert "photos are taken from" in own.notes and "(--images)" in own.notes


def test_a_photo_that_is_gone_is_not_taken_from_elsewhere(plant):
    folder = plant({}, [*BOTH, f"train/old/{NAMES[3]}"])
    (folder / "train" / NAMES[3]).unlink()
    files = Photos(folder, "train").locate(NAMES)
    assert files[3] == folder / "train" / NAMES[3]
    files = Photos(folder).locate([f"train/{name}" for name in NAMES])
    assert files[3] == folder / "train" / NAMES[3]


def test_photos_in_many_folders(plant, read_own):
    """As NIH's images_001 to images_012."""
    places = [f"images_{i % 3:03}/images/{name}" for i, name in enumerate(NAMES)]
    own = read_own(plant({"Data.csv": CSV}, places))
    assert own.labels == {place: OF[name] for place, name in zip(places, NAMES, strict=True)}
    with pytest.raises(Failure, match=r"which photo is 0000.png: .* Say with --images"):
        Photos(plant({}, ["other/a/0000.png"])).locate(["0000.png"])


@pytest.mark.parametrize(
    "spelling",
    [
        "images\\{}",
        ".\\images\\{}",
        "C:\\Users\\me\\images\\{}",
        "C:/Users/me/images/{}",
        "/data/upload/7/{}",
        "https://host.org/files/{}",
        "./images/{}",
        "{}",
    ],
)
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_spellings_of_paths(plant, read_own, spelling, kind):
    named = [spelling.format(name) for name in NAMES]
    text = CSV if kind == "csv" else COCO
    for name, path in zip(NAMES, named, strict=True):
        text = text.replace(name, path if kind == "csv" else json.dumps(path)[1:-1])
    own = read_own(plant({f"labels.{kind}": text}, [f"images/{name}" for name in NAMES]))
    assert own.labels == {f"images/{name}": names for name, names in OF.items()}


@pytest.mark.parametrize("change", [lambda n: n[:-4], str.upper, lambda n: f"{n[:-3]}PNG"])
def test_suffixes_and_their_case(plant, read_own, change):
    text = CSV
    for name in NAMES:
        text = text.replace(name, change(name))
    own = read_own(plant({"labels.csv": text}, [f"images/{name}" for name in NAMES]))
    assert own.labels == {f"images/{name}": names for name, names in OF.items()}


def test_a_folder_inside_holds_no_other_photos(plant, read_own):
    """CheXpert's: a path begins with the set's own folder, and the end of it is in each below."""
    paths = [f"train/patient{i}/study1/view.jpg" for i in range(4)]
    text = "Path,A,B\n" + "".join(f"Set-1.0/{p},{i % 2},{i // 2}\n" for i, p in enumerate(paths))
    own = read_own(plant({"train.csv": text}, paths))
    assert own.labels == dict(zip(paths, [set(), {"A"}, {"B"}, {"A", "B"}], strict=True))
    assert "others of the same names" not in own.notes


def test_a_name_of_two_photos(plant):
    photos = Photos(plant({}, ["a.jpg", "a.png", "B.jpg", "b.jpg"]))
    with pytest.raises(Failure, match=r"which photo is a: .*a.jpg or .*a.png\?"):
        photos.locate(["a"])
    with pytest.raises(Failure, match=r"which photo is B.JPG: .*B.jpg or .*b.jpg\?"):
        photos.locate(["B.JPG"])
    assert [file.name for file in photos.locate(["b.jpg", "B.jpg"])] == ["b.jpg", "B.jpg"]
    with pytest.raises(Failure, match=r"b and b.jpg are both the photo .*b.jpg"):
        photos.locate(["b", "b.jpg"])


def test_the_end_of_a_path_may_not_change_the_split(plant):
    folder = plant({}, [f"test/{name}" for name in NAMES])
    names = [f"/data/train/{name}" for name in NAMES]
    files = Photos(folder, "test").locate(names)
    assert not any(file.is_file() for file in files)
    assert not any(file.is_file() for file in Photos(folder).locate(names))
