"""Attention of tokens to each other, as transformers have it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# What cuDNN's fused attention takes; see `jax.nn.dot_product_attention`.
_FUSED_DTYPES = (jnp.bfloat16, jnp.float16)
_FUSED_FEATURES = 128  # of a head, at most
_FUSED_CAPABILITY = 8.0  # of an NVIDIA GPU, at least


def attend(
    query: Float[Array, "B T N F"], key: Float[Array, "B S N F"], value: Float[Array, "B S N F"]
) -> Float[Array, "B T N F"]:
    """The means of `value` over all tokens, weighed by softmax(query key / sqrt(F)), by heads N.

    The softmax is float32 or wider. On a GPU it is cuDNN's fused attention, which never stores the
    weights; elsewhere, and for what that does not take, such as float32, `plain`.
    """
    if not _is_fused(query):
        return plain(query, key, value)
    fused = partial(jax.nn.dot_product_attention, implementation="cudnn")
    return lax.platform_dependent(query, key, value, cuda=fused, default=plain)


def plain(
    query: Float[Array, "B T N F"], key: Float[Array, "B S N F"], value: Float[Array, "B S N F"]
) -> Float[Array, "B T N F"]:
    """The definition; JAX's own has a softmax in float32 even of float64."""
    wide = np.promote_types(query.dtype, np.float32)
    scores = jnp.einsum("btnf,bsnf->bnts", query, key, preferred_element_type=wide)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnf->btnf", weights, value)


def _is_fused(query: Array) -> bool:
    """Whether a GPU is there whose cuDNN takes such arrays: without one it cannot be traced."""
    features = query.shape[-1]
    if query.dtype not in _FUSED_DTYPES or features % 8 or features > _FUSED_FEATURES:
        return False
    capability = getattr(jax.devices()[0], "compute_capability", "")  # "9.0"; of AMD's "gfx90a"
    return capability[:1].isdigit() and float(capability) >= _FUSED_CAPABILITY
