"""Rows of one size in a file, each with a checksum: made once, by whoever needs it first.

A row is written before its mark, which is 0 while it is not there and else 2^32 and its checksum.
One that does not fit its mark, because a process was killed as it wrote or power failed, is as good
as none, and so is what a file that was cut short lacks. Threads and processes may use a file at the
same time: two who make the same row write the same bytes, and rows that are appended have a lock.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.errors import Failure


class Rows:
    """Rows by their number, `count` arrays of one shape and type; behind them all marks.

    Until it is written all of the file is sparse. One that cannot be written to is read.
    """

    def __init__(
        self, path: Path, count: int, shape: tuple[int, ...], dtype: Any, create: bool = True
    ):
        """Opens a file.

        Args:
            create: make it where there is none.

        Raises:
            Failure: it cannot be opened.
        """
        self.path, self.shape, self.dtype = Path(path), tuple(shape), np.dtype(dtype)
        self._count, self._bytes = count, int(np.prod(shape)) * self.dtype.itemsize
        self._file, self.is_writable = _open(self.path, create)
        weakref.finalize(self, os.close, self._file)
        self._is_known = np.zeros(count, bool)  # to be whole, to this process
        self.damaged = 0  # rows that `missing` found to be so
        self.row_size = self._bytes + 8

    def missing(self) -> np.ndarray:
        """Which rows are not there, int64 `[M]`; every row that is not known yet is read for it."""
        row = np.empty(self.shape, self.dtype)
        gone = np.array([i for i in range(self._count) if not self.read(i, row)], np.int64)
        with _failing(self.path, "read"):
            self.damaged = sum(any(os.pread(self._file, 8, self._at(i))) for i in gone.tolist())
        return gone

    def count(self) -> int:
        """How many rows have a mark, whole or not."""
        with _failing(self.path, "read"):
            marks = os.pread(self._file, 8 * self._count, self._at(0))
        return int(np.count_nonzero(np.frombuffer(marks[: len(marks) // 8 * 8], np.uint64)))

    def read(self, number: int, row: np.ndarray) -> bool:
        """Fills in a row, of `shape` and `dtype` without gaps; False: it is not there.

        Raises:
            Failure: the disk does not give it.
        """
        is_known = self._is_known[number]
        with _failing(self.path, "read"):
            mark = None if is_known else os.pread(self._file, 8, self._at(number))
            if mark == bytes(8):
                return False
            size = os.preadv(self._file, [_as_bytes(row)], self._bytes * number)
        is_there = size == self._bytes and (is_known or mark == _mark(row))
        self._is_known[number] = is_there
        return is_there

    def write(self, number: int, row: np.ndarray) -> None:
        """Keeps a row, of `shape` and `dtype` without gaps.

        Raises:
            Failure: the disk does not take it.
        """
        with _failing(self.path, "written"):
            _put(self._file, _as_bytes(row), self._bytes * number)
            _put(self._file, _mark(row), self._at(number))
        self._is_known[number] = True

    def _at(self, number: int) -> int:
        """Where the mark of a row is."""
        return self._bytes * self._count + 8 * number


class KeyedRows:
    """Rows by a key of a few whole numbers, in the order in which they came: a file that grows.

    Each is its key, its mark and its values. What other processes append is seen by those who open
    the file later.
    """

    def __init__(self, path: Path, key: int, shape: tuple[int, ...], dtype: Any):
        """Opens a file, which is made where there is none, and reads all of it.

        Args:
            key: the numbers of a key.
            shape, dtype: of a row.

        Raises:
            Failure: it cannot be.
        """
        fields = [("key", "<i4", (key,)), ("mark", "<u8"), ("values", np.dtype(dtype), shape)]
        self.path, self._record = Path(path), np.dtype(fields)
        self._file, _ = _open(self.path)
        weakref.finalize(self, os.close, self._file)
        self._places: dict[tuple[int, ...], int] = {}
        record = np.empty((), self._record)
        for place in range(self._end() // self._record.itemsize):
            self._read(place, record)
            if record["mark"] == _sum(record):
                self._places[tuple(record["key"].tolist())] = place

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: tuple[int, ...]) -> bool:
        return key in self._places

    def __getitem__(self, key: tuple[int, ...]) -> np.ndarray:
        """The row of a key.

        Raises:
            Failure: the disk does not give it as it was written.
        """
        record = np.empty((), self._record)
        self._read(self._places[key], record)
        if tuple(record["key"].tolist()) != key:
            raise Failure(f"{self.path} was changed meanwhile: start again")
        return record["values"]

    def append(self, keys: list[tuple[int, ...]], rows: np.ndarray) -> None:
        """Keeps rows `[K, *shape]`.

        Raises:
            Failure: the disk does not take them.
        """
        records = np.empty(len(keys), self._record)
        records["key"], records["values"] = np.array(keys).reshape(len(keys), -1), rows
        records["mark"] = [_sum(record) for record in records]
        with _failing(self.path, "written"):
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                place = self._end() // self._record.itemsize  # over one that was cut short
                _put(self._file, _as_bytes(records), place * self._record.itemsize)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        self._places |= {key: place + i for i, key in enumerate(keys)}

    def _end(self) -> int:
        return os.fstat(self._file).st_size

    def _read(self, place: int, record: np.ndarray) -> None:
        with _failing(self.path, "read"):
            size = self._record.itemsize
            if os.preadv(self._file, [_as_bytes(record)], place * size) < size:
                raise Failure(f"{self.path} was cut short meanwhile: start again")


def reserve(folder: Path, size: int, what: str) -> None:
    """Raises Failure where a disk has no room for `size` bytes more of `what`."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise Failure(
            f"{what} take {said_size(size)} more, and {said_size(free)} are free on the disk of "
            f"{folder}"
        )


def said_size(size: int) -> str:
    """Bytes as a person reads them: `2.81 GiB`, `7.50 MiB` or, of less than that, `0.16 KiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size / 2**10:,.2f} KiB"


@contextlib.contextmanager
def _failing(path: Path, what: str) -> Iterator[None]:
    """Has what the operating system refuses end in a line."""
    try:
        yield
    except OSError as error:
        raise Failure(f"{path} cannot be {what}: {error.strerror}") from error


def _open(path: Path, create: bool = True) -> tuple[int, bool]:
    """A descriptor, and whether it may be written to."""
    with _failing(path, "opened"):
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | create * os.O_CREAT, 0o666), True
        except OSError:
            if not path.is_file():
                raise
            return os.open(path, os.O_RDONLY), False


def _as_bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _mark(row: np.ndarray) -> bytes:
    return (2**32 + zlib.crc32(_as_bytes(row))).to_bytes(8, "little")


def _sum(record: Any) -> int:
    key, values = (_as_bytes(np.ascontiguousarray(record[name])) for name in ("key", "values"))
    return 2**32 + zlib.crc32(values, zlib.crc32(key))


def _put(file: int, content: memoryview | bytes, at: int) -> None:
    if os.pwrite(file, content, at) < memoryview(content).nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
