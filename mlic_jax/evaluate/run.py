"""What a model's scores of a split are worth, of a checkpoint: figures, and the report of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mlic_jax.checkpoint_config import as_predicted
from mlic_jax.config_checks import check_config
from mlic_jax.data import label_tree, sources
from mlic_jax.data.corrections import noted
from mlic_jax.data.fitting import Fit
from mlic_jax.data.label_policy import LabelPolicy, resolve_unknown
from mlic_jax.data.objects import objects_of_square, read_objects
from mlic_jax.data.records import Split
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.average_precision import average_precision, mean_average_precision
from mlic_jax.metrics.classification import evaluate_scores
from mlic_jax.metrics.localisation import localise, summarise_looks
from mlic_jax.metrics.operating_point import OperatingPoint, measure
from mlic_jax.metrics.ties import Ties
from mlic_jax.options import Options
from mlic_jax.reports import evaluation_page, text
from mlic_jax.reports.label_graph import LabelGraph
from mlic_jax.runtime import processes
from mlic_jax.runtime.checkpoint import find_checkpoint
from mlic_jax.runtime.checkpoint_paths import run_of
from mlic_jax.scores.files import Scores
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.scoring import load_model, score_model


@dataclass(frozen=True)
class MetricOptions(Options):
    """Of `config.eval`, how scores are measured."""

    protocol: str
    label_policy: Literal[LabelPolicy, ""]
    ties: Literal[Ties, ""]
    min_positives: int


def compute_metrics(
    scores: Scores, options: MetricOptions, frequent: np.ndarray | None = None
) -> dict[str, Any]:
    """The metrics of the configured protocol, and the mAP of the global stream if there is one."""
    values = evaluate_scores(
        scores.logits,
        scores.labels,
        options.protocol,
        class_names=list(scores.class_names),
        label_policy=options.label_policy or None,
        ties=options.ties or None,
        frequent=frequent,
    )
    if scores.global_logits is not None:
        labels = resolve_unknown(scores.labels, values["unknown_in_ap"])
        global_ap = average_precision(
            scores.global_logits, labels, values["ap_kind"], values["ties"]
        )
        values["global_mAP"] = mean_average_precision(global_ap)
    return values


def evaluate_run(
    config: ConfigDict,
    workdir: Path | str,
    checkpoint: Path | str | None = None,
    profile: bool = False,
    overrides: Mapping[str, tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the test split; by default it is the best of the run in `workdir`.

    Writes `scores_<split>.npz`, `metrics_<split>.json` and the report into `workdir`, and prints a
    summary. The metrics say too of which checkpoint they are and with which `overrides`; its
    `operating_point`, if it was calibrated, with the `figures` there (see `measure`), which are
    those of predicted labels; with which `corrections` of labels (see `noted`), if there are any;
    of MSRN the `groups`, of each group of labels their names; `localisation`, where the model
    looks, if the set has boxes and it has regions; and with `data.label_tree` in how many photos
    `labels` and `scores` go against each of its `rules`. Of a split without any known label
    (VOC 2012 test) only the scores are written, and nothing is returned.

    Args:
        profile: trace a few batches into `<workdir>/profile`, see `profiling.profiled`.
        overrides: the options of `config` that are not the checkpoint's: {name: (old, new)}.

    Raises:
        UsageError: the configuration is not sound, there is no checkpoint, or it is of another
            model or other classes.
    """
    check_config(config)
    options, measured = ScoreOptions.of(config), MetricOptions.of(config.eval)
    path, workdir = find_checkpoint(checkpoint or workdir), Path(workdir)
    splits = processes.first_alone(lambda: sources.open_splits(options.data))
    split = splits["test"]
    eval_model, variables, metadata = load_model(options, path, split)
    folder = workdir / "profile" if profile else None
    scores = score_model(eval_model, variables, split, options, folder)
    is_first = processes.is_first()
    if not scores.labels.any():
        if is_first:
            written = workdir / f"scores_{split.split}.npz"
            scores.save(written)
            print(f"no label of {split.name} {split.split} is known: wrote {written} alone")
        return {}

    least = measured.min_positives
    frequent = frequent_classes(splits["train"], split, least) if least else None
    values = compute_metrics(scores, measured, frequent)
    step = metadata.get("step", "unknown")  # to earlier versions
    values["checkpoint"] = metadata.get("source") or f"step {step}"
    values["overrides"] = {name: new for name, (_, new) in (overrides or {}).items()}
    if people := noted(options.data.corrections):
        values["corrections"] = people
    if (point := operating_point(metadata, config, path)) is not None:
        figures = measure(scores, point)["at_operating_point"]
        values["operating_point"] = point.to_dict() | {"figures": figures}
    if located := where_it_looks(scores, split, options.data.fit):
        values["localisation"] = located
    if (tree := label_tree.of_options(options.data, split.class_names)) is not None:
        values["label_tree"] = {
            "rules": tree.named(),
            "labels": tree.violations(scores.labels),
            "scores": tree.disagreements(scores.logits),
        }
    label_graph = read_label_graph(eval_model, variables)
    if label_graph is not None:
        values["groups"] = [[split.class_names[c] for c in g] for g in label_graph.groups()]
    if is_first:
        log = (run_of(path) or workdir) / "metrics.jsonl"
        write_results(scores, values, split, options, metadata, workdir, log, label_graph)
    return values


def operating_point(
    metadata: Mapping[str, Any], config: ConfigDict, path: Path
) -> OperatingPoint | None:
    """A checkpoint's; None where it has none, or where prediction would look otherwise than here.

    Raises:
        Failure: it is damaged.
    """
    stored = metadata.get("operating_point")
    if not stored or as_predicted(metadata, config, path):
        return None
    return OperatingPoint.from_dict(stored)


def where_it_looks(scores: Scores, split: Split, fit: Fit) -> dict[str, Any] | None:
    """The regions of a split beside its true boxes; None where there are no regions or no boxes.

    See `localisation`.
    """
    if scores.boxes is None:
        return None
    objects = read_objects(split, scores.image_size, fit)
    if objects is None:
        return None
    looks = localise(
        scores.labels,
        objects,
        scores.image_size,
        scores.boxes,
        scores.box_classes,
        scores.class_maps,
    )
    return summarise_looks(looks, scores.class_names.tolist())


def frequent_classes(train: Split, test: Split, least: int) -> np.ndarray:
    """Bool `[C]`: which classes have so many positives in both splits."""
    positives = [np.sum(split.labels() > 0, axis=0) for split in (train, test)]
    return np.min(positives, axis=0) >= least


def read_label_graph(model: nn.Module, variables: Mapping[str, Any]) -> LabelGraph | None:
    """What MSRN knows of its labels, and the groups that it made of them; None of other models."""
    if "label_inputs" not in variables:
        return None

    run: Callable[..., Any] = model.apply

    def assign(weights: dict[str, Any]) -> jax.Array:
        image = jnp.zeros((1, 64, 64, 3))  # no part of the result: compiled away, backbone and all
        return run(weights, image)["group_assignment"]

    weights = {name: variables[name] for name in ("params", "batch_stats")}
    known = variables["label_inputs"]
    return LabelGraph(
        counts=np.asarray(known["counts"]),
        class_counts=np.asarray(known["class_counts"]),
        group_assignment=np.asarray(jax.jit(assign)(weights)),
    )


def write_results(
    scores: Scores,
    values: dict[str, Any],
    split: Split,
    options: ScoreOptions,
    metadata: dict[str, Any],
    workdir: Path,
    train_log: Path,
    label_graph: LabelGraph | None = None,
) -> None:
    """Writes score file, metrics and report of an evaluated split, and prints a summary."""
    scores.save(workdir / f"scores_{split.split}.npz")
    metrics_path = workdir / f"metrics_{split.split}.json"
    write_text(metrics_path, json.dumps(values, indent=1))

    fit = options.data.fit

    def image_at(i: int) -> np.ndarray:
        return fit.square(split.decode(split[i]), scores.image_size)

    def objects_at(i: int) -> tuple[np.ndarray, np.ndarray]:
        return objects_of_square(split[i], scores.image_size, fit)

    size = f"{scores.image_size} px{fit.described()}"
    about = {"backbone": options.model.backbone, "image size": size}
    if scores.boxes is not None:
        about |= {"pooling": options.model.pooling, "regions": scores.boxes.shape[1]}
    if scores.looked_at is not None:
        mean = scores.looked_at.sum(axis=1).mean()
        about["regions looked at"] = (
            f"{mean:.1f}, those of probability {options.eval.local_bound:g}"
        )
    about["checkpoint"] = values["checkpoint"]
    if options.eval.weights == "ema":
        about["checkpoint"] += ", the average of its weights"
    if "validation" in metadata:
        about["checkpoint"] += f", mAP {metadata['validation']['mAP']:.1f} in validation"
    if said := text.said_of_tree(values):
        about["label tree"] = said
    if values["overrides"]:
        others = values["overrides"].items()
        about["other than it says"] = ", ".join(f"{name} {value!r}" for name, value in others)
    page = evaluation_page.write_report(
        workdir,
        scores,
        values,
        image_at,
        title=f"{options.model.name} on {split.name} {split.split}",
        summary=about,
        train_log=train_log,
        objects_at=objects_at,
        label_graph=label_graph,
    )
    print(text.summary(values, f"{split.name} {split.split}"))
    print(f"scores, metrics and report: {workdir}/scores_{split.split}.npz, {metrics_path}, {page}")
