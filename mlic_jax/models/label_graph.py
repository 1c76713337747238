"""Labels as nodes of a graph: attention between neighbours, and groups that the labels pool into.

Graph attention after Velickovic et al. (ICLR 2018), groups after DiffPool (Ying et al., NeurIPS
2018), both as MSRN has them. A label graph is small, so everything is float32 at full precision.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from mlic_jax.models.arrays import Float32Or64

GROUP_LOSS_WEIGHT = 1e-4
HIGHEST = lax.Precision.HIGHEST
# Xavier uniform with gain 1.414.
xavier_initializer = nn.initializers.variance_scaling(1.414**2, "fan_avg", "uniform")


class GraphAttention(nn.Module):
    """Every node adds to itself a weighted mean of its neighbours, in new features."""

    features: int

    @nn.compact
    def __call__(
        self, nodes: Float32Or64[Array, "C F"], mask: Bool[Array, "C C"]
    ) -> Float32Or64[Array, "C {self.features}"]:
        """Maps the features of every node to new ones.

        Args:
            mask: i attends to j where [i, j] is True, and every row has a True.
        """
        kernel = self.param("kernel", xavier_initializer, (nodes.shape[-1], self.features))
        attention = self.param("attention", xavier_initializer, (2 * self.features, 1))
        h = jnp.dot(nodes, kernel, precision=HIGHEST)
        # a^T [h_i; h_j] is a sum of one term of i and one of j: no pair is ever concatenated.
        own, other = jnp.split(attention, 2)
        scores = jnp.dot(h, own, precision=HIGHEST) + jnp.dot(h, other, precision=HIGHEST).T
        scores = jnp.where(mask, nn.leaky_relu(scores, 0.2), -jnp.inf)
        return nn.elu(jnp.dot(nn.softmax(scores), h, precision=HIGHEST) + h)


def pool_into_groups(
    nodes: Float32Or64[Array, "C F"], logits: Float32Or64[Array, "C K"]
) -> tuple[Float32Or64[Array, "K F"], Float32Or64[Array, "C K"]]:
    """Soft assignment of every node to groups, and the sums of the nodes under it.

    Args:
        logits: of the assignment.

    Returns:
        The groups and the assignment, whose rows sum to 1.
    """
    assignment = nn.softmax(logits)
    return jnp.dot(assignment.T, nodes, precision=HIGHEST), assignment


def group_loss(
    labels: Float32Or64[Array, "C F"],
    groups: Float32Or64[Array, "K F"],
    assignment: Float32Or64[Array, "C K"],
) -> Float32Or64[Array, ""]:
    """1e-4 times the sum of the labels' distances from the groups that they most belong to.

    Args:
        labels: embeddings.
        groups: embeddings.
        assignment: no gradient flows through the choice of the largest.

    Returns:
        A label that coincides with its group adds neither loss nor gradient.
    """
    squared = jnp.sum(jnp.square(labels - groups[jnp.argmax(assignment, axis=-1)]), axis=-1)
    apart = squared > 0
    # The root of 1 stands in at 0, whose own root has an infinite slope.
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
    return GROUP_LOSS_WEIGHT * jnp.sum(distances)
