"""The files of label inputs: whole or not at all, and the order of classes."""

import numpy as np
import pytest

from mlic_jax.data import label_files
from mlic_jax.errors import Failure, UsageError


def test_order_of():
    have, want = ["ant", "bee", "cat"], ["cat", "ant", "bee"]
    order = label_files.order_of(have, want, "the graph")
    assert [have[i] for i in order] == want
    for other, message in (
        (["cat", "ant", "dog"], "lacks dog and has bee"),
        (["ant", "bee"], "has cat"),
        (["ant", "bee", "cat", "cat"], "has one of them more than once"),
    ):
        with pytest.raises(UsageError, match=f"^g is not of the classes wanted: it {message}$"):
            label_files.order_of(have, other, "g")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "a.npz"
    label_files.write_npz(path, {"counts": np.eye(2), "class_names": None, "set_name": "toy"})
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]
    assert label_files.is_npz(path)
    fields = label_files.read_npz(path, "toys")
    assert fields.keys() == {"counts", "set_name"}
    np.testing.assert_array_equal(fields["counts"], np.eye(2))

    class Unwritable:
        def __array__(self, *_, **__):
            raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match=r"cannot write .*a\.npz: No space left"):
        label_files.write_npz(path, {"counts": Unwritable()})
    np.testing.assert_array_equal(label_files.read_npz(path, "toys")["counts"], np.eye(2))
    with pytest.raises(UsageError, match="cannot write"):
        label_files.write_npz(path / "below_a_file" / "a.npz", {})


def test_numbers():
    for values in (np.eye(2), [[1, 0], [0.0, True]], [np.array([1, 0]), [0, np.float64(1)]]):
        numbers = label_files.numbers(values, "it")
        assert numbers.dtype == np.float32
        np.testing.assert_array_equal(numbers, np.eye(2))
    assert np.isinf(label_files.numbers([1e300], "it")).all()
    for values in ([1, "a"], [b"a"], [[1], [1, 2]], {"a": 1}, None, [10**400], np.array(["a"]), 1j):
        with pytest.raises(Failure, match=r"^it: "):
            label_files.numbers(values, "it")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.npz cannot be read: No such file"):
        label_files.is_npz(tmp_path / "nothing.npz")
    path = tmp_path / "a.npz"
    np.savez_compressed(path, counts=np.random.default_rng(0).random((40, 40)))
    content = path.read_bytes()
    for length in range(2, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(Failure, match=r"a\.npz is not a file of toys"):
            label_files.read_npz(path, "toys")
    path.write_bytes(content[:5000] + b"damage" + content[5006:])
    with pytest.raises(Failure, match=r"a\.npz is not a file of toys"):
        label_files.read_npz(path, "toys")
    np.savez(path, counts=np.array([{}], object))
    with pytest.raises(Failure, match=r"not a file of toys.*pickle"):
        label_files.read_npz(path, "toys")
