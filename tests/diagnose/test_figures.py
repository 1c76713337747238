"""Figures of a diagnosis, beside the same counted one by one."""

import numpy as np
import pytest

from mlic_jax.diagnose import figures
from mlic_jax.metrics.average_precision import average_precision
from mlic_jax.metrics.costs import average_precision_costs
from mlic_jax.metrics.localisation import localise

NAMES = ["a", "b", "c"]
IDS = [f"photo {i}" for i in range(40)]


@pytest.fixture
def case():
    """Labels, probabilities and what is predicted of 40 photos."""
    rng = np.random.default_rng(1)
    labels = rng.choice([-1, 0, 1], (40, 3)).astype(np.int8)
    probabilities = np.round(rng.random((40, 3)), 3)
    return labels, probabilities, probabilities >= 0.5


def pairs(labels):
    return [(i, c) for i in range(40) for c in range(3) if labels[i, c] != 0]


def test_photos_by_the_number_of_their_labels(case):
    labels, _, predicted = case
    rows = figures.by_number_of_labels(predicted, labels)
    assert [row["labels"] for row in rows] == [0, 1, 2, 3]
    assert sum(row["photos"] for row in rows) == 40
    for row in rows:
        of = [i for i in range(40) if (labels[i] > 0).sum() == row["labels"]]
        said = [(i, c) for i, c in pairs(labels) if i in of and predicted[i, c]]
        hits = sum(labels[i, c] > 0 for i, c in said)
        assert row["predicted"] == pytest.approx(len(said) / len(of))
        assert row["precision"] == pytest.approx(100 * hits / len(said))
        present = len(of) * row["labels"]
        assert row["recall"] == (pytest.approx(100 * hits / present) if present else None)


def test_many_labels_are_one_group():
    labels = np.ones((3, 9), np.int8)
    labels[0, 6:] = -1
    (row,) = figures.by_number_of_labels(labels > 0, labels)
    assert row["labels"] == 6 and row["or_more"] and row["photos"] == 3


def test_what_is_promised_and_what_is_kept(case):
    labels, probabilities, predicted = case
    for c, row in enumerate(figures.confidence(probabilities, predicted, labels, NAMES)):
        known = [i for i, k in pairs(labels) if k == c]
        mean = 100 * np.mean([probabilities[i, c] for i in known])
        frequency = 100 * np.mean([labels[i, c] > 0 for i in known])
        said = [i for i in known if predicted[i, c]]
        promised = 100 * np.mean([probabilities[i, c] for i in said])
        kept = 100 * np.mean([labels[i, c] > 0 for i in said])
        assert row["excess"] == pytest.approx(mean - frequency)
        assert (row["predicted"], row["boast"]) == (len(said), pytest.approx(promised - kept))
    none = figures.confidence(probabilities, predicted & False, labels, NAMES)[0]
    assert none["promised"] is none["kept"] is none["boast"] is None


def test_recall_by_the_size_of_the_largest_object():
    labels = np.array([[1, 1, -1], [1, 0, -1], [1, -1, -1]], np.int8)
    small, medium, large = [0, 0, 5, 5], [0, 0, 10, 20], [0, 0, 20, 20]
    objects = [
        (np.array([small, large, small]), np.array([0, 0, 1])),
        (np.array([medium, small]), np.array([0, 1])),
        (np.array([medium]), np.array([0])),
    ]
    looks = localise(labels, objects, 100, None, None)
    predicted = np.array([[True, False, True], [False, True, True], [True, True, False]])
    found = figures.recall_by_size(looks, predicted, NAMES)
    assert found["small"] == {"objects": 1, "recall": 0}
    assert found["medium"] == {"objects": 2, "recall": 50}
    assert found["large"] == {"objects": 1, "recall": 100}
    assert found["by_class"]["b"]["small"]["objects"] == 1
    assert found["by_class"]["c"]["large"] == {"objects": 0, "recall": None}


def test_the_costliest_photos_come_first_with_their_labels():
    labels = np.array([[1, -1], [1, -1], [-1, 1], [0, 1]], np.int8)
    logits = np.float32([[3, -2], [-3, 5], [1, 4], [9, 3]])
    rows = figures.costliest(average_precision_costs(logits, labels), labels, IDS, NAMES, 2)
    assert [row["photo"] for row in rows] == [1, 2]
    (first, second) = rows[0]["labels"]
    # b: hits at ranks 2 and 3 of 4, and at 1 and 2 without it; a: at 1 and 3, then at 1 and 2.
    assert (first["name"], first["kind"]) == ("b", "ranked too high")
    assert first["AP"] == pytest.approx(100 * (1 - (1 / 2 + 2 / 3) / 2))
    assert (second["name"], second["kind"]) == ("a", "ranked too low")
    assert second["AP"] == pytest.approx(100 * (1 - 2 / 3) / 2)
    assert rows[0]["cost"] == pytest.approx((first["AP"] + second["AP"]) / 2)


def test_what_a_second_look_gained_and_lost():
    labels = np.array([[1, -1], [1, 0], [-1, 1], [-1, -1]], np.int8)
    first = np.float32([[-1, -1], [2, -1], [-0.5, 1], [-2, -2]])
    final = np.float32([[3, -1], [2, 4], [1, 1], [-2, -2]])
    streams = {"global": first, "final": final}
    predicted = {name: logits >= 0 for name, logits in streams.items()}
    found = figures.second_look(streams, predicted, labels, IDS, NAMES[:2])
    assert (found["gained"], found["lost"]) == (1, 1)  # the unknown label is neither
    assert [(row["gained"], row["lost"]) for row in found["by_class"]] == [(1, 1), (0, 0)]
    for k, logits in enumerate((first, final)):
        ap = average_precision(logits, labels)
        assert found["mAP"][k] == pytest.approx(ap.mean())
        assert [row["AP"][k] for row in found["by_class"]] == pytest.approx(ap.tolist())
    by_photo = {row["photo"]: row for row in found["by_photo"]}
    assert by_photo[0]["gained"] == ["a"] and by_photo[0]["points"] > 0
    assert by_photo[2]["lost"] == ["a"] and 1 not in by_photo
    assert figures.second_look({"final": final}, predicted, labels, IDS, NAMES[:2]) is None
