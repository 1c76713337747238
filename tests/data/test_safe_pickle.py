"""Pickles of arrays are read; pickles that name anything else are refused and not run."""

import io
import os
import pickle
import subprocess
import time
import tracemalloc

import numpy as np
import pytest

from mlic_jax.data import safe_pickle
from mlic_jax.errors import Failure, UsageError

CONTENT = {
    "adj": np.arange(6, dtype=np.float32).reshape(2, 3),
    "nums": [np.float64(2.5), 3, True, None, 2**70],
    "more": ({1, 2}, frozenset({3}), b"\xff\x00", bytearray(b"ab"), "text"),
    "big-endian": np.array([1, 2], ">i8"),
    "fortran": np.asfortranarray(np.eye(3)),
}


@pytest.mark.parametrize(
    ("core", "protocol"),
    [("numpy._core.", protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    # As NumPy 1 wrote them. Later protocols have lengths in front of names.
    + [("numpy.core.", protocol) for protocol in range(4)],
)
def test_arrays_and_containers_of_every_protocol(core, protocol, tmp_path):
    content = pickle.dumps(CONTENT, protocol)
    assert b"numpy._core." in content
    content = content.replace(b"numpy._core.", core.encode())
    path = tmp_path / "content.pkl"
    path.write_bytes(content)
    loaded = safe_pickle.load(path)
    assert loaded.keys() == CONTENT.keys()
    for name in ("adj", "big-endian", "fortran"):
        assert isinstance(loaded[name], np.ndarray)
        assert loaded[name].dtype.name == CONTENT[name].dtype.name
        np.testing.assert_array_equal(loaded[name], CONTENT[name])
    assert loaded["nums"] == CONTENT["nums"] and isinstance(loaded["nums"][0], np.float64)
    assert loaded["more"] == CONTENT["more"]


class _Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "argument", "named"),
    [
        (os.system, "touch {}", "system"),
        (eval, "open('{}', 'w')", "eval"),
        (subprocess.Popen, ["touch", "{}"], "Popen"),
        (np.fromfile, "{}", "fromfile"),
        (getattr, "{}", "getattr"),
    ],
)
def test_what_would_run_is_refused_by_name(function, argument, named, protocol, tmp_path):
    mark = tmp_path / "it_ran"
    filled = (
        [part.format(mark) for part in argument]
        if isinstance(argument, list)
        else argument.format(mark)
    )
    path = tmp_path / "attack.pkl"
    path.write_bytes(pickle.dumps({"adj": _Attack(function, filled)}, protocol))
    with pytest.raises(Failure, match=f"names .*{named}.* refused") as failure:
        safe_pickle.load(path)
    assert str(path) in str(failure.value) and "\n" not in str(failure.value)
    assert not mark.exists()


def test_attributes_of_allowed_names_are_refused(tmp_path):
    """Protocol 4 can name `ndarray.tofile`, which writes a file."""
    path = tmp_path / "attack.pkl"
    path.write_bytes(pickle.dumps(np.ndarray.tofile, 4))
    with pytest.raises(Failure, match="refused"):
        safe_pickle.load(path)


def test_persistent_objects_are_refused(tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return "x" if obj == "elsewhere" else None

    buffer = io.BytesIO()
    Pickler(buffer).dump(["elsewhere"])
    (tmp_path / "a.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(Failure, match="not a pickle"):
        safe_pickle.load(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_cut_is_one_line(protocol, tmp_path):
    content = pickle.dumps(CONTENT, protocol)
    path = tmp_path / "cut.pkl"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(Failure, match="cut short") as failure:
            safe_pickle.load(path)
        assert "\n" not in str(failure.value)


def test_damaged_bytes_end_in_a_failure_or_in_other_values(tmp_path):
    content = pickle.dumps(CONTENT, 3)
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.pkl"
    failures = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            safe_pickle.load(path)
        except Failure as failure:
            failures += 1
            assert "\n" not in str(failure)
    assert failures > 50


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, "x"], object),
        np.zeros(2, [("a", "f4"), ("b", "i4")]),
        np.array(["2020-01-01"], "M8[D]"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_anything_but_numbers_are_refused(array, protocol, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array, protocol))
    with pytest.raises(Failure, match="not of numbers"):
        safe_pickle.load(tmp_path / "a.pkl")


def test_files_that_are_no_pickles(tmp_path):
    with pytest.raises(UsageError, match=r"no file .*nothing\.pkl"):
        safe_pickle.load(tmp_path / "nothing.pkl")
    (tmp_path / "a.txt").write_text("a text\n")
    with pytest.raises(Failure, match=r"a\.txt is damaged"):
        safe_pickle.load(tmp_path / "a.txt")


# --- small files that claim much

PAIRS = b")\x94" + b"".join(
    b"h%ch%c\x86\x94" % (i, i) for i in range(60)
)  # of twice the pair before
TEXT = b"B" + (500_000).to_bytes(4, "little") + bytes(500_000) + b"\x94"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02\x8f()" + b"2\x86" * 60 + b"\x90.", "DUP"),  # a set of it, hashed for ever
        (b"\x80\x04\x8f(" + PAIRS + b"\x90.", "a key must be text, bytes or a number"),
        (b"\x80\x04" + PAIRS + b"}h\x3cNs.", "a key must be"),
        (b"\x80\x04}(" + PAIRS + b"Nu.", "a key must be"),
        (b"\x80\x04(" + PAIRS + b"\x91.", "a key must be"),
        (b"\x80\x04cbuiltins\nset\n(](" + PAIRS + b"etR.", "a key must be"),
        (b"\x80\x04}(\x8a\x09" + bytes(8) + b"\x01Nu.", "a key must be"),  # 2**64
        (b"\x80\x04" + PAIRS + b".", "names the same things so often"),
        (b"\x80\x04]\x94(h\x00h\x00e.", "the same things so often"),  # a list of itself
        (b"\x80\x04]\x94h\x00a.", "the same things so often"),
        (b"\x80\x04)" + b"\x85" * 40 + b".", "nested more than 32 deep"),
        (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".", "but only 1 remain"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "but only 1 remain"),
        (b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b".", "but only 1 remain"),
        (b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b".", "not enough data"),
        (b"\x80\x02cbuiltins\nbytearray\n(J\x00\x00\x00\x70tR.", "'int' object"),
        (b"\x80\x02cbuiltins\nset\n(X\x01\x00\x00\x00atR.", None),
        (TEXT + b"cbuiltins\nbytearray\n\x94](" + b"h\x01h\x00\x85R" * 9000 + b"e.", "so often"),
        (b"N.", None),
        (b"Nr\xff\xff\xff\x0f.", None),  # Python's own makes room for 2**28 objects
    ],
)
def test_what_a_file_claims_is_not_taken_for_true(content, reason, tmp_path):
    """Each is read or refused at once, in less memory than a hundredth of what it claims."""
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.monotonic()
    try:
        if reason is None:
            safe_pickle.load(path)
        else:
            with pytest.raises(Failure, match=reason) as failure:
                safe_pickle.load(path)
            assert "\n" not in str(failure.value)
        assert tracemalloc.get_traced_memory()[1] < 3e6 + 20 * len(content)
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 5


def pickled_array(dtype: str, shape: tuple, data: bytes) -> bytes:
    """An array as NumPy pickles it, but for what it claims."""
    content = pickle.dumps(np.zeros(3), 3)
    for old, new in (
        (pickle.dumps("f8", 3)[2:-3], pickle.dumps(dtype, 3)[2:-3]),
        (b"K\x03\x85", pickle.dumps(shape, 3)[2:].partition(b"q")[0]),
        (b"C\x18" + bytes(24), b"C%c" % len(data) + data),
    ):
        assert old in content
        content = content.replace(old, new)
    return content


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [("f8", (10**9,), bytes(24)), ("f8", (3, 10**9), bytes(24)), ("f8", (2,), bytes(24))],
)
def test_an_array_is_as_large_as_its_bytes(dtype, shape, data, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled_array("f8", (3,), bytes(24)))
    np.testing.assert_array_equal(safe_pickle.load(path), np.zeros(3))
    path.write_bytes(pickled_array(dtype, shape, data))
    with pytest.raises(Failure, match="cannot reshape array of size 3"):
        safe_pickle.load(path)


def test_what_is_shared_is_read(tmp_path):
    shared = ("a", [1, 2])
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([shared, shared, {"b": shared}]))
    assert safe_pickle.load(path) == [shared, shared, {"b": shared}]
