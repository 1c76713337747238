"""Sets that lack a split for validation or test, which is divided from the one to train on."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.data.records import Example, RandomAccess, Source
from mlic_jax.data.sources.on_demand import OnDemand
from mlic_jax.data.splitting import stratified_parts
from mlic_jax.errors import UsageError


class Divided:
    """A source with more splits than it has itself: parts of the images of one of its splits.

    The other splits of the source are left alone, so that what is for test stays for test.

    Args:
        source: asked for `train`, and for no split that is divided from it.
        train: the split that is divided, and keeps what is left.
        shares: the new splits -> the share of the images of `train` that each has.
        seed: see `splitting.stratified_parts`.

    Raises:
        UsageError: a share is not above 0, or they leave nothing to train on.
    """

    def __init__(self, source: Source, train: str, shares: Mapping[str, float], seed: int):
        if not (min(shares.values()) > 0 and sum(shares.values()) < 1):
            said = ", ".join(f"{split} {share:g}" for split, share in shares.items())
            raise UsageError(
                f"the shares that are divided from {train} are {said}: each must be above 0, and "
                "all together below 1"
            )
        self._source, self._train, self._shares, self._seed = source, train, dict(shares), seed
        self.name = source.name
        self.splits = tuple(sorted({*source.splits, *shares}))
        self.description: dict[str, Any] = {
            **source.description,
            "divided": self._shares,
            "split_seed": seed,
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._source.class_names

    @property
    def annotation_files(self) -> Sequence[Path]:
        """Of the source; how it is divided follows from them."""
        return self._source.annotation_files

    @property
    def own_splits(self) -> tuple[str, ...]:
        return self._source.own_splits

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading, for a person."""
        shares = " and ".join(f"{share:.3g} for {split}" for split, share in self._shares.items())
        kept = 1 - sum(self._shares.values())
        told = (
            f"{self._train} is divided by a hash with the seed {self._seed}, fair to rare labels: "
            f"{shares}; {kept:.3g} stay {self._train}"
        )
        return (*self._source.notes, told)

    def examples(self, split: str) -> RandomAccess[Example]:
        """The examples in the order of the source.

        Raises:
            UsageError: the source has a split of the name of one that is divided.
            Others: the source's.
        """
        if split not in self._parts:
            return self._source.examples(split)
        rows, examples = self._parts[split], self._undivided
        return OnDemand(len(rows), lambda position: examples[rows[position]])

    @cached_property
    def _undivided(self) -> RandomAccess[Example]:
        return self._source.examples(self._train)

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        """Split -> the positions of its images in the one that is divided."""
        own = {*self._source.splits, *self.own_splits}
        if taken := sorted(own & {*self._shares}):
            raise UsageError(
                f"set {self.name} has a split {taken[0]} of its own: none is divided, "
                "data.val_share and data.test_share are for sets that lack it"
            )
        told = [(example.image_id, example.labels) for example in self._undivided]
        image_ids, labels = [i for i, _ in told], np.array([of for _, of in told], np.int8)
        labels = labels.reshape(len(told), len(self.class_names))
        return stratified_parts(image_ids, labels, self._shares, self._train, self._seed)
