"""Typed options against the configuration that they are made from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest

from mlic_jax.config import default_config
from mlic_jax.errors import UsageError
from mlic_jax.evaluate.run import MetricOptions
from mlic_jax.models.inputs import InputOptions
from mlic_jax.models.options import UNSAID, ModelOptions
from mlic_jax.options import Options
from mlic_jax.recipes import load
from mlic_jax.scores.options import EvalOptions
from mlic_jax.train.options import TrainOptions

RECIPES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def kinds_of(kind):
    """The options that these are made of, themselves included."""
    inside = [hint for hint in get_type_hints(kind).values() if isinstance(hint, type)]
    yield kind
    for each in inside:
        if issubclass(each, Options):
            yield from kinds_of(each)


def fits(value, hint):
    """Whether a value is what the annotation of its field says."""
    arguments = get_args(hint)
    match get_origin(hint):
        case None if issubclass(hint, Options):
            return isinstance(value, hint)
        case None:  # whole numbers are floats too, as type checkers have it
            return type(value) is hint or (hint, type(value)) == (float, int)
        case origin if origin is Literal:
            return value in arguments
        case origin if origin in (Union, UnionType):
            return any(fits(value, argument) for argument in arguments)
        case origin if origin is Mapping:
            return isinstance(value, dict) and all(
                fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
            )
        case origin if origin is tuple:
            if arguments[1:] == (...,):
                arguments = arguments[:1] * len(value)
            one_each = type(value) is tuple and len(value) == len(arguments)
            return one_each and all(map(fits, value, arguments))
    raise AssertionError(f"{hint} is no annotation that options have")


def check_types(options):
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        assert fits(value, hint), f"{type(options).__name__}.{name} is {value!r}, no {hint}"
        if isinstance(value, Options):
            check_types(value)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_options_have_the_types_that_they_say(recipe):
    check_types(TrainOptions.of(load(str(recipe))))


def test_the_options_of_training_are_all_but_those_of_calibration():
    def names(kind):
        hints = get_type_hints(kind)
        return {
            name: names(hint) if isinstance(hint, type) and issubclass(hint, Options) else None
            for name, hint in hints.items()
        }

    def names_in(config, kind):
        """Those of a section; what people name freely, as groups of parameters, is one option."""
        return {
            name: names_in(config[name], kind[name]) if kind.get(name) else None for name in config
        }

    taken = names(TrainOptions)
    assert names_in(default_config(), taken) == taken | {"calibration": None}


def test_no_option_has_a_second_default():
    kinds = {*kinds_of(TrainOptions), MetricOptions, InputOptions, EvalOptions}
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert field.default is field.default_factory is dataclasses.MISSING, field.name


def test_what_a_section_of_a_model_does_not_say_is_the_default():
    said = {"name": "mcar", "backbone": "resnet101"}
    assert ModelOptions.of(UNSAID | said) == ModelOptions.of(default_config().model)


def test_options_are_frozen_copies():
    config = default_config()
    config.eval.scales = [64, 96]
    options = TrainOptions.of(config)
    config.eval.scales, config.optim.multipliers.features = (32,), 0.5
    assert options.eval.scales == (64, 96)
    assert options.optim.multipliers == {"features": 0.1, "rest": 1.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.eval.flip = True


def test_a_section_that_lacks_an_option_is_refused():
    with pytest.raises(UsageError, match="the configuration lacks std: begin with"):
        InputOptions.of({"mean": (0.0, 0.0, 0.0), "flip": True})
