"""From class activation maps to regions, and from regions to crops (MCAR, TIP 2021).

Every shape is static and every image and class is a batch dimension, so that the whole path from
the global to the local stream stays on the device inside one jit. Everything here is float32 (or
float64): a region's edge jumps by pixels for a small error of the map beneath it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64, Int32, Int64

from mlic_jax.models.arrays import Float32Or64
from mlic_jax.models.precision import at_least_float32

HIGHEST = lax.Precision.HIGHEST

# Of every output along one axis: two source positions, and the weight of the second.
Taps = tuple[Int32[Array, "B N _"], Int32[Array, "B N _"], Float32Or64[Array, "B N _"]]


def class_regions(
    maps: Float32Or64[Array, "*batch h w"],
    image_size: tuple[int, int],
    threshold: float,
    localizer: str,
) -> Int32[Array, "*batch 4"]:
    """The region that each map points at.

    Args:
        maps: class activation scores.
        image_size: (H, W) of the grid that the regions are found on.
        threshold: where a normalised profile is cut, in (0, 1).
        localizer: a key of `LOCALIZERS`.

    Returns:
        y1, x1, y2, x2 in pixels, upper bounds exclusive.
    """
    find_interval = LOCALIZERS[localizer]
    row_profile, column_profile = profiles(maps, image_size)
    y1, y2 = find_interval(normalise_profile(row_profile), threshold)
    x1, x2 = find_interval(normalise_profile(column_profile), threshold)
    return jnp.stack([y1, x1, y2, x2], axis=-1)


def regions_of_likeliest(
    class_maps: Float32Or64[Array, "B h w C"],
    logits: Float32Or64[Array, "B C"],
    image_size: tuple[int, int],
    top_n: int,
    threshold: float,
    localizer: str,
) -> tuple[
    Int32[Array, "B {top_n} 4"], Int32[Array, "B {top_n}"], Float32Or64[Array, "B {top_n} h w"]
]:
    """The regions of the classes with the highest logits, the highest first.

    Arguments are as of `class_regions`.

    Returns:
        The boxes, their classes, and the maps that they were found on.
    """
    _, classes = lax.top_k(logits, top_n)
    maps = jnp.moveaxis(class_maps, -1, 1)
    maps = jnp.take_along_axis(maps, classes[:, :, None, None], axis=1)
    return class_regions(maps, image_size, threshold, localizer), classes, maps


def profiles(
    maps: Float32Or64[Array, "*batch h w"], image_size: tuple[int, int]
) -> tuple[
    Float32Or64[Array, "*batch {image_size[0]}"], Float32Or64[Array, "*batch {image_size[1]}"]
]:
    """Maxima over the columns, and over the rows, of maps upsampled with align_corners=True.

    The fine maps are never built. Along one axis an upsampled map is linear between the coarse
    positions, so that its maximum over that axis is at a fine position beside one of them: those
    few are all that is evaluated.

    Args:
        image_size: (H, W) of the fine grid.

    Returns:
        The row profile and the column profile.
    """
    (height, width), (h, w) = image_size, maps.shape[-2:]
    rows, columns = interpolation_matrix(h, height), interpolation_matrix(w, width)
    few_rows, few_columns = rows[knots(h, height)], columns[knots(w, width)]
    row_profile = jnp.max(_interpolate(maps, rows, few_columns), axis=-1)
    column_profile = jnp.max(_interpolate(maps, few_rows, columns), axis=-2)
    return row_profile, column_profile


def interpolation_matrix(coarse: int, fine: int) -> Float64[np.ndarray, "{fine} {coarse}"]:
    """Bilinear upsampling of one axis with align_corners=True."""
    position = np.arange(fine) * ((coarse - 1) / max(fine - 1, 1))
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(coarse)))


def knots(coarse: int, fine: int) -> Int64[np.ndarray, " knots"]:
    """The fine positions on or beside a coarse one, ascending."""
    position = np.arange(coarse) * ((fine - 1) / max(coarse - 1, 1))
    # A position meant to be whole may miss it by a rounding: take the neighbours of both sides.
    beside = np.concatenate([np.floor(position - 1e-6), np.ceil(position + 1e-6)])
    return np.unique(np.clip(beside, 0, fine - 1).astype(np.int64))


def _interpolate(maps: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    rows, columns = (matrix.astype(maps.dtype) for matrix in (rows, columns))
    return jnp.einsum("ih,...hw,jw->...ij", rows, maps, columns, precision=HIGHEST)


def normalise_profile(profile: Float32Or64[Array, "*batch L"]) -> Float32Or64[Array, "*batch L"]:
    """Min-max normalises to [0, 1]; a constant profile is divided by its maximum."""
    low = jnp.min(profile, axis=-1, keepdims=True)
    high = jnp.max(profile, axis=-1, keepdims=True)
    constant = high == low
    return jnp.where(
        constant, profile / high, (profile - low) / jnp.where(constant, 1.0, high - low)
    )


def exact_interval(
    profile: Float32Or64[Array, "*batch L"], threshold: float
) -> tuple[Int32[Array, "*batch"], Int32[Array, "*batch"]]:
    """The interval of a profile as the released system finds it, its oddities included.

    The profile is cut where it strictly crosses the threshold. Of the pieces that hold its maximum
    the longest wins; if it is no longer than m = ceil(L / 8) it is widened to about m.

    Args:
        threshold: the level of the crossings.

    Returns:
        (start, end), end exclusive, 0 <= start < end <= L.
    """
    length = profile.shape[-1]
    index = lax.broadcasted_iota(jnp.int32, profile.shape, profile.ndim - 1)
    sign = jnp.sign(profile - threshold).astype(jnp.int32)
    # Position i begins a new piece where s[i] and s[i + 1] lie on opposite sides.
    crossing = jnp.concatenate(
        [sign[..., :-1] * sign[..., 1:] == -1, jnp.zeros_like(sign[..., :1], bool)], axis=-1
    )
    axis = profile.ndim - 1
    piece_start = lax.cummax(jnp.where(crossing, index, 0), axis=axis)
    # The first crossing *after* a position ends its piece.
    following = jnp.where(crossing[..., 1:], index[..., 1:], length)
    following = jnp.concatenate([following, jnp.full_like(index[..., :1], length)], axis=-1)
    piece_end = lax.cummin(following, axis=axis, reverse=True)

    # Among pieces with equal peaks the longest; among those the head, the tail, then from the left.
    is_head = (piece_start == 0) & ~crossing[..., :1]
    order = jnp.where(is_head, length + 2, jnp.where(piece_end == length, length + 1, 0))
    order = jnp.maximum(order, length - piece_start)
    rank = (piece_end - piece_start) * (length + 3) + order
    holds_peak = profile == jnp.max(profile, axis=-1, keepdims=True)
    best = jnp.argmax(jnp.where(holds_peak, rank, -1), axis=-1, keepdims=True)
    start = jnp.take_along_axis(piece_start, best, axis=-1)[..., 0]
    end = jnp.take_along_axis(piece_end, best, axis=-1)[..., 0]

    start, end = _widen_as_released(start, end, length)
    uncut = ~jnp.any(crossing, axis=-1)
    return (
        jnp.where(uncut, -(-length // 8), start),
        jnp.where(uncut, -(-7 * length // 8), end),
    )


def _widen_as_released(start: Array, end: Array, length: int) -> tuple[Array, Array]:
    """Widens intervals of at most m = ceil(L / 8); each rule sees the result of the one before."""
    shortest = -(-length // 8)
    pad = shortest - (end - start)
    half = (pad + 1) // 2
    short = pad >= 0

    both_sides = short & (start > half) & (length - end > pad)
    start, end = (
        jnp.where(both_sides, start - half + 1, start),
        jnp.where(both_sides, end + half, end),
    )
    at_left = short & (start < half)
    start, end = jnp.where(at_left, 0, start), jnp.where(at_left, shortest, end)
    at_right = short & (length - end < half)
    start = jnp.where(at_right, length - shortest + 1, start)
    return start, jnp.where(at_right, length, end)


def clean_interval(
    profile: Float32Or64[Array, "*batch L"], threshold: float
) -> tuple[Int32[Array, "*batch"], Int32[Array, "*batch"]]:
    """The run of pixels at or above the threshold that holds the (first) peak.

    A run shorter than m = ceil(L / 8) is padded symmetrically to m and moved inside the profile.
    Arguments and results as for `exact_interval`.
    """
    length = profile.shape[-1]
    shortest = -(-length // 8)
    index = lax.broadcasted_iota(jnp.int32, profile.shape, profile.ndim - 1)
    peak = jnp.argmax(profile, axis=-1, keepdims=True).astype(jnp.int32)
    below = profile < threshold
    start = jnp.max(jnp.where(below & (index < peak), index + 1, 0), axis=-1)
    end = jnp.min(jnp.where(below & (index > peak), index, length), axis=-1)
    missing = jnp.maximum(shortest - (end - start), 0)
    start = jnp.clip(start - missing // 2, 0, length - (end - start + missing))
    return start, jnp.maximum(end, start + shortest)


Interval = tuple[Int32[Array, "*batch"], Int32[Array, "*batch"]]
LOCALIZERS: dict[str, Callable[[Float32Or64[Array, "*batch L"], float], Interval]] = {
    "exact": exact_interval,
    "clean": clean_interval,
}


def round_outwards(boxes: Int32[Array, "*N 4"], grid: int) -> Int32[Array, "*N 4"]:
    """The least boxes around boxes (y1, x1, y2, x2) that end on multiples of `grid`."""
    return jnp.concatenate([boxes[..., :2] // grid, -(-boxes[..., 2:] // grid)], axis=-1) * grid


def crop_and_resize(
    images: Float[Array, "B H W F"], boxes: Int32[Array, "B N 4"], size: int = 0
) -> Float[Array, "B N h w F"]:
    """Cuts regions out and resizes each to one size, bilinear with align_corners=True.

    Args:
        boxes: (y1, x1, y2, x2), upper bounds exclusive, inside the image.
        size: pixels of a side of the result; 0: as large as the image.

    Returns:
        Of the dtype of `images`.
    """
    cpu, default = (partial(f, size=size) for f in (crops_by_gathering, crops_by_products))
    return lax.platform_dependent(images, boxes, cpu=cpu, default=default)


def crops_by_gathering(
    images: Float[Array, "B H W F"], boxes: Int32[Array, "B N 4"], size: int = 0
) -> Float[Array, "B N h w F"]:
    """`crop_and_resize` by four gathered taps, on a CPU several times faster than products."""
    (top, bottom, down), (left, right, across) = _taps_of(boxes, images, size)
    down, across = (weight.astype(images.dtype) for weight in (down, across))
    down, across = down[..., :, None, None], across[..., None, :, None]

    @jax.vmap
    def gather(image: Array, rows: Array, columns: Array) -> Array:
        return image[rows[:, :, None], columns[:, None, :]]

    upper = gather(images, top, left) * (1 - across) + gather(images, top, right) * across
    lower = gather(images, bottom, left) * (1 - across) + gather(images, bottom, right) * across
    return upper * (1 - down) + lower * down


def crops_by_products(
    images: Float[Array, "B H W F"], boxes: Int32[Array, "B N 4"], size: int = 0
) -> Float[Array, "B N h w F"]:
    """`crop_and_resize` by a product along either axis, which accelerators are made for.

    Of whole pixels (weights 0 and 1) it gives the very values, as the gathered taps do.
    """
    rows, columns = _taps_of(boxes, images, size)
    down, across = _weights(*rows, images.shape[1]), _weights(*columns, images.shape[2])
    pixels = at_least_float32(images)
    by_rows = jnp.einsum("bnlh,bhwf->bnlwf", down, pixels, precision=HIGHEST)
    crops = jnp.einsum("bnmw,bnlwf->bnlmf", across, by_rows, precision=HIGHEST)
    return crops.astype(images.dtype)


def _weights(
    first: Array, second: Array, weight: Array, size: int
) -> Float32Or64[Array, "B N L {size}"]:
    """How much of every source position an output takes, from its `_taps`."""
    position = jnp.arange(size, dtype=jnp.int32)[None, None, None]
    first, second, weight = (x[..., None] for x in (first, second, weight))
    return jnp.where(position == first, 1 - weight, 0) + jnp.where(position == second, weight, 0)


def _taps_of(boxes: Array, images: Array, size: int) -> tuple[Taps, Taps]:
    """Of the rows and of the columns of all crops, with weights in float32 at least."""
    height, width = (size, size) if size else images.shape[1:3]
    y1, x1, y2, x2 = jnp.moveaxis(boxes, -1, 0)
    dtype = np.promote_types(images.dtype, np.float32)
    return _taps(y1, y2, height, dtype), _taps(x1, x2, width, dtype)


def _taps(start: Int32[Array, "B N"], end: Int32[Array, "B N"], size: int, dtype: Any) -> Taps:
    """Of intervals made `size` long, with weights of that dtype."""
    last = (end - start - 1)[..., None]
    # Whole-number arithmetic: exact where a product of floats would put a corner one tap off.
    scaled = jnp.arange(size, dtype=jnp.int32)[None, None] * last
    steps = max(size - 1, 1)
    before = jnp.minimum(scaled // steps, last)
    weight = (scaled - before * steps).astype(dtype) / steps
    return start[..., None] + before, start[..., None] + jnp.minimum(before + 1, last), weight
