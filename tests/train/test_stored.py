"""Training on features that are computed once, against a run that computes the same views."""

import itertools
import json

import jax
import numpy as np
import pytest

from mlic_jax.data import sources
from mlic_jax.features.regions import open_regions
from mlic_jax.models import create_model
from mlic_jax.runtime import devices
from mlic_jax.runtime.checkpoint import latest_checkpoint, load_weights
from mlic_jax.train.loop import train, training_order
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import first_state_and_step, initial_variables
from mlic_jax.train.stored import compile_stored_step, open_training_store


@pytest.fixture
def frozen(make_config, tmp_path):
    """(model) -> a run of four epochs in two views, on a backbone that stays as it is."""

    def make(name="mcar"):
        config = make_config()
        config.data.prepared_dir = str(tmp_path / "prepared")
        config.epochs, config.data.views, config.eval.every = 4, 2, 2
        config.data.views_seed = 5  # another than that of order and weights
        config.data.train_crop = "random_resized_crop"
        config.freeze_statistics, config.optim.multipliers.features = True, 0.0
        config.model.name, config.eval.flip = name, True
        # At 0.5 a straight ramp of a map crosses on a pixel, and rounding decides where.
        config.model.threshold = 0.47
        if name == "msrn":
            config.data.word_vectors, config.model.pool_ratio = "one_hot", 0.4
            config.model.head = "per_label"  # the dense one has millions of parameters
        if name == "ml_decoder":
            config.model.head_width = 24
        if name == "pooled":  # with what else may be drawn of a view, and averaged
            config.augment.update(cutout=0.5, randaugment=1)
            config.optim.ema, config.eval.weights = 0.9, "ema"
        return config

    return make


def lines_of(workdir):
    """Of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curves(workdir):
    """The figures of all steps and validations, without what depends on the clock or the store."""
    of_clock = {"images_per_second", "known_regions"}
    return [{k: v for k, v in line.items() if k not in of_clock} for line in lines_of(workdir)]


@pytest.mark.parametrize("name", ["pooled", "mcar", "msrn", "ml_decoder"])
def test_a_run_is_that_which_computes_the_same_views(frozen, tmp_path, name):
    """The losses of every step, the validations and the final scores.

    Both compute the same in float32, in programs and batches of their own: what differs is the
    order of sums.
    """
    config = frozen(name)
    train(config, tmp_path / "plain")
    config.features.store = True
    train(config, tmp_path / "stored")
    plain, stored = (curves(tmp_path / run) for run in ("plain", "stored"))
    assert [set(values) for values in plain] == [set(values) for values in stored]
    for values, others in zip(plain, stored, strict=True):
        for figure, value in values.items():
            np.testing.assert_allclose(others[figure], value, rtol=1e-4, err_msg=figure)
    scores = [np.load(tmp_path / run / "scores_test.npz") for run in ("plain", "stored")]
    assert set(scores[0]) == set(scores[1])
    assert ("boxes" in scores[0]) == (name != "msrn")
    for array in ("logits", *(["boxes", "class_maps"] if name != "msrn" else [])):
        np.testing.assert_allclose(scores[0][array], scores[1][array], atol=1e-4)


def test_an_interrupted_run_ends_as_one_left_alone(frozen, tmp_path, asked_to_stop, capsys):
    """Each with a store of its own, so that none has what the other looked at.

    With a loss that remembers labels, from the second epoch of three steps on.
    """

    for run in ("alone", "broken"):
        config = frozen()
        config.features.store = True
        config.loss.update(name="large_loss", large="correct_permanently", delta=0.1)
        config.data.prepared_dir = str(tmp_path / f"prepared_{run}")
        if run == "broken":
            with asked_to_stop():
                train(config, tmp_path / run)
            assert "stopped at step 7 of 12, saved" in capsys.readouterr().out
        train(config, tmp_path / run)
    assert curves(tmp_path / "alone") == curves(tmp_path / "broken")
    corrected = [line["corrected"] for line in curves(tmp_path / "alone") if "loss" in line]
    assert corrected == sorted(corrected)
    assert corrected[2] == 0 < corrected[5] < corrected[11]
    runs = (load_weights(latest_checkpoint(tmp_path / run))[0] for run in ("alone", "broken"))
    jax.tree.map(np.testing.assert_array_equal, *runs)


def test_a_line_says_how_many_regions_were_known(frozen, tmp_path, capsys):
    """All of them in a run after one like it."""
    config = frozen()
    config.features.store = True
    for run in ("first", "second"):
        train(config, tmp_path / run)
    lines = lines_of(tmp_path / "second")
    known = [line["known_regions"] for line in lines if "loss" in line]
    assert known == [1.0] * 12
    assert "100% of regions known" in capsys.readouterr().out
    lines = lines_of(tmp_path / "first")
    assert next(line["known_regions"] for line in lines if "loss" in line) < 0.5


def test_of_padding_alone_all_regions_are_known(frozen):
    config = frozen()
    config.features.store = True
    options = TrainOptions.of(config)
    split = sources.open_splits(options.data)["train"]
    model = create_model(options.model, len(split.class_names))
    variables, mesh = initial_variables(model, options), devices.create_mesh()
    store = open_training_store(model, variables, split, options, mesh)
    regions = open_regions(store, model)
    state, _ = first_state_and_step(model, variables, options, split, mesh)
    key = jax.jit(jax.random.key, out_shardings=devices.replicated(mesh))(0)
    nothing = jax.jit(lambda state, batch, key: (state, {}))
    step = compile_stored_step(nothing, model, store, regions, options, state, key)
    (order,) = itertools.islice(store.batches(training_order(split, options, 0)), 1)
    shares = []
    for index in (np.full(8, -1, np.int32), order["index"]):
        of_rows = {"index": index, "seen": store.read(("maps",), order["view"], index)}
        _, metrics = step(state, devices.to_devices(order | of_rows, mesh), key)
        shares.append(metrics["known_regions"])
    assert shares[0] == 1 and shares[1] < 0.5
