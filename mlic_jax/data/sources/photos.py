"""Which file is meant by the name of a photo in annotations."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from mlic_jax.data.image_files import image_suffixes, is_image, is_junk
from mlic_jax.data.sources.split_names import agree
from mlic_jax.errors import Failure

# What Label Studio puts before the names of files that were uploaded to it.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


class Photos:
    """The photos in a folder and below it, by the names that annotations have for them.

    Args:
        root: the folder of the whole set; names above it say nothing about splits.
        image_dir: the folder of photos in it.
    """

    def __init__(self, root: Path, image_dir: str = ""):
        self.folder = root / image_dir
        self._of_split = Path(image_dir).parts
        self._listings: dict[Path, _Names] = {}

    def locate(self, names: Sequence[str]) -> list[Path]:
        """The file of every name; one that nothing is found for is taken as a path in the folder.

        Names are paths in the folder, perhaps without their suffix or in another case. Where not
        one of them is, all are looked for by their last parts, as `/data/1/a.jpg` is `a.jpg`; and
        where that fails, too, below the folder, by the name alone.

        Raises:
            Failure: two names are of one file, or a name is of several.
        """
        found: list[Path | None] = []
        for find in (self.held, self.held_by_its_end, self._below):
            found = [find(name) for name in names]
            if any(found):
                break
        of_file: dict[Path, str] = {}
        for name, file in zip(names, found, strict=True):
            if file and (other := of_file.setdefault(file, name)) != name:
                raise Failure(f"{other} and {name} are both the photo {file}: which is it?")
        return [file or self.folder / name for name, file in zip(names, found, strict=True)]

    def held(self, name: str) -> Path | None:
        """The file of this path in the folder: exactly, in another case, or with a suffix."""
        path = self.folder / name
        if path.parent not in self._listings:
            self._listings[path.parent] = _Names(_files(path.parent))
        return _one(name, self._listings[path.parent].find(path.name))

    def held_by_its_end(self, name: str) -> Path | None:
        """The file of the longest end of a path, such as a.jpg of /data/upload/a.jpg.

        What is left out may not name another split than the folder does.
        """
        parts = name.split("/")
        for start in range(1, len(parts)):
            if not agree(parts[:start], self._of_split):
                return None
            if found := self.held("/".join(parts[start:])):
                return found
        return self.held(_UPLOADED.sub("", parts[-1]))

    def _below(self, name: str) -> Path | None:
        """The one file of that name in any folder below."""
        *folders, last = name.split("/")
        depth = len(self.folder.parts)
        return _one(
            name,
            [
                file
                for file in self._tree.find(last)
                if agree(folders, [*self._of_split, *file.parent.parts[depth:]])
            ],
        )

    @cached_property
    def _tree(self) -> "_Names":
        files = []
        for folder, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not is_junk(Path(name)))
            files += [Path(folder, name) for name in sorted(names) if is_image(Path(name))]
        return _Names(files)


class _Names:
    """Files by name, and by name without suffix; in any case, but in the very case first."""

    def __init__(self, files: Sequence[Path]):
        self._names, self._stems = defaultdict(list), defaultdict(list)
        for file in files:
            self._names[file.name.lower()].append(file)
            if is_image(file):
                self._stems[file.stem.lower()].append(file)

    def find(self, name: str) -> list[Path]:
        files = self._names.get(name.lower(), [])
        if exact := [file for file in files if file.name == name]:
            return exact
        if files or Path(name).suffix.lower() in image_suffixes():
            return files
        files = self._stems.get(name.lower(), [])
        return [file for file in files if file.stem == name] or files


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.is_dir())
    except (OSError, ValueError):
        return []  # no such folder


def _one(name: str, files: Sequence[Path]) -> Path | None:
    if len(files) > 1:
        raise Failure(
            f"which photo is {name}: {files[0]} or {files[1]}? Say with --images, or name it as a "
            "path and with its suffix in the annotations"
        )
    return files[0] if files else None
