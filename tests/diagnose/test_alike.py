"""Photos that look alike: across splits, and within one where their labels differ."""

import csv

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.diagnose import alike


@pytest.fixture(scope="module")
def splits(make_config, tmp_path_factory):
    """Of five noises three are there twice: darker, smaller, or as they are."""
    folder = tmp_path_factory.mktemp("alike")
    rng = np.random.default_rng(0)
    noises = [
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((144, 90), 0)
        for _ in range(5)
    ]
    photos = {f"{name}.png": image for name, image in zip("abcde", noises, strict=True)}
    photos["darker_a.png"] = noises[0].point(lambda value: value // 2)
    photos["small_b.png"] = noises[1].resize((72, 45), Image.Resampling.BOX)
    photos["c_again.png"] = noises[2]
    for name, image in photos.items():
        image.save(folder / name)
    rows = [
        *("a.png,cat,train", "b.png,cat,train", "c.png,cat,train", "d.png,dog,train"),
        *("darker_a.png,cat dog,train", "c_again.png,cat,train"),  # the second differs in nothing
        *("small_b.png,cat,test", "e.png,dog,test"),
    ]
    (folder / "annotations.csv").write_text("\n".join(["image,labels,split", *rows]) + "\n")
    data = make_config().data
    data.source, data.name, data.root = "csv", "alike", str(folder)
    data.prepared_dir, data.annotations = str(folder / "prepared"), "annotations.csv"
    data.image_dir = ""
    data.splits = {"train": "train", "val": "test", "test": "test"}
    opened = sources.open_splits(DataOptions.of(data))
    return [opened["train"], opened["test"]]


def test_pairs_and_what_is_written(splits, tmp_path):
    pairs = alike.find_pairs(splits)
    alike.write_pairs(pairs, splits, tmp_path)
    with (tmp_path / "look_alikes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["photo"], row["other"]): row for row in rows}
    assert found.keys() == {("darker_a.png", "a.png"), ("small_b.png", "b.png")}
    within, across = found["darker_a.png", "a.png"], found["small_b.png", "b.png"]
    assert (within["split"], within["other_split"], within["differing"]) == (
        *("train", "train", "dog"),
    )
    assert (across["split"], across["other_split"], across["differing"]) == ("test", "train", "")
    assert all(0 <= int(row["bits"]) <= 7 for row in rows)
    for row in rows:
        with Image.open(tmp_path / row["picture"]) as picture:
            assert picture.size == (2 * alike.SIDE + alike.GAP, alike.SIDE)
            left, right = (np.asarray(picture.crop((x, 96, x + 256, 160))) for x in (0, 264))
            assert left.std() > 20 and right.std() > 20


def test_pictures_are_of_the_first_pairs_and_old_ones_go(splits, tmp_path, monkeypatch):
    pairs = alike.find_pairs(splits)
    alike.write_pairs(pairs, splits, tmp_path)
    monkeypatch.setattr(alike, "MOST_PICTURES", 1)
    alike.write_pairs(pairs, splits, tmp_path)
    assert [path.name for path in (tmp_path / "look_alikes").iterdir()] == ["0001.jpg"]
    with (tmp_path / "look_alikes.csv").open(newline="") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == ["look_alikes/0001.jpg", ""]


def test_an_unknown_label_differs_from_none(splits):
    unknown = splits[0].labels().copy()
    unknown[[splits[0].image_id(i) for i in range(6)].index("darker_a.png")] = 0
    assert [pair.differing for pair in alike.find_pairs([splits[0].with_labels(unknown)])] == []


def test_bits_that_differ():
    from mlic_jax.data.look_alikes import differing_bits

    assert differing_bits(b"\xff" + bytes(15), bytes(15) + b"\x01") == 9
