"""The order of classes: models in another order give the same scores in that order."""

import jax
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.data.co_occurrence import attention_mask
from mlic_jax.models import create_model
from weight_conversion.classes import reorder

ORDER = [2, 0, 3, 1]
COUNTS = np.array([[0, 9, 1, 2], [9, 0, 3, 4], [1, 3, 0, 5], [2, 4, 5, 0]], np.float32)
CLASS_COUNTS = np.array([10, 11, 6, 30], np.float32)


@pytest.fixture
def label_inputs() -> dict[str, np.ndarray]:
    vectors = np.random.default_rng(1).normal(0, 1, (4, 300)).astype(np.float32)
    return {"word_vectors": vectors, "counts": COUNTS, "class_counts": CLASS_COUNTS}


def test_the_heads_give_their_scores_in_the_new_order(label_inputs):
    """By the formulas of both systems, which know of no permutation."""
    rng = np.random.default_rng(2)
    convclass = {"kernel": rng.normal(0, 1, (5, 4)), "bias": rng.normal(0, 1, 4)}
    fc1 = {"kernel": rng.normal(0, 1, (6 * 1536, 7)), "bias": rng.normal(0, 1, 7)}
    fc2 = {"kernel": rng.normal(0, 1, (7, 4)), "bias": rng.normal(0, 1, 4)}
    params = reorder({"params": {"convclass": convclass, "fc1": fc1, "fc2": fc2}}, ORDER)["params"]

    def linear(x: np.ndarray, layer: dict) -> np.ndarray:
        return x @ layer["kernel"] + layer["bias"]

    pooled = rng.normal(0, 1, (3, 5))
    expected = linear(pooled, convclass)[:, ORDER]
    np.testing.assert_array_equal(linear(pooled, params["convclass"]), expected)

    labels, groups = rng.normal(0, 1, (4, 1536)), rng.normal(0, 1, (2, 1536))
    before = linear(np.concatenate([labels, groups]).reshape(-1), fc1)
    after = linear(np.concatenate([labels[ORDER], groups]).reshape(-1), params["fc1"])
    np.testing.assert_allclose(after, before, rtol=1e-9)
    np.testing.assert_allclose(linear(after, params["fc2"]), linear(before, fc2)[ORDER], rtol=1e-9)


def msrn_scores(variables: dict) -> np.ndarray:
    """Logits of two images; the model reads its label inputs from `variables`, and fills them."""
    config = default_config().model
    config.update(name="msrn", backbone="resnet10", width=0.125, pool_ratio=0.5)
    inputs = variables["label_inputs"]
    mask = attention_mask(inputs["counts"], inputs["class_counts"])
    model = create_model(config, 4, word_vectors=inputs["word_vectors"], attention_mask=mask)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (2, 64, 64, 3)).astype(np.float32)
    if "params" not in variables:
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        drawn = jax.tree.map(lambda leaf: rng.uniform(-0.1, 0.2, leaf.shape), dict(shapes))
        variables |= jax.tree.map(lambda leaf: np.abs(leaf).astype(np.float32), drawn)
    given = {collection: variables[collection] for collection in ("params", "batch_stats")}
    return np.asarray(jax.jit(model.apply)(given, images)["logits"])


@pytest.mark.slow
def test_the_scores_of_msrn_follow_the_order(label_inputs):
    variables = {"label_inputs": label_inputs}
    before = msrn_scores(variables)
    after = msrn_scores(reorder(variables, ORDER))
    spread = np.ptp(before, axis=1).min()
    assert spread > 1e-3 * np.abs(before).max()  # the classes do differ
    np.testing.assert_allclose(after, before[:, ORDER], rtol=0, atol=1e-2 * spread)


def test_there_and_back_is_the_identity(label_inputs):
    rng = np.random.default_rng(2)
    variables = {
        "params": {
            "fc1": {"kernel": rng.random((6 * 1536, 3), np.float32)},  # C = 4, K = 2
            "fc2": {"kernel": rng.random((3, 4)), "bias": rng.random(4)},
        },
        "unused": {"W": rng.random((4, 3072)), "B": rng.random(4)},
        "batch_stats": {},
        "label_inputs": label_inputs,
    }
    moved = reorder(variables, ORDER)
    np.testing.assert_array_equal(moved["unused"]["W"], variables["unused"]["W"][ORDER])
    np.testing.assert_array_equal(moved["unused"]["B"], variables["unused"]["B"][ORDER])
    before, after = (tree["params"]["fc1"]["kernel"] for tree in (variables, moved))
    np.testing.assert_array_equal(after[:1536], before[2 * 1536 : 3 * 1536])
    np.testing.assert_array_equal(after[4 * 1536 :], before[4 * 1536 :])
    jax.tree.map(np.testing.assert_array_equal, reorder(moved, np.argsort(ORDER)), variables)
