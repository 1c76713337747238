"""The rows of Parquet files and Excel sheets, as `text.csv_rows` gives those of a CSV file."""

import importlib
import json
import warnings
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from mlic_jax.data.sources.cells import MISSING, short
from mlic_jax.data.sources.columns import IMAGE, plain
from mlic_jax.errors import Failure, UsageError

_MOST_ROWS = 2**20  # of Excel
# What tells types of lists; earlier versions of pyarrow have no views.
_LISTS = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")


def parquet_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The header and the rows of a Parquet file: where each is, for messages, and its cells.

    Columns of neither single values nor lists are left out, see `columns_of`. Numbers that are
    classes, as Hugging Face notes in the schema, become their names.

    Raises:
        UsageError: there is no such file, or no pyarrow.
        Failure: it is not Parquet, or holds the photos themselves.
    """
    arrow, parquet = _package("pyarrow", file), _package("pyarrow.parquet", file)
    try:
        with parquet.ParquetFile(file) as content:
            schema = content.schema_arrow
            _check_photos(file, schema, arrow.types)
            names = [field.name for field in schema if _has_cells(field.type, arrow.types)]
            classes = _class_names(schema.metadata or {})
            yield f"{file}, its columns", names
            number = 0
            for batch in content.iter_batches(columns=names):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    where = f"{file}, row {number}"
                    yield (
                        where,
                        [
                            _cell(_named(value, classes.get(name), f"{where}, column {name!r}"))
                            for name, value in zip(names, values, strict=True)
                        ],
                    )
    except (OSError, ValueError, OverflowError, arrow.ArrowException) as error:
        raise Failure(f"{file} is not Parquet: {' '.join(str(error).split())}") from None


def columns_of(file: Path) -> tuple[list[str], list[str]]:
    """The columns of a Parquet file that `parquet_rows` reads, and those that it leaves out."""
    arrow, parquet = _package("pyarrow", file), _package("pyarrow.parquet", file)
    schema = parquet.read_schema(file)
    read = [field.name for field in schema if _has_cells(field.type, arrow.types)]
    return read, [name for name in schema.names if name not in read]


def xlsx_rows(file: Path, sheet: str = "") -> Iterator[tuple[str, list[str]]]:
    """The header and the rows of a sheet of Excel; "" is the first. Empty rows are left out.

    Raises:
        UsageError: there is no such file or sheet, or no openpyxl.
        Failure: it is no file of Excel, or is empty, or a row goes on beyond the header; or a cell
            has no value of its own, as one that is merged with others.
    """
    names, rows = _read_sheet(file, sheet)
    if rows is None:
        raise UsageError(f"{file} has no sheet {sheet!r}, but {', '.join(map(short, names))}")
    width = 0
    for number, values in enumerate(rows, 1):
        cells = [_cell(value) for value in values]
        where = f"{file}, row {number}"
        width = width or max((i for i, cell in enumerate(cells, 1) if cell), default=0)
        if any(cells[width:]):
            raise Failure(f"{where}: it goes on beyond the {width} columns of the header")
        if any(cells):
            yield where, cells[:width] + [""] * (width - len(cells))
    if not width:
        raise Failure(f"{file} is empty: its sheet must have a header")


def other_sheets(file: Path) -> list[str]:
    """The names of all sheets but the first."""
    return _read_sheet(file, None)[0][1:]


def _read_sheet(file: Path, sheet: str | None) -> tuple[list[str], list[Sequence[Any]] | None]:
    """The names of the sheets, and the values of one, "" the first; None if there is no such."""
    openpyxl = _package("openpyxl", file)
    try:
        with file.open("rb") as content, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it cannot keep, such as drop-down lists
            book = openpyxl.load_workbook(content, read_only=True, data_only=True)
            tables = {table.title: table for table in book.worksheets}
            table = book.worksheets[0] if sheet == "" else tables.get(sheet)
            if table is None:
                return list(tables), None
            table.reset_dimensions()  # what a file says of its extent may be wrong
            rows = list(islice(table.iter_rows(values_only=True), _MOST_ROWS + 1))
            if len(rows) > _MOST_ROWS:  # one far below makes them all
                raise ValueError(f"a sheet has at most {_MOST_ROWS:,} rows")
            with zipfile.ZipFile(file) as parts, parts.open(table._worksheet_path) as part:
                _check_cells(f"{file}, sheet {table.title!r}", part, rows)
            return list(tables), rows
    except Failure:
        raise
    except Exception as error:  # whatever zip, XML and openpyxl raise of a malformed file
        said = " ".join(str(error).split())
        raise Failure(f"{file} is no .xlsx file of Excel: {type(error).__name__} {said}") from None


def _check_cells(where: str, part: IO[bytes], rows: Sequence[Sequence[Any]]) -> None:
    """Refuses cells whose values openpyxl does not give, in the columns that have a header.

    Raises:
        Failure: a cell with a value is merged with others, which have none; a formula was not
            worked out, or to an error.
    """
    from openpyxl.utils import range_boundaries

    widths = (max((i for i, v in enumerate(row, 1) if v is not None), default=0) for row in rows)
    width = next(filter(None, widths), 0)
    for _, element in ElementTree.iterparse(part):
        kind = element.tag.rpartition("}")[2]
        if kind == "row":
            element.clear()
        fault, place = "", element.get("ref" if kind == "mergeCell" else "r", "A1")
        if kind == "mergeCell":
            left, top, *_ = range_boundaries(place)
            if top <= len(rows) and left <= len(rows[top - 1]):
                is_blank = rows[top - 1][left - 1] is None
                fault = "" if is_blank else "these cells are merged, and one alone has the value"
        elif kind == "c":
            parts = {child.tag.rpartition("}")[2]: child.text for child in element}
            if "f" in parts and not parts.get("v") and element.get("t") != "str":
                fault = "the formula was never worked out: open and save the file in Excel"
            elif element.get("t") == "e" and parts.get("v") not in MISSING:
                fault = f"{parts.get('v')} is the error of a formula, and no value"
        if fault and range_boundaries(place)[0] <= width:
            raise Failure(f"{where}, {place}: {fault}")


def _package(name: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise UsageError(f"annotation file {file}: there is none: check `root` and `annotations`")
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UsageError(
            f"{file}: the package {package} is needed to read it: pip install -e '.[tables]'"
        ) from None


def _check_photos(file: Path, schema: Any, types: ModuleType) -> None:
    """Refuses a table with photos in it, as Hugging Face writes them: {bytes, path}."""
    for field in schema:
        parts = list(field.type) if types.is_struct(field.type) else []
        is_named = plain(field.name) in IMAGE and _is_bytes(field.type, types)
        if is_named or any(part.name == "bytes" and _is_bytes(part.type, types) for part in parts):
            raise Failure(
                f"{file}: its column {field.name!r} holds the photos themselves. Save each to a "
                f"file (with the package datasets: row[{field.name!r}].save(NAME)), and a table "
                "with the names of the files in a column file_name"
            )


def _has_cells(kind: Any, types: ModuleType) -> bool:
    """Whether a column is of single values or of lists of them."""
    if any(is_list(kind) for name in _LISTS if (is_list := getattr(types, name, None))):
        kind = kind.value_type
    return not (types.is_nested(kind) or _is_bytes(kind, types))


def _is_bytes(kind: Any, types: ModuleType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """column -> the names of its numbers, as the package datasets notes them in a schema."""
    found = {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        for column, feature in features.items():
            while isinstance(feature, list) or "feature" in feature:  # a list of it
                feature = feature[0] if isinstance(feature, list) else feature["feature"]
            if feature.get("_type") == "ClassLabel":
                found[column] = list(map(str, feature["names"]))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return {}  # the numbers stay, and are refused as names
    return found


def _named(value: Any, names: Sequence[str] | None, where: str) -> Any:
    """Numbers of classes as a list of names, so that a comma in a name divides nothing."""
    if names is None or value is None:
        return value
    numbers = value if isinstance(value, list) else [value] if value != -1 else []  # -1: of none
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise Failure(f"{where}: {short(str(number))} is none of its {len(names)} classes")
    return [names[number] for number in numbers]


def _cell(value: Any) -> str:
    """A value as it stands in a CSV file."""
    return "" if value is None else str(value).strip()
