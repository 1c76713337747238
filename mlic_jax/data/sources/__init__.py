"""Where images and labels come from: `create` makes the Source that a configuration names."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlic_jax.data import scenes
from mlic_jax.data.corrections import correct, of_file
from mlic_jax.data.kept_labels import keep_labels
from mlic_jax.data.label_tree import complete_labels
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Source, Split, open_split, prepare
from mlic_jax.data.sources.apparel import Apparel
from mlic_jax.data.sources.celeba import CelebA
from mlic_jax.data.sources.coco import CocoFolder
from mlic_jax.data.sources.divided import Divided
from mlic_jax.data.sources.exports import PARSERS, Export
from mlic_jax.data.sources.folders import FolderSet
from mlic_jax.data.sources.hub import HubSet
from mlic_jax.data.sources.lists import Lists
from mlic_jax.data.sources.merge import Merged
from mlic_jax.data.sources.nuswide import NusWide
from mlic_jax.data.sources.table import TABLES, Table
from mlic_jax.data.sources.tfds import TfdsSet
from mlic_jax.data.sources.voc import VocFolder
from mlic_jax.data.sources.voc_layout import OWN, VocLayout
from mlic_jax.data.sources.yolo import Yolo
from mlic_jax.errors import UsageError


def create(data: DataOptions) -> Source:
    """The source that a configuration names. It reads no file before it is asked for something.

    Args:
        data: `source` (a key of `SOURCES`), `name` of the prepared set, `splits` (a mapping
            such as train/val/test -> name of the split in the source; empty values are left out),
            and the options of the source, which `SOURCES` lists and its class explains. `root` is
            the folder of its files (for tfds TFDS's own data folder; "" is its default).

    Raises:
        UsageError: an unknown source or value.
    """
    kind = data.source
    if kind not in SOURCES:
        raise UsageError(f"unknown data source {kind!r}; there are {', '.join(sorted(SOURCES))}")
    source = SOURCES[kind](data)
    if data.merge_classes:
        source = Merged(source)
    if shares := _shares(data):
        source = Divided(source, data.splits["train"], shares, data.split_seed)
    return source


def _shares(data: DataOptions) -> dict[str, float]:
    """The splits that are divided from the one to train on -> their shares."""
    shares = {"test": data.test_share, "val": data.val_share}
    names = data.splits
    return {names[role]: share for role, share in shares.items() if share and role in names}


def _splits(data: DataOptions) -> tuple[str, ...]:
    """What the source itself is asked for."""
    return tuple(sorted({*data.splits.values()} - {"", None, *_shares(data)}))


def _files(data: DataOptions) -> tuple[str, Path, tuple[str, ...]]:
    """What every source in files takes: the set's name, the folder and the splits."""
    if not data.root:
        raise UsageError(f"data source {data.source}: `root`, the data's folder, is not set")
    return data.name, Path(os.path.abspath(os.path.expanduser(data.root))), _splits(data)


def _hub(data: DataOptions) -> Source:
    options = _options(data, "image_column", "label_column", "cell_separator", *_DIVIDED)
    if data.hub_name:
        return HubSet(data.name, _splits(data), hub_name=data.hub_name, **options)
    name, root, splits = _files(data)
    return HubSet(name, splits, root=root, **options)


def _options(data: DataOptions, *names: str) -> dict[str, Any]:
    """Options of a source."""
    return {name: getattr(data, name) for name in names}


_DIVIDED = ("train_share", "split_seed")
_TABLE = ("annotations", "image_dir", *_DIVIDED)
_CSV = (*_TABLE, "image_column", "label_column", "cell_separator", "sheet")


def _voc(data: DataOptions) -> Source:
    if data.year == OWN:
        return VocLayout(*_files(data), **_options(data, *_TABLE))
    return VocFolder(*_files(data), year=data.year)


SOURCES: dict[str, Callable[[DataOptions], Source]] = {
    "scenes": scenes.create,
    "coco": lambda data: CocoFolder(
        *_files(data),
        **_options(data, *_TABLE, "class_order", "keep_unlabelled", "crowds"),
    ),
    "voc": _voc,
    "tfds": lambda data: TfdsSet(
        data.name,
        _splits(data),
        data_dir=data.root,
        **_options(data, "tfds_name", "class_order", "keep_unlabelled"),
    ),
    "hub": _hub,
    "nuswide": lambda data: NusWide(
        *_files(data), **_options(data, "annotations", "image_dir", "keep_unlabelled")
    ),
    "apparel": lambda data: Apparel(*_files(data), **_options(data, *_DIVIDED)),
    "folders": lambda data: FolderSet(
        *_files(data), **_options(data, "label_separator", *_DIVIDED)
    ),
    "lists": lambda data: Lists(*_files(data), **_options(data, *_TABLE)),
    "celeba": lambda data: CelebA(*_files(data), **_options(data, *_TABLE)),
    "yolo": lambda data: Yolo(*_files(data), **_options(data, *_TABLE)),
}
SOURCES |= dict.fromkeys(
    TABLES, lambda data: Table(*_files(data), kind=data.source, **_options(data, *_CSV))
)
SOURCES |= dict.fromkeys(
    PARSERS, lambda data: Export(*_files(data), kind=data.source, **_options(data, *_TABLE))
)


def open_prepared(data: DataOptions) -> dict[str, Split]:
    """The splits of a configured set by role (train, val, test), prepared first where need be.

    It is prepared again where the annotations or photos that it was made from changed. Labels are
    those of the annotations.

    Raises:
        UsageError, Failure: see `create` and `mlic_jax.data.records.prepare`.
    """
    source = create(data)
    directory = prepare(
        source,
        data.prepared_dir,
        data.on_corrupt,
        upright=data.upright,
        value_range=data.range or None,
    )
    return {role: open_split(directory, split) for role, split in data.splits.items()}


def open_splits(data: DataOptions) -> dict[str, Split]:
    """`open_prepared`, with labels as `data.corrections` has them and with their parents.

    Raises:
        UsageError, Failure: see `open_prepared`, `corrections.read` and `label_tree.read`.
    """
    return with_labels(open_prepared(data), data)


def with_labels(splits: Mapping[str, Split], data: DataOptions) -> dict[str, Split]:
    """Prepared splits, by any name, with labels as `open_splits` has them.

    What people said of a parent stands, whatever of its children is there.
    """
    completed = complete_labels(correct(splits, data.corrections), data)
    if not data.fill_parents:
        return completed
    people = of_file(completed, data.corrections)
    return {name: people.corrected(split) for name, split in completed.items()}


def open_to_train(data: DataOptions) -> dict[str, Split]:
    """`open_splits` for training: `train` has the labels that `keep_labels` keeps, the others all.

    Raises:
        UsageError, Failure: see `open_splits`.
    """
    splits = open_splits(data)
    return splits | {"train": keep_labels(splits["train"], data)}
