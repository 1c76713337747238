"""The only evaluation code: a model's scores of a split, and what they are worth.

`python -m mlic_jax.evaluate scores_test.npz` evaluates a score file again, without the model.
"""

import collections
import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mlic_jax import distributed, metrics, report
from mlic_jax.atomic import write_text
from mlic_jax.augment import normalise
from mlic_jax.checkpoint import find_checkpoint, load_weights
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import label_inputs, pipeline, sources, transforms
from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.data.records import Split
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_model
from mlic_jax.scores import OUTPUTS, Scores

# Batches whose scores may still be on their way while the next ones are dispatched.
BATCHES_IN_FLIGHT = 2

# The options of `config.model` that decide its arrays; the others may differ at evaluation.
ARRAY_OPTIONS = ("name", "backbone", "width", "pool_ratio", "head")


def create_eval_model(
    config: ConfigDict, num_classes: int, constants: Mapping[str, Any]
) -> nn.Module:
    """The configured model, with as many regions as evaluation is to look at.

    Args:
        constants: variables of which the collection `label_inputs` is used, if it is there.
    """
    options = config.model.copy_and_resolve_references()
    options.top_n = config.eval.top_n or options.top_n
    return create_model(options, num_classes, **label_inputs.arguments_of(constants))


def make_eval_step(model: nn.Module, augment: ConfigDict, mesh: jax.sharding.Mesh) -> Callable:
    """The jitted step: (variables, batch) -> what the model says of every row, labels and index.

    The outputs lie on every device of every process: each can read the scores of the whole batch.
    """

    def eval_step(variables: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        outputs = model.apply(variables, normalise(batch["image"], augment))
        outputs = {name: outputs[name] for name in OUTPUTS if name in outputs}
        return outputs | {"labels": batch["labels"], "index": batch["index"]}

    return jax.jit(eval_step, out_shardings=distributed.replicated(mesh))


def score_split(
    eval_step: Callable, variables: dict, split: Split, config: ConfigDict, mesh: jax.sharding.Mesh
) -> Scores:
    """Scores every image of a split exactly once, whatever the batches, devices and processes.

    Raises:
        Failure: an image cannot be read, or not every image got a score.
    """
    batches = pipeline.batches(
        split,
        batch_size=config.eval.batch_size,
        image_size=config.data.image_size,
        shuffle=False,
        workers=config.data.workers,
        threads=config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    total = pipeline.steps_per_epoch(len(split), config.eval.batch_size)
    in_flight: collections.deque = collections.deque()
    rows: dict[str, np.ndarray] = {}

    def collect() -> None:
        outputs = jax.device_get(in_flight.popleft())
        index = outputs.pop("index")
        real = index >= 0
        for name, values in outputs.items():
            if name not in rows:
                rows[name] = np.zeros((len(split), *values.shape[1:]), values.dtype)
            rows[name][index[real]] = values[real]
        seen[index[real]] += 1

    seen = np.zeros(len(split), np.int32)
    for batch in tqdm(batches, f"score {split.split}", total, unit="batch", leave=False):
        in_flight.append(eval_step(variables, distributed.to_devices(batch, mesh)))
        if len(in_flight) > BATCHES_IN_FLIGHT:
            collect()
    while in_flight:
        collect()
    if not np.all(seen == 1):
        raise Failure(
            f"{np.sum(seen != 1)} images of {split.name} {split.split} were not scored once"
        )
    return Scores(
        **rows,
        image_ids=np.array([split.image_id(i) for i in range(len(split))]),
        class_names=np.array(split.class_names),
        set_name=split.name,
        split=split.split,
        image_size=config.data.image_size,
    )


def compute_metrics(
    scores: Scores, config: ConfigDict, frequent: np.ndarray | None = None
) -> dict[str, Any]:
    """The metrics of the configured protocol, and the mAP of the global stream if there is one."""
    values = metrics.evaluate_scores(
        scores.logits,
        scores.labels,
        config.eval.protocol,
        class_names=list(scores.class_names),
        label_policy=config.eval.label_policy or None,
        frequent=frequent,
    )
    if scores.global_logits is not None:
        labels = resolve_unknown(scores.labels, values["unknown_in_ap"])
        global_ap = metrics.average_precision(scores.global_logits, labels)
        values["global_mAP"] = metrics.mean_average_precision(global_ap)
    return values


def evaluate_run(
    config: ConfigDict, workdir: Path, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Evaluates a checkpoint on the test split; by default it is the best of the run in `workdir`.

    Writes `scores_<split>.npz`, `metrics_<split>.json` and the report into `workdir`, and prints a
    summary.

    Raises:
        UsageError: there is no checkpoint, or it is of another model or other classes.
    """
    path = find_checkpoint(checkpoint or workdir)
    variables, metadata = load_weights(path)
    mesh = distributed.create_mesh()
    distributed.check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    splits = sources.open_splits(config.data)
    split = splits["test"]
    current = {"config": json.loads(config.to_json()), "class_names": list(split.class_names)}
    check_same_model(metadata, current, path, ARRAY_OPTIONS)
    eval_model = create_eval_model(config, len(split.class_names), variables)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    variables = jax.device_put(variables, distributed.replicated(mesh))
    eval_step = make_eval_step(eval_model, config.augment, mesh)
    scores = score_split(eval_step, variables, split, config, mesh)

    frequent = None
    if config.eval.min_positives:
        positives = [np.sum(splits[role].labels() > 0, axis=0) for role in ("train", "test")]
        frequent = np.min(positives, axis=0) >= config.eval.min_positives
    values = compute_metrics(scores, config, frequent)
    if jax.process_index() == 0:
        write_results(scores, values, split, config, metadata, Path(workdir))
    return values


def check_same_model(
    saved: dict[str, Any], current: dict[str, Any], path: Path, options: Collection[str] = ()
) -> None:
    """Compares the metadata of a checkpoint with those of what is to use it.

    Args:
        saved: of the checkpoint in `path`.
        current: `config` and `class_names` of what is wanted now.
        options: those of `config.model` that must agree; by default all.

    Raises:
        UsageError: the model or the class names differ.
    """
    if "config" not in saved:
        raise UsageError(
            f"{path} holds a backbone alone: train from it with --config.init_from={path}"
        )
    old, new = saved["config"]["model"], current["config"]["model"]
    for option in sorted(options or old.keys() | new.keys()):
        if old.get(option) != new.get(option):
            raise UsageError(
                f"the checkpoint {path} has model.{option} {old.get(option)!r}, the configuration "
                f"{new.get(option)!r}: use the same or another --workdir"
            )
    if saved["class_names"] != current["class_names"]:
        differing = sorted(set(saved["class_names"]) ^ set(current["class_names"]))
        what = f"differing in {', '.join(differing[:5])}" if differing else "in another order"
        raise UsageError(
            f"the checkpoint {path} has {len(saved['class_names'])} classes, the data "
            f"{len(current['class_names'])}, {what}: use the same data or another --workdir"
        )


def write_results(
    scores: Scores,
    values: dict[str, Any],
    split: Split,
    config: ConfigDict,
    metadata: dict[str, Any],
    workdir: Path,
) -> None:
    """Writes score file, metrics and report of an evaluated split, and prints a summary."""
    scores.save(workdir / f"scores_{split.split}.npz")
    metrics_path = workdir / f"metrics_{split.split}.json"
    write_text(metrics_path, json.dumps(values, indent=1))

    def image_at(i: int) -> np.ndarray:
        return transforms.resize(transforms.decode(split[i].image), scores.image_size)

    def objects_at(i: int) -> tuple[np.ndarray, np.ndarray]:
        record = split[i]
        scale = scores.image_size / np.array([record.height, record.width] * 2)
        return np.round(record.boxes * scale).astype(np.int32), record.box_classes

    about = {"backbone": config.model.backbone, "image size": f"{scores.image_size} px"}
    if scores.boxes is not None:
        about |= {"pooling": config.model.pooling, "regions": scores.boxes.shape[1]}
    best = metadata.get("best")
    about["checkpoint"] = (
        f"step {best['step']}, the best in validation" if best else metadata["source"]
    )
    page = report.write_report(
        workdir,
        scores,
        values,
        image_at,
        title=f"{config.model.name} on {split.name} {split.split}",
        summary=about,
        train_log=workdir / "metrics.jsonl",
        objects_at=objects_at,
    )
    print(summary(values, f"{split.name} {split.split}"))
    print(f"scores, metrics and report: {workdir}/scores_{split.split}.npz, {metrics_path}, {page}")


def summary(values: dict[str, Any], name: str) -> str:
    """A few lines for the person who waits."""
    figures = [f"chance {values['chance']:.1f}"]
    if "global_mAP" in values:
        figures.append(f"global stream alone {values['global_mAP']:.1f}")
    figures.append(f"final mAP {values['mAP']:.1f}")
    lines = [
        f"{name}: {values['num_images']} images, {values['num_classes']} classes",
        f"  {', '.join(figures)}",
    ]
    if "mAP_frequent" in values:
        lines.append(
            f"  mAP {values['mAP_frequent']:.1f} over the {values['num_frequent']} classes with "
            "enough positives in both splits"
        )
    for suffix, what in (("", "all labels"), ("_3", "top-3 labels")):
        figures = "  ".join(
            f"{key} {values[key + suffix]:.1f}" for key in ("OP", "OR", "OF1", "CP", "CR", "CF1")
        )
        lines.append(f"  {what} at probability >= {values['threshold']}:  {figures}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = Parser(prog="python -m mlic_jax.evaluate", description=__doc__)
    parser.add_argument("scores", type=Path, help="a score file, scores_<split>.npz")
    parser.add_argument("--protocol", default="mcar", choices=sorted(metrics.PROTOCOLS))
    parser.add_argument("--json", type=Path, help="also write every metric to this file")

    def run() -> None:
        options = parser.parse_args(arguments)
        scores = Scores.load(options.scores)
        values = metrics.evaluate_scores(
            scores.logits, scores.labels, options.protocol, class_names=list(scores.class_names)
        )
        print(summary(values, f"{scores.set_name} {scores.split}"))
        if options.json:
            write_text(options.json, json.dumps(values, indent=1))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
