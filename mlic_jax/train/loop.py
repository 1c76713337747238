"""The training loop, to be read from top to bottom."""

import contextlib
import logging
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mlic_jax import checkpoint_config
from mlic_jax.command_line import refuse_addresses
from mlic_jax.config_checks import check_config
from mlic_jax.data import label_inputs, pipeline, sources
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.evaluate.run import compute_metrics, evaluate_run
from mlic_jax.features.regions import open_regions
from mlic_jax.files.atomic import locked
from mlic_jax.models import create_model, spread
from mlic_jax.runtime import checkpoint, compilation, devices, processes, profiling
from mlic_jax.runtime.run_checkpoints import RunCheckpoints
from mlic_jax.scores.scoring import Evaluator, create_eval_model, make_evaluator
from mlic_jax.train import resume
from mlic_jax.train.options import TrainOptions, ValidateOptions
from mlic_jax.train.start import (
    first_state_and_step,
    initial_variables,
    label_constants,
    start_weights,
    write_overview,
)
from mlic_jax.train.step import TrainState, check_batch_size
from mlic_jax.train.step_log import StepLog
from mlic_jax.train.stored import compile_stored_step, open_training_store

logger = logging.getLogger(__name__)


def train(
    config: ConfigDict,
    workdir: Path | str,
    profile: bool = False,
    recover: bool = False,
    allow_changes: bool = False,
    evaluate: bool = True,
) -> bool:
    """Trains to the end of the last epoch, from the latest checkpoint in `workdir` if there is one.

    Saves and validates as it goes; at the end the best checkpoint is evaluated on the test split.
    On SIGTERM or Ctrl-C it saves where it is and returns; the same call later continues from there.

    Args:
        profile: trace a few steps into `<workdir>/profile`, see `profiling.profiled`.
        recover: set damaged checkpoints aside before, and go on from the last good one.
        allow_changes: resume with options that change what has been.
        evaluate: in the end, on the test split; for whoever has yet to choose among runs: not.

    Returns:
        Whether it came to the end.

    Raises:
        UsageError: the configuration is not sound, or does not fit the data, the devices or the run
            in `workdir`, or another process is training there.
        Failure: an image cannot be read, the loss is no longer finite, a checkpoint is damaged or
            cannot be written.
    """
    refuse_addresses([str(workdir)])
    check_config(config)
    options, workdir = TrainOptions.of(config), Path(workdir)
    if options.eval.global_scores:
        raise UsageError("eval.global_scores is of weights that exist: leave it empty in training")
    processes.check_shared("--workdir", workdir)
    mesh = devices.create_mesh()
    check_batch_size(options, mesh)
    splits = processes.first_alone(lambda: sources.open_to_train(options.data))
    check_validation(splits["val"])
    if options.batch_size > len(splits["train"]):
        logger.warning(
            "batch_size is %d and there are %d images to train with: a step sees all, and padding",
            options.batch_size,
            len(splits["train"]),
        )
    epoch_steps = pipeline.steps_per_epoch(len(splits["train"]), options.batch_size)
    last_step = options.epochs * epoch_steps

    def ends_epoch(step: int) -> bool:
        return step == last_step or (step > 0 and step % (epoch_steps * options.eval.every) == 0)

    num_classes = len(splits["train"].class_names)
    constants = label_constants(options, splits["train"])
    model = create_model(options.model, num_classes, **label_inputs.arguments_of(constants))
    eval_model = create_eval_model(options, num_classes, constants)
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
    variables = initial_variables(model, options)
    if not resumed:
        fit = getattr(model.features, "fit", None)
        variables = start_weights(variables, options, metadata["class_names"], fit)
    state, one_step = first_state_and_step(model, variables, options, splits["train"], mesh)
    if options.shard_fc1:
        eval_model = spread(eval_model, devices.ROWS, shard_fc1=True)

    with contextlib.ExitStack() as stack:
        if processes.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(workdir))
            if not resumed:
                write_overview(workdir / "parameters.txt", variables["params"], options)
        checkpoints = stack.enter_context(RunCheckpoints(workdir, options.keep_checkpoints))
        if resumed:
            state = restore(resumed, state, constants)
            print(f"resuming {resumed}, of {last_step} steps")

        step = int(state.step)
        validated = not (resumed and ends_epoch(step) and checkpoint.lacks_validation(resumed))
        key = jax.jit(jax.random.key, out_shardings=devices.replicated(mesh))(options.seed)
        weights = state.variables()
        if options.features.store:
            store = open_training_store(model, weights, splits["train"], options, mesh)
            regions = open_regions(store, model)
            train_step = compile_stored_step(one_step, model, store, regions, options, state, key)
            batches = store.batches(training_order(splits["train"], options, step))
        else:
            size, batch_size = options.data.image_size, options.batch_size
            abstract = devices.abstract_batch(mesh, batch_size, size, num_classes)
            if options.data.views:
                abstract["view"] = abstract["index"]
            train_step = compilation.compile_ahead(
                "the training step", one_step, state, abstract, key
            )
            batches = training_batches(splits["train"], options, step)
        evaluator = make_evaluator(eval_model, weights, splits["val"], options, mesh)
        processes.wait_for_all("compiled")  # or the first to meet the others soon gives up
        batches = profiling.profiled(
            batches,
            last_step - step,
            "train",
            workdir / "profile" if profile else None,
        )
        stack.enter_context(contextlib.closing(batches))
        window = saved.get("log_window") if resumed else None
        log = StepLog(
            workdir, checkpoints, step, validated, epoch_steps, splits["train"], options, window
        )
        stack.enter_context(contextlib.closing(log))
        validate = partial(validate_step, evaluator, options.eval, log, checkpoints)
        stop_at = stack.enter_context(processes.stop_requests(step))
        patience = options.early_stopping * options.eval.every * epoch_steps
        if not validated:  # it was killed in validation
            validate(step, state)
        for index, batch in devices.on_devices(batches, mesh):
            best = checkpoints.best_step() if patience else None
            if best is not None and step - best >= patience:
                print(
                    f"stopped early at step {step} of {last_step}: no validation was better than "
                    f"that of step {best}"
                )
                break
            state, step_metrics = train_step(state, batch, key)
            step += 1
            log.add(step, index, step_metrics)

            stopping = stop_at(step)
            if not (ends_epoch(step) or stopping or step % options.checkpoint_every == 0):
                continue
            log.drain()  # nothing is saved before it is known to be finite
            variables, training = saved_trees(state, constants)
            checkpoints.save(step, variables, training, metadata | {"log_window": log.window()})
            if ends_epoch(step):  # after saving, so that a kill here loses no step
                validate(step, state)
            if stopping:
                print(f"stopped at step {step} of {last_step}, saved; the same command continues")
                return False
        if evaluate and stop_at(step + 1):  # after the last step
            print("stopped before the final evaluation, saved; the same command continues")
            return False
    if evaluate:
        evaluate_run(config, workdir)
    return True


def check_validation(split: Split) -> None:
    """Raises UsageError where a split tells nothing of what is better."""
    if not (split.labels() > 0).any():
        raise UsageError(
            f"data.splits.val is {split.split!r}, where no label is known to be present: "
            "no checkpoint could be told to be the best"
        )


def validate_step(
    evaluator: Evaluator,
    measured: ValidateOptions,
    log: StepLog,
    checkpoints: RunCheckpoints,
    step: int,
    state: TrainState,
) -> None:
    """Scores the validation split, and notes what it is worth in the log and the checkpoint."""
    variables = state.variables(measured.weights)
    with jax.profiler.TraceAnnotation(profiling.VALIDATE):
        values = compute_metrics(evaluator(variables), measured)
    log.add_validation(step, values)
    checkpoints.add_validation(step, values["mAP"])


def saved_trees(
    state: TrainState, constants: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint has of a state: what models are made of, and what training goes on with."""
    variables = {**state.variables(), **constants}
    if state.average is not None:
        variables["ema"] = state.average
    training = {"step": state.step, "opt_state": state.opt_state}
    if state.corrected is not None:
        training["corrected"] = state.corrected
    return variables, training


def restore(path: Path, state: TrainState, constants: dict[str, Any]) -> TrainState:
    """A run's checkpoint, laid out as `state` is; the constants in it are not read again."""
    variables, training = checkpoint.restore(path, *saved_trees(state, constants))
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    return TrainState(**weights, **training, average=variables.get("ema"))


def training_order(
    split: Split, options: TrainOptions, first_step: int
) -> Generator[dict[str, np.ndarray]]:
    """All batches that are still to come, without their images."""
    return pipeline.order(
        split,
        batch_size=options.batch_size,
        seed=options.seed,
        shuffle=True,
        epochs=options.epochs,
        first_step=first_step,
        views=options.data.views,
    )


def training_batches(
    split: Split, options: TrainOptions, first_step: int
) -> Generator[dict[str, np.ndarray]]:
    """This process's rows of all batches that are still to come."""
    return pipeline.batches(
        split,
        batch_size=options.batch_size,
        image_size=options.data.image_size,
        seed=options.seed,
        shuffle=True,
        epochs=options.epochs,
        first_step=first_step,
        fit=options.data.train_fit,
        train_crop=options.data.train_crop,
        crop_scale=options.data.crop_scale,
        views=options.data.views,
        crop_seed=options.views_seed,
        cache=options.data.cache,
        cache_gib=options.data.cache_gib,
        workers=options.data.workers,
        threads=options.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
