"""RandAugment and Cutout on the device: what Pillow's operations do to a photo, in static shapes.

RandAugment (Cubuk et al. 2019, arXiv 1909.13719) does a few operations, drawn anew for each photo,
all at one magnitude. Of a batch every photo goes through the same program, so its operations are
three that take turns by what they are told: a table of 256 values for each channel (autocontrast,
equalize, posterize, solarize), a blend with another photo made of it (brightness, colour, contrast,
sharpness), and pixels taken from elsewhere (rotation, shears, translations). Whatever is not drawn
is told what changes nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

Photo = UInt8[Array, "H W 3"]
Scalar = Float[Array, ""]
Tables = UInt8[Array, "3 256"]

GREATEST = 30.0  # magnitude
# At the greatest magnitude, as in the paper: degrees, pixels across for each down, the share of the
# side (150 of 331 pixels), by how much a factor is other than 1, and bits that are left.
ROTATION, SHEAR, TRANSLATION, FACTOR, BITS = 30.0, 0.3, 150 / 331, 0.9, 4

TABLES = ("autocontrast", "equalize", "posterize", "solarize")
BLENDS = ("brightness", "colour", "contrast", "sharpness")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = ("identity", *TABLES, *BLENDS, *MOVES)


def rand_augment(image: Photo, key: jax.Array, count: int, magnitude: float) -> Photo:
    """`count` operations one after the other, each drawn from all of `OPERATIONS`.

    Args:
        magnitude: 0 to `GREATEST`; factors and directions of it are to either side at random.
    """

    def turn(image: Photo, number: Int[Array, ""]) -> tuple[Photo, None]:
        which_key, side_key = jax.random.split(jax.random.fold_in(key, number))
        which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
        side = jnp.where(jax.random.bernoulli(side_key), jnp.float32(1), jnp.float32(-1))
        return operate(image, which, side * magnitude), None

    return lax.scan(turn, image, jnp.arange(count, dtype=jnp.int32))[0]


def operate(image: Photo, which: Int[Array, ""], magnitude: Scalar) -> Photo:
    """One operation, by its number in `OPERATIONS`, at a magnitude of -`GREATEST` to `GREATEST`."""
    share = magnitude / GREATEST
    image = by_tables(image, which - OPERATIONS.index(TABLES[0]), jnp.abs(share))
    image = blend(image, which - OPERATIONS.index(BLENDS[0]), 1 + FACTOR * share)
    return move(image, which - OPERATIONS.index(MOVES[0]), share)


def by_tables(image: Photo, which: Int[Array, ""], share: Scalar) -> Photo:
    """Each value as a table of its channel says: the operation of `TABLES`, or none beyond."""
    values = jnp.arange(256, dtype=jnp.int32)
    # Of all channels in one row, where no index is out of bounds and none need be looked at.
    at = image.astype(jnp.int32) + jnp.arange(0, 768, 256, dtype=jnp.int32)[None, None]
    counts = jnp.zeros(768, jnp.int32).at[at].add(1, mode="promise_in_bounds").reshape(3, 256)
    step = jnp.left_shift(1, jnp.round(BITS * share).astype(jnp.int32))  # 8 bits less 0 to `BITS`
    solarized = jnp.where(values.astype(jnp.float32) < 255 * (1 - share), values, 255 - values)
    tables = (
        autocontrast_tables(counts),
        equalize_tables(counts),
        jnp.broadcast_to(values // step * step, (3, 256)),
        jnp.broadcast_to(solarized, (3, 256)),
    )
    chosen = _choose(which, tables, jnp.broadcast_to(values, (3, 256))).astype(jnp.uint8)
    return chosen.reshape(-1).at[at].get(mode="promise_in_bounds")


def autocontrast_tables(counts: Int[Array, "3 256"]) -> Int[Array, "3 256"]:
    """The darkest value of each channel becomes 0 and the brightest 255; of one value, none."""
    values = jnp.arange(256, dtype=jnp.int32)[None]
    there = counts > 0
    low = jnp.argmax(there, axis=1)[:, None].astype(jnp.int32)
    high = 255 - jnp.argmax(there[:, ::-1], axis=1)[:, None].astype(jnp.int32)
    stretched = (values - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), values)


def equalize_tables(counts: Int[Array, "3 256"]) -> Int[Array, "3 256"]:
    """Each channel has all values about as often, by the sums of its histogram."""
    values = jnp.arange(256, dtype=jnp.int32)[None]
    high = 255 - jnp.argmax((counts > 0)[:, ::-1], axis=1)
    last = jnp.take_along_axis(counts, high[:, None], axis=1)
    step = (jnp.sum(counts, axis=1, keepdims=True) - last) // 255
    before = jnp.cumsum(counts, axis=1) - counts
    equal = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, equal.astype(jnp.int32), values)


def blend(image: Photo, which: Int[Array, ""], factor: Scalar) -> Photo:
    """`factor` of the photo and 1 - `factor` of another: the operation of `BLENDS`, or none."""
    values = image.astype(jnp.int32)
    grey = grey_of(values)
    total = jnp.sum(grey.astype(jnp.uint32))
    mean = (2 * total + jnp.uint32(grey.size)) // jnp.uint32(2 * grey.size)  # to the nearest
    grey = jnp.broadcast_to(grey[..., None], values.shape)
    others = (
        jnp.zeros_like(values),
        grey,
        jnp.broadcast_to(mean.astype(jnp.int32), values.shape),
        smooth(values),
    )
    other = _choose(which, others, values).astype(jnp.float32)
    mixed = other + factor * (values.astype(jnp.float32) - other)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)  # cut, as Pillow does


def grey_of(values: Int[Array, "H W 3"]) -> Int[Array, "H W"]:
    """Luma, in Pillow's whole numbers."""
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def smooth(values: Int[Array, "H W 3"]) -> Int[Array, "H W 3"]:
    """Pillow's SMOOTH: thirteenths of the neighbours, five of the pixel; the edge stays."""
    rows = values[:-2] + values[1:-1] + values[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]
    return values.at[1:-1, 1:-1].set((2 * sums + 13) // 26)  # to the nearest; no thirteenth is half


def move(image: Photo, which: Int[Array, ""], share: Scalar) -> Photo:
    """Each pixel from elsewhere, the nearest, black from outside: the operation of `MOVES`."""
    height, width = image.shape[:2]
    source = sources(which, share, height, width)
    y, x = (jnp.floor(position).astype(jnp.int32) for position in source)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    moved = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[..., None], moved, jnp.uint8(0))


def sources(
    which: Int[Array, ""], share: Scalar, height: int, width: int
) -> tuple[Float[Array, "H W"], Float[Array, "H W"]]:
    """Where the centre of every pixel comes from, (y, x), as Pillow's affine transforms say."""
    zero, one = jnp.zeros_like(share), jnp.ones_like(share)
    angle = jnp.deg2rad(ROTATION * share)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    middle_y, middle_x = height / 2, width / 2
    turned = (  # around the middle: rows of x, then of y
        *(cos, -sin, middle_x - cos * middle_x + sin * middle_y),
        *(sin, cos, middle_y - sin * middle_x - cos * middle_y),
    )
    matrices = (
        jnp.stack(turned),
        jnp.stack([one, SHEAR * share, zero, zero, one, zero]),
        jnp.stack([one, zero, zero, SHEAR * share, one, zero]),
        jnp.stack([one, zero, jnp.round(TRANSLATION * width * share), zero, one, zero]),
        jnp.stack([one, zero, zero, zero, one, jnp.round(TRANSLATION * height * share)]),
    )
    unmoved = jnp.stack([one, zero, zero, zero, one, zero])
    a, b, c, d, e, f = _choose(which, matrices, unmoved)
    y = jnp.arange(height, dtype=share.dtype)[:, None] + 0.5
    x = jnp.arange(width, dtype=share.dtype)[None, :] + 0.5
    return d * x + e * y + f, a * x + b * y + c


def _choose(which: Int[Array, ""], among: tuple[Array, ...], beyond: Array) -> Array:
    """The one with this number; `beyond` where none has it."""
    for number, one in enumerate(among):
        beyond = jnp.where(which == number, one, beyond)
    return beyond


def cutout(image: Photo, key: jax.Array, share: float) -> Photo:
    """A square of one random colour around any pixel (DeVries and Taylor 2017, arXiv 1708.04552).

    As in the recipes that ASL began: what of it is outside is lost, and it is not black.

    Args:
        share: of the side of the image that is the square's, in [0, 1].
    """
    key_y, key_x, key_colour = jax.random.split(key, 3)
    colour = jax.random.randint(key_colour, (3,), 0, 256, dtype=jnp.int32).astype(jnp.uint8)

    def near(key: jax.Array, side: int) -> Array:
        """Which of the pixels along a side are in the square."""
        size = round(share * side)
        first = jax.random.randint(key, (), 0, side) - size // 2
        along = jnp.arange(side, dtype=jnp.int32)
        return (along >= first) & (along < first + size)

    height, width = image.shape[:2]
    inside = near(key_y, height)[:, None] & near(key_x, width)[None, :]
    return jnp.where(inside[..., None], colour, image)


def each(
    of_one: Callable[[Photo, jax.Array], Photo], images: UInt8[Array, "B H W 3"], key: jax.Array
) -> UInt8[Array, "B H W 3"]:
    """What a function of an image and a key makes of each of a batch."""
    return jax.vmap(of_one)(images, jax.random.split(key, images.shape[0]))
