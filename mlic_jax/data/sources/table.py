"""Own data in a table: CSV, Parquet, Excel or JSON Lines."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlic_jax.data.sources import layout
from mlic_jax.data.sources.cells import is_names
from mlic_jax.data.sources.columns import IMAGE, LABELS, check_left_out, plain
from mlic_jax.data.sources.csv_table import photo_path, read_cells, read_csv
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.partition import is_partition, partition_files, with_partition
from mlic_jax.data.sources.rows import Row, Rows, RowSet, split_by_path
from mlic_jax.data.sources.sheets import columns_of, other_sheets, parquet_rows, xlsx_rows
from mlic_jax.data.sources.split_names import SPLIT, role_of, splits_of
from mlic_jax.data.sources.text import csv_rows
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text


class Table(RowSet):
    """Own data: images, and a table that says what each of them shows.

    Every path is relative to the folder of images, and is the image's id. Images without labels are
    kept, and show none of the classes. A table may name a split for each image, in a column or as a
    folder of its path, see `split_by_path`, or be one of a file a split; else see `RowSet`.

    CSV: a header, and between columns commas, semicolons or tabs; see `text.read_text` about
    encodings. One column has the paths (image, path, file_name, ...: `columns.IMAGE`, else the
    first one), `split` (or split_name) the splits; or `is_valid` says yes of
    those of val. Then there is either
      a column `labels` (or tags, classes, ...: `columns.LABELS`) with the names of the labels
        present, separated by `;`, `|`, `,` or blanks, or as a list, tuple, set or array of Python
        or NumPy; a name that ends in `?` is unknown; the classes are sorted. An image may have a
        row for each of its labels;
      or a column a class, in the order of the classes, with 1 (present), 0 (absent) or ? (unknown);
        also 1.0 and 0.0, True and False. An empty cell is 0. -1 is 0 where no cell is 0, as in
        CelebA, and else ?, as in CheXpert;
      or columns of attributes, of which `red` in the column colour is the label colour=red.

    Parquet, and the first sheet of a file of Excel or the one that is named: cells as those of CSV,
    and in Parquet also lists of names.

    JSON Lines: objects of `image`, `labels` (a name or a list of names), and, if wanted, `unknown`
    (likewise) and `split`; other fields do not count. The classes are sorted.

    Args:
        name: of the prepared set.
        root: the folder that the other two are relative to.
        splits: those that are asked for.
        kind: a key of `TABLES`.
        annotations: the table, or a pattern with `{split}` in it.
        image_dir: the folder of images, or a pattern; "" is root itself.
        image_column, label_column, cell_separator: of all but JSON Lines, where they are not to be
            told; several columns of labels, with commas between, are attributes.
        sheet: of a file of Excel; "" is the first.
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
        image_column: str = "",
        label_column: str = "",
        cell_separator: str = "",
        sheet: str = "",
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        told = {
            "image_column": image_column,
            "label_column": label_column,
            "cell_separator": cell_separator,
            "sheet": sheet,
        }
        told = {option: value for option, value in told.items() if value}
        super().__init__(
            name,
            splits,
            root=root,
            image_dir=image_dir,
            read=lambda: read_tables(kind, root, annotations, **told),
            files=lambda: _read_files(root, annotations),
            kind=kind,
            options={"annotations": annotations, "image_dir": image_dir} | told,
            train_share=train_share,
            split_seed=split_seed,
        )


def read_tables(kind: str, root: Path, annotations: str, **told: str) -> Rows:
    """What a table says, or all tables of a pattern.

    Raises:
        UsageError: there is no such file.
        Failure: one is malformed, or they are not of the same classes.
    """
    if SPLIT not in annotations:
        file = root / annotations
        return split_by_path(with_partition(TABLES[kind](file, **told), file))
    files = _files(root, annotations)
    if not files:
        raise UsageError(f"no file fits {root / annotations}: check `root` and `annotations`")
    tables = {
        split: TABLES[kind](file, **told)
        for split, file in files.items()
        if has_labels(kind, file, told.get("sheet", ""))
    }
    names = [table.class_names for table in tables.values()]
    for split, table in tables.items():
        if set(table.class_names) != set(names[0]):
            other = next(iter(tables))
            raise Failure(f"the columns of {files[split]} and {files[other]} are not the same")
    rows = [row._replace(split=split) for split, table in tables.items() for row in table.rows]
    notes = dict.fromkeys(note for table in tables.values() for note in table.notes)
    without = [file.name for split, file in files.items() if split not in tables]
    if without:
        notes[f"{', '.join(without)}: no labels, not read"] = None
    return Rows(names[0] if names else (), rows, tuple(notes))


def _read_files(root: Path, annotations: str) -> list[Path]:
    """All that `read_tables` reads."""
    beside = [] if SPLIT in annotations else partition_files(root / annotations)
    return [*_files(root, annotations).values(), *beside]


def _files(root: Path, annotations: str) -> dict[str, Path]:
    """The file of every split; that of all splits is of ""."""
    splits = splits_of(root, annotations) if SPLIT in annotations else ("",)
    return {split: root / annotations.replace(SPLIT, split) for split in splits}


def has_labels(kind: str, file: Path, sheet: str = "") -> bool:
    """Whether a table says more than which photos there are: lists of what to predict do not."""
    if kind in _CELLS:
        return len(next(_CELLS[kind](file, **({"sheet": sheet} if sheet else {})))[1]) > 1
    where = f"{file}, line 1"
    first = next((json_text.parse(line, where) for line in _lines(file) if line.strip()), None)
    return not isinstance(first, dict) or _field(first, LABELS) in first


# --- JSON Lines ---


def _read_jsonl(file: Path, **told: str) -> Rows:
    rows = []
    try:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                rows.append(_json_row(f"{file}, line {number}", line))
    except UnicodeDecodeError as error:
        raise Failure(f"{file} is not text in UTF-8: {error}") from None
    return Rows((), rows)


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except OSError as error:
        raise UsageError(
            f"annotation file {file}: {error.strerror}: check `root` and `annotations`"
        ) from error


def _json_row(where: str, line: str) -> Row:
    fields = json_text.parse(line, where)
    if not isinstance(fields, dict):
        raise Failure(f"{where}: it must be an object with the fields image and labels")
    image = photo_path(fields.get(_field(fields, IMAGE)), f"{where}: the field image")
    split = fields.get("split")
    if not (split is None or (isinstance(split, str) and split)):
        raise Failure(f"{where}: the field split must be a name")
    labels: Any = fields.get(_field(fields, LABELS))
    labels = [labels] if isinstance(labels, str) and labels else labels
    for field, names in (("labels", labels), ("unknown", fields.get("unknown", []))):
        if not is_names(names):
            raise Failure(f"{where}: the field {field} must be a list of names")
    stripped = [name.strip() for name in labels], [n.strip() for n in fields.get("unknown", [])]
    return Row(where, image, *stripped, split or "")


def _field(fields: dict[str, Any], names: Sequence[str]) -> str:
    """The field of the first of the names that there is."""
    known = {plain(field): field for field in reversed(fields)}
    return next((known[name] for name in names if name in known), names[0])


# --- Parquet and Excel ---


def _read_parquet(file: Path, **told: str) -> Rows:
    rows = read_cells(parquet_rows(file), **told)
    read, others = columns_of(file)
    if not told.get("label_column"):
        check_left_out(file, read, others)
    note = f"columns that are neither values nor lists: {', '.join(others)}"
    return rows._replace(notes=[*[note] * bool(others), *rows.notes])


def _read_xlsx(file: Path, sheet: str = "", **told: str) -> Rows:
    others = [] if sheet else other_sheets(file)
    try:
        rows = read_cells(xlsx_rows(file, sheet), **told)
    except Failure as failure:
        if not others:
            raise
        raise Failure(
            f"{failure}. This is the first sheet; for another say --sheet: {', '.join(others)}"
        ) from failure
    note = f"the first sheet is read, not {', '.join(others)}; see --sheet"
    return rows._replace(notes=[*[note] * bool(others), *rows.notes])


# The reader of each kind of table; and what gives the cells of those that have any.
TABLES: dict[str, Callable[..., Rows]] = {
    "csv": read_csv,
    "parquet": _read_parquet,
    "xlsx": _read_xlsx,
    "jsonl": _read_jsonl,
}
_CELLS: dict[str, Callable[..., Iterator[tuple[str, list[str]]]]] = {
    "csv": csv_rows,
    "parquet": parquet_rows,
    "xlsx": xlsx_rows,
}


# --- telling the format

_FOLDERS = ("annotations", "annotation", "labels", "metadata", "data")
_SUFFIXES = {
    "csv": (".csv", ".tsv", ".txt"),
    "parquet": (".parquet",),
    "xlsx": (".xlsx", ".xlsm"),
    "jsonl": (".jsonl", ".ndjson"),
}


def find(
    kind: str, images: Path, annotations: Path | None, told: Mapping[str, str]
) -> Layout | None:
    """See `layout.Format`."""
    splits: tuple[str, ...] = ()
    if annotations is None:
        if not images.is_dir():
            return None
        for files in layout.files_in(images, _SUFFIXES[kind])[:2]:
            # Kaggle's list of what to predict, with labels for an example.
            files = [file for file in files if not file.stem.startswith("sample_submission")]
            files = [file for file in files if _may_be_table(file) and not is_partition(file)]
            if len(files) > 1:
                files = [file for file in files if has_labels(kind, file, told.get("sheet", ""))]
            files = [file for file in files if _is_in_place(images, file)]
            if found := layout.one_or_a_split_each(images, files, f"files of the format {kind}"):
                annotations, splits = found
                break
    if annotations is None or annotations.suffix.lower() not in _SUFFIXES[kind]:
        return None
    if annotations.is_file() and not _may_be_table(annotations):
        return None
    if SPLIT in str(annotations):
        root = Path(layout.fixed_part(str(annotations)))
        splits = splits_of(root, annotations.relative_to(root).as_posix())
        if not splits:
            raise UsageError(f"no file fits --annotations {annotations}")
    elif not annotations.is_file():
        return None
    root = Path(layout.fixed_part(str(annotations))) if splits else annotations.parent
    names: dict[str, list[str]] = defaultdict(list)
    for row in read_tables(kind, root, annotations.relative_to(root).as_posix(), **told).rows:
        names[row.split].append(row.image)
    folder, notes = layout.image_folder(images, annotations, names)
    seen = annotations.name + (f" for {', '.join(splits)}" if splits else "")
    return Layout(kind, seen, layout.options(folder, annotations), notes)


def _may_be_table(file: Path) -> bool:
    """Whether a file is a table by its suffix; of texts, only those whose header says so."""
    if file.suffix.lower() != ".txt":
        return True
    with file.open("rb") as lines:
        header = lines.readline(1000).decode("utf-8-sig", "replace")
    first, *others = [plain(name) for name in re.split("[,;\t]", header)]
    if first in ("id", "name"):
        return not {*others}.isdisjoint(LABELS)
    return bool(others) and first in IMAGE


def _is_in_place(images: Path, file: Path) -> bool:
    """Whether a file lies where tables of a set do, and not among the photos of a class."""
    folder = file.parent
    return folder == images or bool(role_of(folder.name)) or folder.name.lower() in _FOLDERS


_TOLD = ("image_column", "label_column", "cell_separator")
CSV = layout.Format(partial(find, "csv"), "a .csv table of images and labels", _TOLD)
PARQUET = layout.Format(partial(find, "parquet"), "a .parquet table of images and labels", _TOLD)
XLSX = layout.Format(partial(find, "xlsx"), "an .xlsx table of images, labels", (*_TOLD, "sheet"))
JSONL = layout.Format(partial(find, "jsonl"), "a .jsonl file of images and labels")
