"""Digests of the files of a folder, beside them: what was written is what is read, or it is said.

A disk that returns another byte than it was given says nothing of it, and an array of other numbers
is an array. So every file of a checkpoint's arrays has its SHA-256 in `digests.json`, and its
metadata, which change after they are written, carry their own.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from mlic_jax.errors import Failure

FILE = "digests.json"
KEY = "metadata_sha256"  # in metadata; a checkpoint of an earlier version has none, nor any digests


def write(folder: Path) -> None:
    """Writes the digests of all files in `folder` and the folders in it into `digests.json`."""
    digests = {name: _digest(path) for name, path in _files(folder).items()}
    (folder / FILE).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def check(folder: Path) -> None:
    """Compares the files of `folder` with their digests.

    Raises:
        Failure: one is missing, changed or unreadable, or there are no digests; it says which.
    """
    try:
        there = dict(json.loads((folder / FILE).read_text(encoding="utf-8")).items())
    except FileNotFoundError:
        raise Failure(f"{folder / FILE} is missing") from None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise Failure(f"{folder / FILE} cannot be read") from None
    found = _files(folder)
    for name, digest in sorted(there.items()):
        if name not in found:
            raise Failure(f"{folder / name} is missing")
        try:
            if _digest(found[name]) != digest:
                raise Failure(f"{folder / name} is not as it was written")
        except OSError as error:
            raise Failure(f"{folder / name} cannot be read ({error.strerror})") from error


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """JSON content, as it will be read, with its digest under `KEY`."""
    content = json.loads(json.dumps(content))
    return content | {KEY: _digest_of_json(content)}


def unsealed(content: Any) -> tuple[dict[str, Any], bool]:
    """The content that was `sealed`, and whether it was.

    Raises:
        Failure: it is not as it was sealed, or no JSON object.
    """
    if not isinstance(content, dict):
        raise Failure("it holds no JSON object")
    content = dict(content)
    digest = content.pop(KEY, None)
    if digest is not None and digest != _digest_of_json(content):
        raise Failure("it is not as it was written")
    return content, digest is not None


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in paths if path != folder / FILE}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_json(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
