"""Own data as they lie: of which format they are, where the files are, and what splits are for.

`detect` answers with the options of a source, as `mlic_jax.data.sources` takes them. It reads the
annotations, as far as it takes to tell, and no image. How a format is told stands beside its
source.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlic_jax.data.image_files import visible
from mlic_jax.data.sources import (
    apparel,
    celeba,
    coco,
    exports,
    folders,
    hub,
    lists,
    nuswide,
    table,
    voc_layout,
    yolo,
)
from mlic_jax.data.sources.layout import Format, Layout, fixed_part
from mlic_jax.data.sources.split_names import SPLIT
from mlic_jax.errors import Failure, UsageError

FORMATS: dict[str, Format] = {
    "coco": coco.FORMAT,
    "voc": voc_layout.FORMAT,
    "yolo": yolo.FORMAT,
    "lists": lists.FORMAT,
    "celeba": celeba.FORMAT,
    **exports.FORMATS,
    "csv": nuswide.CSV,
    "jsonl": table.JSONL,
    "parquet": table.PARQUET,
    "xlsx": table.XLSX,
    "nuswide": nuswide.FORMAT,
    "apparel": apparel.FORMAT,
    "folders": folders.FORMAT,
    "hub": hub.FORMAT,
}
# Of which anything may be a table, but is hardly the annotations where there are others.
_SHEETS = ("parquet", "xlsx")
_FOLDERS = ("apparel", "folders")  # what is left if there are no annotations


def detect(
    images: str,
    annotations: str | None = None,
    format: str | None = None,
    told: Mapping[str, str] | None = None,
) -> Layout:
    """Finds out how own data lie. Where nothing is told, it looks one level down.

    Args:
        images: the folder of images or of everything, or a pattern with `{split}` in it; or
            `hf:` and the name of a dataset of the Hub, or the folder of one.
        annotations: the file of annotations, a pattern of such files, or a folder of them (VOC,
            YOLO); None looks for it in `images`.
        format: a key of `FORMATS`, or None to tell it from the files.
        told: options of the source that need not be told; see `Format.takes`.

    Raises:
        UsageError: there is no such folder or file; the files are of no format, of several, or not
            of `format`; the format takes no such option.
        Failure: a file that was looked into is malformed.
    """
    of_hub = images.startswith(hub.PREFIX)
    for option, path in (("--images", None if of_hub else images), ("--annotations", annotations)):
        if path is not None and not Path(fixed_part(path)).exists():
            raise UsageError(f"{option} {path}: there is no such file or folder")
    if not of_hub and SPLIT not in images and not Path(images).is_dir():
        raise UsageError(f"--images {images} is not a folder")
    paths = Path(images), None if annotations is None else Path(annotations)
    told, format = dict(told or {}), format or ("hub" if of_hub else None)
    layout = _one_of(*paths, format, told) or _one_level_down(*paths, format, told)
    if layout is None and format is not None:
        raise UsageError(f"--format {format} needs {FORMATS[format].needs}; {_place(*paths)}")
    if layout is None:
        raise UsageError(
            f"{_place(*paths)} of any format that is known: see --format and --annotations in "
            "--help"
        )
    for option in told:
        if option not in FORMATS[layout.format].takes:
            raise UsageError(
                f"--{option.replace('_', '-')} does not count for the format {layout.format}, told "
                f"from {layout.seen}; another one is taken with --format"
            )
    return replace(layout, options=layout.options | told)


def _one_of(
    images: Path, annotations: Path | None, format: str | None, told: Mapping[str, str]
) -> Layout | None:
    """The layout of the one format there is in a folder."""
    if format is not None:
        return FORMATS[format].find(images, annotations, told)
    annotated = [name for name in FORMATS if name not in (*_SHEETS, *_FOLDERS)]
    for candidates in (annotated, _SHEETS, _FOLDERS):
        found = [
            layout for name in candidates if (layout := _find(name, images, annotations, told))
        ]
        if len(found) > 1:
            said = " or ".join(f"{layout.format} ({layout.seen})" for layout in found)
            raise UsageError(f"{images} could be {said}: say which with --format")
        if found and "may be no class" in found[0].seen:
            raise UsageError(f"{images} has {found[0].seen}: move it, or say --format folders")
        if found:
            return found[0]
    return None


def _find(
    name: str, images: Path, annotations: Path | None, told: Mapping[str, str]
) -> Layout | None:
    """What a format finds; of what it cannot read, the message says that it is a guess."""
    try:
        return FORMATS[name].find(images, annotations, told)
    except Failure as error:
        raise Failure(f"{error} (taken for {name}; --format says another)") from None


def _one_level_down(
    images: Path, annotations: Path | None, format: str | None, told: Mapping[str, str]
) -> Layout | None:
    """The layout of the one folder inside that is of any format."""
    if annotations is not None or not images.is_dir():
        return None

    def look() -> Iterator[tuple[Path, Layout]]:
        for folder in visible(images):
            if folder.is_dir() and (layout := _one_of(folder, None, format, told)):
                yield folder, layout

    found = list(look())
    if len(found) > 1:
        said = ", ".join(f"{folder.name} ({layout.format})" for folder, layout in found[:5])
        raise UsageError(f"there are sets in several folders of {images}: {said}; say --images")
    for folder, layout in found:
        note = f"{images.name or images} itself holds no set: {folder.name} inside it is taken"
        return replace(layout, notes=(note, *layout.notes))
    return None


def roles_of(splits: Sequence[str], divided: Collection[str] = ()) -> dict[str, str]:
    """Which split plays which role: train, val (chooses the checkpoint) and test.

    Told from the names. A set without splits is to be divided into train and val. Where there is no
    val or no test, the other one serves as both.

    Args:
        splits: of the set's own; none if it has none.
        divided: the roles of splits that are divided from train; they are named after them.

    Raises:
        UsageError: they do not tell.
    """
    splits = splits or ("train", *(divided or ["val"]))
    roles = {role: role for role in divided} | own_roles(splits)
    if "train" not in roles or len(roles) == 1:
        raise UsageError(
            f"the splits of the set are {', '.join(splits)}; there must be one whose name begins "
            "with train, and one with val or test. A set that names no splits is divided"
        )
    val, test = roles.get("val") or roles["test"], roles.get("test") or roles["val"]
    return {"train": roles["train"], "val": val, "test": test}


def own_roles(splits: Sequence[str]) -> dict[str, str]:
    """Those of the roles that the splits of a set have names for.

    Raises:
        UsageError: several have one for the same; names differ in case alone.
    """
    lower: dict[str, str] = {}
    for split in splits:
        if (other := lower.setdefault(split.lower(), split)) != split:
            raise UsageError(f"are {other} and {split} one split? Then name both the same")
    usual = {"train": ("trainval",), "val": ("valid", "validation", "dev", "eval"), "test": ()}
    roles = {role: _of_role(splits, role, others) for role, others in usual.items()}
    return {role: split for role, split in roles.items() if split}


def _of_role(splits: Sequence[str], role: str, others: Sequence[str] = ()) -> str | None:
    """The split of a role: of its name, else of another usual one, else one that begins with it."""
    lower = {split.lower(): split for split in splits}
    for name in (role, *others):
        if name in lower:
            return lower[name]
    named = [split for split in splits if split.lower().startswith(role)]
    if len(named) > 1:
        raise UsageError(f"which split is for {role}: {', '.join(named)}? Name one of them {role}")
    return named[0] if named else None


def _place(images: Path, annotations: Path | None) -> str:
    return f"{images} has nothing" if annotations is None else f"{annotations} is nothing"
