"""SGD and Adam as PyTorch means them, with named groups of parameters and rates in epochs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlic_jax.errors import UsageError
from mlic_jax.options import Options

BACKBONE = "features"  # the module of a model whose stages may learn at rates of their own


@dataclass(frozen=True)
class OptimOptions(Options):
    """`config.optim`, where every option is explained."""

    name: str
    learning_rate: float
    scaling: str
    reference_batch: int
    reference_classes: int
    multipliers: Mapping[str, float]  # of groups of parameters, by name
    layer_decay: float
    schedule: str
    schedule_share: float
    floor: float
    milestones: tuple[float, ...]
    warmup_epochs: float
    momentum: float
    nesterov: bool
    weight_decay: float
    decay_biases_and_norms: bool
    clip_norm: float
    ema: float


# How the rate follows the size of the batch, from that of `optim.reference_batch`: not, in
# proportion (Goyal et al. 2017), or with its root (Krizhevsky 2014).
RATE_SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}


def rate_scale(options: OptimOptions, batch_size: int, num_classes: int) -> float:
    """What the rate is multiplied with for such a batch and so many classes.

    The loss is a mean over the classes, so the gradient of what belongs to one class alone goes
    with 1 / classes, and with their number the highest rate at which SGD is stable. Let x be the
    classifier's features, e the greatest eigenvalue of the mean of x x^T, m the momentum: the
    curvature of two streams is at most e / (2 classes), and steps with momentum stay bounded below
    a rate of 2 (1 + m) divided by that, 7.6 classes / e. Of MobileNetV2 from ImageNet e was 240 to
    300 at 256 px and 500 to 1,230 at 128 px. So 0.3 for 80 classes, 0.00375 for each, is stable up
    to e = 2,000, and 0.3 for 3 is not. The number of photos and the batch are not in this bound.

    Measured at 128 px with `scripts/prepare_data.py --init-from weights/mobilenet_v2` and batches
    of 16: the highest mean loss of ten steps in a row, as a multiple of that of the first ten, and
    the last validation's mAP, by seed; in brackets at a rate of 0.3 whatever the classes:

        3 frequent classes, 205 photos, 30 epochs
            1.2, 1.0 (6.9, 2.6); 94.2, 94.9 (93.3, 94.4)
        17 classes, 647 aerial photos, 10 epochs
            1.0, 1.0 (1.6); 94.5, 94.4 (93.2)
        12 classes, 1,429 photos of animals, 5 epochs
            1.0 (6.1); 59.2 (55.2)
        80 classes, 128 photos of COCO, 30 epochs, where both are one rate
            1.0; 37.7

    The moves of Adam and AdamW do not depend on the scale of the loss.

    """
    scale = RATE_SCALINGS[options.scaling](batch_size / options.reference_batch)
    if options.name == "sgd" and options.reference_classes:
        scale *= num_classes / options.reference_classes
    return scale


def create_schedule(
    options: OptimOptions, steps_per_epoch: int, epochs: int, scale: float = 1.0
) -> optax.Schedule:
    """The learning rate of a step, before any group's multiplier.

    `one_cycle` (Smith and Topin 2017, arXiv 1708.07120) is PyTorch's `OneCycleLR`: a cosine up from
    1 / 25 of the rate to all of it at 20 % of the steps, and one down to 1 / 250,000. Two things
    are other: the peak and the end are each a step later, and Adam's momentum is not cycled.

    Args:
        epochs: of the run, which are `options.schedule_share` of a cosine or a cycle.
        scale: of all rates, see `rate_scale`.
    """
    rate = scale * options.learning_rate
    warmup = round(options.warmup_epochs * steps_per_epoch)
    steps = round(epochs * steps_per_epoch / options.schedule_share)
    if options.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, max(steps - warmup, 1), alpha=options.floor)
    elif options.schedule == "one_cycle":
        peak = max(round(0.2 * steps), 1)
        lacking = optax.cosine_decay_schedule(rate * 24 / 25, peak)
        fall = optax.cosine_decay_schedule(rate, max(steps - peak, 1), alpha=1 / 250_000)
        main = optax.join_schedules([lambda step: rate - lacking(step), fall], [peak])
    else:
        drops = {int(epoch * steps_per_epoch) - warmup: 0.1 for epoch in options.milestones}
        main = optax.piecewise_constant_schedule(rate, drops)
    if warmup:
        rise = optax.linear_schedule(rate / warmup, rate, warmup)
        main = optax.join_schedules([rise, main], [warmup])
    # In float32 from here on, where optax would mix integers and floats.
    return lambda step: main(jnp.asarray(step, jnp.float32))


def group_multipliers(options: OptimOptions, params: dict[str, Any]) -> dict[str, float]:
    """The multiplier of every top-level module of `params`.

    Raises:
        UsageError: a group is no module, or a module is in no group.
    """
    multipliers = options.multipliers
    named = set(multipliers) - {"rest"}
    if named - set(params) or ("rest" not in multipliers and named != set(params)):
        raise UsageError(
            f"optim.multipliers names the groups {', '.join(sorted(multipliers))}; the "
            f"model has {', '.join(sorted(params))}, and `rest` stands for those not named"
        )
    return {name: multipliers[name if name in named else "rest"] for name in params}


def layer_multipliers(
    options: OptimOptions, params: dict[str, Any], stage_of: Callable[[str], int] | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """The group of every parameter, a tree of their names, and the multiplier of every group.

    Groups are the top-level modules; with a `layer_decay` d other than 1, in the place of the
    backbone its stages, `features/0` the stem. That of stage k of the last, n, has the backbone's
    multiplier times d^(n - k).

    Args:
        stage_of: the backbone's, see `mlic_jax.models.backbones`.

    Raises:
        UsageError: see `group_multipliers`; or there is a `layer_decay`, and no `stage_of`.
    """
    multipliers = group_multipliers(options, params)
    labels = {name: jax.tree.map(lambda _, name=name: name, params[name]) for name in params}
    if options.layer_decay == 1 or BACKBONE not in params:
        return labels, multipliers
    if stage_of is None:
        raise UsageError(
            f"optim.layer_decay is {options.layer_decay}, and this backbone does not tell how deep "
            "its modules are: leave it 1, or give it a method `stage_of`"
        )
    of_backbone, last = multipliers.pop(BACKBONE), max(map(stage_of, params[BACKBONE]))
    for module, subtree in params[BACKBONE].items():
        stage = stage_of(module)
        name = f"{BACKBONE}/{stage}"
        multipliers[name] = of_backbone * options.layer_decay ** (last - stage)
        labels[BACKBONE][module] = jax.tree.map(lambda _, name=name: name, subtree)
    return labels, multipliers


def without_biases_and_norms(params: Any) -> Any:
    """Which parameters are neither a bias, nor of a normalisation, nor positions: True of each.

    Those of one axis are one or the other, or a token; biases of attention have two.
    """

    def decays(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim > 1 and path[-1].key not in ("bias", "positions")

    return jax.tree_util.tree_map_with_path(decays, params)


def moved_average(average: Any, variables: Any, step: jax.Array, decay: float) -> Any:
    """The exponential moving average of variables, after one more step.

    The decay is min(`decay`, (1 + t) / (10 + t)) in step t: the first steps, which start from
    fresh weights, are soon forgotten. What does not move is exactly its average.

    Args:
        average: before the step; before the first the variables themselves.
        variables: after the step, in the same tree.
        step: int32 `[]`, t, from 0 on.
        decay: in (0, 1).
    """
    share = jnp.maximum(1 - decay, 9 / (10 + step.astype(jnp.float32)))

    def of(old: jax.Array, new: jax.Array) -> jax.Array:
        # As it is where nothing moved: a sum would make 0 of a -0, and a backbone another one.
        return jnp.where(new == old, old, old + share.astype(old.dtype) * (new - old))

    return jax.tree.map(of, average, variables)


def create_optimizer(
    options: OptimOptions,
    params: dict[str, Any],
    schedule: optax.Schedule,
    stage_of: Callable[[str], int] | None = None,
) -> optax.GradientTransformation:
    """The update rule of every named group, its rate that of the schedule times a multiplier.

    `sgd` adds the decay to the gradient, then takes momentum (Nesterov's, if `nesterov` is set),
    then the rate, as PyTorch does; `adam` adds it to the gradient too, `adamw` decouples it. A
    multiplier of 0 freezes a group. With `layer_decay` each stage of the backbone is a group, see
    `layer_multipliers`. `clip_norm` shortens the gradient of all groups together before anything
    else.

    Args:
        params: the parameter tree; a group is a top-level module of it.
        schedule: of the rate.
        stage_of: what a `layer_decay` asks of the backbone.

    Raises:
        UsageError: the groups do not cover the model's top-level modules exactly; or see
            `layer_multipliers`.
    """
    labels, multipliers = layer_multipliers(options, params, stage_of)
    decayed = None if options.decay_biases_and_norms else without_biases_and_norms

    def rule(multiplier: float) -> optax.GradientTransformation:
        if not multiplier:
            return optax.set_to_zero()
        decay = optax.add_decayed_weights(options.weight_decay, decayed)
        rate = optax.scale_by_learning_rate(lambda step: multiplier * schedule(step))
        if options.name == "adamw":
            return optax.chain(optax.scale_by_adam(), decay, rate)
        if options.name == "adam":
            return optax.chain(decay, optax.scale_by_adam(), rate)
        return optax.chain(decay, optax.trace(options.momentum, options.nesterov), rate)

    groups = {name: rule(multiplier) for name, multiplier in multipliers.items()}
    optimizer = optax.partition(groups, labels)
    if options.clip_norm:
        return optax.chain(optax.clip_by_global_norm(options.clip_norm), optimizer)
    return optimizer
