"""A prepared set follows what it was made from, and makes again no more than it must."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlic_jax.config import default_config
from mlic_jax.data import pipeline, records, sources, transforms
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import changes, shards, stamps, writing
from mlic_jax.errors import Failure, UsageError

PHOTOS = ("a", "b", "c", "d")


def open_splits(data):
    return sources.open_splits(DataOptions.of(data))


@pytest.fixture
def data(tmp_path, jpeg):
    """A table of four photos in two splits, as a configuration; its folder is `data.root`."""
    root = tmp_path / "own"
    root.mkdir()
    rows = ["image,labels,split"]
    for i, name in enumerate(PHOTOS):
        (root / f"{name}.jpg").write_bytes(jpeg(i))
        rows.append(f"{name}.jpg,{('cat', 'dog')[i % 2]},{('train', 'val')[i // 2]}")
    (root / "labels.csv").write_text("\n".join(rows))
    data = default_config().data
    data.source, data.name, data.root = "csv", "own", str(root)
    data.annotations, data.image_dir = "labels.csv", ""
    data.splits = {"train": "train", "val": "val", "test": "val"}
    data.prepared_dir = str(tmp_path / "prepared")
    return data


@pytest.fixture
def looked_at(monkeypatch):
    """What is decoded to see whether it can be."""
    images, look = [], transforms.look
    monkeypatch.setattr(transforms, "look", lambda image: images.append(image) or look(image))
    return images


def _edit(data, before, after):
    file = os.path.join(data.root, "labels.csv")
    with open(file) as table:
        text = table.read()
    assert before in text
    with open(file, "w") as table:
        table.write(text.replace(before, after))


def _photo(data, name):
    return os.path.join(data.root, f"{name}.jpg")


def test_an_unchanged_set_reads_no_photo_and_no_annotation(data, monkeypatch, capsys):
    open_splits(data)
    capsys.readouterr()
    for module, name in ((changes, "digest_of_file"), (stamps, "digest_of_file")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(sources.Table, "examples", None)
    open_splits(data)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("before", "after", "train"),
    [
        ("a.jpg,cat", "a.jpg,dog", [["dog"], ["dog"]]),
        ("a.jpg,cat", "a.jpg,cat;bird", [["bird", "cat"], ["dog"]]),  # a new class
        ("b.jpg,dog,train", "b.jpg,dog,val", [["cat"]]),
    ],
)
def test_changed_annotations_are_prepared_again(before, after, train, data, looked_at, capsys):
    open_splits(data)
    _edit(data, before, after)
    looked_at.clear()
    capsys.readouterr()
    split = open_splits(data)["train"]
    found = [[split.class_names[c] for c in np.flatnonzero(row == 1)] for row in split.labels()]
    assert (
        found
        == train
        == [[split.class_names[c] for c in np.flatnonzero(record.labels == 1)] for record in split]
    )
    assert re.search("own is prepared again: labels.csv changed\n", capsys.readouterr().out)
    assert looked_at == []  # no photo changed


def test_pixels_that_are_kept_are_those_of_the_photos_there_now(data, jpeg):
    """Other labels leave them there; another photo does not, nor other ways to see all."""

    def files():
        return sorted(file.name for file in Path(data.prepared_dir, "own").glob("pixels/*"))

    def kept():
        """The files that are there before a pass over both splits, and after it."""
        splits = open_splits(data)
        before = files()
        for role in ("train", "val"):
            options = dict(batch_size=2, image_size=16, shuffle=False)
            passes = [
                list(pipeline.batches(splits[role], cache=cache, **options))
                for cache in ("pixels", "none")
            ]
            for batch, decoded in zip(*passes, strict=True):
                np.testing.assert_array_equal(batch["image"], decoded["image"])
        return before, files()

    before, first = kept()
    assert before == [] and [file.partition("-")[0] for file in first] == ["train", "val"]
    _edit(data, "a.jpg,cat", "a.jpg,dog")
    assert kept() == (first, first)
    with open(_photo(data, "a"), "wb") as photo:
        photo.write(jpeg(9))
    before, second = kept()
    assert before == first[1:] == second[1:] and second[0] != first[0]
    data.upright = True
    before, third = kept()
    assert before == [] and not {*third} & {*second}


def test_photos_that_change_splits_are_told_of(data, capsys):
    open_splits(data)
    _edit(data, "b.jpg,dog,train", "b.jpg,cat,train")
    open_splits(data)
    assert "another split" not in capsys.readouterr().out
    _edit(data, "b.jpg,cat,train", "b.jpg,cat,val")
    open_splits(data)
    assert "photos in another split than before: 1 from train to val; " in capsys.readouterr().out


def test_a_label_that_moves_photos_between_divided_splits_is_told_of(data, jpeg, capsys):
    labels = ["cat", "dog", "cat;dog", "cat", "bird", "dog", "bird;cat", "cat", "dog", "dog"]

    def splits_of(labels):
        rows = ["image,labels", *(f"{i}.jpg,{of}" for i, of in enumerate(labels))]
        with open(os.path.join(data.root, "labels.csv"), "w") as table:
            table.write("\n".join(rows))
        opened = open_splits(data)
        return {
            split.image_id(i): name for name, split in opened.items() for i in range(len(split))
        }

    for i in range(len(labels)):
        with open(_photo(data, i), "wb") as photo:
            photo.write(jpeg(i))
    data.train_share = 0.6
    before = splits_of(labels)
    capsys.readouterr()
    after = splits_of(["bird", *labels[1:]])
    moved = [(before[i], after[i]) for i in before if before[i] != after[i]]
    assert moved  # else the test shows nothing
    printed = capsys.readouterr().out
    for old, new in {*moved}:
        assert f"{moved.count((old, new))} from {old} to {new}" in printed


def test_a_photo_that_was_turned_in_place_is_prepared_again_and_it_alone(
    data, looked_at, monkeypatch, capsys
):
    open_splits(data)
    file = _photo(data, "c")
    time = os.stat(file).st_mtime_ns
    with Image.open(file) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(file)
    os.utime(file, ns=(time, time))  # as tools that keep the time do
    looked_at.clear()
    capsys.readouterr()
    written, encoded = [], writing._encoded
    monkeypatch.setattr(
        writing, "_encoded", lambda *given: written.append(given[0].image_id) or encoded(*given)
    )
    splits = open_splits(data)
    assert [split[0].width for split in (splits["train"], splits["val"])] == [24, 18]
    with open(file, "rb") as photo:
        assert splits["val"][0].image == photo.read() == looked_at[0]
    assert len(looked_at) == 1 and written == ["c.jpg", "d.jpg"]
    printed = capsys.readouterr().out
    assert "own is prepared again: 1 photo changed: c.jpg\n" in printed
    assert "as before: train" in printed
    open_splits(data)
    assert capsys.readouterr().out == ""


@pytest.fixture
def written(monkeypatch):
    """The ids of the images whose records are written, of shards of two."""
    image_ids, encoded = [], writing._encoded
    monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 2)
    monkeypatch.setattr(
        writing, "_encoded", lambda *given: image_ids.append(given[0].image_id) or encoded(*given)
    )
    return image_ids


def _in_one_split(data, jpeg, count):
    names = [f"{i}.jpg" for i in range(count)]
    rows = "".join(f"{name},{('cat', 'dog')[i % 2]},train\n" for i, name in enumerate(names))
    with open(os.path.join(data.root, "labels.csv"), "w") as table:
        table.write(f"image,labels,split\n{rows}")
    for i, name in enumerate(names):
        with open(os.path.join(data.root, name), "wb") as file:
            file.write(jpeg(i))
    with data.unlocked():
        data.splits = {"train": "train"}
    return names


def test_of_a_split_those_parts_are_written_again_that_changed(data, jpeg, written, capsys):
    names = _in_one_split(data, jpeg, 7)
    directory = open_splits(data)["train"].directory

    def numbers_of_files():
        return [file.stat().st_ino for file in sorted(directory.glob("*array_record*"))]

    assert written == names
    before = numbers_of_files()
    for name in ("2", "6"):
        with open(_photo(data, name), "wb") as file:
            file.write(jpeg(9))
    written.clear()
    split = open_splits(data)["train"]
    assert written == ["2.jpg", "3.jpg", "6.jpg"]
    assert "as before: 2 of 4 parts of train" in capsys.readouterr().out
    after = numbers_of_files()
    assert [k for k in range(4) if before[k] == after[k]] == [0, 2]
    for i, name in enumerate(names):
        with open(os.path.join(data.root, name), "rb") as photo:
            assert split[i].image == photo.read()

    _edit(data, "3.jpg,dog", "3.jpg,cat")  # a label, and then one photo less
    written.clear()
    assert open_splits(data)["train"][3].labels.tolist() == [1, -1]
    assert written == ["2.jpg", "3.jpg"]
    _edit(data, "4.jpg,cat,train\n", "")
    written.clear()
    split = open_splits(data)["train"]
    assert written == ["5.jpg", "6.jpg"]
    assert [record.image_id for record in split] == [*names[:4], *names[5:]]


def test_no_part_is_kept_that_is_damaged_or_of_another_division(data, jpeg, written, monkeypatch):
    names = _in_one_split(data, jpeg, 5)
    directory = open_splits(data)["train"].directory
    shard = directory / "own-train.array_record-00001"
    shard.write_bytes(shard.read_bytes()[:-9])
    _edit(data, "0.jpg,cat", "0.jpg,dog")
    written.clear()
    open_splits(data)
    assert written == names[:4]
    monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 3)
    _edit(data, "0.jpg,dog", "0.jpg,cat")
    written.clear()
    split = open_splits(data)["train"]
    assert written == names
    assert [record.image_id for record in split] == names


def test_times_alone_are_noted_once(data, monkeypatch, capsys):
    directory = open_splits(data)["train"].directory
    for name in (*PHOTOS, "../own/labels"):
        os.utime(_photo(data, name) if name in PHOTOS else f"{data.root}/labels.csv", ns=(1, 1))
    capsys.readouterr()
    shards = {file: file.stat() for file in directory.glob("*array_record*")}
    open_splits(data)
    assert shards == {file: file.stat() for file in directory.glob("*array_record*")}
    monkeypatch.setattr(changes, "digest_of_file", None)
    monkeypatch.setattr(stamps, "digest_of_file", None)
    open_splits(data)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("copied", [False, True])
def test_a_set_survives_moving(copied, data, tmp_path, looked_at, monkeypatch, capsys):
    """Photos and prepared set move, other files take the old place, and the folder is another."""
    open_splits(data)
    (tmp_path / "elsewhere").mkdir()
    for name in ("own", "prepared"):
        move = shutil.copytree if copied else shutil.move
        move(tmp_path / name, tmp_path / "elsewhere" / name)
    if copied:
        for name in PHOTOS:
            (tmp_path / "own" / f"{name}.jpg").write_bytes(b"another")
    monkeypatch.chdir(tmp_path / "elsewhere")
    looked_at.clear()
    capsys.readouterr()
    with data.unlocked():
        data.root, data.prepared_dir = "own", "prepared"
    assert len(open_splits(data)["train"]) == 2
    assert (capsys.readouterr().out, looked_at) == ("", [])
    text = "".join(
        (tmp_path / "elsewhere" / "prepared" / "own" / name).read_text()
        for name in ("prepared.json", "annotations.json")
    )
    assert str(tmp_path) not in text


def test_a_prepared_set_alone_is_taken_as_it_is_and_that_is_said(data, capsys):
    open_splits(data)
    shutil.rmtree(data.root)
    capsys.readouterr()
    assert len(open_splits(data)["train"]) == 2
    printed = capsys.readouterr().out
    assert "own: the annotations that it was made from are gone; it is taken as it is" in printed
    assert "the photos that it was made from are gone" in printed


def test_one_photo_that_is_gone_stops(data):
    open_splits(data)
    os.remove(_photo(data, "a"))
    with pytest.raises(Failure, match=r"own: 1 unreadable images: train: a\.jpg .*No such file"):
        open_splits(data)
    assert len(records.open_split(os.path.join(data.prepared_dir, "own"), "train")) == 2


def test_a_photo_that_was_left_out_is_taken_in_once_it_is_repaired(data, jpeg, capsys):
    whole = jpeg(7)
    with open(_photo(data, "a"), "wb") as file:
        file.write(whole[:100])
    data.on_corrupt = "skip"
    assert len(open_splits(data)["train"]) == 1
    capsys.readouterr()
    assert len(open_splits(data)["train"]) == 1
    assert capsys.readouterr().out == ""
    with open(_photo(data, "a"), "wb") as file:
        file.write(whole)
    assert len(open_splits(data)["train"]) == 2


def test_a_new_photo_in_a_class_folder(tmp_path, jpeg, capsys):
    data = default_config().data
    data.source, data.name, data.root = "folders", "own", str(tmp_path / "own")
    data.prepared_dir, data.splits = str(tmp_path / "prepared"), {"train": "train"}
    for i, name in enumerate(("cat/a", "dog/b")):
        file = tmp_path / "own" / "train" / f"{name}.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(jpeg(i))
    assert len(open_splits(data)["train"]) == 2
    (tmp_path / "own" / "train" / "dog" / "c.jpg").write_bytes(jpeg(3))
    assert len(open_splits(data)["train"]) == 3
    assert "prepared again: train/dog changed\n" in capsys.readouterr().out
    (tmp_path / "own" / "train" / "dog").rename(tmp_path / "own" / "train" / "wolf")
    assert open_splits(data)["train"].class_names == ("cat", "wolf")
    assert "prepared again: train/dog, train/wolf changed" in capsys.readouterr().out


def test_a_set_of_an_earlier_version_is_prepared_again_and_that_is_said(data, capsys):
    directory = open_splits(data)["train"].directory
    for file in (*directory.glob("stamps_*"), directory / "prepared.json"):
        file.unlink()
    (directory / "annotations.json").unlink()
    assert len(records.open_split(directory, "train")) == 2  # where nobody knows the source
    _edit(data, "a.jpg,cat", "a.jpg,dog")
    capsys.readouterr()
    assert (open_splits(data)["train"].labels() == [[-1, 1], [-1, 1]]).all()
    assert "prepared again: an earlier version prepared it" in capsys.readouterr().out


def test_a_set_whose_annotations_an_earlier_version_did_not_note(data, capsys):
    directory = open_splits(data)["train"].directory
    (directory / "annotations.json").write_text("null")
    capsys.readouterr()
    open_splits(data)
    printed = capsys.readouterr().out
    assert "prepared again: an earlier version prepared it" in printed
    assert "as before: train, val" in printed
    open_splits(data)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["csv", "voc"])
def test_a_set_of_an_earlier_version_without_its_photos_is_taken_as_it_is(kind, data, capsys):
    directory = open_splits(data)["train"].directory
    for file in (*directory.glob("stamps_*"), *directory.glob("*.json")):
        if file.name not in ("dataset_info.json", "features.json", "metadata.json"):
            file.unlink()
    shutil.rmtree(data.root)
    if kind == "voc":
        description = {"kind": "voc", "root": data.root, "year": "2007"}
        metadata = json.loads((directory / "metadata.json").read_text())
        (directory / "metadata.json").write_text(json.dumps(metadata | {"source": description}))
        data.source = "voc"
    capsys.readouterr()
    assert len(open_splits(data)["train"]) == 2
    assert f"there is no {data.root}, which it was made from" in capsys.readouterr().out


def test_what_was_noted_of_a_set_and_is_damaged_is_one_line(data):
    directory = open_splits(data)["train"].directory
    for name, damage in (
        ("stamps_train.npz", lambda file: file.write_bytes(file.read_bytes()[:100])),
        ("annotations.json", lambda file: file.write_text('[["labels.csv"]]')),
        ("prepared.json", lambda file: file.write_text('{"upright": true, "more": 1}')),
        ("prepared.json", lambda file: file.write_text("[1]")),
        ("annotations.json", lambda file: file.unlink()),
        ("index_val.npz", lambda file: file.unlink()),
        ("index_val.npz", lambda file: file.write_bytes(file.read_bytes()[:-9])),
        ("own-val.array_record-00000", lambda file: file.write_bytes(file.read_bytes()[:-9])),
    ):
        (file,) = directory.glob(f"{name}*")
        whole = file.read_bytes()
        damage(file)
        with pytest.raises((Failure, UsageError)) as error:
            open_splits(data)
        assert re.fullmatch(
            rf"{directory} is damaged \([^\n]+\): delete it, prepare it again", str(error.value)
        )
        file.write_bytes(whole)
    open_splits(data)


def test_a_photo_that_changes_between_check_and_writing_stops(data, jpeg, monkeypatch):
    write = writing.write_set

    def late(*arguments):
        with open(_photo(data, "b"), "wb") as file:
            file.write(jpeg(9))
        write(*arguments)

    monkeypatch.setattr("mlic_jax.data.records.preparing.write_set", late)
    with pytest.raises(Failure, match=r"own train, image b\.jpg changed meanwhile"):
        open_splits(data)
    assert not os.path.exists(os.path.join(data.prepared_dir, "own"))


def test_a_set_that_is_made_again_while_it_is_read_says_so(data):
    split = open_splits(data)["train"]
    _edit(data, "a.jpg,cat,train\nb.jpg,dog,train", "b.jpg,dog,train\na.jpg,cat,train")
    open_splits(data)
    with pytest.raises(Failure, match=r"image a\.jpg: its record is of b\.jpg; .*start again"):
        split[0]


def test_a_run_killed_between_the_two_renames_loses_no_set(data):
    directory = open_splits(data)["train"].directory
    staging = directory.with_name("own.incomplete")
    staging.mkdir()
    directory.rename(staging / "old")
    assert len(open_splits(data)["train"]) == 2
    assert not (staging / "old").exists()


def test_what_the_set_says_of_itself_is_json(data):
    directory = open_splits(data)["train"].directory
    said = json.loads((directory / "prepared.json").read_text())
    assert {name: said[name] for name in ("upright", "value_range", "misfits")} == {
        "upright": False,
        "value_range": None,
        "misfits": {"train": [], "val": []},
    }
