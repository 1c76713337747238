"""Paths of recipes and checkpoints: from another folder, and after all have moved."""

import copy
from pathlib import Path

import pytest

from mlic_jax.config_paths import absolute, beside, located, seen_from


def test_a_path_of_a_recipe_is_relative_to_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert beside("own/ours/ours.py", "../../data") == str(tmp_path / "data")
    assert beside(str(tmp_path / "ours.py"), "label_graph.npz") == str(tmp_path / "label_graph.npz")
    assert beside("own/ours/ours.py", "/mounted/data") == "/mounted/data"


@pytest.mark.parametrize(
    ("folder", "path", "seen"),
    [
        ("/users/me/clone/own/ours", "/users/me/clone/data", "../../data"),
        ("/users/me/clone/own/ours", "/users/me/photos", "../../../photos"),
        ("/users/me/clone/own/ours", "/mounted/photos", "/mounted/photos"),
        ("/users/me/clone/own/ours", "/users/me/clone/own/ours", "."),
        ("/users", "/", "/"),
    ],
)
def test_a_path_seen_from_a_folder(folder, path, seen):
    assert seen_from(folder, path) == seen
    assert beside(f"{folder}/x.py", seen) == path


def _config(root, **data):
    return {"init_from": "", "epochs": 3, "data": {"root": str(root), "name": "ours", **data}}


def test_only_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/users/me")
    before = _config("data", word_vectors="one_hot", label_graph="", prepared_dir="~/ready")
    kept = copy.deepcopy(before)
    assert absolute(before) == _config(
        tmp_path / "data", word_vectors="one_hot", label_graph="", prepared_dir="/users/me/ready"
    )
    assert before == kept


def test_files_that_moved_with_the_run_and_files_that_did_not(tmp_path):
    run = tmp_path / "new" / "runs" / "ours"
    (tmp_path / "old" / "here").mkdir(parents=True)
    before = tmp_path / "old"
    folder = str(before / "runs" / "ours")
    metadata = {"config": _config(before / "data", label_graph="/mounted/g"), "folder": folder}
    moved = _config(tmp_path / "new" / "data", label_graph="/mounted/g")
    assert located(metadata, run) == moved
    metadata["config"] = _config(before / "here")
    assert located(metadata, run) == _config(before / "here")  # the run alone moved
    (tmp_path / "new" / "here").mkdir(parents=True)
    assert located(metadata, run) == _config(tmp_path / "new" / "here")  # all was copied
    assert located({"config": _config(before / "data")}, run) == _config(before / "data")
    assert located(metadata | {"config": moved}, None) == moved  # it is of no run
    assert located(metadata | {"config": _config("data")}, Path(folder)) == _config(
        Path.cwd() / "data"
    )
