"""What a single label costs: the losses of the field, from a logit and a target.

All are finite, and so are their gradients, for logits up to 1e4 either way in float32. With
p = sigmoid(x), a target y costs y times what a label that is present costs and 1 - y times what an
absent one does. Published values are the defaults of `mlic_jax/config.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Integer

# Of one label or of many.
Values = Float[Array, "*labels"]

HILL_PEAK = 1.5  # lambda: the negative loss falls again from p = 1 on
HILL_MARGIN = 1.0  # m: positives count as if their logits were lower by so much


class LabelLoss(NamedTuple):
    """What a label costs, of logits: where it is present, and where it is absent."""

    present: Callable[[Values], Values]
    absent: Callable[[Values], Values]


def cross_entropy() -> LabelLoss:
    """Binary cross entropy: -log p and -log(1 - p)."""
    return LabelLoss(lambda x: -log_p(x), lambda x: -log_p(-x))


def focal(gamma: float, alpha: float) -> LabelLoss:
    """Labels that are well told count less (Lin et al. 2017, arXiv 1708.02002).

    Args:
        gamma: at least 0; 2 as published.
        alpha: the weight of what is present, 1 - alpha of what is absent; 0.25 as published.
    """

    def cost(x: Values) -> Values:
        return -jnp.exp(gamma * log_p(-x)) * log_p(x)

    return LabelLoss(lambda x: alpha * cost(x), lambda x: (1 - alpha) * cost(-x))


def asymmetric(gamma_present: float, gamma_absent: float, clip: float) -> LabelLoss:
    """ASL: absent labels that are well told count far less, or not (arXiv 2009.14119).

    The focusing weights carry no gradient, as in the code that its authors trained with.

    Args:
        gamma_present: 0 as published.
        gamma_absent: 4 as published, 2 in Query2Label.
        clip: m, by which probabilities of absent labels are lowered first; 0.05 as published.
    """

    def present(x: Values) -> Values:
        return -lax.stop_gradient(jnp.exp(gamma_present * log_p(-x))) * log_p(x)

    def absent(x: Values) -> Values:
        if clip == 0:
            return -lax.stop_gradient(jnp.exp(gamma_absent * log_p(x))) * log_p(-x)
        shifted = jnp.maximum(jax.nn.sigmoid(x) - clip, 0)
        log_rest = jnp.log(jnp.minimum(jax.nn.sigmoid(-x) + clip, 1))
        return -lax.stop_gradient(shifted**gamma_absent) * log_rest

    return LabelLoss(present, absent)


def hill(gamma: float) -> LabelLoss:
    """Absent labels that look present count less: they may be missing (arXiv 2112.07368).

    Present: focal loss without alpha, of logits lower by `HILL_MARGIN`. Absent: (1.5 - p) p^2.

    Args:
        gamma: 2 as published.
    """

    def absent(x: Values) -> Values:
        p = jax.nn.sigmoid(x)
        return (HILL_PEAK - p) * p**2

    return LabelLoss(lambda x: 2 * focal(gamma, 0.5).present(x - HILL_MARGIN), absent)


def missing_as_present(x: Values, targets: Values, tau: float) -> Values:
    """SPLC: the targets with those above a probability of `tau` as present (arXiv 2112.07368).

    Args:
        x: logits.
        tau: 0.6 as published.
    """
    return jnp.where(lax.stop_gradient(jax.nn.sigmoid(x)) > tau, 1, targets)


def large_losses(
    costs: Float[Array, "B C"],
    absent: Bool[Array, "B C"],
    share: Float[Array, ""],
    axis: str | None = None,
) -> Bool[Array, "B C"]:
    """Which labels that are given as absent are among the costliest (arXiv 2206.03740).

    Args:
        costs: of each label.
        absent: of which labels: known and given as absent.
        share: of them, in [0, 1]; rounded down to a number of labels.
        axis: of the devices that have other rows, of all of which it is the share; None: there are
            none.

    Returns:
        Those labels; of equal costs at the limit none.
    """
    candidates, number = jnp.where(absent, costs, -jnp.inf), jnp.sum(absent, dtype=jnp.float32)
    if axis is not None:
        candidates, number = lax.all_gather(candidates, axis), lax.psum(number, axis)
    ranked = jnp.sort(candidates.ravel(), descending=True)
    count = jnp.floor(share * number).astype(jnp.int32)
    limit = jnp.append(ranked, -jnp.inf)[count]  # the costliest that is still kept
    return absent & (costs > limit) & (count > 0)


def balanced_weights(
    positives: Integer[Array, " C"], images: int, rule: str
) -> Float32[Array, " C"]:
    """Weights of the classes, rare ones more, with the mean 1 after they are clipped to 0.1 to 10.

    Args:
        positives: how many images show each class.
        images: in all.
        rule: `inverse`, of the frequency; or `effective`, of the number of images that are
            different, (1 - b^n) / (1 - b) with b = 1 - 1 / images (Cui et al. 2019, arXiv
            1901.05555).
    """
    counts = jnp.maximum(positives.astype(jnp.float32), 1)
    if rule == "effective":
        counts = -jnp.expm1(counts * jnp.log1p(-1 / jnp.maximum(images, 2)))
    weights = 1 / counts
    weights = jnp.clip(weights / jnp.mean(weights), 0.1, 10)
    return weights / jnp.mean(weights)


def log_p(x: Values) -> Values:
    """The logarithm of sigmoid(x)."""
    return jax.nn.log_sigmoid(x)
