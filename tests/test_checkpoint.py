"""Saving and restoring: exact, atomic, refusing what does not fit."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.checkpoint import (
    RunCheckpoints,
    find_checkpoint,
    latest_checkpoint,
    load_weights,
    merge_weights,
    read_metadata,
    save_weights,
    update_metadata,
)
from mlic_jax.errors import Failure, UsageError


def tree(value=1.0):
    features = {"stem": {"kernel": np.full((3, 3, 3, 4), value, np.float32)}}
    stats = {"stem": {"mean": np.arange(4, dtype=np.float32)}}
    return {"params": {"features": features}, "batch_stats": {"features": stats}}


def test_weights_round_trip(tmp_path):
    save_weights(tmp_path / "weights", tree(), {"arch": "resnet18", "mean": [0.1, 0.2]})
    variables, info = load_weights(tmp_path / "weights")
    assert info == {"arch": "resnet18", "mean": [0.1, 0.2]}
    kernel = variables["params"]["features"]["stem"]["kernel"]
    assert type(kernel) is np.ndarray
    np.testing.assert_array_equal(kernel, tree()["params"]["features"]["stem"]["kernel"])


def test_weights_overwrite_nothing(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        save_weights(tmp_path, tree(), {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]


def test_no_checkpoint_where_there_is_none(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        load_weights(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="it holds neither one nor a run with one"):
        load_weights(tmp_path)
    assert latest_checkpoint(tmp_path) is None


def test_a_damaged_checkpoint_is_a_failure(tmp_path):
    save_weights(tmp_path / "weights", tree(), {})
    (tmp_path / "weights" / "metadata" / "metadata").write_text("{")
    with pytest.raises(Failure, match="cannot be read"):
        load_weights(tmp_path / "weights")


def test_a_run_keeps_its_latest_and_its_best(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    for step in (1, 2, 3):
        training = {"step": jnp.int32(step), "opt_state": {"momentum": jnp.arange(3.0)}}
        checkpoints.save("latest", step, tree(step), training, {"step": step})
    checkpoints.save("best", 2, tree(2), None, {"step": 2})
    checkpoints.save("best", 2, tree(7), None, {"step": 2})  # is already there
    checkpoints.close()

    reopened = RunCheckpoints(tmp_path)
    assert reopened.latest_path().name == "3"
    assert read_metadata(latest_checkpoint(tmp_path)) == {"step": 3}
    training = {"step": jnp.int32(0), "opt_state": {"momentum": jnp.zeros(3)}}
    variables, training = reopened.restore_latest(tree(0), training)
    reopened.close()
    assert training["step"] == 3
    np.testing.assert_array_equal(training["opt_state"]["momentum"], [0, 1, 2])
    assert variables["params"]["features"]["stem"]["kernel"].max() == 3

    assert latest_checkpoint(tmp_path).name == "3"
    assert find_checkpoint(tmp_path).parts[-2:] == ("best", "2")
    assert load_weights(tmp_path)[0]["params"]["features"]["stem"]["kernel"].max() == 2


def test_metadata_change_and_the_rest_stays(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    for kind in ("latest", "best"):
        checkpoints.save(kind, 3, tree(3), {"step": jnp.int32(3)}, {"step": 3, "names": ["a"]})
    checkpoints.close()
    now = update_metadata(find_checkpoint(tmp_path), {"names": ["é"], "temperature": 0.1 + 0.2})
    variables, metadata = load_weights(tmp_path)
    assert metadata == now == {"step": 3, "names": ["é"], "temperature": 0.1 + 0.2}
    assert variables["params"]["features"]["stem"]["kernel"].max() == 3

    latest = latest_checkpoint(tmp_path)
    assert read_metadata(latest) == {"step": 3, "names": ["a"]}
    update_metadata(latest, {"step": 4})
    reopened = RunCheckpoints(tmp_path)
    variables, training = reopened.restore_latest(tree(0), {"step": jnp.int32(0)})
    reopened.close()
    assert training["step"] == 3 and variables["params"]["features"]["stem"]["kernel"].max() == 3


def test_metadata_that_cannot_be_written_stay_as_they_were(tmp_path, monkeypatch):
    save_weights(tmp_path / "weights", tree(), {"arch": "resnet18"})
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(Failure, match="cannot be changed"):
        update_metadata(tmp_path / "weights", {"temperature": float("nan")})  # is not JSON

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Failure, match="no space left"):
        update_metadata(tmp_path / "weights", {"temperature": 1.0})
    assert load_weights(tmp_path / "weights")[1] == {"arch": "resnet18"}
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files


def test_half_written_checkpoints_are_cleared_away(tmp_path):
    leftover = tmp_path / "checkpoints" / "latest" / "5.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest_path() is None
    checkpoints.close()
    assert not leftover.exists()


def test_merging_takes_the_backbone_alone():
    fresh, loaded = tree(0.0), tree(5.0)
    fresh["params"]["convclass"] = {"bias": np.zeros(20)}
    loaded["params"]["classifier"] = {"bias": np.ones(1000)}
    merged = merge_weights(fresh, loaded, {"features"}, "weights")
    assert merged["params"]["features"]["stem"]["kernel"].max() == 5
    assert set(merged["params"]) == {"features", "convclass"}
    assert merged["params"]["convclass"]["bias"].shape == (20,)


def test_merging_lists_everything_that_does_not_fit():
    fresh, loaded = tree(), tree()
    fresh["params"]["features"]["block1"] = {"kernel": np.zeros(2)}
    loaded["params"]["features"]["stem"]["kernel"] = np.zeros((7, 7, 3, 4))
    loaded["batch_stats"]["features"]["extra"] = {"mean": np.zeros(1)}
    with pytest.raises(Failure) as error:
        merge_weights(fresh, loaded, {"features"}, "weights")
    for part in (
        "missing params/features/block1/kernel",
        r"params/features/stem/kernel is (7, 7, 3, 4), the model's is (3, 3, 3, 4)",
        "left over batch_stats/features/extra/mean",
    ):
        assert part in str(error.value)
