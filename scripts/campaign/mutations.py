"""Seeded damage to bytes and to plain values, such as files meet or people with bad intent make."""

import json
from typing import Any

import numpy as np

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes with one to four damages; never the same as before, where there is a byte."""
    result = content
    while result == content:
        for _ in range(rng.integers(1, 5)):
            result = _damage(rng, result)
    return result


def _damage(rng: np.random.Generator, content: bytes) -> bytes:
    start, stop = _range(rng, len(content))
    before, part, after = content[:start], content[start:stop], content[stop:]
    match rng.integers(8):
        case 0:  # a bit
            flipped = bytes([part[0] ^ 1 << int(rng.integers(8))]) if part else b"\0"
            return before + flipped + part[1:] + after
        case 1:  # cut short
            return before
        case 2:  # a part is missing
            return before + after
        case 3:  # a part twice
            return before + part + part + after
        case 4:  # noise in its place
            return before + rng.bytes(len(part)) + after
        case 5:  # as a disk returns what it lost
            return before + bytes(len(part)) + after
        case 6:  # a number at the edge of its range
            number = _EDGES[rng.integers(len(_EDGES))]
            width = max(1, (number.bit_length() + 7) // 8)
            order = ("little", "big")[rng.integers(2)]
            return before + number.to_bytes(width, order) + content[start + width :]
        case _:  # more at the end
            return content + rng.bytes(int(rng.integers(1, 40)))


def _range(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """A part of at most 64 bytes, as often near the start as anywhere: there headers lie."""
    reach = size if rng.random() < 0.5 else min(size, 128)
    start = int(rng.integers(reach)) if reach else 0
    return start, min(size, start + int(rng.integers(1, 65)))


def hostile_text(rng: np.random.Generator) -> str:
    """A text that few readers expect."""
    choices = (
        "",
        " ",
        "?",
        "\0",
        "a\0b.png",
        "é",
        "\ud800",  # half of a character
        "\u202egnp.exe",
        "../" * 20 + "etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "~",
        "{split}",
        "%s%n{0}",
        "con\r\nfused",
        "\x1b[2J",
        "nan",
        "-1",
        "1e999",
        "9" * 5000,
        "x" * 300,
        "x/" * 3000,
        "[" * 3000,
        "'; drop",
        "__class__",
    )
    return choices[rng.integers(len(choices))]


def hostile_value(rng: np.random.Generator) -> Any:
    """A value of JSON that few readers expect; `Raw` for what no Python value is written as."""
    match rng.integers(8):
        case 0 | 1:
            return hostile_text(rng)
        case 2:
            numbers = (0, -1, 1, 2**31, -(2**63), 2**64, 10**400, 1.5, -0.0, 1e308)
            return numbers[rng.integers(len(numbers))]
        case 3:
            return (None, True, False)[rng.integers(3)]
        case 4:
            return ([], {}, [[]], [None], {"": {}}, [1, "a", None])[rng.integers(6)]
        case 5:
            depth = int(10 ** rng.uniform(1, 5.3))
            return Raw(("[" * depth + "]" * depth, '{"a":' * depth)[rng.integers(2)])
        case 6:
            return Raw(("NaN", "Infinity", "-Infinity", "1e400", "9" * 5000)[rng.integers(5)])
        case _:
            return [hostile_text(rng) for _ in range(rng.integers(1, 4))]


class Raw(str):
    """Text that stands in JSON as it is."""


def to_json(value: Any) -> str:
    """JSON with `Raw` text in it."""
    raw: list[Raw] = []

    def stand_in(part: Any) -> Any:
        if isinstance(part, Raw):
            raw.append(part)
            return f"\x00raw {len(raw) - 1}"
        if isinstance(part, dict):
            return {name: stand_in(item) for name, item in part.items()}
        return [stand_in(item) for item in part] if isinstance(part, list) else part

    text = json.dumps(stand_in(value))
    for number, part in enumerate(raw):
        text = text.replace(json.dumps(f"\x00raw {number}"), part)
    return text


def altered(rng: np.random.Generator, value: Any) -> Any:
    """A plain value in which one place is replaced, deleted, doubled or swapped with another."""
    places = [path for path in _places(value) if path]
    if not places:
        return hostile_value(rng)
    *parents, last = places[rng.integers(len(places))]
    copied = json.loads(json.dumps(value))
    holder = copied
    for step in parents:
        holder = holder[step]
    match rng.integers(6):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, list):
            holder.insert(last, holder[last])
        case 1:
            holder[hostile_text(rng)] = holder[last]
        case 2:  # what stands elsewhere
            other = copied
            for step in places[rng.integers(len(places))]:
                if not isinstance(other, dict | list) or (
                    step not in other if isinstance(other, dict) else step >= len(other)
                ):
                    break
                other = other[step]
            holder[last] = json.loads(json.dumps(other))
        case _:
            holder[last] = hostile_value(rng)
    return copied


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """The way to every part of a plain value."""
    found = [path]
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in items:
            found += _places(part, (*path, name))
    return found
