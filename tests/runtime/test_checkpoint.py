"""Saving and restoring: exact, atomic, refusing what does not fit."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.errors import Failure, UsageError
from mlic_jax.runtime.checkpoint import (
    find_checkpoint,
    lacks_validation,
    latest_checkpoint,
    load_weights,
    merge_weights,
    read_metadata,
    restore,
    save_weights,
    set_damaged_aside,
    update_metadata,
)
from mlic_jax.runtime.checkpoint_paths import run_checkpoints
from mlic_jax.runtime.run_checkpoints import RunCheckpoints


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
    (tmp_path / "best.pth").write_bytes(b"PyTorch's")
    with pytest.raises(UsageError, match=r"it is a file, .* by `mlic convert`"):
        load_weights(tmp_path / "best.pth")
    assert latest_checkpoint(tmp_path) is None


def test_damaged_metadata_are_a_failure(tmp_path):
    save_weights(tmp_path / "weights", tree(), {"class_names": ["cat", "dog"]})
    path = tmp_path / "weights" / "metadata" / "metadata"
    text = path.read_text()
    unsealed = ("{}", text.replace("metadata_sha256", "metadata_sha257"))
    for damaged in ("{", "[]", "[" * 100_000, text.replace("cat", "car"), "\0", *unsealed):
        path.write_text(damaged)
        for read in (load_weights, read_metadata):
            with pytest.raises(Failure, match=r"metadata/metadata is damaged .* convert it again"):
                read(tmp_path / "weights")
    path.unlink()
    with pytest.raises(Failure, match="metadata/metadata is missing"):
        load_weights(tmp_path / "weights")
    path.write_text(text)
    assert load_weights(tmp_path / "weights")[1] == {"class_names": ["cat", "dog"]}


def saved_run(workdir, steps, validations=(), keep=2):
    """A run that saved some steps, of which some were validated; all arrays of step k are k."""
    checkpoints = RunCheckpoints(workdir, keep)
    for step in steps:
        training = {"step": jnp.int32(step), "opt_state": {"momentum": jnp.arange(3.0) * step}}
        checkpoints.save(step, tree(step), training, {"names": ["a"]})
        if step in validations:
            checkpoints.add_validation(step, validations[step])
    checkpoints.close()


def kernel_of(variables):
    return variables["params"]["features"]["stem"]["kernel"]


def steps_of(workdir):
    return sorted(int(path.name) for path in run_checkpoints(workdir))


def test_a_run_keeps_its_latest_and_its_best(tmp_path):
    saved_run(tmp_path, range(1, 8), {1: 10.0, 2: 30.0, 3: 20.0, 5: 30.0})
    assert steps_of(tmp_path) == [2, 6, 7]  # of two that are equally good the first
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "6", "7"]
    assert latest_checkpoint(tmp_path).name == "7"
    assert find_checkpoint(tmp_path).name == "2"
    assert kernel_of(load_weights(tmp_path)[0]).max() == 2
    assert read_metadata(latest_checkpoint(tmp_path)) == {"names": ["a"], "step": 7}
    validated = {"names": ["a"], "step": 2, "validation": {"mAP": 30.0}}
    assert read_metadata(find_checkpoint(tmp_path)) == validated

    target = {"step": jnp.int32(0), "opt_state": {"momentum": jnp.zeros(3)}}
    variables, training = restore(latest_checkpoint(tmp_path), tree(0), target)
    assert training["step"] == 7 and kernel_of(variables).max() == 7
    np.testing.assert_array_equal(training["opt_state"]["momentum"], [0, 7, 14])

    # Opened again, it still knows which is the best.
    saved_run(tmp_path, (8, 9, 10), {9: 29.0})
    assert steps_of(tmp_path) == [2, 9, 10]
    assert latest_checkpoint(tmp_path).name == "10"
    assert find_checkpoint(tmp_path / "checkpoints").name == "2"
    saved_run(tmp_path, (11, 12, 13), {11: 31.0})
    assert steps_of(tmp_path) == [11, 12, 13]


def test_as_many_of_the_latest_are_kept_as_wanted(tmp_path):
    saved_run(tmp_path, range(1, 6), keep=1)
    assert steps_of(tmp_path) == [5]
    saved_run(tmp_path, range(6, 11), keep=3)
    assert steps_of(tmp_path) == [8, 9, 10]


def test_a_step_that_is_there_is_left_as_it_is(tmp_path):
    saved_run(tmp_path, (3,))
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(3, tree(7), {"step": jnp.int32(3)}, {})
    checkpoints.close()
    assert kernel_of(load_weights(tmp_path)[0]).max() == 3


def test_without_a_validation_the_latest_is_the_best(tmp_path):
    saved_run(tmp_path, (1, 2))
    assert find_checkpoint(tmp_path).name == "2"
    assert lacks_validation(latest_checkpoint(tmp_path))
    saved_run(tmp_path, (3,), {3: 0.0})
    assert find_checkpoint(tmp_path).name == "3"
    assert not lacks_validation(latest_checkpoint(tmp_path))


@pytest.mark.parametrize("item", ["variables", "training"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "digests"])
def test_a_damaged_file_is_named_and_the_run_recovers(item, damage, tmp_path):
    saved_run(tmp_path, (1, 2), {2: 50.0})
    files = [path for path in (tmp_path / "checkpoints/2" / item).rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: (path.parent.name == "d", path.stat().st_size))
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "delete":
        victim.unlink()
    else:
        victim = tmp_path / "checkpoints/2" / item / "digests.json"
        victim.unlink()
    target = {"step": jnp.int32(0), "opt_state": {"momentum": jnp.zeros(3)}}
    with pytest.raises(Failure, match=r"the checkpoint is damaged.*--recover") as error:
        restore(latest_checkpoint(tmp_path), tree(0), target)
    assert str(error.value).startswith(str(victim))
    if item == "variables":
        with pytest.raises(Failure, match="the checkpoint is damaged"):
            load_weights(tmp_path)

    findings = set_damaged_aside(tmp_path)
    assert len(findings) == 1 and findings[0].startswith(str(victim))
    assert "--recover" not in findings[0]
    assert steps_of(tmp_path) == [1] and kernel_of(load_weights(tmp_path)[0]).max() == 1
    assert (tmp_path / "damaged" / "2" / "variables").is_dir()
    assert set_damaged_aside(tmp_path) == []


def test_metadata_of_another_step_are_damaged(tmp_path):
    saved_run(tmp_path, (1, 2))
    one, two = (tmp_path / "checkpoints" / str(k) / "metadata" / "metadata" for k in (1, 2))
    two.write_bytes(one.read_bytes())
    with pytest.raises(Failure, match=r"2/metadata/metadata is damaged \(it is of step 1\)"):
        load_weights(tmp_path)


def test_a_checkpoint_without_its_arrays_is_a_damaged_one(tmp_path):
    saved_run(tmp_path, (1, 2))
    shutil.rmtree(tmp_path / "checkpoints/2/variables")
    for path in (tmp_path, tmp_path / "checkpoints/2"):
        with pytest.raises(Failure, match=r"2/variables/digests\.json is missing.*--recover"):
            load_weights(path)
    assert len(set_damaged_aside(tmp_path)) == 1
    assert kernel_of(load_weights(tmp_path)[0]).max() == 1


def test_nothing_that_was_set_aside_is_lost(tmp_path):
    for _ in range(2):
        saved_run(tmp_path, (2,))
        (tmp_path / "checkpoints/2/metadata/metadata").write_text("{")
        assert len(set_damaged_aside(tmp_path)) == 1
    assert {path.name for path in (tmp_path / "damaged").iterdir()} == {"2", "2-1"}


def test_arrays_without_digests_are_of_an_earlier_version(tmp_path):
    """Which had the best and the latest in two folders, and its validations in neither."""
    for kind, step in (("latest", 6), ("best", 4)):
        folder = tmp_path / "checkpoints" / kind / str(step)
        save_weights(folder, tree(step), {})
        (folder / "variables" / "digests.json").unlink()
        metadata = {"best": {"mAP": 50.0, "step": 4}}
        (folder / "metadata" / "metadata").write_text(json.dumps(metadata))
    assert find_checkpoint(tmp_path).parts[-2:] == ("best", "4")
    assert latest_checkpoint(tmp_path).parts[-2:] == ("latest", "6")
    assert not lacks_validation(latest_checkpoint(tmp_path))
    assert kernel_of(load_weights(tmp_path)[0]).max() == 4
    update_metadata(find_checkpoint(tmp_path), {"temperature": 1.5})
    assert load_weights(tmp_path)[1]["temperature"] == 1.5
    saved_run(tmp_path, (8,), {8: 49.0})
    assert find_checkpoint(tmp_path).parts[-2:] == ("best", "4")
    saved_run(tmp_path, (10,), {10: 51.0})
    assert find_checkpoint(tmp_path).name == "10"


def test_metadata_change_and_the_rest_stays(tmp_path):
    saved_run(tmp_path, (3, 4), {3: 50.0})
    changes = {"names": ["é"], "temperature": 0.1 + 0.2}
    now = update_metadata(find_checkpoint(tmp_path), changes)
    variables, metadata = load_weights(tmp_path)
    assert metadata == now == {"step": 3, "validation": {"mAP": 50.0}, **changes}
    assert kernel_of(variables).max() == 3
    assert read_metadata(latest_checkpoint(tmp_path)) == {"step": 4, "names": ["a"]}


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path, files_of_at_most):
    saved_run(tmp_path, (1,))
    checkpoints = RunCheckpoints(tmp_path)
    large = {"noise": np.random.default_rng(0).random(50_000)}
    message = r"cannot be written to .*checkpoints \(File too large\).* the same command continues"
    with files_of_at_most(100_000), pytest.raises(Failure, match=message) as error:
        checkpoints.save(2, large, {"step": jnp.int32(2)}, {})
        checkpoints.wait()
    assert "\n" not in str(error.value)
    assert steps_of(tmp_path) == [1] and kernel_of(load_weights(tmp_path)[0]).max() == 1
    saved_run(tmp_path, (2,))
    assert steps_of(tmp_path) == [1, 2]


def test_weights_that_cannot_be_written_leave_nothing(tmp_path, files_of_at_most):
    large = {"params": {"noise": np.random.default_rng(0).random(50_000)}}
    with (
        files_of_at_most(100_000),
        pytest.raises(Failure, match=r"weights cannot be written \(File too large\)"),
    ):
        save_weights(tmp_path / "weights", large, {})
    assert list(tmp_path.iterdir()) == []


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


def test_what_a_killed_run_was_writing_or_deleting_is_cleared_away(tmp_path):
    saved_run(tmp_path, (4,))
    for name in ("5.orbax-checkpoint-tmp", "deleted/3/variables"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    partial = tmp_path / "checkpoints" / "4" / "metadata" / ".metadata.partial"
    partial.write_text("{")
    assert steps_of(tmp_path) == [4]
    checkpoints = RunCheckpoints(tmp_path)
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    checkpoints.close()
    assert left == ["4"] and not partial.exists()


def test_merging_takes_the_backbone_alone():
    fresh, loaded = tree(0.0), tree(5.0)
    loaded["batch_stats"]["features"]["stem"]["mean"] = np.full(4, 3.0)
    fresh["params"]["convclass"] = {"bias": np.zeros(20)}
    loaded["params"]["classifier"] = {"bias": np.ones(1000)}
    merged = merge_weights(fresh, loaded, {"features"}, "weights")
    assert merged["params"]["features"]["stem"]["kernel"].max() == 5
    assert merged["batch_stats"]["features"]["stem"]["mean"].min() == 3
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
