"""RandAugment's operations beside Pillow's, on a photo, and what is drawn for each image."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mlic_jax.train import randaugment
from mlic_jax.train.randaugment import OPERATIONS, cutout, each, operate, rand_augment, sources

PHOTO = Path(__file__).resolve().parents[2] / "docs" / "example.jpg"
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "colour": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.fixture(scope="module")
def photo():
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((96, 64))


@pytest.fixture(scope="module")
def operated(photo):
    """(operation, magnitude) -> what it makes of the photo, int."""
    run, pixels = jax.jit(operate), jnp.asarray(np.asarray(photo))

    def operated(name, magnitude, pixels=pixels):
        which = jnp.int32(OPERATIONS.index(name))
        return np.asarray(run(pixels, which, jnp.float32(magnitude))).astype(int)

    return operated


@pytest.mark.parametrize("magnitude", [0.0, 9.0, -9.0, 23.0, 30.0])
def test_values_are_those_of_pillow(photo, operated, magnitude):
    """To one of 255: Pillow computes in float32 or float64 and cuts, wherever that rounds."""
    share = abs(magnitude) / 30
    expected = {
        "identity": photo,
        "autocontrast": ImageOps.autocontrast(photo),
        "equalize": ImageOps.equalize(photo),
        "posterize": ImageOps.posterize(photo, 8 - round(4 * share)),
        "solarize": ImageOps.solarize(photo, 255 * (1 - share)),
    }
    for name, enhancer in ENHANCERS.items():
        expected[name] = enhancer(photo).enhance(1 + 0.9 * magnitude / 30)
    for name, image in expected.items():
        got, wanted = operated(name, magnitude), np.asarray(image).astype(int)
        exact = name in ("identity", "equalize", "posterize", "solarize")
        assert np.abs(got - wanted).max() <= (0 if exact else 1), name


def test_grey_and_smooth_are_those_of_pillow_exactly(photo):
    values = jnp.asarray(np.asarray(photo)).astype(jnp.int32)
    np.testing.assert_array_equal(randaugment.grey_of(values), np.asarray(photo.convert("L")))
    smoothed = np.asarray(photo.filter(ImageFilter.SMOOTH))
    np.testing.assert_array_equal(randaugment.smooth(values), smoothed)


@pytest.mark.parametrize("values", [(7, 7), (0, 255), (100, 101)])
def test_tables_of_photos_of_few_values_are_those_of_pillow(operated, values):
    pixels = np.full((64, 96, 3), values[0], np.uint8)
    pixels[10:, :40] = values[1]
    image = Image.fromarray(pixels)
    for name, of_pillow in (
        ("autocontrast", ImageOps.autocontrast),
        ("equalize", ImageOps.equalize),
    ):
        got = operated(name, 9.0, jnp.asarray(pixels))
        np.testing.assert_allclose(got, np.asarray(of_pillow(image)).astype(int), atol=1)


def moved_by_pillow(photo, name, share):
    width, height = photo.size
    if name == "rotate":
        return photo.rotate(30 * share)
    matrix = {
        "shear_x": (1, 0.3 * share, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * share, 1, 0),
        "translate_x": (1, 0, round(150 / 331 * width * share), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, round(150 / 331 * height * share)),
    }
    return photo.transform(photo.size, Image.Transform.AFFINE, matrix[name])


@pytest.mark.parametrize("name", randaugment.MOVES)
@pytest.mark.parametrize("magnitude", [9.0, -9.0, 30.0])
def test_moves_are_those_of_pillow(photo, operated, name, magnitude):
    """But where a pixel comes from the edge of two: Pillow counts in parts of 2^16.

    Such a part for each pixel of a row of 96 and a column of 64 is 0.0025 of a pixel.
    """
    which = jnp.int32(randaugment.MOVES.index(name))
    y, x = (np.asarray(a) for a in sources(which, jnp.float32(magnitude / 30), 64, 96))
    clear = (np.abs(y - np.round(y)) > 0.005) & (np.abs(x - np.round(x)) > 0.005)
    expected = np.asarray(moved_by_pillow(photo, name, magnitude / 30)).astype(int)
    np.testing.assert_array_equal(operated(name, magnitude)[clear], expected[clear])
    assert clear.mean() > 0.9
    assert (expected != np.asarray(photo)).mean() > 0.1


def test_every_operation_is_drawn(photo, operated):
    images = jnp.stack([jnp.asarray(np.asarray(photo))] * 200)
    change = partial(each, partial(rand_augment, count=1, magnitude=9.0))
    drawn = {np.asarray(image).astype(int).tobytes() for image in change(images, jax.random.key(0))}
    known = {operated(name, side).tobytes() for name in OPERATIONS for side in (9.0, -9.0)}
    assert drawn == known


def test_every_image_has_its_own(photo):
    images = jnp.stack([jnp.asarray(np.asarray(photo))] * 64)
    change = jax.jit(partial(each, partial(rand_augment, count=2, magnitude=9.0)))
    first, again, other = (change(images, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({np.asarray(image).tobytes() for image in first}) > 48


def test_cutout_is_a_square_of_one_colour_wherever_it_fits(photo):
    pixels = jnp.asarray(np.asarray(photo))
    images = jnp.stack([pixels] * 200)
    cut = np.asarray(each(partial(cutout, share=0.5), images, jax.random.key(0)))
    rows, columns, colours = [], [], set()
    for image in cut:
        changed = np.any(image != np.asarray(pixels), axis=-1)
        where = np.argwhere(changed)
        (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
        inside = image[top:bottom, left:right].reshape(-1, 3)
        colours.add(tuple(np.median(inside, axis=0)))
        assert bottom - top <= 32 and right - left <= 48
        rows.append(bottom - top)
        columns.append(right - left)
        assert np.all(image[~changed] == np.asarray(pixels)[~changed])
        assert len(np.unique(inside, axis=0)) == 1
    assert max(rows) == 32 and max(columns) == 48  # 0.5 of the sides
    assert min(rows) < 20 and min(columns) < 30  # some begin outside
    assert len(colours) > 190
