"""Where a model looks beside where the objects are, against counting every pixel."""

import numpy as np
import pytest

from mlic_jax.metrics.localisation import (
    LOOKERS,
    localise,
    measure,
    overlap,
    size_of,
    summarise_looks,
)

S = 15  # of a side of the square, pixels, so that maps of 3 and 5 have theirs on whole ones


def pixels(box, size=S):
    """Bool [size, size], the pixels of a box."""
    y, x = np.mgrid[:size, :size]
    return (y >= box[0]) & (y < box[2]) & (x >= box[1]) & (x < box[3])


def counted_iou(box, boxes, size=S):
    """The highest IoU, by counting pixels."""
    mask = pixels(box, size)
    others = [pixels(other, size) for other in boxes]
    return max((mask & other).sum() / (mask | other).sum() for other in others)


def upsampled(coarse, size=S):
    """A map [h, w] at every pixel of the square, one by one."""
    h, w = coarse.shape
    fine = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            at_y = min(max((y + 0.5) * h / size - 0.5, 0), h - 1)
            at_x = min(max((x + 0.5) * w / size - 0.5, 0), w - 1)
            top, left = min(int(at_y), h - 2), min(int(at_x), w - 2)
            b, r = at_y - top, at_x - left
            fine[y, x] = (
                coarse[top, left] * (1 - b) * (1 - r)
                + coarse[top, left + 1] * (1 - b) * r
                + coarse[top + 1, left] * b * (1 - r)
                + coarse[top + 1, left + 1] * b * r
            )
    return fine


def random_box(rng, size=S):
    (y1, y2), (x1, x2) = (np.sort(rng.choice(size + 1, 2, replace=False)) for _ in range(2))
    return np.array([y1, x1, y2, x2])


@pytest.mark.parametrize("seed", range(5))
def test_every_measure_is_what_pixels_say(seed):
    rng = np.random.default_rng(seed)
    boxes = np.stack([random_box(rng) for _ in range(1 + seed % 3)])
    # So long that no side leaves more than 15 pixels: a region at random is then put everywhere.
    side = rng.integers(6, S, 2)
    corner = [rng.integers(0, S - length + 1) for length in side]
    region = np.array([*corner, *(corner + side)])
    coarse = rng.random((3, 5)).astype(np.float32)
    found = measure(region, boxes, S, coarse)

    everywhere = [
        counted_iou((y, x, y + side[0], x + side[1]), boxes)
        for y in range(S - side[0] + 1)
        for x in range(S - side[1] + 1)
    ]
    middle = np.array([(S - side[0]) // 2, (S - side[1]) // 2])
    in_middle = pixels((*middle, *(middle + side)))
    inside = np.any([pixels(box) for box in boxes], axis=0)
    iou = (
        counted_iou(region, boxes),
        np.mean(everywhere),
        counted_iou((*middle, *(middle + side)), boxes),
    )
    assert found["iou"] == pytest.approx(iou, rel=1e-12)

    fine = upsampled(coarse)
    flat_in_middle = (inside & in_middle).sum() / in_middle.sum()
    energy = fine[inside].sum() / fine.sum(), inside.mean(), flat_in_middle
    assert found["energy"] == pytest.approx(energy, rel=1e-6)
    peak = np.unravel_index(fine.argmax(), fine.shape)
    assert found["pointing"] == (float(inside[peak]), inside.mean(), float(inside[S // 2, S // 2]))


def test_of_equal_peaks_each_has_its_share():
    boxes = np.array([[0, 0, 10, 10]])
    region = np.array([0, 0, 4, 4])
    flat = measure(region, boxes, S, np.ones((4, 4), np.float32))
    assert flat["pointing"][0] == 9 / 16  # at 1, 5, 9 and 13 along both sides
    assert flat["energy"][0] == pytest.approx(flat["energy"][1]) == 100 / S**2
    line = measure(region, np.array([[7, 0, 8, S]]), S, np.float32([[1, 2, 1]]))
    assert line["pointing"][0] == 1  # it says nothing of the height: the middle
    empty = measure(region, boxes, S, np.zeros((4, 4), np.float32))
    assert empty["energy"][0] == 0


def test_a_region_at_random_is_put_evenly_where_places_are_many():
    region, boxes = np.array([3, 3, 13, 23]), np.array([[20, 30, 60, 90], [0, 0, 5, 5]])
    everywhere = overlap(np.arange(91), np.arange(81), (10, 20), boxes).mean()
    assert measure(region, boxes, 100)["iou"][1] == pytest.approx(everywhere, rel=0.1)


def test_sizes_are_those_of_coco_in_a_photo_of_640_by_480():
    areas = np.array([32**2 - 1, 32**2, 96**2 - 1, 96**2]) / (640 * 480)
    np.testing.assert_array_equal(size_of(areas), [0, 1, 1, 2])


def test_what_counts_is_a_present_class_with_a_box():
    """Of three images: unknown and absent classes do not count, nor do boxes without an area."""
    labels = np.array([[1, 0, 1], [1, -1, 1], [-1, -1, 1]], np.int8)
    one, two = [0, 0, 10, 10], [5, 5, 6, 7]
    objects = [
        (np.array([one, two, one]), np.array([0, 0, 1])),
        (np.array([two, one, [3, 3, 3, 9]]), np.array([0, 1, 2])),
        (np.zeros((0, 4), np.int32), np.zeros(0, np.int32)),
    ]
    boxes = np.array([[one, two], [two, one], [one, two]])
    classes = np.array([[2, 0], [1, 0], [0, 1]])
    looks = localise(labels, objects, S, boxes, classes)
    np.testing.assert_array_equal(looks.images, [0, 1, 1])
    np.testing.assert_array_equal(looks.classes, [0, 0, 2])
    np.testing.assert_array_equal(looks.shares, np.array([100, 2, 0]) / S**2)
    np.testing.assert_array_equal(looks.has_region, [True, True, False])
    assert list(looks.figures) == ["iou"]
    np.testing.assert_allclose(looks.figures["iou"]["model"], [1, 2 / 100, np.nan])


def test_the_summary_is_the_mean_over_all_sizes_and_classes():
    rng = np.random.default_rng(0)
    images, classes = 30, 4
    labels = rng.choice([-1, 0, 1], (images, classes)).astype(np.int8)
    objects = [
        (np.stack([random_box(rng) for _ in range(5)]), rng.integers(0, classes, 5))
        for _ in range(images)
    ]
    boxes = np.stack([[random_box(rng) for _ in range(2)] for _ in range(images)])
    box_classes = np.stack([rng.choice(classes, 2, replace=False) for _ in range(images)])
    maps = rng.random((images, 2, 3, 3)).astype(np.float32)
    looks = localise(labels, objects, S, boxes, box_classes, maps)
    found = summarise_looks(looks, ["a", "b", "c", "d"])

    rows = [
        (i, c)
        for i in range(images)
        for c in range(classes)
        if labels[i, c] == 1 and c in objects[i][1]
    ]
    assert found["objects"] == len(rows)
    with_region = [(i, c) for i, c in rows if c in box_classes[i]]
    assert found["regions"] == len(with_region) > 10
    parts = [found["by_class"][name] for name in "abcd"]
    for measured in ("pointing", "iou", "energy"):
        of_each = [
            measure(boxes[i][k], objects[i][0][objects[i][1] == c], S, maps[i][k])[measured]
            for i, c in with_region
            for k in np.flatnonzero(box_classes[i] == c)
        ]
        means = 100 * np.mean(of_each, axis=0)
        assert [found[measured][who] for who in LOOKERS] == pytest.approx(means)
        for by in (parts, found["by_size"].values()):
            whole = sum(of["regions"] * (of[measured]["model"] or 0) for of in by)
            assert whole == pytest.approx(found["regions"] * found[measured]["model"])


def test_a_model_without_regions_has_none():
    labels = np.ones((1, 1), np.int8)
    objects = [(np.array([[0, 0, 5, 5]]), np.array([0]))]
    found = summarise_looks(localise(labels, objects, S, None, None), ["a"])
    assert (found["objects"], found["regions"]) == (1, 0)
    assert found["iou"] == dict.fromkeys(LOOKERS)
