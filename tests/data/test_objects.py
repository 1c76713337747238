"""True boxes in the pixels of what a model sees."""

import numpy as np

from mlic_jax.data import sources
from mlic_jax.data.fitting import Fit
from mlic_jax.data.objects import objects_of_square, read_objects
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Record


def test_objects_are_squashed_as_their_image_is():
    boxes, classes = np.int32([[0, 0, 30, 40], [15, 10, 30, 20]]), np.int32([3, 1])
    record = Record(b"", "wide", np.zeros(4, np.int8), boxes, classes, height=30, width=40)
    squashed, same = objects_of_square(record, 60)
    np.testing.assert_array_equal(squashed, [[0, 0, 60, 60], [30, 15, 60, 30]])
    assert squashed.dtype == np.int32
    np.testing.assert_array_equal(same, classes)


def test_objects_of_a_central_crop_are_those_that_are_in_it():
    """Of 30 x 40 the middle 24 x 24, from y = 3 and x = 8 on, enlarged twice."""
    boxes = np.int32([[0, 0, 30, 40], [15, 10, 30, 20], [0, 0, 30, 8], [20, 30, 25, 40]])
    record = Record(b"", "wide", np.zeros(4, np.int8), boxes, np.int32([3, 1, 2, 0]), 30, 40)
    seen, classes = objects_of_square(record, 48, Fit(center_crop=0.8))
    np.testing.assert_array_equal(seen, [[0, 0, 48, 48], [24, 4, 48, 24], [34, 44, 44, 48]])
    np.testing.assert_array_equal(classes, [3, 1, 0])


def test_those_of_a_split_are_those_of_its_images(config):
    split = sources.open_splits(DataOptions.of(config.data))["val"]
    objects = read_objects(split, 48)
    assert len(objects) == len(split)
    for record, (boxes, classes) in zip(split, objects, strict=True):
        assert len(boxes) == len(record.boxes) > 0 and boxes.max() <= 48
        np.testing.assert_array_equal(classes, record.box_classes)
