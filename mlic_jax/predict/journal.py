"""What a run of predictions has done, on the disk as soon as it is done, so that it can go on.

`.resume.jsonl` begins with a line about the run: its checkpoint and its options. Each further line
is of one photo:

    row       a line of `predictions.jsonl`
    peaks     the highest value of the activation map of every region, which the page shows
    identity  what its file was like, by which a changed one is known

`predictions.csv` and `predictions.jsonl` grow beside it and can be made from it again. A line that
a killed process left unfinished does not count.
"""

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mlic_jax.files.atomic import written_whole

TABLE, LINES, JOURNAL = "predictions.csv", "predictions.jsonl", ".resume.jsonl"

Entry = dict[str, Any]


class Journal:
    """The rows of a run, in three files of `folder`; goes on with those that are there.

    Args:
        folder: it must be there.
        run: what the run is of; JSON.
        class_names: the columns of `predictions.csv`.
    """

    def __init__(self, folder: Path, run: dict[str, Any], class_names: Sequence[str]):
        self._paths = [Path(folder) / name for name in (JOURNAL, LINES, TABLE)]
        self._run, self._class_names = run, class_names
        entries = itertools.islice(_entries(self._paths[0]), 1, None)
        # Where the line of every file begins.
        self._offsets = {entry["row"]["file"]: offset for offset, entry in entries}
        self._outputs: list[BinaryIO] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, file: str) -> bool:
        return file in self._offsets

    def __iter__(self) -> Iterator[Entry]:
        """The entries, in the order of the rows."""
        if self._offsets:
            with self._paths[0].open("rb") as journal:
                for offset in self._offsets.values():
                    journal.seek(offset)
                    yield json.loads(journal.readline())

    def arrange(self, files: Iterable[str]) -> None:
        """Keeps the rows of `files` alone, in this order; to be called before the first `add`."""
        files = list(files)
        if self._outputs and files == list(self._offsets):
            return
        wanted = {file: self._offsets[file] for file in files if file in self._offsets}
        self._open.close()
        self._offsets, kept = wanted, iter(self)
        with contextlib.ExitStack() as stack:
            partial = [stack.enter_context(written_whole(path)) for path in self._paths]
            outputs = [stack.enter_context(path.open("wb")) for path in partial]
            self._write(outputs, self._header())
            offsets = {}
            for entry in kept:
                offsets[entry["row"]["file"]] = outputs[0].tell()
                self._write(outputs, self._lines(entry))
        self._offsets = offsets
        self._outputs = [self._open.enter_context(path.open("ab")) for path in self._paths]

    def add(self, entry: Entry) -> None:
        """Writes the row of a photo; it outlives the process from now on."""
        offset = self._outputs[0].tell()
        self._write(self._outputs, self._lines(entry))
        for output in self._outputs:
            output.flush()
        self._offsets[entry["row"]["file"]] = offset

    def _header(self) -> tuple[bytes, bytes, bytes]:
        columns = ["file", "labels", "error", *self._class_names]
        return _json_line(self._run), b"", _csv_line(columns)

    def _lines(self, entry: Entry) -> tuple[bytes, bytes, bytes]:
        row = table_row(entry["row"], self._class_names)
        return _json_line(entry), _json_line(entry["row"]), _csv_line(row)

    @staticmethod
    def _write(outputs: Sequence[BinaryIO], lines: Sequence[bytes]) -> None:
        for output, line in zip(outputs, lines, strict=True):
            output.write(line)


def begun(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder is of; None where there is none that could go on."""
    return next((run for _, run in _entries(Path(folder) / JOURNAL)), None)


def has_rows(folder: Path) -> bool:
    """Whether a run in a folder has done anything."""
    return len(list(itertools.islice(_entries(Path(folder) / JOURNAL), 2))) == 2


def table_row(row: dict[str, Any], class_names: Sequence[str]) -> list[str]:
    """A row of `predictions.csv` from a line of `predictions.jsonl`."""
    scores = [f"{row['scores'][name]:.6f}" for name in class_names if row["scores"]]
    return [
        row["file"],
        ";".join(row["labels"]),
        row["error"] or "",
        *(scores or [""] * len(class_names)),
    ]


def _entries(journal: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where the lines begin and what they say, up to one that is not whole."""
    try:
        file = journal.open("rb")
    except FileNotFoundError:
        return
    with file:
        offset = 0
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield offset, entry
            offset += len(line)


def _json_line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _csv_line(values: Sequence[str]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(values)
    return line.getvalue().encode("utf-8", "backslashreplace")
