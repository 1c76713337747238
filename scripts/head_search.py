"""Searches rates, decays and poolings of a head in seconds: a frozen backbone is run only once.

    python scripts/head_search.py --config mcar_custom:mobilenet_v2,256 --output runs/search.json \
        --config.data.name=mine --config.data.root=FOLDER --config.init_from=weights/mobilenet_v2

For a recipe with `features.store`, or with `--config.features.store=True` and what that needs. Each
combination of `--rates` (`optim.learning_rate`), `--decays` (`optim.weight_decay`) and `--poolings`
(`model.pooling`) trains a head through all epochs, on features that the first one computes and
keeps, and is measured on `val` after the last one. The test split is not touched: whatever is
chosen here is yet to be measured, with the options that are printed.
"""

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mlic_jax import recipes
from mlic_jax.command_line import Parser, exit_code, show_log
from mlic_jax.config_checks import check_config
from mlic_jax.data import label_inputs, sources
from mlic_jax.errors import Failure, UsageError
from mlic_jax.evaluate.run import compute_metrics
from mlic_jax.features.regions import open_regions
from mlic_jax.files.atomic import write_text
from mlic_jax.models import create_model
from mlic_jax.names import POOLINGS
from mlic_jax.runtime import devices
from mlic_jax.scores.scoring import create_eval_model, stored_evaluator
from mlic_jax.scores.stored import open_plain_store
from mlic_jax.train.loop import check_validation, training_order
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import (
    first_state_and_step,
    initial_variables,
    label_constants,
    start_weights,
)
from mlic_jax.train.step import check_batch_size
from mlic_jax.train.stored import compile_stored_step, open_training_store

FACTORS = (1 / 3, 1.0, 3.0)  # of the recipe's rate
DECAYS = (0.0, 1e-4, 1e-3)
POOLED = ("pooled", "mcar")  # models that read `model.pooling`
DESCRIPTION = (
    f"{__doc__.splitlines()[0]} Every combination of rate, decay and pooling is a try, by default "
    f"{len(FACTORS) * len(DECAYS)}."
)


@dataclasses.dataclass(frozen=True)
class Try:
    """A head that was trained, and what it is worth on `val`."""

    learning_rate: float
    weight_decay: float
    pooling: str
    mean_ap: float | None  # percent; None: it diverged
    seconds: float

    def said(self) -> str:
        """The mAP, for a line."""
        return "diverged" if self.mean_ap is None else f"{self.mean_ap:.2f}"

    def flags(self) -> str:
        """What to give to a run for the same head."""
        return (
            f"--config.optim.learning_rate={self.learning_rate:g} "
            f"--config.optim.weight_decay={self.weight_decay:g} "
            f"--config.model.pooling={self.pooling}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="head_search.py", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", required=True, help="a recipe")
    parser.add_argument("--output", metavar="FILE", type=Path, help="JSON of all tries")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        metavar="R",
        help="default: a third, once, three times the recipe's",
    )
    parser.add_argument(
        "--decays",
        type=float,
        nargs="+",
        default=DECAYS,
        metavar="D",
        help=f"default: {' '.join(f'{decay:g}' for decay in DECAYS)}",
    )
    parser.add_argument("--poolings", nargs="+", choices=POOLINGS, help="default: the recipe's")

    def run() -> None:
        options, more = parser.parse_known_args(arguments)
        show_log()
        config = read_config(options.config, more)
        if options.poolings and config.model.name not in POOLED:
            raise UsageError(f"{config.model.name} does not pool: leave --poolings")
        if options.output and options.output.is_dir():
            raise UsageError(f"--output {options.output} is a folder; give a file")
        rates = options.rates or [factor * config.optim.learning_rate for factor in FACTORS]
        poolings = options.poolings or [config.model.pooling]
        grid = itertools.product(rates, options.decays, poolings)
        tries = search([with_try(config, *one) for one in grid])
        print(table(tries))
        if tries[0].mean_ap is None:
            raise Failure("every try diverged: give lower --rates")
        print(f"the best on val: {tries[0].flags()}")
        if options.output:
            about = {"set": config.data.name, "split": config.data.splits.val}
            content = about | {"tries": [dataclasses.asdict(one) for one in tries]}
            write_text(options.output, json.dumps(content, indent=1))

    return exit_code(run)


def read_config(recipe: str, arguments: Sequence[str]) -> ConfigDict:
    """The recipe with the options set as `--config.field=value`; raises UsageError."""
    config = recipes.load_with(recipe, arguments)
    check_config(config)
    if not config.features.store:
        raise UsageError("features.store is False: say --config.features.store=True")
    return config


def with_try(config: ConfigDict, rate: float, decay: float, pooling: str) -> ConfigDict:
    """The configuration of a run with these; raises UsageError where no run could use them."""
    own = config.copy_and_resolve_references()
    own.optim.learning_rate, own.optim.weight_decay = rate, decay
    own.model.pooling = pooling
    check_config(own)
    return own


def search(configs: Sequence[ConfigDict]) -> list[Try]:
    """Trains a head for each, of a rate, decay and pooling of its own; the best on `val` first."""
    options, mesh = TrainOptions.of(configs[0]), devices.create_mesh()
    check_batch_size(options, mesh)
    splits = sources.open_to_train(options.data)
    splits = {role: splits[role] for role in ("train", "val")}
    check_validation(splits["val"])
    classes = len(splits["train"].class_names)
    constants = label_constants(options, splits["train"])
    inputs = label_inputs.arguments_of(constants)
    model = create_model(options.model, classes, **inputs)
    start = initial_variables(model, options)
    fit = getattr(model.features, "fit", None)
    start = start_weights(start, options, list(splits["train"].class_names), fit)
    store = open_training_store(model, start, splits["train"], options, mesh)
    eval_model = create_eval_model(options, classes, constants)
    val_store = open_plain_store(eval_model, start, splits["val"], options, mesh)
    regions, val_regions = open_regions(store, model), open_regions(val_store, eval_model)
    key = jax.jit(jax.random.key, out_shardings=devices.replicated(mesh))(options.seed)

    def train(options: TrainOptions) -> float | None:
        model = create_model(options.model, classes, **inputs)
        variables = jax.tree.map(jnp.copy, start)  # whose memory the first step uses
        state, step = first_state_and_step(model, variables, options, splits["train"], mesh)
        step = compile_stored_step(step, model, store, regions, options, state, key)
        batches = store.batches(training_order(splits["train"], options, 0))
        for _, batch in devices.on_devices(batches, mesh):
            state, _ = step(state, batch, key)
        weights = state.variables(options.eval.weights)
        eval_model = create_eval_model(options, classes, constants)
        evaluator = stored_evaluator(eval_model, weights, val_store, val_regions, options)
        scores = evaluator(weights)
        if not np.isfinite(scores.logits).all():
            return None
        return compute_metrics(scores, options.eval)["mAP"]

    tries = []
    for config in configs:
        options = TrainOptions.of(config)
        begin = time.monotonic()
        mean_ap = train(options)
        tries.append(
            Try(
                options.optim.learning_rate,
                options.optim.weight_decay,
                options.model.pooling,
                mean_ap,
                time.monotonic() - begin,
            )
        )
        said = tries[-1].said()
        print(f"{tries[-1].flags()}: val mAP {said}, {tries[-1].seconds:.1f} s", flush=True)
    return sorted(tries, key=lambda one: math.inf if one.mean_ap is None else -one.mean_ap)


def table(tries: Sequence[Try]) -> str:
    """A line for every try."""
    lines = ["  rate      decay     pooling   val mAP  seconds"]
    lines += [
        f"  {one.learning_rate:<9g} {one.weight_decay:<9g} {one.pooling:<8} {one.said():>8}"
        f"{one.seconds:9.1f}"
        for one in tries
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
