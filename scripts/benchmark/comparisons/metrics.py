"""mAP, precision, recall and F1 of a whole split, by default as large as COCO's."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from comparison import Case, Comparison, Sizes, Task

FIGURES = ("mAP", "OP", "OR", "OF1", "CP", "CR", "CF1")


def inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    """Logits float32 [N, C] and labels int8 [N, C], of which one in thirty is present."""
    rng = np.random.default_rng(0)
    shape = sizes["images"], sizes["labels"]
    present = rng.random(shape) < 1 / 30
    present[0] = True  # every class has a positive
    scores = rng.standard_normal(shape, np.float32) + 3 * present - 1
    return {
        "scores": scores.astype(np.float32),
        "labels": np.where(present, 1, -1).astype(np.int8),
    }


def ours(given: dict[str, np.ndarray], _: Sizes) -> Callable[[], dict[str, Any]]:
    from mlic_jax.metrics.classification import evaluate_scores

    def run() -> dict[str, float]:
        result = evaluate_scores(given["scores"], given["labels"], "mcar")
        return {name: result[name] for name in FIGURES}

    return run


def as_released(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
    """The definitions in a loop over tensors, an image of a class at a time."""
    import torch

    scores, labels, threshold = given["scores"], given["labels"], logit_threshold()

    def run() -> dict[str, Any]:
        precisions, counts = [], []
        for c in range(labels.shape[1]):
            precisions.append(average_precision(scores[:, c], labels[:, c]))
            counts.append(counts_of_class(scores[:, c], labels[:, c], threshold))
        figures = summarise(precisions, torch.tensor(counts, dtype=torch.float64))
        return {name: torch.as_tensor(value) for name, value in figures.items()}

    return run


def average_precision(scores: Any, labels: Any) -> float:
    """The mean of the precision at each positive, counted down the ranking."""
    hits, precisions = 0, 0.0
    for rank, image in enumerate((-scores).argsort(), start=1):
        if labels[image] > 0:
            hits += 1
            precisions += hits / rank
    return precisions / hits


def counts_of_class(scores: Any, labels: Any, threshold: float) -> Sequence[int]:
    """How many labels are predicted rightly, predicted, and present."""
    predicted, present = scores >= threshold, labels > 0
    return int((predicted & present).sum()), int(predicted.sum()), int(present.sum())


def tuned(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
    """All classes at once: one sort, and sums along the ranking."""
    import torch

    scores, labels, threshold = given["scores"], given["labels"], logit_threshold()
    ranks = torch.arange(1, len(scores) + 1, device=scores.device, dtype=torch.float64)[:, None]

    def run() -> dict[str, Any]:
        with torch.inference_mode():
            present = labels > 0
            hits = present.gather(0, scores.argsort(dim=0, descending=True))
            precisions = (hits.cumsum(dim=0) / ranks * hits).sum(dim=0) / hits.sum(dim=0)
            predicted = scores >= threshold
            counts = [(predicted & present).sum(dim=0), predicted.sum(dim=0), present.sum(dim=0)]
            return summarise(precisions, torch.stack(counts, dim=1).double())

    return run


def summarise(precisions: Sequence, counts: Any) -> dict[str, Any]:
    """The figures from every class's AP and counts [C, 3] (a tensor of float64)."""
    hits, predicted, positive = counts.sum(dim=0)
    overall = hits / predicted, hits / positive
    by_class = (
        (counts[:, 0] / counts[:, 1].clamp(min=1)).mean(),
        (counts[:, 0] / counts[:, 2]).mean(),
    )
    result = {"mAP": 100 * sum(precisions) / len(precisions)}
    for letter, (precision, recall) in (("O", overall), ("C", by_class)):
        result[f"{letter}P"], result[f"{letter}R"] = 100 * precision, 100 * recall
        result[f"{letter}F1"] = 200 * precision * recall / (precision + recall)
    return result


def logit_threshold() -> float:
    from mlic_jax.metrics.protocols import PROTOCOLS

    probability = PROTOCOLS["mcar"].threshold
    return math.log(probability / (1 - probability))


COMPARISON = Comparison(
    title="mAP, precision, recall and F1",
    sizes={"images": 40137, "labels": 80},
    small={"images": 200, "labels": 4},
    tasks=(
        Task(
            "metrics of a split",
            inputs,
            (
                Case("ours", "host", ours),
                Case("PyTorch, as released", "torch", as_released, time_target=100),
                Case("PyTorch, tuned", "torch", tuned),
            ),
            measures_memory=False,
        ),
    ),
)
