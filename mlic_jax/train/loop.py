"""The training loop, to be read from top to bottom."""

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mlic_jax import checkpoint_config
from mlic_jax.data import label_inputs, pipeline, sources
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.evaluate.run import compute_metrics, evaluate_run
from mlic_jax.files.atomic import locked
from mlic_jax.models import create_model, spread
from mlic_jax.runtime import checkpoint, compilation, devices, processes, profiling
from mlic_jax.runtime.run_checkpoints import RunCheckpoints
from mlic_jax.scores.scoring import Evaluator, create_eval_model, make_eval_step
from mlic_jax.train import resume
from mlic_jax.train.optim import create_optimizer, create_schedule, rate_scale
from mlic_jax.train.start import (
    initial_variables,
    label_constants,
    start_weights,
    write_overview,
)
from mlic_jax.train.step import TrainState, check_batch_size, make_train_step
from mlic_jax.train.step_log import StepLog

logger = logging.getLogger(__name__)


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
    eval_model = create_eval_model(config, num_classes, constants)
    scale = rate_scale(config.optim, config.batch_size, num_classes)
    schedule = create_schedule(config.optim, epoch_steps, config.epochs, scale)
    metadata = resume.run_metadata(config, splits["train"], workdir)
    if recover:
        for finding in processes.first_alone(lambda: checkpoint.set_damaged_aside(workdir)):
            print(f"set aside in {workdir / checkpoint.DAMAGED}: {finding}")
    resumed = checkpoint.latest_checkpoint(workdir)
    if resumed:
        saved = checkpoint.read_metadata(resumed)
        changes = resume.check_resumable(saved, metadata, resumed, last_step, allow_changes)
        metadata["changes"] = saved.get("changes", [])
        if changes:
            print(f"changed in resuming: {checkpoint_config.describe(changes)}")
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
            if not resumed:
                write_overview(workdir / "parameters.txt", variables["params"], config)
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
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        eval_step = make_eval_step(eval_model, config, mesh, devices.specs_of(weights))
        evaluator = Evaluator(eval_step, splits["val"], config, mesh).compiled(weights)
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
        validate = partial(validate_step, evaluator, log, checkpoints)
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
    evaluate_run(config, workdir)


def validate_step(
    evaluator: Evaluator, log: StepLog, checkpoints: RunCheckpoints, step: int, state: TrainState
) -> None:
    """Scores the validation split, and notes what it is worth in the log and the checkpoint."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    with jax.profiler.TraceAnnotation(profiling.VALIDATE):
        values = compute_metrics(evaluator(variables), evaluator.config)
    log.add_validation(step, values)
    checkpoints.add_validation(step, values["mAP"])


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
        cache=config.data.cache,
        cache_gib=config.data.cache_gib,
        workers=config.data.workers,
        threads=config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
