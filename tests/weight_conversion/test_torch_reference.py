"""The same weights and pixels through our models and through plain PyTorch, stage by stage.

Nearly all of it in float64, for float32 loses digits where a batch's own statistics normalise, and
decides by its rounding on which side of zero a ReLU is, and of the threshold a region's edge.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mlic_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.backbones import efficientnet, resnet, tresnet
from mlic_jax.models.ops.regions import exact_interval, normalise_profile, profiles
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState, make_train_step
from weight_conversion.arrays import to_flax, to_torch
from weight_conversion.layouts import REFERENCE_LAYOUTS
from weight_conversion.matching import detect

pytestmark = pytest.mark.torch
# Of the largest value of an array. Exact is seven digits above the rounding of float64. In float32
# each of 53 layers adds the rounding of a sum of up to 4608 products, which, as its errors have
# both signs, is that of one times the root of their number: 53^(1/2) 4608^(1/2) epsilon / 2.
EXACT, ROUNDED = 1e-9, 5e-5
# Two training steps amplify a rounding a million times: PyTorch's own float32 is up to 0.09 from
# its float64.
TWO_STEPS = 1e-7
# At 1/2 a straight ramp from the lowest to the highest value of a profile can cross on a pixel.
THRESHOLD = 0.47
QUICK = {"xla_backend_optimization_level": 0}  # of compilation, which is most of the time
CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "head.weight", "head.bias")


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
    tensors = source_tensors(arch, REFERENCE_LAYOUTS[arch])
    variables = to_flax(tensors, detect({name: t.shape for name, t in tensors.items()}))
    state = {n: t for n, t in tensors.items() if not n.startswith(CLASSIFIERS)}
    return {name: variables[name].get("features", {}) for name in ("params", "batch_stats")}, state


def drawn(backbone, size: tuple[int, int], rng: np.random.Generator) -> dict:
    """Random variables of any width, of both signs where they may be."""

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0, spread, leaf.shape).astype(np.float32)
        if kind in ("bias", "mean"):
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        sign = rng.choice([-1, 1], leaf.shape) if kind == "scale" else 1
        return (sign * rng.uniform(0.5, 0.9, leaf.shape)).astype(np.float32)

    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), image)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def trunk_tensors(variables: dict, arch: str) -> dict[str, np.ndarray]:
    """The state_dict of the torch trunk with these variables of ours."""
    trees = {name: {"features": tree} for name, tree in variables.items()}
    return to_torch(trees, arch, REFERENCE_LAYOUTS[arch])


def loaded(torch, module, state: dict[str, np.ndarray]):
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return module


def to_nchw(torch, images: np.ndarray):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("arch", REFERENCE_LAYOUTS)
def test_the_torch_backbone_has_the_names_of_its_layout(torch, source_shapes, arch):
    from weight_conversion.torch_reference import backbones

    with torch.device("meta"):
        state = backbones.create_backbone(arch).state_dict()
    wanted = source_shapes(arch, REFERENCE_LAYOUTS[arch])
    for name in list(wanted):
        if name.startswith(CLASSIFIERS):
            del wanted[name]
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == wanted


def assert_stages_agree(ours, theirs, tolerance):
    for stage, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert relative_error(a, b.numpy().transpose(0, 2, 3, 1)) < tolerance, f"stage {stage}"


@pytest.mark.numerical
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mobilenet_v2", "convnextv2_atto"])
def test_backbones_agree_after_every_stage(torch, source_tensors, in_float64, arch, train):
    from weight_conversion.torch_reference import backbones

    variables, state = random_backbone(source_tensors, arch)
    images = random_images(4, 64)
    module = loaded(torch, backbones.create_backbone(arch), state).double().train(train)
    with torch.no_grad():
        theirs = module(to_nchw(torch, images).double())
    if not train:
        assert_stages_agree(
            jax.jit(create_backbone(arch).apply)(variables, images), theirs, ROUNDED
        )
    backbone, variables = in_float64(create_backbone(arch), variables)
    with jax.enable_x64(True):
        apply = jax.jit(partial(backbone.apply, train=train, mutable=["batch_stats"]))
        ours, updated = jax.device_get(apply(variables, images))
    assert_stages_agree(ours, theirs, EXACT)

    statistics = {"batch_stats": {"features": updated["batch_stats"]}}
    statistics = to_torch(statistics, arch, REFERENCE_LAYOUTS[arch])
    after = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    moved = [name for name in statistics if not np.array_equal(after[name], state[name])]
    assert moved == (list(statistics) if train else [])
    for name, array in statistics.items():
        assert relative_error(array, after[name]) < EXACT, name


# The sides of an image are such that somewhere on its way down a map has odd ones, where paddings
# and pools differ; of a TResNet they are multiples of 4.
NARROW = [
    ("mobilenet_v2", 0.35, (64, 64)),
    ("mobilenet_v2", 1.4, (64, 64)),
    ("efficientnet_lite0", 0.25, (64, 32)),  # a size as it is trained with, and another
    ("efficientnet_lite0", 0.25, (44, 35)),
    ("efficientnet_b0", 0.25, (64, 41)),
    ("tf_efficientnet_b0", 0.25, (43, 64)),
    ("resnet18d", 0.125, (65, 38)),
    ("resnetrs50", 0.0625, (32, 41)),
    ("tresnet_m", 0.125, (44, 52)),
    ("timm_tresnet_v2_l", 0.0625, (64, 36)),
]
DIFFERENTIATED = ("tf_efficientnet_b0", "tresnet_m")  # between them have all layers


@pytest.fixture
def shallow(monkeypatch, torch):
    """Networks of few blocks, on both sides: they differ in nothing but their number."""
    from weight_conversion.torch_reference import efficientnet as their_efficientnet
    from weight_conversion.torch_reference import resnet_d as their_resnet_d
    from weight_conversion.torch_reference import tresnet as their_tresnet

    few = (1, 2, 1, 1)
    for name, size in efficientnet.SIZES.items():
        monkeypatch.setitem(efficientnet.SIZES, name, size._replace(depth=0.5))
    monkeypatch.setitem(their_efficientnet.SCALES, "0", (1.0, 0.5))
    for depth, name in ((18, "resnet18d"), (50, "resnetrs50")):
        bottleneck = resnet.DEPTHS[depth][1]
        monkeypatch.setitem(resnet.DEPTHS, depth, (few, bottleneck))
        monkeypatch.setitem(their_resnet_d.SIZES, name, (few, bottleneck))
    for name, size in tresnet.SIZES.items():
        monkeypatch.setitem(tresnet.SIZES, name, size._replace(blocks=few))
    for name, (_, *others) in their_tresnet.SIZES.items():
        monkeypatch.setitem(their_tresnet.SIZES, name, (few, *others))


@pytest.mark.parametrize(("arch", "width", "size"), NARROW)
@pytest.mark.usefixtures("shallow")
def test_narrow_backbones_agree(torch, in_float64, arch, width, size):
    """Their maps, and in training what the statistics become; of some the gradients."""
    from weight_conversion.torch_reference import backbones

    rng = np.random.default_rng(4)
    images = rng.normal(0, 1, (3, *size, 3))
    ours = create_backbone(arch, width)
    variables = drawn(ours, size, rng)
    state = trunk_tensors(variables, arch)
    module = loaded(torch, backbones.create_backbone(arch, width), state).double().eval()
    with torch.no_grad():
        maps = module(to_nchw(torch, images))
    module.train()
    theirs = module(to_nchw(torch, images))
    after = {name: tensor.numpy() for name, tensor in module.state_dict().items()}

    def both(variables, images):
        x = jnp.asarray(images)
        stages, updated = ours.apply(variables, x, train=True, mutable=["batch_stats"])
        return ours.apply(variables, x), stages, updated["batch_stats"]

    ours, variables = in_float64(ours, variables)
    with jax.enable_x64(True):
        results = jax.jit(both, compiler_options=QUICK)(variables, images)
        inference, training, statistics = jax.device_get(results)
    assert_stages_agree(inference, maps, EXACT)
    assert_stages_agree(training, [y.detach() for y in theirs], EXACT)
    result = trunk_tensors({"batch_stats": statistics}, arch)
    assert set(result) == {name for name in after if "running" in name}
    for name, array in result.items():
        assert relative_error(array, after[name]) < EXACT, name
    if arch in DIFFERENTIATED:
        assert_gradients_agree(torch, ours, variables, images, module, arch)


def assert_gradients_agree(torch, ours, variables, images, module, arch):
    """Of the mean of the last map, in training."""

    def loss(params):
        statistics = jax.tree.map(jnp.asarray, variables["batch_stats"])
        given = {"params": params, "batch_stats": statistics}
        stages, _ = ours.apply(given, jnp.asarray(images), train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(stages[-1]))

    with jax.enable_x64(True):
        differentiate = jax.jit(jax.grad(loss), compiler_options=QUICK)
        gradients = jax.device_get(differentiate(variables["params"]))
    module(to_nchw(torch, images))[-1].square().mean().backward()
    ours = to_torch({"params": {"features": gradients}}, arch, REFERENCE_LAYOUTS[arch])
    theirs = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    largest = max(np.abs(array).max() for array in theirs.values())
    for name, array in theirs.items():
        assert np.abs(ours[name] - array).max() < EXACT * largest, name


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("arch", "pooling"),
    [("resnet18", "avg"), ("resnet18", "max"), ("resnet18", "gwp"), ("mobilenet_v2", "avg")],
)
def test_mcar_agrees(torch, source_tensors, in_float64, arch, pooling):
    from weight_conversion.torch_reference.mcar import MCAR

    num_classes = 7
    features, state = random_backbone(source_tensors, arch)
    images = random_images(3, 160)
    module = MCAR(arch, num_classes, pooling, threshold=THRESHOLD).eval()
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
        theirs = module.double()(to_nchw(torch, images).double())
        theirs = {name: tensor.numpy() for name, tensor in theirs.items()}

    config = ConfigDict(
        {
            "name": "mcar",
            "backbone": arch,
            "width": 1.0,
            "pooling": pooling,
            "top_n": 4,
            "threshold": THRESHOLD,
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
    model, variables = in_float64(create_model(config, num_classes), variables)
    with jax.enable_x64(True):
        apply = jax.jit(partial(model.apply, mutable=["intermediates"]))
        ours, seen = apply(variables, images.astype(np.float64))
        found = map(normalise_profile, profiles(seen["intermediates"]["class_maps"][0], (160, 160)))
        away = min(float(jnp.abs(profile - THRESHOLD).min()) for profile in found)
        ours = jax.device_get(ours)

    assert away > EXACT  # no region's edge is where rounding could move it
    np.testing.assert_array_equal(ours["box_classes"], theirs["box_classes"])
    np.testing.assert_array_equal(ours["boxes"], theirs["boxes"])
    assert ours["boxes"].dtype == ours["box_classes"].dtype == jnp.int32
    for name in ("logits", "global_logits", "local_logits"):
        assert relative_error(ours[name], theirs[name]) < EXACT, name
    # Otherwise the boxes above would agree for want of anything to find.
    boxes = theirs["boxes"].reshape(-1, 4)
    assert len(np.unique(boxes, axis=0)) > len(boxes) // 2
    assert (theirs["local_logits"] > theirs["global_logits"]).any()


@pytest.mark.numerical
def test_two_training_steps_agree(torch, in_float64):
    """Losses, parameters and running statistics: coupled decay, group rates, batch norm twice."""
    from weight_conversion.torch_reference.mcar import MCAR

    arch, num_classes, width, seed = "resnet18", 5, 0.125, 3
    config = default_config()
    config.model.update(backbone=arch, width=width, top_n=2, threshold=THRESHOLD)
    config.augment.update(flip=False, jitter=0.0)
    config.optim.weight_decay = 0.1  # the released 1e-4 would hardly be seen
    # Rates are float32: powers of two are the same in any precision.
    config.optim.learning_rate, config.optim.multipliers.features = 2**-7, 2**-3
    rng = np.random.default_rng(seed)
    features = drawn(create_backbone(arch, width), (64, 64), rng)
    channels = int(512 * width)
    kernel = rng.normal(0, channels**-0.5, (channels, num_classes)).astype(np.float32)
    bias = rng.normal(0, 0.5, num_classes).astype(np.float32)
    coarse = rng.integers(0, 200, (2, 4, 4, 4, 3)).repeat(16, axis=2).repeat(16, axis=3)
    pixels = (coarse + rng.integers(0, 56, coarse.shape)).astype(np.uint8)  # two batches of four
    labels = rng.choice(np.array([-1, 1], np.int8), (2, 4, num_classes))

    params = {"features": features["params"], "convclass": {"kernel": kernel, "bias": bias}}
    statistics = {"features": features["batch_stats"]}
    model, variables = in_float64(
        create_model(config.model, num_classes), {"params": params, "batch_stats": statistics}
    )
    options = TrainOptions.of(config)
    schedule = create_schedule(options.optim, 10, 60)
    optimizer = create_optimizer(options.optim, params, schedule)
    train_step = make_train_step(model, optimizer, schedule, options)
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.array, variables)
        opt_state = optimizer.init(variables["params"])
        ours = TrainState(step=jnp.int32(0), **variables, opt_state=opt_state)

    pooling = config.model.pooling
    module = MCAR(arch, num_classes, pooling, top_n=2, threshold=THRESHOLD, width=width).train()
    loaded(torch, module.features, trunk_tensors(features, arch))
    convclass = {"weight": kernel.T[:, :, None, None].copy(), "bias": bias}
    loaded(torch, module.convclass, convclass)
    module.double()
    sgd = torch.optim.SGD(
        [
            {"params": module.features.parameters(), "lr": 2**-10},
            {"params": module.convclass.parameters(), "lr": 2**-7},
        ],
        momentum=0.9,
        weight_decay=0.1,
    )
    before = {name: tensor.clone().numpy() for name, tensor in module.state_dict().items()}

    for step in range(2):
        batch = {
            "image": pixels[step],
            "labels": labels[step],
            "index": np.arange(4, dtype=np.int32),
            "mask": np.ones(4, bool),
        }
        with jax.enable_x64(True):
            ours, metrics = train_step(ours, batch, jax.random.key(0))

        images = (pixels[step] / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        outputs = module(to_nchw(torch, images))
        targets = torch.from_numpy((labels[step] > 0).astype(np.float64))
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        losses = [entropy(outputs[f"{stream}_logits"], targets) for stream in ("global", "local")]
        sgd.zero_grad()
        sum(losses).backward()
        sgd.step()
        assert relative_error(metrics["loss"], sum(losses).item()) < TWO_STEPS
        assert relative_error(metrics["loss_local"], losses[1].item()) < TWO_STEPS

    after = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    ours = jax.device_get(ours)
    trees = {
        "params": {"features": ours.params["features"]},
        "batch_stats": {"features": ours.batch_stats["features"]},
    }
    result = {f"features.{name}": array for name, array in to_torch(trees, arch).items()}
    result["convclass.weight"] = np.asarray(ours.params["convclass"]["kernel"]).T[:, :, None, None]
    result["convclass.bias"] = np.asarray(ours.params["convclass"]["bias"])
    assert set(result) == {name for name in after if not name.endswith("num_batches_tracked")}
    for name, array in result.items():
        # What the two steps changed: the parameters themselves would agree without any training.
        ours_change, theirs_change = array - before[name], after[name] - before[name]
        error = np.linalg.norm(ours_change - theirs_change) / np.linalg.norm(theirs_change)
        assert error < TWO_STEPS, name


@pytest.mark.numerical
def test_intervals_agree_on_profiles_full_of_ties(torch):
    """Few levels, some equal to the threshold, so that every rule of the localiser is reached."""
    from weight_conversion.torch_reference.mcar import interval

    rng = np.random.default_rng(2)
    for length in (7, 8, 20, 33):
        profiles = rng.choice([0, 0.3, 0.5, 0.7, 1], (400, length)).astype(np.float32)
        profiles = np.sort(profiles, axis=1) if length == 33 else profiles
        ours = np.stack(jax.jit(exact_interval, static_argnums=1)(profiles, 0.5), axis=1)
        theirs = [interval(torch.from_numpy(profile), 0.5) for profile in profiles]
        np.testing.assert_array_equal(ours, theirs)
