"""Small Swin Transformers: their values beside plain PyTorch and `transformers`, and their names.

What `transformers` is needed for runs where it is installed, for which the tests do not ask.
"""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_backbone
from mlic_jax.models.backbones import swin
from mlic_jax.models.backbones.swin import distance_index
from weight_conversion import layouts
from weight_conversion.arrays import to_flax, to_torch, with_dead_tensors
from weight_conversion.convert import load_checkpoint, save_torch_checkpoint
from weight_conversion.matching import detect

# Of the largest value of a map: see `test_torch_reference`; here eight blocks and 256 features.
EXACT, ROUNDED = 1e-9, 1e-4
ARCHS = ("swin_tiny", "swinv2_tiny")
NETWORKS = [
    (arch, layout.name) for arch in ARCHS for layout in layouts.LAYOUTS if arch in layout.archs
]
# Pixels: whole windows, the last map is one; maps padded, windows longer one way, and cut short.
SIZES = ((96, 96), (64, 160))

pytestmark = pytest.mark.usefixtures("tiny_swins")


def random_images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, height, width, 3)).astype(np.float32)


def to_nchw(images: np.ndarray):
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def converted(tensors: dict[str, np.ndarray], arch: str) -> dict:
    return to_flax(tensors, detect({name: t.shape for name, t in tensors.items()}, arch))


def assert_maps_agree(ours, theirs, tolerance: float):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.torch
@pytest.mark.numerical
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arch", ARCHS)
def test_maps_agree_with_plain_pytorch(torch, source_tensors, in_float64, monkeypatch, arch, size):
    from weight_conversion.torch_reference import swin as reference

    _, _, (side, *_, last), version = swin.SIZES[arch]
    monkeypatch.setitem(reference.SIZES, arch, (2, 1, version, side, last))
    tensors = source_tensors(arch, "timm")
    variables = {"params": converted(tensors, arch)["params"]["features"]}
    module = reference.Swin(arch)
    state = {n: torch.from_numpy(t) for n, t in tensors.items() if not n.startswith("head")}
    module.load_state_dict(state)
    images = random_images(*size)
    with torch.no_grad():
        theirs = [m.permute(0, 2, 3, 1).numpy() for m in module.double()(to_nchw(images).double())]
    if size == SIZES[0]:  # in float64 the other, in which there is all that may be
        ours = jax.jit(create_backbone(arch).apply)(variables, images)
        assert_maps_agree(ours, theirs, ROUNDED)
        return
    backbone, variables = in_float64(create_backbone(arch), variables)
    with jax.enable_x64(True):
        ours = jax.device_get(jax.jit(backbone.apply)(variables, images.astype(np.float64)))
    assert_maps_agree(ours, theirs, EXACT)


def make_network(transformers, arch: str, size: int):
    """Built for images of that size, as its windows of version 2 depend on it."""
    import torch

    _, heads, (side, *_, last), version = swin.SIZES[arch]
    options = {"pretrained_window_sizes": [side, side, side, last]} if version == 2 else {}
    name = {1: "Swin", 2: "Swinv2"}[version]
    config = getattr(transformers, f"{name}Config")(
        image_size=size,
        embed_dim=32,
        depths=[2, 2, 2, 2],
        num_heads=list(heads),
        window_size=side,
        **options,
    )
    network = getattr(transformers, f"{name}Model")(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and not name.endswith(("table", "scale")):
            noise *= np.prod(parameter.shape[1:]) ** -0.5
        is_norm = "norm" in name and name.endswith("weight")
        parameter.data = 1 + 0.3 * noise if is_norm else noise
    return network


def maps_of(network, images: np.ndarray) -> list[np.ndarray]:
    import torch

    maps = []
    for layer in network.encoder.layers:
        layer.blocks[-1].register_forward_hook(
            lambda _module, _inputs, out: maps.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        maps[3:] = [network(to_nchw(images)).last_hidden_state]
    sizes = [(-(-images.shape[1] // s), -(-images.shape[2] // s)) for s in (4, 8, 16, 32)]
    return [
        x.numpy().reshape(len(x), *size, x.shape[-1]) for x, size in zip(maps, sizes, strict=True)
    ]


@pytest.fixture
def transformers(torch):
    return pytest.importorskip("transformers", reason="needs `transformers`")


@pytest.mark.torch
@pytest.mark.numerical
@pytest.mark.parametrize(
    ("arch", "size"),
    [  # of whole windows; padded; and in version 2 with windows cut short, which fails in its 1
        *(("swin_tiny", 96), ("swin_tiny", 144)),
        *(("swinv2_tiny", 96), ("swinv2_tiny", 144), ("swinv2_tiny", 64)),
        ("swinv2_tiny_window16", 96),
    ],
)
def test_maps_agree_with_transformers(transformers, tmp_path, arch, size):
    network = make_network(transformers, arch, size)
    network.save_pretrained(tmp_path)
    variables, info = load_checkpoint(tmp_path / "model.safetensors", arch=arch)
    assert (info["layout"], "left_out" in info) == ("transformers-trunk", False)
    images = random_images(size, size)
    params = {"params": variables["params"]["features"]}
    ours = jax.jit(create_backbone(arch).apply)(params, images)
    assert_maps_agree(ours, maps_of(network, images), ROUNDED)

    save_torch_checkpoint(variables, tmp_path / "back.safetensors", info)
    given, back = (
        load_file(tmp_path / "model.safetensors"),
        load_file(tmp_path / "back.safetensors"),
    )
    assert set(given) == set(back)
    for name, array in back.items():
        np.testing.assert_array_equal(array, given[name], err_msg=name)


@pytest.mark.parametrize(("arch", "layout"), NETWORKS)
def test_tensors_go_there_and_back_unchanged(source_tensors, arch, layout):
    tensors = source_tensors(arch, layout)
    back = to_torch(converted(tensors, arch), arch, layout)
    assert set(back) == set(tensors)
    for name, array in back.items():
        assert array.dtype == tensors[name].dtype and array.flags.c_contiguous
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)


@pytest.mark.parametrize(("arch", "layout"), NETWORKS)
def test_weights_that_never_saw_torch_get_its_tables(source_tensors, arch, layout):
    tensors = source_tensors(arch, layout)
    variables = converted(tensors, arch)
    del variables["unused"]
    state = with_dead_tensors(to_torch(variables, arch, layout), arch, layout)
    assert set(state) == set(tensors)
    for name, array in state.items():
        if name.endswith("qkv.bias") and "v2" in arch:
            query, _, value = np.split(tensors[name], 3)
            tensors[name] = np.concatenate([query, np.zeros_like(query), value])
        assert array.dtype == tensors[name].dtype
        np.testing.assert_allclose(array, tensors[name], rtol=1e-6, err_msg=name)


def test_known_leaves(source_tensors):
    """Of the second block of the third stage, and of what leads to that stage."""
    for layout, block, down, (first, last) in (
        ("timm", "layers.2.blocks.1", "layers.2.downsample", ("mlp.fc1", "mlp.fc2")),
        ("microsoft", "layers.2.blocks.1", "layers.1.downsample", ("mlp.fc1", "mlp.fc2")),
        ("torchvision", "features.5.1", "features.4", ("mlp.0", "mlp.3")),
    ):
        for arch in ARCHS:
            tensors = source_tensors(arch, layout)
            params = converted(tensors, arch)["params"]["features"]
            ours, attention = params["stage3_1"], params["stage3_1"]["attention"]
            fused = tensors[f"{block}.attn.qkv.weight"]
            for k, module in enumerate(("query", "key", "value")):
                assert attention[module]["kernel"][5, 7] == fused[128 * k + 7, 5]
            assert ("bias" in attention["key"]) == ("v2" not in arch)
            assert attention["out"]["kernel"][5, 7] == tensors[f"{block}.attn.proj.weight"][7, 5]
            np.testing.assert_array_equal(ours["norm1"]["scale"], tensors[f"{block}.norm1.weight"])
            assert ours["expand"]["kernel"][3, 8] == tensors[f"{block}.{first}.weight"][8, 3]
            assert ours["reduce"]["bias"][5] == tensors[f"{block}.{last}.bias"][5]
            reduction = tensors[f"{down}.reduction.weight"]
            assert params["downsample3"]["reduction"]["kernel"][200, 8] == reduction[8, 200]
            if "v2" in arch:
                scales = tensors[f"{block}.attn.logit_scale"]
                np.testing.assert_array_equal(attention["logit_scale"], scales[:, 0, 0])
                last = tensors[f"{block}.attn.cpb_mlp.2.weight"]
                assert attention["position"]["out"]["kernel"][9, 3] == last[3, 9]


def test_what_no_tensor_tells_is_asked_for(source_shapes):
    shapes = source_shapes("swinv2_tiny", "timm")
    with pytest.raises(UsageError, match=r"swinv2_tiny and swinv2_tiny_window16.*--arch$"):
        detect(shapes)
    for arch in ("swinv2_tiny", "swinv2_tiny_window16"):
        assert detect(shapes, arch).arch == arch
        assert detect(source_shapes(arch, "microsoft")).arch == arch


def test_tables_of_other_windows_are_refused(source_tensors):
    tensors = source_tensors("swinv2_tiny", "microsoft")
    name = "layers.0.blocks.1.attn.relative_coords_table"
    tensors[name] = tensors[name] * 1.5  # of a network that began with smaller windows
    with pytest.raises(Failure, match=f"'{name}' is not what swinv2_tiny has there"):
        converted(tensors, "swinv2_tiny")


def with_windows(tensors: dict[str, np.ndarray], side: int) -> dict[str, np.ndarray]:
    """The same with random tables of such windows."""
    rng, given = np.random.default_rng(2), {}
    for name, tensor in tensors.items():
        if name.endswith("table"):
            tensor = rng.normal(size=((2 * side - 1) ** 2, tensor.shape[1])).astype(np.float32)
        elif name.endswith("index"):
            tensor = distance_index((side, side), side).reshape((side**2,) * 2)
        given[name] = tensor
    return given


@pytest.mark.torch
@pytest.mark.parametrize("side", [2, 5])
def test_tables_of_other_windows_are_resized_for_who_insists(torch, source_tensors, tmp_path, side):
    """As PyTorch's bicubic `interpolate` has them, which is what Swin's authors do."""
    tensors = with_windows(source_tensors("swin_tiny", "microsoft"), side)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError) as refused:
        load_checkpoint(tmp_path / "model.safetensors")
    told = str(refused.value)
    assert f"swin_tiny but for windows of {side}x{side} where that has 3x3: " in told
    assert "--arch swin_tiny" in told and "\n" not in told
    variables, info = load_checkpoint(tmp_path / "model.safetensors", arch="swin_tiny")
    tables = [name for name in tensors if name.endswith("table")]
    assert len(info["resized"]) == len(tables) == 8 and "left_out" not in info
    save_torch_checkpoint(variables, tmp_path / "back.safetensors", info)
    back = load_file(tmp_path / "back.safetensors")
    for name in tables:
        grid = torch.from_numpy(tensors[name].T.reshape(1, -1, 2 * side - 1, 2 * side - 1))
        wanted = torch.nn.functional.interpolate(grid.double(), (5, 5), mode="bicubic")
        np.testing.assert_allclose(
            back.pop(name), wanted[0].flatten(1).T, atol=1e-6 * abs(wanted).max()
        )
    same = source_tensors("swin_tiny", "microsoft")
    assert set(back) | set(tables) == set(same)
    for name, array in back.items():  # what it computes of its windows among them
        np.testing.assert_array_equal(array, same[name], err_msg=name)


def test_windows_that_are_known_are_not_resized(source_tensors):
    """Unless it is insisted on; and a table that is of no square window is nobody's."""
    tensors = source_tensors("swin_base_window12", "timm")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = detect(shapes)
    assert found.arch == "swin_base_window12" and found.is_exact
    found = detect(shapes, "swin_base")
    assert found.arch == "swin_base" and len(found.resized) == 6  # the last stage has the same
    for shape in ((24, 1), (16, 1), (121, 2)):
        shapes["layers.0.blocks.0.attn.relative_position_bias_table"] = shape
        told = rf"_bias_table' is \[{shape[0]}, {shape[1]}\] and must be \[121, 1\]$"
        with pytest.raises(Failure, match=told):
            detect(shapes)


def test_masks_of_an_image_size_are_left_out(source_shapes):
    shapes = source_shapes("swin_tiny", "microsoft")
    shapes["layers.1.blocks.1.attn_mask"] = (16, 9, 9)
    found = detect(shapes, "swin_tiny")
    assert found.left_out == ["layers.1.blocks.1.attn_mask"]
