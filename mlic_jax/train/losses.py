"""What training minimises, from logits."""

from dataclasses import dataclass

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32

from mlic_jax.data.label_policy import LabelPolicy
from mlic_jax.models.arrays import Outputs
from mlic_jax.options import Options

# Bool, or in [0, 1].
Targets = Bool[Array, "B C"] | Float[Array, "B C"]


@dataclass(frozen=True)
class LossOptions(Options):
    """`config.loss`, where every option is explained."""

    label_policy: LabelPolicy
    label_smoothing: float


def smooth_targets(present: Bool[Array, "*axes"], smoothing: float) -> Float32[Array, "*axes"]:
    """Targets of labels: 1 - s / 2 where present, s / 2 where not.

    Label smoothing (Szegedy et al. 2016) of two classes, as every label is one of present or not.

    Args:
        smoothing: s, in [0, 1); 0 changes nothing.
    """
    return jnp.where(present, jnp.float32(1 - smoothing / 2), jnp.float32(smoothing / 2))


def binary_cross_entropy(
    logits: Float[Array, "B C"], targets: Targets, known: Bool[Array, "B C"]
) -> Float[Array, ""]:
    """Mean binary cross entropy over what is known.

    Args:
        known: where False (an ignored label, a padded row) the gradient is 0.

    Returns:
        0 where nothing is known.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    count = jnp.sum(known.astype(logits.dtype))
    return jnp.sum(jnp.where(known, losses, 0.0)) / jnp.maximum(count, 1)


def two_stream_loss(
    outputs: Outputs, targets: Targets, known: Bool[Array, "B C"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
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
    outputs: Outputs, targets: Targets, known: Bool[Array, "B C"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of any model, told by what it outputs.

    Args:
        outputs: with `local_logits` those of MCAR; with `group_loss` those of MSRN, whose loss is
            the cross entropy of `logits` plus that; with neither, the cross entropy is all.
        known: as for `binary_cross_entropy`.

    Returns:
        The loss, and its parts by name for the log (none where it has only one).
    """
    if "local_logits" in outputs:
        return two_stream_loss(outputs, targets, known)
    of_labels = binary_cross_entropy(outputs["logits"], targets, known)
    if "group_loss" not in outputs:
        return of_labels, {}
    parts = {"loss_labels": of_labels, "loss_group": outputs["group_loss"]}
    return of_labels + outputs["group_loss"], parts
