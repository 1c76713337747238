"""What choosing pays: mAP against labels given, of the photos of `mlic review` or random ones.

    python scripts/active_curve.py --workdir runs/voc_animals --out docs/diagnosis/active_voc

A simulated person labels photos of the training split and answers as the annotations do, all
classes of a photo. Both ways begin with the same random photos; after each round the probe of
`mlic review` is fitted to what is labelled so far, on the features of the run's backbone, and the
test split is scored. Written are OUT.json, after every seed, and OUT.svg; another time it goes on
after the seeds that are there. The backbone must not have seen these labels: the run is to be of a
frozen one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from mlic_jax.checkpoint_config import set_up
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import sources
from mlic_jax.diagnose.cross_fit import (
    FOLDS,
    PENALTIES,
    calibrated,
    folds_of,
    log_loss,
    principal,
    ridge_scores,
)
from mlic_jax.files import json_text
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.average_precision import average_precision
from mlic_jax.review.selection import most_informative
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.pooled import mean_features
from mlic_jax.scores.scoring import load_model

WAYS = ("active", "random")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="active_curve.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a run with a frozen backbone")
    parser.add_argument("--out", type=Path, required=True, help="of the two files, without ending")
    parser.add_argument("--prepared-dir", help="where the prepared set is, if it has moved")
    parser.add_argument("--step", type=int, default=36, help="photos of a round, and to begin with")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: Any) -> None:
    changes = {"data.prepared_dir": options.prepared_dir} if options.prepared_dir else {}
    setup = set_up(None, options.workdir, None, changes)
    scoring = ScoreOptions.of(setup.config)
    splits = sources.open_splits(scoring.data)
    model, variables, _ = load_model(scoring, setup.path, splits["train"])
    features = [mean_features(model, variables, splits[of], scoring) for of in ("train", "test")]
    labels = [splits[of].labels() for of in ("train", "test")]
    ids = [splits["train"].image_id(i) for i in range(len(labels[0]))]
    axes = principal(np.concatenate(features))
    about = {
        "set": splits["train"].name,
        "photos": len(ids),
        "all_labels": round(test_map(fitted(axes, labels[0], ids)[1], labels[1]), 2),
    }
    written = options.out.with_suffix(".json")
    curves = done_before(written, options, labels[0].shape[1])
    for seed in range(len(curves["random"]), options.seeds):
        for way in WAYS:
            found = curve(axes, features[0], *labels, ids, way, options, seed)
            curves[way].append(found)
            print(f"seed {seed}, {way}: {', '.join(f'{value:.1f}' for value in found)}", flush=True)
        result = summary(curves, options.step, labels[0].shape[1]) | about
        write_text(written, json.dumps(result, indent=1) + "\n")
    draw(json_text.read(written), options.out.with_suffix(".svg"))


def done_before(written: Path, options: Any, classes: int) -> dict[str, list[list[float]]]:
    """The curves of the first seeds, of a run with these options that was cut short."""
    labels = [options.step * classes * k for k in range(1, options.rounds + 1)]
    if written.is_file() and (before := json_text.read(written))["labels"] == labels:
        return {way: before["curves"][way] for way in WAYS}
    return {way: [] for way in WAYS}


def curve(
    axes: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    test_labels: np.ndarray,
    ids: Sequence[str],
    way: str,
    options: Any,
    seed: int,
) -> list[float]:
    """The mAP on the test split after each round; `way` says which photos are labelled next."""
    order = np.random.default_rng(seed).permutation(len(labels))
    is_labelled = np.zeros(len(labels), bool)
    is_labelled[order[: options.step]] = True
    values = []
    for _ in range(options.rounds):
        given = np.where(is_labelled[:, None], labels, np.int8(0))
        probabilities, scores = fitted(axes, given, ids)
        values.append(test_map(scores, test_labels))
        if way == "active":
            chosen = most_informative(features, probabilities, is_labelled, options.step)
        else:
            chosen = order[~is_labelled[order]][: options.step]
        is_labelled[chosen] = True
    return values


def fitted(
    axes: np.ndarray, given: np.ndarray, ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[N, C]` of the training split and scores of the test split, which follows it.

    As the page has them: those of photos that are labelled are of the probe of the other folds, by
    which the penalty is chosen, those of the others of the probe of all that are.
    """
    rows = np.flatnonzero(given.any(axis=1))
    fold = np.full(len(axes), FOLDS)
    fold[rows] = folds_of([ids[i] for i in rows], given[rows], FOLDS, 0)
    labels = np.zeros((len(axes), given.shape[1]), np.int8)
    labels[: len(given)] = given
    judged = (given > 0).any(axis=0) & (given < 0).any(axis=0)
    best, least = None, np.inf
    for scores in ridge_scores(axes, labels, fold, PENALTIES):
        probabilities = np.full(labels.shape, np.nan)
        probabilities[:, judged] = calibrated(scores[:, judged], labels[:, judged])
        loss = log_loss(probabilities[rows][:, judged], given[rows][:, judged])
        if loss < least:
            best, least = (probabilities[: len(given)], scores[len(given) :]), loss
    assert best is not None  # a loss is finite
    return best


def test_map(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean AP of the classes that the split has, in percent."""
    return float(np.nanmean(average_precision(scores, labels)))


def summary(curves: dict[str, list[list[float]]], step: int, classes: int) -> dict[str, Any]:
    """Means over seeds with their 95 % intervals (Student's t), and of the paired differences."""
    values = {way: np.array(curves[way]) for way in WAYS}
    rounds = values["active"].shape[1]
    difference = values["active"] - values["random"]
    return {
        "labels": [step * classes * k for k in range(1, rounds + 1)],
        "seeds": len(difference),
        **{way: _with_interval(values[way]) for way in WAYS},
        "difference": _with_interval(difference),
        "curves": {way: np.round(values[way], 3).tolist() for way in WAYS},
    }


def _with_interval(values: np.ndarray) -> dict[str, list[float]]:
    mean, count = values.mean(axis=0), len(values)
    half = np.zeros_like(mean)
    if count > 1:
        factor = scipy.stats.t.ppf(0.975, count - 1)
        half = factor * values.std(axis=0, ddof=1) / np.sqrt(count)
    return {"mean": np.round(mean, 2).tolist(), "half_width": np.round(half, 2).tolist()}


def draw(result: dict[str, Any], path: Path) -> None:
    """The two curves with their intervals, and the mAP of all labels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for way, colour in zip(WAYS, ("#1f5fa8", "#c0480c"), strict=True):
        mean, half = (np.array(result[way][name]) for name in ("mean", "half_width"))
        axes.plot(result["labels"], mean, color=colour, marker="o", markersize=3, label=way)
        axes.fill_between(result["labels"], mean - half, mean + half, color=colour, alpha=0.18)
    label = f"all {result['photos']:,} photos"
    axes.axhline(result["all_labels"], color="#596273", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel("labels given (photos times classes)")
    axes.set_ylabel("mAP on the test split")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "mlic_jax"}):  # the same curves, the same file
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
