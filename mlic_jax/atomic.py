"""Files that appear under their name only once they are complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write beside `path`, which takes its place at the end.

    Its folder is made where it is missing. If the block raises, nothing is left and what stood at
    `path` before still does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
