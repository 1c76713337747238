"""What would be made of own data, in words: before anything is written, and for the data card."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mlic_jax.data import card
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
    root = layout.options.get("root", "")
    places = {"photos": layout.options.get("image_dir", "")} if root else {}
    if "annotations" in layout.options:
        places["annotations"] = layout.options["annotations"]
    sentences = [
        f"format {layout.format}, {'as said' if said else 'told'} from {layout.seen}",
        *(f"{what}: {os.path.join(root, path)}" for what, path in places.items()),
        *layout.notes,
        *source.notes,
    ]
    return [text.encode("utf-8", "backslashreplace").decode() for text in sentences]


def unused(source: Source, roles: Mapping[str, str]) -> list[str]:
    """The splits that the set itself has, and that no role is for: a sentence if there are any."""
    others = [split for split in source.own_splits if split not in roles.values()]
    return [f"splits that are not used: {', '.join(others)}"] if others else []


def preview(layout: Layout, source: Source, roles: Mapping[str, str], origin: str) -> list[str]:
    """The splits, the classes with counts, the first photos with their labels; a line each.

    Args:
        layout, source: see `decisions`.
        roles: train, val and test -> split.
        origin: where the splits come from, in words.
    """
    names = source.class_names
    lines = [f"splits: {origin}"]
    labels: dict[str, np.ndarray] = {}
    first: list[str] = []
    missing: list[str] = []
    for split in dict.fromkeys(roles.values()):
        examples = source.examples(split)
        used_for = ", ".join(role for role in roles if roles[role] == split)
        lines.append(f"  {split} ({used_for}): {len(examples):,} photos")
        of_split = []
        for example in examples:  # one at a time: they may hold their images
            of_split.append(example.labels)
            if len(first) < _PHOTOS:
                first.append(f"  {_labels(example, names)}")
            if isinstance(example.image, Path) and not example.image.is_file():
                missing.append(printable(example.image))
        labels[split] = np.array(of_split).reshape(-1, len(names))
    lines += [f"  {text}" for text in (card.no_third_split(roles),) if text]
    lines += _counts(names, labels)
    lines += ["the first photos:", *first]
    if missing:
        lines.append(f"{len(missing):,} photos are not there: {listing(missing)}")
    options = ("format", "images", "annotations", *FORMATS[layout.format].takes)
    said = ", ".join(f"--{option.replace('_', '-')}" for option in options)
    return [*lines, f"If any of this is wrong: {said}"]


def _counts(names: Sequence[str], labels: Mapping[str, np.ndarray]) -> list[str]:
    """How often each class is present in int8 [N, C] of each split, and where it never is."""
    everything = np.concatenate(list(labels.values()))
    lines = [f"{len(names)} classes, with the photos that show them:"]
    for name, column in list(zip(names, everything.T, strict=True))[:_CLASSES]:
        unknown = int((column == 0).sum())
        more = f", unknown in {unknown:,}" if unknown else ""
        lines.append(f"  {name}: {int((column > 0).sum()):,}{more}")
    if len(names) > _CLASSES:
        lines.append(f"  and {len(names) - _CLASSES} more")
    for split, of_split in labels.items():
        never = [names[c] for c in np.flatnonzero(~(of_split > 0).any(axis=0)).tolist()]
        if never:
            lines.append(f"{split} shows no photo of {listing(never)}")
    return lines


def _labels(example: Example, names: tuple[str, ...]) -> str:
    shown = [name for name, label in zip(names, example.labels, strict=True) if label > 0]
    unsure = [f"{name}?" for name, label in zip(names, example.labels, strict=True) if label == 0]
    photo = printable(example.image) if isinstance(example.image, Path) else example.image_id
    return f"{photo}: {', '.join(shown + unsure) or 'none of them'}"
