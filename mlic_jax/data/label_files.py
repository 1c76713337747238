"""What a label graph and word vectors have in common: their files, and the order of their classes.

Both are one `.npz`, or a published pickle, which knows no class names.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import npz


def order_of(have: Sequence[str], want: Sequence[str], what: str) -> list[int]:
    """Where the classes `want` lie in `have`: `[have[i] for i in order_of(have, want)] == want`.

    Raises:
        UsageError: they are not the same classes; `what` is how the message names `have`.
    """
    if sorted(have) != sorted(want):
        lacks = [name for name in want if name not in have]
        extra = [name for name in have if name not in want]
        differences = [f"lacks {', '.join(lacks)}"] if lacks else []
        differences += [f"has {', '.join(extra)}"] if extra else []
        told = " and ".join(differences) or "has one of them more than once"
        raise UsageError(f"{what} is not of the classes wanted: it {told}")
    position = {name: i for i, name in enumerate(have)}
    return [position[name] for name in want]


def check_order(order: Sequence[int], num_classes: int) -> list[int]:
    """The order as a list.

    Raises:
        UsageError: it does not hold each of 0 to C - 1 once.
    """
    order = [int(i) for i in order]
    if sorted(order) != list(range(num_classes)):
        raise UsageError(f"{order} is no order of {num_classes} classes")
    return order


def is_npz(path: Path) -> bool:
    """Whether a file is one of ours, told from its first bytes; the others are pickles.

    Raises:
        UsageError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def write_npz(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Writes one `.npz`, leaving out what is None; `path` appears only when it is complete.

    Raises:
        UsageError: the folder cannot be written to.
    """
    try:
        npz.write(Path(path), fields)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def read_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`; `what` is how a message names the kind of file.

    Raises:
        Failure: the file is damaged or holds Python objects.
    """
    return npz.read(path, f"a file of {what}")


def numbers(values: Any, where: str) -> np.ndarray:
    """float32, from an array or from numbers in lists; `where` is how a message begins.

    Raises:
        Failure: they are anything else, or the lists are not of one length.
    """
    try:
        if not _are_numbers(values):
            raise ValueError("there are values that are no numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            return np.asarray(values).astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise Failure(f"{where}: {error}") from error


def _are_numbers(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return all(map(_are_numbers, values))
    if isinstance(values, np.ndarray | np.generic):
        return values.dtype.kind in "biuf"
    return isinstance(values, int | float)
