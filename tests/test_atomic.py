"""A file is there whole or as it was."""

import pytest

from mlic_jax.atomic import write_text, written_whole


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
