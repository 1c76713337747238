"""CSRA: class-specific residual attention (Zhu and Wu, ICCV 2021, arXiv 2108.02456)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mlic_jax.models.arrays import Float32Or64, Outputs
from mlic_jax.models.layers import uniform
from mlic_jax.models.precision import at_least_float32

# Of so many heads, the temperatures (paper, section 3.4); None is infinite: the maximum.
TEMPERATURES: dict[int, tuple[float | None, ...]] = {
    1: (1,),
    2: (1, None),
    4: (1, 2, 4, None),
    6: (1, 2, 3, 4, 5, None),
    8: (1, 2, 3, 4, 5, 6, 7, None),
}


class CSRA(nn.Module):
    """Scores of every position, averaged, and added to it an average that each class attends to.

    Attributes:
        num_classes: C.
        num_heads: H, a key of `TEMPERATURES`; their logits are summed. Published: 1 for VOC, 4 to 6
            for COCO.
        residual: the weight of the attention, `lambda` in the paper: 0.1 for VOC, 0.4 to 0.5 for
            COCO.
    """

    num_classes: int
    num_heads: int = 1
    residual: float = 0.1

    @nn.compact
    def __call__(self, maps: Float[Array, "B h w F"], train: bool = False) -> Outputs:
        """Scores the last maps of a backbone.

        Returns:
            `logits`, float32 `[B, C]`; and `class_maps`, float32 `[B, h, w, C]`: the spatial
            softmax of the first head, divided by its maximum.
        """
        batch, height, width, inputs = maps.shape
        maps = at_least_float32(maps).reshape(batch, height * width, inputs)
        kernel = self.param("kernel", uniform(inputs), (self.num_heads, inputs, self.num_classes))
        unit = kernel / jnp.linalg.norm(kernel, axis=1, keepdims=True)
        scores = jnp.einsum("bpf,hfc->hbpc", maps, unit, precision=lax.Precision.HIGHEST)
        of_heads = [
            jnp.mean(of_head, axis=1) + self.residual * attended(of_head, temperature)
            for of_head, temperature in zip(scores, TEMPERATURES[self.num_heads], strict=True)
        ]
        likely = jnp.exp(scores[0] - jnp.max(scores[0], axis=1, keepdims=True))
        return {
            "logits": jnp.sum(jnp.stack(of_heads), axis=0),
            "class_maps": likely.reshape(batch, height, width, self.num_classes),
        }


def attended(
    scores: Float32Or64[Array, "B P C"], temperature: float | None
) -> Float32Or64[Array, "B C"]:
    """The scores averaged over positions P by their softmax at a temperature.

    Args:
        temperature: multiplies the scores in the softmax; None: the maximum, to which it tends.
    """
    if temperature is None:
        return jnp.max(scores, axis=1)
    return jnp.sum(nn.softmax(temperature * scores, axis=1) * scores, axis=1)
