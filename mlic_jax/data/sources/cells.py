"""What a cell of a table means: the names of labels, or of one label whether it is there."""

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeGuard

from mlic_jax.data.image_files import image_suffixes
from mlic_jax.errors import Failure

# How pandas and others write that there is no value.
MISSING = frozenset({"", "nan", "NaN", "NA", "N/A", "<NA>", "NaT", "None", "null", "NULL", "#N/A"})
PRESENT, ABSENT, UNKNOWN = (
    frozenset({"1", "1.0", "1,0", "true", "x"}),
    frozenset({"0", "0.0", "0,0", "false"}),
    frozenset({"?", "uncertain", "unknown"}),
)
MINUS_ONE = frozenset({"-1", "-1.0", "-1,0"})
_USUAL_SEPARATORS = "[;|,]"
_OTHER_SEPARATORS = "/+&:~#"  # where what they divide also occurs alone
# A list, tuple, set or array as Python, NumPy and pandas write them; and the texts in them.
_OBJECT = re.compile(
    r"(?s)\s*(?:(?:np\.|numpy\.|pd\.)?(?:array|frozenset|set|tuple|list|Index)\((.*?)"
    r"(?:,\s*dtype=[^)]*)?\)|([\[({].*))\s*"
)
_TEXT = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
_NUMPY_TEXT = re.compile(rf"(?:np\.|numpy\.)?str_\(({_TEXT})\)")
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def python_list(text: str) -> list[str]:
    """The names in a Python list, such as `['sky', 'dog']`; nothing but literals is evaluated.

    Raises:
        ValueError: it is no list of names.
    """
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        names = None
    if not is_names(names):
        raise ValueError(f"{short(text)} is not a Python list of names")
    return names


def is_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def is_object(text: str) -> bool:
    """Whether a cell holds what a program printed, and not a plain name."""
    return _OBJECT.fullmatch(text) is not None


def object_names(text: str) -> list[str]:
    """The names in a list, tuple, set or array as Python, NumPy, pandas or JSON write it.

    NumPy puts blanks between texts, which Python would join to one.

    Raises:
        ValueError: it is something else.
    """
    if (found := _OBJECT.fullmatch(text)) is None:
        raise ValueError(f"{short(text)} is not a Python list of names")
    wrapped, bare = found.groups()
    body = (bare if wrapped is None else wrapped).strip()
    if body.startswith('{"choices"'):  # of Label Studio
        try:
            return _checked(json.loads(body)["choices"], text)
        except ValueError:
            raise ValueError(f"{short(text)} is not JSON") from None
    if body:
        if _CLOSING.get(body[0]) != body[-1] or len(body) < 2:
            raise ValueError(f"{short(text)} is not a Python list of names")
        body = _NUMPY_TEXT.sub(r"\1", body[1:-1])
    if re.sub(_TEXT, "", body).strip(", \t\r\n"):
        raise ValueError(f"{short(text)} is not a Python list of names")
    try:
        return _checked([ast.literal_eval(name) for name in re.findall(_TEXT, body)], text)
    except SyntaxError:  # a zero byte, or an escape of no character
        raise ValueError(f"{short(text)} is not a Python list of names") from None


def _checked(names: object, text: str) -> list[str]:
    if not is_names(names):
        raise ValueError(f"{short(text)} is not a Python list of names")
    return names


def names_in(where: str, text: str, separator: str) -> tuple[list[str], list[str]]:
    """The labels present and the unknown ones, from a cell that lists them.

    Args:
        where: how a message begins.
        text: the cell.
        separator: of `separator_of`.

    Raises:
        Failure: a name is empty, or the cell is an object that holds something else.
    """
    if text in MISSING:
        return [], []
    try:
        if is_object(text):
            names = object_names(text)
        elif separator:
            names = text.split(None if separator == " " else separator)
        else:
            names = re.split(_USUAL_SEPARATORS, text)
    except ValueError as error:
        raise Failure(f"{where}: {error}") from None
    names = [" ".join(name.split()) for name in names]
    if len(names) > 1 and not names[-1]:  # cat;dog;
        names.pop()
    present = [name for name in names if not name.endswith("?")]
    unknown = [name[:-1].strip() for name in names if name.endswith("?")]
    if "" in (*present, *unknown):
        raise Failure(f"{where}: a name in {short(text)} is empty")
    return present, unknown


def separator_of(where: str, cells: Sequence[str]) -> str:
    """What is between the labels in a column: "" (any of `;`, `|` and `,`), " " or another mark.

    Blanks are, where the words of every cell that has some are also cells alone, or where there are
    cells of many lengths, made of the same words. They are part of names, as in `traffic light`,
    where no such word occurs in a second cell. What lies between is not guessed.

    Raises:
        Failure: it cannot be told.
    """
    plain = {cell for cell in cells if cell not in MISSING and not is_object(cell)}
    cells = sorted({cell.removesuffix("?").strip() for cell in plain})
    for cell in cells:
        if len(marks := [mark for mark in ";|," if mark in cell]) > 1:
            said = " or ".join(f"--cell-separator {mark!r}" for mark in marks)
            raise Failure(
                f"{where}: what divides the labels of {short(cell)}, and what belongs to names? "
                f"Say {said}"
            )
    if any(re.search(_USUAL_SEPARATORS, cell) for cell in cells):
        return ""
    for mark in _OTHER_SEPARATORS:
        parts = [part.strip() for cell in cells if mark in cell for part in cell.split(mark)]
        if parts and {*parts} <= {*cells}:
            return mark
    several = [cell.split() for cell in cells if len(cell.split()) > 1]
    if not several:
        return ""
    words = {word for cell in several for word in cell}
    in_cells = Counter(word for cell in cells for word in set(cell.split()))
    alone = words & set(cells)
    recurring = sum(in_cells[word] > 1 for word in words) / len(words)
    if len(alone) == len(words):
        return " "
    if recurring == 0:
        return ""
    if recurring >= 0.8 and len({len(cell) for cell in several}) > 1 and max(map(len, several)) > 2:
        return " "
    raise Failure(
        f"{where}: are the words of {short(' '.join(several[0]))} labels of their own? Say "
        "--cell-separator ' ' if they are, and --cell-separator ';' if blanks belong to names"
    )


def suspicious(names: Sequence[str]) -> str:
    """Why names are hardly those of classes, for a message; "" if they may be."""
    numbers = [name for name in names if re.fullmatch(r"[+-]?\d+([.,]\d+)?", name)]
    if 2 * len(numbers) >= len(names) > 0:
        return f"are numbers, such as {short(numbers[0])}"
    for name in names:
        if name.lower() in {"true", "false", "yes", "no", "nan"}:
            return f"are answers, such as {short(name)}"
        if name[0] in "[({" or (name[-1] in "]})" and not re.search(r"[\[({]", name)):
            return f"have brackets, such as {short(name)}"
        if re.search(r"\.\w+$", name) and f".{name.rpartition('.')[2].lower()}" in image_suffixes():
            return f"are files, such as {short(name)}"
    return ""


def short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
