"""Classes whose names differ in case, blanks, `_` and `-` alone: one class, if a person says so."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
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
    """A source of which classes with names that are `alike` are one, by the name that comes first.

    Of such classes one is present where any is, and unknown where any is and none is present.
    """

    def __init__(self, source: Source):
        self._source = source
        self.name = source.name
        self.splits = source.splits
        self.description: dict[str, Any] = {**source.description, "merge_classes": True}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(group[0] for group in alike(self._source.class_names))

    @property
    def annotation_files(self) -> Sequence[Path]:
        return self._source.annotation_files

    @property
    def own_splits(self) -> tuple[str, ...]:
        return self._source.own_splits

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading, for a person."""
        merged = [group for group in alike(self._source.class_names) if len(group) > 1]
        return (*self._source.notes, *(f"one class: {', '.join(group)}" for group in merged))

    def examples(self, split: str) -> RandomAccess[Example]:
        names = self._source.class_names
        group_of = {name: g for g, group in enumerate(alike(names)) for name in group}
        groups = np.array([group_of[name] for name in names])
        examples = self._source.examples(split)
        count = len(self.class_names)

        def merged(position: int) -> Example:
            example = examples[position]
            labels = np.full(count, -1, np.int8)
            np.maximum.at(labels, groups, example.labels)
            return replace(example, labels=labels, box_classes=groups[example.box_classes])

        return OnDemand(len(examples), merged)
