"""Rules between labels: read, completed, made to agree and counted."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.data import label_tree
from mlic_jax.errors import UsageError

NAMES = ("animal", "dog", "puppy", "pet", "car #2", "tree")


@pytest.fixture
def tree(tmp_path):
    """A puppy is a dog, which is both an animal and a pet."""
    path = tmp_path / "tree.txt"
    path.write_text("# of animals\n\npuppy<dog\ndog < animal  # and\n  dog < pet\n")
    return label_tree.read(path, NAMES)


def above(tree, label):
    """The label and all above it, by following every rule; an independent reference."""
    parents = [p for c, p in tree.rules if c == label]
    return {label}.union(*(above(tree, parent) for parent in parents))


def test_it_is_read_by_names(tree):
    assert tree.named() == [["puppy", "dog"], ["dog", "animal"], ["dog", "pet"]]


def test_scores_agree_and_nothing_else_changes(tree):
    scores = np.random.default_rng(0).normal(size=(50, len(NAMES))).astype(np.float32)
    expected = scores.copy()
    for row in range(len(scores)):
        for label in range(len(NAMES)):
            below = [one for one in range(len(NAMES)) if label in above(tree, one)]
            expected[row, label] = max(scores[row, one] for one in below)
    consistent = tree.consistent(scores)
    np.testing.assert_array_equal(consistent, expected)
    np.testing.assert_array_equal(tree.consistent(jnp.asarray(scores)), expected)
    assert sum(tree.disagreements(scores)) > 0
    assert tree.disagreements(consistent) == [0, 0, 0]
    np.testing.assert_array_equal(tree.consistent(consistent), consistent)


def test_missing_parents_are_filled_in_and_nothing_else(tree):
    labels = np.random.default_rng(1).integers(-1, 2, (60, len(NAMES))).astype(np.int8)
    filled = tree.filled(labels)
    assert filled.dtype == np.int8
    for before, after in zip(labels, filled, strict=True):
        shown = set().union(*(above(tree, label) for label in np.flatnonzero(before > 0)))
        expected = [1 if c in shown else before[c] for c in range(len(NAMES))]
        np.testing.assert_array_equal(after, expected)
    assert tree.violations(filled) == [0, 0, 0]


def test_violations_are_of_known_labels(tree):
    #                  animal dog puppy pet
    rows = [[-1, 1, -1, 0], [1, -1, 1, 1], [0, 0, 1, -1]]
    labels = np.array([[*row, -1, -1] for row in rows], np.int8)
    assert tree.violations(labels) == [1, 1, 0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("dog < animl", "line 1: no label 'animl'; did you mean 'animal'"),
        ("dog < xyz", "line 1: no label 'xyz', and a rule is between classes of the set"),
        ("dog < animal\nanimal < pet\npet < dog", "line 3: pet would be below itself"),
        ("dog < dog", "line 1: dog would be below itself"),
        ("dog, animal", "line 1: 'dog, animal' is no rule such as `dog < animal`"),
        ("dog < animal < pet", "line 1: .* is no rule"),
        ("dog <", "line 1: .* is no rule"),
        ("car #2 < tree", "line 1: .* is no rule"),  # what follows a # does not count
        ("# nothing\n", "has no rule"),
    ],
)
def test_what_is_no_tree_is_one_line(tmp_path, text, message):
    path = tmp_path / "tree.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        label_tree.read(path, NAMES)


def test_a_file_of_notepad(tmp_path):
    (tmp_path / "tree.txt").write_text("dog < animal", encoding="utf-8-sig")
    assert label_tree.read(tmp_path / "tree.txt", NAMES).named() == [["dog", "animal"]]


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        label_tree.read(tmp_path / "missing", NAMES)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no UTF-8 text"):
        label_tree.read(tmp_path / "bytes", NAMES)
