"""Own data as they lie: of which format they are, where the files are, and what splits are for.

`detect` answers with the options of a source, as `mlic_jax.data.sources` takes them. It reads the
annotations, as far as it takes to tell, and no image.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlic_jax import json_text
from mlic_jax.data.class_names import NUSWIDE
from mlic_jax.data.image_files import is_image
from mlic_jax.data.sources.apparel import COLOURS, GARMENTS
from mlic_jax.data.sources.coco import splits_of
from mlic_jax.data.sources.labels import check_path
from mlic_jax.data.sources.nuswide import COLUMNS
from mlic_jax.data.sources.table import TABLES, csv_rows
from mlic_jax.data.sources.voc import OWN
from mlic_jax.errors import UsageError

_SPLIT = "{split}"
# Where files of annotations in COCO's format usually lie, a file a split.
_COCO_PATTERNS = (
    "instances_{split}.json",
    "annotations/instances_{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
    "annotations/{split}.json",
)
# Names that are those of splits and not of classes.
_SPLIT_NAMES = {"train", "val", "valid", "validation", "dev", "test"}
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Layout:
    """A format, and where its files lie."""

    format: str  # a key of `FORMATS`
    seen: str  # what it was told from, for a person
    options: dict[str, str]  # of `config.data`: root, and what else the source takes


def detect(images: str, annotations: str | None = None, format: str | None = None) -> Layout:
    """Finds out how own data lie.

    Args:
        images: the folder of images or of everything, or a pattern with `{split}` in it.
        annotations: the file of annotations, a pattern of such files, or for VOC a folder; None
            looks for it in `images`.
        format: a key of `FORMATS`, or None to tell it from the files.

    Raises:
        UsageError: there is no such folder or file; the files are of no format, of several, or not
            of `format`.
        Failure: a file that was looked into is malformed.
    """
    for option, path in (("--images", images), ("--annotations", annotations)):
        if path is not None and not Path(_fixed_part(path)).exists():
            raise UsageError(f"{option} {path}: there is no such file or folder")
    if _SPLIT not in images and not Path(images).is_dir():
        raise UsageError(f"--images {images} is not a folder")
    paths = Path(images), None if annotations is None else Path(annotations)
    if format is not None:
        if layout := FORMATS[format].find(*paths):
            return layout
        raise UsageError(f"--format {format} needs {FORMATS[format].needs}; {_place(*paths)}")
    for candidates in (_ANNOTATED, _FOLDERS):
        found = [layout for name in candidates if (layout := FORMATS[name].find(*paths))]
        if len(found) == 1:
            return found[0]
        if found:
            told = " or ".join(f"{layout.format} ({layout.seen})" for layout in found)
            raise UsageError(f"{images} could be {told}: say which with --format")
    raise UsageError(
        f"{_place(*paths)} of any format that is known: see --format and --annotations in --help"
    )


def roles_of(splits: Sequence[str]) -> dict[str, str]:
    """Which split plays which role: train, val (chooses the checkpoint) and test.

    Told from the names. A set without splits is to be divided into train and val. Where there is no
    val or no test, the other one serves as both.

    Args:
        splits: of the set's own; none if it has none.

    Raises:
        UsageError: they do not tell.
    """
    splits = splits or ("train", "val")
    train = _of_role(splits, "train", ("trainval",))
    val = _of_role(splits, "val", ("valid", "validation", "dev"))
    test = _of_role(splits, "test")
    if train is None or not (val or test):
        raise UsageError(
            f"the splits of the set are {', '.join(splits)}; there must be one whose name begins "
            "with train, and one with val or test. A set that names no splits is divided"
        )
    return {"train": train, "val": val or test, "test": test or val}


def _of_role(splits: Sequence[str], role: str, others: Sequence[str] = ()) -> str | None:
    """The split of a role: of its name, else of another usual one, else one that begins with it."""
    for name in (role, *others):
        if name in splits:
            return name
    named = [split for split in splits if split.startswith(role)]
    if len(named) > 1:
        raise UsageError(f"which split is for {role}: {', '.join(named)}? Name one of them {role}")
    return named[0] if named else None


# --- formats; each function gives None where the files are not of its format


def _coco(images: Path, annotations: Path | None) -> Layout | None:
    if annotations is not None and _SPLIT in str(annotations):
        return _coco_layout(images, annotations) if annotations.suffix == ".json" else None
    if annotations is not None and annotations.is_file():
        return _coco_layout(images, annotations) if _is_coco(annotations) else None
    root = annotations or images
    if not root.is_dir():
        return None
    for pattern in _COCO_PATTERNS:
        splits = splits_of(root, pattern)
        has_roles = len(splits) > 1 and any(split.startswith("train") for split in splits)
        if has_roles and all(_is_coco(root / pattern.replace(_SPLIT, split)) for split in splits):
            return _coco_layout(images, root / pattern)
    files = filter(_is_coco, sorted([*root.glob("*.json"), *root.glob("*/*.json")]))
    file = _only(files, "files in COCO's format")
    return file and _coco_layout(images, file)


def _coco_layout(images: Path, annotations: Path) -> Layout:
    options = _options(images, annotations)
    root, pattern = Path(options["root"]), options["annotations"]
    splits = splits_of(root, pattern)
    if _SPLIT in pattern and not splits:
        raise UsageError(f"no file fits --annotations {annotations}")
    split = splits[0] if splits else ""
    first = _first_coco_image(root / pattern.replace(_SPLIT, split))
    options = _options(_folder_with(first, images, annotations, split), annotations)
    seen = f"{annotations.name} for {', '.join(splits)}" if splits else annotations.name
    return Layout("coco", seen, options)


def _is_coco(file: Path) -> bool:
    """Whether a file has the fields of COCO's format; it may be too large to be parsed for that."""
    fields = (b'"images"', b'"annotations"', b'"categories"')
    if file.suffix != ".json":
        return False
    content = file.read_bytes()
    return all(field in content for field in fields)


def _first_coco_image(file: Path) -> str | None:
    found = re.search(rb'"file_name"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")', file.read_bytes())
    where = f"{file}: the first file_name"
    return check_path(json_text.parse(found[1], where), where) if found else None


def _voc(images: Path, annotations: Path | None) -> Layout | None:
    if annotations is not None:
        return _voc_layout(images, annotations) if _has_xml(annotations) else None
    if not images.is_dir():
        return None
    years = [folder for folder in sorted(images.glob("VOC20[0-9][0-9]")) if folder.is_dir()]
    root = _only(years, "VOC devkits", "--images") or images
    if root.name == "JPEGImages" and _has_xml(root.parent / "Annotations"):
        root = root.parent
    folders = [root, *(folder for folder in sorted(root.iterdir()) if folder.is_dir())]
    usual = [folder for folder in folders if folder.name == "Annotations" and _has_xml(folder)]
    folder = _only(usual or filter(_has_xml, folders), "folders of XML annotations")
    return folder and _voc_layout(root, folder)


def _voc_layout(images: Path, annotations: Path) -> Layout:
    """With as root the folder of ImageSets, if there is one."""
    stems = {file.stem for file in annotations.glob("*.xml")}
    for folder in (images, *sorted(images.iterdir())):
        if folder.is_dir() and any(is_image(f) and f.stem in stems for f in folder.iterdir()):
            images = folder
            break
    return Layout("voc", f"{annotations.name}/*.xml", _options(images, annotations) | {"year": OWN})


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*.xml"), None) is not None


def _csv(images: Path, annotations: Path | None) -> Layout | None:
    layout = _table("csv", images, annotations)
    if layout and (names := _nuswide_names(layout)) is not None and names == set(NUSWIDE):
        return None
    return layout


def _nuswide(images: Path, annotations: Path | None) -> Layout | None:
    layout = _table("csv", images, annotations)
    if layout is None or not (_nuswide_names(layout) or {""}) <= set(NUSWIDE):
        return None
    return Layout("nuswide", f"the columns {','.join(COLUMNS)}", layout.options)


def _nuswide_names(layout: Layout) -> set[str] | None:
    """The labels in a table with the columns of NUS-WIDE; None of any other table."""
    file = Path(layout.options["root"], layout.options["annotations"])
    _, header = next(csv_rows(file))
    if header != COLUMNS:
        return None
    _, rows = TABLES["csv"](file)
    return {name for row in rows for name in row.present}


def _jsonl(images: Path, annotations: Path | None) -> Layout | None:
    return _table("jsonl", images, annotations)


def _table(kind: str, images: Path, annotations: Path | None) -> Layout | None:
    suffixes = {"csv": (".csv",), "jsonl": (".jsonl", ".ndjson")}[kind]
    if not images.is_dir():
        return None
    if annotations is None:
        tables = (file for file in sorted(images.iterdir()) if file.suffix.lower() in suffixes)
        annotations = _only(tables, f"files of the format {kind}")
    if annotations is None or not annotations.is_file():
        return None
    if annotations.suffix.lower() not in suffixes:
        return None
    _, rows = TABLES[kind](annotations)
    first = rows[0].image if rows else None
    images = _folder_with(first, images, annotations)
    return Layout(kind, annotations.name, _options(images, annotations))


def _apparel(images: Path, annotations: Path | None) -> Layout | None:
    names = {f"{colour}_{garment}" for colour in COLOURS for garment in GARMENTS}
    folders = _class_folders(images, annotations)
    if not folders or not {folder.name for folder in folders} <= names:
        return None
    seen = f"{len(folders)} folders <colour>_<garment>"
    return Layout("apparel", seen, {"root": os.path.abspath(images)})


def _folders(images: Path, annotations: Path | None) -> Layout | None:
    folders = _class_folders(images, annotations)
    if len(folders) < 2:
        return None
    seen = f"folders of images: {_listing(sorted({folder.name for folder in folders}))}"
    return Layout("folders", seen, {"root": os.path.abspath(images)})


def _class_folders(images: Path, annotations: Path | None) -> list[Path]:
    """The folders, one or two levels deep, of images, if they may be named for classes."""
    if annotations is not None or not images.is_dir():
        return []
    inside = [*images.glob("*/*"), *images.glob("*/*/*")]
    folders = {file.parent for file in inside if is_image(file)}
    return [] if {folder.name for folder in folders} <= _SPLIT_NAMES else sorted(folders)


@dataclass(frozen=True)
class _Format:
    find: Callable[[Path, Path | None], Layout | None]
    needs: str  # for a person


FORMATS: dict[str, _Format] = {
    "coco": _Format(_coco, "annotations in COCO's JSON, one file or one a split"),
    "voc": _Format(_voc, "XML annotations as VOC's, one for each image"),
    "csv": _Format(_csv, "a .csv table of images and labels"),
    "jsonl": _Format(_jsonl, "a .jsonl file of images and labels"),
    "nuswide": _Format(_nuswide, f"a .csv with the columns {','.join(COLUMNS)} and its classes"),
    "apparel": _Format(_apparel, "folders of images named <colour>_<garment>"),
    "folders": _Format(_folders, "two or more folders of images, and no annotations"),
}
_ANNOTATED = ("coco", "voc", "csv", "jsonl", "nuswide")
_FOLDERS = ("apparel", "folders")  # what is left if there are no annotations


# --- paths


def _options(images: Path, annotations: Path) -> dict[str, str]:
    """Both paths, relative to the folder that both are in."""
    images, annotations = os.path.abspath(images), os.path.abspath(annotations)
    root = os.path.commonpath([_fixed_part(images), _fixed_part(os.path.dirname(annotations))])
    image_dir = os.path.relpath(images, root)
    return {
        "root": root,
        "image_dir": "" if image_dir == "." else image_dir,
        "annotations": os.path.relpath(annotations, root),
    }


def _fixed_part(path: str) -> str:
    """The folder that all paths of a pattern are in; a path that is no pattern as it is."""
    fixed, *others = path.split(_SPLIT)
    return os.path.dirname(fixed) or "." if others else path


def _folder_with(image: str | None, images: Path, annotations: Path, split: str = "") -> Path:
    """The folder that a path in the annotations is relative to.

    It is `images`, a folder in that, or the one of the annotations; `images` if the image is in
    none of them. With a split it may be a pattern.
    """
    if _SPLIT in str(images) or image is None:
        return images
    inside = sorted(folder for folder in images.iterdir() if folder.is_dir())
    patterns = (images / _SPLIT, images / "images" / _SPLIT) if split else ()
    for folder in (images, *patterns, *inside, annotations.parent):
        if Path(str(folder).replace(_SPLIT, split), image).is_file():
            return folder
    return images


def _only(paths: Iterable[Path], what: str, option: str = "--annotations") -> Path | None:
    """The one path, or None; several are an error, which says what decides."""
    paths = list(paths)
    if len(paths) > 1:
        several = _listing([path.name for path in paths])
        raise UsageError(f"there are several {what}: {several}; say which with {option}")
    return paths[0] if paths else None


def _place(images: Path, annotations: Path | None) -> str:
    return f"{images} has nothing" if annotations is None else f"{annotations} is nothing"


def _listing(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest
