"""Files and folders that appear under their name only once they are complete."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlic_jax.errors import UsageError

PARTIAL, COMPLETE = ".partial", ".complete"  # folders, before and while they replace others


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write beside `path`, which takes its place at the end.

    Its folder is made where it is missing. If the block raises, nothing is left and what stood at
    `path` before still does. An OSError of it names `path`: that of a full disk names nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def replace_together(folder: Path, names: Sequence[str]) -> None:
    """What was written into `folder/.partial` replaces what has these names in `folder`.

    Must be `locked`. A process may die here at any moment: `finish_replacing` does the rest.
    """
    (folder / PARTIAL).rename(folder / COMPLETE)
    _replace(folder, names)


def finish_replacing(folder: Path, names: Sequence[str]) -> None:
    """Completes what a `replace_together` began that was cut short, if there is one."""
    if (folder / COMPLETE).is_dir():
        with locked(folder):
            _replace(folder, names)


def _replace(folder: Path, names: Sequence[str]) -> None:
    complete = folder / COMPLETE
    for name in names:
        if (complete / name).exists():
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (complete / name).replace(folder / name)
    shutil.rmtree(complete)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; the lock goes when the process ends, however.

    Raises:
        UsageError: another process is there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is writing to {folder}") from None
        except OSError:
            pass  # of a network file system that locks no folders
        yield
    finally:
        os.close(descriptor)
