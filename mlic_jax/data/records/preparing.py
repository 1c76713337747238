"""Preparing a set: once, whole or not at all, and again where what it was made from changed."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

import numpy as np

from mlic_jax.data import transforms
from mlic_jax.data.records import stamps
from mlic_jax.data.records.changes import NOT_NOTED, Comparison, compare
from mlic_jax.data.records.checking import Journal, Scan, scan_split
from mlic_jax.data.records.reading import (
    PREPARED,
    Prepared,
    is_prepared,
    prepared_splits,
    read_metadata,
    read_prepared,
)
from mlic_jax.data.records.schema import Source
from mlic_jax.data.records.stamps import Made, stamps_file
from mlic_jax.data.records.writing import check_written, write_set
from mlic_jax.data.transforms import Range
from mlic_jax.errors import Failure, UsageError

_NAMES_SHOWN = 5


def prepare(
    source: Source,
    prepared_dir: str | os.PathLike,
    on_corrupt: Literal["fail", "skip"] = "fail",
    workers: int = os.cpu_count() or 1,
    upright: bool = False,
    value_range: Range | None = None,
) -> Path:
    """Writes all splits of a source into `<prepared_dir>/<source.name>/` and returns that folder.

    First every image is decoded once, in `workers` threads. What was found readable is noted in a
    journal, so that a killed run goes on where it was (a file that changed is checked again). Then
    the records are written. All of it happens in `<name>.incomplete`, and renaming makes it
    `<name>` after the counts were checked.

    A set that is already there is compared with what it was made from (see `changes`). It is left
    alone where nothing changed, and else prepared again, which is said: images that are the same
    are not decoded again, and splits that are the same keep their records.

    Args:
        source: what to prepare.
        prepared_dir: the folder of all prepared sets; created if missing.
        on_corrupt: what to do about missing and unreadable images: `fail` lists them all in a file
            and stops; `skip` leaves them out and keeps their names in the set.
        workers: threads that decode.
        upright: whether images, and boxes with them, are turned as their EXIF orientation says.
        value_range: what is black and what white of images of more than 8 bits; None: told from
            them, see `transforms.common_range`.

    Raises:
        UsageError: another source was prepared under this name; a name that cannot be a folder's.
        Failure: unreadable images, an empty split, duplicate image ids, wrong labels or classes; a
            set that is damaged.
    """
    _check_names(source, on_corrupt)
    final = Path(prepared_dir) / source.name
    wanted = Prepared(upright, value_range, value_range is None)
    if final.exists() and _is_current(source, final, wanted, workers):
        return final
    with _lock(final):
        staging = final.with_name(final.name + ".incomplete")
        if (staging / "old").exists() and not final.exists():  # killed between two renames
            (staging / "old").rename(final)
        reasons: list[str] = []
        if final.exists():  # another process may have prepared it while this one waited
            found = _compare(source, final, wanted, workers)
            if not found.reasons:
                _note(final, found)
                return final
            reasons = found.reasons
            print(f"{final} is prepared again: {'; '.join(reasons)}")
        _prepare(source, staging, final, wanted, on_corrupt, workers)
    return final


def _is_current(source: Source, final: Path, wanted: Prepared, workers: int) -> bool:
    found = _compare(source, final, wanted, workers)
    if found.made is not None and not found.reasons:
        # Only the times differ. Where the set cannot be written to, that is found again next time.
        return not os.access(final, os.W_OK)
    return not found.reasons


def _compare(source: Source, final: Path, wanted: Prepared, workers: int) -> Comparison:
    """How the set that is there differs from what is wanted.

    Raises:
        UsageError: it is of another source, or no set.
    """
    _check_same_source(source, final)
    prepared = read_prepared(final)
    root, is_noted = stamps.root_of(source), (final / PREPARED).exists()
    if not is_noted and root is not None and not root.is_dir():
        print(f"{final}: there is no {root}, which it was made from; it is taken as it is")
        return Comparison([])
    if not is_noted and source.annotation_files != ():
        return Comparison([NOT_NOTED])
    reasons = []
    if prepared.upright != wanted.upright:
        reasons.append(f"data.upright is {wanted.upright} now")
    given = None if prepared.range_is_told else prepared.value_range
    if given != wanted.value_range:
        reasons.append(f"data.range is {wanted.value_range or 'told from the images'} now")
    if not is_noted:
        return Comparison(reasons)  # of a source that never changes
    found = compare(source, final, workers)
    return found._replace(reasons=[*reasons, *found.reasons])


def _note(final: Path, found: Comparison) -> None:
    """Notes the times of files whose content is the same."""
    if found.made is None:
        return
    for split, made in found.made.items():
        made.save(stamps_file(final, split))
    stamps.write_annotations(final, found.annotations)


def _prepare(
    source: Source, staging: Path, final: Path, wanted: Prepared, on_corrupt: str, workers: int
) -> None:
    records = staging / "records"
    shutil.rmtree(records, ignore_errors=True)  # what a killed run was writing
    annotations = stamps.annotations_of(source)  # before they are read
    _check_class_names(source)
    earlier = _read_made(final)
    _create(staging)
    with Journal(staging / "readable.jsonl", stamps.root_of(source)) as journal:
        if len(journal):
            print(f"{len(journal)} images were found readable by an earlier run")
        for made in earlier.values():
            journal.learn(made)
        scans = {split: scan_split(source, split, journal, workers) for split in source.splits}
    _report_unreadable(scans, source.name, staging / "unreadable.txt", on_corrupt)
    for split, scan in scans.items():
        _check_split(split, scan, len(source.class_names))
    looks = (photo.look for scan in scans.values() for photo in scan.photos)
    prepared = replace(wanted, misfits={}, files={})
    if wanted.range_is_told:
        prepared.value_range = transforms.common_range(looks)
    kept = _splits_to_keep(final, scans, earlier, prepared)
    records.mkdir()
    try:
        write_set(source, scans, records, prepared, {split: final for split in kept})
        stamps.write_annotations(records, annotations)
        check_written(records, scans)
    except (OSError, RuntimeError) as error:
        if isinstance(error, Failure):
            raise
        raise Failure(f"writing {records} failed: {error}") from error
    if final.exists():
        final.rename(staging / "old")
    records.rename(final)
    shutil.rmtree(staging)
    sizes = ", ".join(f"{len(scan.image_ids)} {split}" for split, scan in scans.items())
    as_before = f"; as before: {', '.join(kept)}" if kept else ""
    misfits = [image_id for of_split in prepared.misfits.values() for image_id in of_split]
    told = f"; boxes do not fit their image in {_first(misfits)}" if misfits else ""
    print(f"prepared {final}: {sizes}; {len(source.class_names)} classes{as_before}{told}")


def _read_made(final: Path) -> dict[str, Made]:
    """What the splits of the set that is there were made from, as far as that can be read."""
    made = {}
    if is_prepared(final):
        for split in prepared_splits(final):
            with contextlib.suppress(Failure):
                made[split] = Made.load(stamps_file(final, split))
    return made


def _splits_to_keep(
    final: Path,
    scans: dict[str, Scan],
    earlier: dict[str, Made],
    prepared: Prepared,
) -> list[str]:
    """The splits whose records are as they are to be, whose misfits `prepared` takes over."""
    if not earlier:
        return []
    before = read_prepared(final)
    if before.upright != prepared.upright:
        return []
    kept = [
        split
        for split, scan in scans.items()
        if split in earlier and earlier[split].same_content(scan.made)
    ]
    prepared.misfits |= {split: before.misfits.get(split, []) for split in kept}
    return kept


def _report_unreadable(scans: dict[str, Scan], name: str, list_file: Path, on_corrupt: str) -> None:
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
        f"{name}: {len(lines)} unreadable images: {_first(lines, '; ')}. All are listed in "
        f"{list_file}; repair them, or leave them out with data.on_corrupt=skip (--on-corrupt skip)"
    )


# --- checks of the request and of the source ---


def _check_names(source: Source, on_corrupt: str) -> None:
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


def _check_class_names(source: Source) -> None:
    names = source.class_names
    if not names:
        raise Failure(f"{source.name}: there are no classes")
    if not all(name.strip() for name in names):
        raise Failure(f"{source.name}: a class has no name, or one of blanks alone")
    if duplicates := _duplicates(names):
        raise Failure(f"{source.name}: class names occur more than once: {_first(duplicates)}")


def _check_split(split: str, scan: Scan, num_classes: int) -> None:
    if not scan.image_ids:
        raise Failure(f"split {split} has no images")
    if duplicates := _duplicates(scan.image_ids):
        raise Failure(f"split {split}: image ids occur more than once: {_first(duplicates)}")
    for image_id, labels in zip(scan.image_ids, scan.labels, strict=True):
        good = labels.dtype == np.int8 and labels.shape == (num_classes,)
        if not (good and np.isin(labels, (-1, 0, 1)).all()):
            raise Failure(
                f"split {split}, image {image_id}: "
                f"labels must be {num_classes} int8 values in -1, 0, 1"
            )


def _check_same_source(source: Source, final: Path) -> None:
    advice = f"choose another name or delete {final}"
    if not is_prepared(final):
        raise UsageError(f"{final} exists and is not a prepared set: {advice}")
    prepared = read_metadata(final)["source"]
    wanted = json.loads(json.dumps(source.description))
    for field in sorted({*prepared, *wanted} - {"root"}):  # a set may move
        if prepared.get(field) != wanted.get(field):
            raise UsageError(
                f"{final} was prepared with {field}={prepared.get(field)!r}, and now it is "
                f"{wanted.get(field)!r}: {advice}"
            )


def _duplicates(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _first(names: Sequence[str], separator: str = ", ") -> str:
    rest = f"{separator}and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return separator.join(names[:_NAMES_SHOWN]) + rest


# --- files ---


@contextlib.contextmanager
def _lock(final: Path) -> Iterator[None]:
    """Lets one process at a time prepare a set. The lock goes when its process ends, however.

    Its file lies beside the set while somebody prepares it.
    """
    path = final.with_name(f".{final.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise UsageError(f"cannot write to {path.parent}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is preparing {final}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):  # it was deleted while this process waited
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
