"""Text files of people: in which encoding they are, and the rows of a CSV file."""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from mlic_jax.errors import Failure, UsageError

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_TOUCHING = re.compile(rb"[A-Za-z][\x80-\xff]+|(?<![\x80-\xff])[\x80-\xff]+[A-Za-z]")


def read_text(file: Path) -> tuple[str, str]:
    """The text of a file, and its encoding as Python calls it.

    UTF-8 or UTF-16 if it says so; else UTF-8 where it is that; else what Windows writes, cp1252 in
    the west and GBK in China: of Chinese every character is two bytes above 0xa0, and few of them
    touch a Latin letter.

    Raises:
        UsageError: it cannot be read.
        Failure: it is none of these.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"annotation file {file}: {error.strerror}: check `root` and `annotations`"
        ) from error
    marked = [encoding for mark, encoding in _MARKS.items() if content.startswith(mark)]
    runs = _HIGH_BYTES.findall(content)
    touching = len(_TOUCHING.findall(content))
    chinese = all(len(run) % 2 == 0 and min(run) > 0xA0 for run in runs)
    chinese &= 2 * touching < len(runs)
    for encoding in marked or ("utf-8", "gbk" if chinese else "cp1252"):
        try:
            return content.decode(encoding), encoding
        except UnicodeDecodeError as error:
            reason = error
    raise Failure(f"{file} is not text in UTF-8, nor in {encoding}: {reason}; save it as UTF-8")


def csv_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file: where each is, for messages, and its cells, stripped of blanks.

    The first one is the header; every other has as many cells. Empty lines are left out, and so are
    empty cells beyond the last column that has a name. Between columns there are commas,
    semicolons or tabs: whichever divides the header into most.

    Raises:
        UsageError: there is no such file.
        Failure: it is not CSV, or a row has too few or too many cells.
    """
    text, _ = read_text(file)
    first, lines = next((line for line in text.splitlines() if line.strip()), ""), text
    if told := re.fullmatch(r"sep=(.)", first.strip()):  # of Excel
        delimiter, lines = told[1], text.partition("\n")[2]
    else:
        delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
    width = 0  # of the header, once it was read
    reader = csv.reader(io.StringIO(lines, newline=""), strict=True, delimiter=delimiter)
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num + bool(told)}"
            cells = [cell.strip() for cell in row]
            if not width and any(cells):
                width = max(i for i, cell in enumerate(cells, 1) if cell)
            if any(cells) and (len(cells) < width or any(cells[width:])):
                raise Failure(f"{where}: {len(cells)} columns, and the header has {width}")
            if any(cells):
                yield where, cells[:width]
    except csv.Error as error:
        raise Failure(f"{file}, line {reader.line_num} is not CSV: {error}") from None
    if not width:
        raise Failure(f"{file} is empty: it must have a header")
