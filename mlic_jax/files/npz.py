"""Named arrays in one `.npz`: written whole, read without running code or believing a size."""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.errors import Failure, reason
from mlic_jax.files.atomic import written_whole

# What the arrays of a file may take: 16 times its size, and 24 MB. Constant arrays are packed to a
# thousandth, and logits, which most of an honest file is, hardly at all.
_EXPANSION = 16
_ALLOWANCE = 24 * 2**20
_KINDS = "biufcSU"  # of NumPy's types: numbers and text, no objects and no records
_TYPES = {"float": "f", "integer": "iu", "boolean": "b", "text": "U"}
_LONGEST_EMPTY = 1_000_000  # axis of an array without bytes
_LONGEST_HEADER = 10_000  # of an array, in bytes; NumPy's own bound


def write(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes one file, leaving out what is None; `path` appears only when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **given)


def read(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of a file; `what` is how a message names the kind of file, with its article.

    Text in them is text that can be printed: of characters that there are.

    Raises:
        Failure: the file is damaged, holds anything but numbers and text, or claims far more than
            its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            left = _EXPANSION * path.stat().st_size + _ALLOWANCE
            arrays = {}
            for entry in _entries(archive, path):
                name = entry.filename.removesuffix(".npy")
                if entry.file_size > left:
                    raise ValueError(f"{name!r} claims {entry.file_size:,} bytes, far more than it")
                left -= entry.file_size
                arrays[name] = _read_array(archive, entry, name)
            return arrays
    except Exception as error:  # damaged bytes can end in almost any exception of zipfile
        raise Failure(f"{path} is not {what}: {reason(error)}; make or copy it again") from error


def _entries(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The entries of an archive, each in bytes of its own."""
    entries = archive.infolist()
    if len(set(archive.namelist())) != len(entries):
        raise ValueError("an array is there twice")
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise ValueError("its arrays overlap")
    if any(e.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for e in entries):
        raise ValueError("it is packed in a way that NumPy does not use")
    return entries


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> np.ndarray:
    """One array, once its header claims just what the entry has."""
    with archive.open(entry) as file:
        start = file.read(_LONGEST_HEADER)
    header = io.BytesIO(start)
    shape, dtype = _read_header(header, name)
    if dtype.kind not in _KINDS:
        raise ValueError(f"{name!r} holds {dtype}, not numbers or text (no pickle is read)")
    there = entry.file_size - header.tell()
    # What takes no bytes could claim any number of rows.
    is_odd = min(shape, default=0) < 0 or (not there and max(shape, default=0) > _LONGEST_EMPTY)
    if is_odd or math.prod(shape) * dtype.itemsize != there:
        raise ValueError(f"{name!r} has {there:,} bytes, and claims to be {dtype} of shape {shape}")
    with archive.open(entry) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if dtype.kind == "U" and there:
        _check_text(array, name)
    return array


def _read_header(header: io.BytesIO, name: str) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(header)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name!r} is in version {version} of NumPy's format, not 1 or 2")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header)
    return shape, dtype


def _check_text(array: np.ndarray, name: str) -> None:
    characters = np.ascontiguousarray(array).reshape(-1).view(array.dtype.str[0] + "u4")
    is_half = (characters >= 0xD800) & (characters < 0xE000)  # of a pair of UTF-16
    if (is_half | (characters > 0x10FFFF)).any():
        raise ValueError(f"{name!r} holds what is no text")


def check(
    arrays: Mapping[str, np.ndarray], axes: Mapping[str, tuple[str, str]], where: str
) -> None:
    """Refuses arrays that are not of the types and shapes wanted.

    Args:
        arrays: by name; those that `axes` does not name do not count.
        axes: name -> (type, axes) such as ("float", "NC") or ("integer", "N4"): a type of `_TYPES`,
            and for each axis a digit, its size, or a letter, which stands for one size everywhere.
        where: how a message begins.

    Raises:
        Failure: one is of another type or shape.
    """
    sizes: dict[str, int] = {}
    for name in (name for name in axes if name in arrays):
        kind, letters = axes[name]
        shape = arrays[name].shape
        if len(shape) == len(letters):
            for letter, size in zip(letters, shape, strict=True):
                sizes.setdefault(letter, int(letter) if letter.isdigit() else size)
        wanted = [sizes.get(letter, letter) for letter in letters]
        if arrays[name].dtype.kind not in _TYPES[kind] or wanted != list(shape):
            raise Failure(
                f"{where}: {name} must be {kind} {wanted}, and is {arrays[name].dtype} {shape}"
            )
