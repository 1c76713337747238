"""Backbones with heads that attend: outputs, where they look, training, and a head of one's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax import models, recipes
from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import UsageError
from mlic_jax.models import create_model
from mlic_jax.models.heads.pooled import PointwiseClassifier
from mlic_jax.models.ops.regions import class_regions
from mlic_jax.names import MODELS
from mlic_jax.predict import Predictor
from mlic_jax.scores.files import Scores
from mlic_jax.train import train

HEADS = ("csra", "ml_decoder", "query2label")
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 96, 3), np.float32))


class Brightest(nn.Module):
    """A head that nobody published: of each label the position that says most of it."""

    num_classes: int

    @nn.compact
    def __call__(self, maps, train=False):
        scores = PointwiseClassifier(self.num_classes, name="per_label")(maps)
        return {"logits": jnp.max(scores, axis=(1, 2)), "class_maps": nn.sigmoid(scores)}


RECIPE = """from flax import linen as nn

from mlic_jax.config import default_config
from mlic_jax.models import register_head

register_head("brightest", lambda options, classes: nn.Dense(classes, name="from the recipe"))


def get_config():
    config = default_config()
    config.model.name = "brightest"
    return config
"""


@pytest.fixture
def own_head():
    models.register_head("brightest", lambda options, num_classes: Brightest(num_classes))
    yield "brightest"
    del models.ATTENTIVE_HEADS["brightest"]
    MODELS.remove("brightest")


@pytest.mark.parametrize("name", HEADS)
def test_regions_are_of_the_likeliest_labels_where_their_maps_point(config, name):
    config.model.update(name=name, head_width=24, top_n=3, csra_heads=2)
    model = create_model(config.model, 5)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    assert set(variables["params"]) == {"features", "head"}
    outputs, beside = jax.jit(lambda v: model.apply(v, IMAGES, mutable=["intermediates"]))(
        variables
    )
    logits = np.asarray(outputs["logits"])
    np.testing.assert_array_equal(outputs["box_classes"], np.argsort(-logits, axis=1)[:, :3])
    (maps,) = beside["intermediates"]["class_maps"]
    assert maps.shape == (2, 3, 2, 3)
    boxes = class_regions(maps, (64, 96), config.model.threshold, config.model.localizer)
    np.testing.assert_array_equal(outputs["boxes"], boxes)


@pytest.mark.parametrize("name", HEADS)
def test_it_trains_and_shows_where_it_looks(config, name, tmp_path):
    config.model.update(name=name, head_width=24)
    config.epochs, config.optim.multipliers.features = 2, 0.0  # which compiles sooner
    train(config, tmp_path)
    scores = Scores.load(tmp_path / "scores_test.npz")
    assert scores.boxes.shape[1:] == (config.model.top_n, 4) and scores.global_logits is None
    split = sources.open_splits(DataOptions.of(config.data))["test"]
    prediction = Predictor.from_checkpoint(tmp_path)(split[0].image)
    region = prediction.regions[0]
    assert prediction.scores[region.class_name] == region.global_probability
    assert region.local_probability is None


def test_a_head_of_ones_own_trains_and_predicts(config, own_head, tmp_path):
    config.model.name = own_head
    config.epochs, config.optim.multipliers.features = 1, 0.0
    config.init_prior = 0.1
    train(config, tmp_path)
    predictor = Predictor.from_checkpoint(tmp_path)
    split = sources.open_splits(DataOptions.of(config.data))["test"]
    scores = Scores.load(tmp_path / "scores_test.npz")
    got = list(predictor(split[0].image).scores.values())
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-scores.logits[0])), rtol=1e-3, atol=1e-4)


def test_a_head_of_ones_own_is_registered_again_in_place_of_the_first(config, own_head):
    config.model.name = own_head
    models.register_head(own_head, lambda options, num_classes: Brightest(num_classes + 1))
    assert create_model(config.model, 5).head == Brightest(6)
    assert MODELS.count(own_head) == 1


def test_the_names_of_the_package_are_not_given_again():
    with pytest.raises(UsageError, match="there is a model 'csra' already"):
        models.register_head("csra", lambda options, num_classes: Brightest(num_classes))


def test_a_recipe_that_registers_its_head_is_loaded_more_than_once(config, own_head, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    recipes.load(str(path))
    assert recipes.load(str(path)).model.name == own_head
    assert models.ATTENTIVE_HEADS[own_head](config.model, 5).name == "from the recipe"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "csra", "csra_heads": 3}, "model.csra_heads is '3'; known are 1, 2, 4, 6, 8"),
        ({"name": "csra", "csra_residual": -1.0}, "it must be at least 0"),
        ({"name": "ml_decoder", "head_width": 100}, "must be a multiple of 24, or 0 .* 768"),
        ({"name": "query2label", "head_width": 6}, "must be a multiple of 4, or 0 .* 2048"),
        ({"name": "csra", "top_n": 6}, "it must be 1 to 5, the number of classes"),
        ({"name": "brightest"}, "model.name is 'brightest'; known are mcar, msrn, pooled, csra"),
    ],
)
def test_options_that_do_not_fit_are_refused(config, options, message):
    config.model.update(options)
    with pytest.raises(UsageError, match=message):
        create_model(config.model, 5)
