"""What MCAR promises beyond the parity with the PyTorch reference (tests/weight_conversion)."""

from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model, mcar
from mlic_jax.models.layers import deal_rows
from mlic_jax.models.ops.regions import class_regions, crop_and_resize

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def settings(make_config):
    settings = make_config().model
    settings.threshold = 0.47  # at 0.5 rounding decides where some regions end
    return settings


@pytest.fixture(scope="module")
def model(settings):
    return create_model(settings, NUM_CLASSES)


@pytest.fixture(scope="module")
def apply(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module")
def apply_in_training(model):
    return jax.jit(lambda v, images: model.apply(v, images, True, mutable=["batch_stats"]))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (3, 64, 64, 3))


@pytest.fixture(scope="module")
def variables(model, apply_in_training, images):
    variables = jax.jit(model.init)(jax.random.key(1), images)
    # Statistics of real passes: maps that differ from class to class and place to place.
    _, updates = apply_in_training(variables, images)
    return {**variables, **updates}


def test_outputs(apply, variables, images, settings):
    out = apply(variables, images)
    assert {name: (value.shape, str(value.dtype)) for name, value in out.items()} == {
        "logits": ((3, NUM_CLASSES), "float32"),
        "global_logits": ((3, NUM_CLASSES), "float32"),
        "local_logits": ((3, NUM_CLASSES), "float32"),
        "boxes": ((3, settings.top_n, 4), "int32"),
        "box_classes": ((3, settings.top_n), "int32"),
    }
    np.testing.assert_array_equal(
        out["logits"], np.maximum(out["global_logits"], out["local_logits"])
    )
    best_first = np.argsort(-np.asarray(out["global_logits"]), axis=-1)
    np.testing.assert_array_equal(out["box_classes"], best_first[:, : settings.top_n])


def test_a_crop_is_normalised_in_the_group_of_its_image(settings, images):
    """Of three real images the first group has two and all of their regions."""
    settings = settings.copy_and_resolve_references()
    settings.bn_groups, settings.top_n = 2, 3
    model = create_model(settings, NUM_CLASSES)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    padded = jnp.concatenate([images, jnp.full_like(images[:1], 1e3)])
    dealt = deal_rows(jnp.arange(4) < 3, 2)
    options = {"train": True, "mutable": ["batch_stats"]}
    together, moved = jax.jit(partial(model.apply, **options))(variables, padded, mask=dealt)
    settings.bn_groups = 1
    alone = jax.jit(partial(create_model(settings, NUM_CLASSES).apply, **options))
    first, moved_alone = alone(variables, images[:2])
    np.testing.assert_array_equal(together["boxes"][:2], first["boxes"])
    np.testing.assert_allclose(together["local_logits"][:2], first["local_logits"], rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), moved, moved_alone)


def test_local_logits_are_the_maximum_over_the_crops(apply, variables, images):
    out = apply(variables, images)
    crops = crop_and_resize(images, out["boxes"])
    per_crop = [apply(variables, crops[:, n])["global_logits"] for n in range(2)]
    np.testing.assert_allclose(out["local_logits"], np.maximum(*per_crop), rtol=1e-4, atol=1e-4)


def test_regions_come_from_sigmoid_maps_of_the_chosen_classes(apply, variables, images, settings):
    out = apply(variables, images)
    features = {name: variables[name]["features"] for name in ("params", "batch_stats")}
    backbone = create_backbone(settings.backbone, settings.width)
    maps = jax.jit(backbone.apply)(features, images)[-1]
    classifier = variables["params"]["convclass"]
    scores = jax.nn.sigmoid(maps @ classifier["kernel"] + classifier["bias"][None, None, None])
    for i, n in np.ndindex(3, 2):
        class_map = scores[i, :, :, out["box_classes"][i, n]]
        box = class_regions(class_map, (64, 64), settings.threshold, "exact")
        np.testing.assert_array_equal(out["boxes"][i, n], box)


def test_batch_statistics_move_twice_images_first(apply_in_training, variables, images, settings):
    out, updates = apply_in_training(variables, images)
    crops = crop_and_resize(images, out["boxes"]).reshape(-1, 64, 64, 3)
    backbone = create_backbone(settings.backbone, settings.width)
    backbone_in_training = jax.jit(lambda v, x: backbone.apply(v, x, True, mutable=["batch_stats"]))
    stats = variables["batch_stats"]["features"]
    for batch in (images, crops):
        state = {"params": variables["params"]["features"], "batch_stats": stats}
        stats = backbone_in_training(state, batch)[1]["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        updates["batch_stats"]["features"],
        stats,
    )


def test_padding_changes_no_statistic_and_no_other_row(model, variables, images):
    """Neither the padded image nor its crops, which lie beside those of the others."""
    mask = jnp.array([True, False, True])

    @jax.jit
    def train(images):
        return model.apply(variables, images, True, mask, mutable=["batch_stats"])

    outcomes = []
    for value in (0.0, 5.0):
        out, updates = train(images.at[1].set(value))
        rows = {name: out[name][mask] for name in ("global_logits", "local_logits", "boxes")}
        outcomes.append((rows, updates))
    jax.tree.map(np.testing.assert_array_equal, *outcomes)


def test_no_gradient_flows_through_the_regions(model, apply, variables, images):
    """The gradient of the loss equals the one with crops that were cut beforehand."""

    def loss(params, crops=None):
        state = {**variables, "params": params}
        out = model.apply(state, images)
        if crops is None:
            return jnp.sum(jnp.sin(out["local_logits"]))
        logits = [model.apply(state, crops[:, n])["global_logits"] for n in range(2)]
        return jnp.sum(jnp.sin(jnp.maximum(*logits)))

    crops = crop_and_resize(images, apply(variables, images)["boxes"])
    gradient = jax.jit(jax.grad(loss))
    got, want = gradient(variables["params"]), gradient(variables["params"], crops)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), got, want)


def test_local_size_is_that_of_the_crops_alone(model, apply, variables, images):
    out = apply(variables, images)
    small = jax.jit(model.clone(local_size=32).apply)(variables, images)
    for name in ("global_logits", "boxes", "box_classes"):
        np.testing.assert_array_equal(small[name], out[name])
    crops = crop_and_resize(images, jnp.asarray(out["boxes"]), 32).reshape(-1, 32, 32, 3)
    per_crop = apply(variables, crops)["global_logits"].reshape(3, 2, NUM_CLASSES)
    np.testing.assert_allclose(small["local_logits"], per_crop.max(axis=1), rtol=1e-4, atol=1e-4)
    assert not np.allclose(small["local_logits"], out["local_logits"], atol=1e-2)


def test_a_region_grid_moves_edges_outwards(model, apply, variables, images):
    out = apply(variables, images)
    look = jax.jit(partial(model.clone(region_grid=32).apply, method="look_globally"))
    boxes = np.asarray(look(variables, images)["boxes"])
    assert np.all(boxes % 32 == 0)
    moved = np.abs(boxes - out["boxes"])
    assert np.all(moved < 32) and np.any(moved)
    assert np.all(boxes[..., :2] <= out["boxes"][..., :2])


class Brightness(nn.Module):
    """A backbone of two channels, the mean of each cell and its square, that tells when it runs."""

    note: Callable[[int], None]

    @nn.compact
    def __call__(self, images, train=False, mask=None):
        jax.debug.callback(partial(self.note, len(images)), ordered=True)
        batch, side = images.shape[0], images.shape[1] // 32
        cells = images.reshape(batch, side, 32, side, 32, 3).mean(axis=(2, 4, 5))
        return (jnp.stack([cells, cells**2], axis=-1),)


@pytest.fixture(scope="module")
def scored_by_brightness():
    """(bound) -> outputs, and the rows of each run of the backbone: 8 images with 3 regions."""
    images = jax.random.normal(jax.random.key(5), (8, 64, 64, 3))
    images += jnp.linspace(-3, 3, 8).reshape(-1, 1, 1, 1)
    images += jnp.linspace(0, 2, 64).reshape(1, 1, -1, 1)
    kernel = jax.random.normal(jax.random.key(6), (2, NUM_CLASSES))
    weights = {"params": {"convclass": {"kernel": kernel, "bias": jnp.zeros(NUM_CLASSES)}}}

    @cache
    def score(bound):
        ran = []
        model = mcar.MCAR(Brightness(ran.append), NUM_CLASSES, "gwp", 3, 0.47, "exact", 32, bound)
        out = jax.device_get(jax.jit(model.apply)(weights, images))
        jax.effects_barrier()
        crops = crop_and_resize(images, jnp.asarray(out["boxes"]), 32).mean(axis=(2, 3, 4))
        per_crop = jnp.stack([crops, crops**2], axis=-1) @ kernel
        return out, ran, np.asarray(per_crop)

    return score


@pytest.mark.parametrize("wanted", [0, 4, 24])
def test_unlikely_regions_are_not_looked_at(scored_by_brightness, wanted):
    plain, ran, _ = scored_by_brightness(0.0)
    assert ran == [8, 24] and "looked_at" not in plain
    chosen = np.take_along_axis(plain["global_logits"], plain["box_classes"], axis=1)
    probability = 1 / (1 + np.exp(-chosen.astype(np.float64)))
    ranked = np.sort(probability.ravel())[::-1]
    bound = {0: 0.9999999, 24: 1e-6}.get(wanted) or (ranked[wanted - 1] + ranked[wanted]) / 2
    out, ran, per_crop = scored_by_brightness(float(bound))
    # An eighth of the 24 regions at a time, and no more often than there are likely ones.
    assert ran == [8] + [3] * -(-wanted // 3)
    assert out["looked_at"].sum() == wanted
    np.testing.assert_array_equal(out["looked_at"], probability >= bound)
    for name in ("global_logits", "boxes", "box_classes"):
        np.testing.assert_array_equal(out[name], plain[name])
    expected = plain["global_logits"].copy()
    for i in np.flatnonzero(out["looked_at"].any(axis=1)):
        expected[i] = per_crop[i][out["looked_at"][i]].max(axis=0)
    np.testing.assert_allclose(out["local_logits"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(
        out["logits"], np.maximum(out["global_logits"], out["local_logits"])
    )


def test_a_single_image_with_fewer_regions_than_parts(model, apply, variables, images):
    """Each of its two regions is a part of its own."""
    plain = apply(variables, images[:1])
    bounded = jax.jit(model.clone(local_bound=1e-6).apply)(variables, images[:1])
    assert bounded.pop("looked_at").all()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), bounded, plain
    )


def test_training_looks_at_every_region(model, variables, images):
    likely = model.clone(local_bound=0.9999)
    train = jax.make_jaxpr(lambda v, x: likely.apply(v, x, True, mutable=["batch_stats"]))
    assert "while" not in str(train(variables, images))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("name", "msrn2", "model.name is 'msrn2'; known are mcar"),
        ("backbone", "resnet20", "model.backbone is 'resnet20'; known are resnet10"),
        ("pooling", "sum", "model.pooling is 'sum'; known are avg, max, gwp"),
        ("localizer", "fuzzy", "model.localizer is 'fuzzy'; known are exact, clean"),
        ("top_n", 6, "model.top_n is 6; it must be 1 to 5, the number of classes"),
        ("threshold", 1.0, "model.threshold is 1.0; it must lie between 0 and 1"),
        ("local_size", 48, "model.local_size is 48; it must be a multiple of 32"),
        ("region_grid", 12, "model.region_grid is 12; it must be 1, or a power of 2 up to 32"),
        ("local_size", 32_000, "model.local_size is 32000; it must be a multiple of 32 up to 8192"),
        ("local_size", -32, "model.local_size is -32; it must be a multiple of 32"),
        ("width", 0.0, "model.width is 0.0; it must be positive"),
    ],
)
def test_wrong_options(config, option, value, message):
    config.model[option] = value
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        create_model(config.model, NUM_CLASSES)
