"""What a photo may be given as, and reading each: from a file, an address, bytes or pixels."""

import glob
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mlic_jax.data import transforms
from mlic_jax.data.image_files import printable, read_image_file
from mlic_jax.errors import Failure, UsageError, reason

Source = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray | jax.Array

MOST_FETCHED = 50 * 2**20  # bytes of what lies at an address
PATIENCE = 30.0  # seconds, for an answer and for all of it
UPRIGHT = partial(transforms.to_rgb, upright=True)

_ADDRESS = re.compile(r"([a-z][a-z\d+.-]*)://", re.IGNORECASE)
_BYTES = (bytes, bytearray, memoryview)


def is_one(images: Any) -> bool:
    """Whether this is a photo by itself and no row of them; so is an array of 2 or 3 axes."""
    if isinstance(images, (str, os.PathLike, Image.Image, *_BYTES)) or hasattr(images, "read"):
        return True
    return len(getattr(images, "shape", ())) in (2, 3)


def each_photo(images: Source | Iterable[Source]) -> Iterable[Source]:
    """The photos of what is given: one by itself, the rows of `[B, H, W, C]`, or as they come.

    Raises:
        UsageError: it is neither a photo nor a row of them.
    """
    given: Any = images  # told by what it can do, and not by its type
    if is_one(given):
        return [given]
    if getattr(given, "shape", ()):
        return np.asarray(given)
    if not isinstance(given, Iterable):
        raise _no_photo(given)
    return given


def name_of(source: Source) -> str:
    """The path or the address of a photo, `printable`; empty where it has none."""
    name: Any = source
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "")
    elif hasattr(source, "read"):
        name = getattr(source, "name", "")
    return printable(name) if isinstance(name, (str, os.PathLike)) else ""


def read_photo(
    source: Source, to_rgb: Callable[[Image.Image], Image.Image] = UPRIGHT
) -> Image.Image:
    """A photo as a model is to see it: RGB, turned as its EXIF orientation says.

    Args:
        source: a path; an address that begins with http:// or https://; the bytes of a file, or
            one that is open for reading bytes; a PIL image; or an array, see `from_array`.
        to_rgb: what makes that of an opened image, as `transforms.to_rgb` does.

    Raises:
        UsageError: it is something else.
        Failure, OSError: it cannot be read.
        Others: of a PIL image that is not loaded yet and of files of others, nearly anything.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str) and _ADDRESS.match(source):
        encoded = fetch(source)
    elif isinstance(source, (str, os.PathLike)):
        encoded = _read_file(source)
    else:
        given: Any = source  # told by what it can do, and not by its type
        if hasattr(given, "shape") and not isinstance(given, _BYTES):
            return to_rgb(from_array(given))
        encoded = given.read() if hasattr(given, "read") else given
        if not isinstance(encoded, _BYTES):
            raise _no_photo(source)
    return transforms.opened(bytes(encoded), to_rgb)


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        return read_image_file(path)
    except FileNotFoundError:
        if not glob.has_magic(pattern := os.fsdecode(path)):
            raise
        raise Failure(f"no such file; of a pattern give glob.glob({pattern!r})") from None


def from_array(array: np.ndarray | jax.Array) -> Image.Image:
    """An image of uint8, or of floats in [0, 1]; grey of uint16 is one of more than 8 bits.

    Args:
        array: `[H, W]` or `[H, W, 1]` of grey, `[H, W, 3]` of RGB, or `[H, W, 4]` of RGBA, whose
            transparency is dropped.

    Raises:
        UsageError: an array of another shape, type or range.
    """
    pixels = np.asarray(array)
    of_colours = pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4)
    if not pixels.size or not (pixels.ndim == 2 or of_colours):
        first = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
        raise UsageError(
            f"an array of the shape {pixels.shape} is no photo; it must be (height, width, 3) of "
            "RGB, (height, width, 4) of RGBA or (height, width) of grey"
            + (": colours come last, as by .transpose(1, 2, 0)" if first else "")
        )
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if jnp.issubdtype(pixels.dtype, jnp.floating):
        pixels = _of_shares(pixels.astype(np.float32))
    elif pixels.dtype != np.uint8 and not (pixels.dtype == np.uint16 and pixels.ndim == 2):
        raise UsageError(
            f"an array of {pixels.dtype} is no photo; it must be of uint8, or of floats in [0, 1]"
        )
    return Image.fromarray(pixels)


def _of_shares(pixels: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] as uint8; what rounds to that is as good."""
    levels = np.round(255 * pixels)
    if not (levels.min() >= 0 and levels.max() <= 255):  # nor of what is no number
        raise UsageError(
            f"an array of floats from {pixels.min():g} to {pixels.max():g} is no photo; they must "
            "be in [0, 1], or give uint8"
        )
    return levels.astype(np.uint8)


def fetch(address: str) -> bytes:
    """What lies at an address of http or https, up to `MOST_FETCHED`, within about `PATIENCE`.

    Raises:
        Failure: there is no network, no such page, too much of it, or another kind of address.
    """
    scheme = _ADDRESS.match(address)
    if scheme is None or scheme[1].lower() not in ("http", "https"):
        raise Failure("not an address of http or https, nor a path of this machine")
    end = time.monotonic() + PATIENCE
    headers = {"User-Agent": "mlic_jax"}  # some refuse whoever says nothing
    content = bytearray()
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            while part := answer.read1(2**16):
                content += part
                if len(content) > MOST_FETCHED:
                    raise Failure(f"more than {MOST_FETCHED // 2**20} MB")
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete within {PATIENCE:g} s")
    except Exception as error:  # of the network, of HTTP, or of a crooked address
        cause = getattr(error, "reason", error)  # urllib wraps what the system says
        if isinstance(error, urllib.error.HTTPError):
            cause = f"{error.code} {cause}"
        why = reason(cause) if isinstance(cause, Exception) else cause
        raise Failure(f"cannot be fetched: {why}") from error
    return bytes(content)


def _no_photo(given: Any) -> UsageError:
    return UsageError(
        f"{type(given).__name__} is no photo; it must be a path, an address, a PIL image, an "
        "array, bytes, or a file open for reading bytes"
    )
