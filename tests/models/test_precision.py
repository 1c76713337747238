"""Of every product of a program for an accelerator, in how many bits it is to be computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.models import create_model
from mlic_jax.models.options import UNSAID, ModelOptions
from mlic_jax.runtime import devices
from mlic_jax.scores import scoring
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.train import start
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState, make_train_step
from weight_conversion import sides

CLASSES = 3


def precisions(step, *arguments):
    """operation -> the precisions of all of its kind, in the programs of a step."""
    found = {"convolution": set(), "dot_general": set()}
    trace = step.trace(*arguments)
    for platform in ("cuda", "tpu"):
        program = trace.lower(lowering_platforms=(platform,)).as_text()
        for line in program.splitlines():
            if operation := re.search(r"(?<!#)stablehlo\.(convolution|dot_general)\b", line):
                one, other = re.findall(r"\b(?:DEFAULT|HIGHEST|HIGH)\b", line)
                assert one == other
                found[operation[1]].add(one)
    return found


def model_of(config):
    config.model.pool_ratio = 0.5  # of so few labels
    graph = np.eye(CLASSES, dtype=bool)
    labels = {"word_vectors": np.ones((CLASSES, 4), np.float32), "attention_mask": graph}
    return create_model(config.model, CLASSES, **labels if config.model.name == "msrn" else {})


def variables_of(model, config):
    return jax.eval_shape(lambda: start.initial_variables(model, TrainOptions.of(config)))


def batch_of(config):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    return mesh, devices.abstract_batch(mesh, 2, config.data.image_size, CLASSES)


def training(config):
    model = model_of(config)
    variables = variables_of(model, config)
    options = TrainOptions.of(config)
    schedule = create_schedule(options.optim, 10, 1)
    optimizer = create_optimizer(options.optim, variables["params"], schedule)
    opt_state = jax.eval_shape(optimizer.init, variables["params"])
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step=step, **variables, opt_state=opt_state)
    key = jax.eval_shape(lambda: jax.random.key(0))
    train_step = make_train_step(model, optimizer, schedule, options)
    return precisions(train_step, state, batch_of(config)[1], key)


def evaluation(config):
    mesh, batch = batch_of(config)
    model = model_of(config)
    return precisions(
        scoring.make_eval_step(model, ScoreOptions.of(config), mesh),
        variables_of(model, config),
        batch,
    )


def prediction(config):
    mesh, batch = batch_of(config)
    model = model_of(config)
    step = scoring.make_eval_step(model, ScoreOptions.of(config), mesh, class_maps=True)
    return precisions(step, variables_of(model, config), {"image": batch["image"]})


@pytest.mark.parametrize("name", ["pooled", "mcar", "msrn"])
def test_what_decides_a_result_is_computed_in_full(config, name):
    config.model.name = name
    config.eval.scales = (96,)  # resized on the device, by products
    expected = {"convolution": {"HIGHEST"}, "dot_general": {"HIGHEST"}}
    assert evaluation(config) == expected
    assert prediction(config) == expected


@pytest.mark.parametrize("name", ["pooled", "mcar", "msrn"])
def test_only_the_trunk_is_trained_in_fewer_bits(config, name):
    """Products that are no convolutions are those of classifiers, regions, crops and labels."""
    config.model.name = name
    assert training(config) == {"convolution": {"DEFAULT"}, "dot_general": {"HIGHEST"}}


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_one_precision_of_the_trunk_for_everything(config, precision):
    config.model.precision = precision
    expected = {"convolution": {precision.upper()}, "dot_general": {"HIGHEST"}}
    assert training(config) == expected
    assert evaluation(config) == expected


def test_an_unknown_precision_is_refused(config):
    config.model.precision = "float64"
    with pytest.raises(UsageError, match="precision is 'float64'; known are auto, default"):
        model_of(config)


def test_what_verifies_a_checkpoint_is_what_evaluates_it(config):
    """Of a checkpoint made before there was the option too."""
    model = config.model.to_dict()
    del model["precision"]
    checkpoint = sides.Checkpoint(
        name="run",
        variables=variables_of(model_of(config), config),
        label_inputs={},
        model=ModelOptions.of({**UNSAID, **model}),
        class_names=tuple("abc"),
        image_size=64,
        mean=config.augment.mean,
        std=config.augment.std,
    )
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    ours = sides.JaxSide(checkpoint)
    expected = {"convolution": {"HIGHEST"}, "dot_general": {"HIGHEST"}}
    assert precisions(ours.apply, checkpoint.variables, images) == expected
    assert sides.training_options(checkpoint).model.precision == "highest"
