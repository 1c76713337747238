"""How a set lies in folders, as detectors tell it; and which folder its photos are in."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlic_jax.data.image_files import is_junk, visible
from mlic_jax.data.sources.photos import Photos
from mlic_jax.data.sources.split_names import SPLIT, agree, by_pattern, pattern_of
from mlic_jax.errors import Failure, UsageError

_NAMES_SHOWN = 5
_GIVEN, _INSIDE = "--images", "inside --images"
_ENOUGH = 300  # names of a split that are looked for to tell where the photos are
OF_PHOTOS = {"jpegimages", "images", "image", "img", "imgs", "photos", "pictures"}


@dataclass(frozen=True)
class Layout:
    """A format, and where its files lie."""

    format: str  # a key of `detect.FORMATS`
    seen: str  # what it was told from, for a person
    options: dict[str, str]  # of `config.data`: root, and what else the source takes
    notes: tuple[str, ...] = ()  # what else was decided, for a person


@dataclass(frozen=True)
class Format:
    """What finds a layout of a format, and what its files are.

    `find` takes --images, --annotations or None, and what a person said of the options that `takes`
    lists; it returns None where the files are of another format.
    """

    find: Callable[[Path, Path | None, Mapping[str, str]], Layout | None]
    needs: str  # for a person
    takes: tuple[str, ...] = ()  # options of the source that a person may give, as --label-column


def image_folder(
    images: Path, annotations: Path, names: Mapping[str, Sequence[str]]
) -> tuple[Path, tuple[str, ...]]:
    """The folder that the photos of annotations are in, and what to say of it.

    Of the folders that hold photos of such names it is the first of: the one of the annotations, if
    it is inside `images`; one that is named like the split of the annotations; `images` itself; a
    folder inside that is named `images` or the like; any other inside. A folder of another split is
    none of them. If there is none, it is `images`, and the source looks further.

    Args:
        images: as a person named it; a pattern with `{split}` is taken as it is.
        annotations: the file, or a pattern of files.
        names: split ("" where the annotations name none) -> the names of photos.

    Raises:
        UsageError: two folders inside, of which neither is the more likely, hold such photos; or
            only one of another split does.
    """
    if SPLIT in str(images) or not any(names.values()):
        return images, ()
    sample = [(split, name) for split in names for name in _some(names[split])]
    split = _split_of(images, annotations) or ""
    groups = _candidates(images, annotations, SPLIT if len(names) > 1 else split)
    for by_end in (False, True):
        held = {folder: _held(folder, sample, by_end) for _, group in groups for folder in group}
        if any(held.values()):
            break
    else:
        return images, ()
    most = max(map(len, held.values()))
    for why, group in groups:
        likely = [folder for folder in group if 2 * len(held[folder]) >= most]
        if why == _INSIDE:
            likely = [f for f in likely if agree([split], f.relative_to(images).parts)] or likely
        if likely:
            break
    chosen, *rivals = likely
    if rivals and not any(held[chosen].keys() & held[other].keys() for other in rivals):
        return images, ()  # each holds a part
    rivals = [folder for folder in rivals if _differ(held[chosen], held[folder])]
    _check_choice(chosen, rivals, why, images, annotations, split)
    others = [f for f in held if f != chosen and _differ(held[chosen], held[f])]
    if not others or SPLIT in str(chosen):
        return chosen, ()
    told = f"photos are taken from {_relative(chosen, images)} ({why})"
    places = listing([_relative(folder, images) for folder in others])
    return chosen, (f"{told}; there are others of the same names, not read, in {places}",)


def _check_choice(
    chosen: Path, rivals: Sequence[Path], why: str, images: Path, annotations: Path, split: str
) -> None:
    """Asks where it would be a guess, or where folder and annotations are of other splits."""
    if rivals:
        both = " and ".join(_relative(folder, images) for folder in (chosen, rivals[0]))
        raise UsageError(
            f"{both} both hold photos of the names in {annotations.name}: say which with --images"
        )
    if why == _INSIDE and not agree([split], chosen.relative_to(images).parts):
        raise UsageError(
            f"{_relative(annotations, images)} is of {split}, and only "
            f"{_relative(chosen, images)} holds photos of its names: say which with --images"
        )
    own = annotations.parent
    if why == _GIVEN and not _is_inside(own, images) and not agree([own.name], [chosen.name]):
        raise UsageError(
            f"--images is {chosen.name}, and {annotations.name} is of {own.name}: are these its "
            f"photos? Then put it into another folder; else say --images {own}"
        )


def _candidates(images: Path, annotations: Path, split: str) -> list[tuple[str, list[Path]]]:
    """Folders that may hold the photos, the likeliest first, in groups; each with the reason."""
    own = annotations.parent
    inside = _is_inside(own, images)
    below = [] if not images.is_dir() else folders_in(images)
    named = []
    for base in dict.fromkeys((images, own)) if split else ():
        paths = (split, f"images/{split}", f"{split}/images", f"{split}_images", f"images_{split}")
        named += [base / path for path in paths]
        named += [f for f in folders_in(base) if split != SPLIT and f.name.lower() == split.lower()]
    usual = [folder for folder in below if folder.name.lower() in OF_PHOTOS]
    beside = []
    if inside and Path(os.path.abspath(own)) != Path(os.path.abspath(images)):
        beside = [f for f in visible(own.parent) if f.is_dir() and f.name.lower() in OF_PHOTOS]
    first = [("the folder of the annotations", [own])]
    by_split = [("named like the annotations", [folder]) for folder in dict.fromkeys(named)]
    given = [(_GIVEN, [images])]
    rest = [
        *((_INSIDE, [folder]) for folder in usual if folder.parent == images),
        ("beside the annotations", beside),
        (_INSIDE, [f for f in below if f not in usual or f.parent != images]),
    ]
    ordered = [*first, *by_split, *given, *rest] if inside else [*given, *by_split, *rest, *first]
    seen: set[str] = set()
    groups = []
    for why, group in ordered:
        fresh = [folder for folder in group if os.path.abspath(folder) not in seen]
        seen |= {os.path.abspath(folder) for folder in fresh}
        groups.append((why, fresh))
    return groups


def folders_in(folder: Path) -> list[Path]:
    """The folders inside, one and two levels deep."""
    try:
        inside = [path for path in visible(folder) if path.is_dir()]
        return inside + [path for place in inside for path in visible(place) if path.is_dir()]
    except OSError:
        return []


def _is_inside(folder: Path, other: Path) -> bool:
    return Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(other))


def _split_of(images: Path, annotations: Path) -> str | None:
    """The split that a file of annotations is of, by its folder or name."""
    try:
        relative = annotations.relative_to(images).as_posix()
    except ValueError:
        relative = annotations.name
    if annotations.stem.endswith("_default"):  # CVAT's word for what is of no split
        return "default"
    found = pattern_of(relative)
    return found[1] if found else None


def _held(
    folder: Path, sample: Sequence[tuple[str, str]], by_end: bool
) -> dict[tuple[str, str], Path | None]:
    """Those of the (split, name) that a folder, or a pattern of folders, has photos for.

    With the photo of each; None where there are several.
    """
    photos: dict[str, Photos] = {}
    held: dict[tuple[str, str], Path | None] = {}
    for split, name in sample:
        where = str(folder).replace(SPLIT, split)
        if where not in photos:
            photos[where] = Photos(Path(where).parent, Path(where).name)
        find = photos[where].held_by_its_end if by_end else photos[where].held
        try:
            found = find(name)
            if found is not None:
                held[split, name] = found
        except Failure:  # several: the source says so, if it is to read this folder
            held[split, name] = None
    return held


def _differ(
    held: Mapping[tuple[str, str], Path | None], other: Mapping[tuple[str, str], Path | None]
) -> bool:
    """Whether another folder has other photos, of which the paths fit the names no worse.

    One inside the other has the same ones, or such as fit the end of a path alone.
    """
    for key in held.keys() & other.keys():
        photo, rival = held[key], other[key]
        if photo is None or rival is None:
            return True
        is_other = os.path.abspath(photo) != os.path.abspath(rival)
        if is_other and _fit(key[1], rival) >= _fit(key[1], photo):
            return True
    return False


def _fit(name: str, file: Path) -> int:
    """How many of the folders before the last part of a name are those that the file is in."""
    pairs = zip(reversed(name.split("/")[:-1]), reversed(file.parent.parts), strict=False)
    same = [folder.lower() == own.lower() for folder, own in pairs]
    return [*same, False].index(False)


def _some(names: Sequence[str]) -> Sequence[str]:
    return names[:: max(1, len(names) // _ENOUGH)]


# --- paths


def options(images: Path, annotations: Path) -> dict[str, str]:
    """Both paths, relative to the folder that both are in."""
    photos, labels = os.path.abspath(images), os.path.abspath(annotations)
    root = os.path.commonpath([fixed_part(photos), fixed_part(os.path.dirname(labels))])
    image_dir = os.path.relpath(photos, root)
    return {
        "root": root,
        "image_dir": "" if image_dir == "." else image_dir,
        "annotations": os.path.relpath(labels, root),
    }


def fixed_part(path: str) -> str:
    """The folder that all paths of a pattern are in; a path that is no pattern as it is."""
    fixed, *others = path.split(SPLIT)
    return os.path.dirname(fixed) or "." if others else path


def files_in(folder: Path, suffixes: Sequence[str]) -> list[list[Path]]:
    """The files with one of the suffixes in a folder, in those inside it, and in those of these."""
    levels, folders = [], [folder]
    for _ in range(3):
        inside = [path for place in folders if place.is_dir() for path in visible(place)]
        levels.append([p for p in inside if p.suffix.lower() in suffixes and not p.is_dir()])
        folders = [path for path in inside if path.is_dir()]
    return levels


def xml_files(folder: Path) -> list[Path]:
    """The XML files in a folder, sorted, without junk."""
    return sorted(file for file in folder.glob("*.xml") if not is_junk(file))


def one_or_a_split_each(
    root: Path, files: Sequence[Path], what: str
) -> tuple[Path, tuple[str, ...]] | None:
    """The one file there is, or the pattern of those that are a file a split, with the splits.

    Raises:
        UsageError: there are several, and they are not a file a split.
    """
    patterns = by_pattern(root, files)
    if len(patterns) == 1:
        ((pattern, splits),) = patterns.items()
        return root / pattern, tuple(sorted(splits))
    file = only([root / pattern for pattern in patterns] or files, what)
    return (file, ()) if file else None


def only(paths: Iterable[Path], what: str, option: str = "--annotations") -> Path | None:
    """The one path, or None; several are an error, which says what decides."""
    paths = list(paths)
    if len(paths) > 1:
        names = [path.name for path in paths]
        if len({*names}) < len(names):
            names = [f"{path.parent.name}/{path.name}" for path in paths]
        raise UsageError(f"there are several {what}: {listing(names)}; say which with {option}")
    return paths[0] if paths else None


def listing(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest


def _relative(path: Path, folder: Path) -> str:
    relative = os.path.relpath(path, folder)
    return str(path) if relative.startswith("..") or relative == "." else relative
