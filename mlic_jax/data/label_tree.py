"""Which labels lie within others: a file of rules `dog < animal`, one a line.

A photo that shows a child shows its parents. So labels can be completed (`data.fill_parents`), and
scores made to agree (`eval.consistent`), as max-constraint layers do (Giunchiglia and Lukasiewicz
2020, arXiv 2010.10151): a parent is at least as likely as the likeliest label below it.
"""

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.names import did_you_mean

logger = logging.getLogger(__name__)

Array = TypeVar("Array", bound=Any)  # NumPy's or JAX's

_COMMENT = re.compile(r"(^|\s)#.*")


@dataclasses.dataclass(frozen=True)
class LabelTree:
    """Rules between C labels. A label may have several parents; nothing is below itself.

    Attributes:
        class_names: of the C labels.
        rules: the child and the parent of each, by their places in `class_names`.
    """

    class_names: tuple[str, ...]
    rules: tuple[tuple[int, int], ...]

    @functools.cached_property
    def below(self) -> np.ndarray:
        """int32 `[C, D]`: every label and all that are below it; rows are filled with the label."""
        below = {c: {c} for c in range(len(self.class_names))}
        for _ in self.rules:  # no chain is longer
            for child, parent in self.rules:
                below[parent] |= below[child]
        most = max(map(len, below.values()))
        return np.array(
            [[*sorted(of), *[c] * (most - len(of))] for c, of in below.items()], np.int32
        )

    def consistent(self, scores: Array) -> Array:
        """Scores `[..., C]` of which each is at least that of every label below it."""
        return scores[..., self.below].max(axis=-1)

    def filled(self, labels: np.ndarray) -> np.ndarray:
        """Labels int8 `[N, C]` where what has a present label below it is present too."""
        present = labels > 0
        shown = np.stack([present[:, below].any(axis=1) for below in self.below], axis=1)
        return np.where(shown, np.int8(1), labels)

    def violations(self, labels: np.ndarray) -> list[int]:
        """In how many rows of labels `[N, C]` a rule's child is present and its parent absent."""
        return [int(np.sum((labels[:, c] > 0) & (labels[:, p] < 0))) for c, p in self.rules]

    def disagreements(self, scores: np.ndarray) -> list[int]:
        """In how many rows of scores `[N, C]` a rule's child has more than its parent."""
        return [int(np.sum(scores[:, c] > scores[:, p])) for c, p in self.rules]

    def named(self) -> list[list[str]]:
        """The rules by names, child and parent, as a checkpoint keeps them."""
        return [[self.class_names[child], self.class_names[parent]] for child, parent in self.rules]


def read(path: str | os.PathLike[str], class_names: Sequence[str]) -> LabelTree:
    """The tree in a text file: a rule a line; blank ones, and what follows a #, do not count.

    Raises:
        UsageError: it cannot be read, has no rules, or a line is no rule, names a label that there
            is not, or closes a circle.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"label tree {path} cannot be read: {why}") from error
    rules = []
    for number, line in enumerate(lines, start=1):
        rule = _COMMENT.sub("", line)
        if not rule.strip():
            continue
        names = [name.strip() for name in rule.split("<")]
        if len(names) != 2 or not all(names):
            raise UsageError(f"{path}, line {number}: {line!r} is no rule such as `dog < animal`")
        rules.append((f"{path}, line {number}", names[0], names[1]))
    if not rules:
        raise UsageError(f"label tree {path} has no rule such as `dog < animal`")
    return of_rules(rules, class_names)


def of_rules(rules: Iterable[tuple[str, str, str]], class_names: Sequence[str]) -> LabelTree:
    """The tree of rules: where each stands, its child and its parent.

    Raises:
        UsageError: as `read`.
    """
    names, parents = tuple(class_names), dict[int, set[int]]()
    places = []
    for where, *pair in rules:
        for name in pair:
            if name not in names:
                near = did_you_mean(name, names) or ", and a rule is between classes of the set"
                raise UsageError(f"{where}: no label {name!r}{near}")
        child, parent = (names.index(name) for name in pair)
        if child in _above(parent, parents):
            raise UsageError(f"{where}: {pair[0]} would be below itself")
        parents.setdefault(child, set()).add(parent)
        places.append((child, parent))
    return LabelTree(names, tuple(dict.fromkeys(places)))


def _above(label: int, parents: Mapping[int, set[int]]) -> set[int]:
    """A label and all that it is below."""
    above, new = set[int](), {label}
    while new:
        above |= new
        new = set().union(*(parents.get(one, set()) for one in new)) - above
    return above


def of_options(data: DataOptions, class_names: Sequence[str]) -> LabelTree | None:
    """The tree that a configuration names; None: none.

    Raises:
        UsageError: see `read`.
    """
    return read(data.label_tree, class_names) if data.label_tree else None


def complete_labels(splits: Mapping[str, Split], data: DataOptions) -> dict[str, Split]:
    """Splits with the parents of present labels present, where the options say so.

    Raises:
        UsageError: see `read`.
    """
    tree = of_options(data, next(iter(splits.values())).class_names)
    if tree is None or not data.fill_parents:
        return dict(splits)
    completed = {}
    for name, split in splits.items():
        labels, filled = split.labels(), tree.filled(split.labels())
        logger.info(
            "data.fill_parents: %d labels of %s are present for what is below them",
            np.count_nonzero(labels != filled),
            split.split,
        )
        completed[name] = split.with_labels(filled)
    return completed
