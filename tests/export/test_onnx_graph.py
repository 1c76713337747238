"""ONNX graphs against the JAX functions that they are made of, in onnxruntime and OpenVINO."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from mlic_jax.config import default_config
from mlic_jax.errors import UsageError
from mlic_jax.export import bundle
from mlic_jax.export.onnx_graph import to_onnx
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.backbones import convnext, swin, tresnet, vit
from mlic_jax.models.ops.pooling import average_pool, blur_pool
from mlic_jax.models.ops.regions import (
    class_regions,
    crop_and_resize,
    normalise_profile,
    profiles,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6, 8, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 4, 5)).astype(np.float32)
DEPTHWISE = RNG.normal(size=(3, 3, 1, 4)).astype(np.float32)
CONV = ("NHWC", "HWIO", "NHWC")


def run(model, x):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def run_openvino(model, x):
    core = bundle.import_openvino().Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    found = compiled({compiled.inputs[0].any_name: x})
    return {name: found[output] for output in compiled.outputs for name in output.get_names()}


def assert_what_jax_says(model, function, x):
    """In both runtimes, within 1e-4 of the largest value of an output."""
    expected = jax.jit(function)(x)
    for runtime in (run, run_openvino):
        found = runtime(model, x)
        for name, of in expected.items():
            atol = 1e-4 * np.abs(of).max()
            np.testing.assert_allclose(found[name], of, rtol=0, atol=atol)


def convolved(x, kernel, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=CONV, **options)


def pooled(x, start, of, size, padding):
    window = (1, size, size, 1)
    return lax.reduce_window(x, start, of, window, (1, 2, 2, 1), padding)


def taken(x):
    """One of a row's positions, which depends on the row."""
    at = jnp.argmax(x[:, :, :, :1], axis=2, keepdims=True)
    return jnp.take_along_axis(x, at, axis=2)


FUNCTIONS = {
    "arithmetic": lambda x: (x + 1.5) * x - x / 3 + -x,
    "functions": lambda x: jnp.tanh(x) + jnp.exp(x) + jax.nn.sigmoid(x) + lax.rsqrt(1 + x**2),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "rectified": lambda x: jax.nn.silu(x) + jax.nn.relu6(x) + jax.nn.leaky_relu(x),
    "softmax": lambda x: jax.nn.softmax(x, axis=2),
    "compared": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x != x.max()), x, -1),
    "clipped": lambda x: jnp.clip(x, -0.5, x.mean()),
    "whole": lambda x: (jnp.round(4 * x).astype(jnp.int32) * 7 // 3) % 5,
    "signs": lambda x: jnp.sign(x) * jnp.abs(x) + jnp.floor(x) + jnp.ceil(x),
    "sums": lambda x: x.sum(axis=1) + x.max(axis=1) - x.min(axis=1),
    "means": lambda x: x.mean(axis=(1, 2)),
    "any_all": lambda x: jnp.any(x > 1, axis=2) ^ jnp.all(x < 1, axis=2),
    "places": lambda x: jnp.argmax(x, axis=2) - jnp.argmin(x, axis=2),
    "largest": lambda x: lax.top_k(x, 2)[0] * lax.top_k(x, 2)[1].astype(x.dtype),
    "running": lambda x: lax.cummax(x, axis=3) + lax.cummin(x, axis=3, reverse=True),
    "running_sum": lambda x: lax.cumsum(x, axis=2, reverse=True),
    "axes": lambda x: x.transpose(0, 3, 1, 2).reshape(3, 4, 48)[..., ::-1][:, None, 1:],
    "strides": lambda x: x[:, ::2, 1::3, 1:3],
    "stacked": lambda x: jnp.stack([x, x + 1], axis=1),
    "joined": lambda x: jnp.concatenate([x, x * 2], axis=2),
    "parts": lambda x: jnp.split(x, [3, 5], axis=2)[1],
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=2),
    "table": lambda x: x @ KERNEL[0, 0] + jnp.arange(5.0)[None, None, None],
    "products": lambda x: jnp.einsum("bhwf,bhvf->bhwv", x, x[:, :, ::-1]),
    "convolution": lambda x: convolved(x, KERNEL, (2, 1), ((0, 1), (2, 1))),
    "dilated": lambda x: convolved(x, KERNEL, rhs_dilation=(1, 2)),
    "depthwise": lambda x: convolved(x, DEPTHWISE, (2, 2), feature_group_count=4),
    "maxima": lambda x: pooled(x, -jnp.inf, lax.max, 3, "SAME"),
    "averages": lambda x: pooled(x, 0.0, lax.add, 2, "VALID") / 4,
    "taken": taken,
    "loop": lambda x: lax.map(lambda row: row.sum(axis=0) * 2, jnp.stack([x, x[..., ::-1]])),
    "platform": lambda x: lax.platform_dependent(x, cpu=lambda x: x * 0, default=lambda x: x),
    "flipped": lambda x: lax.rev(x, (1, 2)),
}


def test_what_jax_computes_is_computed():
    """All in one graph: a runtime takes its time to start."""

    def all_of_them(x):
        return {name: f(x) for name, f in FUNCTIONS.items()}

    model = to_onnx(all_of_them, jax.ShapeDtypeStruct(X.shape, X.dtype))
    expected = jax.jit(all_of_them)(X) | {"platform": X}
    for runtime in (run, run_openvino):
        found = runtime(model, X)
        for name, of in expected.items():
            assert found[name].shape == of.shape, name
            np.testing.assert_allclose(found[name], of, rtol=1e-4, atol=1e-4, err_msg=name)


def test_what_is_known_is_no_node():
    """Batch normalisation is then one product and one sum, and a broadcast nobody's business."""
    mean, var = jnp.arange(4.0), jnp.arange(1.0, 5.0)

    def normalised(x):
        gain = lax.rsqrt(var + 1e-5) * 2
        return {"y": x * gain[None, None, None] + (3 - mean * gain)[None, None, None]}

    model = to_onnx(normalised, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert [node.op_type for node in model.graph.node] == ["Mul", "Add", "Identity"]


def test_a_convolution_takes_what_is_done_with_its_features():
    gain, shift = jnp.arange(1.0, 6.0), jnp.arange(5.0)

    def normalised(x):
        return {"y": jax.nn.relu6(convolved(x, KERNEL) * gain[None, None, None] + shift)}

    with jax.numpy_rank_promotion("allow"):
        model = to_onnx(normalised, jax.ShapeDtypeStruct(X.shape, X.dtype))
        expected = normalised(X)["y"]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Transpose", "Conv", "Transpose", "Clip", "Identity"]
    np.testing.assert_allclose(run(model, X)["y"], expected, atol=1e-4)


def test_a_convolution_of_one_feature_and_numbers():
    """A number has no axes, and one feature goes with many."""
    one = KERNEL[..., :1]

    def scaled(x):
        saliency = convolved(x, one) * 2.0 + 1.0
        return {"y": saliency * jnp.arange(5.0)[None, None, None], "z": saliency}

    model = to_onnx(scaled, jax.ShapeDtypeStruct(X.shape, X.dtype))
    for name, of in jax.jit(scaled)(X).items():
        np.testing.assert_allclose(run(model, X)[name], of, atol=1e-4)


def test_parts_of_a_batch_of_any_size():
    def parts(x):
        fewer = lax.slice_in_dim(x, 0, x.shape[0] - 1)
        return {"fewer": fewer, "pooled": average_pool(x[:, 1:]), "blurred": blur_pool(x)}

    (batch,) = jax.export.symbolic_shape("batch")
    model = to_onnx(parts, jax.ShapeDtypeStruct((batch, *X.shape[1:]), X.dtype))
    for runtime in (run, run_openvino):
        for name, of in jax.jit(parts)(X).items():
            np.testing.assert_allclose(runtime(model, X)[name], of, atol=1e-5, err_msg=name)


def test_a_transposition_and_its_inverse_are_nothing():
    def twice(x):
        for _ in range(2):
            x = convolved(x, DEPTHWISE, feature_group_count=4)
        return {"y": x}

    model = to_onnx(twice, jax.ShapeDtypeStruct(X.shape, X.dtype))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Transpose", "Conv", "Conv", "Transpose", "Identity"]


def test_regions_are_those_of_jax():
    """Of maps whose profiles keep away from the threshold: at it a rounding decides."""
    maps = RNG.random((400, 2, 5, 7), np.float32)
    away = np.ones(len(maps), bool)
    for profile in profiles(jnp.asarray(maps), (64, 96)):
        levels = np.asarray(normalise_profile(profile))
        away &= (np.abs(levels - 0.5) > 1e-4).all(axis=(1, 2))
    maps = maps[away]
    assert len(maps) > 200

    def regions(maps):
        return {"boxes": class_regions(maps, (64, 96), 0.5, "exact")}

    model = to_onnx(regions, jax.ShapeDtypeStruct(maps.shape, maps.dtype))
    np.testing.assert_array_equal(run(model, maps)["boxes"], jax.jit(regions)(maps)["boxes"])


def test_crops_are_those_of_jax():
    boxes = jnp.array([[[0, 0, 6, 8], [1, 2, 4, 3]]] * 3, jnp.int32)

    def crops(x):
        moved = (
            boxes + (x[:, :1, :1, :1] > 1e9).astype(jnp.int32)[..., 0]
        )  # known at run time alone
        return {"crops": crop_and_resize(x, moved, 5)}

    model = to_onnx(crops, jax.ShapeDtypeStruct(X.shape, X.dtype))
    np.testing.assert_allclose(run(model, X)["crops"], jax.jit(crops)(X)["crops"], atol=1e-5)


@pytest.mark.parametrize("name", ["mcar", "pooled", "csra", "ml_decoder", "query2label", "msrn"])
def test_every_model_with_a_batch_of_any_size(name):
    config = default_config().unlock().model
    config.update(name=name, backbone="resnet10", width=0.1, top_n=2, pool_ratio=0.4)
    config.update(head_width=24, head="per_label")
    of_labels = {
        "word_vectors": np.eye(5, 8, dtype=np.float32),
        "attention_mask": np.eye(5, dtype=bool),
    }
    model = create_model(config, 5, **(of_labels if name == "msrn" else {}))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

    def logits(pixels):
        outputs = model.apply(variables, pixels.astype(jnp.float32) / 255)
        return {name: outputs[name] for name in outputs if name.endswith("logits")}

    (batch,) = jax.export.symbolic_shape("batch")
    exported = to_onnx(logits, jax.ShapeDtypeStruct((batch, 64, 64, 3), jnp.uint8))
    for rows in (1, 3):
        pixels = RNG.integers(0, 256, (rows, 64, 64, 3), np.uint8)
        assert_what_jax_says(exported, logits, pixels)


TINY_VIT = {"depth": 4, "features": 8, "heads": 2}
TINY_SWIN = {"blocks": (2, 2, 1, 1), "heads": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "family", "size", "pixels"),
    [
        ("tresnet_m", tresnet, {"blocks": (1, 1, 1, 1), "width": 0.1}, 64),
        ("convnextv2_atto", convnext, {"blocks": (1, 1, 1, 1), "channels": (4, 4, 6, 8)}, 64),
        ("swin_tiny", swin, TINY_SWIN, 64),  # maps of 16 in windows of 7
        ("swinv2_tiny", swin, TINY_SWIN, 96),
        ("vit_tiny_patch16", vit, TINY_VIT, 64),
        ("dinov2_small_registers", vit, TINY_VIT, 56),
        ("clip_vit_base_patch32", vit, TINY_VIT, 64),
        ("dinov3_small", vit, TINY_VIT, 64),
    ],
)
def test_every_family_with_a_batch_of_any_size(monkeypatch, name, family, size, pixels):
    monkeypatch.setitem(family.SIZES, name, family.SIZES[name]._replace(**size))
    backbone, rng = create_backbone(name), np.random.default_rng(0)
    trained = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.3, leaf.shape), leaf.dtype),
        jax.eval_shape(backbone.init, jax.random.key(0), trained),
    )

    def maps(pixels):
        stages = backbone.apply(variables, pixels / 255)
        return {str(depth): stage for depth, stage in enumerate(stages)}

    (batch,) = jax.export.symbolic_shape("batch")
    model = to_onnx(maps, jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.float32))
    images = rng.uniform(0, 255, (3, pixels, pixels, 3)).astype(np.float32)
    assert_what_jax_says(model, maps, images)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), "while"),
        (lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x), "a choice at run time"),
        (lambda x: jnp.sort(x), "sort"),
        (
            lambda x: lax.reduce_window(
                x, 0.0, lax.add, (1, 2, 2, 1), (1,) * 4, "VALID", window_dilation=(1, 2, 2, 1)
            ),
            "windows",
        ),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 1),) * 4), "at the edges"),
    ],
)  # fmt: skip
def test_what_has_no_translation_says_so(function, message):
    with pytest.raises(UsageError, match=message):
        to_onnx(lambda x: {"y": function(x)}, jax.ShapeDtypeStruct(X.shape, X.dtype))
