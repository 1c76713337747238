"""What training minimises, from logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from mlic_jax.data.label_policy import LabelPolicy
from mlic_jax.options import Options


@dataclass(frozen=True)
class LossOptions(Options):
    """`config.loss`, where every option is explained."""

    label_policy: LabelPolicy
    label_smoothing: float


def smooth_targets(present: jax.Array, smoothing: float) -> jax.Array:
    """Targets float32 `[...]` of bool labels: 1 - s / 2 where present, s / 2 where not.

    Label smoothing (Szegedy et al. 2016) of two classes, as every label is one of present or not.

    Args:
        smoothing: s, in [0, 1); 0 changes nothing.
    """
    return jnp.where(present, jnp.float32(1 - smoothing / 2), jnp.float32(smoothing / 2))


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, known: jax.Array) -> jax.Array:
    """Mean binary cross entropy over what is known.

    Args:
        logits: float32 `[B, C]`.
        targets: `[B, C]`, bool or in [0, 1].
        known: bool `[B, C]`; where False (an ignored label, a padded row) the gradient is 0.

    Returns:
        float32 scalar; 0 where nothing is known.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    count = jnp.sum(known.astype(logits.dtype))
    return jnp.sum(jnp.where(known, losses, 0.0)) / jnp.maximum(count, 1)


def two_stream_loss(
    outputs: dict[str, jax.Array], targets: jax.Array, known: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """MCAR's loss, the cross entropies of the global and of the local scores (TIP 2021).

    Returns:
        The sum, and its two parts by name for the log.
    """
    parts = {
        "loss_global": binary_cross_entropy(outputs["global_logits"], targets, known),
        "loss_local": binary_cross_entropy(outputs["local_logits"], targets, known),
    }
    return parts["loss_global"] + parts["loss_local"], parts


def total_loss(
    outputs: dict[str, jax.Array], targets: jax.Array, known: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of any model, told by what it outputs.

    Args:
        outputs: with `local_logits` those of MCAR; with `group_loss` those of MSRN, whose loss is
            the cross entropy of `logits` plus that; with neither, the cross entropy is all.
        targets: `[B, C]`, bool or in [0, 1].
        known: bool `[B, C]`, as for `binary_cross_entropy`.

    Returns:
        float32 scalar, and its parts by name for the log (none where it has only one).
    """
    if "local_logits" in outputs:
        return two_stream_loss(outputs, targets, known)
    of_labels = binary_cross_entropy(outputs["logits"], targets, known)
    if "group_loss" not in outputs:
        return of_labels, {}
    parts = {"loss_labels": of_labels, "loss_group": outputs["group_loss"]}
    return of_labels + outputs["group_loss"], parts
