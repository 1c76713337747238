"""The simulated person: what is labelled, how the probe is judged, what is made of the curves."""

import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "active_curve.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos():
    """Features of 90 photos to label and 40 to test, with labels that follow from them."""
    features = np.random.default_rng(0).normal(size=(130, 6))
    labels = np.where(features[:, :3] > 0, 1, -1).astype(np.int8)
    return features, labels[:90], labels[90:]


def test_a_curve_rises_and_its_photos_are_those_that_were_chosen(script, photos):
    features, labels, test_labels = photos
    ids = [str(i) for i in range(90)]
    options = types.SimpleNamespace(step=10, rounds=4)
    curves = {
        way: script.curve(features, features[:90], labels, test_labels, ids, way, options, 3)
        for way in script.WAYS
    }
    assert curves["active"][0] == curves["random"][0]  # of the same photos to begin with
    assert curves["active"][1:] != curves["random"][1:]
    for values in curves.values():
        assert len(values) == 4 and values[0] < values[-1] <= 100
    order = np.random.default_rng(3).permutation(90)
    given = np.zeros_like(labels)
    given[order[:20]] = labels[order[:20]]
    _, scores = script.fitted(features, given, ids)
    assert script.test_map(scores, test_labels) == curves["random"][1]


def test_the_probe_of_the_test_split_is_of_all_that_is_labelled(script, photos):
    features, labels, _ = photos
    given = labels.copy()
    given[30:] = 0
    probabilities, scores = script.fitted(features, given, [str(i) for i in range(90)])
    assert probabilities.shape == labels.shape and scores.shape == (40, 3)
    rows = np.c_[features, np.ones(130)]
    square, product = rows[:30].T @ rows[:30], rows[:30].T @ labels[:30]
    ridges = [np.diag([*[30 * penalty] * 6, 0]) for penalty in script.PENALTIES]
    wanted = [rows[90:] @ np.linalg.solve(square + ridge, product) for ridge in ridges]
    assert min(np.abs(scores - of_penalty).max() for of_penalty in wanted) < 1e-9


def test_intervals_are_student_s(script, tmp_path):
    curves = {"active": [[50.0, 70.0], [54.0, 70.0]], "random": [[50.0, 60.0], [54.0, 62.0]]}
    result = script.summary(curves, step=10, classes=3)
    assert result["labels"] == [30, 60] and result["seeds"] == 2
    assert result["active"]["mean"] == [52.0, 70.0]
    half = 12.706 * np.std([50, 54], ddof=1) / np.sqrt(2)  # of one degree of freedom
    assert result["active"]["half_width"] == [pytest.approx(half, abs=0.01), 0]
    assert result["difference"]["mean"] == [0, 9.0]
    script.draw(result | {"photos": 90, "all_labels": 80.0}, tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").stat().st_size > 1000
