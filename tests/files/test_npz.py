"""Files of arrays: written and read, and refused where they claim more than they are."""

import io
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from mlic_jax.errors import Failure
from mlic_jax.files import npz


def header(shape: str, dtype: str = "<f4", version: bytes = b"\x01\x00") -> bytes:
    """What is in front of an array; the text of the shape may be any."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + text


def archive(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in entries.items():
            zipped.writestr(f"{name}.npy", content)
    return file.getvalue()


def test_what_is_written_is_read(tmp_path):
    fields = {"a": np.eye(3, dtype=np.float32), "names": np.array(["x", "höhe"]), "n": 3}
    npz.write(tmp_path / "a.npz", fields | {"none": None})
    arrays = npz.read(tmp_path / "a.npz", "a file")
    assert arrays.keys() == fields.keys()
    for name, value in fields.items():
        np.testing.assert_array_equal(arrays[name], value)


def test_a_constant_array_of_some_size_is_read(tmp_path):
    """Packed to a thousandth, as the labels of a test split without any are."""
    npz.write(tmp_path / "a.npz", {"labels": np.zeros((40_000, 80), np.int8)})
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    assert npz.read(tmp_path / "a.npz", "a file")["labels"].shape == (40_000, 80)


def test_what_arrays_claim_is_added_up(tmp_path):
    """One of 20 MB may be packed into nothing, two of them may not."""
    array = np.zeros(20_000_000, np.uint8)
    npz.write(tmp_path / "one.npz", {"a": array})
    assert npz.read(tmp_path / "one.npz", "a file")["a"].shape == array.shape
    npz.write(tmp_path / "two.npz", {"a": array, "b": array})
    with pytest.raises(Failure, match="'b' claims 20,000,128 bytes, far more than it"):
        npz.read(tmp_path / "two.npz", "a file")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archive(a=header("(1000000000,)")), r"'a' has 0 bytes, and claims to be float32 of shape"),
        (archive(a=header("(3,)") + bytes(8)), "'a' has 8 bytes"),
        (archive(a=header("(-1,)")), "'a' has 0 bytes"),
        (archive(a=header("(1000000000000, 0)")), "'a' has 0 bytes"),
        (archive(a=header("(1000000000000,)", "<U0")), "'a' has 0 bytes"),
        (archive(a=header("(" * 3000)), "not a file: "),
        (archive(a=header("-" * 9000 + "1")), "not a file: "),
        (archive(a=header("(" + "9" * 5000 + ",)")), "not a file: "),
        (archive(a=b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 50_000_000), "claims 50,000,012"),
        (archive(a=header("(1,)", "|O") + b"N."), "'a' holds object, not numbers"),
        (archive(a=header("(1,)", version=b"\x03\x00") + bytes(4)), "version"),
        (archive(a=header("(50000000,)") + bytes(200_000_000)), "'a' claims 200,000,074"),
        (archive(a=header("(1,)", "<U1") + b"\xff\xff\xff\x7f"), "'a' holds what is no text"),
        (archive(a=header("(1,)", "<U1") + b"\x00\xd8\x00\x00"), "'a' holds what is no text"),
        (b"", "not a zip file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_claim_is_compared_with_the_bytes(content, reason, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(Failure, match=reason) as failure:
            npz.read(path, "a file")
        assert tracemalloc.get_traced_memory()[1] < 5e6 + 20 * len(content)
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 5
    assert str(failure.value).startswith(f"{path} is not a file: ")
    assert "\n" not in str(failure.value)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A hundred entries in the place of one: the directory names it again and again."""
    one = archive(a=header("(250000,)") + np.random.default_rng(0).bytes(1_000_000))
    start = one.index(b"PK\x01\x02")
    entry, end = one[start:-22], bytearray(one[-22:])
    names = [entry.replace(b"a.npy", b"%c.npy" % c) for c in range(ord("a"), ord("a") + 26)]
    end[8:12] = len(names).to_bytes(2, "little") * 2
    end[12:16] = sum(map(len, names)).to_bytes(4, "little")
    path = tmp_path / "a.npz"
    path.write_bytes(one[:start] + b"".join(names) + end)
    with pytest.raises(Failure, match="its arrays overlap"):
        npz.read(path, "a file")


def test_other_ways_to_pack_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as zipped:
        zipped.writestr("a.npy", header("(1,)") + bytes(4))
    with pytest.raises(Failure, match="packed in a way that NumPy does not use"):
        npz.read(tmp_path / "a.npz", "a file")


def test_check():
    axes = {"a": ("float", "NC"), "b": ("integer", "N4"), "c": ("text", "")}
    good = {"a": np.zeros((2, 3)), "b": np.zeros((2, 4), int), "c": np.array("x"), "d": 0}
    npz.check(good, axes, "it")
    npz.check({"b": good["b"]}, axes, "it")
    for name, other, message in (
        ("a", np.zeros(2), r"a must be float \['N', 'C'\], and is float64 \(2,\)"),
        ("a", np.zeros((2, 3), int), "a must be float"),
        ("b", np.zeros((3, 4), int), r"b must be integer \[2, 4\], and is int64 \(3, 4\)"),
        ("b", np.zeros((2, 5), int), r"b must be integer \[2, 4\]"),
        ("c", np.array(["x"]), r"c must be text \[\]"),
    ):
        with pytest.raises(Failure, match=f"^it: {message}"):
            npz.check(good | {name: other}, axes, "it")
