"""The rows of a table of cells, in each of the forms that such tables have; see `table.Table`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlic_jax.data.sources.cells import (
    ABSENT,
    MINUS_ONE,
    MISSING,
    PRESENT,
    UNKNOWN,
    is_object,
    names_in,
    separator_of,
    short,
    suspicious,
)
from mlic_jax.data.sources.columns import Columns, find_columns
from mlic_jax.data.sources.labels import check_path, forward
from mlic_jax.data.sources.rows import Row, Rows
from mlic_jax.data.sources.text import csv_rows, read_text
from mlic_jax.errors import Failure

_FEW = 6  # with fewer labels it means nothing that each occurs once
_Line = tuple[str, list[str]]  # where it is, and its cells


def read_csv(file: Path, **told: str) -> Rows:
    """What a CSV file says; see `read_cells`."""
    rows = read_cells(csv_rows(file), **told)
    encoding = read_text(file)[1]
    if encoding not in ("cp1252", "gbk"):
        return rows
    return rows._replace(notes=[f"{file.name} is not UTF-8: read as {encoding}", *rows.notes])


def read_cells(
    table: Iterable[_Line], image_column: str = "", label_column: str = "", cell_separator: str = ""
) -> Rows:
    """What the lines of a table say, of which the first is the header; see `table.Table`.

    Raises:
        UsageError: there is no such file or column.
        Failure: it is malformed, or what it means cannot be told.
    """
    (where, header), *lines = table
    cells = [cells for _, cells in lines]
    columns = find_columns(where, header, cells, image_column, label_column)
    notes: list[str] = []
    if columns.ignored:
        notes.append(f"columns that do not count: {', '.join(columns.ignored)}")
    if columns.split is not None and columns.is_split:
        notes.append(f"{header[columns.split]}: yes is of {columns.is_split}, no of train")
    if columns.classes:
        if wrong := suspicious(list(columns.classes.values())):
            raise Failure(f"{where}: the names of the columns {wrong}: name each after its class")
        rows, policy = _column_a_class(header, columns, lines)
        return Rows(list(columns.classes.values()), rows, notes + policy)
    if columns.labels is None:
        rows = [_attributes(header, columns, *line) for line in lines]
        notes.append(f"labels are those of the columns {', '.join(columns.attributes.values())}")
        return Rows((), rows, notes)
    rows = _lists(header, columns, columns.labels, lines, cell_separator)
    if not label_column:
        printed = any(is_object(cells[columns.labels]) for _, cells in lines)
        _check_labels(f"{where}, column {header[columns.labels]!r}", rows, printed)
    notes.append(f"labels are those of the column {header[columns.labels]}")
    if missing := sorted({cells[columns.labels] for _, cells in lines} & MISSING - {""}):
        notes.append(f"cells of {' or '.join(missing)} name no label")
    rows, more = _merged(columns, lines, rows)
    return Rows((), rows, notes + more)


def photo_path(value: Any, where: str) -> str:
    """A path as an image's id: `./a.jpg` is `a.jpg`, and so is Windows' `.\\a.jpg`."""
    return Path(forward(check_path(value, where))).as_posix()


def _row(
    header: list[str],
    columns: Columns,
    where: str,
    cells: list[str],
    present: Sequence[str],
    unknown: Sequence[str] = (),
) -> Row:
    path = photo_path(cells[columns.image], f"{where}, column {header[columns.image]!r}")
    split = "" if columns.split is None else cells[columns.split]
    if columns.is_split:
        split = columns.is_split if split.lower() in PRESENT else "train"
    return Row(where, path, present, unknown, split)


def _column_a_class(
    header: list[str], columns: Columns, lines: Sequence[_Line]
) -> tuple[list[Row], list[str]]:
    """The rows, and what -1 and empty cells were taken for."""
    counts = Counter(cells[i].lower() for _, cells in lines for i in columns.classes)
    missing = {cell.lower() for cell in MISSING}
    both = bool(counts.keys() & ABSENT)
    unsure = UNKNOWN | MINUS_ONE if both else UNKNOWN
    absent = missing | ABSENT | (frozenset() if both else MINUS_ONE)
    notes = []
    if minus := sum(counts[cell] for cell in MINUS_ONE):
        meant = "unknown, since others are 0" if both else "absent, since none is 0"
        notes.append(f"{minus:,} cells are -1: {meant}")
    if empty := sum(counts[cell] for cell in missing):
        notes.append(f"{empty:,} cells are empty: absent")
    rows = []
    for where, cells in lines:
        names: dict[bool, list[str]] = {True: [], False: []}
        for i, name in columns.classes.items():
            cell = cells[i].lower()
            if cell in PRESENT or cell in unsure:
                names[cell in PRESENT].append(name)
            elif cell not in absent:
                raise Failure(
                    f"{where}, column {name!r}: {short(cells[i])} is neither 1 (present) nor 0 "
                    "(absent) nor ? (unknown)"
                )
        rows.append(_row(header, columns, where, cells, names[True], names[False]))
    return rows, notes


def _attributes(header: list[str], columns: Columns, where: str, cells: list[str]) -> Row:
    """Labels such as colour=red; of columns such as label1 and label2 the cells are the labels."""
    present, unknown = [], []
    one = len({name.rstrip("0123456789 _-") for name in columns.attributes.values()}) == 1
    for i, attribute in columns.attributes.items():
        sure, unsure = names_in(f"{where}, column {attribute!r}", cells[i], ";")
        prefix = "" if one else f"{attribute}="
        present += [f"{prefix}{value}" for value in sure]
        unknown += [f"{prefix}{value}" for value in unsure]
    return _row(header, columns, where, cells, present, unknown)


def _lists(
    header: list[str], columns: Columns, at: int, lines: Sequence[_Line], separator: str
) -> list[Row]:
    """The rows, of which the cells of the column at a position list the labels."""
    column = f"column {header[at]!r}"
    if not separator:
        first = lines[0][0] if lines else ""
        separator = separator_of(f"{first}, {column}", [cells[at] for _, cells in lines])
    return [
        _row(header, columns, where, cells, *names_in(f"{where}, {column}", cells[at], separator))
        for where, cells in lines
    ]


def _merged(
    columns: Columns, lines: Sequence[_Line], rows: list[Row]
) -> tuple[list[Row], list[str]]:
    """One row an image, where there is one for each of its labels; else the rows as they are.

    Beside the labels there may be whether each is there (OpenImages). Then those that are not
    mentioned are unknown, if any is said to be absent.
    """
    if any(len(row.present) + len(row.unknown) > 1 for row in rows):
        return rows, []
    if columns.value is None and len({(row.split, row.image) for row in rows}) == len(rows):
        return rows, []
    first: dict[tuple[str, str], Row] = {}
    # The labels of each photo; dictionaries where their order counts.
    present: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    unknown: dict[tuple[str, str], set[str]] = defaultdict(set)
    absent: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row, (_, cells) in zip(rows, lines, strict=True):
        photo = row.split, row.image
        first.setdefault(photo, row)
        value = "1" if columns.value is None else cells[columns.value].lower()
        if value in ABSENT | MINUS_ONE:
            absent[photo].update(row.present)
            continue
        if value in PRESENT:
            present[photo].update(dict.fromkeys(row.present))
        else:
            unknown[photo].update(row.present)
        unknown[photo].update(row.unknown)
    notes = [f"{len(rows):,} rows are of {len(first):,} photos: one row a label"]
    if any(absent.values()):
        classes = {name for row in rows for name in row.present}
        unknown = {photo: classes - absent[photo] for photo in first}
        notes.append("labels that are not mentioned are unknown, since some are said to be absent")
    merged = [
        row._replace(present=[*present[photo]], unknown=sorted(unknown[photo] - {*present[photo]}))
        for photo, row in first.items()
    ]
    return merged, notes


def _check_labels(where: str, rows: Sequence[Row], printed: bool) -> None:
    """Refuses what are hardly labels; `printed`: cells say themselves that they are lists."""
    counts = Counter(name for row in rows for name in (*row.present, *row.unknown))
    wrong = suspicious(sorted(counts))
    if not (wrong or printed) and counts.total() >= _FEW and 10 * len(counts) >= 9 * counts.total():
        wrong = f"hardly ever occur twice, such as {short(min(counts))}"
    if wrong:
        raise Failure(
            f"{where}: its labels {wrong}. Which column has the labels? Say --label-column NAME; "
            "this column's own name takes them as they are"
        )
