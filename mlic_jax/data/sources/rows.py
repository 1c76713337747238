"""`RowSet`: every set of photos in files, of which each has a row with the names of its labels."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlic_jax.data.image_files import printable
from mlic_jax.data.records import Example, RandomAccess
from mlic_jax.data.sources.labels import check_extent
from mlic_jax.data.sources.photos import Photos
from mlic_jax.data.sources.split_names import SPLIT, role_of
from mlic_jax.data.splitting import divide
from mlic_jax.errors import Failure, UsageError

TRAIN_SHARE = 0.8  # of images whose rows name no splits, unless the source says another


class Row(NamedTuple):
    """What a table says of one image."""

    where: str  # how an error message names the row
    image: str  # its path in the folder of images, which is also its id, `printable`
    present: Sequence[str]
    unknown: Sequence[str] = ()
    split: str = ""  # "": the table does not say
    # Of objects, each with the name of its class: (y1, x1, y2, x2) as shares of the photo's sides.
    boxes: Sequence[tuple[str, tuple[float, float, float, float]]] = ()


class Rows(NamedTuple):
    """What annotations say of a whole set."""

    class_names: Sequence[str]  # in their order; empty: those that occur, sorted
    rows: list[Row]
    notes: Sequence[str] = ()  # what was decided in reading them, for a person


class RowSet:
    """A source of rows, each an image file with the names of its labels.

    A split has the rows that name it. If none is named, or one alone and others are asked for,
    `splitting.divide` makes two.

    Args:
        name: of the prepared set.
        splits: those that are asked for.
        root: the folder of the set.
        image_dir: the folder of images in it, perhaps with `{split}` in it; see `photos.Photos`
            about how they are named.
        read: reads the annotations.
        files: what `read` reads, see `Source.annotation_files`.
        kind: of the source, for its description.
        options: what else decides what it has, for its description.
        train_share, split_seed: of `splitting.divide`; None where rows are to name their splits.
    """

    def __init__(
        self,
        name: str,
        splits: tuple[str, ...],
        *,
        root: Path,
        image_dir: str = "",
        read: Callable[[], Rows],
        files: Callable[[], Sequence[Path]],
        kind: str,
        options: Mapping[str, Any],
        train_share: float | None = None,
        split_seed: int = 0,
    ):
        self.name = name
        self.splits = splits
        self.description = {"kind": kind, "root": str(root), **options}
        if train_share is not None:
            self.description |= {"train_share": train_share, "split_seed": split_seed}
        self._root = root
        self._image_dir = image_dir
        self._read = read
        self._annotation_files = files
        self._train_share = TRAIN_SHARE if train_share is None else train_share
        self._split_seed = split_seed

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._contents[0]

    @property
    def annotation_files(self) -> Sequence[Path]:
        """All that classes, splits and labels are read from."""
        return self._annotation_files()

    @property
    def own_splits(self) -> tuple[str, ...]:
        """The splits that the rows name, sorted; empty where they name none, or one alone."""
        return self._named if len(self._named) > 1 else ()

    @cached_property
    def _named(self) -> tuple[str, ...]:
        return tuple(sorted({row.split for row in self._contents[1]} - {""}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading, for a person."""
        return tuple(self._read_once.notes)

    def examples(self, split: str) -> RandomAccess[Example]:
        """The examples in the order of the rows.

        Raises:
            UsageError: a file or folder is missing; the rows know no such split.
            Failure: a row is malformed or names an unknown class; rows contradict each other.
        """
        names, rows, labels = self._contents
        position = {name: i for i, name in enumerate(names)}
        return [
            Example(
                image_id=printable(rows[i].image),
                image=self._files[i],
                labels=labels[i],
                boxes=np.array([box for _, box in rows[i].boxes]).reshape(-1, 4),
                box_classes=np.array([position[name] for name, _ in rows[i].boxes], np.int32),
                relative=bool(rows[i].boxes),
            )
            for i in np.flatnonzero(self._members(split))
        ]

    @cached_property
    def _files(self) -> list[Path]:
        """The file of every row."""
        rows = self._contents[1]
        files: list[Path] = [Path()] * len(rows)
        folders = [self._image_dir.replace(SPLIT, row.split) for row in rows]
        for folder in dict.fromkeys(folders):
            if not (self._root / folder).is_dir():
                raise UsageError(
                    f"no image folder {self._root / folder}: check `root` and `image_dir`"
                )
            here = [i for i, other in enumerate(folders) if other == folder]
            found = Photos(self._root, folder).locate([rows[i].image for i in here])
            for i, file in zip(here, found, strict=True):
                files[i] = file
        return files

    @cached_property
    def _read_once(self) -> Rows:
        return _once(self._read(), SPLIT in self._image_dir)

    @cached_property
    def _contents(self) -> tuple[tuple[str, ...], list[Row], np.ndarray]:
        """The class names, the rows, and the labels int8 [N, C]."""
        names, rows, _ = self._read_once
        _check_rows(self.name, rows, SPLIT in self._image_dir)
        if not names:
            names = sorted({name for row in rows for name in (*row.present, *row.unknown)})
        size = sum(len(row.image) + sum(map(len, row.present)) + 8 for row in rows)
        check_extent(self.name, len(rows), len(names), size)
        position = {name: i for i, name in enumerate(names)}
        labels = np.full((len(rows), len(names)), -1, np.int8)
        for row, row_labels in zip(rows, labels, strict=True):
            for value, row_names in ((1, row.present), (0, row.unknown)):
                for name in row_names:
                    if name not in position:
                        raise Failure(f"{row.where}: unknown label {name!r}")
                    row_labels[position[name]] = value
        return tuple(names), rows, labels

    def _members(self, split: str) -> np.ndarray:
        """bool [N]: the rows of a split."""
        rows = self._contents[1]
        asked = {*self.splits} <= {*self._named}
        if not (self.own_splits or asked):
            return self._division[split]
        if split not in self._named:
            has = ", ".join(self._named)
            raise UsageError(f"set {self.name} has no split {split!r}; it has {has}")
        return np.array([row.split == split for row in rows])

    @cached_property
    def _division(self) -> dict[str, np.ndarray]:
        """How rows that name no splits are divided: split -> bool [N]."""
        _, rows, labels = self._contents
        image_ids = [printable(row.image) for row in rows]
        share, seed = self._train_share, self._split_seed
        return divide(self.name, self.splits, image_ids, labels, share, seed)


def _place(row: Row, by_split: bool) -> tuple[str, str]:
    """What a row is of: an image; where there is a folder a split, names may recur."""
    return row.split if by_split else "", row.image


def _once(read: Rows, by_split: bool) -> Rows:
    """Without the rows that say of an image what an earlier one says, which is noted."""
    first: dict[tuple[str, str], Row] = {}
    rows = []
    for row in read.rows:
        earlier = first.setdefault(_place(row, by_split), row)
        if earlier is row or _content(earlier) != _content(row):
            rows.append(row)
    if not (again := len(read.rows) - len(rows)):
        return read
    said = "1 row says" if again == 1 else f"{again:,} rows say"
    note = f"{said} of a photo what an earlier row says of it: taken once"
    return read._replace(rows=rows, notes=(*read.notes, note))


def _content(row: Row) -> tuple[Any, ...]:
    """What a row says, whatever the order."""
    return row.split, {*row.present}, {*row.unknown}, sorted(row.boxes)


def _check_rows(name: str, rows: list[Row], by_split: bool) -> None:
    """Refuses rows that contradict themselves or each other."""
    if not rows:
        raise Failure(f"set {name}: no image is listed")
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        if (earlier := first.setdefault(_place(row, by_split), row)) is not row:
            raise Failure(
                f"{row.where}: {row.image} is listed already, in {earlier.where}, which says "
                "something else of it"
            )
        if bool(row.split) != bool(rows[0].split):
            without = rows[0] if row.split else row
            raise Failure(f"{without.where}: it names no split, and other images have one")
        if both := set(row.present) & set(row.unknown):
            raise Failure(f"{row.where}: {min(both)!r} is both present and unknown")


def split_by_path(read: Rows) -> Rows:
    """Takes the splits from the paths, unless rows name them.

    They are the first folders that not all paths have, as train in train/a.jpg; or, as in
    2019/train/a.jpg, the first after them of which all are those of splits.

    Raises:
        UsageError: some of the first ones are those of splits, and others are not.
    """
    if not read.rows or any(row.split for row in read.rows):
        return read
    above = [row.image.split("/")[:-1] for row in read.rows]
    levels = [{*names} for names in zip(*above, strict=False)]
    first = len(list(takewhile(lambda names: len(names) == 1, levels)))
    roles = [{role_of(name) for name in names} for names in levels]
    whole = (k for k, of in enumerate(roles) if {"train"} < of and None not in of)
    depth = next(whole, first)
    folders = [(*names[depth:], "")[0] for names in above]
    of_role = {role_of(f): row for row, f in zip(read.rows, folders, strict=True)}
    if not {"train"} < of_role.keys() - {None}:
        return read
    if None in of_role:
        raise UsageError(
            f"{of_role[None].where}: the folder of {of_role[None].image} is not named like a split "
            f"as that of {of_role['train'].image} is: name all of them like splits, or say in a "
            "column split which each photo is of"
        )
    rows = [row._replace(split=f) for row, f in zip(read.rows, folders, strict=True)]
    note = f"splits are the folders of the paths: {', '.join(sorted({*folders}))}"
    return Rows(read.class_names, rows, (*read.notes, note))
