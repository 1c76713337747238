"""Small networks that `transformers` makes, with random weights: its maps and files, and ours.

They run where it is installed, for which the tests do not ask.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlic_jax.models import create_backbone
from mlic_jax.models.backbones import vit
from mlic_jax.models.backbones.vit import CLIP, DINOV2, DINOV2_REGISTERS, DINOV3, VIT, Kind
from weight_conversion.convert import load_checkpoint, save_torch_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.numerical]
# Of the largest value of a map. In float32 each of four blocks adds the rounding of sums of up to
# 96 products, and the softmax of scores up to 10 multiplies an error by as much: 4 x 96 x 10
# epsilon / 2.
ROUNDED = 1e-4


@dataclass(frozen=True)
class Case:
    """A class of its networks and what of its configuration is not the default."""

    name: str
    arch: str  # which is made as small
    kind: Kind
    config: str
    options: tuple[tuple[str, Any], ...] = (("intermediate_size", 96),)


CASES = [
    Case(
        *("ViTModel", "vit_base_patch16", VIT, "ViTConfig"),
        (("intermediate_size", 96), ("layer_norm_eps", 1e-6)),
    ),
    Case("Dinov2Model", "dinov2_base", DINOV2, "Dinov2Config", ()),
    Case(
        *("Dinov2WithRegistersModel", "dinov2_base_registers", DINOV2_REGISTERS),
        *("Dinov2WithRegistersConfig", ()),
    ),
    Case("CLIPVisionModel", "clip_vit_base_patch16", CLIP, "CLIPVisionConfig"),
    Case(
        *("DINOv3ViTModel", "dinov3_base", DINOV3, "DINOv3ViTConfig"),
        (("intermediate_size", 96), ("num_register_tokens", 4)),
    ),
]


@pytest.fixture
def transformers():
    pytest.importorskip("torch", reason="needs the extra `torch`")
    return pytest.importorskip("transformers", reason="needs `transformers`")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request, monkeypatch, tiny_vits):
    """One of `CASES`, of whose positions the resizing is that of `transformers`.

    Of plain ViT it is timm's.
    """
    case = request.param
    kind = case.kind._replace(antialias=case.kind is DINOV2_REGISTERS)
    monkeypatch.setitem(vit.SIZES, case.arch, vit.SIZES[case.arch]._replace(kind=kind))
    return case


def make_network(transformers, case: Case) -> Any:
    """With weights that keep every part of it in use."""
    import torch

    config = getattr(transformers, case.config)(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
        **dict(case.options),
    )
    network = getattr(transformers, case.name)(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and "token" not in name and "position" not in name:
            noise *= np.prod(parameter.shape[1:]) ** -0.5
        is_scale = parameter.ndim == 1 and "bias" not in name and "class" not in name
        parameter.data = 1 + 0.3 * noise if is_scale else noise
    return network


def maps_of(network: Any, images: np.ndarray, registers: int) -> list[np.ndarray]:
    """After every block, the last normalised."""
    import torch

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    options = {"output_hidden_states": True}
    if type(network).__name__ in ("ViTModel", "CLIPVisionModel"):
        options["interpolate_pos_encoding"] = True
    with torch.no_grad():
        said = network(pixels, **options)
        last = said.last_hidden_state
        if hasattr(network, "post_layernorm"):  # CLIP's own is of the class token alone
            last = network.post_layernorm(last)
    rows, columns = images.shape[1] // 14, images.shape[2] // 14
    tokens = [*said.hidden_states[1:-1], last]
    assert len(tokens) == 4
    return [t[:, 1 + registers :].numpy().reshape(len(t), rows, columns, -1) for t in tokens]


@pytest.mark.parametrize("size", [(70, 70), (42, 98)])
def test_maps_agree(transformers, case, size, tmp_path):
    network = make_network(transformers, case)
    network.save_pretrained(tmp_path)
    variables, info = load_checkpoint(tmp_path / "model.safetensors", arch=case.arch)
    assert (info["arch"], "left_out" in info) == (case.arch, case.name == "ViTModel")  # its pooler
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    params = {"params": variables["params"]["features"]}
    ours = jax.jit(create_backbone(case.arch).apply)(params, images)
    for mine, other in zip(ours, maps_of(network, images, case.kind.registers), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=ROUNDED * np.abs(other).max())


@pytest.mark.parametrize("live", [False, True], ids=["saved", "live"])
def test_files_come_back_as_they_were(transformers, case, live, tmp_path):
    network = make_network(transformers, case)
    path = tmp_path / "model.safetensors"
    if live:
        state = network.state_dict()
        save_file({name: tensor.numpy().copy() for name, tensor in state.items()}, path)
    else:
        network.save_pretrained(tmp_path)
    variables, info = load_checkpoint(path, arch=case.arch)
    save_torch_checkpoint(variables, tmp_path / "back.safetensors", info)
    given, back = load_file(path), load_file(tmp_path / "back.safetensors")
    assert set(given) - set(back) == {name for name in given if name.startswith("pooler.")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, given[name], err_msg=name)
