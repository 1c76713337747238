"""The lock of a prepared set, beside it: one process at a time prepares it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mlic_jax.errors import UsageError


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Lets one process at a time prepare a set. The lock goes when its process ends, however.

    Its file lies beside the set while somebody prepares it.
    """
    path = final.with_name(f".{final.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise UsageError(f"cannot write to {path.parent}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is preparing {final}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):  # it was deleted while this process waited
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
