"""Operating points: how much a probability means, and from which on a label counts as predicted.

Logits are divided by one temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML
2017) and thresholds are chosen on the probabilities that result, both on a validation split. Labels
that are unknown (0) are left out of everything here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.optimize

from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics.precision_recall import (
    class_precision_recall_f1,
    count,
    precision_recall_f1,
    sigmoid,
)
from mlic_jax.names import require_one_of

# What a threshold is to achieve. The last two need a target.
RULES = {
    "one": "one threshold, with the best overall F1",
    "per_class": "a threshold for each class, with its best F1",
    "precision": "a threshold for each class, the least with a precision of {target:g}",
    "recall": "a threshold for each class, the highest with a recall of {target:g}",
}
# Beyond these a set is too small, or too well told apart, to say what a probability means.
TEMPERATURES = (0.05, 20.0)
BINS = 15


class LabelledScores(Protocol):
    """What is needed of the scores of a split: `mlic_jax.scores.files.Scores` has it."""

    @property
    def logits(self) -> np.ndarray:
        """float32 [N, C]."""

    @property
    def labels(self) -> np.ndarray:
        """int8 [N, C] in {+1, 0, -1}."""

    @property
    def class_names(self) -> np.ndarray:
        """str [C]."""

    @property
    def set_name(self) -> str:
        """Of the prepared set."""

    @property
    def split(self) -> str:
        """Of the set."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """One temperature, a threshold for each of the C classes, and what they were learned on."""

    temperature: float  # logits are divided by it
    thresholds: tuple[float, ...]  # [C], of probabilities after the temperature
    rule: str  # in words, for a person
    set_name: str
    split: str
    images: int
    error_before: float  # expected calibration error there, percent
    error_after: float
    fallback: tuple[str, ...] = ()  # classes that have the one threshold in place of their own

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64, of logits [..., C]."""
        return calibrated(logits, self.temperature)

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """Bool [..., C]: which logits [..., C] reach the thresholds."""
        return self.probabilities(logits) >= np.array(self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint's metadata hold under "operating_point"."""
        return {
            "temperature": self.temperature,
            "thresholds": list(self.thresholds),
            "rule": self.rule,
            "set": self.set_name,
            "split": self.split,
            "images": self.images,
            "expected_calibration_error": {"before": self.error_before, "after": self.error_after},
            "fallback": list(self.fallback),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "OperatingPoint":
        """Reads what `to_dict` made.

        Raises:
            Failure: it is something else.
        """
        try:
            return cls(
                temperature=float(stored["temperature"]),
                thresholds=tuple(map(float, stored["thresholds"])),
                rule=stored["rule"],
                set_name=stored["set"],
                split=stored["split"],
                images=stored["images"],
                error_before=stored["expected_calibration_error"]["before"],
                error_after=stored["expected_calibration_error"]["after"],
                fallback=tuple(stored["fallback"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Failure(f"the operating point is damaged, calibrate again: {error!r}") from None


# --- learning


def learn_operating_point(
    scores: LabelledScores, rule: str = "one", target: float | None = None, *, on_test: bool = False
) -> OperatingPoint:
    """Learns the temperature, and then thresholds on the calibrated probabilities.

    A threshold lies half-way between the lowest probability that it lets pass and the next lower
    one (or 0); of equally good ones the highest is taken. A class without positives, and one whose
    target cannot be reached, falls back to the threshold of the rule `one` and is named.

    Args:
        scores: of a validation split.
        rule: a key of `RULES`.
        target: in (0, 1], for the rules `precision` and `recall`.
        on_test: whether the split is also the one that results are reported on; the rule then says
            so wherever it is shown.

    Raises:
        UsageError: an unknown rule, or a target that is missing, not needed or out of range.
        Failure: a logit is not finite, nothing is labelled present, or no class reaches the target.
    """
    text = rule_text(rule, target) + (", learned on the test split" if on_test else "")
    logits, labels = scores.logits, scores.labels
    if not np.isfinite(logits).all():
        raise Failure(f"scores of {scores.set_name} {scores.split} are not finite")
    if not (labels > 0).any():
        raise Failure(
            f"no label of {scores.set_name} {scores.split} is present: nothing to learn from"
        )
    temperature = learn_temperature(logits, labels)
    probabilities = calibrated(logits, temperature)
    one = _chosen(sweep(probabilities, labels), "one", target)
    thresholds, fallback = np.full(logits.shape[1], one), []
    if rule != "one":
        for c, name in enumerate(scores.class_names):
            own = _chosen(sweep(probabilities[:, c], labels[:, c]), rule, target)
            if own is None:
                fallback.append(str(name))
            else:
                thresholds[c] = own
    if len(fallback) == len(thresholds):
        raise Failure(
            f"no class of {scores.set_name} {scores.split} reaches a {rule} of {target:g}"
        )
    return OperatingPoint(
        temperature=temperature,
        thresholds=tuple(thresholds.tolist()),
        rule=text,
        set_name=scores.set_name,
        split=scores.split,
        images=len(logits),
        error_before=expected_calibration_error(sigmoid(logits), labels),
        error_after=expected_calibration_error(probabilities, labels),
        fallback=tuple(fallback),
    )


def rule_text(rule: str, target: float | None) -> str:
    """A rule in words.

    Raises:
        UsageError: as `learn_operating_point`.
    """
    require_one_of("rule", rule, RULES)
    if rule in ("one", "per_class"):
        if target is not None:
            raise UsageError(f"the rule {rule!r} has no target; precision and recall have")
    elif target is None:
        raise UsageError(f"the rule {rule!r} needs a target, a fraction such as 0.9")
    elif not 0 < target <= 1:
        raise UsageError(f"the target is {target:g}; it must be a fraction above 0 and at most 1")
    return RULES[rule].format(target=target)


def learn_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least binary cross entropy of logits / temperature.

    The cross entropy is convex in the inverse temperature a, so the zero of its slope is sought.
    Where that lies outside `TEMPERATURES`, the nearer end is the answer.

    Args:
        logits: [N, C], finite.
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.
    """
    known = labels != 0
    z, present = logits[known].astype(np.float64), labels[known] > 0

    def slope(a: float) -> float:
        return float(np.mean((sigmoid(a * z) - present) * z))

    coldest, hottest = TEMPERATURES
    if slope(1 / hottest) >= 0:
        return hottest
    if slope(1 / coldest) <= 0:
        return coldest
    return 1 / scipy.optimize.brentq(slope, 1 / hottest, 1 / coldest, xtol=1e-12)


def calibrated(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities, float64, of logits of any shape. float32 could make different ones equal."""
    return sigmoid(np.asarray(logits, np.float64) / temperature)


class Sweep(NamedTuple):
    """A threshold between every two probabilities that differ, descending, and what it achieves."""

    thresholds: np.ndarray  # [K]
    precision: np.ndarray  # [K], fractions
    recall: np.ndarray  # [K]; NaN without positives
    f1: np.ndarray  # [K]


def sweep(probabilities: np.ndarray, labels: np.ndarray) -> Sweep:
    """Precision, recall and F1 at every threshold that makes a difference.

    Args:
        probabilities: any shape; all entries are compared with the same threshold.
        labels: the same shape, in {+1, -1, 0}; entries that are 0 are left out.
    """
    known = labels != 0
    ascending = np.argsort(probabilities[known])
    probability = probabilities[known][ascending][::-1]
    hits = np.cumsum(labels[known][ascending][::-1] > 0)
    # Equal probabilities are predicted together: only the last of each is a place to cut.
    last = np.flatnonzero(np.diff(probability, append=-1.0))
    lowest = probability[last]
    below = np.append(lowest, 0.0)[1:]
    middle = (lowest + below) / 2
    hits, predicted, positives = hits[last], last + 1, int(np.sum(labels > 0))
    return Sweep(
        # Of two neighbours in float64 the middle is one of them, maybe the wrong one.
        thresholds=np.where(middle > below, middle, lowest),
        precision=hits / predicted,
        recall=hits / positives if positives else np.full(len(last), np.nan),
        f1=2 * hits / (predicted + positives),
    )


def _chosen(curve: Sweep, rule: str, target: float | None) -> float | None:
    """The threshold that a rule takes; None where there are no positives or none is good enough."""
    if not curve.f1.any():
        return None
    if rule in ("one", "per_class"):
        return float(curve.thresholds[np.argmax(curve.f1)])
    reached = np.flatnonzero(getattr(curve, rule) >= target)
    if not len(reached):
        return None
    return float(curve.thresholds[reached[-1 if rule == "precision" else 0]])


class Reliability(NamedTuple):
    """What probabilities promise and what is true, in bins of equal width."""

    entries: np.ndarray  # int [bins]
    promised: np.ndarray  # float64 [bins], the mean probability; NaN in an empty bin
    present: np.ndarray  # float64 [bins], the share that is present


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Compares probabilities with labels; bin k is (k / bins, (k + 1) / bins], and 0 in the first.

    Args:
        probabilities: any shape, in [0, 1]; that of the label being present.
        labels: the same shape, in {+1, -1, 0}; entries that are 0 are left out.
        bins: how many.
    """
    known = labels != 0
    probability, present = probabilities[known], labels[known] > 0
    edges = np.arange(1, bins) / bins
    of_bin = np.searchsorted(edges, probability, side="left")
    entries = np.bincount(of_bin, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            entries,
            np.bincount(of_bin, probability, bins) / entries,
            np.bincount(of_bin, present, bins) / entries,
        )


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> float:
    """The mean distance of promised and true shares over all known labels, in percent.

    Guo et al. (2017), of the binary question whether a label is present, all classes together. Most
    labels of most images are plainly absent, so that small figures are the rule.

    Args:
        probabilities, labels, bins: as for `reliability`. At least one label is known.
    """
    entries, promised, present = reliability(probabilities, labels, bins)
    filled = entries > 0
    distance = np.abs(promised - present)[filled]
    return 100 * float(np.average(distance, weights=entries[filled]))


def measure(scores: LabelledScores, point: OperatingPoint) -> dict[str, Any]:
    """Figures of a split at an operating point, and at probability 0.5 of the logits as they are.

    Returns:
        `at_half` and `at_operating_point`: `OP OR OF1 CP CR CF1 CF1_macro` and
        `expected_calibration_error`, all in percent. `classes`: for each its name, threshold,
        whether that is a fallback, positives, and precision, recall and F1 there (None without
        positives).
    """
    figures: dict[str, Any] = {}
    for name, probabilities, thresholds in (
        ("at_half", sigmoid(scores.logits), 0.5),
        ("at_operating_point", point.probabilities(scores.logits), np.array(point.thresholds)),
    ):
        counts = count(probabilities >= thresholds, scores.labels)
        error = expected_calibration_error(probabilities, scores.labels)
        figures[name] = precision_recall_f1(counts) | {"expected_calibration_error": error}
    rows = zip(
        map(str, scores.class_names),
        point.thresholds,
        counts.positives.tolist(),
        *(100 * values for values in class_precision_recall_f1(counts)),
        strict=True,
    )
    figures["classes"] = [
        {
            "name": name,
            "threshold": threshold,
            "fallback": name in point.fallback,
            "positives": positives,
            "precision": None if math.isnan(precision) else float(precision),
            "recall": None if math.isnan(recall) else float(recall),
            "F1": None if math.isnan(f1) else float(f1),
        }
        for name, threshold, positives, precision, recall, f1 in rows
    ]
    return figures
