"""How often classes occur together: counted on a training split, saved, loaded and linted.

MSRN's label graph is made of it. The published counts (MSRN's pickles) can be read too, the faulty
ones included, and `lint` says what is wrong with a graph.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlic_jax.data import label_files, safe_pickle
from mlic_jax.data.label_policy import LabelPolicy, resolve_unknown
from mlic_jax.data.records import Split
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import npz

_NAMES_SHOWN = 5
NOTE = "note: "  # how a finding of `lint` begins that may be true of a sound graph
_LEAST_CORRELATION = 0.5
_AXES = {  # of the arrays in a file, see `npz.check`
    "class_counts": ("float", "C"),
    "counts": ("float", "CC"),
    "class_names": ("text", "C"),
    **dict.fromkeys(("set_name", "split", "difficult_policy"), ("text", "")),
}
EDGE_PROBABILITY = 0.4  # from which on one class implies another in the label graph (MSRN)


@dataclasses.dataclass(frozen=True)
class CoOccurrence:
    """The counts of a split of N images and C classes, in images."""

    counts: np.ndarray  # float32 [C, C]: [i, j] images with both i and j; symmetric, diagonal 0
    class_counts: np.ndarray  # float32 [C]: images with i
    class_names: tuple[str, ...] | None  # None: a published pickle, which has no names
    set_name: str  # of an imported graph the name of its file
    split: str  # "" where it is not known, as is the policy
    difficult_policy: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one `.npz`; `path` appears only when it is complete.

        Raises:
            UsageError: the folder cannot be written to.
        """
        label_files.write_npz(path, dataclasses.asdict(self))

    def permute(self, order: Sequence[int]) -> "CoOccurrence":
        """The same graph with class `order[i]` at position i; see `label_files.order_of`.

        Raises:
            UsageError: `order` does not hold each of 0 to C - 1 once.
        """
        order = label_files.check_order(order, len(self.class_counts))
        return dataclasses.replace(
            self,
            counts=self.counts[np.ix_(order, order)],
            class_counts=self.class_counts[order],
            class_names=self.class_names and tuple(self.class_names[i] for i in order),
        )


def count(labels: np.ndarray, policy: LabelPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Counts in how many images classes occur, together and alone.

    Args:
        labels: int8 [N, C] in {+1 present, -1 absent, 0 unknown}.
        policy: whether an unknown label counts as present (`as_positive`) or does not count.

    Returns:
        (counts float32 [C, C] with diagonal 0, class_counts float32 [C]).
    """
    present = (resolve_unknown(labels, policy) > 0).astype(np.float64)  # float32 is exact to 2^24
    together = (present.T @ present).astype(np.float32)
    class_counts = np.diag(together).copy()
    np.fill_diagonal(together, 0)
    return together, class_counts


def from_split(split: Split, policy: LabelPolicy) -> CoOccurrence:
    """The co-occurrence of a prepared split; reads no image."""
    counts, class_counts = count(split.labels(), policy)
    return CoOccurrence(counts, class_counts, split.class_names, split.name, split.split, policy)


def without_edges(split: Split, policy: LabelPolicy) -> CoOccurrence:
    """`from_split`, as if no class ever occurred with another."""
    counted = from_split(split, policy)
    return dataclasses.replace(counted, counts=np.zeros_like(counted.counts))


def load(path: str | os.PathLike[str]) -> CoOccurrence:
    """Reads what `save` wrote, or a published pickle `{"adj": counts, "nums": class counts}`.

    A pickle's values are taken as they are: see `lint`.

    Raises:
        UsageError: there is no such file.
        Failure: the file holds anything else, or is damaged.
    """
    path = Path(path)
    if label_files.is_npz(path):
        fields = label_files.read_npz(path, "co-occurrence counts")
        if missing := {"counts", "class_counts"} - fields.keys():
            raise Failure(f"{path} is no label graph: it lacks {', '.join(sorted(missing))}")
    else:
        published = safe_pickle.load(path)
        if not (isinstance(published, dict) and {"adj", "nums"} <= published.keys()):
            raise Failure(f'{path} is no label graph: it must hold {{"adj": ..., "nums": ...}}')
        fields = {"counts": published["adj"], "class_counts": published["nums"]}
        fields["set_name"] = np.array(path.name)
    where = f"{path} is no label graph"
    for name in ("counts", "class_counts"):
        fields[name] = label_files.numbers(fields[name], where)
    npz.check(fields, _AXES, where)
    names = fields.get("class_names")
    return CoOccurrence(
        counts=fields["counts"],
        class_counts=fields["class_counts"],
        class_names=None if names is None else tuple(names.tolist()),
        set_name=str(fields.get("set_name", "")),
        split=str(fields.get("split", "")),
        difficult_policy=str(fields.get("difficult_policy", "")),
    )


def attention_mask(
    counts: np.ndarray, class_counts: np.ndarray, threshold: float = EDGE_PROBABILITY
) -> np.ndarray:
    """Who attends to whom in the label graph.

    MSRN makes a weighted, normalised matrix of the probabilities P[i, j] = counts[i, j] /
    class_counts[i], of which its layers use only the sign; this is where it is positive.

    Args:
        counts: [C, C], images with both classes.
        class_counts: [C], images with the class.
        threshold: the least probability of an edge.

    Returns:
        bool [C, C], True where node i attends to node j: where P[j, i] >= threshold, and i = j.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a class without images has no edges
        probability = np.asarray(counts, np.float64) / np.asarray(class_counts, np.float64)[:, None]
    return (probability >= threshold).T | np.eye(len(class_counts), dtype=bool)


# --- lint ---


def lint(
    graph: CoOccurrence,
    class_names: Sequence[str] | None = None,
    class_counts: np.ndarray | None = None,
) -> list[str]:
    """What is wrong with a graph, a sentence each; nothing for a sound one.

    Args:
        graph: what to look at.
        class_names: the set that it should fit, in that set's order.
        class_counts: [C], images with each class on a split of that set. They tell a wrong order
            even of a graph without class names.

    Returns:
        The findings. Those that begin with `NOTE` may be true of a sound graph.
    """
    names = graph.class_names or class_names or ()
    if len(names) != len(graph.class_counts):
        names = [f"class {i}" for i in range(len(graph.class_counts))]
    return [
        *(_lint_numbers(graph, names) or _lint_counts(graph, names)),
        *_lint_classes(graph, class_names),
        *_lint_frequencies(graph, class_counts),
    ]


def _lint_numbers(graph: CoOccurrence, names: Sequence[str]) -> list[str]:
    """Are the counts counts? Where they are not, comparing them says nothing more."""
    findings = []
    pairs = np.argwhere(~_is_count(graph.counts))
    if len(pairs):
        i, j = pairs[0]
        findings.append(
            f"co-occurrence counts are not counts: {len(pairs)} are negative, fractional or not "
            f"finite, such as {graph.counts[i, j]:g} of {names[i]} with {names[j]}"
        )
    wrong = np.flatnonzero(~_is_count(graph.class_counts))
    if len(wrong):
        findings.append(
            f"class counts are not counts: {len(wrong)} are negative, fractional or not finite, "
            f"such as {graph.class_counts[wrong[0]]:g} of {names[wrong[0]]}"
        )
    return findings


def _lint_counts(graph: CoOccurrence, names: Sequence[str]) -> list[str]:
    counts, class_counts = graph.counts, graph.class_counts
    findings = []

    diagonal = np.flatnonzero(np.diag(counts))
    if len(diagonal):
        i = diagonal[0]
        findings.append(
            f"the diagonal is not 0: {len(diagonal)} of {len(counts)} entries, such as "
            f"{counts[i, i]:.0f} of {names[i]} with itself"
        )

    pairs = np.argwhere(np.triu(counts != counts.T))
    if len(pairs):
        i, j = pairs[0]
        findings.append(
            f"asymmetry: {len(pairs)} pairs have two counts, such as {names[i]} with {names[j]} "
            f"{counts[i, j]:.0f} and {names[j]} with {names[i]} {counts[j, i]:.0f}"
        )

    pairs = np.argwhere(counts > class_counts[:, None])
    if len(pairs):
        i, j = pairs[0]
        findings.append(
            f"probabilities above 1: {len(pairs)}, such as {names[j]} in {counts[i, j]:.0f} of "
            f"{class_counts[i]:.0f} images with {names[i]}"
        )

    column_sums = counts.sum(axis=0, dtype=np.float64)
    # Two classes can look like this and be sound: one image with each, and one with both.
    if len(counts) > 2 and counts.any() and (class_counts == column_sums + 1).all():
        findings.append(
            "class counts are the column sums of the co-occurrence counts plus one, not numbers "
            "of images: probabilities made with them mean nothing"
        )

    empty, listed = ~counts.any(axis=1), counts.any(axis=0)
    if len(of_some := np.flatnonzero(empty & listed)):
        which = _listing(names, of_some)
        findings.append(f"rows without edges: {which}, although other classes occur with them")
    if len(of_none := np.flatnonzero(empty & ~listed)):
        which = _listing(names, of_none)
        findings.append(f"{NOTE}rows without edges: {which} never occur with another class")
    return findings


def _lint_classes(graph: CoOccurrence, class_names: Sequence[str] | None) -> list[str]:
    """Do the classes, as far as their names are known, fit those of the set?"""
    if class_names is None:
        return []
    have = graph.class_names
    if len(graph.class_counts) != len(class_names):
        return [f"the graph has {len(graph.class_counts)} classes and the set {len(class_names)}"]
    if have is None or have == tuple(class_names):
        return []
    try:
        label_files.order_of(have, class_names, "the graph")
    except UsageError as error:
        return [str(error)]
    moved = np.flatnonzero(np.array(have) != np.array(class_names))
    i = moved[0]
    return [
        f"the class order does not fit the set: {len(moved)} of {len(have)} differ; position {i} "
        f"is {have[i]} in the graph and {class_names[i]} in the set"
    ]


def _lint_frequencies(graph: CoOccurrence, class_counts: np.ndarray | None) -> list[str]:
    """Are classes about as frequent as in the set? In another order they would not be."""
    if class_counts is None or len(class_counts) != len(graph.class_counts):
        return []
    both = np.log1p(np.maximum([graph.class_counts, class_counts], 0).astype(np.float64))
    if not np.isfinite(both).all() or (both.std(axis=1) == 0).any():
        return []
    correlation = np.corrcoef(both)[0, 1]
    if correlation >= _LEAST_CORRELATION:
        return []
    return [
        "the class order does not fit the set: class counts (their logarithms) correlate with "
        f"those of the set at {correlation:.2f} only"
    ]


def _is_count(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values) & (values >= 0) & (values == np.round(values))


def _listing(names: Sequence[str], which: np.ndarray) -> str:
    chosen = [names[i] for i in which.tolist()]
    rest = f" and {len(chosen) - _NAMES_SHOWN} more" if len(chosen) > _NAMES_SHOWN else ""
    return ", ".join(chosen[:_NAMES_SHOWN]) + rest
