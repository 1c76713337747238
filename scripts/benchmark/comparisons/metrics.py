"""mAP, precision, recall and F1 of a whole split, by default as large as COCO's."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from comparison import Case, Comparison, Sizes

from mlic_jax.metrics import PROTOCOLS, evaluate_scores

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
    def run() -> dict[str, float]:
        result = evaluate_scores(given["scores"], given["labels"], "mcar")
        return {name: result[name] for name in FIGURES}

    return run


def loop(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
    """The definitions, an image and a class at a time, for tensors and arrays alike."""
    scores, labels = given["scores"], given["labels"]
    probability = PROTOCOLS["mcar"].threshold
    threshold = math.log(probability / (1 - probability))

    def run() -> dict[str, float]:
        precisions, counts = [], []
        for c in range(labels.shape[1]):
            precisions.append(average_precision(scores[:, c], labels[:, c]))
            counts.append(counts_of_class(scores[:, c], labels[:, c], threshold))
        result = {"mAP": 100 * sum(precisions) / len(precisions)}
        hits, predicted, positive = (sum(column) for column in zip(*counts, strict=True))
        overall = hits / predicted, hits / positive
        by_class = (
            sum(hit / max(guessed, 1) for hit, guessed, _ in counts) / len(counts),
            sum(hit / present for hit, _, present in counts) / len(counts),
        )
        for letter, (precision, recall) in (("O", overall), ("C", by_class)):
            result[f"{letter}P"], result[f"{letter}R"] = 100 * precision, 100 * recall
            result[f"{letter}F1"] = 200 * precision * recall / (precision + recall)
        return result

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


def torch_loop(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
    import torch

    run = loop(given, sizes)
    return lambda: {name: torch.tensor(value) for name, value in run().items()}


COMPARISON = Comparison(
    title="mAP, precision, recall and F1",
    sizes={"images": 40137, "labels": 80},
    small={"images": 200, "labels": 4},
    inputs=inputs,
    cases=(
        Case("metrics", "ours", "host", ours),
        Case("metrics", "loop over NumPy arrays", "host", loop),
        Case("metrics", "loop over PyTorch tensors", "torch", torch_loop),
    ),
)
