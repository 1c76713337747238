"""The operation against its formula, element by element; its memory; numbers that strain it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlic_jax.models.ops.spatial_attention import POSITIONS, exp_of_negative, spatial_attention

pytestmark = pytest.mark.numerical
EPSILON = np.finfo(np.float32).eps


@pytest.fixture(params=["cpu", "default"])
def platform(request, monkeypatch):
    """The formulation of CPUs, and that of all others; they are ordinary XLA and run anywhere."""

    def choose(*arguments, **formulations):
        return formulations[request.param](*arguments)

    monkeypatch.setattr(lax, "platform_dependent", choose)


def literal(features, embeddings):
    """Every mean alone: of one image, one label, one channel, over the positions."""
    out = np.zeros((len(features), *embeddings.shape))
    for b, c, d in np.ndindex(out.shape):
        f = features[b, :, d]
        weights = np.exp(embeddings[c, d] * f - np.max(embeddings[c, d] * f))
        out[b, c, d] = np.sum(weights / np.sum(weights) * f)
    return out


def naive(features, embeddings):
    """The formula with everything materialised; JAX derives its gradients."""
    f = features[:, None]
    return jnp.sum(jax.nn.softmax(f * embeddings[None, :, None], axis=2) * f, axis=2)


def random_inputs(positions, batch=2, labels=6, channels=3):
    rng = np.random.default_rng(positions)
    features = rng.normal(1, 2, (batch, positions, channels))
    embeddings = rng.normal(0, 2, (labels, channels))
    embeddings[0, 0] = 0.0
    return features, embeddings, rng.normal(0, 1, (batch, labels, channels))


def compiled(function, *inputs):
    """(features, embeddings, cotangent) -> the value and both gradients, for inputs like these."""

    def run(features, embeddings, cotangent):
        value, pullback = jax.vjp(function, features, embeddings)
        return (value, *pullback(cotangent))

    return jax.jit(run).lower(*inputs).compile()


def value_and_gradients(function, *inputs):
    return compiled(function, *inputs)(*inputs)


def float32_bounds(features, embeddings, cotangent):
    """How far from exact value and gradients may be in float32, whatever computes them.

    A sum of P terms, added in any order, is off by at most P / 2 epsilons of the sum of their
    sizes; and a weight exp(x), x = e f - max, by 4 epsilons of the largest e f: for the rounding of
    e f, of its maximum, of their difference and of its product with log2 e. The rest follows from
    the formulas, with |f| and the distance of f from a mean of it at most F and 2 F.
    """
    features, embeddings, cotangent = (
        np.asarray(x, np.float64) for x in (features, embeddings, cotangent)
    )
    highest, lowest = (edge(features, axis=1, keepdims=True) for edge in (np.max, np.min))
    f = features - (highest + lowest) / 2
    far = np.abs(f).max(axis=1, keepdims=True)  # [B, 1, D]: F
    products = embeddings[:, None] * f[:, None]  # [B, C, P, D]
    lost = EPSILON * (f.shape[1] / 2 + 4 * np.abs(products).max(axis=2))  # of a sum of weights
    weights = np.exp(products - products.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    strength = np.abs(cotangent) * lost
    slope = strength * (2 + 7 * np.abs(embeddings) * far)
    return (
        2 * lost * far + EPSILON * np.abs(features).max(axis=1, keepdims=True),
        (slope[:, :, None] * weights).sum(axis=1),
        (6 * strength * far**2).sum(axis=0),
    )


def assert_within(got, want, bound):
    error = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64))
    np.testing.assert_array_less(error, bound)


@pytest.mark.parametrize("positions", [1, 7, 30])
def test_exact_in_float64(platform, positions):
    features, embeddings, cotangent = random_inputs(positions)
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in (features, embeddings, cotangent)]
        ours = value_and_gradients(spatial_attention, *inputs)
        expected = value_and_gradients(naive, *inputs)
    np.testing.assert_allclose(ours[0], literal(features, embeddings), rtol=0, atol=1e-12)
    for got, want in zip(ours, expected, strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("offset", [0.0, 300.0], ids=["centred", "far_from_zero"])
def test_float32_keeps_to_float64(platform, offset):
    features, embeddings, cotangent = random_inputs(784, channels=5)
    features = (features + offset).astype(np.float32)
    embeddings, cotangent = embeddings.astype(np.float32), cotangent.astype(np.float32)
    ours = value_and_gradients(spatial_attention, features, embeddings, cotangent)
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x, jnp.float64) for x in (features, embeddings, cotangent)]
        expected = value_and_gradients(naive, *inputs)
    bounds = float32_bounds(features, embeddings, cotangent)
    for got, want, bound in zip(ours, expected, bounds, strict=True):
        assert got.dtype == np.float32
        assert_within(got, want, bound)


def test_long_sums_do_not_pile_up_rounding():
    """The gradient at e = 0 is a plain variance, here of 90000 positions.

    Of the formulation for CPUs, whose order of adding is its own. Elsewhere it is the compiler's.
    """
    positions = 90000
    # A square that float32 cannot add to a large sum without rounding it, and always down.
    features = np.full((1, positions, 1), np.float32(1 + 2**-9))
    features[:, ::2] *= -1
    square = np.float64(features[0, 0, 0]) ** 2
    in_turn = np.add.accumulate(np.square(features[0, :, 0]))[-1]
    variance = jax.grad(lambda e: jnp.sum(spatial_attention(jnp.asarray(features), e)))
    variance = variance(jnp.zeros((1, 1)))
    # No term takes part in more additions: inside a step, of the steps of a block, of the blocks.
    additions = POSITIONS + 2 * math.isqrt(positions // POSITIONS) + 4
    bound = EPSILON * additions  # half an epsilon each, above and below the fraction
    np.testing.assert_allclose(variance[0, 0], square, rtol=bound)
    assert abs(in_turn / positions / square - 1) > 20 * bound, "one sum in turn is seen to be bad"


def test_bfloat16_is_summed_in_float32(platform):
    features, embeddings, cotangent = (
        jnp.asarray(x, jnp.bfloat16) for x in random_inputs(400, channels=5)
    )
    wide = [x.astype(jnp.float32) for x in (features, embeddings, cotangent)]
    value, *gradients = value_and_gradients(spatial_attention, features, embeddings, wide[2])
    expected, *expected_gradients = value_and_gradients(spatial_attention, *wide)
    assert value.dtype == jnp.float32
    # Two computations in float32, and the rounding of the gradients to the 8 bits of bfloat16.
    value_bound, *bounds = (2 * bound for bound in float32_bounds(*wide))
    assert_within(value, expected, value_bound)
    for got, want, bound in zip(gradients, expected_gradients, bounds, strict=True):
        assert got.dtype == jnp.bfloat16
        assert_within(got, want, bound + 2**-8 * np.abs(want))


def test_one_position_can_take_all_the_weight(platform):
    features = np.random.default_rng(1).normal(0, 100, (2, 25, 6)).astype(np.float32)
    embeddings = np.repeat(np.float32([[3e4], [-3e4]]), 6, axis=1)
    value, *gradients = value_and_gradients(
        spatial_attention, features, embeddings, np.ones((2, 2, 6), np.float32)
    )
    # Counted from the middle of the range and back: a rounding each, of numbers of its size.
    bound = 4 * EPSILON * np.abs(features).max(axis=1)
    assert_within(value[:, 0], features.max(axis=1), bound)
    assert_within(value[:, 1], features.min(axis=1), bound)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_no_weight_of_every_pair_is_stored(platform):
    batch, positions, labels, channels = 2, 256, 40, 32
    inputs = random_inputs(positions, batch, labels, channels)
    inputs = [jnp.asarray(x, jnp.float32) for x in inputs]

    def temporary_bytes(function):
        return compiled(function, *inputs).memory_analysis().temp_size_in_bytes

    pairs = 4 * batch * positions * labels * channels
    assert temporary_bytes(naive) > pairs  # the measure sees what it should
    assert temporary_bytes(spatial_attention) < pairs / 8


def test_several_devices_agree_with_one():
    """Images over all eight: the gradient of the embeddings is summed over them."""
    inputs = [np.asarray(x, np.float32) for x in random_inputs(30, batch=8)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    layouts = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], [], ["data"])]
    several = value_and_gradients(spatial_attention, *jax.device_put(inputs, layouts))
    assert several[0].sharding.num_devices == 8
    one = value_and_gradients(spatial_attention, *inputs)
    for got, want, bound in zip(several, one, float32_bounds(*inputs), strict=True):
        assert_within(got, want, 2 * bound)


def test_the_exponential_of_negative_numbers():
    x = np.concatenate([np.linspace(-87, 0, 100_001), [-0.0, -1e-30]]).astype(np.float32)
    got = np.asarray(exp_of_negative(jnp.asarray(x)), np.float64)
    expected = np.exp(x.astype(np.float64))
    # Of x log2 e a rounding and that of the constant, which the exponential makes relative errors;
    # and a few of the polynomial.
    assert_within(got, expected, EPSILON * (np.abs(x) + 3) * expected)
    far = exp_of_negative(jnp.float32([-88, -1e4, -np.inf]))
    assert np.all((far >= 0) & (far < 2e-38))
    assert np.isnan(exp_of_negative(jnp.float32(np.nan)))
