"""What training minimises, from logits."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32

from mlic_jax.data.label_policy import LabelPolicy
from mlic_jax.models.arrays import Outputs
from mlic_jax.options import Options
from mlic_jax.train import label_losses
from mlic_jax.train.label_losses import LabelLoss

# Bool, or in [0, 1].
Targets = Bool[Array, "B C"] | Float[Array, "B C"]


@dataclass(frozen=True)
class LossOptions(Options):
    """`config.loss`, where every option is explained."""

    label_policy: LabelPolicy
    label_smoothing: float
    name: str
    reduction: str
    class_weights: str
    gamma: float
    alpha: float
    gamma_present: float
    gamma_absent: float
    clip: float
    tau: float
    large: str
    delta: float

    @property
    def corrects_permanently(self) -> bool:
        """Whether some labels are present from some step on, whatever was given (LL-Cp)."""
        return (self.name, self.large) == ("large_loss", "correct_permanently")


# Logits, targets and what is known of them to their mean cost.
MeanLoss = Callable[[Float[Array, "B C"], Targets, Bool[Array, "B C"]], Float[Array, ""]]


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
    costs = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    return mean_over_known(costs, known)


def mean_over_known(costs: Float[Array, "B C"], known: Bool[Array, "B C"]) -> Float[Array, ""]:
    """The mean cost of the labels that are known; 0 where none is."""
    count = jnp.sum(known.astype(costs.dtype))
    return jnp.sum(jnp.where(known, costs, 0.0)) / jnp.maximum(count, 1)


def mean_loss(
    options: LossOptions,
    epoch: Int32[Array, ""],
    class_weights: Float32[Array, " C"] | None = None,
    axis: str | None = None,
) -> MeanLoss:
    """The mean cost of labels as the options say, in an epoch, of which the first is 0.

    Args:
        axis: see `large_losses`.
    """
    if options.name == "bce" and class_weights is None:
        return binary_cross_entropy
    loss = label_loss(options)

    def of_labels(logits: Array, targets: Array, known: Array) -> Array:
        present, absent = loss.present(logits), loss.absent(logits)
        shares = targets.astype(logits.dtype)
        if options.name == "splc":
            missing = label_losses.missing_as_present(logits, shares, options.tau)
            shares = jnp.where(epoch >= 1, missing, shares)
        costs = shares * present + (1 - shares) * absent
        if options.name == "large_loss" and not options.corrects_permanently:
            given_absent = known & (shares < 0.5)
            share = jnp.minimum(epoch.astype(costs.dtype) * options.delta, 1)
            fixed = jax.lax.stop_gradient(costs)
            large = label_losses.large_losses(fixed, given_absent, share, axis)
            costs = jnp.where(large, 0 if options.large == "reject" else present, costs)
        if class_weights is not None:
            costs = costs * class_weights[None]
        return mean_over_known(costs, known)

    return of_labels


def newly_present(
    options: LossOptions,
    epoch: Int32[Array, ""],
    outputs: Outputs,
    targets: Targets,
    known: Bool[Array, "B C"],
    axis: str | None = None,
) -> Bool[Array, "B C"]:
    """LL-Cp: which labels that are given as absent are present from now on (arXiv 2206.03740).

    From the second epoch on the share `delta` of them that costs most, in all streams together.

    Args:
        epoch, axis: see `mean_loss`.
        outputs: see `total_loss`.
    """
    streams = ("global_logits", "local_logits") if "local_logits" in outputs else ("logits",)
    cost = label_losses.cross_entropy().absent
    costs = jnp.stack([cost(jax.lax.stop_gradient(outputs[name])) for name in streams])
    given_absent = known & (targets.astype(costs.dtype) < 0.5)
    share = jnp.where(epoch >= 1, jnp.float32(options.delta), 0)
    return label_losses.large_losses(jnp.sum(costs, axis=0), given_absent, share, axis)


def label_loss(options: LossOptions) -> LabelLoss:
    """What a label costs, by the name of the loss."""
    if options.name == "focal":
        return label_losses.focal(options.gamma, options.alpha)
    if options.name == "asl":
        return label_losses.asymmetric(options.gamma_present, options.gamma_absent, options.clip)
    if options.name == "hill":
        return label_losses.hill(options.gamma)
    if options.name == "splc":
        present = label_losses.hill(options.gamma).present
        return LabelLoss(present, label_losses.cross_entropy().absent)
    return label_losses.cross_entropy()


def two_stream_loss(
    outputs: Outputs,
    targets: Targets,
    known: Bool[Array, "B C"],
    of_labels: MeanLoss = binary_cross_entropy,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """MCAR's loss, that of the global and that of the local scores (TIP 2021: cross entropies).

    Returns:
        The sum, and its two parts by name for the log.
    """
    parts = {
        "loss_global": of_labels(outputs["global_logits"], targets, known),
        "loss_local": of_labels(outputs["local_logits"], targets, known),
    }
    return parts["loss_global"] + parts["loss_local"], parts


def total_loss(
    outputs: Outputs,
    targets: Targets,
    known: Bool[Array, "B C"],
    of_labels: MeanLoss = binary_cross_entropy,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of any model, told by what it outputs.

    Args:
        outputs: with `local_logits` those of MCAR; with `group_loss` those of MSRN, whose loss is
            the loss of `logits` plus that; with neither, the loss of `logits` is all.
        known: as for `binary_cross_entropy`.
        of_labels: of one stream, see `mean_loss`.

    Returns:
        The loss, and its parts by name for the log (none where it has only one).
    """
    if "local_logits" in outputs:
        return two_stream_loss(outputs, targets, known, of_labels)
    loss = of_labels(outputs["logits"], targets, known)
    if "group_loss" not in outputs:
        return loss, {}
    parts = {"loss_labels": loss, "loss_group": outputs["group_loss"]}
    return loss + outputs["group_loss"], parts
