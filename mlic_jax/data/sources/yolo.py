"""Own data as YOLO takes them: beside each photo's folder `images` one of text files, `labels`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlic_jax.data.image_files import is_image, printable, visible
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.rows import Row, Rows, RowSet
from mlic_jax.data.sources.split_names import SPLIT, role_of, splits_of
from mlic_jax.data.sources.text import read_text
from mlic_jax.data.sources.yolo_lists import (
    YAML,
    is_lists,
    label_file,
    label_folders,
    list_files,
    listed_photos,
    lists_in,
    read_yaml,
    yaml_of_splits,
)
from mlic_jax.errors import Failure, UsageError

_LISTS = ("classes.txt", "obj.names", "_darknet.labels")  # a name a line
# Folders of labels and of images, in the order in which they are looked for.
_PLACES = (
    ("{split}/labels", "{split}/images"),
    ("labels/{split}", "images/{split}"),
    ("labels", "images"),
    ("{split}", "{split}"),  # side by side
    ("obj_train_data", "obj_train_data"),
    ("", ""),
)


# An object: the number of its class, and (y1, x1, y2, x2) as shares of the photo's sides.
YoloObject = tuple[int, tuple[float, float, float, float] | None]


class Yolo(RowSet):
    """Photos, and for each a text file with a line an object: the number of its class, and a box.

    A photo without a file, or with an empty one, shows none of the classes. Their names, in order,
    are those of a YAML file with `names`, of classes.txt or obj.names, in root or beside the files.

    Args:
        name: of the prepared set.
        root: the folder that the other two are relative to.
        splits: those that are asked for.
        annotations: the folder of text files, or a pattern with `{split}` in it; or a YAML file or
            a pattern of lists, `{split}.txt`, that name the photos: see `yolo_lists`.
        image_dir: the folder of images, or a pattern.
        train_share, split_seed: see `RowSet`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        annotations: str,
        image_dir: str,
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        super().__init__(
            name,
            splits,
            root=root,
            image_dir=image_dir,
            read=lambda: read_yolo(root, annotations, image_dir),
            files=lambda: _read_files(root, annotations, image_dir),
            kind="yolo",
            options={"annotations": annotations, "image_dir": image_dir},
            train_share=train_share,
            split_seed=split_seed,
        )


def read_yolo(root: Path, annotations: str, image_dir: str) -> Rows:
    """What all text files say.

    Raises:
        UsageError: a folder is missing.
        Failure: a file is malformed, or the names of the classes are not to be found.
    """
    if is_lists(annotations):
        return _read_listed(root, annotations, root / image_dir)
    folders = _folders(root, annotations)
    source, names = _class_names(root, list(folders.values()))
    rows = []
    for split, folder in folders.items():
        files = {file.stem: file for file in _texts(folder)}
        photos = root / image_dir.replace(SPLIT, split)
        if not photos.is_dir():
            raise UsageError(f"no image folder {photos}: check `root` and `image_dir`")
        named: dict[str, str] = {}
        for photo in filter(is_image, visible(photos)):
            if (other := named.setdefault(photo.stem, photo.name)) != photo.name:
                raise Failure(f"{photos}: {other} and {photo.name} would have the same labels")
        for stem in sorted(named.keys() | files):
            file = files.get(stem)
            objects = [] if file is None else _objects(file, names)
            where = str(file or photos / named[stem])
            rows.append(_row(where, named.get(stem, stem), objects, names, split))
    used = {name for row in rows for name in row.present}
    return Rows(names, rows, [f"{len(names)} names of classes are those of {source}"] * bool(used))


def _read_files(root: Path, annotations: str, image_dir: str) -> list[Path]:
    """All that `read_yolo` reads, the folders of photos too."""
    if is_lists(annotations):
        images = root / image_dir
        listed = listed_photos(root, annotations, images).values()
        photos = list(dict.fromkeys(file.parent for part in listed for _, file in part))
        folders = [place for folder in photos for place in label_folders(folder)]
        files = list_files(root, annotations, images)
        files += _naming_files(root, [(root / annotations).parent, images, *folders])
    else:
        folders = list(_folders(root, annotations).values())
        photos = [root / image_dir.replace(SPLIT, s) for s in _folders(root, annotations)]
        files = _naming_files(root, folders)
    texts = [file for folder in folders for file in _texts(folder)]
    return list(dict.fromkeys([*files, *texts, *photos]))


def _folders(root: Path, annotations: str) -> dict[str, Path]:
    """The folder of text files of every split; that of all splits is of ""."""
    splits = splits_of(root, annotations) if SPLIT in annotations else ("",)
    return {split: root / annotations.replace(SPLIT, split) for split in splits}


def _naming_files(root: Path, folders: list[Path]) -> list[Path]:
    """The files that may name the classes."""
    above = (folder.parent for folder in folders if folder != root)
    places = dict.fromkeys([root, *folders, *above])
    files = [file for place in places if place.is_dir() for file in visible(place)]
    return [file for file in files if file.suffix.lower() in YAML or file.name in _LISTS]


def _read_listed(root: Path, annotations: str, images: Path) -> Rows:
    """What the text files of listed photos say."""
    photos = listed_photos(root, annotations, images)
    files = {file: label_file(file) for part in photos.values() for _, file in part}
    folders = list(dict.fromkeys(file.parent for file in files.values() if file))
    file = root / annotations  # which may be a pattern
    first = [file] if file.suffix in YAML else []
    source, names = _class_names(root, [file.parent, images, *folders], first)
    rows = []
    for split, part in photos.items():
        for where, file in part:
            if not file.is_file():
                raise Failure(f"{where}: there is no photo {printable(file.name)} in {images}")
            labels = files[file]
            objects = [] if labels is None else _objects(labels, names)
            image = Path(os.path.relpath(file, images)).as_posix()
            rows.append(_row(where, image, objects, names, split))
    told = f"photos and splits are those of {Path(annotations).name}: {', '.join(photos)}"
    return Rows(names, rows, [told, f"{len(names)} names of classes are those of {source}"])


def _class_names(
    root: Path, folders: list[Path], first: Sequence[Path] = ()
) -> tuple[str, list[str]]:
    """The file that names the classes, `first` if it does, and the names."""
    distinct = dict.fromkeys([*first, *_naming_files(root, folders)])
    files = sorted(distinct, key=lambda file: file.suffix.lower() not in YAML)  # these first
    for at, file in enumerate(files):
        if names := _names_in(file):
            others = [other.name for other in files[at + 1 :] if _differ(other, names)]
            but = f", and not those of {', '.join(others)}, which differ" if others else ""
            return file.name + but, names
    raise Failure(
        f"nothing in {root} names the classes of its YOLO labels: put a file classes.txt there, "
        "with a name a line"
    )


def _names_in(file: Path) -> list[str]:
    """The names of classes in a file, in order; none where it names none."""
    if file.suffix.lower() in YAML:
        names = read_yaml(file).get("names")
        if isinstance(names, dict):  # by number
            numbers = [str(number) for number in range(len(names))]
            if {*names} != {*numbers}:
                raise Failure(f"{file}: the numbers of `names` must be 0, 1, 2 and so on")
            names = [names[number] for number in numbers]
        return [str(name).strip() for name in names] if isinstance(names, list) else []
    text = read_text(file)[0].rstrip()
    names = [line.strip() for line in text.split("\n")] if text else []
    if "" in names:
        raise Failure(f"{file}, line {names.index('') + 1} is empty: each must name a class")
    return names


def _differ(file: Path, names: list[str]) -> bool:
    """Whether a file names other classes, or in another order."""
    try:
        return _names_in(file) not in ([], names)
    except (Failure, UsageError):  # a file of anything else
        return False


def _row(where: str, image: str, objects: list[YoloObject], names: list[str], split: str) -> Row:
    present = [names[number] for number in sorted({number for number, _ in objects})]
    boxes = [(names[number], box) for number, box in objects if box is not None]
    return Row(where, image, present, split=split, boxes=boxes)


def _objects(file: Path, names: list[str]) -> list[YoloObject]:
    """The objects in a file of labels.

    Raises:
        Failure: a line begins with what is no number of a class.
    """
    objects = []
    for number, line in enumerate(read_text(file)[0].splitlines(), 1):
        if words := line.split():
            if not words[0].isdecimal() or int(words[0]) >= len(names):
                raise Failure(
                    f"{file}, line {number}: {words[0][:20]!r} is not the number of a class, "
                    f"0 to {len(names) - 1}"
                )
            objects.append((int(words[0]), _box(words[1:])))
    return objects


def _box(words: list[str]) -> tuple[float, float, float, float] | None:
    """(y1, x1, y2, x2) of a middle and sides, or around a polygon; None of anything else."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    if not all(-1 <= value <= 2 for value in values):  # shares of the photo's sides
        return None
    if len(values) == 4:
        x, y, width, height = values
        return y - height / 2, x - width / 2, y + height / 2, x + width / 2
    if len(values) < 6 or len(values) % 2:
        return None
    xs, ys = values[::2], values[1::2]
    return min(ys), min(xs), max(ys), max(xs)


def _texts(folder: Path) -> list[Path]:
    """The files of labels in a folder."""
    if not folder.is_dir():
        return []
    return [
        file
        for file in visible(folder)
        if file.suffix == ".txt" and file.name not in _LISTS and "readme" not in file.name.lower()
    ]


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    if annotations is not None and is_lists(str(annotations)):
        return _listed(images, annotations)
    if annotations is not None:
        if not annotations.is_dir() or not any(map(_is_yolo, _texts(annotations)[:20])):
            return None
        names = {"": [file.stem for file in _texts(annotations)]}
        folder, notes = layout.image_folder(images, annotations / "x.txt", names)
        seen = f"{annotations.name}/*.txt"
        return Layout("yolo", seen, layout.options(folder, annotations), notes)
    if not images.is_dir():
        return None
    lists = lists_in(images)
    if lists is None or not _has_labels(images):
        return _without_lists(images)
    if found := _listed(images, lists):
        return found
    found = _without_lists(images)
    note = f"{lists.name} names no photo that has labels, and is not read"
    return found and replace(found, notes=(*found.notes, note))


def _without_lists(images: Path) -> Layout | None:
    placed = _placed(images)
    if placed and any(map(role_of, splits_of(images, placed.options["annotations"]))):
        return placed
    return _folders_of_yaml(images) or placed


def _placed(images: Path) -> Layout | None:
    """The layout with folders in one of the usual places."""
    for labels, photos in _PLACES:
        splits = splits_of(images, labels) if SPLIT in labels else ("",)
        folders = [images / labels.replace(SPLIT, split) for split in splits]
        texts = [file for folder in folders for file in _texts(folder)[:20]]
        if any(map(_is_yolo, texts)):
            options = {"root": os.path.abspath(images), "annotations": labels, "image_dir": photos}
            return Layout("yolo", f"{labels or images.name}/*.txt", options)
    return None


def _listed(images: Path, annotations: Path, least: int = 1) -> Layout | None:
    """The layout of photos that are listed, of so many splits at least, if any has labels."""
    options = layout.options(images, annotations)
    root = Path(options["root"])
    photos = listed_photos(root, options["annotations"], images)
    files = [file for part in photos.values() for _, file in part[:20]]
    if len(photos) < least or not any(
        _is_yolo(labels) for file in files if (labels := label_file(file))
    ):
        return None
    return Layout("yolo", f"{annotations.name} for {', '.join(photos)}", options)


def _folders_of_yaml(images: Path) -> Layout | None:
    """The layout of folders of photos that a YAML file names for two or more splits."""
    for file, _ in yaml_of_splits(images):
        try:
            if found := _listed(images, file, least=2):
                return found
        except Failure:  # its folders are elsewhere
            continue
    return None


def _has_labels(folder: Path) -> bool:
    """Whether there are files of labels in a folder or below, so that lists are likely YOLO's."""
    levels = layout.files_in(folder, (".txt",))
    return any(_is_yolo(file) for level in levels for file in level[:50])


def _is_yolo(file: Path) -> bool:
    """Whether the first line is a number of a class and coordinates."""
    line = file.read_bytes()[:500].split(b"\n")[0].split()
    try:
        return len(line) >= 5 and line[0].isdigit() and all(map(float, line[1:])) is not None
    except ValueError:
        return False


FORMAT = layout.Format(
    find, "a text file of numbers for each image, as YOLO's, and names of classes"
)
