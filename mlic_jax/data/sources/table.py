"""Own data in a table, CSV or JSON Lines; and `RowSet`, for all sets of image files with labels."""

import ast
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlic_jax import json_text
from mlic_jax.data.image_files import printable
from mlic_jax.data.records import Example
from mlic_jax.data.sources.labels import check_extent, check_path
from mlic_jax.data.splitting import divide
from mlic_jax.errors import Failure, UsageError

_IMAGE_COLUMNS = ("image", "path", "filepath", "file")
_LABELS_COLUMNS = ("labels", "label")
_SPLIT_COLUMNS = ("split", "split_name")
_CELLS = {"1": 1, "0": -1, "?": 0}


class Row(NamedTuple):
    """What a table says of one image."""

    where: str  # how an error message names the row
    image: str  # its path below the folder of images, which is also its id, `printable`
    present: Sequence[str]
    unknown: Sequence[str] = ()
    split: str = ""  # "": the table does not say


class RowSet:
    """A source of rows, each an image file with the names of its labels.

    A split has the rows that name it. If no row names any, `splitting.divide` makes two of them.

    Args:
        name: of the prepared set.
        splits: those that are asked for.
        images: the folder of images.
        read: returns the class names in their order (empty: those that occur, sorted) and the rows.
        description: see `records.Source`.
        train_share, split_seed: of `splitting.divide`.
    """

    def __init__(
        self,
        name: str,
        splits: tuple[str, ...],
        *,
        images: Path,
        read: Callable[[], tuple[Sequence[str], list[Row]]],
        description: dict[str, Any],
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        self.name = name
        self.splits = splits
        self.description = description
        self._images = images
        self._read = read
        self._train_share = train_share
        self._split_seed = split_seed

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._contents[0]

    @property
    def own_splits(self) -> tuple[str, ...]:
        """The splits that the rows name, sorted; empty where they name none."""
        return tuple(sorted({row.split for row in self._contents[1]} - {""}))

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the rows.

        Raises:
            UsageError: a file or folder is missing; the rows know no such split.
            Failure: a row is malformed or names an unknown class; an image is listed twice.
        """
        _, rows, labels = self._contents
        if not self._images.is_dir():
            raise UsageError(f"no image folder {self._images}: check `root` and `image_dir`")
        return [
            Example(
                image_id=printable(rows[i].image),
                image=self._images / rows[i].image,
                labels=labels[i],
                boxes=np.zeros((0, 4), np.int32),
                box_classes=np.zeros(0, np.int32),
            )
            for i in np.flatnonzero(self._members(split))
        ]

    @cached_property
    def _contents(self) -> tuple[tuple[str, ...], list[Row], np.ndarray]:
        """The class names, the rows, and the labels int8 [N, C]."""
        names, rows = self._read()
        _check_rows(self.name, rows)
        if not names:
            names = sorted({name for row in rows for name in (*row.present, *row.unknown)})
        size = sum(len(row.image) + sum(map(len, row.present)) + 8 for row in rows)
        check_extent(self.name, len(rows), len(names), size)
        position = {name: i for i, name in enumerate(names)}
        labels = np.full((len(rows), len(names)), -1, np.int8)
        for row, row_labels in zip(rows, labels, strict=True):
            for value, row_names in ((1, row.present), (0, row.unknown)):
                for name in row_names:
                    if name not in position:
                        raise Failure(f"{row.where}: unknown label {name!r}")
                    row_labels[position[name]] = value
        return tuple(names), rows, labels

    def _members(self, split: str) -> np.ndarray:
        """bool [N]: the rows of a split."""
        rows = self._contents[1]
        if not self.own_splits:
            return self._division[split]
        if split not in self.own_splits:
            has = ", ".join(self.own_splits)
            raise UsageError(f"set {self.name} has no split {split!r}; it has {has}")
        return np.array([row.split == split for row in rows])

    @cached_property
    def _division(self) -> dict[str, np.ndarray]:
        """How rows that name no splits are divided: split -> bool [N]."""
        _, rows, labels = self._contents
        image_ids = [printable(row.image) for row in rows]
        share, seed = self._train_share, self._split_seed
        return divide(self.name, self.splits, image_ids, labels, share, seed)


def _check_rows(name: str, rows: list[Row]) -> None:
    if not rows:
        raise Failure(f"set {name}: no image is listed")
    first: dict[str, Row] = {}
    for row in rows:
        if (earlier := first.setdefault(row.image, row)) is not row:
            raise Failure(f"{row.where}: {row.image} is listed already, in {earlier.where}")
        if bool(row.split) != bool(rows[0].split):
            without = rows[0] if row.split else row
            raise Failure(f"{without.where}: it names no split, and other images have one")
        if both := set(row.present) & set(row.unknown):
            raise Failure(f"{row.where}: {min(both)!r} is both present and unknown")


class Table(RowSet):
    """Own data: images, and a CSV or JSON Lines file that says what each of them shows.

    Every path is relative to the folder of images, and is the image's id. Images without labels are
    kept, and show none of the classes. A table may name a split for each image; else see `RowSet`.

    CSV: UTF-8, commas, a header. The column `image` (or path, filepath, file; failing these, the
    first one) has the paths, `split` (or split_name) the splits. Then there is either
      a column `labels` (or label) with the names of the labels present, separated by `;`, `|` or
        `,`, or as a Python list; a name that ends in `?` is unknown; the classes are sorted;
      or a column a class, in the order of the classes, with 1 (present), 0 (absent) or ? (unknown).

    JSON Lines: objects of `image`, `labels` (a list of names), and, if wanted, `unknown` (likewise)
    and `split`; other fields do not count. The classes are sorted.

    Args:
        name: of the prepared set.
        root: the folder that the other two are relative to.
        splits: those that are asked for.
        kind: "csv" or "jsonl".
        annotations: the table.
        image_dir: the folder of images; "" is root itself.
        train_share, split_seed: see `RowSet`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        kind: str,
        annotations: str,
        image_dir: str = "",
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        file = root / annotations
        self.annotation_files = (file,)
        super().__init__(
            name,
            splits,
            images=root / image_dir,
            read=lambda: TABLES[kind](file),
            description={
                "kind": kind,
                "root": str(root),
                "annotations": annotations,
                "image_dir": image_dir,
                "train_share": train_share,
                "split_seed": split_seed,
            },
            train_share=train_share,
            split_seed=split_seed,
        )


# --- CSV ---


def csv_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file: where each is, for messages, and its cells, stripped of blanks.

    The first one is the header; every other has as many cells. Empty lines are left out.

    Raises:
        UsageError: there is no such file.
        Failure: it is not CSV in UTF-8, or a row has too few or too many cells.
    """
    width = None
    with _open(file) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                width = width or len(row)
                if row and len(row) != width:
                    raise Failure(f"{where}: {len(row)} columns, and the header has {width}")
                if row:
                    yield where, [cell.strip() for cell in row]
        except csv.Error as error:
            raise Failure(f"{file}, line {reader.line_num} is not CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise Failure(f"{file} is not text in UTF-8: {error}") from None
    if width is None:
        raise Failure(f"{file} is empty: it must have a header")


def python_list(text: str) -> list[str]:
    """The names in a Python list, such as `['sky', 'dog']`; nothing but literals is evaluated.

    Raises:
        ValueError: it is no list of names.
    """
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        names = None
    if not _is_names(names):
        raise ValueError(f"{_short(text)} is not a Python list of names")
    return names


def _read_csv(file: Path) -> tuple[list[str], list[Row]]:
    rows = csv_rows(file)
    where, header = next(rows)
    for number, column in enumerate(header, 1):
        if not column:
            raise Failure(f"{where}: column {number} has no name")
        if header.index(column) != number - 1:
            raise Failure(f"{where}: two columns are named {column!r}")
    image = _column(header, _IMAGE_COLUMNS) or 0
    split = _column(header, _SPLIT_COLUMNS)
    labels = _column(header, _LABELS_COLUMNS)
    classes = {i: name for i, name in enumerate(header) if i not in (image, split, labels)}
    if (labels is None) != bool(classes):
        raise Failure(
            f"{where}: beside image and split there must be either the column labels or a column a "
            f"class, and there are {', '.join(map(repr, header))}"
        )

    def read(where: str, cells: list[str]) -> Row:
        if labels is None:
            names = _names_of_cells(where, cells, classes)
        else:
            names = _names_of_list(f"{where}, column {header[labels]!r}", cells[labels])
        path = _path(cells[image], f"{where}, column {header[image]!r}")
        return Row(where, path, *names, "" if split is None else cells[split])

    return list(classes.values()), [read(*row) for row in rows]


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    """The first column of one of the names."""
    return next((i for i, column in enumerate(header) if column.lower() in names), None)


def _names_of_cells(
    where: str, cells: list[str], classes: dict[int, str]
) -> tuple[list[str], list[str]]:
    """The labels present and the unknown ones, from a column a class."""
    names: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for i, name in classes.items():
        value = _CELLS.get(cells[i])
        if value is None:
            raise Failure(
                f"{where}, column {name!r}: {_short(cells[i])} is neither 1 (present) nor 0 "
                "(absent) nor ? (unknown)"
            )
        names[value].append(name)
    return names[1], names[0]


def _names_of_list(where: str, text: str) -> tuple[list[str], list[str]]:
    """The labels present and the unknown ones, from a cell that lists them."""
    try:
        names = python_list(text) if text.startswith("[") else re.split("[;|,]", text)
    except ValueError as error:
        raise Failure(f"{where}: {error}") from None
    names = [name.strip() for name in names] if text else []
    present = [name for name in names if not name.endswith("?")]
    unknown = [name[:-1].strip() for name in names if name.endswith("?")]
    if "" in (*present, *unknown):
        raise Failure(f"{where}: a name in {_short(text)} is empty")
    return present, unknown


# --- JSON Lines ---


def _read_jsonl(file: Path) -> tuple[tuple[()], list[Row]]:
    rows = []
    with _open(file) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(_json_row(f"{file}, line {number}", line))
        except UnicodeDecodeError as error:
            raise Failure(f"{file} is not text in UTF-8: {error}") from None
    return (), rows


def _json_row(where: str, line: str) -> Row:
    fields = json_text.parse(line, where)
    if not isinstance(fields, dict):
        raise Failure(f"{where}: it must be an object with the fields image and labels")
    image = _path(fields.get("image"), f"{where}: the field image")
    split = fields.get("split")
    if not (split is None or (isinstance(split, str) and split)):
        raise Failure(f"{where}: the field split must be a name")
    for field, names in (("labels", fields.get("labels")), ("unknown", fields.get("unknown", []))):
        if not _is_names(names):
            raise Failure(f"{where}: the field {field} must be a list of names")
    return Row(where, image, fields["labels"], fields.get("unknown", []), split or "")


# The reader of each kind of table: its file -> the class names (empty: those that occur), the rows.
TABLES: dict[str, Callable[[Path], tuple[Sequence[str], list[Row]]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
}


# --- what both need ---


def _open(file: Path) -> Any:
    try:
        return file.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UsageError(
            f"annotation file {file}: {error.strerror}: check `root` and `annotations`"
        ) from error


def _path(value: Any, where: str) -> str:
    """A path as an image's id: `./a.jpg` is `a.jpg`."""
    return Path(check_path(value, where)).as_posix()


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
