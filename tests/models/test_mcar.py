"""What MCAR promises beyond the parity with the PyTorch reference (tests/weight_conversion)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.regions import class_regions, crop_and_resize

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
    scores = jax.nn.sigmoid(maps @ classifier["kernel"] + classifier["bias"])
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


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("name", "msrn2", "model.name is 'msrn2'; known are mcar"),
        ("backbone", "resnet20", "model.backbone is 'resnet20'; known are resnet10"),
        ("pooling", "sum", "model.pooling is 'sum'; known are avg, max, gwp"),
        ("localizer", "fuzzy", "model.localizer is 'fuzzy'; known are exact, clean"),
        ("top_n", 6, "model.top_n is 6; it must be 1 to 5, the number of classes"),
        ("threshold", 1.0, "model.threshold is 1.0; it must lie between 0 and 1"),
        ("width", 0.0, "model.width is 0.0; it must be positive"),
    ],
)
def test_wrong_options(config, option, value, message):
    config.model[option] = value
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        create_model(config.model, NUM_CLASSES)
