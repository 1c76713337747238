"""What the formats of exports share: a photo with its labels, and what makes a format."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlic_jax.files import json_text

_HEAD = 2**18  # bytes that tell a format; labelme has the whole photo after them


class Malformed(ValueError):
    """A file is not as its format has it; the message says what."""


class Photo(NamedTuple):
    """What an export says of one image."""

    image: Any  # its path, to be checked
    present: Sequence[str]
    unknown: Sequence[str] = ()
    split: str = ""


@dataclass(frozen=True)
class Parser:
    """A format: how its files are known, and how they are read."""

    photos: Callable[[Any], Iterable[Photo]]  # of what a file holds; raises Malformed
    words: Sequence[bytes]  # which are in every file of the format
    needs: str  # for a person
    file_an_image: bool = False  # else one file of all, or of a split
    unlike: Sequence[bytes] = ()  # words that are in files of other formats
    start: bytes = b""  # how a file begins, a regular expression
    read: Callable[[Path], Any] = json_text.read
    suffix: str = ".json"

    def knows(self, file: Path) -> bool:
        """Whether a file begins like one of the format."""
        with file.open("rb") as content:
            head = content.read(_HEAD)
        return (
            re.match(self.start, head.lstrip(b"\xef\xbb\xbf \t\r\n")) is not None
            and all(word in head for word in self.words)
            and not any(word in head for word in self.unlike)
        )


def names(value: Any, where: str) -> list[str]:
    """A name or a list of names as a list."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise Malformed(f"{where} must be a name or a list of names")
    return listed
