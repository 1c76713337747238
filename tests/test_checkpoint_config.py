"""A checkpoint needs no recipe, and what is not its own result never takes the place of it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.checkpoint_config import (
    DECIDING,
    LONGEST_NAME,
    SAYING,
    as_predicted,
    folder_name,
    own_config,
    set_up,
)
from mlic_jax.config import default_config
from mlic_jax.errors import UsageError
from mlic_jax.evaluate import calibrate
from mlic_jax.evaluate.run import evaluate_run
from mlic_jax.predict.predictor import load_model
from mlic_jax.runtime.checkpoint import find_checkpoint, read_metadata, save_weights
from mlic_jax.scores.files import Scores


def trained_otherwise(config):
    """With options that no recipe here has."""
    config.model.update(pooling="avg", localizer="clean")
    config.data.image_size = 96
    config.eval.protocol = "asl"
    return config


@pytest.fixture(scope="module")
def weights(make_config, fresh_run):
    """Variables and metadata of a run that did no step."""
    return fresh_run(trained_otherwise(make_config()))


@pytest.fixture
def run(weights, tmp_path):
    """A run with two steps, of which the first is the better one."""
    variables, metadata = weights
    for step, quality in ((3, 50.0), (6, 40.0)):
        said = metadata | {"step": step, "validation": {"mAP": quality}}
        save_weights(tmp_path / "run" / "checkpoints" / str(step), variables, said)
    return tmp_path / "run"


@pytest.fixture
def converted(weights, tmp_path):
    """A model of which no run is known, as `weight_conversion.convert` writes it."""
    variables, metadata = weights
    config = default_config()
    config.model.update(metadata["config"]["model"])
    config.data.image_size = 96
    said = {"config": json.loads(config.to_json()), "source": "elsewhere"}
    said["class_names"] = metadata["class_names"]
    save_weights(tmp_path / "converted", variables, said)
    return tmp_path / "converted"


def files_in(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- with what


def test_a_run_is_its_own_configuration(run, make_config):
    setup = set_up(None, run)
    assert setup.config == trained_otherwise(make_config())
    assert (setup.path, setup.workdir, setup.overrides) == (run / "checkpoints" / "3", run, {})
    assert setup.said == f"{setup.path}: as it says itself"


def test_options_change_it_and_are_told(run):
    setup = set_up(None, run, None, {"eval.flip": True, "data.threads": 2, "eval.protocol": "asl"})
    assert setup.config.eval.flip and setup.config.data.threads == 2
    assert setup.overrides == {"eval.flip": (False, True)}
    assert setup.said.endswith("; changed: data.threads 4 (now 2), eval.flip False (now True)")


def test_what_training_alone_knows_makes_no_other_result(run):
    options = {"data.keep_labels": 0.4, "data.dropped_labels": "unknown", "data.labels_seed": 1}
    setup = set_up(None, run, None, options)
    assert (setup.workdir, setup.overrides) == (run, {})


def test_of_a_recipe_of_the_same_set_nothing_counts_and_that_is_told(run, make_config):
    setup = set_up(None, run, make_config(), {"eval.flip": True})
    config = trained_otherwise(make_config())
    config.eval.flip = True
    assert setup.config == config and setup.overrides == {"eval.flip": (False, True)}
    told = (
        "not taken from the recipe, of which only the data count: model.pooling 'gwp', "
        "model.localizer 'exact', data.image_size 64 and 1 more"
    )
    assert setup.said.splitlines()[1:] == [told]


@pytest.mark.parametrize("options", [{}, {"data.name": "tiny_scenes"}, {"data.name": "third"}])
def test_a_recipe_is_of_the_checkpoints_set_before_options_or_after(run, make_config, options):
    """Its name may be what the run was given on the command line, or what is asked now."""
    recipe = make_config()
    recipe.data.name = "tiny_scenes" if options.get("data.name") == "third" else "general"
    recipe.data.scenes_seed = 7
    setup = set_up(None, run, recipe, options)
    assert setup.config.data.name == options.get("data.name", "general")
    assert setup.config.data.scenes_seed == (0 if options else 7)


def test_a_recipe_of_another_set_says_which_data(run, make_config):
    recipe = make_config()
    recipe.data.update(name="others", source="csv", root="/others", image_size=64)
    recipe.data.splits.test = "held_out"
    recipe.eval.protocol = "msrn"
    setup = set_up(None, run, recipe)
    data = setup.config.data
    assert (data.name, data.source, data.root, data.splits.test) == (
        *("others", "csv", "/others"),
        "held_out",
    )
    assert data.image_size == 96 and setup.config.eval.protocol == "asl"
    assert set(setup.overrides) == {"data.source", "data.name", "data.splits.test"}
    assert ": as it says itself, data as the recipe says (others)\n" in setup.said
    assert setup.workdir.parent == run / "evaluations" and "data.name=others" in setup.workdir.name


def test_a_run_of_before_there_was_a_choice_sees_photos_as_it_did(weights, tmp_path, make_config):
    config = make_config()
    saved = json.loads(config.to_json())
    for option in ("interpolation", "center_crop"):
        del saved["data"][option]
    folder = tmp_path / "old" / "checkpoints" / "1"
    save_weights(folder, weights[0], weights[1] | {"config": saved, "step": 1})
    recipe = make_config()
    recipe.data.update(name="others", interpolation="bicubic", center_crop=0.9)
    data = set_up(None, tmp_path / "old", recipe).config.data
    assert (data.name, data.interpolation, data.center_crop) == ("others", "bilinear", 0.0)


def test_a_converted_model_takes_data_and_protocol_of_the_recipe(converted, tmp_path, make_config):
    with pytest.raises(UsageError, match=r"names no data, .* give --config FILE"):
        set_up(converted, tmp_path / "released")
    with pytest.raises(UsageError, match="neither a checkpoint nor the folder of a run is given"):
        set_up(None, None)
    recipe = make_config()
    recipe.eval.protocol = "msrn"
    recipe.calibration.rule = "per_class"
    with pytest.raises(UsageError, match=r"--workdir is missing: .*converted is of no run"):
        set_up(converted, None, recipe)
    setup = set_up(converted, tmp_path / "released", recipe)
    assert setup.config.data.name == "tiny_scenes" and setup.config.data.image_size == 96
    assert setup.config.model.pooling == "avg"  # the checkpoint says it
    assert (setup.config.eval, setup.config.calibration) == (recipe.eval, recipe.calibration)
    assert setup.workdir == tmp_path / "released" and setup.overrides == {}
    flipped = set_up(converted, tmp_path / "released", recipe, {"eval.flip": True})
    assert flipped.workdir == tmp_path / "released" / "evaluations" / "eval.flip=True"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.backbone": "resnet50"}, "--config.model.backbone: the arrays of .* 'resnet10'"),
        ({"model.width": 1.0}, "--config.model.width: the arrays of"),
        ({"optim.multipliers.branch2": 0.1}, "--config.optim.multipliers.branch2=0.1: .* cannot"),
        ({"recipe": "asl"}, "--config.recipe is how to train, and .* is trained: leave it"),
        ({"eval.top_n": "many"}, "--config.eval.top_n='many': .* cannot have it"),
    ],
)
def test_options_that_a_checkpoint_cannot_have(run, options, message):
    with pytest.raises(UsageError, match=message) as error:
        set_up(None, run, None, options)
    assert "\n" not in str(error.value)


def test_a_backbone_has_no_configuration(tmp_path):
    with pytest.raises(UsageError, match=r"holds a backbone alone \(resnet18\)"):
        own_config({"arch": "resnet18"}, tmp_path)


def test_a_head_that_nobody_registered_is_asked_for(run):
    metadata = read_metadata(find_checkpoint(run))
    metadata["config"]["model"]["name"] = "mine"
    with pytest.raises(UsageError, match=r"head 'mine', .* recipe that registers it .*--config"):
        own_config(metadata, run)


def test_prediction_looks_with_what_evaluation_does(run):
    assert load_model(run)[0] == set_up(run, None).config


# --- where it is written


def test_a_step_that_is_not_the_best_is_not_the_run(run):
    assert set_up(run / "checkpoints" / "3", None).workdir == run
    assert set_up(run, None).workdir == run
    assert set_up(run, run.parent / "other").workdir == run.parent / "other"
    aside = set_up(run / "checkpoints" / "6", None, None, {"eval.top_n": 1})
    assert aside.workdir == run / "evaluations" / "checkpoint=6,eval.top_n=1"


def test_a_run_that_was_resumed_otherwise_is_not_what_its_best_step_says(run, weights):
    """Training evaluated that step with the options that it had at last."""
    variables, metadata = weights
    later = json.loads(json.dumps(metadata)) | {"step": 9, "validation": {"mAP": 45.0}}
    later["config"] |= {"epochs": 7, "log_every": 3}  # which decide nothing
    save_weights(run / "checkpoints" / "9", variables, later)
    assert set_up(None, run).workdir == run
    later["config"]["eval"]["min_positives"] = 3
    save_weights(run / "checkpoints" / "12", variables, later | {"step": 12})
    assert set_up(None, run).workdir == run / "evaluations" / "checkpoint=3"


def test_another_model_does_not_write_over_a_run(run, converted, make_config):
    setup = set_up(converted, run, make_config())
    assert setup.workdir.parent == run / "evaluations"
    assert re.fullmatch("checkpoint=converted-[0-9a-f]{8}", setup.workdir.name)
    shutil.copytree(run, run.parent / "twin")
    twin = set_up(run.parent / "twin", run)
    assert re.fullmatch("checkpoint=twin-3-[0-9a-f]{8}", twin.workdir.name)


def test_names_of_folders_are_short_safe_and_each_has_its_own():
    assert folder_name({"eval.flip": True, "eval.scales": [64, 96]}) == (
        "eval.flip=True,eval.scales=64+96"
    )
    texts = ("a/b", "a b", "a-b", "../..", "é", "x" * 300, "x" * 301, "\n", "a:b")
    names = [folder_name({"eval.global_scores": text}) for text in texts]
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        assert len(name) <= LONGEST_NAME and re.fullmatch(r"[A-Za-z0-9_.,=+-]+", name)
        assert name.startswith("eval.global_scores=")
    one, two = {"a": "b,c=d"}, {"a": "b", "c": "d"}
    assert folder_name(one) != folder_name(two)


def test_all_that_decides_is_an_option():
    for name in (*DECIDING, *SAYING):
        value = default_config()
        for part in name.split("."):
            value = value[part]  # raises where there is none


def test_an_evaluation_with_options_leaves_that_of_the_run(run, capsys):
    own = set_up(None, run)
    values = evaluate_run(own.config, own.workdir, own.path, False, own.overrides)
    assert (values["checkpoint"], values["overrides"]) == ("step 3", {})
    scores = Scores.load(run / "scores_test.npz")
    assert scores.image_size == 96 and values["threshold"] == 0.8
    assert scores.origin["model.localizer"] == "clean" and scores.origin["model.pooling"] == "avg"
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    before = files_in(run)

    other = set_up(None, run, None, {"eval.top_n": 1, "eval.batch_size": 2})
    evaluate_run(other.config, other.workdir, other.path, False, other.overrides)
    after = files_in(run)
    assert {path: after[path] for path in before} == before
    folder = run / "evaluations" / "eval.top_n=1"
    assert {path.parent for path in after.keys() - before.keys()} == {folder, folder / "report"}
    said = json.loads((folder / "metrics_test.json").read_text())
    assert (said["checkpoint"], said["overrides"]) == ("step 3", {"eval.top_n": 1})
    fewer = Scores.load(folder / "scores_test.npz")
    np.testing.assert_array_equal(fewer.boxes, scores.boxes[:, :1])
    page = (folder / "report" / "index.html").read_text()
    assert "eval.top_n 1" in page and "Training loss, 0.500 at first" in page
    assert str(folder) in capsys.readouterr().out


def test_an_operating_point_of_other_options_is_not_stored(run, capsys):
    """Prediction would look without them, and its labels be those of no operating point."""
    options = {"eval.top_n": 1, "calibration.rule": "per_class"}
    other = set_up(None, run, None, options)
    calibrate.calibrate_run(other.config, other.workdir, other.path)
    assert "operating_point" not in read_metadata(other.path)
    said = capsys.readouterr().out
    assert f"not stored in {other.path}, for prediction looks with eval.top_n 0 (now 1)" in said
    folder = run / "evaluations" / "eval.top_n=1"
    assert {path.name for path in folder.iterdir()} == {
        *("scores_val.npz", "calibration_val.json", "calibration_val.png"),
    }
    assert [path.name for path in run.iterdir() if path.name != "checkpoints"] == ["evaluations"]

    del options["eval.top_n"]
    same = set_up(None, run, None, options | {"eval.protocol": "msrn"})
    point = calibrate.calibrate_run(same.config, same.workdir, same.path)
    assert read_metadata(same.path)["operating_point"] == point.to_dict()
    assert same.workdir == run / "evaluations" / "eval.protocol=msrn"
    assert Path(same.workdir, "calibration_val.json").is_file()


def test_named_groups_of_a_checkpoint_are_not_mixed_with_the_default_ones(weights, tmp_path):
    metadata = json.loads(json.dumps(weights[1]))
    metadata["config"]["data"]["splits"] = {"train": "a", "test": "b"}
    metadata["config"]["optim"]["multipliers"] = {"convclass": 1.0, "features": 0.5}
    config = own_config(metadata, tmp_path)
    assert config.data.splits.to_dict() == {"train": "a", "test": "b"}
    assert config.optim.multipliers.to_dict() == {"convclass": 1.0, "features": 0.5}


@pytest.mark.parametrize(
    ("option", "value", "says_otherwise"),
    [
        *(("model.threshold", 0.3, True), ("model.dtype", "bfloat16", True)),
        *(("data.image_size", 64, True), ("augment.mean", (0.5, 0.5, 0.5), True)),
        *(("data.interpolation", "bicubic", True), ("data.center_crop", 0.875, True)),
        *(("augment.std", (0.5, 0.5, 0.5), True), ("eval.top_n", 1, True)),
        *(("eval.local_size", 32, True), ("eval.local_bound", 0.1, True)),
        *(("eval.flip", True, True), ("eval.scales", (64,), True)),
        ("eval.weights", "ema", True),
        *(("data.name", "other", False), ("eval.protocol", "msrn", False)),
        *(("calibration.rule", "per_class", False), ("eval.batch_size", 4, False)),
    ],
)
def test_what_prediction_would_say_otherwise(weights, tmp_path, option, value, says_otherwise):
    metadata = weights[1]
    config = own_config(metadata, tmp_path)
    config.update_from_flattened_dict({option: value})
    assert list(as_predicted(metadata, config, tmp_path)) == ([option] if says_otherwise else [])
