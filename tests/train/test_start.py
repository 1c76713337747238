"""What a run starts from, of the labels that it is given."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import UsageError
from mlic_jax.models import create_model
from mlic_jax.models.backbones import vit
from mlic_jax.runtime.checkpoint import save_weights
from mlic_jax.train.label_losses import balanced_weights
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import (
    class_weights,
    initial_variables,
    no_corrections,
    start_weights,
)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"interpolation": "bicubic", "image_size": 32}, "data.interpolation 'bicubic' (now 'bili"),
        ({"center_crop": 0.875}, "data.center_crop 0.875 (now 0.0)"),
        ({"std": [0.5, 0.5, 0.5]}, "augment.std (0.5, 0.5, 0.5) (now (0.229, 0.224, 0.225))"),
    ],
)
def test_weights_that_saw_other_photos_are_told_of(
    config, fresh_run, tmp_path, caplog, changed, told
):
    variables, metadata = fresh_run(config)
    metadata["preprocessing"] |= changed
    save_weights(tmp_path / "weights", variables, metadata)
    config.init_from = str(tmp_path / "weights")
    with caplog.at_level("INFO", "mlic_jax"):
        start_weights(variables, TrainOptions.of(config), metadata["class_names"])
    lines = [line for line in caplog.messages if "saw other photos than this run: " in line]
    assert len(lines) == bool(told) and all(told in line for line in lines)


def test_positions_of_other_sizes_are_resized(config, fresh_run, monkeypatch, tmp_path):
    """Those of weights that saw larger images, by a run that resumes with what it has itself."""
    monkeypatch.setitem(vit.SIZES, "vit_tiny_patch16", vit.Size(4, 8, 2, 16, vit.VIT))
    config.model.update(name="pooled", backbone="vit_tiny_patch16", width=1.0)
    config.data.image_size = 96
    variables, metadata = fresh_run(config)
    table = variables["params"]["features"]["stem"]["positions"]
    assert table.shape == (37, 8)
    save_weights(tmp_path / "weights", variables, metadata)
    config.init_from, config.data.image_size = str(tmp_path / "weights"), 64
    options = TrainOptions.of(config)
    model = create_model(options.model, len(metadata["class_names"]))
    fresh = initial_variables(model, options)
    names = metadata["class_names"]
    started = start_weights(fresh, options, names, model.features.fit)["params"]["features"]
    fitted = model.features.fit(variables["params"]["features"], fresh["params"]["features"])
    jax.tree.map(np.testing.assert_array_equal, started, fitted)
    assert started["stem"]["positions"].shape == (17, 8)


def test_classes_weigh_by_the_labels_that_are_kept(config):
    config.loss.class_weights = "inverse"
    options = TrainOptions.of(config)
    everything = class_weights(options.loss, sources.open_splits(options.data)["train"])
    config.data.keep_labels = 0.5
    split = sources.open_to_train(DataOptions.of(config.data))["train"]
    positives = jnp.asarray((split.labels() > 0).sum(axis=0))
    weights = class_weights(options.loss, split)
    np.testing.assert_array_equal(weights, balanced_weights(positives, len(split), "inverse"))
    assert (weights != everything).any()


def test_a_share_of_less_than_a_label_is_refused(config):
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    assert no_corrections(TrainOptions.of(config), split) is None
    config.loss.update(name="large_loss", large="correct_permanently")
    with pytest.raises(UsageError, match=r"delta is 0\.002, of about \d+ labels given as absent"):
        no_corrections(TrainOptions.of(config), split)
    config.loss.delta = 0.1
    corrected = no_corrections(TrainOptions.of(config), split)
    assert corrected.shape == split.labels().shape and not corrected.any()
    config.accumulation = 8
    with pytest.raises(UsageError, match="none would be corrected"):
        no_corrections(TrainOptions.of(config), split)


def test_padding_is_corrected_nowhere(config):
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    absent = (split.labels() < 0).sum()
    config.batch_size = 8 * len(split)
    config.loss.update(name="large_loss", large="correct_permanently", delta=float(0.9 / absent))
    with pytest.raises(UsageError, match=f"of about {absent} labels given as absent"):
        no_corrections(TrainOptions.of(config), split)
    config.loss.delta = float(1.1 / absent)
    assert no_corrections(TrainOptions.of(config), split) is not None


@pytest.mark.parametrize("name", ["csra", "query2label"])
def test_a_prior_is_for_a_head_that_has_a_bias(config, name, caplog):
    config.model.update(name=name, head_width=4)
    config.init_prior = 0.1
    options = TrainOptions.of(config)
    fresh = initial_variables(create_model(options.model, 5), options)
    before = jax.tree.map(np.asarray, fresh["params"]["head"])
    with caplog.at_level("INFO", "mlic_jax"):
        head = start_weights(fresh, options, list("abcde"))["params"]["head"]
    line = "init_prior is not for csra, which has no bias that could start there"
    assert caplog.messages == ([line] if name == "csra" else [])
    if name == "csra":
        jax.tree.map(np.testing.assert_array_equal, head, before)
    else:
        np.testing.assert_allclose(nn.sigmoid(head["per_label"]["bias"]), 0.1, rtol=1e-6)


def test_the_weights_of_another_backbone_of_the_same_arrays_are_refused(
    config, fresh_run, tmp_path
):
    """Whose padding is another: nothing else would tell."""
    variables, metadata = fresh_run(config)
    metadata["config"]["model"]["backbone"] = "resnet_of_another_padding"
    save_weights(tmp_path / "weights", variables, metadata)
    config.init_from = str(tmp_path / "weights")
    with pytest.raises(UsageError, match="are of the backbone resnet_of_another_padding, and"):
        start_weights(variables, TrainOptions.of(config), metadata["class_names"])


def test_the_weights_of_a_backbone_of_other_arrays_are_refused_by_its_name(
    config, fresh_run, tmp_path
):
    variables, metadata = fresh_run(config)
    save_weights(tmp_path / "weights", variables, metadata)
    config.init_from, config.model.backbone = str(tmp_path / "weights"), "mobilenet_v2"
    options = TrainOptions.of(config)
    other = jax.eval_shape(lambda: initial_variables(create_model(options.model, 5), options))
    with pytest.raises(UsageError, match=r"are of the backbone resnet10, and .* is mobilenet_v2"):
        start_weights(other, options, metadata["class_names"])


@pytest.mark.parametrize(("rate", "is_told"), [(0.0, True), (0.1, False)])
def test_a_random_backbone_that_stays_as_it_is_is_told_of(config, fresh_run, caplog, rate, is_told):
    variables, metadata = fresh_run(config)
    config.optim.multipliers.features = rate
    start_weights(variables, TrainOptions.of(config), metadata["class_names"])
    assert ("and is random, for init_from names no weights" in caplog.text) == is_told
