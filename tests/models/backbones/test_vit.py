"""Vision Transformers: what they have of their own; tests/weight_conversion compares values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.backbones import vit
from mlic_jax.models.backbones.vit import (
    CLIP,
    DINOV2_REGISTERS,
    DINOV3,
    VIT,
    VIT_QK_NORM,
    Attention,
    Block,
    Size,
    ViT,
    resized,
    resizing,
    rotations,
    side_of,
    turn,
)
from mlic_jax.names import stride_of

TINY = Size(4, 8, 2, 14, VIT)


@pytest.fixture
def tiny_sizes(monkeypatch):
    """Every published size is as small as can be."""
    for name, size in vit.SIZES.items():
        monkeypatch.setitem(vit.SIZES, name, TINY._replace(patch=size.patch, kind=size.kind))


@pytest.mark.parametrize(
    # As published, without projections and the token of masked patches.
    ("name", "pixels", "parameters"),
    [
        ("vit_tiny_patch16", 224, 5_524_416),
        ("vit_small_patch16", 224, 21_665_664),
        ("vit_small_patch32", 224, 22_493_952),
        ("vit_base_patch16", 224, 85_798_656),
        ("vit_base_patch32", 224, 87_455_232),
        ("vit_large_patch16", 224, 303_301_632),
        ("vit_large_patch32", 224, 305_510_400),
        ("vit_base_patch16_qk_norm", 224, 85_798_656 + 12 * 2 * 2 * 64),
        ("dinov2_small", 518, 22_056_576 - 384),
        ("dinov2_base", 518, 86_580_480 - 768),
        ("dinov2_large", 518, 304_368_640 - 1024),
        ("dinov2_small_registers", 518, 22_056_576 + 3 * 384),
        ("clip_vit_base_patch32", 224, 87_849_216 - 768 * 512),
        ("clip_vit_base_patch16", 224, 86_192_640 - 768 * 512),
        ("clip_vit_large_patch14", 224, 303_966_208 - 1024 * 768),
        ("dinov3_small", 224, 21_596_544 - 384),
        ("dinov3_base", 224, 85_660_416 - 768),
    ],
)
def test_sizes(name, pixels, parameters):
    images = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
    variables = jax.eval_shape(create_backbone(name).init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


def test_all_maps_are_at_the_stride_of_a_patch(tiny_sizes):
    for name in vit.SIZES:
        stride = stride_of(name)
        images = jax.ShapeDtypeStruct((2, 3 * stride, 2 * stride, 3), jnp.float32)
        backbone = create_backbone(name)
        maps, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
        assert [x.shape for x in maps] == [(2, 3, 2, 8)] * 4, name
        assert set(variables) == {"params"}
        named = {backbone.stage_of(module) for module in variables["params"]}
        assert named == {0, 1, 2, 3, 4, 5}  # the stem, the blocks, the last normalisation


@pytest.mark.parametrize("kind", [DINOV2_REGISTERS, CLIP])
def test_only_the_last_map_is_normalised_and_all_are_of_patches(kind):
    """Of an image whose patches are alike but one, that one is where it is other."""
    images = jnp.zeros((1, 42, 56, 3)).at[:, 14:28, 28:42].set(3)
    key = jax.random.key(1, impl="rbg")
    size = TINY._replace(kind=kind._replace(is_rotary=True))  # all positions alike
    maps, _ = jax.jit(ViT(size).init_with_output)(key, images)
    np.testing.assert_allclose(maps[-1].mean(axis=-1), 0, atol=1e-6)
    assert abs(maps[0].mean(axis=-1)).max() > 1e-4
    other = np.abs(maps[0] - maps[0][:, :1, :1]).max(axis=-1)[0]
    assert np.unravel_index(other.argmax(), other.shape) == (1, 2)


def test_a_stage_is_a_quarter_of_the_blocks():
    """Its map is that of the tokens after its last block."""
    images = jax.random.normal(jax.random.key(0), (1, 28, 28, 3))
    backbone = ViT(TINY._replace(depth=8))

    def run(images):
        variables = backbone.init(jax.random.key(1, impl="rbg"), images)
        return backbone.apply(
            variables, images, capture_intermediates=lambda module, _: isinstance(module, Block)
        )

    maps, seen = jax.jit(run)(images)
    for number, stage in enumerate(maps[:-1]):
        (tokens,) = seen["intermediates"][f"block{2 * number + 1}"]["__call__"]
        np.testing.assert_array_equal(stage.reshape(1, 4, 8), tokens[:, 1:])


def test_blocks_are_dropped_the_more_the_deeper_they_are():
    rates = {}

    def note(method, args, kwargs, context):
        if isinstance(context.module, Block):
            rates[context.module.name] = context.module.drop_rate
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
        jax.eval_shape(ViT(TINY, drop_path=0.3).init, jax.random.key(0), images)
    np.testing.assert_allclose(list(rates.values()), [0, 0.1, 0.2, 0.3], rtol=1e-12)
    assert list(rates) == ["block0", "block1", "block2", "block3"]


def test_branches_are_dropped_each_by_itself():
    """With both an image is as it was, with one it is neither that nor what none leaves."""
    x = jax.random.normal(jax.random.key(0), (64, 5, 8))
    block, never = Block(VIT, 2, None, 0.5), Block(VIT, 2, None)

    @jax.jit
    def run(x):
        variables = block.init(jax.random.key(1, impl="rbg"), x, False, None)
        rngs = {"dropout": jax.random.key(2)}
        dropped = block.apply(variables, x, False, None, rngs=rngs)
        without_key = block.apply(variables, x, True, None)
        return dropped, without_key, never.apply(variables, x, True, None)

    dropped, without_key, plain = run(x)
    np.testing.assert_allclose(without_key, plain, rtol=1e-6)
    same = np.asarray((dropped == x).all(axis=(1, 2)))
    assert 0 < same.sum() < 32  # a quarter of 64; none, or half, by chance in 1 of 10^4 cases


def test_the_length_of_a_normalised_query_or_key_is_nothing_to_its_scores():
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    attention = Attention(VIT_QK_NORM, 2)
    params = attention.init(jax.random.key(1), x)["params"]
    norms = {name: params[name]["scale"].shape for name in ("query_norm", "key_norm")}
    assert norms == {"query_norm": (4,), "key_norm": (4,)}  # the features of a head
    seen = attention.apply({"params": params}, x)
    for name in ("query", "key"):
        longer = {"kernel": 1000 * params[name]["kernel"], "bias": params[name]["bias"]}
        same = attention.apply({"params": params | {name: longer}}, x)
        plain = Attention(VIT, 2).apply({"params": params | {name: longer}}, x)
        np.testing.assert_allclose(same, seen, atol=1e-2 * abs(seen).max())
        assert abs(plain - seen).max() > 0.1 * abs(seen).max()


def test_width_is_a_number_of_heads_as_wide_as_published():
    backbone = create_backbone("vit_small_patch32", 0.5)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    maps = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x)[0], images)
    assert {x.shape[-1] for x in maps} == {3 * 64}


def test_positions_of_any_grid():
    assert [side_of(rows) for rows in (1, 2, 4, 5, 196, 197, 49, 50)] == [1, 1, 2, 2, 14, 14, 7, 7]
    assert [side_of(rows) for rows in (0, 3, 195, 198)] == [None] * 4


@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_keeps_what_is_the_same_everywhere_and_its_own_size(antialias):
    np.testing.assert_allclose(resizing(7, 7, antialias), np.eye(7), atol=1e-15)
    for new in (3, 5, 12, 16):
        matrix = resizing(7, new, antialias)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-15)
    narrow = np.count_nonzero(resizing(32, 4, antialias), axis=1).max()
    assert narrow > 16 if antialias else narrow == 4


def test_rows_and_columns_of_positions_are_not_confused():
    grid = jnp.arange(9.0).reshape(3, 3, 1)  # rises by 3 down and by 1 across
    wide = resized(grid, (3, 6), False)
    assert wide.shape == (3, 6, 1)
    np.testing.assert_allclose(wide[1:, 2] - wide[:-1, 2], 3, rtol=1e-6)


def test_a_table_that_is_none_is_refused():
    backbone = ViT(TINY)
    images = jnp.zeros((1, 28, 28, 3))
    variables = jax.eval_shape(backbone.init, jax.random.key(0), images)
    variables["params"]["stem"]["positions"] = jnp.zeros((7, 8))
    with pytest.raises(UsageError, match=r"there are 7 positions; .* square grid"):
        jax.eval_shape(backbone.apply, variables, images)


def test_given_positions_fit_fresh_ones():
    """The class token's stays, and is 0 where it was not there."""
    backbone = ViT(TINY)
    given = {"stem": {"positions": np.arange(10 * 8.0).reshape(10, 8)}, "norm": {}}
    fresh = {"stem": {"positions": np.zeros((17, 8))}, "norm": {}}
    fitted = backbone.fit(given, fresh)["stem"]["positions"]
    assert fitted.shape == (17, 8)
    np.testing.assert_array_equal(fitted[0], given["stem"]["positions"][0])
    wanted = resized(jnp.asarray(given["stem"]["positions"][1:].reshape(3, 3, 8)), (4, 4), True)
    np.testing.assert_array_equal(fitted[1:].reshape(4, 4, 8), wanted)
    without = {"stem": {"positions": given["stem"]["positions"][1:]}}
    np.testing.assert_array_equal(backbone.fit(without, fresh)["stem"]["positions"][0], 0)
    assert given["stem"]["positions"].shape == (10, 8)
    assert ViT(TINY._replace(kind=DINOV3)).fit({"stem": {}}, {}) == {"stem": {}}


def test_turned_queries_meet_turned_keys_by_their_distance():
    """And the first features know rows, the others columns; what is of no patch is not turned."""
    cosines, sines = rotations(4, 4, 8)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (8,)), (1, 18, 1, 8))
    turned = turn(x, cosines, sines)
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    np.testing.assert_allclose(jnp.sum(turned**2, axis=-1), jnp.sum(x**2, axis=-1), rtol=1e-5)
    grid = turned[0, 2:, 0].reshape(4, 4, 8)
    products = jnp.einsum("yxf,vuf->yxvu", grid, grid)
    np.testing.assert_allclose(products[0, 0, 1, 2], products[2, 1, 3, 3], rtol=1e-4)
    rows_alone = np.isclose(grid[0], grid[0, :1], rtol=1e-5).all(axis=0)
    assert rows_alone.tolist() == [True, True, False, False] * 2


@pytest.mark.parametrize("name", ["mcar", "msrn", "pooled", "csra", "ml_decoder", "query2label"])
@pytest.mark.parametrize("backbone", ["vit_base_patch16", "dinov2_small_registers"])
def test_every_model_runs_on_it(tiny_sizes, name, backbone):
    config = default_config().model
    config.update(name=name, backbone=backbone, drop_path=0.5, pool_ratio=0.5, head_width=24)
    labels = {"word_vectors": np.eye(4, dtype=np.float32), "attention_mask": np.eye(4, dtype=bool)}
    model = create_model(config, 4, **labels if name == "msrn" else {})
    images = jnp.zeros((2, 112, 112, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    outputs = jax.eval_shape(model.apply, variables, images)
    assert outputs["logits"].shape == (2, 4)
    assert outputs["logits"].dtype == jnp.float32
    if name != "msrn":
        assert outputs["boxes"].shape == (2, 4, 4)
