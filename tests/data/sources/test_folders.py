"""Class folders with and without folders of splits, and trees that are neither."""

import os

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.sources.folders import FolderSet
from mlic_jax.errors import Failure, UsageError


@pytest.fixture
def plant(tmp_path, jpeg):
    """plant("dog/1.jpg", ...) -> the folder that holds these images, each of its own."""

    def make(*names):
        for i, name in enumerate(names):
            file = tmp_path / "data" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(i))
        return tmp_path / "data"

    return make


CLASSES = [f"{name}/{i}.jpg" for name in ("dog", "traffic light", "cat") for i in range(10)]


def _source(root, splits=("train", "val"), **options):
    return FolderSet("mine", root, splits, **options)


def _ids(source, split):
    return [example.image_id for example in source.examples(split)]


def test_a_folder_a_class(plant):
    root = plant(*CLASSES)
    source = _source(root)
    assert source.class_names == ("cat", "dog", "traffic light")
    train, val = source.examples("train"), source.examples("val")
    assert (len(train), len(val)) == (24, 6)
    for example in (*train, *val):
        assert example.image == root / example.image_id
        label = source.class_names.index(example.image.parent.name)
        np.testing.assert_array_equal(example.labels, np.where(np.arange(3) == label, 1, -1))
        assert example.labels.dtype == np.int8 and example.boxes.shape == (0, 4)
    np.testing.assert_array_equal(sum(example.labels == 1 for example in val), [2, 2, 2])
    assert _ids(source, "train") == sorted(_ids(source, "train"))
    assert sorted(_ids(source, "train") + _ids(source, "val")) == sorted(CLASSES)


def test_the_division_has_options(plant):
    root = plant(*CLASSES)
    half = _source(root, ("train", "test"), train_share=0.5)
    assert [len(half.examples(split)) for split in ("train", "test")] == [15, 15]
    other = _source(root, ("train", "test"), train_share=0.5, split_seed=1)
    assert _ids(other, "train") != _ids(half, "train")


def test_folders_of_splits(plant):
    root = plant("train/dog/1.jpg", "train/cat/1.jpg", "val/cat/1.jpg", "extra/bird/1.jpg")
    source = _source(root, train_share=0.1)
    # The classes are those of all splits, whichever are asked for.
    assert source.class_names == ("bird", "cat", "dog")
    assert _ids(source, "train") == ["train/cat/1.jpg", "train/dog/1.jpg"]
    (example,) = source.examples("val")
    assert (example.image_id, example.image) == ("val/cat/1.jpg", root / "val/cat/1.jpg")
    np.testing.assert_array_equal(example.labels, [-1, 1, -1])
    with pytest.raises(UsageError, match="no split 'test'; it has extra, train, val"):
        source.examples("test")


def test_a_class_may_be_named_like_a_split(plant):
    source = _source(plant(*(f"{name}/{i}.jpg" for name in ("train", "bus") for i in range(4))))
    assert source.class_names == ("bus", "train")
    assert len(source.examples("train")) == 6


def test_several_labels_in_a_name(plant):
    root = plant(*(f"{name}/{i}.jpg" for name in ("red+round", "red", "big+red") for i in range(3)))
    source = _source(root, label_separator="+")
    assert source.class_names == ("big", "red", "round")
    found = {e.image.parent.name: e.labels.tolist() for e in source.examples("train")}
    assert found == {"red+round": [-1, 1, 1], "red": [-1, 1, -1], "big+red": [1, 1, -1]}
    assert _source(root).class_names == ("big+red", "red", "red+round")


def test_hidden_files_and_files_beside_the_folders_do_not_count(plant):
    root = plant(*CLASSES)
    (root / "readme.txt").write_text("")
    (root / "dog" / ".DS_Store").write_text("")
    (root / ".cache" / "x").mkdir(parents=True)
    source = _source(root)
    assert sorted(_ids(source, "train") + _ids(source, "val")) == sorted(CLASSES)


def test_prepared_and_read_back(plant, tmp_path):
    root = plant(*CLASSES)
    folder = records.prepare(_source(root), tmp_path / "prepared")
    split = records.open_split(folder, "val")
    assert len(split) == 6 and split.class_names == ("cat", "dog", "traffic light")
    assert split[0].image == (root / split[0].image_id).read_bytes()


def test_a_file_that_is_no_image_is_reported_or_left_out(plant, tmp_path):
    root = plant(*CLASSES)
    (root / "dog" / "notes.txt").write_text("good dogs")
    with pytest.raises(Failure, match=r"1 unreadable images: .*dog/notes.txt"):
        records.prepare(_source(root), tmp_path / "prepared")
    folder = records.prepare(_source(root), tmp_path / "prepared", on_corrupt="skip")
    splits = [records.open_split(folder, split) for split in ("train", "val")]
    assert sum(map(len, splits)) == 30
    assert [name.split()[0] for split in splits for name in split.skipped] == ["dog/notes.txt"]


@pytest.mark.parametrize(
    "names, options, message",
    [
        (["dog/1.jpg", "cat/old/1.jpg"], {}, r"dog/1.jpg is neither in <class>/<image> nor .*/cat"),
        (["dog/1.jpg", "dog/old/1.jpg"], {}, r"dog/1.jpg is neither in <class>/<image> nor .*/dog"),
        (["train/dog/1.jpg", "train/1.jpg"], {}, r"train/1.jpg is neither .* in .*data/train"),
        (["train/dog/1.jpg", "train/dog/a/1.jpg"], {}, r"dog/a: a class folder must have no folde"),
        (["a__b/1.jpg"], {"label_separator": "_"}, "a__b: a label in its name, split at '_', is e"),
        (["_a/1.jpg"], {"label_separator": "_"}, "_a: a label in its name"),
    ],
)
def test_trees_that_cannot_be_understood(plant, names, options, message):
    with pytest.raises(Failure, match=message) as failure:
        _source(plant(*names), **options).examples("train")
    assert "\n" not in str(failure.value)


def test_missing_paths(plant, tmp_path):
    with pytest.raises(UsageError, match="nowhere: No such file or directory: check `root`"):
        _source(tmp_path / "nowhere").examples("train")
    with pytest.raises(UsageError, match=r"no class folders in .*data: check `root`"):
        _source(plant("1.jpg", "2.jpg")).examples("train")
    (tmp_path / "bare" / "dog").mkdir(parents=True)
    with pytest.raises(Failure, match="set mine: no image is listed"):
        _source(tmp_path / "bare").examples("train")


def test_names_that_are_not_utf8(plant, tmp_path):
    """They are images like others; what is wrong with one is said of its name."""
    names = [f"dog/{i}.jpg" for i in range(4)]
    root = plant(*names, "dog/caf\udce9.jpg", "caf\udce9/1.jpg", "caf\udce9/2.jpg")
    source = _source(root)
    assert source.class_names == (r"caf\xe9", "dog")
    folder = records.prepare(source, tmp_path / "good")
    ids = [
        record.image_id for split in source.splits for record in records.open_split(folder, split)
    ]
    assert sorted(ids) == sorted([*names, r"dog/caf\xe9.jpg", r"caf\xe9/1.jpg", r"caf\xe9/2.jpg"])

    (root / "dog" / "caf\udce9.jpg").write_bytes(b"broken")
    (root / "dog" / "3.jpg").unlink()
    os.mkfifo(root / "dog" / "3.jpg")
    with pytest.raises(Failure, match=r"2 unreadable images: .*dog/caf\\xe9\.jpg\): cannot decode"):
        records.prepare(_source(root), tmp_path / "bad")
    listed = (tmp_path / "bad" / "mine.incomplete" / "unreadable.txt").read_text()
    assert r"dog/caf\xe9.jpg (" in listed
    assert "dog/3.jpg): a pipe and no file" in listed


# --- as people have them

CATS_AND_DOGS = [f"{name}/{name}{i}.jpg" for name in ("cat", "dog") for i in range(5)]


@pytest.fixture
def plant_own(plant):
    def make(*names, **junk):
        root = plant(*names)
        for name, content in junk.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        return root

    return make


@pytest.mark.parametrize(
    "junk",
    [
        ("cat/Thumbs.db", "dog/Thumbs.db", "cat/desktop.ini"),
        ("__MACOSX/cat/._cat0.jpg", "__MACOSX/dog/._dog0.jpg"),
        (".DS_Store", "cat/.DS_Store", "cat/._cat0.jpg", "dog/.ipynb_checkpoints/dog0.jpg"),
        ("$RECYCLE.BIN/a.jpg", "@eaDir/cat0.jpg/a.jpg", "System Volume Information/x.jpg"),
    ],
)
def test_what_operating_systems_leave(plant_own, read_own, junk):
    own = read_own(plant_own(*CATS_AND_DOGS, **dict.fromkeys(junk, "")))
    assert own.source.class_names == ("cat", "dog")
    assert own.labels == {file: {file[:3]} for file in CATS_AND_DOGS}


def test_names_of_splits_in_any_case(plant, read_own):
    splits = ("Train", "Val", "TEST")
    files = [f"{split}/{file}" for split in splits for file in CATS_AND_DOGS]
    own = read_own(plant(*files))
    assert own.own_splits == ("TEST", "Train", "Val")
    assert own.source.splits == own.own_splits
    assert own.labels == {file: {file.split("/")[1]} for file in files}


def test_folders_of_splits_are_no_classes(plant, read_own):
    with pytest.raises(UsageError, match="nothing of any format"):
        read_own(plant("train/1.jpg", "valid/1.jpg", "test_data/1.jpg"))
    with pytest.raises(UsageError, match="nothing of any format"):
        read_own(plant("train/images/1.jpg", "test/images/1.jpg"))


def test_a_folder_of_a_split_beside_classes_is_asked_about(plant, read_own):
    root = plant(*CATS_AND_DOGS, "test/x.jpg")
    with pytest.raises(UsageError, match=r"of which test may be no class: move it, or say --form"):
        read_own(root)
    own = read_own(root, None, "folders")
    assert own.labels["test/x.jpg"] == {"test"} and "test is taken as a class" in own.notes


def test_one_level_down(plant, read_own):
    root = plant(*(f"archive/photos/{file}" for file in CATS_AND_DOGS))
    own = read_own(root)
    assert own.labels == {f"archive/photos/{file}": {file[:3]} for file in CATS_AND_DOGS}
    assert "data itself holds no set: archive inside it is taken" in own.notes
    plant(*(f"other/photos/{file}" for file in CATS_AND_DOGS))
    with pytest.raises(UsageError, match=r"sets in several folders of .*: archive \(folders\), ot"):
        read_own(root)
