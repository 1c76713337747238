"""Score files: read back as they were, or refused in one line."""

import numpy as np
import pytest

from mlic_jax.errors import Failure, UsageError
from mlic_jax.evaluate import calibrate_score_file, score_file
from mlic_jax.scores.files import Scores

IMAGES, CLASSES = 6, 3
RNG = np.random.default_rng(0)
FIELDS = {
    "logits": RNG.normal(size=(IMAGES, CLASSES)).astype(np.float32),
    "labels": np.tile(np.array([[1, -1, 0], [-1, 1, 1]], np.int8), (IMAGES // 2, 1)),
    "image_ids": np.array([f"image {i}" for i in range(IMAGES)]),
    "class_names": np.array(["ant", "bee", "cat"]),
    "set_name": np.array("toy"),
    "split": np.array("val"),
    "image_size": np.array(64),
    "boxes": np.zeros((IMAGES, 2, 4), np.int32),
    "origin": np.array('{"weights": "0"}'),
}


@pytest.fixture
def write(tmp_path):
    def make(**changes):
        path = tmp_path / "scores_val.npz"
        fields = FIELDS | changes
        np.savez(path, **{name: value for name, value in fields.items() if value is not None})
        return path

    return make


def test_scores_are_read_back(write, tmp_path):
    scores = Scores.load(write())
    assert scores.origin == {"weights": "0"} and scores.image_size == 64
    scores.save(tmp_path / "again.npz")
    again = Scores.load(tmp_path / "again.npz")
    for name in ("logits", "labels", "image_ids", "class_names", "boxes"):
        np.testing.assert_array_equal(getattr(again, name), FIELDS[name])
    with pytest.raises(UsageError, match="no score file at"):
        Scores.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": None}, "it lacks labels"),
        ({"logits": np.zeros((IMAGES, 2), np.float32)}, r"labels must be integer \[6, 2\]"),
        ({"logits": np.zeros(IMAGES, np.float32)}, "logits must be float"),
        ({"logits": np.zeros((IMAGES, CLASSES), complex)}, "logits must be float"),
        ({"labels": np.full((IMAGES, CLASSES), 2)}, "its labels are not -1, 0 and 1"),
        ({"image_ids": np.array(["a"])}, "image_ids must be text"),
        ({"image_size": np.array("large")}, "image_size must be integer"),
        ({"boxes": np.zeros((IMAGES, 2, 3), np.int32)}, r"boxes must be integer \[6, 2, 4\]"),
        ({"origin": np.array("[1]")}, "its origin is no object"),
        ({"origin": np.array("[" * 100_000)}, "origin is not JSON .*nested too deep"),
        ({"class_names": np.array(["a", {}, None], object)}, "holds object"),
    ],
)
def test_a_tampered_file_is_one_line(write, changes, reason, capsys):
    path = write(**changes)
    with pytest.raises(Failure, match=reason) as failure:
        Scores.load(path)
    assert str(path) in str(failure.value)
    for command in (score_file.main, calibrate_score_file.main):
        assert command([str(path)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_logits_beyond_float32_are_not_finite(write, capsys):
    path = write(logits=np.full((IMAGES, CLASSES), 1e300))
    assert np.isinf(Scores.load(path).logits).all()
    assert score_file.main([str(path)]) == 1
    assert "scores are not finite" in capsys.readouterr().err


def test_names_with_line_breaks_do_not_break_the_line(write, tmp_path, capsys):
    path = write(set_name=np.array("a\nb\x1b"))
    other = tmp_path / "other.npz"
    np.savez(other, **FIELDS | {"image_ids": FIELDS["image_ids"][::-1]})
    assert score_file.main([str(path), "--against", str(other)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and r"a\nb\x1b val" in error
