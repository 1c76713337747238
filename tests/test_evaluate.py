"""Scores of a split: each image once, the same from the file as from the model, kept whole."""

import json
from functools import cache

import jax
import numpy as np
import pytest

from mlic_jax import distributed, evaluate
from mlic_jax.data import sources
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_model
from mlic_jax.scores import Scores
from mlic_jax.train import initial_variables


@pytest.fixture(scope="module")
def scored(make_config):
    """A function that scores the test split, once a batch size, with fresh weights."""

    @cache
    def score(batch_size):
        config = make_config()
        config.eval.batch_size = batch_size
        split = sources.open_splits(config.data)["test"]
        model = create_model(config.model, len(split.class_names))
        mesh = distributed.create_mesh()
        variables = jax.device_put(initial_variables(model, config), distributed.replicated(mesh))
        eval_step = evaluate.make_eval_step(model, config.augment, mesh)
        return evaluate.score_split(eval_step, variables, split, config, mesh), split

    return score


def test_every_image_is_scored_once_whatever_the_batches(scored, config):
    whole, split = scored(16)
    parts, _ = scored(8)
    assert len(whole.logits) == len(split) == 11
    np.testing.assert_allclose(whole.logits, parts.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(whole.labels, split.labels())
    assert list(whole.image_ids) == [split.image_id(i) for i in range(11)]
    assert whole.boxes.shape == (11, config.model.top_n, 4)
    assert (whole.set_name, whole.split, whole.image_size) == ("tiny_scenes", "test", 64)


def test_metrics_again_from_the_score_file_alone(scored, config, tmp_path, capsys):
    scores, _ = scored(16)
    path = tmp_path / "scores.npz"
    scores.save(path)
    values = evaluate.compute_metrics(scores, config)
    assert evaluate.main([str(path), "--json", str(tmp_path / "metrics.json")]) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again == {name: values[name] for name in again}
    assert f"{values['mAP']:.1f}" in capsys.readouterr().out


def test_score_files_that_are_none(tmp_path, capsys):
    assert evaluate.main([str(tmp_path / "nothing.npz")]) == 2
    (tmp_path / "text.npz").write_text("no")
    assert evaluate.main([str(tmp_path / "text.npz")]) == 1
    np.savez(tmp_path / "other.npz", logits=np.zeros(3))
    with pytest.raises(Failure, match="not a score file"):
        Scores.load(tmp_path / "other.npz")
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_failed_save_leaves_the_earlier_file(scored, tmp_path, monkeypatch):
    scores, _ = scored(16)
    path = tmp_path / "scores.npz"
    scores.save(path)
    before = path.read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space"):
        scores.save(path)
    assert path.read_bytes() == before


def metadata(model=None, names=("a", "b")):
    return {"config": {"model": model or {"top_n": 2}}, "class_names": list(names)}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (metadata({"top_n": 4}), "has model.top_n 4, the configuration 2"),
        (metadata(names=("a", "c")), "has 2 classes, the data 2, differing in b, c"),
        (metadata(names=("b", "a")), "in another order"),
        ({"arch": "resnet50"}, "holds a backbone alone"),
    ],
)
def test_a_checkpoint_of_something_else(saved, message, tmp_path):
    with pytest.raises(UsageError) as error:
        evaluate.check_same_model(saved, metadata(), tmp_path)
    assert message in str(error.value)
    evaluate.check_same_model(metadata(), metadata(), tmp_path)


def test_options_that_decide_no_array_may_differ(tmp_path):
    saved = metadata({"top_n": 4, "backbone": "resnet18"})
    current = metadata({"top_n": 2, "backbone": "resnet18"})
    evaluate.check_same_model(saved, current, tmp_path, ["backbone"])
    with pytest.raises(UsageError, match="backbone"):
        current["config"]["model"]["backbone"] = "resnet50"
        evaluate.check_same_model(saved, current, tmp_path, ["backbone"])
