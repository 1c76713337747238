"""A file is there whole or as it was; what a process left half-done is completed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlic_jax.errors import UsageError
from mlic_jax.files.atomic import finish_replacing, locked, write_text, written_whole


def test_the_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with written_whole(path) as partial:
        partial.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_to_be(tmp_path):
    path = tmp_path / "file.txt"
    (tmp_path / ".file.txt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full:
        write_text(path, "all of it")
    assert full.value.filename == str(path)
    assert not list(tmp_path.iterdir())
    path.mkdir()
    with pytest.raises(IsADirectoryError) as taken:
        write_text(path, "all of it")
    assert taken.value.filename == str(path)


ROOT = Path(__file__).resolve().parents[2]
NAMES = ("one", "two", "folder")


def fill(folder, text):
    """Makes what `NAMES` says."""
    (folder / "folder").mkdir(parents=True)
    for name in ("one", "two", "folder/inner"):
        (folder / name).write_text(text)


def read(folder):
    return [(folder / name).read_text() for name in ("one", "two", "folder/inner")]


# Replaces, and dies before a move.
REPLACE = """
import os, sys
from pathlib import Path
from mlic_jax.files.atomic import replace_together
left = int(sys.argv[2])
def hook(event, _):
    global left
    if event == "os.rename":
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(hook)
replace_together(Path(sys.argv[1]), sys.argv[3:])
"""


@pytest.mark.parametrize("moves", range(5))
def test_a_replacement_that_was_killed_is_completed(tmp_path, moves):
    """The process dies before its first, second, ... move; what is not named stays."""
    fill(tmp_path, "old")
    fill(tmp_path / ".partial", "new")
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [sys.executable, "-c", REPLACE, str(tmp_path), str(moves), *NAMES],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == (9 if moves < 4 else 0)
    finish_replacing(tmp_path, NAMES)
    if moves == 0:  # nothing was replaced yet
        assert read(tmp_path) == ["old"] * 3
        assert read(tmp_path / ".partial") == ["new"] * 3
    else:
        assert read(tmp_path) == ["new"] * 3
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*NAMES, "mine"))


def test_a_folder_is_locked_until_it_is_left(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
