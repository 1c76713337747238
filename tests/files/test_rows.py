"""Rows with checksums: what was written is what is read, and what was not, or no more, is said."""

import numpy as np
import pytest

from mlic_jax.errors import Failure
from mlic_jax.files.rows import KeyedRows, Rows, reserve, said_size

SHAPE, DTYPE = (3, 2), np.float32
VALUES = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(DTYPE)
KEYS = [(0, -1), (0, 7), (3, 2), (2, 3), (0, 8)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "rows"


def test_rows_are_read_as_they_were_written(path):
    rows, row = Rows(path, 5, SHAPE, DTYPE), np.empty(SHAPE, DTYPE)
    np.testing.assert_array_equal(rows.missing(), np.arange(5))
    for number in (3, 0):
        rows.write(number, VALUES[number])
    for opened in (rows, Rows(path, 5, SHAPE, DTYPE)):
        np.testing.assert_array_equal(opened.missing(), [1, 2, 4])
        assert opened.damaged == 0
        assert opened.read(3, row)
        np.testing.assert_array_equal(row, VALUES[3])


@pytest.mark.parametrize("harm", ["changed", "cut"])
def test_a_harmed_row_is_as_good_as_none(path, harm):
    rows, row = Rows(path, 5, SHAPE, DTYPE), np.empty(SHAPE, DTYPE)
    for number in range(5):
        rows.write(number, VALUES[number])
    content = bytearray(path.read_bytes())
    if harm == "changed":
        content[2 * VALUES[0].nbytes + 1] ^= 1
        path.write_bytes(content)
    else:  # in the mark of row 2
        path.write_bytes(content[: 5 * VALUES[0].nbytes + 2 * 8 + 3])
    harmed = Rows(path, 5, SHAPE, DTYPE)
    np.testing.assert_array_equal(harmed.missing(), [2] if harm == "changed" else [2, 3, 4])
    assert harmed.damaged == 1
    harmed.write(2, VALUES[2])
    assert Rows(path, 5, SHAPE, DTYPE).read(2, row)
    np.testing.assert_array_equal(row, VALUES[2])


def test_appended_rows_are_found_by_their_keys(path):
    rows = KeyedRows(path, 2, SHAPE, DTYPE)
    rows.append(KEYS[:2], VALUES[:2])
    other = KeyedRows(path, 2, SHAPE, DTYPE)
    other.append(KEYS[2:4], VALUES[2:4])
    rows.append(KEYS[4:], VALUES[4:])
    assert KEYS[2] not in rows
    for key, values in zip(KEYS, VALUES, strict=True):
        np.testing.assert_array_equal(KeyedRows(path, 2, SHAPE, DTYPE)[key], values)
    np.testing.assert_array_equal(rows[KEYS[4]], VALUES[4])


def test_an_append_that_was_cut_short_is_written_over(path):
    KeyedRows(path, 2, SHAPE, DTYPE).append(KEYS, VALUES)
    path.write_bytes(path.read_bytes()[:-5])
    rows = KeyedRows(path, 2, SHAPE, DTYPE)
    assert len(rows) == 4
    assert KEYS[4] not in rows
    rows.append(KEYS[4:], VALUES[4:])
    rows = KeyedRows(path, 2, SHAPE, DTYPE)
    assert len(rows) == 5
    np.testing.assert_array_equal(rows[KEYS[4]], VALUES[4])


def test_a_harmed_appended_row_is_as_good_as_none(path):
    KeyedRows(path, 2, SHAPE, DTYPE).append(KEYS, VALUES)
    content = bytearray(path.read_bytes())
    content[0] ^= 1  # of the first key
    path.write_bytes(content)
    assert [key in KeyedRows(path, 2, SHAPE, DTYPE) for key in KEYS] == [False, *[True] * 4]


def test_what_the_disk_refuses_is_one_line(path):
    path.mkdir(parents=True)
    with pytest.raises(Failure, match=f"{path} cannot be opened: Is a directory"):
        Rows(path, 5, SHAPE, DTYPE)
    with pytest.raises(Failure, match=r"the rows take .* GiB more, and .* are free on the disk"):
        reserve(path, 2**60, "the rows")


def test_sizes_are_said_in_a_unit_that_fits():
    sizes = (0, 2**20 - 1024, 2**20, 2**30 - 2**20, 2**30, 3 * 2**40)
    said = ["0.00 KiB", "1,023.00 KiB", "1.00 MiB", "1,023.00 MiB", "1.00 GiB", "3,072.00 GiB"]
    assert list(map(said_size, sizes)) == said
