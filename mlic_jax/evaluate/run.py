"""The only evaluation code: a model's scores of a split, and what they are worth.

`python -m mlic_jax.evaluate scores_test.npz` evaluates a score file again, without the model.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.config import default_config
from mlic_jax.data import label_inputs, pipeline, sources, transforms
from mlic_jax.data.label_policy import POLICIES, resolve_unknown
from mlic_jax.data.records import Record, Split
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics import classification, significance
from mlic_jax.metrics.ties import TIES, said_of_ties
from mlic_jax.models import create_model
from mlic_jax.models.precision import in_precision
from mlic_jax.reports import evaluation_page
from mlic_jax.reports.label_graph import LabelGraph
from mlic_jax.runtime import compilation, devices, processes, profiling
from mlic_jax.runtime.checkpoint import find_checkpoint, load_weights, run_of
from mlic_jax.scores import global_pass, views
from mlic_jax.scores.files import GLOBAL_OUTPUTS, OUTPUTS, Scores

# Batches whose scores may still be on their way while the next ones are dispatched.
BATCHES_IN_FLIGHT = 2

# The options of `config.model` that decide its arrays; the others may differ at evaluation.
ARRAY_OPTIONS = ("name", "backbone", "width", "pool_ratio", "head")


def create_eval_model(
    config: ConfigDict, num_classes: int, constants: Mapping[str, Any]
) -> nn.Module:
    """The configured model, looking at as many regions as evaluation is to, and as it is to.

    Args:
        constants: variables of which the collection `label_inputs` is used, if it is there.
    """
    options = config.model.copy_and_resolve_references()
    options.top_n = config.eval.top_n or options.top_n
    options.local_size = config.eval.local_size or options.local_size
    with options.unlocked():
        options.local_bound = config.eval.local_bound  # no option of training
    return create_model(options, num_classes, **label_inputs.arguments_of(constants))


def make_eval_step(
    model: nn.Module,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    specs: Any = devices.EVERYWHERE,
) -> Callable:
    """The jitted step: (variables, batch) -> what the model says of every row, labels and index.

    Logits are averaged over the views of `config.eval`. Where the batch has the `GLOBAL_OUTPUTS`
    too, the global stream is not run. The outputs lie on every device of every process: each can
    read the scores of the whole batch.

    Args:
        specs: how the variables lie on the mesh.
    """

    def eval_step(variables: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        seen = {name: batch[name] for name in GLOBAL_OUTPUTS if name in batch}
        second_look = {"seen": seen, "method": "look_locally"} if seen else {}
        apply = partial(model.apply, variables, **second_look)
        with in_precision(config.model, training=False):
            outputs = views.score_views(apply, batch["image"], config)
        outputs = {name: outputs[name] for name in OUTPUTS if name in outputs}
        return outputs | {"labels": batch["labels"], "index": batch["index"]}

    step = on_own_rows(eval_step, config, mesh, specs)
    return jax.jit(step, out_shardings=devices.replicated(mesh))


def compile_eval_step(
    model: nn.Module,
    variables: dict,
    config: ConfigDict,
    num_classes: int,
    mesh: jax.sharding.Mesh,
    global_outputs: Mapping[str, np.ndarray] | None = None,
) -> Callable:
    """`make_eval_step` for every batch of `score_split`, compiled now; the arguments are theirs."""
    rows = batch_rows(config, mesh)
    batch = devices.abstract_batch(mesh, rows, views.host_size(config), num_classes)
    for name, values in (global_outputs or {}).items():
        batch[name] = jax.ShapeDtypeStruct(
            (rows, *values.shape[1:]), values.dtype, sharding=devices.split_by_rows(mesh)
        )
    step = make_eval_step(model, config, mesh, devices.specs_of(variables))
    return compilation.compile_ahead("the evaluation step", step, variables, batch)


def batch_rows(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """The images of a batch of evaluation: `config.eval.batch_size` on every device."""
    return config.eval.batch_size * mesh.size


def on_own_rows(
    step: Callable,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    specs: Any = devices.EVERYWHERE,
) -> Callable:
    """`step`, (variables, rows) -> rows, as every device is to run it.

    Where regions are skipped, on the rows that it has and without a word to the others: the loop
    over its regions is as long as they make it. And where `fc1` is divided, which says itself what
    is exchanged. Everything else XLA divides as well by itself.

    Args:
        specs: how the variables lie on the mesh.
    """
    if config.eval.local_bound <= 0 and not config.shard_fc1:
        return step
    rows = devices.BY_ROWS
    return devices.on_own_rows(step, mesh, in_specs=(specs, rows), out_specs=rows)


def score_split(
    eval_step: Callable,
    variables: dict,
    split: Split,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    global_outputs: Mapping[str, np.ndarray] | None = None,
    profile: Path | None = None,
) -> Scores:
    """Scores every image of a split exactly once, whatever the batches, devices and processes.

    Args:
        eval_step: of `make_eval_step`.
        variables: of the model, on the devices.
        split: of N images.
        config: of which `eval` and `data` are used.
        mesh: the devices.
        global_outputs: the `GLOBAL_OUTPUTS` `[N, ...]` of an earlier evaluation; their stream is
            not run again.
        profile: where to write a profile of a few batches, see `profiling.profiled`.

    Raises:
        Failure: an image cannot be read, or not every image got a score.
    """
    rows_of_batch = batch_rows(config, mesh)
    batches = pipeline.batches(
        split,
        batch_size=rows_of_batch,
        image_size=views.host_size(config),
        shuffle=False,
        workers=config.data.workers,
        threads=config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    total = pipeline.steps_per_epoch(len(split), rows_of_batch)
    batches = profiling.profiled(batches, total, "evaluate", profile)
    in_flight: collections.deque = collections.deque()
    rows: dict[str, np.ndarray] = {}

    def collect() -> None:
        outputs = devices.to_host(in_flight.popleft())
        index = outputs.pop("index")
        real = index >= 0
        for name, values in outputs.items():
            if name not in rows:
                rows[name] = np.zeros((len(split), *values.shape[1:]), values.dtype)
            rows[name][index[real]] = values[real]
        seen[index[real]] += 1

    seen = np.zeros(len(split), np.int32)
    for batch in tqdm(
        batches,
        f"score {split.split}",
        total,
        unit="batch",
        leave=False,
        disable=not processes.is_first(),
    ):
        if global_outputs:  # of padding, whose index is -1, those of the last image
            batch |= {name: rows_of[batch["index"]] for name, rows_of in global_outputs.items()}
        in_flight.append(eval_step(variables, devices.to_devices(batch, mesh)))
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
    values = classification.evaluate_scores(
        scores.logits,
        scores.labels,
        config.eval.protocol,
        class_names=list(scores.class_names),
        label_policy=config.eval.label_policy or None,
        ties=config.eval.ties or None,
        frequent=frequent,
    )
    if scores.global_logits is not None:
        labels = resolve_unknown(scores.labels, values["unknown_in_ap"])
        global_ap = classification.average_precision(
            scores.global_logits, labels, values["ap_kind"], values["ties"]
        )
        values["global_mAP"] = classification.mean_average_precision(global_ap)
    return values


def evaluate_run(
    config: ConfigDict,
    workdir: Path,
    checkpoint: Path | None = None,
    profile: bool = False,
    overrides: Mapping[str, tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the test split; by default it is the best of the run in `workdir`.

    Writes `scores_<split>.npz`, `metrics_<split>.json` and the report into `workdir`, and prints a
    summary. The metrics say too of which checkpoint they are and with which `overrides`, and of
    MSRN the `groups`, of each group of labels their names. Of a split without any known label (VOC
    2012 test) only the scores are written, and nothing is returned.

    Args:
        profile: trace a few batches into `<workdir>/profile`, see `profiling.profiled`.
        overrides: the options of `config` that are not the checkpoint's: {name: (old, new)}.

    Raises:
        UsageError: there is no checkpoint, or it is of another model or other classes.
    """
    path, workdir = find_checkpoint(checkpoint or workdir), Path(workdir)
    splits = processes.first_alone(lambda: sources.open_splits(config.data))
    split = splits["test"]
    eval_model, variables, metadata = load_model(config, path, split)
    folder = workdir / "profile" if profile else None
    scores = score_model(eval_model, variables, split, config, folder)
    is_first = processes.is_first()
    if not scores.labels.any():
        if is_first:
            written = workdir / f"scores_{split.split}.npz"
            scores.save(written)
            print(f"no label of {split.name} {split.split} is known: wrote {written} alone")
        return {}

    least = config.eval.min_positives
    frequent = frequent_classes(splits["train"], split, least) if least else None
    values = compute_metrics(scores, config, frequent)
    step = metadata.get("step", "unknown")  # to earlier versions
    values["checkpoint"] = metadata.get("source") or f"step {step}"
    values["overrides"] = {name: new for name, (_, new) in (overrides or {}).items()}
    label_graph = read_label_graph(eval_model, variables)
    if label_graph is not None:
        values["groups"] = [[split.class_names[c] for c in g] for g in label_graph.groups()]
    if is_first:
        log = (run_of(path) or workdir) / "metrics.jsonl"
        write_results(scores, values, split, config, metadata, workdir, log, label_graph)
    return values


def frequent_classes(train: Split, test: Split, least: int) -> np.ndarray:
    """Bool `[C]`: which classes have so many positives in both splits."""
    positives = [np.sum(split.labels() > 0, axis=0) for split in (train, test)]
    return np.min(positives, axis=0) >= least


def load_model(
    config: ConfigDict, path: Path, split: Split
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The configured model with what is in the checkpoint folder `path`: its variables, metadata.

    Raises:
        UsageError: it is of another model, or of other classes than the split's.
    """
    variables, metadata = load_weights(path)
    current = {"config": json.loads(config.to_json()), "class_names": list(split.class_names)}
    check_same_model(metadata, current, path)
    return create_eval_model(config, len(split.class_names), variables), variables, metadata


def score_model(
    model: nn.Module,
    variables: Mapping[str, Any],
    split: Split,
    config: ConfigDict,
    profile: Path | None = None,
) -> Scores:
    """The scores of a split by a model that `load_model` loaded, on all devices.

    Args:
        profile: see `score_split`.
    """
    mesh = devices.create_mesh()
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    weights = devices.lay_out(weights, devices.replicated(mesh))
    origin = global_pass.origin_of(variables, config) if config.model.name == "mcar" else None
    earlier = None
    if config.eval.global_scores:
        earlier = global_pass.read(config, split, origin or {}, getattr(model, "top_n", 0))
    classes = len(split.class_names)
    eval_step = compile_eval_step(model, weights, config, classes, mesh, earlier)
    processes.wait_for_all("compiled")
    scores = score_split(eval_step, weights, split, config, mesh, earlier, profile)
    return dataclasses.replace(scores, origin=origin)


def read_label_graph(model: nn.Module, variables: Mapping[str, Any]) -> LabelGraph | None:
    """What MSRN knows of its labels, and the groups that it made of them; None of other models."""
    if "label_inputs" not in variables:
        return None

    def assign(weights: dict) -> jax.Array:
        image = jnp.zeros((1, 64, 64, 3))  # no part of the result: compiled away, backbone and all
        return model.apply(weights, image)["group_assignment"]

    weights = {name: variables[name] for name in ("params", "batch_stats")}
    known = variables["label_inputs"]
    return LabelGraph(
        counts=np.asarray(known["counts"]),
        class_counts=np.asarray(known["class_counts"]),
        group_assignment=np.asarray(jax.jit(assign)(weights)),
    )


def check_same_model(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Compares the metadata of a checkpoint with those of what is to use its arrays.

    Args:
        saved: of the checkpoint in `path`.
        current: `config` and `class_names` of what is wanted now.

    Raises:
        UsageError: the model or the class names differ.
    """
    if "config" not in saved:
        raise UsageError(
            f"{path} holds a backbone alone: train from it with --config.init_from={path}"
        )
    # An older checkpoint does not say what was no option in its days.
    old, new = (
        default_config().model.to_dict() | one["config"]["model"] for one in (saved, current)
    )
    for option in ARRAY_OPTIONS:
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
    train_log: Path,
    label_graph: LabelGraph | None = None,
) -> None:
    """Writes score file, metrics and report of an evaluated split, and prints a summary."""
    scores.save(workdir / f"scores_{split.split}.npz")
    metrics_path = workdir / f"metrics_{split.split}.json"
    write_text(metrics_path, json.dumps(values, indent=1))

    def image_at(i: int) -> np.ndarray:
        return transforms.resize(split.decode(split[i]), scores.image_size)

    def objects_at(i: int) -> tuple[np.ndarray, np.ndarray]:
        return objects_of_square(split[i], scores.image_size)

    about = {"backbone": config.model.backbone, "image size": f"{scores.image_size} px"}
    if scores.boxes is not None:
        about |= {"pooling": config.model.pooling, "regions": scores.boxes.shape[1]}
    if scores.looked_at is not None:
        mean = scores.looked_at.sum(axis=1).mean()
        about["regions looked at"] = f"{mean:.1f}, those of probability {config.eval.local_bound:g}"
    about["checkpoint"] = values["checkpoint"]
    if "validation" in metadata:
        about["checkpoint"] += f", mAP {metadata['validation']['mAP']:.1f} in validation"
    if values["overrides"]:
        options = values["overrides"].items()
        about["other than it says"] = ", ".join(f"{name} {value!r}" for name, value in options)
    page = evaluation_page.write_report(
        workdir,
        scores,
        values,
        image_at,
        title=f"{config.model.name} on {split.name} {split.split}",
        summary=about,
        train_log=train_log,
        objects_at=objects_at,
        label_graph=label_graph,
    )
    print(summary(values, f"{split.name} {split.split}"))
    print(f"scores, metrics and report: {workdir}/scores_{split.split}.npz, {metrics_path}, {page}")


def objects_of_square(record: Record, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes int32 `[K, 4]` and classes `[K]` of an image that was squashed to `size` pixels."""
    scale = size / np.array([record.height, record.width] * 2)
    return np.round(record.boxes * scale).astype(np.int32), record.box_classes


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
    if said := said_of_ties(values):
        lines.append(f"  {said}")
    names = ("OP", "OR", "OF1", "CP", "CR", values["class_f1"])

    def figures_of(what: str, found: Mapping[str, Any], suffix: str = "") -> str:
        return f"  {what}:  " + "  ".join(f"{name} {found[name + suffix]:.1f}" for name in names)

    at = f"at probability >= {values['threshold']:g}"
    lines.append(figures_of(f"all labels {at}", values))
    lines.append(figures_of(f"top-{values['top_k']} labels {at}", values, f"_{values['top_k']}"))
    if swept := values.get("swept"):
        at = f"at logit >= {swept['threshold']:g}, swept on these scores"
        lines.append(figures_of(f"all labels {at}", swept))
    if "ranking_loss" in values:
        lines.append(
            f"  ranking:  coverage error {values['coverage_error']:.2f} labels  label ranking AP "
            f"{values['label_ranking_average_precision']:.1f}  ranking loss "
            f"{values['ranking_loss']:.2f}"
        )
    return "\n".join(lines)


def class_table(values: dict[str, Any]) -> str:
    """A line for every class; with the interval of its AP where `values` has `bootstrap`."""
    intervals = values.get("bootstrap", {}).get("AP")
    width = max(5, *map(len, values["class_names"]))
    heading = f"  {'class':{width}} {'positives':>9} {'AP':>6}"
    if intervals:
        heading += f" {values['bootstrap']['level']:>5}% interval"
    lines = [heading + "".join(f" {name:>6}" for name in ("P", "R", "F1"))]

    def percent(value: float | None) -> str:
        return f" {'-' if value is None else format(value, '.1f'):>6}"

    for c, name in enumerate(values["class_names"]):
        line = f"  {name:{width}} {values['positives'][c]:9,}{percent(values['AP'][c])}"
        if intervals:
            low, high = intervals[c] or (None, None)
            line += f" {percent(low)} {percent(high)}"
        lines.append(line + "".join(percent(values[name][c]) for name in ("P", "R", "F1")))
    return "\n".join(lines)


def check_same_images(scores: Scores, other: Scores) -> None:
    """Raises UsageError unless two score files are of the same images, labels and classes."""
    for name in ("class_names", "image_ids", "labels"):
        if not np.array_equal(getattr(scores, name), getattr(other, name)):
            raise UsageError(
                f"the two score files differ in their {name.replace('_', ' ')} "
                f"({scores.set_name} {scores.split}: {len(scores.logits)} images, "
                f"{other.set_name} {other.split}: {len(other.logits)}): "
                "a paired test needs the same split, evaluated with the same classes"
            )


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = Parser(prog="python -m mlic_jax.evaluate", description=__doc__)
    parser.add_argument("scores", type=Path, help="a score file, scores_<split>.npz")
    parser.add_argument("--protocol", default="mcar", choices=sorted(classification.PROTOCOLS))
    parser.add_argument(
        "--label-policy", choices=POLICIES, help="of unknown labels; default: the protocol's"
    )
    parser.add_argument(
        "--ties", choices=TIES, help="how equal scores rank; default: the protocol's"
    )
    parser.add_argument("--per-class", action="store_true", help="also print a line for each class")
    parser.add_argument(
        "--bootstrap", type=int, metavar="N", help="intervals from N resamples, such as 1000"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the score file of another model on the same images: test the difference in mAP",
    )
    parser.add_argument("--json", type=Path, help="also write every metric to this file")

    def run() -> None:
        options = parser.parse_args(arguments)
        scores = Scores.load(options.scores)
        other = Scores.load(options.against) if options.against else None
        if other is not None:
            check_same_images(scores, other)
        values = classification.evaluate_scores(
            scores.logits,
            scores.labels,
            options.protocol,
            class_names=list(scores.class_names),
            label_policy=options.label_policy,
            ties=options.ties,
        )
        labels = resolve_unknown(scores.labels, values["unknown_in_ap"])
        print(summary(values, f"{scores.set_name} {scores.split}"))
        if options.bootstrap is not None:
            values["bootstrap"] = intervals = significance.bootstrap_intervals(
                scores.logits, labels, values["ap_kind"], resamples=options.bootstrap
            )
            low, high = intervals["mAP"]
            print(
                f"  mAP {values['mAP']:.1f}, {intervals['level']}% interval {low:.1f} to {high:.1f}"
                f" (bootstrap of the images, {intervals['resamples']:,} resamples)"
            )
        if other is not None:
            values["against"] = test = significance.compare(
                scores.logits,
                other.logits,
                labels,
                values["ap_kind"],
                resamples=options.bootstrap or significance.RESAMPLES,
            )
            low, high = test["interval"]
            print(
                f"  against {options.against}: mAP {test['mAP']:.1f} - {test['mAP_of_other']:.1f} ="
                f" {test['difference']:+.2f}, {test['level']}% interval {low:+.2f} to {high:+.2f}, "
                f"p = {test['p_value']:.2g} ({test['test']}, {test['resamples']:,} resamples)"
            )
        if options.per_class:
            print(class_table(values))
        if options.json:
            write_text(options.json, json.dumps(values, indent=1))

    return exit_code(run)
