"""What came out of a matrix: a JSON for programs, and with `page.py` a page for people."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matrix.cells import RIDGE, Cell, Method
from matrix.runs import Outcome

from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text
from mlic_jax.metrics import methods
from mlic_jax.metrics.localisation import LOOKERS, MEASURES
from mlic_jax.scores.files import Scores

SCORES, METRICS = "scores_{}.npz", "metrics_{}.json"  # of a split


@dataclasses.dataclass(frozen=True)
class Done:
    """A cell that is done.

    Attributes:
        rate: that was chosen; None: the recipe's.
        outcome: of the run at that rate, or of the first where all failed.
        folder: of that run.
        tries: the mAP on val of every rate, None where it failed.
        errors: of every rate that failed why.
    """

    cell: Cell
    rate: float | None
    outcome: Outcome
    folder: Path
    tries: Mapping[str, float | None]
    errors: Mapping[str, str]

    @property
    def method(self) -> Method:
        """Of the cell."""
        return self.cell.method

    @property
    def has_failed(self) -> bool:
        """Whether it did, or one of several rates, but for one that was too great."""
        return bool(self.outcome.error) or any("not finite" not in e for e in self.errors.values())

    def _file(self, pattern: str) -> Path:
        return self.folder / pattern.format(self.outcome.config["data"]["splits"]["test"])

    def scores(self) -> Scores:
        """What its run said of the test split. Raises Failure where that cannot be read."""
        return Scores.load(self._file(SCORES))

    def metrics(self) -> dict[str, Any]:
        """What that is worth. Raises Failure where that cannot be read."""
        values = json_text.read(path := self._file(METRICS))
        if not isinstance(values, dict) or "mAP" not in values:
            raise Failure(f"{path} has no metrics: remove it to have it written again")
        return values

    def is_scored(self) -> bool:
        """Whether scores and metrics are there."""
        return all(self._file(pattern).exists() for pattern in (SCORES, METRICS))

    def is_readable(self) -> bool:
        """Whether scores and metrics are there, and whole."""
        if not self.is_scored():
            return False
        try:
            self.scores(), self.metrics()
        except (Failure, UsageError):
            return False
        return True


def of_set(done: Sequence[Done], baseline: str) -> dict[str, Any]:
    """What each method is worth on a set, all of whose cells these are.

    Where the baseline failed there are no differences.

    Raises:
        UsageError: they differ in split, protocol or class list, or equal scores rank otherwise
            than the intervals have it.
    """
    found: dict[str, Any] = {"set": done[0].cell.set_name, "baseline": baseline, "methods": {}}
    good = [one for one in done if one.outcome.mean_ap is not None]
    runs: dict[str, list[np.ndarray]] = {}
    looks: dict[str, list[dict[str, Any] | None]] = {}
    first: tuple[Done, Scores, dict[str, Any]] | None = None
    for one in good:
        scores, metrics = one.scores(), one.metrics()
        first = first or (one, scores, metrics)
        check_comparable(first, (one, scores, metrics))
        runs.setdefault(str(one.method), []).append(scores.logits)
        looks.setdefault(str(one.method), []).append(metrics.get("localisation"))
    if first is not None:
        _, scores, metrics = first
        if metrics["ties"] != "stable":
            raise UsageError(
                f"eval.ties is {metrics['ties']}, and intervals are of scores that rank in the "
                "order of the images where they are equal: leave it stable"
            )
        labels = resolve_unknown(scores.labels, metrics["unknown_in_ap"])
        found |= {
            "split": scores.split,
            "images": len(labels),
            "classes": len(scores.class_names),
            "protocol": metrics["protocol"],
            "chance": metrics["chance"],
        }
        against = baseline if baseline in runs else None
        found["methods"] = methods.compare_methods(runs, labels, against, metrics["ap_kind"])
    for method, of_runs in looks.items():
        if located := mean_looks(of_runs):
            found["methods"][method]["localisation"] = located
    for one in done:
        of_method = found["methods"].setdefault(str(one.method), {"mAP": None})
        of_method.setdefault("cells", []).append(_about(one))
    return found


def mean_looks(of_runs: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Where runs look, of what `summarise_looks` says over all: the means over the runs.

    None where a run says nothing: it has no regions, or the set no boxes.
    """
    if not of_runs or any(one is None or not one["regions"] for one in of_runs):
        return None
    known = [one for one in of_runs if one is not None]
    means = {
        measure: {who: float(np.mean([one[measure][who] for one in known])) for who in LOOKERS}
        for measure in MEASURES
        if all(measure in one for one in known)
    }
    counts = {name: float(np.mean([one[name] for one in known])) for name in ("objects", "regions")}
    return counts | means


def check_comparable(
    first: tuple[Done, Scores, dict[str, Any]], other: tuple[Done, Scores, dict[str, Any]]
) -> None:
    """Raises UsageError for cells whose figures would not be of the same thing."""
    (one, scores, metrics), (two, others, other_metrics) = first, other
    for what, a, b in (
        ("set", scores.set_name, others.set_name),
        ("split", scores.split, others.split),
        ("class list", scores.class_names.tolist(), others.class_names.tolist()),
        ("images", scores.image_ids.tolist(), others.image_ids.tolist()),
        ("labels", scores.labels.tolist(), others.labels.tolist()),
        *(
            (name, metrics[name], other_metrics[name])
            for name in ("protocol", "ap_kind", "unknown_in_ap", "ties")
        ),
    ):
        if a != b:
            shown = f": {a} and {b}" if isinstance(a, str) else ""
            raise UsageError(
                f"{one.folder} and {two.folder} differ in {what}{shown}: they cannot be compared"
            )


def _about(done: Done) -> dict[str, Any]:
    outcome = done.outcome
    return {
        "seed": done.cell.seed,
        "rate": done.rate,
        "val_mAP": outcome.mean_ap,
        "tries": dict(done.tries),
        "errors": dict(done.errors),
        "seconds": outcome.seconds,
        "memory_mib": outcome.memory_mib,
        "error": outcome.error,
        "folder": str(done.folder),
        "recipe": outcome.recipe,
        "arguments": outcome.arguments,
    }


def over_sets(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Ranks of the methods that every set has, over sets and seeds.

    A block is a seed of a set that all methods have; the ridge probe, which has none, is in every
    block. Blocks of one set are alike, so that the critical difference is
    too small rather than too large.

    Returns:
        None of fewer than two sets, methods or blocks.
    """
    names = dict.fromkeys(method for of in sets for method in of["methods"])
    has_all = [
        method
        for method in names
        if all(of["methods"].get(method, {}).get("mAP") is not None for of in sets)
    ]
    blocks = []
    for of in sets:
        cells = [cell for method in has_all for cell in of["methods"][method]["cells"]]
        for seed in sorted({cell["seed"] for cell in cells}):
            row = [_run(method, of["methods"][method], seed) for method in has_all]
            blocks += [row] if None not in row else []
    if min(len(sets), len(has_all), len(blocks)) < 2:
        return None
    table = np.array(blocks)
    ranks = methods.mean_ranks(table)
    baseline, wins = sets[0]["baseline"], {}
    if baseline in has_all:
        base = table[:, has_all.index(baseline)]
        wins = {
            method: [int(np.sum(column > base)), int(np.sum(column < base))]
            for method, column in zip(has_all, table.T, strict=True)
            if method != baseline
        }
    return {
        "blocks": len(blocks),
        "ranks": dict(zip(has_all, ranks.tolist(), strict=True)),
        "critical_difference": methods.critical_difference(len(has_all), len(blocks)),
        "baseline": baseline,
        "wins_and_losses": wins,
        "left_out": [method for method in names if method not in has_all],
    }


def _run(method: str, of_method: Mapping[str, Any], seed: int) -> float | None:
    """The mAP of the run with a seed, None where there is none; the probe's is of any seed."""
    if re.match(rf"{RIDGE}\b", method):
        return of_method["mAP"]
    seeds = [cell["seed"] for cell in of_method["cells"] if not cell["error"]]
    return dict(zip(seeds, of_method["runs"], strict=True)).get(seed)


def summed_up(sets: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> dict[str, Any]:
    """All of it, as JSON holds it."""
    return {"rates": list(rates), "sets": list(sets), "over_sets": over_sets(sets)}
