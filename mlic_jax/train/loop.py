"""Training: the state, one step, and the loop around it, to be read from top to bottom."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mlic_jax.data import co_occurrence, label_inputs, pipeline, sources
from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.evaluate import run
from mlic_jax.files.atomic import locked
from mlic_jax.models import create_model, spread
from mlic_jax.models.layers import deal_rows
from mlic_jax.models.precision import in_precision
from mlic_jax.runtime import checkpoint, compilation, devices, processes, profiling
from mlic_jax.runtime.checkpoint import RunCheckpoints, load_weights, merge_weights
from mlic_jax.train import resume
from mlic_jax.train.augment import augment
from mlic_jax.train.losses import smooth_targets, total_loss
from mlic_jax.train.optim import batch_scale, create_optimizer, create_schedule, group_multipliers
from mlic_jax.train.step_log import StepLog

logger = logging.getLogger(__name__)

# The modules that end in the logits, one of which every model has.
CLASSIFIERS = {"convclass", "fc2", "per_label"}


@flax.struct.dataclass
class TrainState:
    """All that training changes; a plain pytree."""

    step: jax.Array  # int32 [], optimiser steps done
    params: Any
    batch_stats: Any
    opt_state: Any


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh | None = None,
    shardings: TrainState | None = None,
) -> Callable:
    """The jitted step: (state, batch, key) -> (state, metrics), the old state's memory reused.

    The batch is what `pipeline.batches` yields, on the devices. What is random in step k follows
    from (key, k). Metrics are float32 scalars: the loss, its parts, the norm of the gradient and
    the rate.

    Args:
        mesh: along whose axis the rows of a batch lie, for a model that `models.spread` along it;
            None: all are on one device.
        shardings: how the state lies on the mesh, see `distributed.lying`.
    """

    gradient_of = make_gradient(model, config, mesh, shardings)

    def train_step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        labels = resolve_unknown(batch["labels"], config.loss.label_policy)
        known = (labels != 0) & batch["mask"][:, None]
        rows = {
            "images": augment(batch["image"], jax.random.fold_in(key, state.step), config.augment),
            "targets": smooth_targets(labels > 0, config.loss.label_smoothing),
            "known": known,
            "groups": groups_in_parts(
                batch["mask"], config.accumulation, config.model.get("bn_groups", 1)
            ),
        }
        batch_stats, (metrics, gradient) = gradient_of(
            state.params, state.batch_stats, rows, jnp.sum(known, dtype=jnp.int32)
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        metrics["learning_rate"] = schedule(state.step)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def make_gradient(
    model: nn.Module, config: ConfigDict, mesh: Mesh | None, shardings: TrainState | None
) -> Callable:
    """(params, batch_stats, rows, known) -> (new batch_stats, (metrics, gradient)) of a batch.

    `known` is how many labels are, of all rows. Arguments are those of `make_train_step`.
    """

    def share_of_loss(params: Any, batch_stats: Any, rows: dict[str, jax.Array], known: jax.Array):
        """What some rows add to the loss, and (what they add to metrics, new batch_stats).

        Every row weighs as much as it has of the labels that are known in the whole batch, so that
        the sums over its parts are of all rows together.
        """
        # So that no gradient is computed for what is frozen.
        multipliers = group_multipliers(config.optim, params)
        frozen = {name: lax.stop_gradient(params[name]) for name in params if not multipliers[name]}
        outputs, updates = model.apply(
            {"params": params | frozen, "batch_stats": batch_stats},
            rows["images"],
            train=not config.freeze_statistics,
            mask=rows["groups"],
            mutable=["batch_stats"],
        )
        loss, parts = total_loss(outputs, rows["targets"], rows["known"])
        share = jnp.sum(rows["known"], dtype=loss.dtype) / jnp.maximum(known, 1).astype(loss.dtype)
        metrics = jax.tree.map(lambda value: share * value, {"loss": loss, **parts})
        return metrics["loss"], (metrics, updates["batch_stats"])

    def in_parts(params: Any, batch_stats: Any, rows: dict[str, jax.Array], known: jax.Array):
        gradient_of = partial(jax.grad(share_of_loss, has_aux=True), params, known=known)
        with in_precision(config.model, training=True):
            return accumulate(gradient_of, config.accumulation, batch_stats, rows)

    if mesh is None:
        return in_parts
    params_specs = devices.specs_of(shardings.params)

    def on_all_devices(*arguments: Any):
        batch_stats, (metrics, gradient) = in_parts(*arguments)
        # Exchanged once for all parts.
        gradient = devices.sum_over_devices(gradient, params_specs)
        return batch_stats, (lax.psum(metrics, devices.ROWS), gradient)

    everywhere, by_rows = devices.EVERYWHERE, devices.BY_ROWS
    return devices.on_own_rows(
        on_all_devices,
        mesh,
        in_specs=(params_specs, everywhere, by_rows, everywhere),
        out_specs=(everywhere, (everywhere, params_specs)),
    )


def accumulate(
    gradient_of: Callable, count: int, batch_stats: Any, rows: dict[str, jax.Array]
) -> tuple[Any, tuple[Any, Any]]:
    """Sums over parts of the rows, one after the other: less memory, more steps.

    Batch normalisation sees a part at a time, and its running statistics move once for each that
    is not padding alone.

    Args:
        gradient_of: (batch_stats, part) -> (gradient, (metrics, new batch_stats)).
        count: of the parts, which divides the number of rows. A part is every count-th row, so
            that each device has an equal share of every part.

    Returns:
        The last batch_stats, and the sums of (metrics, gradient).
    """

    def of_part(batch_stats: Any, part: dict[str, jax.Array]):
        gradient, (metrics, batch_stats) = gradient_of(batch_stats, part)
        return batch_stats, (metrics, gradient)

    def add(carry, part):
        batch_stats, terms = of_part(carry[0], part)
        return (batch_stats, jax.tree.map(jnp.add, carry[1], terms)), None

    if count == 1:
        return of_part(batch_stats, rows)
    parts = jax.tree.map(lambda x: jnp.stack([x[k::count] for k in range(count)]), rows)
    _, shapes = jax.eval_shape(of_part, batch_stats, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (batch_stats, sums), _ = lax.scan(add, (batch_stats, zeros), parts)
    return batch_stats, sums


def groups_in_parts(mask: jax.Array, parts: int, groups: int) -> jax.Array:
    """`deal_rows` for every part that `accumulate` makes of a batch, int32 `[B]`."""
    by_part = jax.vmap(partial(deal_rows, groups=groups))(mask.reshape(-1, parts).T)
    return by_part.T.reshape(-1)


def train(
    config: ConfigDict,
    workdir: Path,
    profile: bool = False,
    recover: bool = False,
    allow_changes: bool = False,
) -> None:
    """Trains to the end of the last epoch, from the latest checkpoint in `workdir` if there is one.

    Saves and validates as it goes; at the end the best checkpoint is evaluated on the test split.
    On SIGTERM or Ctrl-C it saves where it is and returns; the same call later continues from there.

    Args:
        profile: trace a few steps into `<workdir>/profile`, see `profiling.profiled`.
        recover: set damaged checkpoints aside before, and go on from the last good one.
        allow_changes: resume with options that change what has been.

    Raises:
        UsageError: the configuration does not fit the data, the devices or the run in `workdir`, or
            another process is training there.
        Failure: an image cannot be read, the loss is no longer finite, a checkpoint is damaged or
            cannot be written.
    """
    if config.eval.global_scores:
        raise UsageError("eval.global_scores is of weights that exist: leave it empty in training")
    processes.check_shared("--workdir", workdir)
    mesh = devices.create_mesh()
    check_batch_size(config, mesh)
    splits = processes.first_alone(lambda: sources.open_splits(config.data))
    if not (splits["val"].labels() > 0).any():
        raise UsageError(
            f"data.splits.val is {splits['val'].split!r}, where no label is known to be present: "
            "no checkpoint could be told to be the best"
        )
    if config.batch_size > len(splits["train"]):
        logger.warning(
            "batch_size is %d and there are %d images to train with: a step sees all, and padding",
            config.batch_size,
            len(splits["train"]),
        )
    epoch_steps = pipeline.steps_per_epoch(len(splits["train"]), config.batch_size)
    last_step = config.epochs * epoch_steps

    def ends_epoch(step: int) -> bool:
        return step == last_step or (step > 0 and step % (epoch_steps * config.eval.every) == 0)

    num_classes = len(splits["train"].class_names)
    constants = label_constants(config, splits["train"])
    model = create_model(config.model, num_classes, **label_inputs.arguments_of(constants))
    eval_model = run.create_eval_model(config, num_classes, constants)
    scale = batch_scale(config.optim, config.batch_size)
    schedule = create_schedule(config.optim, epoch_steps, config.epochs, scale)
    metadata = resume.run_metadata(config, splits["train"])
    if recover:
        for finding in processes.first_alone(lambda: checkpoint.set_damaged_aside(workdir)):
            print(f"set aside in {workdir / checkpoint.DAMAGED}: {finding}")
    resumed = checkpoint.latest_checkpoint(workdir)
    if resumed:
        saved = checkpoint.read_metadata(resumed)
        changes = resume.check_resumable(saved, metadata, resumed, last_step, allow_changes)
        metadata["changes"] = saved.get("changes", [])
        if changes:
            print(f"changed in resuming: {resume.describe(changes)}")
            metadata["changes"].append({"step": int(resumed.name), "options": changes})
    variables = initial_variables(model, config)
    if not resumed:
        variables = start_weights(variables, config, metadata["class_names"])
    optimizer = create_optimizer(config.optim, variables["params"], schedule)
    state = TrainState(jnp.int32(0), **variables, opt_state=optimizer.init(variables["params"]))
    shardings = devices.lying(state, mesh, config.shard_fc1)
    state = devices.lay_out(state, shardings)
    model = spread(model, devices.ROWS, config.shard_fc1)
    if config.shard_fc1:
        eval_model = spread(eval_model, devices.ROWS, shard_fc1=True)

    with contextlib.ExitStack() as stack:
        if processes.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(workdir))
        checkpoints = stack.enter_context(RunCheckpoints(workdir, config.keep_checkpoints))
        if resumed:
            state = restore(resumed, state, constants)
            print(f"resuming {resumed}, of {last_step} steps")

        step = int(state.step)
        validated = not (resumed and ends_epoch(step) and checkpoint.lacks_validation(resumed))
        key = jax.jit(jax.random.key, out_shardings=devices.replicated(mesh))(config.seed)
        train_step = compilation.compile_ahead(
            "the training step",
            make_train_step(model, optimizer, schedule, config, mesh, shardings),
            state,
            devices.abstract_batch(mesh, config.batch_size, config.data.image_size, num_classes),
            key,
        )
        eval_step = run.compile_eval_step(
            eval_model,
            {"params": state.params, "batch_stats": state.batch_stats},
            config,
            num_classes,
            mesh,
        )
        processes.wait_for_all("compiled")  # or the first to meet the others soon gives up
        batches = profiling.profiled(
            training_batches(splits, config, step),
            last_step - step,
            "train",
            workdir / "profile" if profile else None,
        )
        stack.enter_context(contextlib.closing(batches))
        window = saved.get("log_window") if resumed else None
        log = StepLog(
            workdir, checkpoints, step, validated, epoch_steps, splits["train"], config, window
        )
        stack.enter_context(contextlib.closing(log))
        validate = partial(validate_step, eval_step, splits["val"], config, mesh, log, checkpoints)
        stop_at = stack.enter_context(processes.stop_requests(step))
        if not validated:  # it was killed in validation
            validate(step, state)
        for index, batch in devices.on_devices(batches, mesh):
            state, step_metrics = train_step(state, batch, key)
            step += 1
            log.add(step, index, step_metrics)

            stopping = stop_at(step)
            if not (ends_epoch(step) or stopping or step % config.checkpoint_every == 0):
                continue
            log.drain()  # nothing is saved before it is known to be finite
            variables = {"params": state.params, "batch_stats": state.batch_stats, **constants}
            training = {"step": state.step, "opt_state": state.opt_state}
            checkpoints.save(step, variables, training, metadata | {"log_window": log.window()})
            if ends_epoch(step):  # after saving, so that a kill here loses no step
                validate(step, state)
            if stopping:
                print(f"stopped at step {step} of {last_step}, saved; the same command continues")
                return
        if stop_at(step + 1):  # after the last step
            print("stopped before the final evaluation, saved; the same command continues")
            return
    run.evaluate_run(config, workdir)


def validate_step(
    eval_step: Callable,
    split: Split,
    config: ConfigDict,
    mesh: Mesh,
    log: StepLog,
    checkpoints: RunCheckpoints,
    step: int,
    state: TrainState,
) -> None:
    """Scores the validation split, and notes what it is worth in the log and the checkpoint."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    with jax.profiler.TraceAnnotation(profiling.VALIDATE):
        scores = run.score_split(eval_step, variables, split, config, mesh)
        values = run.compute_metrics(scores, config)
    log.add_validation(step, values)
    checkpoints.add_validation(step, values["mAP"])


def check_batch_size(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UsageError where a batch does not divide into parts and groups, and among devices."""
    size, parts, groups = config.batch_size, config.accumulation, config.model.bn_groups
    devices.check_batch_size("batch_size", size, mesh, parts)
    if groups > 0 and size // parts % groups:
        raise UsageError(
            f"model.bn_groups is {groups}, which does not divide the {size // parts} images that "
            "go through the model together"
        )


def label_constants(config: ConfigDict, split: Split) -> dict[str, Any]:
    """What MSRN knows of its labels, the collection `label_inputs`; nothing of other models.

    Raises:
        UsageError: the word vectors are not given, or a file is missing or of other classes.
    """
    if config.model.name != "msrn":
        return {}
    if not config.data.word_vectors:
        raise UsageError(
            "data.word_vectors is empty, and MSRN needs a word vector for every label: build them "
            f"with python scripts/build_word_vectors.py --prepared {split.directory}, or say "
            "--config.data.word_vectors=one_hot"
        )
    graph = config.data.label_graph or co_occurrence.from_split(split, config.loss.label_policy)
    known = label_inputs.read(graph, config.data.word_vectors, split.class_names)
    return {"label_inputs": known}


def initial_variables(model: nn.Module, config: ConfigDict) -> dict[str, Any]:
    """Variables drawn from `config.seed`."""
    size = config.data.image_size
    # XLA's own generator: to compile threefry for every kernel takes several times longer.
    key = jax.random.key(config.seed, impl="rbg")
    return dict(jax.jit(model.init)(key, jnp.zeros((1, size, size, 3))))


def start_weights(
    variables: dict[str, Any], config: ConfigDict, class_names: list[str]
) -> dict[str, Any]:
    """Puts into fresh variables what a new run is to start from.

    From `config.init_from` it takes the whole model where that has the same classes, else the
    backbone and what else does not depend on the classes; then `config.init_prior` decides the bias
    of a classifier that is fresh.
    """
    modules = set()
    if config.init_from:
        loaded, info = load_weights(config.init_from)
        whole = info.get("class_names") == class_names
        modules = set(variables["params"]) if whole else shared_modules(variables, loaded)
        source = f"{config.init_from} ({info.get('arch', config.model.name)})"
        variables = merge_weights(variables, loaded, modules, source)
        logger.info("Starting from %s: %s", source, ", ".join(sorted(modules)))
    (classifier,) = CLASSIFIERS & variables["params"].keys()
    if config.init_prior and classifier not in modules:
        layer = variables["params"][classifier]
        layer["bias"] = jnp.full_like(
            layer["bias"], math.log(config.init_prior / (1 - config.init_prior))
        )
    logger.info("%s", parameter_overview.get_parameter_overview(variables["params"]))
    return variables


def shared_modules(variables: dict[str, Any], loaded: dict[str, Any]) -> set[str]:
    """The backbone, and the other modules that a model of other classes has in the same shapes."""
    ours, theirs = (jax.tree.map(jnp.shape, v["params"]) for v in (variables, loaded))
    same = {name for name in ours if name in theirs and ours[name] == theirs[name]}
    return {"features"} | same - CLASSIFIERS - {"fc1"}  # its inputs are those of each label


def restore(path: Path, state: TrainState, constants: dict[str, Any]) -> TrainState:
    """A run's checkpoint, laid out as `state` is; the constants in it are not read again."""
    variables = {"params": state.params, "batch_stats": state.batch_stats, **constants}
    training = {"step": state.step, "opt_state": state.opt_state}
    variables, training = checkpoint.restore(path, variables, training)
    return TrainState(params=variables["params"], batch_stats=variables["batch_stats"], **training)


def training_batches(
    splits: dict[str, Split], config: ConfigDict, first_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of all batches that are still to come."""
    return pipeline.batches(
        splits["train"],
        batch_size=config.batch_size,
        image_size=config.data.image_size,
        seed=config.seed,
        shuffle=True,
        epochs=config.epochs,
        first_step=first_step,
        train_crop=config.data.train_crop,
        crop_scale=tuple(config.data.crop_scale),
        workers=config.data.workers,
        threads=config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
