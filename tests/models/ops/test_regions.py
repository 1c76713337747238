"""The localiser against a literal port of its description; the crop against bilinear by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.models.ops import regions

pytestmark = pytest.mark.numerical
CROPPERS = pytest.mark.parametrize(
    "crop",
    [
        jax.jit(crop, static_argnums=2)
        for crop in (regions.crop_and_resize, regions.crops_by_gathering, regions.crops_by_products)
    ],
    ids=["crop_and_resize", "crops_by_gathering", "crops_by_products"],
)
# Compiled whole, which is sooner done than for every operation by itself.
exact_interval = jax.jit(regions.exact_interval, static_argnums=1)
clean_interval = jax.jit(regions.clean_interval, static_argnums=1)
class_regions = jax.jit(regions.class_regions, static_argnums=(1, 2, 3))


def literal_interval(scores: list[float], threshold: float) -> tuple[int, int]:
    """The released localiser, sentence by sentence."""
    length = len(scores)
    shortest = math.ceil(length / 8)
    signs = [(s > threshold) - (s < threshold) for s in scores]
    crossings = [i for i in range(length - 1) if signs[i] * signs[i + 1] == -1]
    if not crossings:
        return math.ceil(length / 8), math.ceil(7 * length / 8)
    candidates = []
    if crossings[0] > 0:
        candidates.append((0, crossings[0]))
    candidates.append((crossings[-1], length))
    candidates += list(itertools.pairwise(crossings))
    # max keeps the first of equals.
    start, end = max(candidates, key=lambda c: (max(scores[c[0] : c[1]]), c[1] - c[0]))
    if end - start <= shortest:
        pad = shortest - (end - start)
        c = math.ceil(pad / 2)
        if start > c and length - end > pad:
            start, end = start - c + 1, end + c
        if start < c:
            start, end = 0, shortest
        if length - end < c:
            start, end = length - shortest + 1, length
    return start, end


def assert_intervals(profiles: np.ndarray, threshold: float) -> None:
    profiles = np.asarray(profiles, np.float32)
    start, end = exact_interval(profiles, threshold)
    level = float(np.float32(threshold))
    expected = [literal_interval(profile, level) for profile in profiles.tolist()]
    np.testing.assert_array_equal(np.stack([start, end], axis=-1), expected)


@pytest.mark.parametrize("length", range(2, 9))
def test_exact_interval_on_every_short_profile(length):
    # Below, at and above the threshold, and two heights of peaks.
    levels = [0.0, 0.25, 0.5, 1.0] if length > 6 else [0.0, 0.25, 0.5, 0.75, 1.0]
    assert_intervals(np.array(list(itertools.product(levels, repeat=length))), 0.5)


@pytest.mark.parametrize("length", [16, 17, 64, 96, 224, 256, 448])
def test_exact_interval_on_random_profiles(length):
    rng = np.random.default_rng(length)
    knots = rng.random((500, 7))
    smooth = np.stack([np.interp(np.linspace(0, 6, length), range(7), k) for k in knots])
    # Narrow peaks, at the borders too, are what the widening is for.
    centres = rng.integers(0, length, (500, 1))
    widths = rng.integers(1, max(2, length // 6), (500, 1))
    narrow = np.maximum(0, 1 - np.abs(np.arange(length) - centres) / widths)
    quantised = np.round(rng.random((500, length)) * 4) / 4
    for threshold in (0.3, 0.5, 0.75):
        assert_intervals(np.concatenate([smooth, narrow, quantised]), threshold)


def interval(profile, threshold=0.5, function=exact_interval):
    start, end = function(jnp.array(profile, jnp.float32), threshold)
    return int(start), int(end)


def peaked(length, start, end, peak):
    profile = np.zeros(length)
    profile[start:end] = 0.8
    profile[peak] = 1
    return profile


def test_known_oddities_are_kept():
    # One shorter than m = 8: a pixel more at the right end alone.
    assert interval(peaked(64, 20, 27, 23)) == (19, 27)
    # Exactly m: shrinks by one from the left.
    assert interval(peaked(64, 20, 28, 23)) == (20, 27)
    # A plateau's last pixel belongs to the long low tail behind it, which wins.
    assert interval([0.0] * 20 + [1.0] * 7 + [0.0] * 37) == (26, 64)
    # At the right border the widened interval has one pixel less than m.
    assert interval(peaked(64, 62, 63, 62)) == (57, 64)
    assert interval(np.full(64, 1.0)) == (8, 56)


def test_a_score_at_the_threshold_is_no_crossing():
    profile = [0, 0, 0.5, 1, 1, 0.5, 0, 0]
    assert interval(profile) == (1, 7)


def test_exact_interval_is_never_empty_nor_outside():
    profiles = np.random.default_rng(0).random((5000, 40)).astype(np.float32) ** 8
    start, end = exact_interval(jnp.array(profiles), 0.5)
    assert np.all((start >= 0) & (start < end) & (end <= 40))


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ([0, 0, 0, 1, 0.6, 0, 0, 0.9], (3, 5)),  # the run that holds the peak
        ([0] * 30 + [1] + [0] * 33, (27, 35)),  # padded on both sides to ceil(64 / 8)
        ([1] + [0] * 63, (0, 8)),  # moved inside at the left
        ([0] * 63 + [1], (56, 64)),  # and at the right
        ([1] * 16, (0, 16)),
        ([0, 0.5, 1, 0.5, 0, 0, 0, 0], (1, 4)),  # at the threshold belongs to the run
    ],
)
def test_clean_interval(profile, expected):
    assert interval(profile, function=clean_interval) == expected


def upsample(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """align_corners=True, by np.interp along each axis in float64."""
    h, w = maps.shape
    rows, columns = np.linspace(0, h - 1, height), np.linspace(0, w - 1, width)
    maps = np.stack([np.interp(rows, range(h), column) for column in maps.T], axis=1)
    return np.stack([np.interp(columns, range(w), row) for row in maps])


@pytest.mark.parametrize(
    ("coarse", "fine"), [((4, 4), (128, 128)), ((7, 5), (224, 160)), ((14, 14), (448, 448))]
)
def test_profiles_are_the_maxima_of_the_upsampled_map(coarse, fine):
    maps = np.random.default_rng(0).random((6, *coarse)).astype(np.float32)
    rows, columns = jax.jit(regions.profiles, static_argnums=1)(maps, fine)
    # Of values below 1: four products of three numbers, no more than eight roundings of 6e-8.
    for i in range(len(maps)):
        full = upsample(maps[i].astype(np.float64), *fine)
        np.testing.assert_allclose(rows[i], full.max(axis=1), atol=1e-6)
        np.testing.assert_allclose(columns[i], full.max(axis=0), atol=1e-6)


def test_normalise_profile():
    profiles = jnp.array([[0.2, 0.4, 0.6], [0.3, 0.3, 0.3]])
    np.testing.assert_allclose(
        regions.normalise_profile(profiles), [[0, 0.5, 1], [1, 1, 1]], atol=1e-6
    )


def test_class_regions_has_rows_before_columns():
    blob = np.full((1, 8, 8), 0.1, np.float32)
    blob[0, 1:3, 4:7] = 0.9
    y1, x1, y2, x2 = class_regions(jnp.array(blob), (64, 64), 0.5, "exact")[0]
    assert y2 - y1 < x2 - x1
    assert (y1 + y2) / 2 < 32 < (x1 + x2) / 2


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.55, 0.8), (0.1, 0.4)])
@pytest.mark.parametrize("localizer", ["exact", "clean"])
def test_class_regions_are_the_intervals_of_both_normalised_profiles(localizer, low, high):
    """Maps whose values, all on one side of the threshold perhaps, differ along either axis."""
    maps = np.random.default_rng(18).uniform(low, high, (2, 6, 7, 5)).astype(np.float32)
    found = class_regions(jnp.array(maps), (224, 160), 0.45, localizer)
    assert found.shape == (2, 6, 4) and found.dtype == jnp.int32
    for place in np.ndindex(2, 6):
        full = upsample(maps[place].astype(np.float64), 224, 160)
        sides = []
        for profile in (full.max(axis=1), full.max(axis=0)):
            normalised = (profile - profile.min()) / (profile.max() - profile.min())
            assert np.abs(normalised - 0.45).min() > 1e-4  # rounding decides nothing
            if localizer == "exact":
                sides.append(literal_interval(normalised.tolist(), 0.45))
            else:
                sides.append(interval(normalised, 0.45, clean_interval))
        (y1, y2), (x1, x2) = sides
        np.testing.assert_array_equal(found[place], [y1, x1, y2, x2])


def bilinear_crop(image, box, height, width):
    """Every output pixel by its own formula."""
    y1, x1, y2, x2 = box
    out = np.zeros((height, width, image.shape[-1]))
    for i, j in itertools.product(range(height), range(width)):
        y = y1 + i * (y2 - y1 - 1) / (height - 1)
        x = x1 + j * (x2 - x1 - 1) / (width - 1)
        top, left = min(int(y), y2 - 1), min(int(x), x2 - 1)
        bottom, right = min(top + 1, y2 - 1), min(left + 1, x2 - 1)
        dy, dx = y - top, x - left
        upper = image[top, left] * (1 - dx) + image[top, right] * dx
        lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
        out[i, j] = upper * (1 - dy) + lower * dy
    return out


@pytest.mark.parametrize("size", [0, 5, 16])
@CROPPERS
def test_crop_and_resize(crop, size):
    images = np.random.default_rng(0).random((2, 12, 10, 3)).astype(np.float32)
    boxes = np.array(
        [
            [[0, 0, 12, 10], [3, 2, 9, 10], [11, 9, 12, 10]],
            [[0, 4, 1, 5], [5, 0, 12, 2], [2, 2, 8, 8]],
        ]
    )
    height, width = (size, size) if size else (12, 10)
    crops = crop(images, boxes.astype(np.int32), size)
    assert crops.shape == (2, 3, height, width, 3)
    # Of values below 1, with weights that sum to 1: along either axis a rounding of a weight, of
    # its difference from 1, of two products and of their sum, 6e-8 each.
    for b, n in itertools.product(range(2), range(3)):
        expected = bilinear_crop(images[b].astype(np.float64), boxes[b, n], height, width)
        np.testing.assert_allclose(crops[b, n], expected, rtol=0, atol=10 * 6e-8)


@CROPPERS
def test_crops_of_other_dtypes(crop):
    image = np.random.default_rng(1).random((1, 12, 10, 3))
    box = np.array([[[3, 1, 12, 9]]], np.int32)
    with jax.enable_x64(True):
        exact = crop(jnp.asarray(image), jnp.asarray(box), 16)
        assert exact.dtype == jnp.float64
    expected = bilinear_crop(image[0], box[0, 0], 16, 16)
    np.testing.assert_allclose(exact[0, 0], expected, rtol=0, atol=1e-14)
    rounded = crop(jnp.asarray(image, jnp.bfloat16), jnp.asarray(box), 16)
    assert rounded.dtype == jnp.bfloat16
    # Pixels, weights, products and sums, of 8 bits each.
    np.testing.assert_allclose(rounded[0, 0].astype(np.float32), expected, rtol=0, atol=11 * 2**-9)


@CROPPERS
def test_the_whole_image_is_itself(crop):
    image = jax.random.normal(jax.random.key(0), (1, 96, 64, 3))
    crops = crop(image, jnp.array([[[0, 0, 96, 64]]], jnp.int32))
    np.testing.assert_array_equal(crops[:, 0], image)
