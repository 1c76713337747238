"""Decoding of every kind of image, and the geometry against independent computations."""

import io
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import transforms
from mlic_jax.errors import Failure


def _encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _rgb(encoded: bytes) -> np.ndarray:
    image = transforms.decode(encoded)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_kept():
    pixels = _noise(5, 7)
    np.testing.assert_array_equal(_rgb(_encode(Image.fromarray(pixels))), pixels)


def test_grayscale_is_repeated():
    pixels = _noise(5, 7, 1)
    want = np.repeat(pixels[..., None], 3, axis=2)
    np.testing.assert_array_equal(_rgb(_encode(Image.fromarray(pixels))), want)


def test_bilevel():
    pixels = _noise(5, 7, 1) > 127
    want = np.repeat(pixels[..., None], 3, axis=2) * 255
    np.testing.assert_array_equal(_rgb(_encode(Image.fromarray(pixels))), want)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_dropped(channels):
    pixels = _noise(5, 7, channels)
    want = np.repeat(pixels[..., :1], 3, axis=2) if channels == 2 else pixels[..., :3]
    np.testing.assert_array_equal(_rgb(_encode(Image.fromarray(pixels))), want)


def test_palette_with_transparency_gives_its_colours_without_a_warning():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    encoded = _encode(image, transparency=bytes([0, 128]))
    np.testing.assert_array_equal(_rgb(encoded), [[[10, 20, 30], [200, 100, 50]]])


def test_cmyk_jpeg():
    colours = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)
    encoded = _encode(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=100)
    np.testing.assert_allclose(_rgb(encoded).astype(int), colours, atol=3)


def test_16_bit_grayscale_is_scaled_not_clipped():
    wide = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    want = np.repeat(np.array([[0, 0, 1, 128, 255]], np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(_rgb(_encode(Image.fromarray(wide))), want)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels = _noise(4, 9)
    encoded = _encode(Image.fromarray(pixels), exif=exif)
    assert Image.open(io.BytesIO(encoded)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(_rgb(encoded), pixels)


# Which side of the upright image the stored row 0 is, and which side the stored column 0, as the
# EXIF standard says of each orientation.
EXIF_SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("orientation", EXIF_SIDES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_upright_as_the_exif_orientation_says(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = _noise(3, 5)
    image = transforms.decode(_encode(Image.fromarray(pixels), kind, exif=exif), upright=True)
    upright = {}
    for (row, column), colour in zip(np.ndindex(3, 5), pixels.reshape(-1, 3), strict=True):
        place = {}
        for side, near, far in zip(
            EXIF_SIDES[orientation], (row, column), (2 - row, 4 - column), strict=True
        ):
            axis = "y" if side in ("top", "bottom") else "x"
            place[axis] = near if side in ("top", "left") else far
        upright[place["y"], place["x"]] = colour
    got = np.asarray(image)
    assert got.shape == ((3, 5, 3) if orientation < 5 else (5, 3, 3))
    for (y, x), colour in upright.items():
        np.testing.assert_array_equal(got[y, x], colour)


def test_float_pixels_are_refused():
    image = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    with pytest.raises(Failure, match="float pixels have no defined range"):
        transforms.decode(_encode(image, "TIFF"))


DEEP = {
    "12 bits": (np.array([[0, 16, 2048, 4095]], np.uint16), "PNG", (0, 4095), [0, 1, 128, 255]),
    "16 bits": (np.array([[0, 256, 65535]], np.uint16), "TIFF", (0, 65535), [0, 1, 255]),
    "32 bits": (np.array([[0, 500_000, 10**6]], np.int32), "TIFF", (0, 10**6), [0, 127, 255]),
    "signed": (np.array([[-1000, 0, 3000]], np.int32), "TIFF", (-1000, 4095), [0, 50, 200]),
    "shares": (np.array([[0, 0.25, 0.5, 0.9]], np.float32), "TIFF", (0, 1), [0, 64, 128, 230]),
    "floats": (np.array([[-2, 0, 6]], np.float32), "TIFF", (-2, 6), [0, 64, 255]),
    "odd": (
        np.array([[np.nan, np.inf, 0.5, -np.inf]], np.float32),
        "TIFF",
        (0, 1),
        [0, 255, 128, 0],
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_the_range_of_deep_images_is_told_from_them(name):
    values, kind, value_range, gray = DEEP[name]
    encoded = _encode(Image.fromarray(values), kind)
    found = transforms.common_range([transforms.look(encoded)])
    assert found == value_range
    pixels = np.asarray(transforms.decode(encoded, value_range=found))
    np.testing.assert_array_equal(pixels[0], np.repeat(np.array(gray)[:, None], 3, axis=1))


def test_one_range_is_of_all_images_and_of_none_where_all_have_8_bits():
    looks = [
        transforms.look(_encode(Image.fromarray(np.full((2, 2), value, np.uint16))))
        for value in (100, 9000)
    ]
    assert transforms.common_range(looks) == (0, 2**14 - 1)
    shallow = transforms.look(_encode(Image.fromarray(_noise(3, 5))))
    assert shallow == transforms.Look(3, 5, 1)
    assert transforms.common_range([shallow, *looks]) == (0, 2**14 - 1)
    assert transforms.common_range([shallow]) is None


def test_an_image_without_any_finite_value_fails():
    encoded = _encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF")
    with pytest.raises(Failure, match="none of its pixels is a finite number"):
        transforms.look(encoded)


@pytest.mark.parametrize("orientation", EXIF_SIDES)
def test_boxes_are_turned_with_their_image(orientation):
    """Against the pixels: the box of what is painted."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((6, 9, 3), np.uint8)
    pixels[1:3, 2:7] = 255
    encoded = _encode(Image.fromarray(pixels), exif=exif)
    seen = transforms.look(encoded)
    upright = np.asarray(transforms.decode(encoded, upright=True))[..., 0]
    assert seen.size(True) == upright.shape and seen.size(False) == (6, 9)
    boxes = transforms.turn_boxes(np.array([[1, 2, 3, 7]], np.int32), seen)
    rows, columns = np.nonzero(upright)
    want = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    np.testing.assert_array_equal(boxes, [want])
    assert boxes.dtype == np.int32


@pytest.mark.parametrize("broken", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_not_an_image_fails(broken):
    with pytest.raises(Failure, match="cannot decode the image"):
        transforms.decode(broken)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncation_fails(kind):
    encoded = _encode(Image.fromarray(_noise(64, 64)), kind)
    transforms.decode(encoded)
    with pytest.raises(Failure, match="cannot decode the image"):
        transforms.decode(encoded[: len(encoded) // 2])


@pytest.mark.parametrize("times_limit", [1.5, 3])  # Pillow warns of the first, refuses the second
@pytest.mark.parametrize("warning", ["error", "ignore"])
def test_a_decompression_bomb_fails(monkeypatch, times_limit, warning):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    encoded = _encode(Image.new("RGB", (100, int(10 * times_limit))))
    with warnings.catch_warnings():
        warnings.simplefilter(warning)
        with pytest.raises(Failure, match="too large"):
            transforms.decode(encoded)


def _triangle_weights(size: int, new_size: int) -> np.ndarray:
    """[new_size, size] weights of the antialiased bilinear (triangle) filter."""
    scale = size / new_size
    support = max(scale, 1.0)
    weights = np.zeros((new_size, size))
    for out in range(new_size):
        centre = (out + 0.5) * scale
        for i in range(size):
            weights[out, i] = max(0.0, 1 - abs((i + 0.5 - centre) / support))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("height, width, size", [(40, 61, 16), (10, 7, 32), (50, 9, 24)])
def test_resize_is_the_antialiased_triangle_filter(height, width, size):
    pixels = _noise(height, width)
    rows, columns = _triangle_weights(height, size), _triangle_weights(width, size)
    want = np.einsum("yh,xw,hwc->yxc", rows, columns, pixels.astype(float))
    got = transforms.resize(Image.fromarray(pixels), size)
    assert got.dtype == np.uint8 and got.shape == (size, size, 3)
    # Pillow rounds to 8 bits after each of its two passes.
    np.testing.assert_allclose(got.astype(float), want, atol=1.01)


def test_resize_is_pillows_own():
    image = Image.fromarray(_noise(48, 80))
    want = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(transforms.resize(image, 32), want)


# What Pillow 11 and 12 make of `_noise(20, 9)`, 4 x 4 pixels.
PORTRAIT = """
    677688 929375 968094 819280
    767c78 727a80 836886 897186
    849987 75686c 747963 77626f
    7f86a6 5d8f70 6a7088 797787
"""


def test_portraits_are_resized_across_first_on_every_version_of_pillow():
    image = Image.fromarray(_noise(20, 9))
    want = np.frombuffer(bytes.fromhex(PORTRAIT), np.uint8).reshape(4, 4, 3)
    down = image.resize((9, 4), Image.Resampling.BILINEAR)
    assert (np.asarray(down.resize((4, 4), Image.Resampling.BILINEAR)) != want).any()
    np.testing.assert_array_equal(transforms.resize(image, 4), want)


@pytest.mark.parametrize("height, down_first", [(700, False), (701, True)])
def test_ribbons_are_resized_down_first_as_their_rows_could_fill_memory(height, down_first):
    image = Image.fromarray(_noise(height, 7))
    orders = [(7, 64), (64, height)]
    down, across = (
        np.asarray(
            image.resize(first, Image.Resampling.BILINEAR).resize(
                (64, 64), Image.Resampling.BILINEAR
            )
        )
        for first in orders
    )
    assert (down != across).any()
    np.testing.assert_array_equal(transforms.resize(image, 64), down if down_first else across)


def test_crop_rectangles_fit_and_have_the_asked_area_and_aspect():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        x, y, w, h = transforms._crop_rectangle(640, 480, rng, (0.25, 1.0), (3 / 4, 4 / 3))
        assert x >= 0 and x + w <= 640 and y >= 0 and y + h <= 480
        assert 0.74 < w / h < 1.35
        shares.append(w * h / (640 * 480))
    assert min(shares) == pytest.approx(0.25, abs=0.01) and 0.97 < max(shares) <= 1
    # Uniform, but for the large ones of a wrong aspect that do not fit: half are below 0.6 or so.
    assert 0.5 < np.median(shares) < 0.625


def test_the_aspect_of_crops_is_log_uniform():
    """Of the width to the height: as often a half to 1 as 1 to 2."""
    rng = np.random.default_rng(0)
    logs = []
    for _ in range(2000):
        _, _, w, h = transforms._crop_rectangle(4000, 4000, rng, (0.05, 0.05), (1 / 8, 2))
        logs.append(np.log2(w / h))
    quantiles = np.quantile(logs, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-3, -2, -1, 0, 1], atol=0.1)


def test_crops_lie_anywhere_in_the_image_equally_often():
    """Crops of 2x2 in an image of 5x4, its last row and column included."""
    rng = np.random.default_rng(0)
    found = Counter(transforms._crop_rectangle(5, 4, rng, (0.2, 0.2), (1, 1)) for _ in range(2400))
    assert set(found) == {(x, y, 2, 2) for x in range(4) for y in range(3)}
    assert min(found.values()) > 150 and max(found.values()) < 250


def test_where_no_crop_fits_the_largest_central_one_is_taken():
    rng = np.random.default_rng(0)
    rectangle = transforms._crop_rectangle(1000, 90, rng, (1.0, 1.0), (3 / 4, 4 / 3))
    assert rectangle == (440, 0, 120, 90)
    rectangle = transforms._crop_rectangle(90, 1000, rng, (1.0, 1.0), (3 / 4, 4 / 3))
    assert rectangle == (0, 440, 90, 120)


def test_random_resized_crop_sees_nothing_outside_its_rectangle():
    pixels = _noise(60, 90)
    x, y, w, h = transforms._crop_rectangle(90, 60, np.random.default_rng(5), (0.2, 0.3), (1, 1))
    outside = np.ones((60, 90), bool)
    outside[y : y + h, x : x + w] = False
    changed = np.where(outside[..., None], 255 - pixels, pixels)
    crops = [
        transforms.random_resized_crop(
            Image.fromarray(p), 32, np.random.default_rng(5), (0.2, 0.3), (1, 1)
        )
        for p in (pixels, changed)
    ]
    np.testing.assert_array_equal(*crops)
    want = transforms.resize(Image.fromarray(pixels[y : y + h, x : x + w]), 32)
    np.testing.assert_array_equal(crops[0], want)


def test_a_crop_of_everything_is_a_resize():
    image = Image.fromarray(_noise(30, 40))
    everything = dict(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    crop = transforms.random_resized_crop(image, 16, np.random.default_rng(0), **everything)
    np.testing.assert_array_equal(crop, transforms.resize(image, 16))


def _released_multi_scale(width: int, height: int, size: int) -> list[tuple[int, int, int, int]]:
    """Every (left, top, right, bottom), told from the specification and counted by hand."""
    base, boxes = min(width, height), []
    scales = [1, 0.9, 0.8, 0.7, 0.6]
    for i in range(5):
        for j in range(max(0, i - 2), min(5, i + 3)):
            h, w = int(base * scales[i]), int(base * scales[j])
            h, w = (size if side in range(size - 2, size + 3) else side for side in (h, w))
            dy, dx = (height - h) // 4, (width - w) // 4
            anchors = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2)]  # corners and centre
            anchors += [(0, 2), (4, 2), (2, 0), (2, 4)]  # middles of the edges
            anchors += [(1, 1), (3, 1), (1, 3), (3, 3)]  # quarter points
            boxes += [(x * dx, y * dy, x * dx + w, y * dy + h) for x, y in anchors]
    return boxes


@pytest.mark.parametrize("size", [46, 63, 69])  # near 0.7 of the side, at 0.9, and beyond the image
def test_multi_scale_crops_are_the_released_247_equally_often(size, monkeypatch):
    width, height = 91, 67
    seen = []
    image = Image.fromarray(_noise(height, width))
    whole = image.crop
    monkeypatch.setattr(image, "crop", lambda box: seen.append(box) or whole(box))
    rng = np.random.default_rng(0)
    for _ in range(6000):
        transforms.multi_scale_crop(image, size, rng)
    boxes = _released_multi_scale(width, height, size)
    assert len(boxes) == 19 * 13
    expected = Counter(boxes)
    assert set(seen) == set(expected)
    rates = np.array([Counter(seen)[box] / n for box, n in expected.items()])
    assert rates.min() / (6000 / 247) > 0.3 and rates.max() / (6000 / 247) < 2.0


def test_a_multi_scale_crop_is_cut_then_resized_and_black_beyond_the_image():
    pixels = np.full((30, 40, 3), 200, np.uint8)
    crops = [
        transforms.multi_scale_crop(Image.fromarray(pixels), 32, np.random.default_rng(seed))
        for seed in range(60)
    ]
    assert all(crop.shape == (32, 32, 3) for crop in crops)
    # A side of 30 is within 3 px of 32 and becomes it: the image is not stretched, its edge is.
    assert any((crop == 0).any() for crop in crops)
    assert {int(value) for crop in crops for value in np.unique(crop)} <= {0, *range(201)}
