"""Named training recipes: what they set, what goes before them, and what they leave."""

import json

import pytest
from absl import flags

from mlic_jax import recipes
from mlic_jax.checkpoint_config import changes_between
from mlic_jax.command_line import parse_flags
from mlic_jax.config_checks import check_config
from mlic_jax.errors import UsageError
from mlic_jax.names import RECIPES
from mlic_jax.training_recipes import with_recipe


def read(*words):
    """The configuration of a command line."""
    argv = ["", *words]
    values = flags.FlagValues()
    flag = recipes.define_flag("config", "the recipe", values, argv)
    parse_flags(argv, values, flag)
    return flag.value


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("base", sorted(recipes.known()))
def test_every_recipe_trains_every_configuration(base, name):
    config = recipes.load(base)
    before = config.to_json()
    changed = with_recipe(config, name)
    check_config(changed)
    assert config.to_json() == before
    kept = set(changes_between(config, changed)) - {"recipe", "epochs", "batch_size"}
    kept -= {"data.train_crop", "data.crop_scale", "eval.weights"}
    assert {option.partition(".")[0] for option in kept} <= {"optim", "augment"}
    assert changed.recipe == name and changed.is_locked
    # Whatever it is asked of, and once is enough.
    assert with_recipe(changed, name).to_json() == changed.to_json()


@pytest.mark.parametrize("base", ["mcar_coco:resnet101,448", "mcar_voc2007:mobilenet_v2,448,avg"])
def test_what_was_released_is_what_the_recipes_of_papers_have(base):
    config = recipes.load(base)
    assert set(changes_between(config, with_recipe(config, "released"))) == {"recipe"}
    config = recipes.load("msrn_coco")
    assert set(changes_between(config, with_recipe(config, "released"))) == {"recipe"}


def test_asl_is_as_its_table_says():
    config = with_recipe(recipes.load("mcar_coco"), "asl")
    optim, augment = config.optim, config.augment
    assert (optim.name, optim.learning_rate, optim.schedule) == ("adam", 1e-4, "one_cycle")
    assert (optim.ema, config.eval.weights) == (0.9997, "ema")
    assert (optim.weight_decay, optim.decay_biases_and_norms) == (1e-4, False)
    assert (config.epochs / optim.schedule_share, config.epochs, config.batch_size) == (80, 40, 56)
    assert (augment.flip, augment.jitter, augment.cutout, augment.randaugment) == (False, 0, 0.5, 2)
    assert augment.mean == (0, 0, 0) and augment.std == (1, 1, 1)
    assert config.data.train_crop == "squash"
    assert config.loss.name == "bce"  # which is compared on its own


def test_q2l_and_csra_are_as_their_tables_say():
    config = with_recipe(recipes.load("mcar_coco"), "q2l")
    assert (config.optim.name, config.optim.weight_decay, config.epochs) == ("adamw", 1e-2, 80)
    assert config.optim.decay_biases_and_norms and config.augment.std[0] == 0.229
    config = with_recipe(recipes.load("mcar_coco"), "csra")
    optim = config.optim
    assert (optim.name, optim.schedule, optim.ema) == ("sgd", "cosine", 0)
    rates = [optim.learning_rate * optim.multipliers[group] for group in ("features", "rest")]
    assert rates == pytest.approx([0.01, 0.1])
    assert (config.data.train_crop, config.data.crop_scale) == ("random_resized_crop", (0.7, 1))
    assert (config.epochs, config.batch_size, config.eval.weights) == (30, 64, "raw")
    assert config.augment.flip and not config.augment.jitter and not any(config.augment.mean)


def test_what_is_frozen_stays_frozen():
    config = recipes.load("mcar_custom")
    assert config.optim.multipliers.features == 0
    for name in RECIPES:
        assert with_recipe(config, name).optim.multipliers.features == 0


@pytest.mark.parametrize("said", [["--config.recipe=asl"], ["--config.recipe", "asl"]])
def test_what_is_said_beside_a_recipe_goes_before_it(said):
    own = ["--config.optim.ema=0.99", "--config.epochs=3"]
    for words in ([*said, *own], [*own, *said]):
        config = read("--config=mcar_coco", *words)
        assert (config.recipe, config.optim.name, config.batch_size) == ("asl", "adam", 56)
        assert (config.optim.ema, config.epochs) == (0.99, 3)
        saved = json.loads(config.to_json())
        assert saved["optim"]["ema"] == 0.99 and saved["augment"]["cutout"] == 0.5
    assert read("--config=mcar_coco").optim.name == "sgd"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(
        UsageError, match="'cora'; known are released, asl, csra, q2l; did you mean"
    ):
        with_recipe(recipes.load("mcar_coco"), "cora")
    with pytest.raises(UsageError, match="recipe is 'ls'; known are released, asl, csra, q2l"):
        read("--config=mcar_coco", "--config.recipe=ls")
