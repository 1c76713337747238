"""Checkpoints of Vision Transformers: every naming there and back, and maps beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlic_jax.errors import Failure
from mlic_jax.models import create_backbone
from weight_conversion.arrays import to_flax, to_torch, with_dead_tensors
from weight_conversion.convert import load_checkpoint, main, save_torch_checkpoint
from weight_conversion.layouts import LAYOUTS
from weight_conversion.matching import detect

ONE_OF_EACH = (
    *("vit_base_patch16", "dinov2_small", "dinov2_small_registers", "clip_vit_base_patch32"),
    *("openclip_vit_base_patch32", "dinov3_small", "vit_base_patch16_qk_norm"),
)
NETWORKS = [(a, layout.name) for layout in LAYOUTS for a in ONE_OF_EACH if a in layout.archs]
EXACT = 1e-9  # of the largest value of a map, in float64


def shapes_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: tensor.shape for name, tensor in tensors.items()}


@pytest.mark.parametrize(("arch", "layout"), NETWORKS)
def test_tensors_go_there_and_back_unchanged(tiny_vits, source_tensors, arch, layout):
    tensors = source_tensors(arch, layout)
    variables = to_flax(tensors, detect(shapes_of(tensors), arch))
    back = to_torch(variables, arch, layout)
    assert set(back) == set(tensors)
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    wanted = jax.eval_shape(
        create_backbone(arch).init, jax.random.key(0), np.zeros((1, 70, 70, 3), np.float32)
    )
    shapes = jax.tree.map(np.shape, variables["params"]["features"])
    if (layout, arch) == ("timm", "dinov2_small_registers"):  # without the class token's position
        assert shapes["stem"].pop("positions") == (25, 24)
        assert wanted["params"]["stem"].pop("positions").shape == (26, 24)
    assert shapes == jax.tree.map(np.shape, dict(wanted["params"]))


@pytest.mark.torch
@pytest.mark.numerical
@pytest.mark.parametrize("arch", [arch for arch in ONE_OF_EACH if arch != "dinov3_small"])
@pytest.mark.parametrize("size", [(70, 70), (112, 42)])
def test_maps_agree(tiny_vits, monkeypatch, torch, source_tensors, in_float64, arch, size):
    """Of the images that positions are of, and of others."""
    from weight_conversion.torch_reference import vit as reference

    monkeypatch.setitem(reference.SIZES, arch, ((4, 24, 2), 14, 5))
    tensors = source_tensors(arch, "timm")
    variables = to_flax(tensors, detect(shapes_of(tensors), arch))
    state = {n: torch.from_numpy(t) for n, t in tensors.items() if not n.startswith("head.")}
    module = reference.ViT(arch).double()
    module.load_state_dict(state)
    images = np.random.default_rng(1).normal(size=(2, *size, 3))
    with torch.no_grad():
        theirs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    params = {"params": variables["params"]["features"]}
    backbone, params = in_float64(create_backbone(arch), params)
    with jax.enable_x64(True):
        ours = jax.device_get(jax.jit(backbone.apply)(params, images))
    for mine, other in zip(ours, theirs, strict=True):
        other = other.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(mine, other, rtol=0, atol=EXACT * np.abs(other).max())


@pytest.mark.parametrize("rows", [9, 10, 49, 50])
def test_a_table_of_positions_may_be_of_any_square_grid(tiny_vits, source_tensors, rows, tmp_path):
    tensors = source_tensors("vit_base_patch16", "timm")
    tensors["pos_embed"] = np.random.default_rng(0).normal(size=(1, rows, 24)).astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    variables, info = load_checkpoint(tmp_path / "model.safetensors", arch="vit_base_patch16")
    save_torch_checkpoint(variables, tmp_path / "back.safetensors", info)
    back = load_file(tmp_path / "back.safetensors")
    np.testing.assert_array_equal(back["pos_embed"], tensors["pos_embed"])


def test_a_table_that_does_not_fit_is_told_in_one_line(tiny_vits, source_shapes):
    for shape in ((1, 27, 24), (1, 0, 24), (26, 24), (1, 26, 48)):
        shapes = source_shapes("vit_base_patch16", "timm") | {"pos_embed": shape}
        with pytest.raises(Failure) as failure:
            detect(shapes, "vit_base_patch16")
        told = str(failure.value)
        assert f"'pos_embed' is {list(shape)}" in told and "\n" not in told and ";" not in told
        assert ("such as 197 or 196" in told) == (shape in ((1, 27, 24), (1, 0, 24)))


def test_a_known_family_of_an_unknown_size_is_told_in_one_line(tiny_vits, source_shapes):
    shapes = {
        name: tuple(40 * n // 24 if n % 24 == 0 else n for n in shape)
        for name, shape in source_shapes("vit_tiny_patch16", "timm").items()
    }
    with pytest.raises(Failure) as failure:
        detect(shapes)
    told = str(failure.value)
    assert told.startswith("timm names of a size that is none of vit_tiny_patch16, vit_small_")
    assert told.endswith(
        "vit_large_patch32: tensor 'cls_token' is [1, 1, 40] and must be [1, 1, 24]"
    )


def test_the_authors_names_of_dinov3_are_those_of_transformers(tiny_vits, source_tensors):
    """Tensor by tensor, of which the authors fuse three and mask one; all but the mask token."""
    arch, ours = "dinov3_small", []
    tensors = source_tensors(arch, "facebook")
    tensors["mask_token"] = tensors["mask_token"][None]
    renamed = source_tensors(arch, "transformers")
    for name in renamed:
        theirs = name
        for old, new in (
            *(("embeddings.patch_embeddings", "patch_embed.proj"), ("register", "storage")),
            *(
                ("embeddings.", ""),
                ("layer.", "blocks."),
                ("layer_scale", "ls"),
                ("attention", "attn"),
            ),
            *(("lambda1", "gamma"), ("up_proj", "fc1"), ("down_proj", "fc2"), ("o_proj", "proj")),
        ):
            theirs = theirs.replace(old, new)
        for k, part in enumerate("qkv"):
            if f".{part}_proj." in theirs:
                fused = tensors[theirs.replace(f"{part}_proj", "qkv")]
                renamed[name] = np.split(fused, 3)[k]
                break
        else:
            renamed[name] = tensors[theirs]
    tensors["mask_token"] = tensors["mask_token"][0]
    for of in (tensors, renamed):
        ours.append(to_flax(of, detect(shapes_of(of), arch))["params"])
    jax.tree.map(np.testing.assert_array_equal, *ours)


def test_what_dinov3s_authors_publish_is_read_as_it_is(tiny_vits, source_tensors, tmp_path):
    """Periods rounded to bfloat16, biases of 0 under a mask of 0, and a norm of small crops."""
    tensors = source_tensors("dinov3_small", "facebook")
    periods = tensors["rope_embed.periods"]
    tensors["rope_embed.periods"] = periods.astype(jnp.bfloat16).astype(np.float32)
    assert (tensors["rope_embed.periods"] != periods).any()
    for name in tensors:
        if name.endswith(("qkv.bias", "bias_mask")):
            tensors[name] = np.zeros_like(tensors[name])
    extra = {"local_cls_norm.weight": np.ones(24, np.float32)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    variables, info = load_checkpoint(tmp_path / "model.safetensors", arch="dinov3_small")
    assert info["left_out"] == ["local_cls_norm.weight [24]"]
    save_torch_checkpoint(variables, tmp_path / "back.safetensors", info)
    back = load_file(tmp_path / "back.safetensors")
    assert set(back) == set(tensors)
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rope_embed.periods", lambda periods: 1.01 * periods),
        ("blocks.1.attn.qkv.bias_mask", np.zeros_like),
        ("blocks.1.attn.qkv.bias_mask", np.ones_like),
        ("blocks.1.attn.qkv.bias_mask", lambda mask: np.nan * mask),  # as PyTorch starts it
    ],
)
def test_a_dinov3_that_computes_something_else_is_refused(tiny_vits, source_tensors, name, change):
    tensors = source_tensors("dinov3_small", "facebook")
    tensors[name] = change(tensors[name])
    with pytest.raises(Failure, match=f"'{name}' is not what dinov3_small has there"):
        to_flax(tensors, detect(shapes_of(tensors), "dinov3_small"))


def test_weights_that_never_saw_torch_get_the_constants_of_dinov3(tiny_vits, source_tensors):
    tensors = source_tensors("dinov3_small", "facebook")
    variables = to_flax(tensors, detect(shapes_of(tensors), "dinov3_small"))
    del variables["unused"]
    state = to_torch(variables, "dinov3_small", "facebook")
    state = with_dead_tensors(state, "dinov3_small", "facebook")
    assert set(state) == set(tensors)
    for name, array in state.items():
        mask = tensors.get(f"{name}_mask", np.float32(name != "mask_token"))
        np.testing.assert_allclose(array, tensors[name] * mask, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("layout", ["openai", "transformers"])
def test_of_a_whole_clip_the_image_tower_is_taken(tiny_vits, source_tensors, layout, tmp_path):
    arch, tower = "clip_vit_base_patch32", {"openai": "visual.", "transformers": "vision_model."}
    tensors = source_tensors(arch, layout)
    blocks = {"openai": "transformer.resblocks", "transformers": "encoder.layers"}[layout]
    text = {n: t for n, t in tensors.items() if n.startswith(blocks)}  # of the same size, even
    start = "" if layout == "openai" else "text_model."
    if layout == "openai":
        extra = {"visual.proj": np.zeros((24, 16), np.float32)}
    else:
        extra = {"visual_projection.weight": np.zeros((16, 24), np.float32)}
        extra["vision_model.embeddings.position_ids"] = np.arange(26)[None]
    extra["logit_scale"] = np.float32([4.6])
    whole = {tower[layout] + n: t for n, t in tensors.items()}
    whole |= {start + n: t for n, t in text.items()} | extra
    save_file(whole, tmp_path / "model.safetensors")
    variables, info = load_checkpoint(tmp_path / "model.safetensors", arch=arch)
    assert (info["layout"], info["place"]) == (layout, tower[layout])
    assert {line.split(" ")[0] for line in info["left_out"]} == {*extra, *(start + n for n in text)}
    alone = to_flax(tensors, detect(shapes_of(tensors), arch))
    jax.tree.map(np.testing.assert_array_equal, variables["params"], alone["params"])


def test_quick_gelu_is_told_by_the_name_alone(tiny_vits, source_tensors):
    """The same tensors are other networks."""
    tensors = source_tensors("clip_vit_base_patch32", "openai")
    images = np.random.default_rng(0).normal(size=(1, 70, 70, 3)).astype(np.float32)
    last = []
    for arch in ("clip_vit_base_patch32", "openclip_vit_base_patch32"):
        params = to_flax(tensors, detect(shapes_of(tensors), arch))["params"]["features"]
        last.append(jax.jit(create_backbone(arch).apply)({"params": params}, images)[-1])
    assert np.abs(last[0] - last[1]).max() > 1e-3


def test_a_fused_tensor_is_counted_once(tiny_vits, source_tensors, tmp_path, capsys):
    tensors = source_tensors("vit_base_patch16", "timm") | {"aux.weight": np.zeros(3, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    arguments = [tmp_path / "model.safetensors", "--output", tmp_path / "weights"]
    assert main([*map(str, arguments), "--arch", "vit_base_patch16"]) == 0
    printed = capsys.readouterr().out
    count = len(tensors)
    assert f"{count} tensors: {count - 1} converted, 0 unused and kept, 1 left out\n" in printed
    assert "left out: aux.weight [3]\n" in printed
    assert "photos: mean 0.5 0.5 0.5, std 0.5 0.5 0.5\n" in printed
