"""Reads pickles of arrays and plain containers, such as MSRN's label inputs, and runs no code.

A pickle is a program for a machine of its own. Python's may import and call anything, makes room
for whatever length it is told, and hashes what takes for ever to hash. `interpret` knows the part
of the language that arrays and containers are written in, and calls nothing but what it is given,
under the names that NumPy and Python give to their constructors. Whatever else a pickle names is
refused before it is imported. What it takes grows with the size of the file alone:

- Every length is that of bytes which are there, and no value is copied as often as it is named.
- Keys and members of sets are text, bytes and single numbers, which are hashed at once.
- What is shared counts as often as it occurs, so that whoever goes through the result comes to an
  end: a few bytes can make a pair of twice the same pair of twice the same pair, and so on.
"""

import mmap
import os
import pickletools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlic_jax.errors import Failure, UsageError

_MOST_STEPS = 4_000_000  # of the machine: seconds; a number in a list takes one
_DEEPEST = 32  # containers in containers
_SINGLE = (type(None), bool, int, float, str, bytes, np.generic)
_COPIED = (str, bytes, bytearray, list)  # by a constructor
_TOO_OFTEN = "it names the same things so often that it is far larger than its bytes"

# The instructions that push their argument, push something new, and collect from the stack.
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(ValueError):
    """A pickle names what is not allowed."""


class Unbuilt:
    """What a constructor returns if the object is complete only with a state that follows."""

    built: Any = None  # what `build` returned

    def build(self, state: Any) -> Any:
        """The object, in the place of this one."""
        raise NotImplementedError


class Foreign:
    """Stands for a class that is not imported: its objects are read, and whoever calls it refused.

    A pickle makes an object without a call where it gives its state afterwards, as of
    `argparse.Namespace`; nothing of that state is kept.
    """

    def __init__(self, name: str):
        self.name = name
        self.objects: list[Opaque] = []

    def __call__(self, *_arguments: Any) -> Any:
        raise Refused(self.name)

    def new(self) -> "Opaque":
        self.objects.append(Opaque())
        return self.objects[-1]


class Opaque(dict[Any, Any], Unbuilt):
    """Stands for an object of which nothing is kept, and holds its items if it is a dictionary."""

    def __init__(self, *_arguments: Any):
        super().__init__()

    def build(self, state: Any) -> "Opaque":
        return self


class _Name:
    """What a pickle imports: a constructor, or None for what is only handed to one."""

    def __init__(self, construct: Callable[..., Any] | None):
        self.construct = construct


Find = Callable[[str, str], Callable[..., Any] | None]


def interpret(file: Any, find: Find, stored: Callable[[Any], Any] | None = None) -> Any:
    """What the next pickle of a file holds; the file is left behind it.

    Args:
        file: bytes to `read`, `readline` and `tell`, of which no `read` makes room for more than
            there is: a map of a file, or bytes in memory.
        find: module, name -> what stands for it, or None where it is only an argument, or a
            `Foreign` whose objects are read past; raises Refused for whatever else. What stands
            for it must not take more than its arguments.
        stored: persistent id -> object; None where there are none.

    Raises:
        Refused: it names anything else.
        ValueError: it is damaged, cut short, larger than its bytes, or no pickle.
    """
    start, position = file.tell(), 0
    machine = _Machine(find, stored)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd text
            for step, (opcode, argument, at) in enumerate(pickletools.genops(file)):
                position = at or 0  # None is of files that cannot tell
                if step == _MOST_STEPS:
                    raise ValueError(f"more than {_MOST_STEPS:,} instructions")
                if opcode.name == "STOP":
                    break
                machine.do(opcode.name, argument, position - start)
        (value,) = machine.take(1)
        _check_extent(value, 2 * (file.tell() - start))
        return value
    except Refused:
        raise
    except Exception as error:  # damaged bytes can end in almost any exception
        raise ValueError(f"near byte {position}: {error}") from error


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, find: Find, stored: Callable[[Any], Any] | None):
        self._find, self._stored = find, stored
        self._stack: list[Any] = []
        self._marks: list[int] = []  # how much of the stack lies below each
        self._memo: dict[int, Any] = {}
        self._handed = 0  # to constructors: characters, bytes and values

    def do(self, name: str, argument: Any, read: int) -> None:
        """Executes one instruction, after so many bytes."""
        if name in _ARGUMENTS:
            self._stack.append(argument)
        elif name in _NEW:
            self._stack.append(_NEW[name]())
        elif name in _TUPLES:
            self._stack.append(tuple(self.take(_TUPLES[name])))
        else:
            self._do_other(name, argument, read)

    def take(self, count: int) -> list[Any]:
        """Removes the topmost values of the stack, above the last mark."""
        start = len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise ValueError("a value is missing")
        return self._cut(start)

    def _do_other(self, name: str, argument: Any, read: int) -> None:
        push = self._stack.append
        match name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                value = self._memo[argument]
                is_built = isinstance(value, Unbuilt) and value.built is not None
                push(value.built if is_built else value)
            case "MARK":
                self._marks.append(len(self._stack))
            case "TUPLE":
                push(tuple(self._above_mark()))
            case "LIST":
                push(self._above_mark())
            case "DICT":
                push(_as_dict(self._above_mark()))
            case "FROZENSET":
                push(frozenset(_as_keys(self._above_mark())))
            case "APPEND":
                self._fill(list, self.take(1))
            case "APPENDS":
                self._fill(list, self._above_mark())
            case "SETITEM":
                self._fill(dict, self.take(2))
            case "SETITEMS":
                self._fill(dict, self._above_mark())
            case "ADDITEMS":
                self._fill(set, self._above_mark())
            case "GLOBAL":
                push(_Name(self._find(*argument.split(" ", 1))))
            case "STACK_GLOBAL":
                push(_Name(self._find(*self.take(2))))
            case "REDUCE":
                function, arguments = self.take(2)
                push(self._construct(function, arguments, most=2 * read))
            case "NEWOBJ":
                name, _arguments = self.take(2)
                if not (isinstance(name, _Name) and isinstance(name.construct, Foreign)):
                    raise ValueError("an object of what is no class")
                push(name.construct.new())
            case "BUILD":
                unbuilt, state = self.take(2)
                unbuilt.built = unbuilt.build(state)
                push(unbuilt.built)
            case "BINPERSID" if self._stored:
                push(self._stored(*self.take(1)))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise ValueError(f"{name}, which arrays and plain containers are not made with")

    def _above_mark(self) -> list[Any]:
        return self._cut(self._marks.pop())

    def _cut(self, start: int) -> list[Any]:
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def _fill(self, kind: type, values: list[Any]) -> None:
        """Puts values into the container on the stack."""
        container = self._stack[-1]
        if not isinstance(container, kind):
            raise ValueError(f"{type(container).__name__} in the place of {kind.__name__}")
        if isinstance(container, list):
            container.extend(values)
        elif isinstance(container, dict):
            container.update(_as_dict(values))
        elif isinstance(container, set):
            container.update(_as_keys(values))

    def _construct(self, function: Any, arguments: tuple[Any, ...], most: int) -> Any:
        if not (isinstance(function, _Name) and function.construct):
            raise ValueError("a call of what is no constructor")
        self._handed += sum(len(a) for a in arguments if isinstance(a, _COPIED))
        if self._handed > most:
            raise ValueError(_TOO_OFTEN)
        return function.construct(*arguments)


def _as_dict(pairs: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(_as_keys(pairs[::2]), pairs[1::2], strict=True))


def _as_keys(values: Sequence[Any]) -> Sequence[Any]:
    """The values, if each is hashed at once, and few to the same."""
    for value in values:
        if not isinstance(value, _SINGLE) or (type(value) is int and value.bit_length() > 64):
            raise ValueError(f"a key must be text, bytes or a number, not {type(value).__name__}")
    return values


def _check_extent(value: Any, most: int) -> None:
    """Refuses what is of more than `most` parts, shared ones counted wherever they occur.

    A number or a text is one part, and so is a byte of an array.
    """
    level, extent = [value], 0
    for _ in range(_DEEPEST):
        extent += sum(map(_extent, level))
        if extent > most:
            raise ValueError(_TOO_OFTEN)
        level = [part for container in level for part in _parts(container)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _extent(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return 1 + value.nbytes
    if isinstance(value, dict):
        return 1 + 2 * len(value)
    if isinstance(value, list | tuple | set | frozenset):
        return 1 + len(value)
    return 1


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple | set | frozenset) else ()


# --- arrays and plain containers


class _Dtype(Unbuilt):
    """Stands for a numpy.dtype of plain numbers."""

    def __init__(self, code: str, *_flags: Any):
        if not re.fullmatch(r"[biufc]\d+", code):
            raise ValueError(f"an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def build(self, state: tuple[Any, ...]) -> "_Dtype":
        _version, byte_order, *structure = state
        if structure[:3] != [None, None, None]:
            raise ValueError("an array of records, not of numbers")
        self.dtype = self.dtype.newbyteorder(byte_order)
        return self


class _Array(Unbuilt):
    """An array that a pickle fills after it made it (protocols below 5)."""

    def __init__(self, *_unused: Any):
        pass

    def build(self, state: tuple[Any, ...]) -> np.ndarray:
        _version, shape, dtype, is_fortran, data = state
        if isinstance(data, str):  # as Python 2 wrote it
            data = data.encode("latin1")
        return _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


def _from_buffer(
    data: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray:
    """An array that is a view of the data, which it fills."""
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes | str) -> np.generic:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.dtype, count=1)[0]


def _encode(text: str, _encoding: str) -> bytes:
    """Protocols 0 to 2 write bytes as text in Latin-1."""
    return text.encode("latin1")


def _bytearray(data: bytes | str = b"", _encoding: str = "") -> bytearray:
    return bytearray(data if isinstance(data, bytes) else data.encode("latin1"))


def _set(values: list[Any]) -> set[Any]:
    return set(_as_keys(values))


def _frozenset(values: list[Any]) -> frozenset[Any]:
    return frozenset(_as_keys(values))


_ARRAYS: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,  # an argument, and called by no file that NumPy wrote
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("core", "_core"):  # before and since NumPy 2
    _ARRAYS[f"numpy.{_core}.multiarray", "_reconstruct"] = _Array
    _ARRAYS[f"numpy.{_core}.multiarray", "scalar"] = _scalar
    _ARRAYS[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer
for _module in ("builtins", "__builtin__"):  # by their names only in protocols below 5
    _ARRAYS[_module, "set"] = _set
    _ARRAYS[_module, "frozenset"] = _frozenset
    _ARRAYS[_module, "bytearray"] = _bytearray


def find_array(module: str, name: str) -> Callable[..., Any] | None:
    """Stands for what arrays of numbers and plain containers are made by; see `interpret`."""
    if (module, name) not in _ARRAYS:
        raise Refused(f"{module}.{name}")
    return _ARRAYS[module, name]


def load(path: str | os.PathLike[str]) -> Any:
    """What a pickle holds: containers, text, bytes, numbers, and NumPy arrays of numbers.

    Arrays are views of what was read, which cannot be written to.

    Raises:
        UsageError: there is no such file.
        Failure: the pickle names anything else, is cut short, larger than its bytes, or no pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file {path}")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return interpret(data, find_array)
    except Refused as error:
        raise Failure(
            f"{path} names {error}, which is neither a NumPy array nor a plain container: refused, "
            "nothing of it was run"
        ) from None
    except (ValueError, OSError) as error:
        raise Failure(
            f"{path} is damaged, cut short, or not a pickle ({' '.join(str(error).split())}): "
            "get the file again"
        ) from error
