"""Traits of labels and the errors with them, each on a case that is plain to see."""

import numpy as np
import pytest

from mlic_jax.diagnose.causes import (
    Trait,
    count_errors,
    errors_by_cause,
    find_companions,
    find_traits,
    is_likely,
    wilson_interval,
)

NONE = np.zeros((0, 4), np.int32), np.zeros(0, np.int32)


def labels_of(*rows):
    return np.array(rows, np.int8)


def test_a_companion_is_there_more_often_than_elsewhere():
    """b comes with a; c is everywhere, which says nothing; d is too rare to have one."""
    train = labels_of(
        *[[1, 1, 1, -1]] * 6,
        *[[1, -1, 1, -1]] * 3,
        *[[-1, -1, 1, -1]] * 18,
        *[[1, 1, 1, 1]] * 3,
    )
    companions = find_companions(train)
    expected = np.zeros((4, 4), bool)
    expected[0, 1] = expected[1, 0] = True
    np.testing.assert_array_equal(companions, expected)


def test_traits_of_boxes():
    """In a square of 100 pixels."""
    labels = labels_of([1, 1, 1], [1, 1, 1], [1, -1, -1])
    objects = [
        # 0 small at an edge; 1 in the open, and small once more; 2 half in 1.
        (
            np.array([[50, 0, 55, 5], [20, 20, 60, 60], [70, 70, 72, 72], [20, 40, 60, 79]]),
            np.array([0, 1, 1, 2]),
        ),
        # 0 at an edge and in the open; 1 at all edges; 2 less than half in 1, which is all of it.
        (
            np.array([[0, 10, 20, 30], [40, 40, 70, 70], [0, 0, 100, 100]]),
            np.array([0, 0, 1]),
        ),
        NONE,
    ]
    traits = find_traits(labels, labels, objects, 100)
    expected = {
        "small": [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        "cut_off": [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
        "overlapped": [[0, 0, 1], [1, 0, 0], [0, 0, 0]],
    }
    expected["small"][0][0] = int(25 < 10_000 / 300)
    for name, of in expected.items():
        np.testing.assert_array_equal(traits[name].has, np.array(of, bool), err_msg=name)
        np.testing.assert_array_equal(traits[name].known, [[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    assert {"small", "cut_off", "overlapped"}.isdisjoint(find_traits(labels, labels, None, 100))


def test_traits_of_labels():
    train = labels_of(*[[1, 1, -1]] * 11, *[[-1, -1, -1]] * 30, *[[-1, -1, 1]] * 10)
    labels = labels_of([1, -1, 1], [1, 1, -1], [-1, 0, -1])
    traits = find_traits(labels, train, None, 100)
    np.testing.assert_array_equal(traits["rare"].has, [[0, 0, 1]] * 3)
    np.testing.assert_array_equal(traits["companion"].has, [[0, 1, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(traits["alone"].has, [[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    for name in ("companion", "alone"):
        np.testing.assert_array_equal(traits[name].known, [[1, 1, 0]] * 3)


def test_errors_are_counted_with_a_trait_and_without():
    rng = np.random.default_rng(0)
    errors, among, has, known = rng.random((4, 200)) < 0.5
    errors &= among
    has &= known
    found = count_errors(errors, among, {"small": Trait(has, known)}, ("small", "rare"))
    assert found["errors"] == sum(errors) and found["labels"] == sum(among)
    assert found["unexplained"] == sum(e and not h for e, h in zip(errors, has, strict=True))
    assert list(found["causes"]) == ["small"]
    rows = list(zip(errors, among, has, known, strict=True))
    assert found["causes"]["small"] == {
        "errors": sum(e and h for e, _, h, _ in rows),
        "labels": sum(a and h for _, a, h, _ in rows),
        "other_errors": sum(e and k and not h for e, _, h, k in rows),
        "other_labels": sum(a and k and not h for _, a, h, k in rows),
        "likely": False,  # they were drawn apart from each other
    }


def test_a_cause_is_likely_where_chance_would_not_do_it():
    """Of 20 labels with a trait 12 are wrong, of 180 others 18: shares of 0.6 and 0.1."""
    assert is_likely(12, 20, 18, 180)
    assert not is_likely(3, 20, 18, 180)  # 0.15 and 0.1
    assert not is_likely(0, 20, 90, 180)
    assert not is_likely(5, 5, 0, 0) and not is_likely(0, 0, 5, 9)


def test_a_few_labels_make_no_cause_likely():
    """All of 2 are wrong, or none: a share without a spread of its own, which proves nothing."""
    assert not is_likely(2, 2, 10, 200) and not is_likely(180, 200, 0, 2)
    assert not is_likely(5, 5, 60, 100)  # which comes by chance once in 13 times
    assert is_likely(5, 5, 10, 100)
    assert is_likely(40, 50, 10, 50)


def test_intervals_are_those_of_wilson():
    """The limits are the shares p from which errors / labels is two standard errors of p away."""
    for errors, labels in ((0, 2), (2, 2), (3, 20), (40, 50)):
        low, high = wilson_interval(errors, labels)
        for p in (low, high):
            distance = (errors / labels - p) ** 2
            assert distance == pytest.approx(4 * p * (1 - p) / labels, abs=1e-12)
        assert -1e-12 < low <= errors / labels <= high < 1 + 1e-12


def test_missed_and_wrong_are_counted_apart_and_unknown_labels_not():
    labels = labels_of([1, -1], [0, 1], [-1, 0])
    predicted = np.array([[False, True], [True, True], [True, False]])
    traits = find_traits(labels, labels, None, 100)
    found = errors_by_cause(predicted, labels, traits, ["a", "b"])
    assert (found["missed"]["errors"], found["missed"]["labels"]) == (1, 2)
    assert (found["wrong"]["errors"], found["wrong"]["labels"]) == (2, 2)
    assert found["missed"]["causes"]["rare"]["errors"] == 1
    a, b = found["by_class"]
    assert (a["name"], a["rare"], a["missed"]["errors"], a["wrong"]["errors"]) == ("a", True, 1, 1)
    assert (b["missed"]["errors"], b["wrong"]["errors"]) == (0, 1)
