"""Which column of a table is what: the photo, the split, the labels or a class."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlic_jax.data.image_files import image_suffixes
from mlic_jax.data.sources.cells import ABSENT, MINUS_ONE, MISSING, PRESENT, UNKNOWN, suspicious
from mlic_jax.data.sources.split_names import role_of
from mlic_jax.errors import Failure, UsageError

# Names of columns, the likeliest first; only letters and digits of them count, in lower case.
IMAGE = (
    *("image", "path", "filepath", "file", "filename", "imagepath", "imagename", "imagefile"),
    *("imagefilename", "img", "imgpath", "imgname", "photo", "picture", "imageindex", "imageid"),
    *("imgid", "photoid", "imageurl", "externalid", "id", "name"),
)
LABELS = (
    *("labels", "label", "tags", "tag", "classes", "class", "classname", "classnames"),
    *("labelname", "labelnames", "categories", "category", "categoryname", "findinglabels"),
    *("choices", "choice", "targets", "target", "keywords", "genres", "genre", "attributes"),
)
SPLIT = ("split", "splitname")
_PERHAPS_SPLIT = ("subset", "set", "partition", "datasplit")  # if the cells are names of splits
# Whether a photo is of a split, as fastai writes it; all others are of train.
_IS_SPLIT = {"isvalid": "val", "isval": "val", "isvalidation": "val", "istest": "test"}
# What divides photos and is no class, whatever its cells are.
_DIVIDES = ("subset", "partition", "datasplit", *_IS_SPLIT, "istrain", "fold", "kfold")
_ROW_NUMBERS = ("", "index", "unnamed0", "row", "rowid", "indexlevel0")
_OF_A_LABEL = ("confidence", "value", "present")
_VALUES = PRESENT | ABSENT | UNKNOWN | MINUS_ONE

_Cells = Sequence[Sequence[str]]  # of each column


@dataclass(frozen=True)
class Columns:
    """Positions of columns; either `labels` or `classes` or `attributes` are there."""

    image: int
    split: int | None = None
    is_split: str = ""  # what `split` answers by yes or no, of photos of train and of this one
    labels: int | None = None
    value: int | None = None  # beside a label: whether it is there
    classes: Mapping[int, str] = field(default_factory=dict)
    attributes: Mapping[int, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()


def plain(name: str) -> str:
    """The name of a column as it is compared: `Image Index` is imageindex."""
    return re.sub(r"[\W_]+", "", name.lower())


def check_left_out(where: object, read: Sequence[str], left_out: Sequence[str]) -> None:
    """Refuses to pass over a column of labels for the type of its values.

    Raises:
        Failure: one that is left out has a name for labels, and none that is read has.
    """
    if any(plain(name) in LABELS for name in read):
        return
    for name in left_out:
        if plain(name) in LABELS:
            raise Failure(
                f"{where}: the column {name!r} holds neither texts nor lists of texts, and is not "
                "read: write labels so, or say which column has them with --label-column NAME"
            )


def find_columns(
    where: str, header: list[str], rows: Sequence[list[str]], image: str, labels: str
) -> Columns:
    """What the columns of a table are, from their names and cells.

    Args:
        where: how a message begins.
        header: the names of the columns.
        rows: the cells of the other lines.
        image: the name of the column of photos; "" finds it.
        labels: likewise of labels; or several, with commas between: each attribute is then a label
            such as `colour=red`.

    Raises:
        UsageError: there is no such column.
        Failure: it cannot be told, or there is no header.
    """
    _check_header(where, header)
    cells: _Cells = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    numbered = {i for i, name in enumerate(header) if _is_row_numbers(name, cells[i])}
    image_at = _image(where, header, cells, numbered, image)
    numbered -= {image_at}  # photos may be named by numbers
    _check_names(where, header, {*numbered, image_at})
    split_at = _split(header, cells)
    others = {
        i: name
        for i, name in enumerate(header)
        if i not in (image_at, split_at) and i not in numbered
    }
    columns = _of_labels(where, header, cells, image_at, split_at, others, labels)
    for name in columns.classes.values():
        if plain(name) in _DIVIDES:
            raise Failure(
                f"{where}: the column {name!r} seems to divide the photos: name the splits train, "
                "val and test in a column split, or remove it; if it is a class, name it otherwise"
            )
    is_split = "" if split_at is None else _IS_SPLIT.get(plain(header[split_at]), "")
    return replace(columns, is_split=is_split)


def _of_labels(
    where: str,
    header: list[str],
    cells: _Cells,
    image_at: int,
    split_at: int | None,
    others: dict[int, str],
    said: str,
) -> Columns:
    def ignored(*used: int) -> list[str]:
        return [name for i, name in others.items() if i not in used]

    if said:
        used = [_named(where, header, name) for name in said.split(",")]
        if len(used) == 1:
            return Columns(image_at, split_at, labels=used[0], ignored=ignored(*used))
        attributes = {i: header[i] for i in used}
        return Columns(image_at, split_at, attributes=attributes, ignored=ignored(*used))
    classes = {i: name for i, name in others.items() if _is_class(cells[i])}
    named = [i for name in LABELS for i in others if plain(others[i]) == name]
    named = [i for i in named if i not in classes or len(classes) == 1]
    named = sorted(named, key=lambda i: bool(suspicious(sorted({*cells[i]} - MISSING))))
    if named:
        beside = {i for i in classes if plain(others[i]) in _OF_A_LABEL}
        rest = others.keys() - {named[0], *beside}
        if rest and rest <= classes.keys() and all(_decides(cells[i]) for i in rest):
            raise Failure(
                f"{where}: beside image and split there must be either the column labels or a "
                f"column a class, and there are {_listed(header)}; which counts? Say "
                f"--label-column {header[named[0]]!r}, or remove one of the two"
            )
        value = min(beside, default=None)
        rest_of_it = ignored(named[0], *beside)
        return Columns(image_at, split_at, labels=named[0], value=value, ignored=rest_of_it)
    several = {i: n for i, n in others.items() if plain(n).rstrip("0123456789") in LABELS}
    if len(several) > 1 and not several.keys() & classes.keys():
        return Columns(image_at, split_at, attributes=several, ignored=ignored(*several))
    are_said = any(cell not in MISSING for i in classes for cell in cells[i])
    if classes and (are_said or classes.keys() == others.keys()):
        return Columns(image_at, split_at, classes=classes, ignored=ignored(*classes))
    attributes = {i: name for i, name in others.items() if _is_attribute(cells[i])}
    if attributes and attributes.keys() == others.keys():
        if len(attributes) == 1:
            return Columns(image_at, split_at, labels=next(iter(attributes)))
        return Columns(image_at, split_at, attributes=attributes)
    if not others or len(others) > 1:
        raise Failure(
            f"{where}: beside image and split there must be either the column labels or a column a "
            f"class, and there are {_listed(header)}; say --label-column NAME"
        )
    return Columns(image_at, split_at, classes=others)


def _check_header(where: str, header: list[str]) -> None:
    photo = next((name for name in header if _is_photo(name)), None)
    if photo is None and len(header) > 1 and all(name in _VALUES for name in header[1:]):
        photo = header[0]
    if photo is not None:
        raise Failure(
            f"{where}: the table has no header, its first line is of the photo {photo}. Put a line "
            "with the names of the columns before it: image,labels or image,<class>,<class>"
        )


def _check_names(where: str, header: list[str], nameless: set[int]) -> None:
    for number, column in enumerate(header, 1):
        if not column and number - 1 not in nameless:
            raise Failure(f"{where}: column {number} has no name")
        if header.index(column) != number - 1:
            raise Failure(f"{where}: two columns are named {column!r}")


def _image(where: str, header: list[str], cells: _Cells, numbered: set[int], said: str) -> int:
    if said:
        return _named(where, header, said)
    candidates = [i for i in range(len(header)) if i not in numbered]
    named = [i for name in IMAGE for i in candidates if plain(header[i]) == name]
    photos = [
        i for i in candidates if cells[i] and sum(map(_is_photo, cells[i])) * 2 > len(cells[i])
    ]
    likely = [i for i in named if i in photos] or named or photos or sorted(numbered) or candidates
    if not likely:
        raise Failure(f"{where}: there is no column of photos; say --image-column NAME")
    return likely[0]


def _split(header: list[str], cells: _Cells) -> int | None:
    for i, name in enumerate(header):
        given = {cell for cell in cells[i] if cell}
        if plain(name) in SPLIT:
            return i
        if plain(name) in _PERHAPS_SPLIT and given and all(map(role_of, given)):
            return i
    answers = [i for i, name in enumerate(header) if plain(name) in _IS_SPLIT]
    if len(answers) == 1 and {cell.lower() for cell in cells[answers[0]]} <= PRESENT | ABSENT:
        return answers[0]
    return None


def _named(where: str, header: list[str], name: str) -> int:
    for i, column in enumerate(header):
        if column.lower() == name.strip().lower():
            return i
    raise UsageError(f"{where}: there is no column {name.strip()!r}, but {_listed(header)}")


def _is_photo(cell: str) -> bool:
    return Path(cell.replace("\\", "/")).suffix.lower() in image_suffixes()


def _is_row_numbers(name: str, cells: Sequence[str]) -> bool:
    """Whether a column only numbers the rows, as pandas writes it."""
    return plain(name) in _ROW_NUMBERS and any(
        list(cells) == [str(i) for i in range(start, start + len(cells))] for start in (0, 1)
    )


def _is_class(cells: Sequence[str]) -> bool:
    """Whether at least half of the cells that are not empty say if a label is there."""
    given = [cell.lower() for cell in cells if cell not in MISSING]
    return sum(cell in _VALUES for cell in given) * 2 >= len(given)


def _decides(cells: Sequence[str]) -> bool:
    given = {cell.lower() for cell in cells}
    return bool(given & PRESENT) and bool(given & (ABSENT | MINUS_ONE) or given & MISSING)


def _is_attribute(cells: Sequence[str]) -> bool:
    """Whether cells are of few kinds, with names."""
    given = Counter(cell for cell in cells if cell not in MISSING)
    return bool(given) and 2 * len(given) <= given.total() and not suspicious(sorted(given))


def _listed(header: list[str]) -> str:
    return ", ".join(map(repr, header[:12])) + (" and more" if len(header) > 12 else "")
