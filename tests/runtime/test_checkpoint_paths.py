"""Which checkpoints a path may mean, by names alone."""

import pytest

from mlic_jax.errors import UsageError
from mlic_jax.runtime.checkpoint_paths import candidates, run_of


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("run", ["9", "10"]),
        ("run/checkpoints", ["9", "10"]),
        ("run/checkpoints/9", ["9"]),
        ("old", ["12", "8"]),  # the latest and the best, as earlier versions had them
        ("old/checkpoints/best", ["8"]),
        ("converted", ["converted"]),
        ("link", ["9", "10"]),
    ],
)
def test_what_a_path_may_mean(tmp_path, path, found):
    for step in ("run/checkpoints/9", "run/checkpoints/10", "converted", "old/checkpoints/best/8"):
        (tmp_path / step / "variables").mkdir(parents=True)
    (tmp_path / "old/checkpoints/latest/12/metadata").mkdir(parents=True)
    (tmp_path / "link").symlink_to("run")
    checkpoints = candidates(tmp_path / path)
    assert [checkpoint.name for checkpoint in checkpoints] == found
    of_run = {"converted": None, "link": tmp_path / "run"}.get(path, tmp_path / path.split("/")[0])
    assert {run_of(checkpoint) for checkpoint in checkpoints} == {of_run}


def test_what_means_none(tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").touch()
    for path, said in {
        "empty": "it holds neither one nor a run with one",
        "file": "it is a file, and a checkpoint a folder",
        "nowhere": "there is no such folder",
    }.items():
        with pytest.raises(UsageError, match=said):
            candidates(tmp_path / path)
