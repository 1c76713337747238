"""Reads pickles of arrays and plain containers, such as MSRN's label inputs, and runs no code.

A pickle is a program. This one may call nothing but what is defined here, under the names that
NumPy and Python give to the constructors of arrays and containers; whatever else it names is
refused before it is imported. NumPy's own constructors are not called: a damaged or malicious file
could make them build arrays over memory that is not theirs.
"""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.errors import Failure, UsageError


class _Dtype:
    """Stands for a numpy.dtype of plain numbers."""

    def __init__(self, code: str, *_flags: Any):
        if not re.fullmatch(r"[biufc]\d+", code):
            raise ValueError(f"an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple):
        _version, byte_order, *structure = state
        if structure[:3] != [None, None, None]:
            raise ValueError("an array of records, not of numbers")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array(np.ndarray):
    """An array that a pickle fills after it made it (protocols below 5)."""

    def __setstate__(self, state: tuple):
        _version, shape, dtype, is_fortran, data = state
        super().__setstate__((1, shape, dtype.dtype, bool(is_fortran), data))


def _reconstruct(*_unused: Any) -> _Array:
    return _Array(0)


def _frombuffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.dtype, count=1)[0]


def _encode(text: str, _encoding: str) -> bytes:
    """Protocols 0 to 2 write bytes as text in Latin-1."""
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): "ndarray",  # an argument, and called by no file that NumPy wrote
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("core", "_core"):  # before and since NumPy 2
    _ALLOWED[f"numpy.{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"numpy.{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"numpy.{_core}.numeric", "_frombuffer"] = _frombuffer
for _module in ("builtins", "__builtin__"):  # by their names only in protocols below 5
    for _kind in (set, frozenset, bytearray):
        _ALLOWED[_module, _kind.__name__] = _kind


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise Failure(
                f"{self._path} names {module}.{name}, which is neither a NumPy array nor a plain "
                "container: refused, nothing of it was run"
            )
        return _ALLOWED[module, name]


def load(path: str | os.PathLike) -> Any:
    """What a pickle holds: containers, text, bytes, numbers, and NumPy arrays of numbers.

    Raises:
        UsageError: there is no such file.
        Failure: the pickle names anything else, is cut short, or is no pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file {path}")
    try:
        with path.open("rb") as file:
            return _Unpickler(file, path).load()
    except Failure:
        raise
    except Exception as error:  # damaged bytes can end in almost any exception
        reason = " ".join(str(error).split())
        raise Failure(f"{path} is damaged, cut short, or not a pickle ({reason})") from error
