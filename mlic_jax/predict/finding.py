"""Which photos a folder, a file or a pattern means."""

import glob
import os
from pathlib import Path

from mlic_jax.data.image_files import image_suffixes, printable
from mlic_jax.errors import UsageError
from mlic_jax.predict.sidecars import SUFFIX


def check_is_there(where: str) -> None:
    """Raises UsageError for what is neither there nor a pattern."""
    if not os.path.lexists(Path(where)) and not glob.has_magic(where):
        raise UsageError(f"--images {printable(where)}: there is no such file or folder")


def find_images(where: str, out: Path) -> tuple[Path, list[Path]]:
    """The folder that all images lie in, and the images, sorted.

    In folders and patterns only what has a name that ends as Pillow's formats do counts, nothing
    hidden, and nothing in `out`. How many other files there are is printed, sidecars of
    photos apart. Links to nothing, pipes and folders that cannot be opened are among the images:
    their rows say what is wrong.

    Raises:
        UsageError: there is no such folder or file, or no image in it.
    """
    check_is_there(where)
    path = Path(where)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        found, closed = _walk(path)
    else:
        found, closed = [Path(file) for file in glob.glob(where, recursive=True)], []
        if not found:
            raise UsageError(f"--images {printable(where)}: no file matches this pattern")
    real_out = Path(os.path.realpath(out))
    files = [
        file
        for file in sorted(set(found))
        if not os.path.isdir(file) and real_out not in Path(os.path.realpath(file)).parents
    ]
    suffixes = image_suffixes()
    images = [file for file in files if file.suffix.lower() in suffixes]
    photos = {name for image in images for name in (image, image.with_suffix(""))}
    passed = [
        file
        for file in files
        if file.suffix.lower() not in suffixes
        and not (file.suffix.lower() == SUFFIX and file.with_suffix("") in photos)
    ]
    others = sorted({file.suffix.lower() or file.name for file in passed})
    seen = ", ".join(map(printable, others[:5]))
    if not images:
        raise UsageError(
            f"--images {printable(where)}: no image of a format that Pillow reads"
            + (f"; there are {seen}" if seen else "")
            + (f"; {printable(closed[0])} cannot be opened" if closed else "")
        )
    if others:
        print(f"{len(passed)} files that are no images are passed over: {seen}")
    root = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in images]))
    return root, sorted([*images, *closed])


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder and those in it, nothing hidden; and folders that cannot be opened."""
    files: list[Path] = []
    closed: list[Path] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda e: closed.append(Path(e.filename))
    ):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return files, closed
