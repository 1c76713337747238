"""Squares kept on disk: those of decoding, whoever wrote them and whatever became of the file."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest

from mlic_jax.data import pipeline, records, transforms
from mlic_jax.data.fitting import Fit
from mlic_jax.data.records.pixels import Squares, open_squares, take_over
from mlic_jax.errors import UsageError

SIZE, COUNT = 16, 10
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prepared(toy_source, tmp_path):
    """The folder of a prepared set of ten images."""
    return records.prepare(toy_source(train=COUNT), tmp_path / "prepared")


@pytest.fixture
def split(prepared):
    return records.open_split(prepared, "train")


def passes(split, **options):
    """Two epochs, in an order each."""
    defaults = dict(batch_size=4, image_size=SIZE, shuffle=True, epochs=2, threads=2)
    return list(pipeline.batches(split, **{**defaults, **options}))


def assert_as_decoded(split, **options):
    kept = passes(split, cache="pixels", **options)
    for a, b in zip(kept, passes(split, **{**options, "workers": 0}), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def files_of(prepared):
    return sorted((prepared / "pixels").glob("*"))


def squares_of(prepared):
    (path,) = files_of(prepared)
    return Squares(path, COUNT, SIZE)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_decoding(prepared, split, workers, capsys):
    assert_as_decoded(split, workers=workers)
    (path,) = files_of(prepared)
    squares = Squares(path, COUNT, SIZE)
    assert squares.count() == COUNT
    for i in range(COUNT):
        square = np.empty((SIZE, SIZE, 3), np.uint8)
        assert squares.read(i, square)
        want = transforms.resize(split.decode(split[i]), SIZE)
        np.testing.assert_array_equal(square, want)
    assert capsys.readouterr().out == (
        f"pixels of 10 photos (toy train, 16 px) are kept in {path}, 7.58 KiB: 0 so far\n"
    )
    assert_as_decoded(records.open_split(prepared, "train"))
    assert "7.58 KiB: 10 so far\n" in capsys.readouterr().out


def test_what_is_kept_is_not_decoded_again(prepared, split):
    passes(split, cache="pixels")
    other = np.full((SIZE, SIZE, 3), 7, np.uint8)
    squares_of(prepared).write(3, other)
    (batch,) = passes(split, cache="pixels", batch_size=COUNT, shuffle=False, epochs=1)
    np.testing.assert_array_equal(batch["image"][3], other)
    assert (batch["image"][4] != other).any()


def test_splits_and_sizes_have_files_of_their_own(toy_source, tmp_path):
    folder = records.prepare(toy_source(train=COUNT, val=4), tmp_path)
    for name, size in (("train", 16), ("val", 16), ("train", 32)):
        assert_as_decoded(records.open_split(folder, name), image_size=size)
    names = [path.name.rpartition("-")[0] for path in files_of(folder)]
    assert names == ["train-16", "train-32", "val-16"]


def test_another_version_of_pillow_makes_another_file_and_the_first_goes(
    prepared, split, monkeypatch
):
    passes(split, cache="pixels")
    first = files_of(prepared)
    monkeypatch.setattr(PIL, "__version__", "99.0.0")
    assert_as_decoded(records.open_split(prepared, "train"))
    (second,) = files_of(prepared)
    assert first != [second]


# --- files that are not whole


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: os.pwrite(file, bytes(100), 2 * 3 * SIZE**2 + 300),  # half of a square
        lambda file: os.ftruncate(file, 4 * 3 * SIZE**2 + 50),
        lambda file: os.pwrite(file, b"\1", COUNT * 3 * SIZE**2 + 8),  # a mark
    ],
    ids=["torn", "cut", "marked"],
)
def test_what_is_not_whole_is_decoded_again(prepared, split, harm):
    passes(split, cache="pixels")
    file = os.open(files_of(prepared)[0], os.O_RDWR)
    harm(file)
    os.close(file)
    assert_as_decoded(records.open_split(prepared, "train"))
    squares, square = squares_of(prepared), np.empty((SIZE, SIZE, 3), np.uint8)
    assert all(squares.read(i, square) for i in range(COUNT))  # whole again


FILLING = """
import sys
from mlic_jax.data import pipeline, records
split = records.open_split(sys.argv[1], "train")
options = dict(batch_size=1, image_size=16, shuffle=True, seed=int(sys.argv[2]), threads=1)
for batch in pipeline.batches(split, cache="pixels", **options):
    print(batch["index"][0], batch["image"].tobytes().hex(), flush=True)
    sys.stdin.readline()
"""


def filling(prepared, seed):
    """A process that fills the file, a photo for each line that it is given."""
    return subprocess.Popen(
        [sys.executable, "-c", FILLING, str(prepared), str(seed)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_runs_fill_it_at_once_and_one_is_killed(prepared, split):
    with filling(prepared, 1) as killed, filling(prepared, 2) as other:
        for process in (killed, other):
            assert "are kept in" in process.stdout.readline()
            process.stdout.readline()
        killed.send_signal(signal.SIGKILL)
        assert 0 < squares_of(prepared).count() < COUNT
        output, _ = other.communicate(timeout=60)
    for line in output.splitlines():
        i, pixels = line.split()
        want = transforms.resize(split.decode(split[int(i)]), SIZE)
        assert bytes.fromhex(pixels) == want.tobytes()
    assert squares_of(prepared).count() == COUNT
    assert_as_decoded(split)


def test_every_way_to_make_squares_has_a_file_of_its_own(prepared, split, toy_source, capsys):
    assert_as_decoded(split)
    (first,) = files_of(prepared)
    assert re.fullmatch(r"train-16-[0-9a-f]{16}\.pixels", first.name)  # as before there were others
    fits = Fit("bicubic"), Fit("bicubic", 0.5), Fit(center_crop=0.5)
    for fit in fits:
        assert_as_decoded(split, fit=fit)
    assert "(toy train, 16 px, bicubic, the central 0.5 of the shorter side) are" in (
        capsys.readouterr().out
    )
    kept = files_of(prepared)
    assert len(kept) == 4 and first in kept
    moved = records.prepare(toy_source(train=COUNT), prepared.parent / "again")
    take_over(prepared, moved)
    assert files_of(prepared) == []
    assert [path.name for path in files_of(moved)] == [path.name for path in kept]


# --- what cannot be kept


def test_more_than_the_bound_is_not_kept(prepared, split, capsys):
    assert_as_decoded(split, cache_gib=1e-6)
    assert not (prepared / "pixels").exists()
    assert capsys.readouterr().out == (
        "pixels of 10 photos (toy train, 16 px) are not kept, photos are decoded anew: they take "
        f"7.58 KiB beside the 0.00 KiB that lie in {prepared}/pixels, and data.cache_gib is 1e-06\n"
    )


def test_all_files_of_a_set_count(toy_source, tmp_path, capsys):
    folder = records.prepare(toy_source(train=COUNT, val=4), tmp_path)
    most = (COUNT + 3) * 3 * SIZE**2 / 2**30
    for name in ("train", "val"):
        assert_as_decoded(records.open_split(folder, name), cache_gib=most)
    (path,) = files_of(folder)
    assert path.name.startswith("train-16-")


def test_a_disk_that_is_too_small(split, capsys):
    assert open_squares(split, 2**20, 1e9) is None
    line = capsys.readouterr().out
    assert "are not kept, photos are decoded anew: they take 30,720.00 GiB more, and " in line
    assert line.endswith(f" are free on the disk of {split.directory}\n")


def test_a_disk_that_is_full_on_the_way(prepared, split, capsys, files_of_at_most):
    open_squares(split, SIZE, 10.0)
    with files_of_at_most(4 * 3 * SIZE**2 + 50):
        assert_as_decoded(split)
    path = files_of(prepared)[0]
    assert (
        f"{path} cannot be written: File too large: no more pixels are kept\n"
        in capsys.readouterr().out
    )
    assert_as_decoded(records.open_split(prepared, "train"))
    assert squares_of(prepared).count() == COUNT


@contextlib.contextmanager
def no_administrator():
    """Inside, this process is one that files may be closed to."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_set_that_cannot_be_written_to(prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared.parent)  # above which another user may not look
    folder = Path(prepared.name)
    folder.chmod(0o555)
    with no_administrator():
        assert_as_decoded(records.open_split(folder, "train"))
    assert "are not kept, photos are decoded anew: Permission denied\n" in capsys.readouterr().out
    folder.chmod(0o755)
    squares = open_squares(records.open_split(folder, "train"), SIZE, 10.0)
    other = np.full((SIZE, SIZE, 3), 7, np.uint8)
    squares.write(0, other)
    squares.path.chmod(0o444)
    with no_administrator():
        split = records.open_split(folder, "train")
        (batch,) = passes(split, cache="pixels", batch_size=COUNT, shuffle=False, epochs=1)
    np.testing.assert_array_equal(batch["image"][0], other)
    assert squares.count() == 1
    assert "1 so far; it cannot be written to\n" in capsys.readouterr().out


@pytest.mark.parametrize("crop", ["random_resized_crop", "multi_scale"])
def test_crops_are_not_kept_and_that_is_said(prepared, split, crop, capsys):
    assert_as_decoded(split, train_crop=crop)
    assert not (prepared / "pixels").exists()
    assert capsys.readouterr().out == (
        f"pixels are not kept: crops ({crop}) are of other pixels every time\n"
    )


def test_a_cache_that_there_is_not(split):
    with pytest.raises(
        UsageError, match=r"cache is 'disk'; it must be one of \('none', 'pixels'\)"
    ):
        passes(split, cache="disk")
