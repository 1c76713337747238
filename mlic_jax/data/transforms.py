"""Image geometry on the host: encoded bytes -> RGB -> the uint8 square that goes to the device.

Pixels are those of Pillow's full decode and antialiased filter, by default the bilinear one as in
the originals, of whatever version it is (see `resized`).
JPEG draft mode (decoding at a reduced scale) is faster but gives other pixels: it is not used.
"""

import importlib.metadata
import io
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import PIL
from PIL import ExifTags, Image, UnidentifiedImageError, features

from mlic_jax.data.image_files import READS_HEIC, lacks_heic
from mlic_jax.errors import Failure, reason

# What `multi_scale_crop` chooses from: 19 pairs of scales, of the height and of the width, at most
# two steps apart; and 13 anchors (y, x) in quarters of the free space: corners, centre, middles of
# the edges and the four points half-way to the corners.
CROP_SCALES = (1.0, 0.9, 0.8, 0.7, 0.6)
SCALE_PAIRS = tuple(
    (CROP_SCALES[i], CROP_SCALES[j])
    for i, j in itertools.product(range(5), repeat=2)
    if abs(i - j) <= 2
)
ANCHORS = (*itertools.product((0, 2, 4), repeat=2), *itertools.product((1, 3), repeat=2))

# What is between pixels, as Pillow and timm call it. Each averages where a photo is shrunk.
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}

# What undoes each EXIF orientation, for pixels; and for boxes: whether y, x run the other way, and
# whether they are then exchanged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BOX_TURNS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}

Range = tuple[float, float]  # the values that are black and white
Result = TypeVar("Result")
_SIXTEEN_BITS: Range = (0, 65535)
_DEPTHS = (8, 10, 12, 14, 16)  # bits of whole numbers, as cameras and scanners have them


class Look(NamedTuple):
    """What the pixels of an image say of themselves, as they are stored."""

    height: int
    width: int
    orientation: int  # of EXIF, 1 to 8
    extent: Range | None = None  # the least and the greatest value; None: of 8 bits
    whole: bool = True  # whether these are whole numbers

    def size(self, upright: bool) -> tuple[int, int]:
        """(height, width), of the stored pixels or of the upright ones."""
        stored = self.height, self.width
        return stored[::-1] if upright and self.orientation >= 5 else stored

    def turned_back(self) -> "Look":
        """Of the upright image, as if it were stored so and to be turned to what is stored."""
        height, width = self.size(True)
        back = {6: 8, 8: 6}.get(self.orientation, self.orientation)
        return self._replace(height=height, width=width, orientation=back)


def decode(encoded: bytes, upright: bool = False, value_range: Range | None = None) -> Image.Image:
    """Decodes an image of any common format to 8-bit RGB, every pixel of it.

    Grayscale is repeated, CMYK converted, transparency dropped (the colours under it stay), and
    what is deeper than 8 bits scaled to them.

    Args:
        encoded: the bytes of a file.
        upright: turn the image as its EXIF orientation says, which the originals ignore. (That of
            a TIFF is always followed, for Pillow does so itself.)
        value_range: what is black and what white of deep grayscale, those of more than 8 bits;
            None: 0 and 65535 of 16 bits, and those of 32 are refused.

    Raises:
        Failure: not an image, cut short, larger than Pillow's limit on pixels, or of 32 bits
            without a range.
    """
    return opened(encoded, lambda image: to_rgb(image, upright, value_range))


def look(encoded: bytes) -> Look:
    """Decodes an image to see that it can be, and what it is.

    Raises:
        Failure: see `decode`; of 32-bit pixels none is finite.
    """

    return opened(encoded, _look)


def _look(image: Image.Image) -> Look:
    image.load()  # before the orientation is read, see `to_rgb`
    turned = orientation(image)
    if not _is_deep(image):
        to_rgb(image)
        return Look(image.height, image.width, turned)
    values = np.asarray(image)
    values = values[np.isfinite(values)]
    if not values.size:
        raise Failure("cannot decode the image: none of its pixels is a finite number")
    extent = float(values.min()), float(values.max())
    return Look(image.height, image.width, turned, extent, image.mode != "F")


def opened(encoded: bytes, use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of the image that Pillow finds in the bytes of a file.

    Raises:
        Failure: see `decode`, whatever Pillow and `use` raise.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            most = Image.MAX_IMAGE_PIXELS  # which a program may set to None
            if most is not None and image.width * image.height > most:
                raise _too_large(f"{image.width}x{image.height} pixels")
            return use(image)
    except Failure:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(str(error)) from None
    except Exception as error:  # broken files reach Pillow's plugins, which raise nearly anything
        why = reason(error)
        if isinstance(error, UnidentifiedImageError):  # it names an object of ours
            why = "not of a format that Pillow reads"
        if lacks_heic(encoded):
            why = "HEIC, which needs pillow-heif: pip install 'mlic_jax[heic]'"
        raise Failure(f"cannot decode the image ({len(encoded)} bytes): {why}") from None


def common_range(looks: Iterable[Look]) -> Range | None:
    """The range of the deep images of a set, told from all of them; None where there are none.

    Black is 0, or the least value where there are negative ones. White is the greatest value that a
    usual depth (8, 10, 12, 14 or 16 bits) has, 1 of floats that do not exceed it, and else the
    greatest value that there is.
    """
    deep = [(*look.extent, look.whole) for look in looks if look.extent is not None]
    if not deep:
        return None
    least = min(low for low, _, _ in deep)
    greatest = max(high for _, high, _ in deep)
    usual = [2.0**bits - 1 for bits in _DEPTHS] if all(whole for _, _, whole in deep) else [1.0]
    return min(least, 0.0), next((white for white in usual if greatest <= white), greatest)


def range_of(image: Image.Image) -> Range | None:
    """The range of one image, told from it alone as `common_range` does; None: it has 8 bits.

    Raises:
        Failure: none of its pixels is finite.
        Others: Pillow's, where it is not loaded yet and cannot be.
    """
    return common_range([_look(image)]) if _is_deep(image) else None


def turn_boxes(boxes: np.ndarray, look: Look) -> np.ndarray:
    """Boxes [K, 4] (y1, x1, y2, x2; uppers exclusive) of the stored pixels in the upright image."""
    flip_y, flip_x, exchange = _BOX_TURNS.get(look.orientation, (False, False, False))
    y1, x1, y2, x2 = boxes.T
    if flip_y:
        y1, y2 = look.height - y2, look.height - y1
    if flip_x:
        x1, x2 = look.width - x2, look.width - x1
    turned = (x1, y1, x2, y2) if exchange else (y1, x1, y2, x2)
    return np.stack(turned, axis=1).astype(boxes.dtype)


def resize(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """Squashes an RGB image to uint8 [size, size, 3]; the aspect is not kept. See `resized`."""
    return np.array(resized(image, size, size, interpolation))


def resized(
    image: Image.Image, height: int, width: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """An RGB image in another size, antialiased.

    First across, then down, with 8 bits between, as every Pillow before 13 does it. Left to itself
    13 takes most portraits the other way, where one value in six comes out different by 1. What is
    more than a hundred times as tall as wide is shrunk down first, as since 12.2: across first, it
    would take memory in proportion to its height.
    """
    is_ribbon = image.height > max(100 * image.width, height)
    between = (image.width, height) if is_ribbon else (width, image.height)
    halfway = image.resize(between, FILTERS[interpolation])
    return halfway.resize((width, height), FILTERS[interpolation])


def versions() -> tuple[str, ...]:
    """What `decode` and `resized` work with: with the same of it a photo has the same pixels."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    heic = importlib.metadata.version("pillow-heif") if READS_HEIC else None
    return f"Pillow {PIL.__version__}", f"JPEG {jpeg}", f"HEIC {heic}", "across, then down"


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.25, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Crops a random rectangle and resizes it to uint8 [size, size, 3].

    The rule of torchvision's RandomResizedCrop: the share of the area is uniform in `scale`, the
    aspect ratio (width / height) log-uniform in `ratio`; after ten rectangles that do not fit, the
    largest central one with an aspect ratio in range. The crop is cut out before it is resized, so
    no pixel outside it has any influence (Pillow's `resize(box=...)` lets the filter see beyond).
    """
    x, y, width, height = _crop_rectangle(image.width, image.height, rng, scale, ratio)
    return resize(image.crop((x, y, x + width, y + height)), size, interpolation)


def multi_scale_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Crops one of 19 shapes at one of 13 anchors and resizes it to uint8 [size, size, 3] (MSRN).

    The sides are shares of the image's short side, drawn by `SCALE_PAIRS`, then one of `ANCHORS`,
    both uniformly. A side that is less than 3 px from `size` becomes `size`, for which nothing is
    interpolated; where that is beyond the image, what is missing is black.
    """
    height_scale, width_scale = SCALE_PAIRS[rng.integers(len(SCALE_PAIRS))]
    short = min(image.width, image.height)
    height, width = (
        size if abs(side - size) < 3 else side
        for side in (max(1, int(short * height_scale)), max(1, int(short * width_scale)))
    )
    quarters_y, quarters_x = ANCHORS[rng.integers(len(ANCHORS))]
    y = quarters_y * ((image.height - height) // 4)
    x = quarters_x * ((image.width - width) // 4)
    return resize(image.crop((x, y, x + width, y + height)), size, interpolation)


def _crop_rectangle(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """The (x, y, width, height) that `random_resized_crop` cuts out of a width x height image."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(x), int(y), w, h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def to_rgb(
    image: Image.Image, upright: bool = False, value_range: Range | None = None
) -> Image.Image:
    """Converts an opened image as `decode` does.

    Raises:
        Failure: its pixels have no defined range.
        Others: Pillow's, where it is not loaded yet and cannot be.
    """
    image.load()  # before the orientation is read: that of a TIFF is gone after it was followed
    turn = _TURNS.get(orientation(image)) if upright else None
    if _is_deep(image):
        image = Image.fromarray(_to_8_bits(image, value_range))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _to_8_bits(image: Image.Image, value_range: Range | None) -> np.ndarray:
    """Deep grayscale as uint8 [H, W]; Pillow's conversion would clip all that is above 255."""
    if value_range is None:
        if image.mode in ("I", "F"):
            kind = {"I": "32-bit", "F": "float"}[image.mode]
            raise Failure(
                f"cannot decode the image: {kind} pixels have no defined range; a set that holds "
                "such images has one, and so have the models that are trained on it"
            )
        value_range = _SIXTEEN_BITS
    black, white = value_range
    step = white - black + (image.mode != "F")  # whole numbers: each is as wide as the others
    shares = (np.asarray(image).astype(np.float64) - black) / step
    # What is no number is black.
    return np.clip(np.nan_to_num(256 * shares, posinf=255), 0, 255).astype(np.uint8)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none; 2 to 8 say how it is turned."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged tag, of which Pillow raises nearly anything, turns nothing
        return 1


def _too_large(detail: str) -> Failure:
    return Failure(
        f"the image is too large to decode safely ({detail}; the limit is "
        f"{Image.MAX_IMAGE_PIXELS} pixels): shrink it"
    )
