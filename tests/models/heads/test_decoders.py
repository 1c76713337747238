"""ML-Decoder and Query2Label: what they promise; `test_decoders_reference.py` has the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.models.heads import decoders
from mlic_jax.models.heads.decoders import MLDecoder, Query2Label

pytestmark = pytest.mark.numerical

MAPS = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5, 12), np.float32))
HEADS = {"ml_decoder": MLDecoder, "query2label": Query2Label}


@pytest.fixture(scope="module", params=HEADS)
def built(request):
    model = HEADS[request.param](7, width=24)
    return model, jax.jit(model.init)(jax.random.key(0), MAPS)


def test_logits_and_a_map_a_label(built):
    model, variables = built
    outputs = jax.jit(model.apply)(variables, MAPS)
    assert outputs["logits"].shape == (3, 7) and outputs["logits"].dtype == np.float32
    assert outputs["class_maps"].shape == (3, 4, 5, 7)
    highest = np.asarray(outputs["class_maps"]).max(axis=(1, 2))
    np.testing.assert_allclose(highest, np.ones((3, 7)), rtol=1e-6)


def test_dropout_is_of_training_and_follows_from_its_key(built):
    model, variables = built

    @jax.jit
    def apply(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, MAPS, train=True, rngs=rngs)["logits"]

    np.testing.assert_array_equal(apply(0), apply(0))
    assert np.abs(np.asarray(apply(0) - apply(1))).max() > 1e-3


def test_queries_of_ml_decoder_are_no_parameters():
    variables = jax.eval_shape(MLDecoder(7, width=24).init, jax.random.key(0), MAPS)
    assert "queries" not in variables["params"]
    assert variables["batch_stats"]["queries"].shape == (7, 24)


def test_many_labels_share_queries():
    model = MLDecoder(130, width=24)
    variables = jax.jit(model.init)(jax.random.key(0), MAPS)
    outputs = jax.jit(model.apply)(variables, MAPS)
    assert variables["batch_stats"]["queries"].shape == (decoders.MOST_GROUPS, 24)
    assert outputs["logits"].shape == (3, 130)
    maps = np.asarray(outputs["class_maps"])
    np.testing.assert_array_equal(maps[..., 0], maps[..., 1])  # two labels of one query
    assert not np.array_equal(maps[..., 1], maps[..., 2])


@pytest.mark.parametrize("classes", [20, 80, 130])
def test_parameters_of_ml_decoder_as_the_paper_counts_them(classes):
    maps = jax.ShapeDtypeStruct((1, 14, 14, 2048), np.float32)
    shapes = jax.eval_shape(MLDecoder(classes).init, jax.random.key(0), maps)["params"]
    d, wide, groups = 768, 2048, min(classes, 100)
    attention = 4 * (d * d + d)
    forward = d * wide + wide + wide * d + d
    classifier = groups * d * -(-classes // groups) + classes
    want = 2048 * d + d + attention + forward + 3 * 2 * d + classifier
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == want


def test_parameters_of_query2label_as_the_paper_counts_them():
    maps = jax.ShapeDtypeStruct((1, 14, 14, 2048), np.float32)
    shapes = jax.eval_shape(Query2Label(80).init, jax.random.key(0), maps)["params"]
    d, wide = 2048, 8192
    attention, norm = 4 * (d * d + d), 2 * d
    forward = d * wide + wide + wide * d + d
    encoder = attention + forward + 2 * norm
    decoder = 2 * (attention + forward + 2 * norm) + attention + norm  # one self-attention
    want = 2048 * d + d + encoder + decoder + 80 * d + 80 * d + 80
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == want


def test_sine_positions():
    got = decoders.sine_positions(3, 5, 8)
    assert got.shape == (15, 8) and got.dtype == np.float32
    row, column = 1, 4  # the second row, the last column
    y, x = 2 * np.pi * 2 / 3, 2 * np.pi
    low = 10000 ** (2 / 4)
    want = [np.sin(y), np.cos(y), np.sin(y / low), np.cos(y / low)]
    want += [np.sin(x), np.cos(x), np.sin(x / low), np.cos(x / low)]
    np.testing.assert_allclose(got[row * 5 + column], want, atol=1e-6)
