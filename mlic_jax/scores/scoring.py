"""A model's scores of a split: every image exactly once, whatever the batches and devices."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Shaped
from tqdm import tqdm

from mlic_jax.data import label_inputs, label_tree, pipeline
from mlic_jax.data.records import Split
from mlic_jax.errors import Failure, UsageError
from mlic_jax.features.regions import Regions, open_regions
from mlic_jax.features.store import Store
from mlic_jax.models import create_model
from mlic_jax.models.mcar import MCAR
from mlic_jax.models.precision import in_precision
from mlic_jax.runtime import compilation, devices, processes, profiling
from mlic_jax.runtime.checkpoint import load_weights
from mlic_jax.scores import global_pass, views
from mlic_jax.scores.files import GLOBAL_OUTPUTS, OUTPUTS, Scores
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.stored import make_stored_step, open_plain_store, uses_store
from mlic_jax.scores.views import with_class_maps

# Batches whose scores may still be on their way while the next ones are dispatched.
BATCHES_IN_FLIGHT = 2

# The options of `config.model` that decide its arrays (others may differ at evaluation), and what
# they are of a checkpoint that was written before there was such an option.
ARRAY_OPTIONS = {
    "name": "",
    "backbone": "",
    "width": 1.0,
    "pool_ratio": 0.05,
    "head": "dense",
    "head_width": 0,
    "csra_heads": 1,
}


def create_eval_model(
    options: ScoreOptions, num_classes: int, constants: Mapping[str, Any]
) -> nn.Module:
    """The configured model, looking at as many regions as evaluation is to, and as it is to.

    Args:
        constants: variables of which the collection `label_inputs` is used, if it is there.

    Raises:
        UsageError: an option is unknown, out of its range, or for a second look at a model that
            looks once.
    """
    look = options.eval
    as_seen = dataclasses.replace(
        options.model,
        top_n=look.top_n or options.model.top_n,
        local_size=look.local_size or options.model.local_size,
    )
    model = create_model(as_seen, num_classes, **label_inputs.arguments_of(constants))
    if not isinstance(model, MCAR):
        for option in ("local_size", "local_bound"):
            if getattr(look, option):
                raise UsageError(
                    f"eval.{option} is for the second look of mcar, and {options.model.name} looks "
                    "once: leave it 0"
                )
        return model
    if not 0 <= look.local_bound < 1:
        raise UsageError(
            f"eval.local_bound is {look.local_bound}; it must be at least 0 and below 1"
        )
    return model.clone(local_bound=look.local_bound)


def make_eval_step(
    model: nn.Module,
    options: ScoreOptions,
    mesh: jax.sharding.Mesh,
    specs: Any = devices.EVERYWHERE,
    class_maps: bool = False,
) -> jax.stages.Wrapped:
    """The jitted step: (variables, batch) -> what the model says of every row, labels and index.

    The outputs lie on every device of every process: each can read the scores of the whole batch.
    For the other arguments see `eval_step_of`.

    Args:
        specs: how the variables lie on the mesh.
    """
    step = on_own_rows(eval_step_of(model, options, class_maps), options, mesh, specs)
    return compilation.jit(step, out_shardings=devices.replicated(mesh))


def eval_step_of(model: nn.Module, options: ScoreOptions, class_maps: bool) -> Callable[..., Any]:
    """The step of `make_eval_step` as a pure function.

    Logits are averaged over the views of `config.eval`. Where the batch has the `GLOBAL_OUTPUTS`
    too, the global stream is not run.

    Args:
        class_maps: give the class activation maps `[B, T, h, w]` of the regions as well, where
            regions are found in the step.
    """

    def eval_step(variables: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        seen = {name: batch[name] for name in GLOBAL_OUTPUTS if name in batch}
        second_look = {"seen": seen, "method": "look_locally"} if seen else {}
        run: Callable[..., Any] = model.apply  # what it returns depends on `mutable`

        def apply(view: jax.Array) -> dict[str, jax.Array]:
            if seen or not class_maps:  # the maps are of the global stream
                return run(variables, view, **second_look)
            outputs, beside = run(variables, view, mutable=["intermediates"])
            return with_class_maps(outputs, beside)

        with in_precision(options.model.precision, training=False):
            outputs = views.score_views(apply, batch["image"], options)
        outputs = {name: outputs[name] for name in (*OUTPUTS, "class_maps") if name in outputs}
        return outputs | {name: batch[name] for name in ("labels", "index") if name in batch}

    return eval_step


def batch_rows(options: ScoreOptions, mesh: jax.sharding.Mesh) -> int:
    """The images of a batch of evaluation: `config.eval.batch_size` on every device."""
    return options.eval.batch_size * mesh.size


def on_own_rows(
    step: Callable[..., Any],
    options: ScoreOptions,
    mesh: jax.sharding.Mesh,
    specs: Any = devices.EVERYWHERE,
) -> Callable[..., Any]:
    """`step`, (variables, rows) -> rows, as every device is to run it.

    Where regions are skipped, on the rows that it has and without a word to the others: the loop
    over its regions is as long as they make it. And where `fc1` is divided, which says itself what
    is exchanged. Everything else XLA divides as well by itself.

    Args:
        specs: how the variables lie on the mesh.
    """
    if options.eval.local_bound <= 0 and not options.shard_fc1:
        return step
    rows = devices.BY_ROWS
    return devices.on_own_rows(step, mesh, in_specs=(specs, rows), out_specs=rows)


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores every image of a split exactly once, whatever the batches, devices and processes.

    Attributes:
        eval_step: of `make_eval_step`.
        split: of N images.
        options: of which `eval` and `data` are used.
        mesh: the devices.
        global_outputs: the `GLOBAL_OUTPUTS` of an earlier evaluation; their stream is not run
            again.
        reads_images: False where the step has the features of all photos, see `stored.py`.
    """

    eval_step: Callable[..., Any]
    split: Split
    options: ScoreOptions
    mesh: jax.sharding.Mesh
    global_outputs: Mapping[str, Shaped[np.ndarray, "N ..."]] = dataclasses.field(
        default_factory=dict
    )
    reads_images: bool = True

    def compiled(self, variables: dict[str, Any]) -> "Evaluator":
        """The same with its step compiled now, for variables as these are and lie."""
        classes, size = len(self.split.class_names), views.host_size(self.options)
        rows = batch_rows(self.options, self.mesh)
        batch = devices.abstract_batch(self.mesh, rows, size, classes)
        for name, values in self.global_outputs.items():
            batch[name] = jax.ShapeDtypeStruct(
                (rows, *values.shape[1:]), values.dtype, sharding=devices.split_by_rows(self.mesh)
            )
        what, step = "the evaluation step", self.eval_step
        assert isinstance(step, jax.stages.Wrapped), "it is compiled already"
        step = compilation.compile_ahead(what, step, variables, batch)
        return dataclasses.replace(self, eval_step=step)

    def __call__(self, variables: dict[str, Any], profile: Path | None = None) -> Scores:
        """The scores of the split.

        Args:
            variables: of the model, on the devices.
            profile: where to write a profile of a few batches, see `profiling.profiled`.

        Raises:
            Failure: an image cannot be read, or not every image got a score.
        """
        split, rows = self.split, dict[str, Any]()
        tree = None
        if self.options.eval.consistent:
            tree = label_tree.of_options(self.options.data, split.class_names)
        in_flight = collections.deque[dict[str, jax.Array]]()
        seen = np.zeros(len(split), np.int32)

        def collect() -> None:
            outputs = devices.to_host(in_flight.popleft())
            index = outputs.pop("index")
            if tree is not None:
                outputs["logits"] = tree.consistent(outputs["logits"])
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
            image_size=self.options.data.image_size,
        )

    def _batches(self, profile: Path | None) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of all batches, with a bar of how far it is."""
        rows = batch_rows(self.options, self.mesh)
        if self.reads_images:
            batches = pipeline.batches(
                self.split,
                batch_size=rows,
                image_size=views.host_size(self.options),
                fit=self.options.data.fit,
                shuffle=False,
                cache=self.options.data.cache,
                cache_gib=self.options.data.cache_gib,
                workers=self.options.data.workers,
                threads=self.options.data.threads,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
        else:
            batches = pipeline.order(self.split, batch_size=rows, shuffle=False, views=1)
        total = pipeline.steps_per_epoch(len(self.split), rows)
        bar = tqdm(
            profiling.profiled(batches, total, "evaluate", profile),
            f"score {self.split.split}",
            total,
            unit="batch",
            leave=False,
            disable=not processes.is_first(),
        )
        return iter(bar)


def make_evaluator(
    model: nn.Module,
    weights: dict[str, Any],
    split: Split,
    options: ScoreOptions,
    mesh: jax.sharding.Mesh,
    global_outputs: Mapping[str, Shaped[np.ndarray, "N ..."]] | None = None,
    class_maps: bool = False,
) -> Evaluator:
    """What scores a split, compiled; on features that are computed once where they are wanted.

    Args:
        model: of `create_eval_model`.
        weights: its variables, on the devices; where features are wanted, with the very backbone
            that others that are given later have.
        global_outputs: see `Evaluator`.
        class_maps: see `eval_step_of`.

    Raises:
        UsageError, Failure: see `Store`.
    """
    if uses_store(options):
        store = open_plain_store(model, weights, split, options, mesh)
        regions = open_regions(store, model)
        return stored_evaluator(model, weights, store, regions, options, class_maps)
    step = make_eval_step(model, options, mesh, devices.specs_of(weights), class_maps)
    return Evaluator(step, split, options, mesh, global_outputs or {}).compiled(weights)


def stored_evaluator(
    model: nn.Module,
    weights: dict[str, Any],
    store: Store,
    regions: Regions | None,
    options: ScoreOptions,
    class_maps: bool = False,
) -> Evaluator:
    """What scores the split of a store of `open_plain_store`; `regions` are of `open_regions`."""
    mesh = store.backbone.mesh
    rows = batch_rows(options, mesh)
    step = make_stored_step(model, store, regions, options, weights, rows, class_maps)
    return Evaluator(step, store.split, options, mesh, reads_images=False)


def load_model(
    options: ScoreOptions, path: Path, split: Split
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The configured model with what is in the checkpoint folder `path`: its variables, metadata.

    Raises:
        UsageError: it is of another model, or of other classes than the split's, or it has not the
            weights of `eval.weights`.
    """
    variables, metadata = load_weights(path, options.eval.weights)
    current = {
        "config": {"model": dataclasses.asdict(options.model)},
        "class_names": list(split.class_names),
    }
    check_same_model(metadata, current, path)
    return create_eval_model(options, len(split.class_names), variables), variables, metadata


def score_model(
    model: nn.Module,
    variables: Mapping[str, Any],
    split: Split,
    options: ScoreOptions,
    profile: Path | None = None,
) -> Scores:
    """The scores of a split by a model that `load_model` loaded, on all devices.

    With class maps where the split has boxes to hold them against, and regions are found.

    Args:
        profile: see `Evaluator`.
    """
    mesh = devices.create_mesh()
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    weights = devices.lay_out(weights, devices.replicated(mesh))
    origin = global_pass.origin_of(variables, options) if options.model.name == "mcar" else None
    earlier = {}
    if options.eval.global_scores:
        earlier = global_pass.read(options, split, origin or {}, getattr(model, "top_n", 0))
    has_boxes = split.has_boxes()
    evaluator = make_evaluator(model, weights, split, options, mesh, earlier, has_boxes)
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
