"""The generated set: deterministic, its labels and boxes true, its classes dependent."""

import io

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import scenes
from mlic_jax.data.scenes import CLASS_NAMES, THEMES, Scenes


@pytest.fixture(scope="module")
def examples():
    return list(Scenes().examples("val"))[:200]


def test_an_image_is_a_function_of_seed_split_and_index(examples):
    scenes.render.cache_clear()
    again = Scenes().examples("val")[7]
    assert again.image == examples[7].image
    np.testing.assert_array_equal(again.labels, examples[7].labels)
    others = (Scenes().examples("test")[7], Scenes(seed=1).examples("val")[7], examples[8])
    assert all(other.image != again.image for other in others)


def test_splits_have_their_sizes():
    source = Scenes(sizes={"train": 3, "test": 2})
    assert [len(source.examples(split)) for split in source.splits] == [3, 2]
    with pytest.raises(IndexError):
        source.examples("test")[2]


def test_labels_and_boxes_agree(examples):
    for example in examples:
        drawn = set(example.box_classes)
        assert set(np.flatnonzero(example.labels >= 0)) == drawn
        height, width = np.asarray(Image.open(io.BytesIO(example.image))).shape[:2]
        y1, x1, y2, x2 = example.boxes.T
        assert np.all((y1 >= 0) & (y1 < y2) & (y2 <= height))
        assert np.all((x1 >= 0) & (x1 < x2) & (x2 <= width))


def test_the_colour_of_the_last_object_fills_its_box(examples):
    """Nothing lies in front of the last object, so its box shows its colour."""
    for example in examples[:50]:
        y1, x1, y2, x2 = example.boxes[-1]
        pixels = np.asarray(Image.open(io.BytesIO(example.image)), np.int32)[y1:y2, x1:x2]
        r, g, b = np.moveaxis(pixels, -1, 0)
        shown = {
            "red": (r > g + 40) & (r > b + 40),
            "yellow": (r > b + 40) & (g > b + 30),
            "green": (g > r + 30) & (g > b + 20),
            "blue": (b > r + 30) & (b > g + 20),
        }[CLASS_NAMES[example.box_classes[-1]].split()[0]]
        assert shown.mean() > 0.1


def test_hidden_objects_are_unknown_and_some_exist():
    train = Scenes().examples("train")
    labels = np.stack([train[i].labels for i in range(400)])
    assert 0 < np.mean(labels == 0) < 0.05


def test_every_class_occurs_and_classes_of_a_theme_occur_together(examples):
    present = np.stack([example.labels for example in examples]) > 0
    assert np.all(present.sum(axis=0) >= 10)
    assert set(THEMES.ravel()) == set(range(len(CLASS_NAMES)))
    share = present.mean(axis=0)
    together = present.T.astype(float) @ present / len(present)
    lift = together / np.outer(share, share)
    in_theme = np.zeros_like(lift, bool)
    for theme in THEMES:
        in_theme[np.ix_(theme, theme)] = True
    off_diagonal = ~np.eye(len(share), dtype=bool)
    assert lift[in_theme & off_diagonal].mean() > 1.5 * lift[~in_theme & off_diagonal].mean()
