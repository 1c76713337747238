"""Training on real (generated) images: the step, padding, resuming, and what stops a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mlic_jax.checkpoint_config import set_up
from mlic_jax.data import label_inputs, pipeline, sources
from mlic_jax.data.kept_labels import kept_of
from mlic_jax.data.options import DataOptions
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.errors import Failure, UsageError
from mlic_jax.evaluate import evaluate_run
from mlic_jax.files import digests
from mlic_jax.files.atomic import locked
from mlic_jax.models import create_model, spread
from mlic_jax.models.inputs import InputOptions, normalise
from mlic_jax.models.ops.regions import profiles
from mlic_jax.predict import Predictor
from mlic_jax.runtime import devices
from mlic_jax.runtime.checkpoint import (
    find_checkpoint,
    latest_checkpoint,
    load_weights,
    read_metadata,
    save_weights,
)
from mlic_jax.train.loop import train
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables, label_constants, shared_modules, start_weights
from mlic_jax.train.step import TrainState, make_train_step

ROOT = Path(__file__).resolve().parents[2]


def quick(config):
    """A pooled model on a backbone of which the statistics alone move: it compiles soon."""
    config.model.name, config.optim.multipliers.features = "pooled", 0.0
    return config


def metric_lines(workdir):
    """metrics.jsonl without what depends on the clock."""
    found = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        values.pop("images_per_second", None)
        found.append(values)
    return found


def step_runner(config):
    """(batch, mesh) -> (state, metrics) of a step without augmentation, and the first batch."""
    config.augment.flip, config.augment.jitter = False, 0.0  # random numbers depend on the shape
    # At 0.5 the straight ramp between two cells of a map crosses exactly on a pixel, and rounding
    # alone decides where a region ends.
    config.model.threshold = 0.47
    options = TrainOptions.of(config)
    split = sources.open_splits(options.data)["train"]
    constants = label_inputs.arguments_of(label_constants(options, split))
    model = create_model(config.model, len(split.class_names), **constants)
    variables = initial_variables(model, options)
    schedule = create_schedule(options.optim, 3, 2)
    optimizer = create_optimizer(options.optim, variables["params"], schedule)

    alone = make_train_step(model, optimizer, schedule, options)

    def run(batch, mesh=None):
        """On one device, or on those of a mesh."""
        copies = jax.tree.map(jnp.copy, variables)
        state = TrainState(jnp.int32(0), **copies, opt_state=optimizer.init(copies["params"]))
        if mesh is None:
            return alone(state, {name: jnp.asarray(rows) for name, rows in batch.items()}, key)
        shardings = devices.lying(state, mesh)
        several = spread(model, devices.ROWS)
        step = make_train_step(several, optimizer, schedule, options, mesh, shardings)
        return step(devices.lay_out(state, shardings), devices.to_devices(batch, mesh), key)

    key = jax.random.key(0)
    batches = pipeline.batches(split, batch_size=8, image_size=64, shuffle=False)
    batch = next(batches)
    batches.close()
    return run, batch, variables


def assert_same_moves(before, after, other):
    """How far the parameters of every module went, to a thousandth of its furthest."""
    for name, old in before.items():
        moves = [jax.tree.map(lambda a, b: a - b, params[name], old) for params in (after, other)]
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moves[0]))
        jax.tree.map(
            lambda a, b, scale=scale: np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * scale),
            *moves,
        )


@pytest.fixture(scope="module")
def one_step(make_config):
    return step_runner(make_config())


def test_padding_moves_nothing(one_step):
    """What the padded rows hold changes no loss, no statistic and no parameter."""
    run, batch, _ = one_step
    outcomes = []
    for value, label in ((0, -1), (255, 1)):
        padded = {name: rows.copy() for name, rows in batch.items()}
        padded["image"][5:], padded["labels"][5:], padded["mask"][5:] = value, label, False
        state, metrics = run(padded)
        outcomes.append((metrics, state.params, state.batch_stats))
    jax.tree.map(np.testing.assert_array_equal, *outcomes)
    # And the mean is that of the five real images.
    _, metrics = run({name: rows[:5] for name, rows in batch.items()})
    np.testing.assert_allclose(metrics["loss_global"], outcomes[0][0]["loss_global"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_local"], outcomes[0][0]["loss_local"], rtol=1e-2)


def test_unknown_labels_train_as_present_like_the_released_system(one_step):
    run, batch, _ = one_step
    unknown = np.where(batch["labels"] > 0, 0, batch["labels"]).astype(np.int8)
    assert run({**batch, "labels": unknown})[1]["loss"] == run(batch)[1]["loss"]


def test_a_step_does_not_depend_on_how_many_devices_share_it(one_step):
    run, batch, before = one_step
    mesh = devices.create_mesh()
    assert mesh.size == 8
    state, alone = run(batch)
    other, shared = run(batch, mesh)
    np.testing.assert_allclose(alone["loss_global"], shared["loss_global"], rtol=1e-5)
    np.testing.assert_allclose(alone["loss_local"], shared["loss_local"], rtol=1e-4)
    assert_same_moves(before["params"], state.params, other.params)


def distance_to_ties(maps, threshold):
    """How far the profiles of maps `[..., 2, 2]` keep from where they are cut, `[...]`."""
    distances = []
    for profile in map(np.asarray, profiles(maps, (64, 64))):
        low, high = (edge(profile, axis=-1, keepdims=True) for edge in (np.min, np.max))
        distances.append(np.abs(profile - low - threshold * (high - low)).min(axis=-1))
    return np.minimum(*distances)


def test_more_devices_move_no_region_but_those_on_a_tie(make_config):
    """At 1/2 a straight ramp from a profile's lowest to its highest value can cross on a pixel.

    Then rounding decides where the region ends, and that depends on how many images a device has.
    All else is equal: the first look, and of the same regions the second.
    """
    config = make_config()
    assert config.model.threshold == 0.5
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    model = create_model(config.model, len(split.class_names))
    # In training, where the statistics of all devices' images normalise those of each.
    options = {"train": True, "mutable": ["batch_stats", "intermediates"]}
    globally = jax.jit(partial(model.apply, method="look_globally", **options))
    locally = jax.jit(partial(model.apply, method="look_locally", **options))
    batches = pipeline.batches(split, batch_size=8, image_size=64, shuffle=False)
    images = np.asarray(normalise(next(batches)["image"], InputOptions.of(config.augment)))
    batches.close()
    shared = devices.to_devices({"image": images}, devices.create_mesh())["image"]
    ties = 0
    for config.seed in range(3):
        variables = initial_variables(model, TrainOptions.of(config))
        (alone, moved), (several, _) = (globally(variables, rows) for rows in (images, shared))
        assert several["global_logits"].sharding.num_devices == 8
        for name, array in several.items():
            if name != "boxes":
                np.testing.assert_allclose(array, alone[name], rtol=1e-4, atol=1e-4, err_msg=name)
        # A hundred roundings of numbers up to 1; the ties keep within a few, the rest far outside.
        maps = moved["intermediates"]["class_maps"][0]
        tied = distance_to_ties(maps, config.model.threshold) < 1e-5
        np.testing.assert_array_equal(several["boxes"][~tied], alone["boxes"][~tied])
        ties += tied.sum()
        seen = jax.device_get(alone)
        (alone, _), (several, _) = (locally(variables, rows, seen) for rows in (images, shared))
        np.testing.assert_allclose(several["logits"], alone["logits"], rtol=1e-4, atol=1e-4)
    assert ties, "otherwise there was nothing to leave out"


def test_a_step_of_msrn_is_the_same_on_eight_devices(make_config):
    config = make_config()
    config.model.name, config.model.head, config.model.pool_ratio = "msrn", "per_label", 0.2
    config.data.word_vectors = "one_hot"
    # The backbone is that of the test above: without its gradient this one compiles in half a time.
    config.optim.multipliers.features, config.freeze_statistics = 0.0, True
    run, batch, before = step_runner(config)
    state, alone = run(batch)
    other, shared = run(batch, devices.create_mesh())
    assert other.params["per_label"]["kernel"].sharding.num_devices == 8
    np.testing.assert_allclose(alone["loss"], shared["loss"], rtol=1e-5)
    # Every device adds its share of it.
    np.testing.assert_allclose(alone["loss_group"], shared["loss_group"], rtol=1e-6)
    del before["params"]["features"]
    assert_same_moves(before["params"], state.params, other.params)


def test_a_new_run_takes_what_fits_its_classes(config, tmp_path):
    """The whole model for the same classes, the backbone for others, the prior for the rest."""
    config = config.copy_and_resolve_references()
    model = create_model(config.model, 3)
    given = jax.device_get(initial_variables(model, TrainOptions.of(config)))
    save_weights(tmp_path / "weights", given, {"class_names": ["a", "b", "c"]})
    config.init_from, config.init_prior, config.seed = str(tmp_path / "weights"), 0.1, 5
    same, other = (
        start_weights(
            initial_variables(model, TrainOptions.of(config)), TrainOptions.of(config), names
        )
        for names in (["a", "b", "c"], ["a", "b", "d"])
    )
    jax.tree.map(np.testing.assert_array_equal, same, given)
    jax.tree.map(
        np.testing.assert_array_equal, other["params"]["features"], given["params"]["features"]
    )
    np.testing.assert_allclose(nn.sigmoid(other["params"]["convclass"]["bias"]), 0.1, rtol=1e-6)
    assert not np.array_equal(
        other["params"]["convclass"]["kernel"], given["params"]["convclass"]["kernel"]
    )


@pytest.mark.parametrize(("name", "takes_classifier"), [("csra", False), ("pooled", True)])
def test_another_model_of_the_same_classes_takes_what_it_has_too(
    config, tmp_path, name, takes_classifier
):
    """To another head the backbone alone; a pooled model has all the arrays of MCAR's."""
    names = ["a", "b", "c"]
    given = jax.device_get(
        initial_variables(create_model(config.model, 3), TrainOptions.of(config))
    )
    about = {"class_names": names, "config": {"model": {"name": "mcar"}}}
    save_weights(tmp_path / "weights", given, about)
    config.init_from, config.seed, config.model.name = str(tmp_path / "weights"), 5, name
    options = TrainOptions.of(config)
    fresh = initial_variables(create_model(config.model, 3), options)
    params = start_weights(fresh, options, names)["params"]
    jax.tree.map(np.testing.assert_array_equal, params["features"], given["params"]["features"])
    classifier = {"csra": "head", "pooled": "convclass"}[name]
    expected = given["params"] if takes_classifier else fresh["params"]
    jax.tree.map(np.testing.assert_array_equal, params[classifier], expected[classifier])


def test_of_another_model_all_is_taken_that_does_not_depend_on_the_labels():
    def model(**sizes):
        params = {name: {"kernel": np.zeros((size, 2))} for name, size in sizes.items()}
        return {"params": params}

    ours = model(features=9, project2=4, group_assignment=3, fc1=8, fc2=5)
    same_count = model(features=9, project2=4, group_assignment=3, fc1=8, fc2=5)
    assert shared_modules(ours, same_count) == {"features", "project2", "group_assignment"}
    more_groups = model(features=9, project2=4, group_assignment=6, fc1=9, fc2=7)
    assert shared_modules(ours, more_groups) == {"features", "project2"}
    assert shared_modules(ours, model(features=9, convclass=5)) == {"features"}


def test_frozen_statistics_stay_as_they_are(make_config):
    config = make_config()
    config.freeze_statistics = True
    run, batch, before = step_runner(config)
    state, _ = run(batch)
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, before["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, before["params"])
    assert all(jax.tree.leaves(moved))


def test_msrn_may_know_of_no_label_what_it_occurs_with(make_config):
    config = make_config()
    config.model.name, config.data.word_vectors = "msrn", "one_hot"
    masks = {}
    for graph in ("", "identity"):
        config.data.label_graph = graph
        options = TrainOptions.of(config)
        constants = label_constants(options, sources.open_splits(options.data)["train"])
        masks[graph] = label_inputs.arguments_of(constants)["attention_mask"]
    np.testing.assert_array_equal(masks["identity"], np.eye(len(masks[""]), dtype=bool))
    assert masks[""].sum() > len(masks[""])


def test_msrn_trains_and_its_checkpoint_knows_the_labels(config, tmp_path):
    """The graph counts the labels that are kept to train on."""
    config.model.name, config.model.head, config.model.pool_ratio = "msrn", "per_label", 0.2
    config.epochs, config.data.keep_labels = 1, 0.5
    with pytest.raises(UsageError, match="mlic build-word-vectors --prepared"):
        train(config, tmp_path)
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    vectors = np.random.default_rng(0).normal(0, 1, (len(split.class_names), 20))
    words = WordVectors(vectors.astype(np.float32), split.class_names, "random")
    words.save(tmp_path / "words.npz")
    config.data.word_vectors = str(tmp_path / "words.npz")
    train(config, tmp_path / "run")

    known = load_weights(tmp_path / "run")[0]["label_inputs"]
    np.testing.assert_array_equal(known["word_vectors"], words.vectors)
    positives = kept_of(split.labels(), DataOptions.of(config.data)) >= 0  # as_positive
    assert (positives.sum(axis=0) < (split.labels() >= 0).sum(axis=0)).any()
    np.testing.assert_array_equal(known["class_counts"], positives.sum(axis=0))
    first = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert "global_mAP" not in first
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Global stream" not in page
    config.epochs = 2
    train(config, tmp_path / "run", evaluate=False)
    assert [line["step"] for line in metric_lines(tmp_path / "run") if "loss" in line][-1] == 6


def test_train_leaves_everything_a_person_and_a_program_want(config, tmp_path, capsys):
    config.epochs, config.eval.every = 3, 2
    train(config, str(tmp_path))
    lines = metric_lines(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 10))
    assert [line["epoch"] for line in lines if "val/mAP" in line] == [2, 3]  # and at the end
    for name in ("scores_test.npz", "metrics_test.json", "report/index.html"):
        assert (tmp_path / name).is_file()
    values = json.loads((tmp_path / "metrics_test.json").read_text())
    printed = capsys.readouterr().out
    assert f"final mAP {values['mAP']:.1f}" in printed
    assert f"global stream alone {values['global_mAP']:.1f}" in printed
    variables, metadata = load_weights(tmp_path)
    assert set(variables) == {"params", "batch_stats"}
    assert metadata["preprocessing"]["image_size"] == 64
    assert metadata["stream"]["examples"] == 20
    assert len(metadata["stream"]["digest of the images' names"]) == 16
    assert metadata["class_names"][0] == "blue disc"

    changed = config.copy_and_resolve_references()
    changed.model.top_n = 1
    with pytest.raises(UsageError, match=r"had model\.top_n 2 \(now 1\).* or --allow_changes"):
        train(changed, tmp_path)
    changed.model.width = 0.25
    with pytest.raises(UsageError, match=r"has model\.width 0.125, the configuration 0.25"):
        train(changed, tmp_path, allow_changes=True)
    changed = config.copy_and_resolve_references()
    changed.seed = 1
    with pytest.raises(UsageError, match="read batches with seed 0, now it is 1"):
        train(changed, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config.model.name, config.optim.learning_rate = "pooled", 1e30
    config.checkpoint_every = 1
    with pytest.raises(Failure) as error:
        train(config, tmp_path)
    message = str(error.value)
    assert "step 2 is not finite" in message
    assert message.count("train-0000") == 8  # the images of the batch
    assert f"the last good checkpoint is {tmp_path}/checkpoints/1" in message
    saved = load_weights(tmp_path)[0]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(saved))


def test_a_damaged_checkpoint_stops_the_run_until_it_recovers(config, tmp_path, capsys):
    """It then goes on from the one before, whose validation, here, a kill had cut off."""
    config = quick(config)
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    train(config, alone, evaluate=False)
    shutil.copytree(alone, broken)
    array = max((broken / "checkpoints/6/variables/d").iterdir(), key=lambda p: p.stat().st_size)
    array.write_bytes(array.read_bytes()[:-1] + b"?")
    before = broken / "checkpoints/3/metadata/metadata"
    metadata, _ = digests.unsealed(json.loads(before.read_text()))
    assert metadata.pop("validation")["mAP"] > 0
    before.write_text(json.dumps(digests.sealed(metadata)))

    with pytest.raises(Failure, match=rf"{array.name} is not as it was written.*--recover"):
        train(config, broken)
    capsys.readouterr()
    train(config, broken, recover=True, evaluate=False)
    printed = capsys.readouterr().out
    assert f"set aside in {broken}/damaged: {array} is not as it was written" in printed
    assert f"resuming {broken}/checkpoints/3" in printed
    assert metric_lines(alone) == metric_lines(broken)
    for find in (latest_checkpoint, find_checkpoint):
        folders = [find(run) for run in (alone, broken)]
        assert folders[0].name == folders[1].name
        said = [read_metadata(folder) for folder in folders]
        assert said[0] | {"folder": ""} == said[1] | {"folder": ""}  # where each was written
        jax.tree.map(np.testing.assert_array_equal, *(load_weights(f)[0] for f in folders))


def test_changed_options_are_told_and_remembered(config, tmp_path, capsys):
    config = quick(config)
    config.epochs = 1
    train(config, tmp_path, evaluate=False)
    config.epochs, config.log_every, config.optim.learning_rate = 2, 2, 0.01
    with pytest.raises(UsageError, match=r"had optim\.learning_rate 0\.05 \(now 0\.01\)"):
        train(config, tmp_path)
    capsys.readouterr()
    train(config, tmp_path, allow_changes=True, evaluate=False)
    told = "epochs 1 (now 2), log_every 1 (now 2), optim.learning_rate 0.05 (now 0.01)"
    printed = capsys.readouterr().out
    assert "changed in resuming: " in printed
    assert all(change in printed for change in told.split(", "))
    (changes,) = read_metadata(latest_checkpoint(tmp_path))["changes"]
    assert changes["step"] == 3
    assert changes["options"]["optim.learning_rate"] == [0.05, 0.01]


def test_a_validation_split_without_a_label_is_refused(config, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("image,labels,split\na.png,dog,train\nb.png,dog?,val\n")
    config.data.update({"source": "csv", "name": "own", "root": str(tmp_path), "image_dir": ""})
    config.data.update({"annotations": "t.csv", "prepared_dir": str(tmp_path / "prepared")})
    config.data.splits.test = "val"
    with pytest.raises(UsageError, match=r"data\.splits\.val is 'val', where no label is known"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_process_at_a_time_trains_in_a_folder(config, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        locked(tmp_path / "run"),
        pytest.raises(UsageError, match=r"another process is writing to .*/run"),
    ):
        train(config, tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


def test_a_request_to_stop_after_the_last_step_is_heard(config, tmp_path, asked_to_stop, capsys):
    """It comes in the last validation, and the final evaluation would take long."""

    config = quick(config)
    config.epochs = 1
    with asked_to_stop(signal.SIGINT):
        train(config, tmp_path)
    assert "stopped before the final evaluation, saved" in capsys.readouterr().out
    assert not (tmp_path / "metrics_test.json").exists()
    train(config, tmp_path)
    assert (tmp_path / "metrics_test.json").exists()


@pytest.mark.parametrize("run", [train, evaluate_run])
def test_from_python_too_a_wrong_option_is_named(config, tmp_path, run):
    config.batch_size = 0
    with pytest.raises(UsageError, match="batch_size is 0; it must be positive"):
        run(config, tmp_path)


def test_from_python_too_an_address_is_no_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="gs://runs/a is no path of this machine"):
        train(config, "gs://runs/a")
    assert not list(tmp_path.iterdir())


def test_batches_must_divide_among_the_devices(config, tmp_path):
    config.batch_size = 12
    with pytest.raises(
        UsageError, match="batch_size is 12; it must be a multiple of the 8 devices"
    ):
        train(config, tmp_path)


def start(workdir, prepared_dir, cache):
    """The real command in a process of its own, on one device."""
    command = [
        *(sys.executable, "-m", "mlic_jax.main", "--config", "configs/mcar_scenes.py"),
        *("--workdir", str(workdir), "--config.data.prepared_dir", str(prepared_dir)),
        *("--config.data.name=tiny_scenes", "--config.data.scenes_sizes=(20, 9, 11)"),
        *("--config.epochs=8", "--config.batch_size=8", "--config.log_every=1"),
        *("--config.checkpoint_every=2", "--config.eval.every=4", "--config.model.width=0.125"),
        *("--config.data.image_size=64",),
    ]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, workdir, step):
    """Until metrics.jsonl or a checkpoint shows that a step was reached."""
    latest = workdir / "checkpoints"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        if latest.is_dir() and any(
            entry.name.isdigit() and int(entry.name) >= step for entry in latest.iterdir()
        ):
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err[-3000:]
    return out


@pytest.mark.slow
def test_killed_and_stopped_runs_end_as_one_left_alone(tmp_path, config):
    """SIGKILL, then SIGTERM, then to the end: same losses, same parameters, bit for bit."""
    sources.open_splits(DataOptions.of(config.data))
    prepared_dir, cache = config.data.prepared_dir, tmp_path / "cache"
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    finish(start(alone, prepared_dir, cache))

    process = start(broken, prepared_dir, cache)
    wait_for_step(process, broken, 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert metric_lines(broken)[-1]["step"] < 24

    process = start(broken, prepared_dir, cache)
    wait_for_step(process, broken, 8)
    process.send_signal(signal.SIGTERM)
    printed = finish(process)
    assert "resuming" in printed
    assert "the same command continues" in printed
    finish(start(broken, prepared_dir, cache))

    assert metric_lines(alone) == metric_lines(broken)
    for find in (latest_checkpoint, find_checkpoint):
        folders = [find(run) for run in (alone, broken)]
        assert folders[0].name == folders[1].name
        metadata = [read_metadata(folder) for folder in folders]
        assert [of.pop("folder") for of in metadata] == [str(alone), str(broken)]
        assert metadata[0] == metadata[1]
        expected, got = (load_weights(folder)[0] for folder in folders)
        jax.tree.map(np.testing.assert_array_equal, expected, got)
    scores = [np.load(run / "scores_test.npz") for run in (alone, broken)]
    np.testing.assert_array_equal(scores[0]["logits"], scores[1]["logits"])


def averaged(make_config):
    """A model whose weights are averaged, with all that is drawn in a step."""
    config = quick(make_config())
    config.optim.ema, config.checkpoint_every = 0.9, 1
    config.keep_checkpoints, config.eval.weights = 6, "ema"
    config.augment.update(cutout=0.5, randaugment=1, mixup=0.4)
    return config


def test_averages_are_of_all_steps_and_a_resumed_run_has_the_same(
    make_config, tmp_path, asked_to_stop
):
    config = averaged(make_config)
    train(config, tmp_path / "alone")

    with asked_to_stop():
        train(config, tmp_path / "broken")
    assert latest_checkpoint(tmp_path / "broken").name == "4"
    train(config, tmp_path / "broken", evaluate=False)
    assert metric_lines(tmp_path / "alone") == metric_lines(tmp_path / "broken")
    last = [latest_checkpoint(tmp_path / run) for run in ("alone", "broken")]
    for weights in ("raw", "ema"):
        saved = [load_weights(path, weights)[0] for path in last]
        jax.tree.map(np.testing.assert_array_equal, *saved)

    split = sources.open_splits(DataOptions.of(config.data))["train"]
    model = create_model(config.model, len(split.class_names))
    start = jax.device_get(initial_variables(model, TrainOptions.of(config)))
    expected = jax.tree.map(np.float64, start)
    for step in range(6):
        decay = min(0.9, (1 + step) / (10 + step))
        raw = load_weights(tmp_path / "alone" / "checkpoints" / str(step + 1), "raw")[0]
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, raw)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), saved[0], expected)

    # What is validated and evaluated is the average.
    validated = read_metadata(find_checkpoint(tmp_path / "alone"))["validation"]["mAP"]
    values = json.loads((tmp_path / "alone" / "metrics_test.json").read_text())
    setup = set_up(None, tmp_path / "alone", None, {"eval.weights": "raw"})
    assert setup.workdir.name == "eval.weights=raw"
    assert evaluate_run(setup.config, setup.workdir, setup.path)["mAP"] != values["mAP"]
    config.data.splits.test = "val"
    assert evaluate_run(config, tmp_path, setup.path)["mAP"] == pytest.approx(validated)
    page = (tmp_path / "alone" / "report" / "index.html").read_text()
    assert "the average of its weights" in page

    # So is what predicts, by the checkpoint's own word.
    predictor = Predictor.from_checkpoint(last[0])
    jax.tree.map(np.testing.assert_array_equal, dict(predictor._variables), saved[0])


def test_a_run_without_an_average_has_none_to_give(config, tmp_path, fresh_run):
    config.model.name = "pooled"
    variables, metadata = fresh_run(config)
    save_weights(tmp_path / "weights", variables, metadata)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "weights")[0], variables)
    with pytest.raises(UsageError, match=r"eval\.weights is ema, and .*weights has no average"):
        load_weights(tmp_path / "weights", "ema")
    setup = set_up(tmp_path / "weights", tmp_path, None, {"eval.weights": "ema"})
    with pytest.raises(UsageError, match=r"eval\.weights is ema, and optim\.ema is 0"):
        evaluate_run(setup.config, setup.workdir, setup.path)


def test_training_stops_where_validation_gets_no_better(
    make_config, tmp_path, asked_to_stop, capsys
):
    """Of a rate of nothing the first is the best; stopped, killed and asked again, it is there."""
    config = quick(make_config())
    config.freeze_statistics, config.epochs = True, 5
    config.optim.learning_rate, config.early_stopping = 1e-30, 1

    with asked_to_stop():
        for said in ("stopped at step 4 of 15", "before the final evaluation"):
            train(config, tmp_path)
            assert said in capsys.readouterr().out
    assert not (tmp_path / "metrics_test.json").exists()
    for _ in range(2):
        train(config, tmp_path)
        said = "stopped early at step 6 of 15: no validation was better than that of step 3"
        assert said in capsys.readouterr().out
        assert latest_checkpoint(tmp_path).name == "6" and find_checkpoint(tmp_path).name == "3"
        assert (tmp_path / "metrics_test.json").exists()
