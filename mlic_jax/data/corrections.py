"""What people say of labels that are wrong or missing: a file beside the recipe of own data.

    photo,split,class,answer,who,when
    barn/0017.jpg,train,dog,present,anna,2026-11-26T21:03:11Z

Annotations are never touched, and nothing is prepared again: labels are corrected when the splits
of a set are opened, for training, evaluation and data card alike, and each photo stays in its
split. The file only grows. Of a person the last answer on a label holds, and `undo` takes it back,
so that the one before holds again. Where persons differ the label is unknown until they agree. What
is said of a photo or a class that there is no more is kept, and not applied.
"""

import contextlib
import csv
import errno
import fcntl
import io
import logging
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlic_jax.data.records import Split
from mlic_jax.data.records.stamps import digest_of_file
from mlic_jax.errors import Failure, UsageError

logger = logging.getLogger(__name__)

FILE = "corrections.csv"  # beside a recipe
VALUES = {"present": 1, "absent": -1, "unknown": 0}
UNDO = "undo"
ANSWERS = (*VALUES, UNDO)
NAMES = {value: name for name, value in VALUES.items()}
LONGEST, LONGEST_WHO = 4096, 100  # characters of what is added; no path is longer


class Answer(NamedTuple):
    """A row of the file."""

    photo: str  # its id in the set
    split: str  # where it was then; it counts only where photos of several splits have the id
    class_name: str
    answer: str  # of `ANSWERS`
    who: str
    when: str  # of `now`


COLUMNS = ("photo", "split", "class", *Answer._fields[3:])


class Label(NamedTuple):
    """A label of a set."""

    split: str
    position: int
    class_index: int


def now() -> str:
    """The time as the file has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- the file


def append(path: str | os.PathLike[str], answers: Sequence[Answer]) -> None:
    """Adds rows to a file, which is made where it is missing; they outlive a loss of power.

    Other processes may do so at the same time. All rows are there in the end, or none. A last line
    that a killed process left unfinished goes.

    Raises:
        UsageError: an answer is none of `ANSWERS`, or a name is empty, of several lines or longer
            than `LONGEST`, that of a person than `LONGEST_WHO`.
        Failure: the disk does not take them, or the file is no such file.
    """
    for answer in answers:
        if answer.answer not in ANSWERS or not all(map(_is_line, answer)):
            raise UsageError(
                f"{_cut(repr(list(answer)))} is no correction: see mlic_jax/data/corrections.py"
            )
        if len(answer.who) > LONGEST_WHO or max(map(len, answer)) > LONGEST:
            raise UsageError(
                f"a correction by {_cut(answer.who)!r} is too long: a name may have {LONGEST_WHO} "
                f"characters, all else {LONGEST:,}"
            )
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # of a network file system that locks no files
            fcntl.flock(file, fcntl.LOCK_EX)
        end = _heal(file, path)
        _put(file, _csv([COLUMNS, *answers] if end == 0 else answers), end)
        if end == 0:
            _sync_folder(path.parent)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    finally:
        os.close(file)


def read(path: str | os.PathLike[str]) -> list[Answer]:
    """The rows of a file in their order; none where there is no file.

    A last line that is unfinished, as a killed process may leave one, does not count.

    Raises:
        Failure: a row is malformed, which names its line; or the file cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    return _parse(content, path)[0]


def require_usable(path: str | os.PathLike[str]) -> None:
    """Changes nothing, and makes no file where there is none.

    Raises:
        Failure: see `read`; or no rows can be added.
    """
    path = Path(path).absolute()
    read(path)
    try:
        if path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_APPEND))
        else:
            folder = next(folder for folder in path.parents if folder.exists())
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error


def _is_line(text: str) -> bool:
    """Whether a line can hold it: half a character that JSON spells out has no bytes."""
    return bool(text.strip()) and not re.search(r"[\r\n\0\ud800-\udc7f\udd00-\udfff]", text)


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue().encode("utf-8", "surrogateescape")


def _heal(file: int, path: Path) -> int:
    """Has the file end in a whole line; gives its size."""
    size = os.fstat(file).st_size
    if size == 0:
        return size
    if os.pread(file, 1, size - 1) == b"\n":
        _parse(os.pread(file, LONGEST, 0).partition(b"\n")[0] + b"\n", path)  # the columns
        return size
    content = os.pread(file, size, 0)
    whole = _parse(content, path)[1]
    if whole == size:  # of a person whose editor ends no line
        os.write(file, b"\n")
        return size + 1
    os.ftruncate(file, whole)
    return whole


def _parse(content: bytes, path: Path) -> tuple[list[Answer], int]:
    """The answers of a file, and how many of its bytes are whole lines of them."""
    text = content.decode("utf-8-sig", "surrogateescape")
    if _is_begun(text, ",".join(COLUMNS)):
        return [], 0
    answers: list[Answer] = []
    for number, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+", text), 1):
        row = _row(line, number, path)
        if number == 1:
            if tuple(row) != COLUMNS:
                raise Failure(f"{path} is no file of corrections: its columns are {_cut(str(row))}")
        elif not line.endswith("\n") and _is_torn(row):
            return answers, len(content) - len(line.encode("utf-8", "surrogateescape"))
        elif row:
            if len(row) != len(COLUMNS) or row[3] not in ANSWERS or not all(map(_is_line, row)):
                raise Failure(
                    f"{path}, line {number}: it must be {','.join(COLUMNS)} with an answer of "
                    f"{', '.join(ANSWERS)}, and is {_cut(line.strip())!r}"
                )
            answers.append(Answer(*row))
    return answers, len(content)


def _row(line: str, number: int, path: Path) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise Failure(
            f"{path}, line {number}: it is no line of CSV, as a field is longer than "
            f"{csv.field_size_limit():,} characters or lines end as on an old Mac: "
            f"{_cut(line.strip())!r}"
        ) from error


def _is_torn(row: Sequence[str]) -> bool:
    """Whether a line without an end is not all there, by the time that is written last of it.

    People may write another time, or none but the date, and their editors may end no line.
    """
    if len(row) != len(COLUMNS):
        return len(row) < len(COLUMNS)
    when = row[-1]
    is_date = bool(re.fullmatch(r"\d{4}-\d\d-\d\d", when))
    return not is_date and _is_begun(re.sub("[0-9]", "0", when), "0000-00-00T00:00:00Z")


def _is_begun(text: str, whole: str) -> bool:
    """Whether a text is a beginning of another, and not all of it."""
    return text != whole and whole.startswith(text)


def _put(file: int, rows: bytes, end: int) -> None:
    """Appends all rows, on the disk when it returns, or none."""
    try:
        if os.write(file, rows) < len(rows):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    except OSError:
        os.ftruncate(file, end)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- what they are of a set


@dataclass(frozen=True)
class Corrections:
    """What the answers of a file are to the splits of a set.

    Attributes:
        answers: all of them, as they came.
        splits: by name, with the labels that they were prepared with.
        places: photo -> split -> its position there, if there are answers.
        standing: label -> who -> the answer that holds; of labels of which any does.
        gone: the answers that would hold of photos and classes that there are not.
    """

    answers: list[Answer]
    splits: dict[str, Split]
    places: dict[str, dict[str, int]]
    standing: dict[Label, dict[str, Answer]]
    gone: list[Answer]

    @classmethod
    def of(cls, splits: Iterable[Split], answers: Sequence[Answer]) -> "Corrections":
        """Of all splits of a set, where an id may recur in another split."""
        named = {split.split: split for split in splits}
        places: dict[str, dict[str, int]] = defaultdict(dict)
        for name, split in named.items() if answers else ():
            for position in range(len(split)):
                places[split.image_id(position)][name] = position
        found = cls(list(answers), named, dict(places), {}, [])
        held: dict[Any, dict[str, list[Answer]]] = {}
        for answer in answers:
            of_label = held.setdefault(found._subject(answer), {})
            of_person = of_label.setdefault(answer.who, [])
            if answer.answer != UNDO:
                of_person.append(answer)
            elif of_person:
                of_person.pop()
        for label, people in held.items():
            last = {who: given[-1] for who, given in people.items() if given}
            if last and isinstance(label, Label):
                found.standing[label] = last
            else:
                found.gone.extend(last.values())
        return found

    def label_of(self, answer: Answer) -> Label | None:
        """What an answer is of; None: there is no such photo or class, or it is not told which."""
        found = self.places.get(answer.photo, {})
        split = answer.split if answer.split in found else next(iter(found), "")
        if not found or (len(found) > 1 and split != answer.split):
            return None
        names = self.splits[split].class_names
        if answer.class_name not in names:
            return None
        return Label(split, found[split], names.index(answer.class_name))

    def _subject(self, answer: Answer) -> Any:
        """What answers have in common that take each other back, also of what is gone."""
        return self.label_of(answer) or answer[:3]

    def holding(self, who: str) -> list[Answer]:
        """The answers of a person that are not taken back, in their order."""
        left: dict[int, Answer] = {}
        places: dict[Any, list[int]] = defaultdict(list)  # of each label, in `left`
        for place, answer in enumerate(self.answers):
            if answer.who != who:
                continue
            of_label = places[self._subject(answer)]
            if answer.answer != UNDO:
                of_label.append(place)
                left[place] = answer
            elif of_label:
                del left[of_label.pop()]
        return list(left.values())

    def value(self, label: Label) -> int:
        """What a label is now: 1, -1 or 0."""
        said = {answer.answer for answer in self.standing.get(label, {}).values()}
        if not said:
            return int(self.splits[label.split].labels()[label[1:]])
        return VALUES[said.pop()] if len(said) == 1 else 0

    def conflicts(self) -> list[Label]:
        """The labels of which persons say different things."""
        return [
            label
            for label, people in self.standing.items()
            if len({answer.answer for answer in people.values()}) > 1
        ]

    def labels(self, split: str) -> np.ndarray:
        """int8 `[N, C]`, the corrected labels of a split."""
        labels = self.splits[split].labels().copy()
        for label in self.standing:
            if label.split == split:
                labels[label[1:]] = self.value(label)
        return labels

    def corrected(self, split: Split) -> Split:
        """A split, of these, with its corrected labels."""
        if any(label.split == split.split for label in self.standing):
            return split.with_labels(self.labels(split.split))
        return split

    def changed(self) -> list[Label]:
        """The labels that are not as they were prepared."""
        return [
            label
            for label in self.standing
            if self.value(label) != self.splits[label.split].labels()[label[1:]]
        ]

    def said(self) -> str:
        """A sentence on what they change; "" where there are none."""
        if not (self.standing or self.gone):
            return ""
        changed = Counter(label.split for label in self.changed())
        counts = ", ".join(f"{count:,} of {split}" for split, count in sorted(changed.items()))
        parts = [f"{counts or 'none'} changed of {len(self.standing):,} labels that people judged"]
        if conflicts := len(self.conflicts()):
            parts.append(f"{conflicts:,} unknown because people disagree")
        if self.gone:
            parts.append(f"{len(self.gone):,} answers not applied, of photos or classes now gone")
        return "; ".join(parts)

    def described(self) -> dict[str, Any]:
        """What a data card says of them, as JSON holds it.

        `said`; `people`, who -> the labels that they spoke of; `changed`, `conflicts` and `gone`,
        lists of `photo`, `split`, `class`, `answers` (of `who`, `answer`, `when`), and but for
        `gone` what the label `was` and what it `is`.
        """
        people = Counter(who for of_label in self.standing.values() for who in of_label)
        conflicts = dict.fromkeys(self.conflicts())
        return {
            "said": self.said(),
            "people": dict(people.most_common()),
            "changed": [self._row(label) for label in self.changed() if label not in conflicts],
            "conflicts": [self._row(label) for label in conflicts],
            "gone": [_told(answer) | {"answers": [_short(answer)]} for answer in self.gone],
        }

    def _row(self, label: Label) -> dict[str, Any]:
        people = self.standing[label].values()
        split = self.splits[label.split]
        return {
            "photo": split.image_id(label.position),
            "split": label.split,
            "class": split.class_names[label.class_index],
            "was": NAMES[int(split.labels()[label[1:]])],
            "is": NAMES[self.value(label)],
            "answers": [_short(answer) for answer in people],
        }


def of_file(splits: Mapping[str, Split], path: str) -> Corrections:
    """The corrections in a file, "" or one that there is not: none, to the splits of a set by role.

    Raises:
        Failure: see `read`.
    """
    return Corrections.of(splits.values(), read(path) if path else [])


def correct(splits: Mapping[str, Split], path: str) -> dict[str, Split]:
    """Splits by role, with the labels that a file corrects, see `of_file`; a line says how many."""
    found = of_file(splits, path)
    if path and not os.path.exists(path):
        logger.info("%s: there is no such file yet, labels are as annotated", path)
    if said := found.said():
        logger.info("%s: %s", path, said)
    return {role: found.corrected(split) for role, split in splits.items()}


def noted(path: str) -> dict[str, Any] | None:
    """What figures say of the file that they were computed with; None where nobody has answered.

    `answers`, how many rows there are, and `digest`, of the file.

    Raises:
        Failure: see `read`.
    """
    answers = read(path) if path else []
    return {"answers": len(answers), "digest": digest_of_file(path)} if answers else None


def _told(answer: Answer) -> dict[str, str]:
    return {"photo": answer.photo, "split": answer.split, "class": answer.class_name}


def _short(answer: Answer) -> dict[str, str]:
    return {"who": answer.who, "answer": answer.answer, "when": answer.when}
