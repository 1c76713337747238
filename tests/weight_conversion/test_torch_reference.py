"""The same weights and pixels through our models and through plain PyTorch, stage by stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mlic_jax.models import BACKBONES, create_backbone, create_model
from mlic_jax.models.regions import exact_interval
from weight_conversion.name_tables import detect, to_flax, to_torch

pytestmark = pytest.mark.torch
TOLERANCE = 1e-4  # of the largest value of a map


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def random_images(batch: int, size: int) -> np.ndarray:
    """Float32 [B, S, S, 3]: smooth blobs and a little noise, so that maps vary over the image."""
    rng = np.random.default_rng(3)
    coarse = rng.normal(0, 1, (batch, size // 16, size // 16, 3))
    fine = coarse.repeat(16, axis=1).repeat(16, axis=2) + rng.normal(0, 0.3, (batch, size, size, 3))
    return fine.astype(np.float32)


def random_backbone(source_tensors, arch: str) -> tuple[dict, dict[str, np.ndarray]]:
    """One set of weights: our variables of the trunk, and the state_dict of the torch trunk."""
    tensors = source_tensors(arch)
    variables = to_flax(tensors, detect({name: t.shape for name, t in tensors.items()}))
    state = {n: t for n, t in tensors.items() if not n.startswith(("fc.", "classifier."))}
    return {collection: tree["features"] for collection, tree in variables.items()}, state


def loaded(torch, module, state: dict[str, np.ndarray]):
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return module


def to_nchw(torch, images: np.ndarray):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("arch", BACKBONES)
def test_the_torch_backbone_has_torchvision_names(torch, source_shapes, arch):
    from weight_conversion.torch_reference import backbones

    with torch.device("meta"):
        state = backbones.create_backbone(arch).state_dict()
    wanted = source_shapes(arch)
    for name in list(wanted):
        if name.startswith(("fc.", "classifier.")):
            del wanted[name]
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == wanted


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mobilenet_v2"])
def test_backbones_agree_after_every_stage(torch, source_tensors, arch, train):
    from weight_conversion.torch_reference import backbones

    variables, state = random_backbone(source_tensors, arch)
    images = random_images(3, 64)
    module = loaded(torch, backbones.create_backbone(arch), state).train(train)
    with torch.no_grad():
        theirs = module(to_nchw(torch, images))
    apply = jax.jit(
        lambda v, x: create_backbone(arch).apply(v, x, train=train, mutable=["batch_stats"])
    )
    ours, updated = apply(variables, images)

    assert len(ours) == len(theirs)
    for stage, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert relative_error(a, b.numpy().transpose(0, 2, 3, 1)) < TOLERANCE, f"stage {stage}"

    statistics = to_torch({"batch_stats": {"features": updated["batch_stats"]}}, arch)
    after = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    moved = [name for name in statistics if not np.array_equal(after[name], state[name])]
    assert moved == (list(statistics) if train else [])
    for name, array in statistics.items():
        assert relative_error(array, after[name]) < TOLERANCE, name


@pytest.mark.parametrize("width", [0.35, 1.4])
def test_a_wider_or_narrower_mobilenet_agrees(torch, width):
    from weight_conversion.torch_reference import backbones

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0, spread, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    rng = np.random.default_rng(4)
    images = random_images(2, 64)
    ours = create_backbone("mobilenet_v2", width)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), images)
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    state = to_torch({name: {"features": tree} for name, tree in variables.items()}, "mobilenet_v2")
    module = loaded(torch, backbones.create_backbone("mobilenet_v2", width), state).eval()
    with torch.no_grad():
        theirs = module(to_nchw(torch, images))
    for a, b in zip(jax.jit(ours.apply)(variables, images), theirs, strict=True):
        assert relative_error(a, b.numpy().transpose(0, 2, 3, 1)) < TOLERANCE


@pytest.mark.parametrize(
    ("arch", "pooling"),
    [("resnet18", "avg"), ("resnet18", "max"), ("resnet18", "gwp"), ("mobilenet_v2", "avg")],
)
def test_mcar_agrees(torch, source_tensors, arch, pooling):
    from weight_conversion.torch_reference.mcar import MCAR

    num_classes = 7
    features, state = random_backbone(source_tensors, arch)
    images = random_images(3, 160)
    module = MCAR(arch, num_classes, pooling).eval()
    loaded(torch, module.features, state)
    with torch.no_grad():
        # Logits of a trained network's spread, whatever the scale of a random trunk's features.
        channels = module.features(to_nchw(torch, images))[-1].numpy().transpose(0, 2, 3, 1)
        rng = np.random.default_rng(5)
        kernel = rng.normal(0, 1, (channels.shape[-1], num_classes)).astype(np.float32)
        kernel *= 2 / np.std(channels @ kernel)
        bias = rng.normal(0, 0.5, num_classes).astype(np.float32)
        convclass = {"weight": kernel.T[:, :, None, None].copy(), "bias": bias}
        loaded(torch, module.convclass, convclass)
        theirs = {name: t.numpy() for name, t in module(to_nchw(torch, images)).items()}

    config = ConfigDict(
        {
            "name": "mcar",
            "backbone": arch,
            "width": 1.0,
            "pooling": pooling,
            "top_n": 4,
            "threshold": 0.5,
            "localizer": "exact",
        }
    )
    variables = {
        "params": {
            "features": features["params"],
            "convclass": {"kernel": kernel, "bias": bias},
        },
        "batch_stats": {"features": features["batch_stats"]},
    }
    ours = jax.jit(create_model(config, num_classes).apply)(variables, images)

    np.testing.assert_array_equal(ours["box_classes"], theirs["box_classes"])
    np.testing.assert_array_equal(ours["boxes"], theirs["boxes"])
    assert ours["boxes"].dtype == ours["box_classes"].dtype == jnp.int32
    for name in ("logits", "global_logits", "local_logits"):
        assert relative_error(ours[name], theirs[name]) < TOLERANCE, name
    # Otherwise the boxes above would agree for want of anything to find.
    boxes = theirs["boxes"].reshape(-1, 4)
    assert len(np.unique(boxes, axis=0)) > len(boxes) // 2
    assert (theirs["local_logits"] > theirs["global_logits"]).any()


def test_intervals_agree_on_profiles_full_of_ties(torch):
    """Few levels, some equal to the threshold, so that every rule of the localiser is reached."""
    from weight_conversion.torch_reference.mcar import interval

    rng = np.random.default_rng(2)
    for length in (7, 8, 20, 33):
        profiles = rng.choice([0, 0.3, 0.5, 0.7, 1], (400, length)).astype(np.float32)
        profiles = np.sort(profiles, axis=1) if length == 33 else profiles
        ours = np.stack(jax.jit(exact_interval)(profiles, 0.5), axis=1)
        theirs = [interval(torch.from_numpy(profile), 0.5) for profile in profiles]
        np.testing.assert_array_equal(ours, theirs)
