"""Where images and labels come from: `create` makes the Source that a configuration names."""

import os
from pathlib import Path
from typing import Any

from mlic_jax.data.records import Source, Split, open_split, prepare
from mlic_jax.errors import UsageError


def create(config_data: Any) -> Source:
    """The source that a configuration names. It reads no file before it is asked for something.

    Args:
        config_data: `source` (scenes | coco | voc | tfds), `name` of the prepared set, `splits` (a
            mapping such as train/val/test -> name of the split in the source; empty values are left
            out), and by source:
              coco: `root`, `image_dir`, `annotations` (patterns relative to root in which "{split}"
                is replaced), `class_order`, `keep_unlabelled`
              voc:  `root`, `year`
              tfds: `tfds_name`, `root` (TFDS's own data folder; "" is its default), `class_order`,
                `keep_unlabelled`
              scenes: see `mlic_jax.data.scenes.create`

    Raises:
        UsageError: an unknown source or value.
    """
    kind = config_data.source
    if kind == "scenes":
        from mlic_jax.data import scenes

        return scenes.create(config_data)
    if kind not in ("coco", "voc", "tfds"):
        raise UsageError(f"unknown data source {kind!r}; there are coco, scenes, tfds, voc")
    splits = tuple(sorted({split for split in dict(config_data.splits).values() if split}))
    if kind == "voc":
        from mlic_jax.data.sources.voc import VocFolder

        return VocFolder(config_data.name, _root(config_data), splits, year=str(config_data.year))
    if kind == "coco":
        from mlic_jax.data.sources.coco import CocoFolder

        return CocoFolder(
            config_data.name,
            _root(config_data),
            splits,
            image_dir=config_data.image_dir,
            annotations=config_data.annotations,
            class_order=config_data.class_order,
            keep_unlabelled=config_data.keep_unlabelled,
        )
    from mlic_jax.data.sources.tfds import TfdsSet

    return TfdsSet(
        config_data.name,
        splits,
        tfds_name=config_data.tfds_name,
        data_dir=config_data.root,
        class_order=config_data.class_order,
        keep_unlabelled=config_data.keep_unlabelled,
    )


def _root(config_data: Any) -> Path:
    if not config_data.root:
        raise UsageError(f"data source {config_data.source}: `root`, the data's folder, is not set")
    return Path(os.path.abspath(os.path.expanduser(config_data.root)))


def open_splits(config_data: Any) -> dict[str, Split]:
    """The splits of a configured set by role (train, val, test), prepared first where need be.

    Raises:
        UsageError, Failure: see `create` and `mlic_jax.data.records.prepare`.
    """
    source = create(config_data)
    directory = prepare(source, config_data.prepared_dir, config_data.on_corrupt)
    return {role: open_split(directory, split) for role, split in config_data.splits.items()}
