"""Whether a prepared set is what there is now: annotations and photos, told by their stamps."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlic_jax.data.image_files import printable
from mlic_jax.data.records.reading import damaged, prepared_splits
from mlic_jax.data.records.schema import Source
from mlic_jax.data.records.stamps import (
    ABSENT,
    Annotations,
    Made,
    annotations_of,
    digest_of_file,
    read_annotations,
    root_of,
    stamp_of,
    stamps_file,
)
from mlic_jax.errors import Failure

NOT_NOTED = "an earlier version prepared it, and did not note from what files"
_NAMES_SHOWN = 3


class Comparison(NamedTuple):
    """How a prepared set differs from what is there now."""

    reasons: list[str]  # why it is stale, in words; empty where it is as it should be
    # Where files have other times and the same content, what is to be noted of them.
    made: dict[str, Made] | None = None
    annotations: list[Annotations] | None = None


def compare(source: Source, directory: Path, workers: int) -> Comparison:
    """Compares the set in a folder with the annotations and photos that there are now.

    Where all photos are gone, or all annotations, as on a machine that was given the prepared set
    alone, the set is taken as it is, and that is said.

    Args:
        source: what the set is to be of.
        directory: of the set.
        workers: threads that read what may have changed.

    Raises:
        Failure: what was noted of the set is damaged.
        Others: the source's, where it is asked for its examples.
    """
    there = prepared_splits(directory)
    if missing := [split for split in source.splits if split not in there]:
        return Comparison([f"it was prepared without {_some(missing)}"])
    try:
        made = {split: Made.load(stamps_file(directory, split)) for split in source.splits}
    except Failure as failure:
        raise damaged(directory, failure) from None
    noted, root = read_annotations(directory), root_of(source)
    stamps = {split: _stamps_now(of_split, root) for split, of_split in made.items()}
    photos_gone = _are_gone(made, stamps)
    files = [os.path.join(root or "", earlier.file) for earlier in noted or ()]
    annotations_gone = bool(files) and not any(map(os.path.exists, files))
    for gone, what in ((annotations_gone, "annotations"), (photos_gone, "photos")):
        if gone:
            print(f"{directory}: the {what} that it was made from are gone; it is taken as it is")

    reasons: list[str] = []
    annotations = noted
    if not annotations_gone and not (noted is None and photos_gone):
        reasons, annotations = _changed_annotations(source, noted)
    changed = []
    if not photos_gone:
        for split in source.splits:
            changed += _changed_photos(made[split], stamps[split], root, workers)
    if changed:
        photos = "1 photo" if len(changed) == 1 else f"{len(changed):,} photos"
        reasons.append(f"{photos} changed: {_some(changed)}")
    if reasons or photos_gone or annotations_gone:
        return Comparison(reasons)
    same_times = all(np.array_equal(made[split].stamps, stamps[split]) for split in made)
    if same_times and annotations == noted:
        return Comparison([])
    now = {split: replace(of_split, stamps=stamps[split]) for split, of_split in made.items()}
    return Comparison([], now, annotations)


def _changed_annotations(
    source: Source, noted: list[Annotations] | None
) -> tuple[list[str], list[Annotations]]:
    """What changed in them, in words, and what is to be noted of them now."""
    now = annotations_of(source, noted or [])
    if noted is None:
        return [NOT_NOTED], now
    before, after = ({file: digest for file, _, digest in files} for files in (noted, now))
    changed = [file for file in sorted(before | after) if before.get(file) != after.get(file)]
    root = root_of(source)
    names = [printable(root.name if root and file == "." else file) for file in changed]
    return [f"{_some(names)} changed"] if names else [], now


def _paths(made: Made, root: Path | None) -> list[bytes]:
    """Where the files of a split are, b"" for an image that is none."""
    base = os.fsencode(root) if root else b""
    return [os.path.join(base, file) if file else b"" for file in made.files.tolist()]


def _stamps_now(made: Made, root: Path | None) -> np.ndarray:
    """The stamps [N, 3] that the files of a split have now."""
    stamps = [stamp_of(path) if path else ABSENT for path in _paths(made, root)]
    return np.array(stamps, np.int64).reshape(made.stamps.shape)


def _are_gone(made: Mapping[str, Made], stamps: Mapping[str, np.ndarray]) -> bool:
    """Whether there were files, and none is there."""
    is_file = np.concatenate([of_split.files != b"" for of_split in made.values()])
    is_there = np.concatenate([of_split[:, 0] != ABSENT.size for of_split in stamps.values()])
    return bool(is_file.any() and not is_there.any())


def _changed_photos(made: Made, stamps: np.ndarray, root: Path | None, workers: int) -> list[str]:
    """The names of the files whose content is another; read are those with another stamp alone."""
    rows = np.flatnonzero((stamps != made.stamps).any(axis=1)).tolist()
    paths = _paths(made, root) if rows else []
    with ThreadPoolExecutor(workers) as pool:
        digests = pool.map(digest_of_file, [paths[i] for i in rows])
        return [
            printable(made.files[i])
            for i, digest in zip(rows, digests, strict=True)
            if digest != made.digests[i].decode()
        ]


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest
