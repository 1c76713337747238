"""Digests: what is not as it was written is told, whatever happened to it."""

import json

import pytest

from mlic_jax.errors import Failure
from mlic_jax.files import digests


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "array").write_bytes(bytes(range(256)))
    (tmp_path / "index").write_text("{}")
    digests.write(tmp_path)
    return tmp_path


def test_what_was_written_is_accepted(folder):
    digests.check(folder)
    (folder / "commit_success.txt").write_text("written later")
    digests.check(folder)


@pytest.mark.parametrize("position", [0, 100, 255])
def test_a_flipped_bit_is_found(folder, position):
    content = bytearray((folder / "d" / "array").read_bytes())
    content[position] ^= 4
    (folder / "d" / "array").write_bytes(content)
    with pytest.raises(Failure, match="d/array is not as it was written"):
        digests.check(folder)


def test_a_missing_file_is_found(folder):
    (folder / "d" / "array").unlink()
    with pytest.raises(Failure, match="d/array is missing"):
        digests.check(folder)


@pytest.mark.parametrize("text", ["", "{", "3", '["index"]', "[" * 100_000])
def test_damaged_digests_are_found(folder, text):
    (folder / digests.FILE).write_text(text)
    with pytest.raises(Failure, match=r"digests\.json cannot be read"):
        digests.check(folder)
    (folder / digests.FILE).unlink()
    with pytest.raises(Failure, match=r"digests\.json is missing"):
        digests.check(folder)


def test_sealed_content_is_told_from_changed_and_from_unsealed():
    content = {"names": ["é", "b"], "temperature": 0.1 + 0.2, "nested": {"b": 1, "a": None}}
    stored = json.loads(json.dumps(digests.sealed(content)))
    assert digests.unsealed(stored) == (content, True)
    assert digests.unsealed(content) == (content, False)
    for changed in (stored | {"names": ["e", "b"]}, stored | {"more": 1}):
        with pytest.raises(Failure, match="not as it was written"):
            digests.unsealed(changed)
