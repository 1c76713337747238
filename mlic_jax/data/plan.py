"""What would be made of own data, in words: before anything is written, and for the data card."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlic_jax.data.detect import FORMATS
from mlic_jax.data.image_files import printable
from mlic_jax.data.records import Example, Source
from mlic_jax.data.sources.layout import Layout, listing

_PHOTOS = 5
_CLASSES = 50


def decisions(layout: Layout, source: Source, said: bool) -> list[str]:
    """What was decided in telling and reading a set, a sentence each, of what UTF-8 can hold.

    Args:
        layout: of `detect`.
        source: made of it.
        said: whether a person named the format.
    """
    root = layout.options["root"]
    places = {"photos": layout.options.get("image_dir", "")}
    if "annotations" in layout.options:
        places["annotations"] = layout.options["annotations"]
    sentences = [
        f"format {layout.format}, {'as said' if said else 'told'} from {layout.seen}",
        *(f"{what}: {os.path.join(root, path)}" for what, path in places.items()),
        *layout.notes,
        *getattr(source, "notes", ()),
    ]
    return [text.encode("utf-8", "backslashreplace").decode() for text in sentences]


def preview(layout: Layout, source: Source, roles: Mapping[str, str], own: bool) -> list[str]:
    """The splits, the classes with counts, the first photos with their labels; a line each.

    Args:
        layout, source: see `decisions`.
        roles: train, val and test -> split.
        own: whether these splits are the set's own.
    """
    examples = {split: source.examples(split) for split in dict.fromkeys(roles.values())}
    lines = ["splits: the set's own" if own else "splits: none of its own, it is divided"]
    for split, part in examples.items():
        used_for = ", ".join(role for role in roles if roles[role] == split)
        lines.append(f"  {split} ({used_for}): {len(part):,} photos")
    everything = [example for part in examples.values() for example in part]
    names = source.class_names
    labels = np.array([example.labels for example in everything]).reshape(-1, len(names))
    lines.append(f"{len(names)} classes, with the photos that show them:")
    for name, column in list(zip(names, labels.T, strict=True))[:_CLASSES]:
        unknown = int((column == 0).sum())
        more = f", unknown in {unknown:,}" if unknown else ""
        lines.append(f"  {name}: {int((column > 0).sum()):,}{more}")
    if len(names) > _CLASSES:
        lines.append(f"  and {len(names) - _CLASSES} more")
    lines.append("the first photos:")
    lines += [f"  {_labels(example, names)}" for example in everything[:_PHOTOS]]
    files = [example.image for example in everything if isinstance(example.image, Path)]
    missing = [printable(file) for file in files if not file.is_file()]
    if missing:
        lines.append(f"{len(missing):,} photos are not there: {listing(missing)}")
    options = ("format", "images", "annotations", *FORMATS[layout.format].takes)
    said = ", ".join(f"--{option.replace('_', '-')}" for option in options)
    return [*lines, f"If any of this is wrong: {said}"]


def _labels(example: Example, names: tuple[str, ...]) -> str:
    shown = [name for name, label in zip(names, example.labels, strict=True) if label > 0]
    unsure = [f"{name}?" for name, label in zip(names, example.labels, strict=True) if label == 0]
    return f"{printable(example.image)}: {', '.join(shown + unsure) or 'none of them'}"
