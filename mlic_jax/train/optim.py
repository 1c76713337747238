"""SGD as PyTorch means it (or AdamW), with named groups of parameters and rates in epochs."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mlic_jax.errors import UsageError

# How the rate follows the size of the batch, from that of `optim.reference_batch`: not, in
# proportion (Goyal et al. 2017), or with its root (Krizhevsky 2014).
RATE_SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}


def batch_scale(config: ConfigDict, batch_size: int) -> float:
    """What the rate of `config.optim` is multiplied with for such a batch."""
    return RATE_SCALINGS[config.scaling](batch_size / config.reference_batch)


def create_schedule(
    config: ConfigDict, steps_per_epoch: int, epochs: int, scale: float = 1.0
) -> optax.Schedule:
    """The learning rate of a step, before any group's multiplier.

    Args:
        config: `config.optim`.
        scale: of all rates, see `batch_scale`.
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
