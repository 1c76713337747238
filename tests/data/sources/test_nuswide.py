"""NUS-WIDE's published file in miniature, and its malformations."""

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.sources.nuswide import CLASS_NAMES, NusWide
from mlic_jax.errors import Failure, UsageError

HEADER = "filepath,label,split_name\n"
ROWS = """\
images/0001_2124494179_b039ddccac_m.jpg,"['clouds', 'sky', 'water']",train
images/0002_174174086_4a7e07a5a5_m.jpg,['person'],val
images/0003_1129111796_2bca9cf9d1_m.jpg,"[""map"", ""clouds""]",train
images/0004_2124494179_0000000000_m.jpg,[],train
"""
FIRST, SECOND, THIRD, FOURTH = (line.split(",")[0] for line in ROWS.splitlines())


@pytest.fixture
def root(tmp_path, jpeg):
    (tmp_path / "nus_wide" / "images").mkdir(parents=True)
    for i, name in enumerate((FIRST, SECOND, THIRD, FOURTH)):
        (tmp_path / "nus_wide" / name).write_bytes(jpeg(i))
    (tmp_path / "nus_wid_data.csv").write_text(HEADER + ROWS)
    return tmp_path


def _source(root, rows=None, **options):
    if rows is not None:
        (root / "nus_wid_data.csv").write_text(HEADER + rows)
    options = {"annotations": "nus_wid_data.csv", "image_dir": "nus_wide", **options}
    return NusWide("nuswide", root, ("train", "val"), **options)


def _present(labels):
    assert set(np.unique(labels)) <= {-1, 1}
    return {CLASS_NAMES[c] for c in np.flatnonzero(labels == 1)}


def test_labels(root):
    source = _source(root)
    assert source.class_names == CLASS_NAMES and len(CLASS_NAMES) == 81
    assert CLASS_NAMES[:2] == ("clouds", "sky") and CLASS_NAMES[-1] == "map"
    first, third = source.examples("train")
    assert (first.image_id, first.image) == (FIRST, root / "nus_wide" / FIRST)
    assert _present(first.labels) == {"clouds", "sky", "water"}
    assert _present(third.labels) == {"clouds", "map"}
    (second,) = source.examples("val")
    assert (second.image_id, _present(second.labels)) == (SECOND, {"person"})
    assert first.labels.dtype == np.int8 and first.labels.shape == (81,)


def test_unlabelled_images_are_dropped_or_kept(root):
    kept = _source(root, keep_unlabelled=True).examples("train")
    assert [example.image_id for example in kept] == [FIRST, THIRD, FOURTH]
    assert (kept[2].labels == -1).all()


def test_prepared_and_read_back(root):
    folder = records.prepare(_source(root), root / "prepared")
    train, val = (records.open_split(folder, split) for split in ("train", "val"))
    assert train.class_names == CLASS_NAMES and (len(train), len(val)) == (2, 1)
    assert val[0].image == (root / "nus_wide" / SECOND).read_bytes()
    assert _present(train[1].labels) == {"clouds", "map"}


def test_rows_of_another_split_are_left_alone(root):
    source = _source(root, ROWS + "images/9.jpg,['sky'],undecided\n")
    assert [len(source.examples(split)) for split in source.splits] == [2, 1]


def test_missing_images_are_listed_or_left_out(root):
    for name in (FIRST, SECOND):
        (root / "nus_wide" / name).unlink()
    with pytest.raises(Failure, match=r"2 unreadable images: train: .*; val: .*skip"):
        records.prepare(_source(root), root / "prepared")
    listed = (root / "prepared" / "nuswide.incomplete" / "unreadable.txt").read_text()
    assert FIRST in listed and SECOND in listed
    (root / "nus_wide" / SECOND).write_bytes((root / "nus_wide" / THIRD).read_bytes())
    folder = records.prepare(_source(root), root / "prepared", on_corrupt="skip")
    split = records.open_split(folder, "train")
    assert [record.image_id for record in split] == [THIRD]
    assert split.skipped == [f"{FIRST} ({root / 'nus_wide' / FIRST})"]


@pytest.mark.parametrize(
    "row, message",
    [
        ("images/9.jpg,['sky']", "line 6: 2 columns, and the header has 3"),
        ("images/9.jpg,['sky', 'map'],train", "line 6: 4 columns, and the header has 3"),
        ("images/9.jpg,sky,train", "line 6: 'sky' is not a Python list of names"),
        ("images/9.jpg,['sky',train", r"line 6: \"\['sky'\" is not a Python list of names"),
        ("images/9.jpg,('sky'),train", "line 6: .* is not a Python list of names"),
        ("images/9.jpg,[sky],train", "line 6: .* is not a Python list of names"),
        ("images/9.jpg,[7],train", "line 6: .* is not a Python list of names"),
        ("images/9.jpg,,train", "line 6: '' is not a Python list of names"),
        ("images/9.jpg,['Sky'],train", "line 6: unknown label 'Sky'"),
        ("images/9.jpg,['sky?'],train", "line 6: unknown label 'sky"),
        (f"{SECOND},['sky'],train", f"line 6: {SECOND} is listed already, in .*line 3"),
        ("images/9.jpg,['sky'],", "line 6: split_name is empty"),
        (",['sky'],train", "line 6: filepath is empty"),
    ],
)
def test_a_malformed_row_is_named(root, row, message):
    with pytest.raises(Failure, match=message) as failure:
        _source(root, ROWS + row + "\n").examples("train")
    assert "nus_wid_data.csv, line 6: " in str(failure.value) and "\n" not in str(failure.value)


def test_another_header(root):
    (root / "nus_wid_data.csv").write_text("filepath,label\nimages/1.jpg,['sky']\n")
    with pytest.raises(Failure, match="line 1: the columns must be filepath, label, split_name"):
        _source(root).examples("train")


def test_missing_paths(root):
    with pytest.raises(UsageError, match=r"annotation file .*other.csv: No such file"):
        _source(root, annotations="other.csv").examples("train")
    with pytest.raises(UsageError, match=r"no image folder .*/elsewhere"):
        _source(root, image_dir="elsewhere").examples("train")
    with pytest.raises(UsageError, match="set nuswide has no split 'test'; it has train, val"):
        _source(root).examples("test")
