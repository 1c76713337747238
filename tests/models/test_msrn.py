"""MSRN against its formulas in NumPy, on a ResNet and on MobileNetV2, and what it promises beside.

`tests/weight_conversion/test_msrn_reference.py` compares it with PyTorch, gradients included.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.layers import PerLabel
from mlic_jax.models.msrn import Linear, halve
from mlic_jax.train.losses import total_loss

LABELS, GROUPS, DIMENSIONS = 5, 2, 7
RNG = np.random.default_rng(0)
WORD_VECTORS = RNG.normal(0, 1, (LABELS, DIMENSIONS)).astype(np.float32)
MASK = (RNG.random((LABELS, LABELS)) < 0.3) | np.eye(LABELS, dtype=bool)
BATCH = 8
IMAGES = RNG.normal(0, 1, (BATCH, 96, 96, 3)).astype(np.float32)  # last map 3x3: a line to drop
TARGETS = RNG.random((BATCH, LABELS)) < 0.5


def msrn(config, head="per_label", backbone="resnet10"):
    config.model.update(name="msrn", head=head, pool_ratio=0.4, backbone=backbone)
    return create_model(config.model, LABELS, word_vectors=WORD_VECTORS, attention_mask=MASK)


def draw(path, leaf):
    """Weights that keep activations in range, statistics other than those of the start."""
    if path[-1].key in ("kernel", "attention"):
        spread = np.sqrt(1 / np.prod(leaf.shape[:-1]))
        return spread * RNG.standard_normal(leaf.shape, np.float32)
    return RNG.uniform(0.5, 0.9, leaf.shape).astype(np.float32)


@pytest.fixture(scope="module")
def build(make_config):
    """(head, backbone) -> a model, variables for it, and its jitted `apply`."""

    @functools.cache
    def make(head="per_label", backbone="resnet10"):
        model = msrn(make_config(), head, backbone)
        shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
        variables = jax.tree_util.tree_map_with_path(draw, shapes)
        return model, variables, jax.jit(model.apply)

    return make


@pytest.fixture(scope="module")
def run_backbone(make_config):
    """(name, its variables) -> its maps of `IMAGES`."""

    @functools.cache
    def compiled(name):
        return jax.jit(create_backbone(name, make_config().model.width).apply)

    return lambda name, variables: compiled(name)(variables, IMAGES)


def softmax(x, axis):
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def linear(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def graph_attention(params, x):
    h = x @ np.asarray(params["kernel"], np.float64)
    pairs = np.concatenate(np.broadcast_arrays(h[:, None], h[None]), axis=-1)
    scores = (pairs @ np.asarray(params["attention"], np.float64))[..., 0]
    scores = np.where(MASK, np.where(scores >= 0, scores, 0.2 * scores), -np.inf)
    out = softmax(scores, axis=1) @ h + h
    return np.where(out > 0, out, np.expm1(np.minimum(out, 0)))


def literal_msrn(params, maps, head):
    """The last three maps of the backbone -> logits, group loss and assignment, in float64."""
    labels = linear(params["label_linear"], WORD_VECTORS.astype(np.float64))
    labels = graph_attention(params["label_attention0"], labels)
    labels = graph_attention(params["label_attention1"], labels)
    positive = np.maximum(labels, 0)
    assignment = softmax(graph_attention(params["group_assignment"], positive), axis=1)
    groups = assignment.T @ graph_attention(params["group_attention"], positive)
    likeliest = assignment.argmax(axis=1)
    group_loss = 1e-4 * np.linalg.norm(labels - groups[likeliest], axis=1).sum()

    seen = []
    for stage, x in zip((2, 3, 4), maps, strict=True):
        x = np.asarray(x, np.float64)
        if stage < 4:
            x = linear(params[f"branch{stage}"], x)
        height, width = x.shape[1] // 2, x.shape[2] // 2
        pooled = [
            x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
            for i in range(height)
            for j in range(width)
        ]
        f = linear(params[f"project{stage}"], np.stack(pooled, axis=1))[:, None]  # [B, 1, P, 512]
        weights = softmax(f * np.concatenate([labels, groups])[:, None], axis=2)
        seen.append((weights * f).sum(axis=2))
    seen = np.tanh(np.concatenate(seen, axis=-1))
    if head == "dense":
        hidden = linear(params["fc1"], seen.reshape(len(seen), -1))
        logits = linear(params["fc2"], np.where(hidden > 0, hidden, 0.01 * hidden))
    else:
        own, group = seen[:, :LABELS], seen[:, LABELS:][:, likeliest]
        both = np.concatenate([own, group], axis=-1)
        logits = (both * params["per_label"]["kernel"]).sum(axis=-1) + params["per_label"]["bias"]
    return logits, group_loss, assignment


@pytest.mark.parametrize(
    ("head", "backbone"),
    [("dense", "resnet10"), ("per_label", "resnet10"), ("per_label", "mobilenet_v2")],
)
def test_outputs_follow_the_formulas(build, run_backbone, head, backbone):
    _, variables, apply = build(head, backbone)
    out = apply(variables, IMAGES)
    assert {name: (value.shape, str(value.dtype)) for name, value in out.items()} == {
        "logits": ((BATCH, LABELS), "float32"),
        "group_loss": ((), "float32"),
        "group_assignment": ((LABELS, GROUPS), "float32"),
    }
    # The backbone alone: nothing of a branch flows back into it.
    maps = run_backbone(backbone, {name: variables[name]["features"] for name in variables})
    logits, loss, assignment = literal_msrn(variables["params"], maps[-3:], head)
    np.testing.assert_allclose(out["logits"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["group_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(out["group_assignment"], assignment, rtol=1e-4, atol=1e-6)
    assert logits.std() > 1e-3
    assert assignment.std() > 1e-3


def test_tree(build):
    """The contract with the name tables and with every checkpoint."""
    _, variables, _ = build("dense")
    params = dict(variables["params"])
    assert set(params.pop("features")) >= {"stem", "layer4_0"}
    assert set(variables["batch_stats"]) == {"features"}
    assert jax.tree.map(jnp.shape, params) == {
        "branch2": {"kernel": (16, 16), "bias": (16,)},
        "branch3": {"kernel": (32, 32), "bias": (32,)},
        "project2": {"kernel": (16, 512), "bias": (512,)},
        "project3": {"kernel": (32, 512), "bias": (512,)},
        "project4": {"kernel": (64, 512), "bias": (512,)},
        "label_linear": {"kernel": (DIMENSIONS, 256), "bias": (256,)},
        "label_attention0": {"kernel": (256, 300), "attention": (600, 1)},
        "label_attention1": {"kernel": (300, 512), "attention": (1024, 1)},
        "group_attention": {"kernel": (512, 512), "attention": (1024, 1)},
        "group_assignment": {"kernel": (512, GROUPS), "attention": (2 * GROUPS, 1)},
        "fc1": {"kernel": ((LABELS + GROUPS) * 1536, 2048), "bias": (2048,)},
        "fc2": {"kernel": (2048, LABELS), "bias": (LABELS,)},
    }


def test_layers_start_as_those_of_pytorch():
    x = jnp.zeros((4, 100))
    for layer, inputs in ((Linear(500), x), (PerLabel(), x[None])):
        for leaf in jax.tree.leaves(layer.init(jax.random.key(0, impl="rbg"), inputs)):
            assert jnp.abs(leaf).max() <= 0.1
            assert leaf.size < 300 or jnp.abs(leaf).max() > 0.0995


def test_per_label_head_has_few_weights(build):
    _, variables, _ = build("per_label")
    params = variables["params"]
    assert not {"fc1", "fc2"} & set(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params["per_label"])) == LABELS * (3072 + 1)


def test_training_step(build):
    """Every parameter gets a finite gradient, and padding changes neither that nor statistics."""
    model, variables, _ = build()
    known = jnp.arange(BATCH) < BATCH - 1

    @jax.jit
    def gradients_and_statistics(images):
        def loss(params):
            state = jax.tree.map(jnp.asarray, {**variables, "params": params})
            out, updates = model.apply(state, images, True, known, mutable=["batch_stats"])
            of_labels = jnp.broadcast_to(known[:, None], TARGETS.shape)
            return total_loss(out, jnp.asarray(TARGETS), of_labels)[0], updates

        return jax.grad(loss, has_aux=True)(variables["params"])

    gradients, updates = gradients_and_statistics(IMAGES)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient != 0), path
    padded = IMAGES.copy()
    padded[-1] *= 100
    jax.tree.map(np.testing.assert_array_equal, updates, gradients_and_statistics(padded)[1])
    before = variables["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_(np.any(a != b)), updates["batch_stats"], before)


def test_several_devices_agree_with_one(build):
    _, variables, apply = build()
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(AxisType.Auto,))
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    several, one = apply(replicated, images), apply(variables, IMAGES)
    assert several["logits"].sharding.num_devices == BATCH
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), several, one)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 3, 2)])
def test_halve(shape):
    x = np.random.default_rng(1).permutation(np.prod(shape)).reshape(shape).astype(np.float32)

    def window_maxima(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    value, pullback = jax.vjp(halve, x)
    expected, expected_pullback = jax.vjp(window_maxima, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(pullback(value)[0], expected_pullback(value)[0])


def test_images_too_small_to_pool(config):
    with pytest.raises(UsageError, match="images of 32x32 px leave MSRN no position"):
        jax.eval_shape(msrn(config).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(("ratio", "groups"), [(0.2, 1), (0.35, 1), (0.5, 2), (1.0, 5)])
def test_the_number_of_groups_is_rounded_down(config, ratio, groups):
    config.model.update(name="msrn", pool_ratio=ratio)
    model = create_model(config.model, LABELS, word_vectors=WORD_VECTORS, attention_mask=MASK)
    assert model.num_groups == groups


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("name", "msrn2", "model.name is 'msrn2'; known are mcar, msrn"),
        ("head", "sparse", "model.head is 'sparse'; known are dense, per_label"),
        ("backbone", "vgg16", "model.backbone is 'vgg16'; known are resnet10"),
        ("pool_ratio", 0.05, "model.pool_ratio is 0.05, which makes 0 groups of 5 labels"),
        ("pool_ratio", 1.3, "model.pool_ratio is 1.3, which makes 6 groups of 5 labels"),
    ],
)
def test_wrong_options(config, option, value, message):
    config.model.update(name="msrn", pool_ratio=0.4)
    config.model[option] = value
    with pytest.raises(UsageError) as error:
        create_model(config.model, LABELS, word_vectors=WORD_VECTORS, attention_mask=MASK)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"word_vectors": None}, "needs a word vector for every label and a graph"),
        ({"attention_mask": None}, "needs a word vector for every label and a graph"),
        ({"word_vectors": WORD_VECTORS[1:]}, "shape (4, 7); 5 labels need (5, dimensions)"),
        ({"word_vectors": WORD_VECTORS[:, 0]}, "shape (5,); 5 labels need (5, dimensions)"),
        (
            {"attention_mask": MASK[:4, :4]},
            "bool of the shape (4, 4); 5 labels need bool of (5, 5)",
        ),
        ({"attention_mask": MASK * 1.0}, "float64 of the shape (5, 5); 5 labels need bool"),
        ({"attention_mask": ~np.eye(5, dtype=bool)}, "its diagonal must be True"),
    ],
)
def test_wrong_label_inputs(config, inputs, message):
    config.model.update(name="msrn", pool_ratio=0.4)
    inputs = {"word_vectors": WORD_VECTORS, "attention_mask": MASK} | inputs
    with pytest.raises(UsageError) as error:
        create_model(config.model, LABELS, **inputs)
    assert message in str(error.value)
