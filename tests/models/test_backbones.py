"""The stages that the backbones return; their values are compared in tests/weight_conversion."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone
from mlic_jax.models.backbones.mobilenet_v2 import scaled


@pytest.mark.parametrize(
    ("name", "channels", "strides", "parameters"),
    [
        ("resnet18", (64, 128, 256, 512), (4, 8, 16, 32), 11_176_512),
        ("resnet34", (64, 128, 256, 512), (4, 8, 16, 32), 21_284_672),
        ("resnet50", (256, 512, 1024, 2048), (4, 8, 16, 32), 23_508_032),
        ("resnet101", (256, 512, 1024, 2048), (4, 8, 16, 32), 42_500_160),
        ("resnet152", (256, 512, 1024, 2048), (4, 8, 16, 32), 58_143_808),
        ("mobilenet_v2", (16, 24, 32, 96, 1280), (2, 4, 8, 16, 32), 2_223_872),
        ("resnet18d", (64, 128, 256, 512), (4, 8, 16, 32), 11_195_744),
        ("resnet50d", (256, 512, 1024, 2048), (4, 8, 16, 32), 23_527_264),
        ("resnetrs50", (256, 512, 1024, 2048), (4, 8, 16, 32), 33_642_912),
        ("efficientnet_lite0", (24, 40, 112, 1280), (4, 8, 16, 32), 3_371_008),
        ("efficientnet_lite2", (24, 48, 120, 1280), (4, 8, 16, 32), 4_811_072),
        ("efficientnet_lite3", (32, 48, 136, 1280), (4, 8, 16, 32), 6_916_096),
        ("efficientnet_b0", (24, 40, 112, 1280), (4, 8, 16, 32), 4_007_548),
        ("efficientnet_b2", (24, 48, 120, 1408), (4, 8, 16, 32), 7_700_994),
        ("efficientnet_b3", (32, 48, 136, 1536), (4, 8, 16, 32), 10_696_232),
        ("efficientnet_b4", (32, 56, 160, 1792), (4, 8, 16, 32), 17_548_616),
        ("tresnet_m", (64, 128, 1024, 2048), (4, 8, 16, 32), 29_340_032),
        ("tresnet_l", (76, 152, 1216, 2432), (4, 8, 16, 32), 53_556_256),
        ("tresnet_v2_l", (256, 512, 1024, 2048), (4, 8, 16, 32), 44_125_824),
        ("convnext_tiny", (96, 192, 384, 768), (4, 8, 16, 32), 27_820_128),
        ("convnext_small", (96, 192, 384, 768), (4, 8, 16, 32), 49_454_688),
        ("convnext_base", (128, 256, 512, 1024), (4, 8, 16, 32), 87_566_464),
        ("convnext_large", (192, 384, 768, 1536), (4, 8, 16, 32), 196_230_336),
        ("convnext_xlarge", (256, 512, 1024, 2048), (4, 8, 16, 32), 348_147_968),
        ("convnextv2_atto", (40, 80, 160, 320), (4, 8, 16, 32), 3_387_400),
        ("convnextv2_femto", (48, 96, 192, 384), (4, 8, 16, 32), 4_848_240),
        ("convnextv2_pico", (64, 128, 256, 512), (4, 8, 16, 32), 8_553_280),
        ("convnextv2_nano", (80, 160, 320, 640), (4, 8, 16, 32), 14_982_800),
        ("convnextv2_tiny", (96, 192, 384, 768), (4, 8, 16, 32), 27_866_496),
        ("convnextv2_base", (128, 256, 512, 1024), (4, 8, 16, 32), 87_692_800),
        ("convnextv2_large", (192, 384, 768, 1536), (4, 8, 16, 32), 196_419_840),
        ("convnextv2_huge", (352, 704, 1408, 2816), (4, 8, 16, 32), 657_472_640),
        ("swin_tiny", (96, 192, 384, 768), (4, 8, 16, 32), 27_519_354),
        ("swin_large_window12", (192, 384, 768, 1536), (4, 8, 16, 32), 195_198_516),
        ("swinv2_base", (128, 256, 512, 1024), (4, 8, 16, 32), 86_893_816),
    ],
)
def test_stages(name, channels, strides, parameters):
    backbone = create_backbone(name)
    images = jnp.zeros((2, 96, 64, 3))
    stages, variables = jax.eval_shape(lambda: backbone.init_with_output(jax.random.key(0), images))
    expected = [(2, 96 // s, 64 // s, c) for s, c in zip(strides, channels, strict=True)]
    assert [stage.shape for stage in stages] == expected
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


def test_width():
    images = jnp.zeros((1, 32, 32, 3))
    narrow = jax.eval_shape(
        lambda: create_backbone("resnet18", 0.25).init_with_output(jax.random.key(0), images)[0]
    )
    assert [stage.shape[-1] for stage in narrow] == [16, 32, 64, 128]
    narrow = jax.eval_shape(
        lambda: create_backbone("convnextv2_atto", 0.2).init_with_output(jax.random.key(0), images)
    )
    assert [stage.shape[-1] for stage in narrow[0]] == [8, 16, 32, 64]
    narrow = jax.eval_shape(
        lambda: create_backbone("swin_tiny", 0.25).init_with_output(jax.random.key(0), images)
    )
    assert [stage.shape[-1] for stage in narrow[0]] == [24, 48, 96, 192]
    assert [scaled(c) for c in (32 * 0.35, 24 * 0.35, 16 * 0.5, 320 * 1.4)] == [16, 8, 8, 448]


@pytest.mark.parametrize(
    ("name", "remat", "parts"),
    [
        ("resnet18", "none", 0),
        ("resnet18", "stage", 4),
        ("resnet18", "block", 8),
        ("mobilenet_v2", "stage", 7),
        ("mobilenet_v2", "block", 17),
        ("convnextv2_atto", "none", 0),
        ("convnextv2_atto", "stage", 4),
        ("convnextv2_atto", "block", 12 + 3),  # and what leads to the later stages
        ("swin_tiny", "block", 12 + 3),
        ("vit_tiny_patch16", "stage", 4),
        ("vit_tiny_patch16", "block", 12),
    ],
)
def test_what_the_backward_pass_computes_again(name, remat, parts):
    """And no parameter is called anything else, so that checkpoints do not know of it."""
    backbone, plain = create_backbone(name, remat=remat), create_backbone(name)
    images = jnp.zeros((2, 64, 64, 3))
    variables, expected = (
        jax.eval_shape(model.init, jax.random.key(0), images) for model in (backbone, plain)
    )
    assert variables == expected
    apply = partial(backbone.apply, train=True, mutable=["batch_stats"])
    program = jax.make_jaxpr(apply)(variables, images)
    assert sum(equation.primitive.name == "remat2" for equation in program.eqns) == parts


def test_maps_have_the_dtype_and_variables_do_not():
    images = jnp.zeros((2, 64, 64, 3))
    names = ("resnet18", "mobilenet_v2", "convnextv2_atto", "resnetrs50", "tf_efficientnet_b0")
    for name in (*names, "vit_tiny_patch16", "swinv2_tiny"):
        backbone = create_backbone(name, dtype="bfloat16")
        stages, variables = jax.eval_shape(
            lambda b=backbone: b.init_with_output(jax.random.key(0), images)
        )
        assert {stage.dtype for stage in stages} == {jnp.dtype(jnp.bfloat16)}
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "options",
    [
        *({"dtype": "float16"}, {"remat": "all"}, {"bn_groups": 0}, {"width": 0}),
        *({"drop_path": 1.0}, {"drop_path": 0.1}),  # of which ResNet has none
    ],
)
def test_options_that_are_none(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        create_backbone("resnet18", **options)


@pytest.mark.parametrize("name", ["resnet34", "convnextv2_atto"])
def test_no_residual_sum_is_computed_anew(name):
    """A fusion reads what one sum is made of, not that of all the blocks before it."""
    backbone, images = create_backbone(name, 0.125), jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(backbone.init, jax.random.key(0), images)
    program = jax.jit(backbone.apply).lower(variables, images).compile().as_text()
    reads = [
        line.partition(" fusion(")[2].partition(" kind=")[0].count("%")
        for line in program.splitlines()
    ]
    assert 0 < max(reads) <= 12  # two addends of a map and the four vectors of its normalisation


def test_not_a_number_is_not_lost_in_a_residual_sum():
    backbone, images = create_backbone("resnet18", 0.125), jnp.full((1, 32, 32, 3), jnp.nan)
    last = jax.jit(lambda: backbone.init_with_output(jax.random.key(0), images)[0][-1])()
    assert jnp.isnan(last).all()
