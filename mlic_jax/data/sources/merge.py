"""Classes whose names differ in case, blanks, `_` and `-` alone: one class, if a person says so."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.data.records import Example, RandomAccess, Source
from mlic_jax.data.sources.on_demand import OnDemand


def alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that differ in case, blanks, `_` and `-` alone, in the order of the names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"[\s_-]+", " ", name).strip().casefold()].append(name)
    return list(groups.values())


class Merged:
    """A source of which classes with names that are `alike` are one, by the commonest of the names.

    That is the one that is present in the most photos of the splits asked for; of equals the one
    that comes first. The class stands where the first of the names stood. It is present where any
    of them is, and unknown where any is and none is present.
    """

    def __init__(self, source: Source):
        self._source = source
        self.name = source.name
        self.splits = source.splits
        self.description: dict[str, Any] = {**source.description, "merge_classes": True}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._groups)

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        """The name of each class -> those that it is merged of."""
        names = self._source.class_names
        groups = alike(names)
        if len(groups) == len(names):  # then no example need be read
            return {name: [name] for name in names}
        photos = np.zeros(len(names), int)
        for split in self._source.splits:
            for example in self._source.examples(split):
                photos += example.labels > 0
        count = dict(zip(names, photos.tolist(), strict=True))
        return {max(group, key=count.__getitem__): group for group in groups}

    @property
    def annotation_files(self) -> Sequence[Path]:
        return self._source.annotation_files

    @property
    def own_splits(self) -> tuple[str, ...]:
        return self._source.own_splits

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading, for a person."""
        merged = [
            f"one class, named {name} as in the most photos: {', '.join(group)}"
            for name, group in self._groups.items()
            if len(group) > 1
        ]
        return (*self._source.notes, *merged)

    def examples(self, split: str) -> RandomAccess[Example]:
        names = self._source.class_names
        group_of = {name: g for g, group in enumerate(self._groups.values()) for name in group}
        groups = np.array([group_of[name] for name in names])
        examples = self._source.examples(split)
        count = len(self.class_names)

        def merged(position: int) -> Example:
            example = examples[position]
            labels = np.full(count, -1, np.int8)
            np.maximum.at(labels, groups, example.labels)
            return replace(example, labels=labels, box_classes=groups[example.box_classes])

        return OnDemand(len(examples), merged)
