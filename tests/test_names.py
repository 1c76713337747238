"""Names that options take, and the nearest of them."""

import pytest

from mlic_jax import names
from mlic_jax.errors import UsageError
from mlic_jax.models.backbones import CREATORS
from mlic_jax.models.heads.pooled import POOLINGS
from mlic_jax.models.ops.regions import LOCALIZERS


def test_they_are_those_of_what_they_name():
    assert tuple(CREATORS) == names.BACKBONES
    assert tuple(POOLINGS) == names.POOLINGS
    assert tuple(LOCALIZERS) == names.LOCALIZERS


@pytest.mark.parametrize(
    ("word", "known", "nearest"),
    [
        ("epoch", ("epochs", "eval.every"), "epochs"),
        ("learning_rate", ("optim.learning_rate", "optim.milestones"), "optim.learning_rate"),
        ("optim.epochs", ("optim.name", "epochs"), "epochs"),
        ("resnet51", ("resnet10", "resnet50", "resnet101"), "resnet50"),
        ("EVALUATE", ("train", "evaluate"), "evaluate"),
    ],
)
def test_the_nearest(word, known, nearest):
    assert names.did_you_mean(word, known) == f"; did you mean {nearest!r}?"


@pytest.mark.parametrize("known", [(), ("optim.milestones", "seed")])
def test_another_word_is_not_near(known):
    assert names.did_you_mean("model.foo", known) == ""


def test_what_is_not_known_is_refused_and_the_nearest_named():
    names.require_one_of("eval.ties", "", ("", "stable"))
    message = r"^eval.ties is 'stabel'; known are '', stable; did you mean 'stable'\?$"
    with pytest.raises(UsageError, match=message):
        names.require_one_of("eval.ties", "stabel", ("", "stable"))
