"""The adaptive local stream end to end: evaluation, score files, the report and prediction."""

import copy
import json
import re

import numpy as np
import pytest

from mlic_jax.data import sources, transforms
from mlic_jax.data.options import DataOptions
from mlic_jax.data.scenes import render
from mlic_jax.errors import UsageError
from mlic_jax.evaluate.run import evaluate_run
from mlic_jax.predict.predictor import Predictor
from mlic_jax.runtime.checkpoint import save_weights
from mlic_jax.scores import global_pass, scoring
from mlic_jax.scores.files import GLOBAL_OUTPUTS, Scores
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.train.loop import train


@pytest.fixture(scope="module")
def checkpoint(make_config, fresh_run, tmp_path_factory):
    """Of a run that did no step, its probabilities spread as those of a trained model are."""
    variables, metadata = fresh_run(base(make_config()))
    classifier = variables["params"]["convclass"]
    classifier["kernel"] = 8 * classifier["kernel"]
    folder = tmp_path_factory.mktemp("checkpoint") / "weights"
    save_weights(folder, variables, metadata)
    return folder


def base(config):
    config.model.threshold = 0.47  # at 0.5 rounding decides where some regions end
    return config


@pytest.fixture
def config(make_config):
    return base(make_config())


@pytest.fixture(scope="module")
def stored(make_config, checkpoint, tmp_path_factory):
    """A full evaluation of more regions: the score file, and the scores."""
    config = base(make_config())
    config.eval.top_n = 3
    path = tmp_path_factory.mktemp("stored") / "scores_test.npz"
    score(config, checkpoint).save(path)
    return path, Scores.load(path)


def score(config, checkpoint):
    options = ScoreOptions.of(config)
    split = sources.open_splits(options.data)["test"]
    model, variables, _ = scoring.load_model(options, checkpoint, split)
    return scoring.score_model(model, variables, split, options)


def box_probabilities(scores, top_n):
    logits = np.take_along_axis(scores.global_logits, scores.box_classes[:, :top_n], axis=1)
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.fixture(scope="module")
def bound(stored):
    """Of 11 images with two regions some then have both, some the first and some none."""
    first, second = box_probabilities(stored[1], 2).T
    bound = float((first.min() + second.max()) / 2)
    likely = (first >= bound).astype(int) + (second >= bound)
    assert set(likely) == {0, 1, 2}
    return bound


def adapted(config, bound):
    config.eval.top_n, config.eval.local_size, config.eval.local_bound = 2, 32, bound
    return config


@pytest.fixture(scope="module")
def skipped(make_config, checkpoint, bound, tmp_path_factory):
    """An evaluation on eight devices that skips regions: its folder, and the scores."""
    folder = tmp_path_factory.mktemp("skipped")
    evaluate_run(adapted(base(make_config()), bound), folder, checkpoint)
    return folder, Scores.load(folder / "scores_test.npz")


def test_skipped_regions_are_told_and_images_without_any_keep_their_global_scores(
    skipped, stored, bound
):
    scores, full = skipped[1], stored[1]
    assert full.looked_at is None
    np.testing.assert_array_equal(scores.looked_at, box_probabilities(full, 2) >= bound)
    np.testing.assert_allclose(scores.global_logits, full.global_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(scores.boxes, full.boxes[:, :2])
    none = ~scores.looked_at.any(axis=1)
    np.testing.assert_array_equal(scores.local_logits[none], scores.global_logits[none])
    assert not np.any(np.all(scores.local_logits == scores.global_logits, axis=1) & ~none)
    assert np.isfinite(scores.logits).all() and np.isfinite(scores.local_logits).all()


def test_the_report_shows_the_regions_that_were_looked_at(skipped):
    folder, scores = skipped
    page = (folder / "report" / "index.html").read_text()
    assert len(scores.logits) <= 24  # all are in the gallery
    listed = re.findall(r'<li data-region="\d+"><span class="number"', page)
    assert len(listed) == scores.looked_at.sum()
    assert f"{scores.looked_at.sum() / len(scores.logits):.1f}, those of probability" in page
    values = json.loads((folder / "metrics_test.json").read_text())
    json.dumps(values, allow_nan=False)
    assert "nan" not in re.sub("<[^>]*>", " ", page).lower().split()


def test_prediction_on_six_devices_skips_what_evaluation_on_eight_does(skipped, checkpoint, bound):
    scores = skipped[1]
    # Two rows each, of which the last is padding.
    predictor = Predictor.from_checkpoint(checkpoint, 11, local_size=32, local_bound=bound)
    photos = [np.asarray(transforms.decode(render(0, "test", i).image)) for i in range(11)]
    predictions = predictor(photos)
    for i, prediction in enumerate(predictions):
        looked_at = scores.looked_at[i]
        names = scores.class_names[scores.box_classes[i][looked_at]]
        assert [region.class_name for region in prediction.regions] == list(names)
        got = np.array(list(prediction.scores.values()))
        np.testing.assert_allclose(got, 1 / (1 + np.exp(-scores.logits[i])), rtol=1e-3)
        assert all(region.class_map.shape == (2, 2) for region in prediction.regions)


def test_evaluating_again_from_the_global_pass(skipped, stored, config, checkpoint, bound):
    config = adapted(config, bound)
    config.eval.global_scores = str(stored[0])
    again, scores = score(config, checkpoint), skipped[1]
    for name in ("labels", "image_ids", "boxes", "box_classes", "looked_at"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    for name in ("logits", "global_logits", "local_logits"):
        got, want = getattr(again, name), getattr(scores, name)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert again.origin == scores.origin  # so that it can serve again


def test_the_global_stream_is_not_run_again(stored, config, checkpoint, bound, tmp_path):
    """What the file says goes, be it as wrong as this."""
    path, scores = stored
    with np.load(path) as file:
        fields = dict(file)
    fields["global_logits"] = np.full_like(scores.global_logits, 20)
    fields["boxes"] = np.broadcast_to(np.int32([8, 0, 40, 16]), scores.boxes.shape)
    np.savez(tmp_path / "wrong.npz", **fields)
    config = adapted(config, bound)
    config.eval.global_scores = str(tmp_path / "wrong.npz")
    again = score(config, checkpoint)
    assert again.looked_at.all() and np.all(again.global_logits == 20)
    np.testing.assert_array_equal(again.boxes, fields["boxes"][:, :2])


@pytest.fixture
def kept(config, tmp_path):
    """A small split, the origin of its scores, and a function that writes these, changed."""
    split = sources.open_splits(DataOptions.of(config.data))["test"]
    variables = {"params": {"w": np.arange(6.0).reshape(2, 3)}, "batch_stats": {}}
    origin = global_pass.origin_of(variables, ScoreOptions.of(config))
    images, classes = len(split), len(split.class_names)

    def write(**changes):
        fields = {
            "logits": np.zeros((images, classes), np.float32),
            "global_logits": np.random.default_rng(0).random((images, classes), np.float32),
            "boxes": np.arange(images * 8, dtype=np.int32).reshape(images, 2, 4),
            "box_classes": np.arange(images * 2, dtype=np.int32).reshape(images, 2),
            "labels": split.labels(),
            "image_ids": np.array([split.image_id(i) for i in range(images)]),
            "class_names": np.array(split.class_names),
            "set_name": split.name,
            "split": split.split,
            "image_size": config.data.image_size,
            "origin": origin,
        }
        config.eval.global_scores = str(tmp_path / "scores.npz")
        scores = Scores(**fields | changes)
        scores.save(tmp_path / "scores.npz")
        return scores

    return split, variables, origin, write


def test_the_first_regions_of_a_file_serve(kept, config):
    split, _, origin, write = kept
    scores = write()
    got = global_pass.read(ScoreOptions.of(config), split, origin, top_n=1)
    assert set(got) == set(GLOBAL_OUTPUTS)
    np.testing.assert_array_equal(got["global_logits"], scores.global_logits)
    np.testing.assert_array_equal(got["boxes"], scores.boxes[:, :1])
    np.testing.assert_array_equal(got["box_classes"], scores.box_classes[:, :1])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("model.threshold", 0.3, "model.threshold 0.47, not 0.3"),
        ("model.localizer", "clean", "model.localizer 'exact', not 'clean'"),
        ("model.region_grid", 8, "model.region_grid 1, not 8"),
        ("model.pooling", "avg", "model.pooling 'gwp', not 'avg'"),
        ("data.image_size", 96, "data.image_size 64, not 96"),
        ("augment.mean", (0.5, 0.5, 0.5), "augment.mean [0.485, 0.456, 0.406], not [0.5"),
        ("eval.flip", True, "has several views"),
        ("model.name", "pooled", "a pooled model looks only once"),
    ],
)
def test_a_global_pass_with_other_options(kept, config, option, value, message):
    split, variables, _, write = kept
    write()
    part, name = option.split(".")
    config[part][name] = value
    with pytest.raises(UsageError) as error:
        options = ScoreOptions.of(config)
        global_pass.read(
            options,
            split,
            global_pass.origin_of(variables, options),
            top_n=2,
        )
    assert message in str(error.value) and "scores.npz" in str(error.value)


def test_a_global_pass_of_something_else(kept, config):
    split, variables, origin, write = kept

    def told(top_n=2, now=origin, **changes):
        write(**changes)
        with pytest.raises(UsageError) as error:
            global_pass.read(ScoreOptions.of(config), split, now, top_n)
        return str(error.value)

    other = copy.deepcopy(variables)
    other["params"]["w"][1, 2] += 1e-6
    assert "it has other weights:" in told(
        now=global_pass.origin_of(other, ScoreOptions.of(config))
    )
    assert "it has split 'val', not 'test':" in told(split="val")
    assert "it has set 'toy', not 'tiny_scenes':" in told(set_name="toy")
    assert "it has 2 regions of an image, not 3:" in told(top_n=3)
    ids = np.array([f"{i}" for i in range(len(split))])
    names = np.array(split.class_names[::-1])
    assert "it has other classes; other images:" in told(image_ids=ids, class_names=names)
    assert "does not say what weights made it" in told(origin=None)
    for name in GLOBAL_OUTPUTS:
        assert "lacks the regions of a global pass" in told(**{name: None})
    old = {name: origin[name] for name in origin if name != "data.interpolation"}
    assert "it has 2 regions" in told(top_n=3, origin=old)  # which saw photos as ever
    bicubic = origin | {"data.interpolation": "bicubic"}
    assert "data.interpolation 'bilinear', not 'bicubic':" in told(now=bicubic, origin=old)
    config.eval.global_scores = "nowhere.npz"
    with pytest.raises(UsageError, match="no score file at"):
        global_pass.read(ScoreOptions.of(config), split, origin, 2)


def test_training_has_no_global_pass_to_read(config, tmp_path):
    config.eval.global_scores = "scores_test.npz"
    with pytest.raises(UsageError, match="leave it empty in training"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bound", [-0.1, 1.0])
def test_bounds_are_probabilities(config, bound):
    config.eval.local_bound = bound
    with pytest.raises(UsageError, match=r"eval\.local_bound is .* at least 0 and below 1"):
        scoring.create_eval_model(ScoreOptions.of(config), 12, {})


@pytest.mark.parametrize("option, value", [("local_size", 32), ("local_bound", 0.3)])
def test_a_model_that_looks_once_has_no_second_look_to_change(config, option, value):
    config.model.name, config.eval[option] = "pooled", value
    with pytest.raises(UsageError, match=f"eval.{option} is for the second look of mcar, and poo"):
        scoring.create_eval_model(ScoreOptions.of(config), 12, {})


def test_a_checkpoint_from_before_an_option(config, tmp_path):
    model = config.model.to_dict()
    older = {name: value for name, value in model.items() if name != "head"}
    saved, current = (
        {"config": {"model": options}, "class_names": ["a"]} for options in (older, model)
    )
    scoring.check_same_model(saved, current, tmp_path)
    model["head"] = "per_label"
    with pytest.raises(UsageError, match=r"has model\.head 'dense', the configuration 'per_label'"):
        scoring.check_same_model(saved, current, tmp_path)
