"""Preparing a set: once, whole or not at all, and again where what it was made from changed."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mlic_jax.data import transforms
from mlic_jax.data.records import pixels, stamps
from mlic_jax.data.records.changes import NOT_NOTED, Comparison, compare
from mlic_jax.data.records.checking import Journal, Scan, scan_split
from mlic_jax.data.records.contract import (
    check_class_names,
    check_names,
    check_same_source,
    check_split,
    first_of,
    report_unreadable,
)
from mlic_jax.data.records.lock import locked
from mlic_jax.data.records.reading import (
    PREPARED,
    Prepared,
    Split,
    is_prepared,
    prepared_splits,
    read_prepared,
)
from mlic_jax.data.records.schema import Source
from mlic_jax.data.records.shards import Earlier
from mlic_jax.data.records.stamps import Made, stamps_file
from mlic_jax.data.records.writing import check_written, write_set
from mlic_jax.data.transforms import Range
from mlic_jax.errors import Failure, UsageError


def prepare(
    source: Source,
    prepared_dir: str | os.PathLike[str],
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
    are not decoded again, and files of records that hold the same are kept.

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
    check_names(source, on_corrupt)
    final = Path(prepared_dir) / source.name
    wanted = Prepared(upright, value_range, value_range is None)
    if final.exists() and _is_current(source, final, wanted, workers):
        return final
    with locked(final):
        staging = final.with_name(final.name + ".incomplete")
        if not final.exists() and (staging / "old").exists():  # killed between two renames
            (staging / "old").rename(final)
        shutil.rmtree(staging / "old", ignore_errors=True)  # killed after both
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
    check_same_source(source, final)
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
    check_class_names(source)
    earlier = _read_earlier(final)
    _create(staging)
    with Journal(staging / "readable.jsonl", stamps.root_of(source)) as journal:
        if len(journal):
            print(f"{len(journal)} images were found readable by an earlier run")
        for made in earlier.made.values() if earlier else ():
            journal.learn(made)
        scans = {split: scan_split(source, split, journal, workers) for split in source.splits}
    report_unreadable(scans, source.name, staging / "unreadable.txt", on_corrupt)
    for split, scan in scans.items():
        check_split(split, scan, len(source.class_names))
    looks = (look for scan in scans.values() for look in scan.looks)
    prepared = replace(wanted, misfits={}, files={})
    if wanted.range_is_told:
        prepared.value_range = transforms.common_range(looks)
    records.mkdir()
    try:
        kept = write_set(source, scans, records, prepared, earlier)
        stamps.write_annotations(records, annotations)
        check_written(records, scans)
    except (OSError, RuntimeError) as error:
        if isinstance(error, Failure):
            raise
        raise Failure(f"writing {records} failed: {error}") from error
    moved = _moved(final, scans) if earlier else []
    if final.exists():
        pixels.take_over(final, records)
        final.rename(staging / "old")
    records.rename(final)
    shutil.rmtree(staging)
    sizes = ", ".join(f"{len(scan.image_ids)} {split}" for split, scan in scans.items())
    as_before = [
        split if shards == of else f"{shards:,} of {of:,} parts of {split}"
        for split, (shards, of) in kept.items()
        if shards
    ]
    same = f"; as before: {', '.join(as_before)}" if as_before else ""
    misfits = [image_id for of_split in prepared.misfits.values() for image_id in of_split]
    told = f"; boxes do not fit their image in {first_of(misfits)}" if misfits else ""
    print(f"prepared {final}: {sizes}; {len(source.class_names)} classes{same}{told}")
    if moved:
        print(
            f"photos in another split than before: {', '.join(moved)}; a run from before may have "
            "trained on what it is evaluated on now: train anew, in another --workdir"
        )


def _moved(before: Path, scans: Mapping[str, Scan]) -> list[str]:
    """How many images go from which split of the set that is there to which, in words.

    Changed labels can do that to a set that is divided by a hash, fair to rare labels.
    """
    then, now = {}, {split: {*scan.image_ids} for split, scan in scans.items()}
    for split in prepared_splits(before):
        with contextlib.suppress(Failure):
            opened = Split(before, split)
            then[split] = {opened.image_id(i) for i in range(len(opened))}
    return [
        f"{count:,} from {old} to {new}"
        for old, of_old in then.items()
        for new, of_new in now.items()
        if (count := len((of_old & of_new) - then.get(new, set()) - now.get(old, set())))
    ]


def _read_earlier(final: Path) -> Earlier | None:
    """The set that is there, as far as it can be read; None: there is none."""
    if not is_prepared(final):
        return None
    made = {}
    for split in prepared_splits(final):
        with contextlib.suppress(Failure):
            made[split] = Made.load(stamps_file(final, split))
    return Earlier(final, made, read_prepared(final))


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
