"""The files of the records of a split: written, or kept of the set that was there before."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mlic_jax.data.records.reading import Prepared
from mlic_jax.data.records.stamps import Made, stamp_of

EXAMPLES_PER_SHARD = 1000


class Earlier(NamedTuple):
    """A set that was prepared before."""

    directory: Path
    made: Mapping[str, Made]  # of its splits, as far as that can be read
    prepared: Prepared


class Kept(NamedTuple):
    """How many of the shards of a split are those of an earlier set."""

    shards: int
    of: int


def parts_of(count: int) -> list[slice]:
    """Which of so many records go into each shard."""
    starts = range(0, count, EXAMPLES_PER_SHARD)
    return [slice(start, start + EXAMPLES_PER_SHARD) for start in starts]


def template_of(directory: Path, set_name: str, split: str) -> Any:
    """How TFDS names the shards of a split."""
    import tensorflow_datasets as tfds

    return tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name=set_name,
        split=split,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )


def to_keep(earlier: Earlier, split: str, made: Made, upright: bool) -> set[int]:
    """The numbers of the shards of an earlier set that are whole, and hold just what they are to.

    Args:
        earlier: that set.
        split: of it.
        made: what the split is to be made from.
        upright: how its images, and boxes with them, are to be turned.
    """
    import tensorflow_datasets as tfds

    keep: set[int] = set()
    if split not in earlier.made or earlier.prepared.upright != upright:
        return keep
    before, now = earlier.made[split].readable(), made.readable()
    sizes = earlier.prepared.files.get(split, {})
    info = tfds.builder_from_directory(earlier.directory).info.splits[split]
    files = zip(info.filenames, info.shard_lengths, parts_of(len(before.image_ids)), strict=False)
    for k, (file, length, part) in enumerate(files):
        if length != len(before.image_ids[part]):  # an earlier version divided it otherwise
            break
        is_whole = stamp_of(earlier.directory / file).size == sizes.get(file)
        if is_whole and before.same_content(now, part):
            keep.add(k)
    return keep


def keep_shard(file: Path, copy: Path) -> None:
    """Takes over a file of an earlier set."""
    try:
        os.link(file, copy)
    except OSError:  # of a file system that has no links
        shutil.copy2(file, copy)


def write_shard(file: Path, features: Any, rows: Iterable[dict[str, Any]], bar: tqdm) -> int:
    """Writes records that can each be read alone, and returns their number.

    Not by a builder of TFDS: beyond 1 GB a split its shuffler, even when disabled, spills to a
    temporary file through TensorFlow and then sorts the whole split in memory.
    """
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(os.fspath(file), "group_size:1")
    count = 0
    try:
        for row in rows:
            writer.write(features.serialize_example(row))
            count += 1
            bar.update()
    finally:
        writer.close()
    return count
