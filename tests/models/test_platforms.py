"""One trace, lowered for every platform: accelerators get plain convolutions and products."""

import re

import jax
import jax.numpy as jnp
import pytest

from mlic_jax.models import create_backbone
from mlic_jax.models.ops.regions import crop_and_resize
from mlic_jax.models.ops.spatial_attention import spatial_attention

ACCELERATORS = ("cuda", "tpu")
OPERATIONS = (
    *("convolution", "dot_general", "gather", "reduce_window", "select_and_scatter"),
    *("bitcast_convert", "exponential"),
)


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def counts_of(function, *arguments):
    """platform -> operation -> how many there are in the program for it, of a single trace."""
    trace = jax.jit(function).trace(*arguments)

    def of(platform):
        program = trace.lower(lowering_platforms=(platform,)).as_text()
        names = re.findall(r"(?<!#)stablehlo\.(\w+)", program)
        return {name: names.count(name) for name in (*names, *OPERATIONS)}

    return {platform: of(platform) for platform in ("cpu", *ACCELERATORS)}


@pytest.mark.parametrize(
    ("name", "remat"), [("resnet10", "none"), ("resnet10", "block"), ("mobilenet_v2", "none")]
)
def test_a_backbone_on_accelerators_is_made_of_plain_convolutions(name, remat):
    backbone = create_backbone(name, width=0.25, remat=remat)
    images = zeros(2, 64, 64, 3)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), images)
    params, statistics = variables["params"], variables["batch_stats"]
    layers = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(params))

    def loss(params, statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        groups = jnp.zeros(2, jnp.int32)  # to deal the rows takes other operations
        maps, _ = backbone.apply(variables, images, True, groups, mutable=["batch_stats"])
        return jnp.sum(maps[-1])

    forward = counts_of(loss, params, statistics, images)
    gradient = counts_of(jax.grad(loss), params, statistics, images)
    pools = name == "resnet10"
    for platform in ACCELERATORS:
        assert forward[platform]["convolution"] == layers
        assert forward[platform]["reduce_window"] == pools
        # One for the gradient of every kernel, and of every input but the images.
        needed = 3 * layers - 1
        if remat == "none":
            assert gradient[platform]["convolution"] == needed
        else:
            assert needed < gradient[platform]["convolution"] <= needed + layers
        assert gradient[platform]["select_and_scatter"] == pools
        assert gradient[platform]["dot_general"] == 0
    assert gradient["cpu"]["select_and_scatter"] == 0
    if name == "mobilenet_v2":
        first = 1  # all others are depthwise, or products
        assert forward["cpu"]["convolution"] == first
        assert forward["cpu"]["dot_general"] > 0


def test_crops_on_accelerators_are_products():
    counts = counts_of(crop_and_resize, zeros(2, 32, 32, 3), zeros(2, 3, 4, dtype=jnp.int32))
    for platform in ACCELERATORS:
        assert (counts[platform]["gather"], counts[platform]["dot_general"]) == (0, 2)
    assert (counts["cpu"]["gather"], counts["cpu"]["dot_general"]) == (4, 0)


def test_attention_on_accelerators_takes_their_own_exponential():
    def gradients(features, embeddings):
        value, pullback = jax.vjp(spatial_attention, features, embeddings)
        return value, pullback(value)

    counts = counts_of(gradients, zeros(2, 30, 8), zeros(6, 8))
    for platform in ACCELERATORS:
        assert counts[platform]["bitcast_convert"] == 0 < counts[platform]["exponential"]
    assert counts["cpu"]["bitcast_convert"] > 0
