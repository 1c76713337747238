"""Squares of photos and where they lie, against Pillow and NumPy step by step."""

import math

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import fitting
from mlic_jax.data.fitting import SQUASHED, Fit, Frame


def photo(height, width):
    """Noise over a slope, so that no two places look alike; nothing overshoots black or white."""
    rng = np.random.default_rng(height * 1000 + width)
    slope = np.add.outer(np.linspace(40, 120, height), np.linspace(0, 60, width))[..., None]
    return Image.fromarray((slope + rng.integers(0, 40, (height, width, 3))).astype(np.uint8))


def keys(x):
    """Bicubic of Keys with a = -1/2, as Pillow has it."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def filtered(pixels, length, kernel, support):
    """Axis 0 of float64 pixels in another length, in whole grey levels between 0 and 255."""
    scale = len(pixels) / length
    stretch = max(scale, 1)
    centres = (np.arange(length) + 0.5) * scale
    distances = (np.arange(len(pixels)) + 0.5 - centres[:, None]) / stretch
    weights = np.where(np.abs(distances) < support, kernel(distances), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    values = np.tensordot(weights, pixels, 1)
    return np.clip(np.floor(values + 0.5), 0, 255)


KERNELS = {
    "bilinear": (lambda x: np.maximum(1 - np.abs(x), 0), 1),
    "bicubic": (keys, 2),
    "lanczos": (lambda x: np.sinc(x) * np.sinc(x / 3), 3),
}


# (height, width) of a photo, of the resized one, and (top, left) of the square of 32 pixels:
# shorter sides of floor(32 / share), longer ones rounded down, halves rounded to even numbers.
CROPS = [
    ((60, 90), 0.875, (36, 54), (2, 11)),
    ((90, 61), 0.875, (53, 36), (10, 2)),  # 53.1; (53 - 32) / 2 = 10.5
    ((47, 40), 0.9, (41, 35), (4, 2)),  # 35.6 and 41.1; 4.5 and 1.5
    ((20, 25), 1.0, (32, 40), (0, 4)),  # enlarged
    ((77, 77), 0.5, (64, 64), (16, 16)),
]


@pytest.mark.parametrize(("size", "share", "resized", "corner"), CROPS)
def test_the_central_crop_lies_where_torchvision_and_timm_have_it(size, share, resized, corner):
    assert Fit("bicubic", share).frame(*size, 32) == Frame(size, resized, corner, 32)


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize(("size", "share", "resized", "corner"), CROPS)
def test_pixels_of_a_central_crop_are_those_of_the_resized_photo(
    interpolation, size, share, resized, corner
):
    image = photo(*size)
    got = Fit(interpolation, share).square(image, 32)
    assert (got.dtype, got.shape) == (np.uint8, (32, 32, 3))
    (tall, wide), (top, left) = resized, corner
    kind = Image.Resampling[interpolation.upper()]
    whole = image.resize((wide, size[0]), kind).resize((wide, tall), kind)
    np.testing.assert_array_equal(got, whole.crop((left, top, left + 32, top + 32)))

    across = filtered(np.asarray(image, np.float64).swapaxes(0, 1), wide, *KERNELS[interpolation])
    down = filtered(across.swapaxes(0, 1), tall, *KERNELS[interpolation])
    want = down[top : top + 32, left : left + 32]
    # Pillow's weights are rounded, which moves what is near a half by a level; down, these levels
    # make less than 1.5 (the absolute weights of Lanczos), and may end in another one.
    assert np.abs(got - want).max() <= 2
    others = [Fit(other, share).square(image, 32) for other in KERNELS if other != interpolation]
    assert all(np.abs(other - want).max() > 2 for other in others)


@pytest.mark.parametrize("interpolation", KERNELS)
def test_a_squashed_photo_is_all_of_it(interpolation):
    image = photo(50, 70)
    kind = Image.Resampling[interpolation.upper()]
    want = image.resize((32, 50), kind).resize((32, 32), kind)
    np.testing.assert_array_equal(Fit(interpolation).square(image, 32), want)
    assert Fit(interpolation).frame(50, 70, 32) == Frame((50, 70), (32, 32), (0, 0), 32)


@pytest.mark.parametrize("size", [(40, 900), (900, 40), (41, 903)])
@pytest.mark.parametrize("interpolation", KERNELS)
def test_of_a_ribbon_the_square_alone_is_resized(size, interpolation, monkeypatch):
    """The same places; Pillow rounds their weights otherwise, and between rows and columns."""
    image, fit = photo(*size), Fit(interpolation, 0.75)
    whole = fit.square(image, 64).astype(int)
    monkeypatch.setattr(fitting, "MOST_RESIZED", 0)
    assert np.abs(fit.square(image, 64) - whole).max() <= 2


def test_a_ribbon_takes_no_memory_in_proportion_to_its_length():
    """Resized whole, it would have 27 times 10^9 pixels."""
    image = Image.new("RGB", (1, 200_000), (10, 200, 30))
    frame = Fit("bicubic", 0.875).frame(200_000, 1, 320)
    assert frame.resized == (73_000_000, 365)
    square = Fit("bicubic", 0.875).square(image, 320)
    np.testing.assert_array_equal(square, np.full((320, 320, 3), (10, 200, 30)))


def test_boxes_in_a_photo_touch_all_that_the_model_saw():
    def of_squashed(box, height, width):
        return SQUASHED.frame(height, width, 64).box_in_photo(box, 64)

    assert of_squashed((0, 0, 64, 64), 100, 37) == (0, 0, 100, 37)
    assert of_squashed((10, 20, 30, 40), 640, 128) == (100, 40, 300, 80)
    assert of_squashed((63, 31, 64, 33), 1, 1) == (0, 0, 1, 1)  # never empty
    assert of_squashed((1, 1, 2, 2), 100, 100) == (1, 1, 4, 4)


@pytest.mark.parametrize("grid", [32, 64])
def test_boxes_of_a_crop_are_where_they_lie_in_the_photo(grid):
    """Of 90 x 61, resized to 53 x 36, the square begins at y = 10 and x = 2."""
    frame = Fit("bicubic", 0.875).frame(90, 61, 32)
    double = grid // 32  # as where a model sees the square in another size
    y1, x1, y2, x2 = 4, 6, 20, 31
    got = frame.box_in_photo(np.array([y1, x1, y2, x2]) * double, grid)
    want = (
        math.floor((10 + y1) * 90 / 53),
        math.floor((2 + x1) * 61 / 36),
        math.ceil((10 + y2) * 90 / 53),
        math.ceil((2 + x2) * 61 / 36),
    )
    assert got == want == (23, 13, 51, 56)
    back, is_seen = frame.boxes_in_square(np.array([got, (0, 0, 16, 61), (0, 0, 17, 4)]))
    assert is_seen.tolist() == [True, False, True]
    assert np.abs(back[0] - (y1, x1, y2, x2)).max() <= 1
    np.testing.assert_array_equal(back[2], [0, 0, 0, 0])  # rounded


def test_what_is_said_of_a_fit():
    assert (SQUASHED.changed(), SQUASHED.described()) == ({}, "")
    cropped = Fit("bicubic", 0.875)
    assert cropped.changed() == {"interpolation": "bicubic", "center_crop": 0.875}
    assert cropped.described() == ", bicubic, the central 0.875 of the shorter side"
    assert Fit("lanczos").changed() == {"interpolation": "lanczos"}
