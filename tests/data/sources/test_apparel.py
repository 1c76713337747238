"""The Apparel folders in miniature: two labels an image, and halves that stay as they are."""

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.sources.apparel import CLASS_NAMES, COLOURS, GARMENTS, Apparel
from mlic_jax.errors import Failure, UsageError

# Those that Kaggle has are 24 of the 30 pairs.
SIZES = {"black_dress": 4, "black_shoes": 6, "blue_dress": 2, "green_shorts": 4, "white_pants": 8}


@pytest.fixture
def root(tmp_path, jpeg):
    for seed, (folder, size) in enumerate(SIZES.items()):
        (tmp_path / "apparel" / folder).mkdir(parents=True)
        for i in range(size):
            file = tmp_path / "apparel" / folder / f"{i:040x}.jpg"
            file.write_bytes(jpeg(10 * seed + i))
    return tmp_path / "apparel"


def _source(root, splits=("train", "test"), **options):
    return Apparel("apparel", root, splits, **options)


def _ids(source, split="train"):
    return {example.image_id for example in source.examples(split)}


def test_classes():
    assert (*COLOURS, *GARMENTS) == CLASS_NAMES
    assert (len(COLOURS), len(GARMENTS), GARMENTS[0]) == (6, 5, "dress")


def test_two_labels_an_image(root):
    source = _source(root)
    assert source.class_names == CLASS_NAMES
    for split in source.splits:
        for example in source.examples(split):
            assert example.image == root / example.image_id
            present = [CLASS_NAMES[c] for c in np.flatnonzero(example.labels == 1)]
            assert present == example.image.parent.name.split("_")
            assert (example.labels != 0).all() and example.labels.dtype == np.int8


def test_the_halves(root):
    source = _source(root)
    train, test = source.examples("train"), source.examples("test")
    assert len(train) == len(test) == 12
    np.testing.assert_array_equal(
        sum(example.labels == 1 for example in train), sum(example.labels == 1 for example in test)
    )
    assert _ids(source) == _ids(_source(root)) != _ids(_source(root, split_seed=1))
    assert len(_ids(_source(root, train_share=0.75))) == 18


def test_prepared_and_read_back(root, tmp_path):
    folder = records.prepare(_source(root), tmp_path / "prepared")
    split = records.open_split(folder, "test")
    assert split.class_names == CLASS_NAMES and len(split) == 12
    assert (split.labels() == 1).sum(axis=1).tolist() == [2] * 12
    assert split[3].image == (root / split[3].image_id).read_bytes()


@pytest.mark.parametrize(
    "name",
    ["purple_dress", "black_hat", "dress_black", "black_blue", "black", "black_dress_shoes"],
)
def test_a_folder_of_another_name(root, jpeg, name):
    (root / name).mkdir()
    (root / name / "1.jpg").write_bytes(jpeg(0))
    with pytest.raises(Failure, match=f"folder .*/{name} is not named <colour>_<garment>"):
        _source(root).examples("train")


def test_missing_paths(root):
    with pytest.raises(UsageError, match="nowhere: No such file or directory"):
        _source(root / "nowhere").examples("train")
