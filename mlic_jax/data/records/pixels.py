"""The squares that the photos of a split become, kept in a file: decoded once, then read.

The file of a split, a size and a `Fit` lies in the folder `pixels` of the prepared set. It holds
squares, uint8 [N, S, S, 3], as `files/rows.py` keeps rows. Whoever decodes a photo first, be it a
thread, a worker or another run, writes its square.

The name of a file tells all that its pixels follow from, so none is ever read for another.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from mlic_jax.data import transforms
from mlic_jax.data.fitting import SQUASHED, Fit
from mlic_jax.data.records.reading import Split, prepared_splits, read_prepared
from mlic_jax.data.records.stamps import Made, digest_of, stamps_file
from mlic_jax.errors import Failure
from mlic_jax.files.rows import Rows, reserve, said_size

FOLDER = "pixels"
# The split, the size, a fit that is not the default one, and what decides the pixels.
_NAME = re.compile(r"(\w+)-(\d+)(?:-(\w+)-([\d.e-]+))?-[0-9a-f]+\.pixels")
_GIB = 2**30


class Squares(Rows):
    """The squares of a split at one size, as far as its photos were decoded.

    Pickles as its path and opens it again. Where a disk takes no more, photos are decoded instead.
    """

    def __init__(self, path: Path, count: int, size: int):
        """Opens the file of `count` squares of `size` pixels a side; raises Failure."""
        super().__init__(path, count, (size, size, 3), np.uint8, create=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._count, self.shape[0])

    def write(self, number: int, row: np.ndarray) -> None:
        """Keeps a square, uint8 [S, S, 3] without gaps; where the disk is full, none any more."""
        if not self.is_writable:
            return
        try:
            super().write(number, row)
        except Failure as failure:
            self.is_writable = False
            print(f"{failure}: no more pixels are kept")


def _reopen(path: Path, count: int, size: int) -> Squares | None:
    """In a worker; None where somebody has removed the file meanwhile."""
    return Squares(path, count, size) if path.exists() else None


@lru_cache(maxsize=8)  # so that a line is said once, and a checksum computed once
def open_squares(split: Split, size: int, most: float, fit: Fit = SQUASHED) -> Squares | None:
    """The squares of a split, in a file that is made where there is none.

    A line says where they are kept, or why they are not; without them photos are decoded as ever.

    Args:
        split: of a prepared set.
        size: S, of a side.
        most: GiB that all such files of the set may take.
        fit: how photos become squares.
    """
    what = f"{split.name} {split.split}, {size} px{fit.described()}"
    pixels = f"pixels of {len(split):,} photos ({what})"
    try:
        path = _path(split.directory, split.split, size, fit)
        total = (3 * size**2 + 8) * len(split)
        if not path.exists():
            _make(path, total, most)
        squares = Squares(path, len(split), size)
        kept = f"{pixels} are kept in {path}, {said_size(total)}: {squares.count():,} so far"
    except (OSError, Failure) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"{pixels} are not kept, photos are decoded anew: {reason}")
        return None
    print(kept if squares.is_writable else f"{kept}; it cannot be written to")
    return squares


def take_over(earlier: Path, directory: Path) -> None:
    """Moves the files of an earlier set whose photos are the same to a set of the same name."""
    splits = prepared_splits(directory)
    for path in (earlier / FOLDER).glob("*.pixels"):
        name = _NAME.fullmatch(path.name)
        if not name or name[1] not in splits:
            continue
        fit = Fit(cast(transforms.Interpolation, name[3]), float(name[4])) if name[3] else SQUASHED
        if path.name == _path(directory, name[1], int(name[2]), fit).name:
            (directory / FOLDER).mkdir(exist_ok=True)
            path.rename(directory / FOLDER / path.name)


def _path(directory: Path, split: str, size: int, fit: Fit) -> Path:
    """The file of the squares that the photos of a split now have; raises Failure."""
    prepared = read_prepared(directory)
    photos = Made.load(stamps_file(directory, split)).readable().digests.tolist()
    seen = [prepared.upright, prepared.value_range, *transforms.versions()]
    key = digest_of(json.dumps(seen).encode() + b"".join(photos))[:16]
    how = f"-{fit.interpolation}-{fit.center_crop}" if fit.changed() else ""
    return directory / FOLDER / f"{split}-{size}{how}-{key}.pixels"


def _make(path: Path, total: int, most: float) -> None:
    """Makes a sparse file of `total` bytes, in place of those with other pixels of its photos.

    Raises:
        Failure: that would be too many, or more than the disk has room for.
        OSError: it cannot be written.
    """
    others = [other for other in path.parent.glob("*.pixels") if other != path]
    for other in others:  # a name ends in what else decides the pixels
        if other.name.rpartition("-")[0] == path.name.rpartition("-")[0]:
            other.unlink(missing_ok=True)
    there = sum(other.stat().st_size for other in others if other.exists())
    if there + total > most * _GIB:
        raise Failure(
            f"they take {said_size(total)} beside the {said_size(there)} that lie in "
            f"{path.parent}, and data.cache_gib is {most:g}"
        )
    reserve(path.parents[1], total, "they")
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.truncate(total)  # whoever else makes it at this moment does the same
