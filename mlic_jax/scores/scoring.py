"""A model's scores of a split: every image exactly once, whatever the batches and devices."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mlic_jax.data import label_inputs, pipeline
from mlic_jax.data.records import Split
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_model
from mlic_jax.models.precision import in_precision
from mlic_jax.runtime import compilation, devices, processes, profiling
from mlic_jax.runtime.checkpoint import load_weights
from mlic_jax.scores import global_pass, views
from mlic_jax.scores.files import GLOBAL_OUTPUTS, OUTPUTS, Scores

# Batches whose scores may still be on their way while the next ones are dispatched.
BATCHES_IN_FLIGHT = 2

# The options of `config.model` that decide its arrays (others may differ at evaluation), and what
# they are of a checkpoint that was written before there was such an option.
ARRAY_OPTIONS = {"name": "", "backbone": "", "width": 1.0, "pool_ratio": 0.05, "head": "dense"}


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
    class_maps: bool = False,
) -> Callable:
    """The jitted step: (variables, batch) -> what the model says of every row, labels and index.

    Logits are averaged over the views of `config.eval`. Where the batch has the `GLOBAL_OUTPUTS`
    too, the global stream is not run. The outputs lie on every device of every process: each can
    read the scores of the whole batch.

    Args:
        specs: how the variables lie on the mesh.
        class_maps: give the class activation maps `[B, T, h, w]` of MCAR's regions as well.
    """

    def eval_step(variables: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        seen = {name: batch[name] for name in GLOBAL_OUTPUTS if name in batch}
        second_look = {"seen": seen, "method": "look_locally"} if seen else {}

        def apply(view: jax.Array) -> dict[str, jax.Array]:
            if not class_maps:
                return model.apply(variables, view, **second_look)
            outputs, beside = model.apply(variables, view, mutable=["intermediates"])
            maps = beside.get("intermediates", {}).get("class_maps", ())
            return outputs | dict(zip(("class_maps",), maps, strict=False))

        with in_precision(config.model, training=False):
            outputs = views.score_views(apply, batch["image"], config)
        outputs = {name: outputs[name] for name in (*OUTPUTS, "class_maps") if name in outputs}
        return outputs | {name: batch[name] for name in ("labels", "index") if name in batch}

    step = on_own_rows(eval_step, config, mesh, specs)
    return jax.jit(step, out_shardings=devices.replicated(mesh))


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


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores every image of a split exactly once, whatever the batches, devices and processes.

    Attributes:
        eval_step: of `make_eval_step`.
        split: of N images.
        config: of which `eval` and `data` are used.
        mesh: the devices.
        global_outputs: the `GLOBAL_OUTPUTS` `[N, ...]` of an earlier evaluation; their stream is
            not run again.
    """

    eval_step: Callable
    split: Split
    config: ConfigDict
    mesh: jax.sharding.Mesh
    global_outputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def compiled(self, variables: dict) -> "Evaluator":
        """The same with its step compiled now, for variables as these are and lie."""
        classes, size = len(self.split.class_names), views.host_size(self.config)
        rows = batch_rows(self.config, self.mesh)
        batch = devices.abstract_batch(self.mesh, rows, size, classes)
        for name, values in self.global_outputs.items():
            batch[name] = jax.ShapeDtypeStruct(
                (rows, *values.shape[1:]), values.dtype, sharding=devices.split_by_rows(self.mesh)
            )
        what = "the evaluation step"
        step = compilation.compile_ahead(what, self.eval_step, variables, batch)
        return dataclasses.replace(self, eval_step=step)

    def __call__(self, variables: dict, profile: Path | None = None) -> Scores:
        """The scores of the split.

        Args:
            variables: of the model, on the devices.
            profile: where to write a profile of a few batches, see `profiling.profiled`.

        Raises:
            Failure: an image cannot be read, or not every image got a score.
        """
        split, in_flight = self.split, collections.deque()
        rows: dict[str, np.ndarray] = {}
        seen = np.zeros(len(split), np.int32)

        def collect() -> None:
            outputs = devices.to_host(in_flight.popleft())
            index = outputs.pop("index")
            real = index >= 0
            for name, values in outputs.items():
                if name not in rows:
                    rows[name] = np.zeros((len(split), *values.shape[1:]), values.dtype)
                rows[name][index[real]] = values[real]
            seen[index[real]] += 1

        for batch in self._batches(profile):
            # Of padding, whose index is -1, those of the last image.
            batch |= {name: of[batch["index"]] for name, of in self.global_outputs.items()}
            in_flight.append(self.eval_step(variables, devices.to_devices(batch, self.mesh)))
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
            image_size=self.config.data.image_size,
        )

    def _batches(self, profile: Path | None) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of all batches, with a bar of how far it is."""
        rows = batch_rows(self.config, self.mesh)
        batches = pipeline.batches(
            self.split,
            batch_size=rows,
            image_size=views.host_size(self.config),
            shuffle=False,
            cache=self.config.data.cache,
            cache_gib=self.config.data.cache_gib,
            workers=self.config.data.workers,
            threads=self.config.data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        total = pipeline.steps_per_epoch(len(self.split), rows)
        return tqdm(
            profiling.profiled(batches, total, "evaluate", profile),
            f"score {self.split.split}",
            total,
            unit="batch",
            leave=False,
            disable=not processes.is_first(),
        )


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
        profile: see `Evaluator`.
    """
    mesh = devices.create_mesh()
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    weights = devices.lay_out(weights, devices.replicated(mesh))
    origin = global_pass.origin_of(variables, config) if config.model.name == "mcar" else None
    earlier = {}
    if config.eval.global_scores:
        earlier = global_pass.read(config, split, origin or {}, getattr(model, "top_n", 0))
    eval_step = make_eval_step(model, config, mesh, devices.specs_of(weights))
    evaluator = Evaluator(eval_step, split, config, mesh, earlier).compiled(weights)
    processes.wait_for_all("compiled")
    return dataclasses.replace(evaluator(weights, profile), origin=origin)


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
    for option, before in ARRAY_OPTIONS.items():
        old, new = (one["config"]["model"].get(option, before) for one in (saved, current))
        if old != new:
            raise UsageError(
                f"the checkpoint {path} has model.{option} {old!r}, the configuration {new!r}: use "
                "the same or another --workdir"
            )
    if saved["class_names"] != current["class_names"]:
        differing = sorted(set(saved["class_names"]) ^ set(current["class_names"]))
        what = f"differing in {', '.join(differing[:5])}" if differing else "in another order"
        raise UsageError(
            f"the checkpoint {path} has {len(saved['class_names'])} classes, the data "
            f"{len(current['class_names'])}, {what}: use the same data or another --workdir"
        )
