"""Splits in files of their own beside the annotations, as CelebA and NIH have them."""

from collections.abc import Iterator
from pathlib import Path

from mlic_jax.data.sources.rows import Rows
from mlic_jax.data.sources.text import read_text
from mlic_jax.errors import Failure

# CelebA: a photo and 0, 1 or 2 a line; Kaggle's as CSV, with a line of names above.
_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
_SPLITS = {"0": "train", "1": "val", "2": "test"}
# NIH: a photo a line.
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}


def is_partition(file: Path) -> bool:
    """Whether a file says, by its name, which split photos are of, and not their labels."""
    return file.name in _PARTITIONS


def partition_files(annotations: Path) -> list[Path]:
    """The files beside an annotation file that say which split each photo is of."""
    folder = annotations.parent
    for place in (folder, folder.parent / "Eval"):
        for name in _PARTITIONS:
            if (place / name).is_file():
                return [place / name]
    lists = [folder / name for name in _LISTS]
    return lists if all(file.is_file() for file in lists) else []


def with_partition(read: Rows, annotations: Path) -> Rows:
    """Takes the splits from the files beside the annotations, unless rows name them.

    Raises:
        Failure: such a file is malformed, or a photo is in none.
    """
    files = partition_files(annotations)
    if not files or any(row.split for row in read.rows):
        return read
    named, splits = " and ".join(file.name for file in files), _read(files)
    for row in read.rows:
        if row.image not in splits:
            raise Failure(f"{row.where}: {row.image} is not in {named}, which has the splits")
    rows = [row._replace(split=splits[row.image]) for row in read.rows]
    return Rows(read.class_names, rows, (*read.notes, f"splits are those of {named}"))


def _read(files: list[Path]) -> dict[str, str]:
    """photo -> split."""
    splits: dict[str, str] = {}
    for file in files:
        for where, photo, split in _lines(file):
            if splits.setdefault(photo, split) != split:
                raise Failure(f"{where}: {photo} is listed already, in another split")
    return splits


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Where each line is that is not empty, its photo and its split."""
    for number, line in enumerate(read_text(file)[0].splitlines(), 1):
        words, where = line.replace(",", " ").split(), f"{file}, line {number}"
        if not words or (number == 1 and file.suffix == ".csv"):
            continue
        if file.name in _LISTS:
            yield where, line.strip(), _LISTS[file.name]
        elif len(words) == 2 and words[1] in _SPLITS:
            yield where, words[0], _SPLITS[words[1]]
        else:
            raise Failure(f"{where}: it must be a photo, and 0 (train), 1 (val) or 2 (test)")
