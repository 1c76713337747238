"""What a run starts from: weights, fresh or given, what is known of the labels, and its step."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from mlic_jax.checkpoint_config import describe, other_preprocessing
from mlic_jax.data import co_occurrence, label_inputs, pipeline
from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.models import spread
from mlic_jax.names import IDENTITY
from mlic_jax.runtime import devices
from mlic_jax.runtime.checkpoint import load_weights, merge_weights
from mlic_jax.train.label_losses import balanced_weights
from mlic_jax.train.losses import LossOptions
from mlic_jax.train.optim import (
    BACKBONE,
    create_optimizer,
    create_schedule,
    group_multipliers,
    rate_scale,
)
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState, make_train_step

logger = logging.getLogger(__name__)

# The modules that end in the logits, one of which every model has.
CLASSIFIERS = {"convclass", "fc2", "per_label", "head"}


def label_constants(options: TrainOptions, split: Split) -> dict[str, Any]:
    """What MSRN knows of its labels, the collection `label_inputs`; nothing of other models.

    Raises:
        UsageError: the word vectors are not given, or a file is missing or of other classes.
    """
    if options.model.name != "msrn":
        return {}
    if not options.data.word_vectors:
        raise UsageError(
            "data.word_vectors is empty, and MSRN needs a word vector for every label: build them "
            f"with mlic build-word-vectors --prepared {split.directory}, or say "
            "--config.data.word_vectors=one_hot"
        )
    counted = {"": co_occurrence.from_split, IDENTITY: co_occurrence.without_edges}
    given = options.data.label_graph
    graph = counted[given](split, options.loss.label_policy) if given in counted else given
    known = label_inputs.read(graph, options.data.word_vectors, split.class_names)
    return {"label_inputs": known}


def class_weights(options: LossOptions, split: Split) -> np.ndarray | None:
    """What each class counts, float32 `[C]`, by its positives in the split; None: all the same."""
    if options.class_weights == "none":
        return None
    present = split.labels() > 0
    positives = jnp.asarray(present.sum(axis=0, dtype=np.int32))
    return np.asarray(balanced_weights(positives, len(present), options.class_weights))


def no_corrections(options: TrainOptions, split: Split) -> np.ndarray | None:
    """Of a loss that corrects labels permanently which those are, bool `[N, C]`: none as yet.

    Raises:
        UsageError: none would ever be, for a share of the labels of a batch is less than one.
    """
    if not options.loss.corrects_permanently:
        return None
    labels = split.labels()
    absent = np.mean(resolve_unknown(labels, options.loss.label_policy) < 0)
    photos = min(options.batch_size, len(split)) / options.accumulation  # the rest is padding
    together = photos * labels.shape[1] * absent
    if options.loss.delta * together < 1:
        raise UsageError(
            f"loss.delta is {options.loss.delta:g}, of about {together:.0f} labels given as absent "
            "in a step less than one: none would be corrected; give a greater one, or a step more "
            "photos"
        )
    return np.zeros(labels.shape, bool)


def initial_variables(model: nn.Module, options: TrainOptions) -> dict[str, Any]:
    """Params and batch_stats drawn from `seed`; of a model without statistics these are empty."""
    size = options.data.image_size
    # XLA's own generator: to compile threefry for every kernel takes several times longer.
    key = jax.random.key(options.seed, impl="rbg")
    drawn = dict(jax.jit(model.init)(key, jnp.zeros((1, size, size, 3))))
    return {"batch_stats": {}, **drawn}


def start_weights(
    variables: dict[str, Any],
    options: TrainOptions,
    class_names: list[str],
    fit: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Puts into fresh variables what a new run is to start from.

    From `init_from` it takes the whole model where that has the same classes and is the same model,
    or has the same arrays; else the backbone and what else does not depend on the classes. Then
    `init_prior` decides the bias of a classifier that is fresh and has one.

    Args:
        fit: the backbone's, of one that was trained with images of another size; see
            `mlic_jax.models.backbones`.
    """
    modules: set[str] = set()
    if options.init_from:
        loaded, info = load_weights(Path(options.init_from))
        name = info.get("config", {}).get("model", {}).get("name", options.model.name)
        source = f"{options.init_from} ({info.get('arch', name)})"
        _check_backbone(options.model.backbone, info, source)
        if fit is not None and BACKBONE in loaded["params"]:
            fresh = variables["params"][BACKBONE]
            loaded["params"][BACKBONE] = fit(loaded["params"][BACKBONE], fresh)
        ours, theirs = (jax.tree.map(jnp.shape, v["params"]) for v in (variables, loaded))
        is_same_model = name == options.model.name or ours == theirs  # MCAR's are pooled's
        whole = is_same_model and info.get("class_names") == class_names
        modules = set(variables["params"]) if whole else shared_modules(variables, loaded)
        variables = merge_weights(variables, loaded, modules, source)
        logger.info("Starting from %s: %s", source, ", ".join(sorted(modules)))
        if others := other_preprocessing(info, options):
            logger.warning("%s saw other photos than this run: %s", source, describe(others))
    elif options.optim.multipliers.get(BACKBONE) == 0:
        logger.warning(
            "the backbone stays as it is (optim.multipliers.features is 0) and is random, for "
            "init_from names no weights: nothing much can be learned from it; name some, or train "
            "it with --config.optim.multipliers.features=1 --config.freeze_statistics=False"
        )
    (classifier,) = CLASSIFIERS & variables["params"].keys()
    if options.init_prior and classifier not in modules:
        layer = variables["params"][classifier]
        layer = layer.get("per_label", layer)  # of Query2Label
        if "bias" in layer:
            prior = math.log(options.init_prior / (1 - options.init_prior))
            layer["bias"] = jnp.full_like(layer["bias"], prior)
        else:
            logger.info(
                "init_prior is not for %s, which has no bias that could start there",
                options.model.name,
            )
    return variables


def _check_backbone(backbone: str, info: Mapping[str, Any], source: str) -> None:
    """Refuses the weights of another network, of which some have the same names and shapes."""
    theirs = info.get("arch") or info.get("config", {}).get("model", {}).get("backbone", backbone)
    if theirs != backbone:
        raise UsageError(
            f"the weights of {source} are of the backbone {theirs}, and model.backbone is "
            f"{backbone}: make it {theirs}, or init_from weights of {backbone}, or empty for none"
        )


def first_state_and_step(
    model: nn.Module, variables: dict[str, Any], options: TrainOptions, split: Split, mesh: Mesh
) -> tuple[TrainState, jax.stages.Wrapped]:
    """The state that a run starts from, as it lies on the mesh, and the step that changes it.

    Args:
        model: as it runs on a whole batch.
        variables: of `start_weights`; the first step may use their memory.
        split: what is trained with.

    Raises:
        UsageError: an option of the optimiser does not fit the model, or see `no_corrections`.
    """
    epoch_steps = pipeline.steps_per_epoch(len(split), options.batch_size)
    scale = rate_scale(options.optim, options.batch_size, len(split.class_names))
    schedule = create_schedule(options.optim, epoch_steps, options.epochs, scale)
    stage_of = getattr(model.features, "stage_of", None)
    optimizer = create_optimizer(options.optim, variables["params"], schedule, stage_of)
    opt_state = optimizer.init(variables["params"])
    average = jax.tree.map(jnp.copy, variables) if options.optim.ema else None
    state = TrainState(
        jnp.int32(0),
        **variables,
        opt_state=opt_state,
        average=average,
        corrected=no_corrections(options, split),
    )
    shardings = devices.lying(state, mesh, options.shard_fc1)
    step = make_train_step(
        spread(model, devices.ROWS, options.shard_fc1),
        optimizer,
        schedule,
        options,
        mesh,
        shardings,
        epoch_steps,
        class_weights(options.loss, split),
    )
    return devices.lay_out(state, shardings), step


def write_overview(path: Path, params: dict[str, Any], options: TrainOptions) -> None:
    """Writes every array of a model and the rate of every group; how many in all is logged."""
    multipliers = group_multipliers(options.optim, params)
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    groups = [
        f"Group {name}: {sizes[name]} parameters, rate x {multipliers[name]:g}\n"
        for name in sorted(params)
    ]
    write_text(path, f"{parameter_overview.get_parameter_overview(params)}\n{''.join(groups)}")
    model = f"{options.model.name} on {options.model.backbone}"
    logger.info("%s: %s parameters, see %s", model, f"{sum(sizes.values()):,}", path)


def shared_modules(variables: dict[str, Any], loaded: dict[str, Any]) -> set[str]:
    """The backbone, and the other modules that a model of other classes has in the same shapes."""
    ours, theirs = (jax.tree.map(jnp.shape, v["params"]) for v in (variables, loaded))
    same = {name for name in ours if name in theirs and ours[name] == theirs[name]}
    return {"features"} | same - CLASSIFIERS - {"fc1"}  # its inputs are those of each label
