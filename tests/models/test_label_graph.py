"""The graph layers against loops over the nodes, and the loss where its slope would be infinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.models.label_graph import GraphAttention, group_loss, pool_into_groups

pytestmark = pytest.mark.numerical

NODES, INPUTS, OUTPUTS = 6, 5, 4


def start(layer, nodes, mask):
    """Variables, drawn by one small program instead of a dozen."""
    return jax.jit(layer.init)(jax.random.key(0, impl="rbg"), nodes, mask)


@pytest.fixture(scope="module")
def nodes():
    return np.random.default_rng(0).normal(0, 1, (NODES, INPUTS)).astype(np.float32)


@pytest.fixture(scope="module")
def mask():
    """Directed edges, and every node's own; node 5 has no other."""
    mask = np.random.default_rng(1).random((NODES, NODES)) < 0.4
    mask[5], mask[0, 1], mask[1, 0] = False, True, False
    return mask | np.eye(NODES, dtype=bool)


@pytest.fixture(scope="module")
def variables(nodes, mask):
    return start(GraphAttention(OUTPUTS), nodes, mask)


def literal_attention(params, nodes, mask):
    """Node by node and neighbour by neighbour, in float64."""
    kernel = np.asarray(params["kernel"], np.float64)
    attention = np.asarray(params["attention"], np.float64)[:, 0]
    h = nodes.astype(np.float64) @ kernel
    rows = []
    for i in range(len(h)):
        neighbours = [j for j in range(len(h)) if mask[i, j]]
        scores = np.array([attention @ np.concatenate([h[i], h[j]]) for j in neighbours])
        weights = np.exp(np.where(scores >= 0, scores, 0.2 * scores))
        mean = sum(w * h[j] for w, j in zip(weights / weights.sum(), neighbours, strict=True))
        rows.append(mean + h[i])
    rows = np.array(rows)
    return np.where(rows > 0, rows, np.expm1(np.minimum(rows, 0)))


def test_rows_attend_to_columns(variables, nodes, mask):
    layer = GraphAttention(OUTPUTS)
    out = jax.jit(layer.apply)(variables, nodes, mask)
    assert out.dtype == jnp.float32
    expected = literal_attention(variables["params"], nodes, mask)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    turned = literal_attention(variables["params"], nodes, mask.T)
    assert np.abs(turned - expected).max() > 0.1  # the direction of an edge matters here


def test_a_node_without_neighbours_sees_itself(variables, nodes):
    alone = np.eye(NODES, dtype=bool)
    out = jax.jit(GraphAttention(OUTPUTS).apply)(variables, nodes, alone)
    h = nodes @ np.asarray(variables["params"]["kernel"])
    expected = np.where(h > 0, 2 * h, np.expm1(2 * h))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_a_masked_node_gets_no_gradient(variables, nodes, mask):
    layer = GraphAttention(OUTPUTS)

    def last(x):
        return jnp.sum(jnp.sin(layer.apply(variables, x, jnp.asarray(mask))[5]))

    gradient = np.asarray(jax.jit(jax.grad(last))(nodes))
    assert np.all(gradient[:5] == 0)
    assert np.all(gradient[5] != 0)


def test_start():
    """Xavier uniform of gain 1.414: within its bound, and filling it."""
    nodes, mask = np.zeros((2, 300), np.float32), np.ones((2, 2), bool)
    params = jax.device_get(start(GraphAttention(512), nodes, mask)["params"])
    for name, shape in {"kernel": (300, 512), "attention": (1024, 1)}.items():
        assert params[name].shape == shape
        bound = 1.414 * np.sqrt(6 / sum(shape))
        assert 0.99 * bound < np.abs(params[name]).max() <= bound
        assert np.abs(params[name].mean()) < 0.1 * bound


def test_pairs_of_nodes_are_never_concatenated():
    count, features = 128, 64
    nodes, mask = jnp.ones((count, features)), jnp.ones((count, count), bool)
    layer = GraphAttention(features)
    variables = jax.eval_shape(layer.init, jax.random.key(0), nodes, mask)
    compiled = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, nodes, mask)))).lower(variables)
    temporary = compiled.compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * count * count * 2 * features / 8


def test_pooling():
    nodes = np.float32([[1, 2], [3, 4], [5, 6]])
    logits = np.log(np.float32([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])) + 7
    groups, assignment = jax.jit(pool_into_groups)(nodes, logits)
    np.testing.assert_allclose(assignment, [[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]], rtol=1e-5)
    expected = [[0.5 + 2.7 + 1, 1 + 3.6 + 1.2], [0.5 + 0.3 + 4, 1 + 0.4 + 4.8]]
    np.testing.assert_allclose(groups, expected, rtol=1e-5)


LABELS = np.float32([[0, 0], [3, 4], [1, 1]])
GROUPS = np.float32([[0, 0], [1, 1]])
ASSIGNMENT = np.float32([[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]])


def test_group_loss_is_the_distance_from_the_likeliest_group():
    """Labels 0 and 2 coincide with theirs; label 1 is 5 away, not squared."""
    loss = jax.jit(group_loss)
    np.testing.assert_allclose(loss(LABELS, GROUPS, ASSIGNMENT), 5e-4, rtol=1e-6)
    swapped = ASSIGNMENT[:, ::-1]
    distances = np.sqrt(2) + np.sqrt(13) + np.sqrt(2)
    np.testing.assert_allclose(loss(LABELS, GROUPS, swapped), 1e-4 * distances, rtol=1e-6)


def test_group_loss_has_no_slope_at_distance_zero():
    slopes = jax.jit(jax.grad(group_loss, (0, 1, 2)))
    labels, groups, assignment = slopes(LABELS, GROUPS, ASSIGNMENT)
    np.testing.assert_allclose(labels, [[0, 0], [6e-5, 8e-5], [0, 0]], rtol=1e-5)
    np.testing.assert_allclose(groups, [[-6e-5, -8e-5], [0, 0]], rtol=1e-5)
    np.testing.assert_array_equal(assignment, 0)
