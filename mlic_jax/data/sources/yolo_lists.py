"""YOLO's lists: the photos of each split, of train.txt and val.txt or as data.yaml names them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlic_jax.data.image_files import is_image, is_junk, visible
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.csv_table import photo_path
from mlic_jax.data.sources.labels import forward
from mlic_jax.data.sources.photos import Photos
from mlic_jax.data.sources.split_names import SPLIT, by_pattern, role_in, splits_of
from mlic_jax.data.sources.text import read_text
from mlic_jax.errors import Failure, UsageError

YAML = (".yaml", ".yml")
_KEYS = ("train", "val", "valid", "validation", "test")


class _Texts(yaml.SafeLoader):
    """Reads no, 1e3 and 010 as they are written, which are names of classes; none is null."""


_Texts.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def is_lists(annotations: str) -> bool:
    """Whether annotations are a YAML file, or a pattern of lists, and no folder of labels."""
    return annotations.endswith(YAML) or (SPLIT in annotations and annotations.endswith(".txt"))


def listed_photos(root: Path, annotations: str, images: Path) -> dict[str, list[tuple[str, Path]]]:
    """The photos of each split, and where each is named; whether they are there is not looked at.

    A split of the very photos of an earlier one, as where val and test are one list, is left out.

    Args:
        root: the folder of `annotations`.
        annotations: a YAML file whose train, val and test are lists of photos, folders of them, or
            several of these; or a pattern of lists with `{split}` in it.
        images: the folder of photos. A list names paths in it, or in another place of which the end
            is a path in it; see `photos.Photos`.

    Raises:
        UsageError: there is no such file.
        Failure: the YAML is malformed, or names what is not there; a line is no path.
    """
    if SPLIT in annotations:
        splits = splits_of(root, annotations)
        if not splits:
            raise UsageError(f"no file fits {root / annotations}: check `root` and `annotations`")
        places = {split: [root / annotations.replace(SPLIT, split)] for split in splits}
    else:
        places = _named_in_yaml(root / annotations, images)
    named = {
        split: [line for place in part for line in _photos(place, images)]
        for split, part in places.items()
    }
    names = [name for part in named.values() for _, name in part]
    files = dict(zip(names, Photos(images).locate(names), strict=True))
    found: dict[str, list[tuple[str, Path]]] = {}
    for split, part in named.items():
        photos = [(where, files[name]) for where, name in part]
        known = [{file for _, file in earlier} for earlier in found.values()]
        if {file for _, file in photos} not in known:
            found[split] = photos
    return found


def list_files(root: Path, annotations: str, images: Path) -> list[Path]:
    """The files and folders that say which photos there are; see `listed_photos`."""
    if SPLIT in annotations:
        return [root / annotations.replace(SPLIT, split) for split in splits_of(root, annotations)]
    named = _named_in_yaml(root / annotations, images).values()
    return [root / annotations, *(place for places in named for place in places)]


def _named_in_yaml(file: Path, images: Path) -> dict[str, list[Path]]:
    """split -> the lists and folders of a YAML file."""
    content = read_yaml(file)
    above = [file.parent / forward(str(content.get("path") or "")), file.parent, images]
    return {
        split: [_existing(f"{file}: {split}", entry, above) for entry in entries]
        for split, entries in _entries(content).items()
    }


def _existing(where: str, entry: str, above: Sequence[Path]) -> Path:
    """The file or folder of the longest end of a path, as of ../train/images train/images is."""
    parts = [part for part in Path(forward(entry)).parts if part not in ("/", "..")]
    for start in range(len(parts)):
        for folder in above:
            if (place := folder.joinpath(*parts[start:])).exists():
                return place
    raise Failure(f"{where}: there is no {entry!r} in {above[1]}: mend or remove it")


def _photos(place: Path, images: Path) -> Iterator[tuple[str, str]]:
    """The photos of a list or in a folder, as paths in `images`, and where each is named."""
    if not place.is_dir():
        for number, line in enumerate(read_text(place)[0].splitlines(), 1):
            if line.strip():
                where = f"{place}, line {number}"
                yield where, photo_path(line.strip(), where)
        return
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not is_junk(Path(name)))
        for name in sorted(names):
            if is_image(file := Path(folder, name)):
                yield str(file), Path(os.path.relpath(file, images)).as_posix()


def read_yaml(file: Path) -> dict[Any, Any]:
    """What a YAML file holds; nothing if that is no mapping. Keys and values are texts as written.

    Raises:
        UsageError: there is no such file.
        Failure: it is no YAML.
    """
    try:
        content = yaml.load(read_text(file)[0], _Texts)
    except (yaml.YAMLError, RecursionError) as error:
        raise Failure(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _entries(content: dict[Any, Any]) -> dict[str, list[str]]:
    """split -> the lists or folders that a YAML file names for it."""
    named = {split: content[split] for split in _KEYS if content.get(split)}
    entries = {split: [v] if isinstance(v, str) else v for split, v in named.items()}
    return {
        split: part
        for split, part in entries.items()
        if isinstance(part, list) and all(isinstance(entry, str) and entry for entry in part)
    }


def label_file(photo: Path) -> Path | None:
    """The labels of a photo, if there are any."""
    name = photo.with_suffix(".txt").name
    return next((f / name for f in label_folders(photo.parent) if (f / name).is_file()), None)


def label_folders(photos: Path) -> list[Path]:
    """Where labels of photos are: in `labels` in the place of the last folder `images`; beside."""
    parts = photos.parts
    if "images" not in parts:
        return [photos]
    at = len(parts) - 1 - parts[::-1].index("images")
    return [Path(*parts[:at], "labels", *parts[at + 1 :]), photos]


# --- telling the format


def lists_in(folder: Path) -> Path | None:
    """The YAML file that names lists of photos, or the pattern of such lists; in or one below."""
    for file, entries in yaml_of_splits(folder):
        if any(entry.endswith(".txt") for part in entries.values() for entry in part):
            return file
    for level in layout.files_in(folder, (".txt",))[:2]:
        lists = [file for file in level if role_in(file.stem) and _is_list(file)]
        if len(patterns := by_pattern(folder, lists)) == 1:
            return folder / next(iter(patterns))
    return None


def yaml_of_splits(folder: Path) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """The YAML files that name lists or folders of splits, with these; others may be anything."""
    for file in visible(folder):
        if file.suffix.lower() in YAML:
            try:
                entries = _entries(read_yaml(file))
            except (Failure, UsageError):
                continue
            if entries:
                yield file, entries


def _is_list(file: Path) -> bool:
    """Whether the first line is the path of a photo."""
    with file.open("rb") as content:
        line = content.readline(2**13).decode("utf-8", "replace").strip()
    return is_image(Path(line))
