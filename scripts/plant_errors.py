"""Measures how well wrong labels are found: plants some into sets, and looks for them.

    python scripts/plant_errors.py --sets own/ucmerced/ucmerced.py mcar_scenes --seeds 1 2 3 \
        --page docs/diagnosis.md --config.init_from=weights/mobilenet_v2

Of the labels to train on that are present a share is given as absent, drawn evenly, and as many
that are absent are given as present; what is unknown stays so. Then `cross_fit` judges all of them
by the backbone that a run would start from, which has seen no label of the set. Of those given as
absent (is it missing?) and of those given as present (is it wrong?) it is measured how many of the
most doubtful hundredth were planted, and the areas under ROC and under precision and recall. What
was wrong in a set before counts as right: real errors that are found make the figures lower.

Intervals are the middle 95% of 500 resamples of the photos, of the mean over the seeds.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mlic_jax import recipes
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.config_checks import check_config
from mlic_jax.data import sources
from mlic_jax.diagnose.cross_fit import cross_fit
from mlic_jax.diagnose.doubtful import AGGREGATES, is_doubtful, label_quality, photo_quality
from mlic_jax.errors import UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.files.marked import split_page, update_page
from mlic_jax.models import create_model
from mlic_jax.scores.pooled import mean_features
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables, start_weights

RESAMPLES, TOP = 500, 0.01
MARK = "planted errors"
SIDES = {"missing": -1, "wrong": 1}  # kind -> the label that is given


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="plant_errors.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", required=True, metavar="RECIPE", help="as --config")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.2], metavar="SHARE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help=f"Markdown with a place `<!-- {MARK} -->`; the figures go beside it",
    )

    def run() -> None:
        options, given = parser.parse_known_args(arguments)
        if wrong := [share for share in options.shares if not 0 < share < 1]:
            raise UsageError(f"--shares {wrong[0]:g}: it must be between 0 and 1")
        if options.page:
            split_page(options.page, MARK)
        found = [
            values
            for recipe in options.sets
            for values in of_set(recipe, given, options.shares, options.seeds)
        ]
        table = to_markdown(found)
        print(table, end="")
        if options.page:
            update_page(options.page, MARK, table)
            content = json.dumps(found, indent=1)
            write_text(options.page.with_suffix("") / "planted.json", content)

    return exit_code(run)


def of_set(
    recipe: str, given: Sequence[str], shares: Sequence[float], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The figures of a set, for every share of errors."""
    config = recipes.load_with(recipe, given)
    check_config(config)
    options = TrainOptions.of(config)
    split = sources.open_splits(options.data)["train"]
    model = create_model(options.model, len(split.class_names))
    fit = getattr(model.features, "fit", None)
    fresh = initial_variables(model, options)
    start = start_weights(fresh, options, list(split.class_names), fit)
    features = mean_features(model, start, split, options)
    ids = [split.image_id(i) for i in range(len(split))]
    found = []
    for share in shares:
        tries = []
        for seed in tqdm(seeds, f"{split.name}, {share:.0%} of errors", leave=False):
            labels = plant(split.labels(), share, seed)
            tries.append((labels, cross_fit(features, labels, ids, seed=seed)))
        figures = measure(split.labels(), tries)
        about = {"set": split.name, "images": len(split), "share": share, "seeds": list(seeds)}
        found.append(about | figures)
    return found


def plant(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels int8 `[N, C]`, of which a share of the present and as many absent are exchanged."""
    rng = np.random.default_rng(seed)
    changed = labels.copy()
    present, absent = (np.flatnonzero(labels == side) for side in (1, -1))
    count = min(round(share * len(present)), len(absent))
    for places in (present, absent):
        chosen = rng.choice(places, count, replace=False)
        changed.flat[chosen] *= -1
    return changed


def measure(
    truth: np.ndarray, tries: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Figures of labels with errors and the probabilities of them, means over all tries.

    Returns:
        Of `missing` and `wrong`: `chance`, the share of errors; `ceiling`, the most that `top` can
        be; `listed`, how many labels are counted as errors, with their `precision` and `recall`;
        and with their intervals, [value, low, high], `top`, `roc` and `pr`. Of `photos` with any
        error: `chance` and the area under ROC of each aggregate.
    """
    photos = len(truth)
    drawn = np.random.default_rng(0).multinomial(photos, np.full(photos, 1 / photos), RESAMPLES)
    weights = np.concatenate([np.ones((1, photos), int), drawn])  # the first: each photo once
    found: dict[str, dict[str, Any]] = {}
    for kind, side in SIDES.items():
        each = []
        for labels, probabilities in tries:
            quality = label_quality(labels, probabilities)
            is_given = (labels == side) & ~np.isnan(quality)
            photo = np.broadcast_to(np.arange(photos)[:, None], truth.shape)[is_given]
            is_error = (labels != truth)[is_given]
            ranked = np.argsort(quality[is_given], kind="stable")
            each.append(areas(is_error[ranked], photo[ranked], weights))
            listed = is_doubtful(labels, probabilities)[is_given]
            hits = np.count_nonzero(listed & is_error)
            each[-1] |= {
                "chance": is_error.mean(),
                "ceiling": min(1.0, is_error.mean() / TOP),
                "listed": np.count_nonzero(listed),
                "precision": hits / max(np.count_nonzero(listed), 1),
                "recall": hits / max(np.count_nonzero(is_error), 1),
            }
        found[kind] = {name: summed_up([one[name] for one in each]) for name in each[0]}
    found["photos"] = of_photos(truth, tries, weights)
    return found


def of_photos(
    truth: np.ndarray, tries: Sequence[tuple[np.ndarray, np.ndarray]], weights: np.ndarray
) -> dict[str, Any]:
    """How well the photos with an error are told from those without, by each aggregate."""
    each = []
    for labels, probabilities in tries:
        is_error, values = (labels != truth).any(axis=1), {}
        for aggregate in AGGREGATES:
            quality = photo_quality(label_quality(labels, probabilities), aggregate)
            ranked = np.argsort(quality, kind="stable")
            values[aggregate] = areas(is_error[ranked], ranked, weights)["roc"]
        each.append({"chance": is_error.mean(), **values})
    return {name: summed_up([one[name] for one in each]) for name in each[0]}


def areas(is_error: np.ndarray, photo: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Precision at the top and the areas under ROC and precision and recall, `[R]` each.

    Args:
        is_error: bool `[M]`, of labels from the most doubtful to the least.
        photo: int `[M]`, of each.
        weights: `[R, N]`, how often each photo counts.
    """
    found: dict[str, list[float]] = {"top": [], "roc": [], "pr": []}
    for weight in weights:
        row = weight[photo].astype(float)
        errors = row * is_error
        hits, seen = np.cumsum(errors), np.cumsum(row)
        total, others = max(hits[-1], 1), max(seen[-1] - hits[-1], 1)
        top = np.searchsorted(seen, max(1, round(TOP * seen[-1])))
        found["top"].append(hits[top] / seen[top])
        found["roc"].append(np.sum((row - errors) * hits) / (total * others))
        found["pr"].append(np.sum(errors * hits / np.maximum(seen, 1)) / total)
    return {name: np.array(values) for name, values in found.items()}


def summed_up(values: Sequence[Any]) -> Any:
    """The mean over tries: of arrays, whose first is the figure, [value, low, high]."""
    mean = np.mean(values, axis=0)
    if not mean.ndim:
        return float(mean)
    return [float(mean[0]), *np.quantile(mean[1:], (0.025, 0.975)).tolist()]


def to_markdown(found: Sequence[dict[str, Any]]) -> str:
    """A table with a row a set, a share and a kind, and one of the photos."""
    lines = [
        "| set | errors | kind | chance | precision in the top 1% | area under ROC | under PR "
        "| listed | planted of these | of all planted |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for of in found:
        for kind in SIDES:
            one = of[kind]
            top, roc, pr = (_with_interval(one[name]) for name in ("top", "roc", "pr"))
            if one["ceiling"] < 1:
                top += f", at most {100 * one['ceiling']:.0f}"
            lines.append(
                f"| {of['set']} | {of['share']:.0%} | {kind} | {100 * one['chance']:.1f} | {top} | "
                f"{roc} | {pr} | {one['listed']:.0f} | {100 * one['precision']:.0f} | "
                f"{100 * one['recall']:.0f} |"
            )
    names = " | ".join(f"{name.replace('_', ' ')}, area under ROC" for name in AGGREGATES)
    lines += ["", f"| set | errors | photos with one | {names} |", "|---|---|---|---|---|"]
    for of in found:
        areas_of = " | ".join(_with_interval(of["photos"][name]) for name in AGGREGATES)
        share = 100 * of["photos"]["chance"]
        lines.append(f"| {of['set']} | {of['share']:.0%} | {share:.1f} | {areas_of} |")
    return "\n".join(lines) + "\n"


def _with_interval(value: Sequence[float]) -> str:
    number, low, high = (100 * x for x in value)
    return f"{number:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
