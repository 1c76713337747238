"""SGD as PyTorch means it (or AdamW), with named groups of parameters and rates in epochs."""

import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mlic_jax.errors import UsageError

logger = logging.getLogger(__name__)


# How the rate follows the size of the batch, from that of `optim.reference_batch`: not, in
# proportion (Goyal et al. 2017), or with its root (Krizhevsky 2014).
RATE_SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}


def rate_scale(config: ConfigDict, batch_size: int, num_classes: int) -> float:
    """What the rate of `config.optim` is multiplied with for such a batch and so many classes.

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

    AdamW's moves do not depend on the scale of the loss.

    Args:
        config: `config.optim`.
    """
    scale = RATE_SCALINGS[config.scaling](batch_size / config.reference_batch)
    if config.name == "sgd" and config.reference_classes:
        scale *= num_classes / config.reference_classes
    return scale


def create_schedule(
    config: ConfigDict, steps_per_epoch: int, epochs: int, scale: float = 1.0
) -> optax.Schedule:
    """The learning rate of a step, before any group's multiplier.

    Args:
        config: `config.optim`.
        scale: of all rates, see `rate_scale`.
    """
    rate = scale * config.learning_rate
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        steps = max(epochs * steps_per_epoch - warmup, 1)
        main = optax.cosine_decay_schedule(rate, steps, alpha=config.floor)
    else:
        drops = {int(epoch * steps_per_epoch) - warmup: 0.1 for epoch in config.milestones}
        main = optax.piecewise_constant_schedule(rate, drops)
    if warmup:
        rise = optax.linear_schedule(rate / warmup, rate, warmup)
        main = optax.join_schedules([rise, main], [warmup])
    # In float32 from here on, where optax would mix integers and floats.
    return lambda step: main(jnp.asarray(step, jnp.float32))


def group_multipliers(config: ConfigDict, params: dict) -> dict[str, float]:
    """The multiplier of every top-level module of `params`, from `config.optim`.

    Raises:
        UsageError: a group is no module, or a module is in no group.
    """
    multipliers = dict(config.multipliers)
    rest = multipliers.pop("rest", None)
    if set(multipliers) - set(params) or (rest is None and set(multipliers) != set(params)):
        raise UsageError(
            f"optim.multipliers names the groups {', '.join(sorted(config.multipliers))}; the "
            f"model has {', '.join(sorted(params))}, and `rest` stands for those not named"
        )
    return {name: multipliers.get(name, rest) for name in params}


def create_optimizer(
    config: ConfigDict, params: dict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The update rule of every named group, its rate that of the schedule times a multiplier.

    `sgd` adds the decay to the gradient, then takes momentum (Nesterov's, if `nesterov` is set),
    then the rate, as PyTorch does;
    `adamw` decouples the decay. A multiplier of 0 freezes a group. `clip_norm` shortens the
    gradient of all groups together before anything else.

    Args:
        config: `config.optim`.
        params: the parameter tree; a group is a top-level module of it.
        schedule: of the rate.

    Raises:
        UsageError: the groups do not cover the model's top-level modules exactly.
    """
    multipliers = group_multipliers(config, params)
    for name in sorted(params):
        size = sum(leaf.size for leaf in jax.tree.leaves(params[name]))
        logger.info("Group %s: %d parameters, rate x %g", name, size, multipliers[name])

    def rule(multiplier: float) -> optax.GradientTransformation:
        if not multiplier:
            return optax.set_to_zero()
        decay = optax.add_decayed_weights(config.weight_decay)
        rate = optax.scale_by_learning_rate(lambda step: multiplier * schedule(step))
        if config.name == "adamw":
            return optax.chain(optax.scale_by_adam(), decay, rate)
        return optax.chain(decay, optax.trace(config.momentum, config.nesterov), rate)

    labels = {name: jax.tree.map(lambda _, name=name: name, params[name]) for name in params}
    groups = {name: rule(multiplier) for name, multiplier in multipliers.items()}
    optimizer = optax.partition(groups, labels)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
