"""What a source and the request to prepare it must be like, and the lines that refuse others."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mlic_jax.data.records.checking import Scan
from mlic_jax.data.records.reading import is_prepared, read_metadata
from mlic_jax.data.records.schema import Source
from mlic_jax.errors import Failure, UsageError

_NAMES_SHOWN = 5


def check_names(source: Source, on_corrupt: str) -> None:
    """Raises UsageError for names that cannot be those of files, or a value that is unknown."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", source.name):
        raise UsageError(
            f"{source.name!r} cannot name a prepared set: "
            "use lower-case letters, digits and underscores"
        )
    for split in source.splits:
        if not re.fullmatch(r"\w+", split):
            raise UsageError(f"{split!r} cannot name a split: use letters, digits, underscores")
    if not source.splits:
        raise UsageError(f"{source.name}: no splits to prepare")
    if on_corrupt not in ("fail", "skip"):
        raise UsageError(f"on_corrupt is {on_corrupt!r}; it must be 'fail' or 'skip'")


def check_class_names(source: Source) -> None:
    """Raises Failure where classes have no names, or the same."""
    names = source.class_names
    if not names:
        raise Failure(f"{source.name}: there are no classes")
    if not all(name.strip() for name in names):
        raise Failure(f"{source.name}: a class has no name, or one of blanks alone")
    if duplicates := _duplicates(names):
        raise Failure(f"{source.name}: class names occur more than once: {first_of(duplicates)}")


def check_split(split: str, scan: Scan, num_classes: int) -> None:
    """Raises Failure for a split without images, ids that recur, or labels of another kind."""
    if not scan.image_ids:
        raise Failure(f"split {split} has no images")
    if duplicates := _duplicates(scan.image_ids):
        raise Failure(f"split {split}: image ids occur more than once: {first_of(duplicates)}")
    for image_id, labels in zip(scan.image_ids, scan.labels, strict=True):
        good = labels.dtype == np.int8 and labels.shape == (num_classes,)
        if not (good and np.isin(labels, (-1, 0, 1)).all()):
            raise Failure(
                f"split {split}, image {image_id}: "
                f"labels must be {num_classes} int8 values in -1, 0, 1"
            )


def check_same_source(source: Source, final: Path) -> None:
    """Raises UsageError where what is there is no set, or one of another source."""
    advice = f"choose another name or delete {final}"
    if not is_prepared(final):
        raise UsageError(f"{final} exists and is not a prepared set: {advice}")
    prepared = read_metadata(final)["source"]
    wanted = json.loads(json.dumps(source.description))
    for field in sorted({*prepared, *wanted} - {"root"}):  # a set may move
        if prepared.get(field) != wanted.get(field):
            earlier, now = (
                f"with {field}={of[field]!r}" if of.get(field) is not None else f"without {field}"
                for of in (prepared, wanted)
            )
            raise UsageError(f"{final} was prepared {earlier}, and now it is {now}: {advice}")


def report_unreadable(scans: dict[str, Scan], name: str, list_file: Path, on_corrupt: str) -> None:
    """Says which images cannot be read; raises Failure, and lists them, if none may be left out."""
    lines = [
        f"{split}: {image}: {reason}"
        for split, scan in scans.items()
        for image, reason in scan.unreadable.items()
    ]
    if not lines:
        list_file.unlink(missing_ok=True)
        return
    if on_corrupt == "skip":
        print(f"{name}: {len(lines)} unreadable images are left out: {'; '.join(lines)}")
        return
    list_file.write_text("\n".join(lines) + "\n")
    raise Failure(
        f"{name}: {len(lines)} unreadable images: {first_of(lines, '; ')}. All are listed in "
        f"{list_file}; repair them, or leave them out with data.on_corrupt=skip (--on-corrupt skip)"
    )


def first_of(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    rest = f"{separator}and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return separator.join(names[:_NAMES_SHOWN]) + rest


def _duplicates(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
