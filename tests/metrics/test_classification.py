"""Metrics against their definitions in plain Python, and against scikit-learn where it has them."""

import itertools
import json
import logging
import math
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics import average_precision, protocols
from mlic_jax.metrics.classification import evaluate_scores
from mlic_jax.metrics.ranking import ranking_metrics
from mlic_jax.metrics.ties import said_of_ties

F1_NAMES = ("OP", "OR", "OF1", "CP", "CR", "CF1", "CF1_macro")

AP_KINDS = ("raw", "envelope", "voc11")
TIED = ("pessimistic", "optimistic")

# What spec and papers say, apart from the module's own table:
# AP, threshold, the authors' CF1, unknown labels in AP and in F1.
EXPECTED_PROTOCOLS = {
    "mcar": ("raw", 0.6, "CF1", "ignore", "as_negative"),
    "msrn": ("raw", 0.5, "CF1", "ignore", "as_negative"),
    "mlgcn": ("raw", 0.5, "CF1", "ignore", "as_negative"),
    "asl": ("raw", 0.8, "CF1_macro", "as_negative", "as_negative"),
    "q2l": ("envelope", 0.5, "CF1", "as_negative", "as_negative"),
    "voc2007": ("voc11", 0.5, "CF1", "ignore", "ignore"),
}


def definition_ap(scores, labels, kind="raw"):
    """AP of one class in percent, in fractions from a curve of all ranks; None without positives.

    `envelope` is an area of rectangles and `voc11` a mean of eleven maxima, as their authors say.
    """
    images = [i for i in range(len(scores)) if labels[i] != 0]
    ranked = sorted(images, key=lambda i: (-scores[i], i))
    positives = sum(labels[i] > 0 for i in images)
    if not positives:
        return None
    hits, curve = 0, []  # (recall, precision) after every rank
    for rank, image in enumerate(ranked, start=1):
        hits += int(labels[image] > 0)
        curve.append((Fraction(hits, int(positives)), Fraction(hits, rank)))

    def highest_from(recall):
        return max((p for r, p in curve if r >= recall), default=0)

    if kind == "voc11":
        return float(100 * sum(highest_from(Fraction(t, 10)) for t in range(11)) / 11)
    steps = zip([(0, 0), *curve], curve, strict=False)
    return float(
        100
        * sum(
            (r - before) * (p if kind == "raw" else highest_from(r))
            for (before, _), (r, p) in steps
        )
    )


def definition_f1(scores, labels, threshold, top_k=None):
    """The figures of F1_NAMES, counted label by label; `labels` may hold 0, which is left out."""
    num_classes = len(scores[0])
    tp, predicted, present = [0] * num_classes, [0] * num_classes, [0] * num_classes
    for score, label in zip(scores, labels, strict=True):
        counted = [c for c in range(num_classes) if label[c] != 0]
        top = sorted(counted, key=lambda c: (-score[c], c))[:top_k]
        for c in counted:
            is_predicted = c in top and 1 / (1 + math.exp(-score[c])) >= threshold
            predicted[c] += is_predicted
            present[c] += label[c] > 0
            tp[c] += is_predicted and label[c] > 0

    def f1(p, r):
        return 2 * p * r / (p + r) if p + r else 0.0

    op = sum(tp) / sum(predicted) if sum(predicted) else 0.0
    recall = sum(tp) / sum(present)
    classes = [c for c in range(num_classes) if present[c]]
    cp = sum(tp[c] / predicted[c] if predicted[c] else 0.0 for c in classes) / len(classes)
    cr = sum(tp[c] / present[c] for c in classes) / len(classes)
    macro = sum(
        f1(tp[c] / predicted[c], tp[c] / present[c]) if predicted[c] else 0.0 for c in classes
    )
    values = (op, recall, f1(op, recall), cp, cr, f1(cp, cr), macro / len(classes))
    return {name: 100 * value for name, value in zip(F1_NAMES, values, strict=True)}


def treated(labels, policy):
    return np.where(labels == 0, {"as_positive": 1, "as_negative": -1, "ignore": 0}[policy], labels)


def check_against_definitions(scores, labels, protocol="mcar", label_policy=None):
    kind, threshold, _, in_ap, in_f1 = EXPECTED_PROTOCOLS[protocol]
    in_ap, in_f1 = label_policy or in_ap, label_policy or in_f1
    result = evaluate_scores(scores, labels, protocol, label_policy=label_policy)
    ap_labels = treated(labels, in_ap)
    ap = [definition_ap(s, y, kind) for s, y in zip(scores.T, ap_labels.T, strict=True)]
    assert [a is None for a in result["AP"]] == [a is None for a in ap]
    assert [a for a in result["AP"] if a is not None] == pytest.approx(
        [a for a in ap if a is not None], rel=1e-12
    )
    assert result["mAP"] == pytest.approx(np.mean([a for a in ap if a is not None]), rel=1e-12)
    for suffix, top_k in (("", None), ("_3", 3)):
        expected = definition_f1(scores, treated(labels, in_f1), threshold, top_k)
        got = {name: result[name + suffix] for name in F1_NAMES}
        assert got == pytest.approx(expected, rel=1e-12), suffix
    return result


def random_case(num_images=200, num_classes=12, unknown=0.1, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_images, num_classes)).astype(np.float32)
    labels = np.where(rng.normal(size=scores.shape) + scores > 1, 1, -1).astype(np.int8)
    labels[rng.random(scores.shape) < unknown] = 0
    return scores, labels


# --- average precision


def test_average_precision_by_hand():
    # Ranked: positive, negative, positive, negative -> (1/1 + 2/3) / 2.
    scores = np.array([[4.0], [3.0], [2.0], [1.0]], np.float32)
    labels = np.array([[1], [-1], [1], [-1]], np.int8)
    assert evaluate_scores(scores, labels)["AP"] == [pytest.approx(100 * (1 + 2 / 3) / 2)]


def test_ties_keep_the_order_of_the_images():
    scores = np.zeros((4, 1), np.float32)
    first = np.array([[1], [-1], [-1], [-1]], np.int8)
    assert evaluate_scores(scores, first)["mAP"] == pytest.approx(100)
    assert evaluate_scores(scores, first[::-1])["mAP"] == pytest.approx(25)


@pytest.mark.parametrize("seed", range(6))
def test_ties_against_every_order_of_the_images(seed):
    """The best, the worst and, of AP raw, the mean over all permutations of seven images."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (7, 1)).astype(np.float32)
    labels = rng.choice([-1, -1, 1, 0], (7, 1)).astype(np.int8)
    labels[rng.integers(7)] = 1
    orders = [list(order) for order in itertools.permutations(range(7))]
    for kind in AP_KINDS:
        # All orders at once: a class each, of which no two images are exchanged unless equal.
        shuffled = np.array([scores[order, 0] for order in orders]).T
        ap = average_precision.average_precision(
            shuffled, np.array([labels[order, 0] for order in orders]).T, kind
        )
        bounds = [average_precision.average_precision(scores, labels, kind, t)[0] for t in TIED]
        assert bounds == pytest.approx([ap.min(), ap.max()])
        found = average_precision.average_precision(scores, labels, kind)
        pair = average_precision.tie_bounds(average_precision.rank(scores, labels), kind, found)
        assert pair["mAP"] == pytest.approx(bounds)
        assert (pair["AP"] == [None]) == (ap.min() == ap.max())
        if kind == "raw":
            (average,) = average_precision.average_precision(scores, labels, kind, "average")
            assert average == pytest.approx(ap.mean())


def test_scores_that_are_all_different_have_no_ties():
    scores = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    labels = np.where(np.random.default_rng(1).random((50, 3)) < 0.3, 1, -1).astype(np.int8)
    ap = average_precision.average_precision(scores, labels)
    for ties in (*TIED, "average"):
        np.testing.assert_allclose(
            average_precision.average_precision(scores, labels, "raw", ties), ap
        )
    values = evaluate_scores(scores, labels)
    assert values["tied"] == {"mAP": [values["mAP"]] * 2, "AP": [None] * 3}
    assert said_of_ties(values) == ""


def test_constant_scores_of_images_sorted_by_class_are_said_to_be_no_better_than_chance():
    labels = np.full((100, 4), -1, np.int8)
    labels[np.arange(100), np.arange(100) // 25] = 1
    constant = np.zeros((100, 4), np.float32)
    values = evaluate_scores(constant, labels, class_names=["a", "b", "c", "d"])
    assert values["ties"] == "stable" and values["mAP"] > values["chance"] + 10
    worst, best = values["tied"]["mAP"]
    assert best == pytest.approx(100) and worst < values["chance"]
    said = said_of_ties(values)
    assert f"mAP is {worst:.1f} to 100.0" in said and "the AP of 4 classes, most of all" in said
    average = evaluate_scores(constant, labels, ties="average")
    assert average["mAP"] == pytest.approx(average["chance"])
    assert evaluate_scores(constant, labels, ties="pessimistic")["mAP"] == pytest.approx(worst)


def test_ties_that_decide_less_than_a_point_are_not_said():
    scores = -np.arange(200, dtype=np.float32)[:, None]
    scores[199] = scores[198]
    labels = np.where(np.arange(200) % 2 == 0, 1, -1).astype(np.int8)[:, None]
    values = evaluate_scores(scores, labels)
    ((worst, best),) = values["tied"]["AP"]
    assert 0 < best - worst < 1
    assert said_of_ties(values) == ""


def test_wrong_ties():
    scores, labels = np.zeros((2, 1), np.float32), np.array([[1], [-1]], np.int8)
    with pytest.raises(UsageError, match="ties is 'random'; known are stable, average"):
        average_precision.average_precision(scores, labels, "raw", "random")
    with pytest.raises(UsageError, match="ties average is for AP raw, not voc11"):
        evaluate_scores(scores, labels, "voc2007", ties="average")


def test_unknown_label_holds_no_rank():
    scores = np.array([[3.0], [2.0], [1.0]], np.float32)
    labels = np.array([[0], [1], [-1]], np.int8)
    assert evaluate_scores(scores, labels)["mAP"] == pytest.approx(100)
    assert evaluate_scores(scores, labels, label_policy="as_negative")["mAP"] == pytest.approx(50)
    assert evaluate_scores(scores, labels, label_policy="as_positive")["mAP"] == pytest.approx(100)


def test_average_precision_agrees_with_scikit_learn():
    scores, labels = random_case(unknown=0)
    expected = sklearn.metrics.average_precision_score(labels > 0, scores, average=None)
    assert evaluate_scores(scores, labels)["AP"] == pytest.approx(100 * expected, rel=1e-12)


def test_kinds_of_average_precision_by_hand():
    # Ranked: + - - + +, precision at the positives 1, 1/2, 3/5.
    labels = np.array([[1], [-1], [-1], [1], [1]], np.int8)
    scores = -np.arange(5.0)[:, None]
    ap = {kind: average_precision.average_precision(scores, labels, kind)[0] for kind in AP_KINDS}
    assert ap["raw"] == pytest.approx(100 * (1 + 1 / 2 + 3 / 5) / 3)
    assert ap["envelope"] == pytest.approx(100 * (1 + 3 / 5 + 3 / 5) / 3)
    # Recall 1/3 covers 0, 0.1, 0.2, 0.3; the other seven have 3/5.
    assert ap["voc11"] == pytest.approx(100 * (4 * 1 + 7 * 3 / 5) / 11)


def test_recall_exactly_at_a_tenth_belongs_to_it():
    # Ten positives, each of which is followed by an absent one: precision falls at every tenth,
    # and 3 / 10 is less than 3 * 0.1 in floating point.
    labels = np.tile(np.array([[1], [-1]], np.int8), (10, 1))
    scores = -np.arange(20.0)[:, None]
    expected = (1 + sum(k / (2 * k - 1) for k in range(1, 11))) / 11
    ap = average_precision.average_precision(scores, labels, "voc11")
    assert ap[0] == pytest.approx(100 * expected, rel=1e-12)


def test_float64_scores_are_ranked_in_float64():
    scores = np.array([[1.0], [1.0 + 1e-12]])
    assert evaluate_scores(scores, np.array([[-1], [1]], np.int8))["mAP"] == pytest.approx(100)


def test_class_without_positives_is_left_out_and_named(caplog):
    scores = np.array([[2.0, 1.0, 5.0], [1.0, 2.0, 5.0]], np.float32)
    labels = np.array([[-1, -1, 0], [1, -1, -1]], np.int8)
    with caplog.at_level(logging.WARNING):
        result = evaluate_scores(scores, labels, class_names=["ewe", "yak", "dog"])
    assert result["AP"] == [pytest.approx(50), None, None]
    assert result["mAP"] == pytest.approx(50)
    assert result["classes_without_positives"] == ["yak", "dog"]
    assert result["positives"] == [1, 0, 0]
    for name in ("P", "R", "F1"):
        assert result[name][0] is not None and result[name][1:] == [None, None]
    assert "yak, dog" in caplog.text and "ewe" not in caplog.text
    # Both images carry a false "yak" and "dog": overall precision sees them, class means do not.
    assert result["OP"] == pytest.approx(100 * 1 / 6)
    assert result["CP"] == pytest.approx(50)


def test_no_positive_at_all_is_a_failure():
    with pytest.raises(Failure, match="no class has a positive label"):
        evaluate_scores(np.zeros((3, 2), np.float32), -np.ones((3, 2), np.int8))


def test_frequent_classes():
    scores, labels = random_case()
    labels[:, 4] = -1  # without positives: never part of a mean
    frequent = np.zeros(12, bool)
    frequent[[1, 4, 7]] = True
    result = evaluate_scores(scores, labels, frequent=frequent)
    assert result["num_frequent"] == 2
    assert result["mAP_frequent"] == pytest.approx((result["AP"][1] + result["AP"][7]) / 2)
    assert result["mAP"] == evaluate_scores(scores, labels)["mAP"]
    none = evaluate_scores(scores, labels, frequent=np.zeros(12, bool))
    assert (none["mAP_frequent"], none["num_frequent"]) == (None, 0)
    assert "mAP_frequent" not in evaluate_scores(scores, labels)


@pytest.mark.parametrize("positives, images", [(1, 1), (1, 6), (2, 6), (5, 6), (6, 6)])
def test_chance_is_the_mean_over_all_rankings(positives, images):
    labels = [1] * positives + [-1] * (images - positives)
    every = [
        definition_ap(range(images, 0, -1), ranking) for ranking in itertools.permutations(labels)
    ]
    expected = average_precision.expected_average_precision(
        np.array([positives]), np.array([images])
    )
    assert 100 * expected[0] == pytest.approx(np.mean(every), rel=1e-12)


def test_chance_and_prevalence_of_a_result():
    scores, labels = random_case(num_images=2000)
    labels[:, 0] = -1
    result = evaluate_scores(scores, labels)
    prevalence = (labels > 0).sum(axis=0)[1:] / (labels != 0).sum(axis=0)[1:]
    assert result["prevalence"] == pytest.approx(100 * prevalence.mean())
    shuffled = [
        evaluate_scores(np.random.default_rng(100 + i).normal(size=scores.shape), labels)["mAP"]
        for i in range(20)
    ]
    assert result["chance"] == pytest.approx(np.mean(shuffled), abs=0.3)
    assert result["prevalence"] < result["chance"] < result["prevalence"] + 1


# --- precision, recall, F1


@pytest.mark.parametrize("step, predicted", [(0, True), (1, True), (-1, False)])
def test_probability_exactly_at_the_threshold_counts(step, predicted):
    at = np.float32(math.log(0.6 / 0.4))
    logit = np.nextafter(at, np.float32(step * np.inf)) if step else at
    result = evaluate_scores(np.array([[logit]], np.float32), np.array([[1]], np.int8))
    assert result["OR"] == (100 if predicted else 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logit", [math.log(0.6 / 0.4), math.log(0.6 / (1 - 0.6)), math.log(1.5)])
def test_any_way_to_write_the_threshold_counts(logit, dtype):
    scores = np.array([[logit]], dtype)
    assert evaluate_scores(scores, np.array([[1]], np.int8))["OR"] == 100


def test_f1_agrees_with_scikit_learn():
    scores, labels = random_case(unknown=0)
    truth, predicted = labels > 0, scores >= math.log(1.5)
    result = evaluate_scores(scores, labels)
    for letter, average in (("O", "micro"), ("C", "macro")):
        p, r, f1, _ = sklearn.metrics.precision_recall_fscore_support(
            truth, predicted, average=average
        )
        assert result[letter + "P"] == pytest.approx(100 * p, rel=1e-12)
        assert result[letter + "R"] == pytest.approx(100 * r, rel=1e-12)
        # CF1 is the harmonic mean of CP and CR, which the macro mean of the F1s is not.
        expected = f1 if letter == "O" else 2 * p * r / (p + r)
        assert result[letter + "F1"] == pytest.approx(100 * expected, rel=1e-12)
    assert result["CF1_macro"] == pytest.approx(100 * f1, rel=1e-12)
    assert abs(result["CF1_macro"] - result["CF1"]) > 0.05  # the test sees a mix-up
    by_class = sklearn.metrics.precision_recall_fscore_support(truth, predicted)[:3]
    for name, values in zip(("P", "R", "F1"), by_class, strict=True):
        assert result[name] == pytest.approx(100 * values, rel=1e-12)


def test_nothing_predicted():
    scores, labels = np.full((2, 2), -5, np.float32), np.ones((2, 2), np.int8)
    result = evaluate_scores(scores, labels)
    assert all(result[name] == 0 for name in F1_NAMES)


def test_class_nobody_predicted_has_precision_0():
    scores = np.array([[5.0, -5.0]], np.float32)
    result = evaluate_scores(scores, np.ones((1, 2), np.int8))
    assert (result["CP"], result["CR"], result["CF1"]) == (50, 50, 50)
    assert (result["OP"], result["OR"]) == (100, 50)


def test_top_3_takes_the_first_of_equal_scores_and_keeps_the_threshold():
    scores = np.array([[1.0, 1.0, 1.0, 1.0], [9.0, -1.0, -2.0, -3.0]], np.float32)
    labels = np.array([[-1, 1, 1, 1], [1, 1, -1, -1]], np.int8)
    result = evaluate_scores(scores, labels)
    # First image: classes 0, 1, 2 of the four. Second: class 0 alone reaches the threshold.
    assert result["OP_3"] == pytest.approx(100 * 3 / 4)
    assert result["OR_3"] == pytest.approx(100 * 3 / 5)
    assert result["OR"] == pytest.approx(100 * 4 / 5)


def test_top_3_of_fewer_classes_is_all_of_them():
    scores, labels = random_case(num_classes=2)
    result = evaluate_scores(scores, labels)
    assert [result[name + "_3"] for name in F1_NAMES] == [result[name] for name in F1_NAMES]


# --- both, on many cases


def test_defaults_ignore_unknown_in_ap_and_count_it_absent_in_f1():
    result = check_against_definitions(*random_case())
    assert (result["unknown_in_ap"], result["unknown_in_f1"]) == ("ignore", "as_negative")


@pytest.mark.parametrize("policy", ["as_positive", "as_negative", "ignore"])
def test_label_policy_overrides_both(policy):
    result = check_against_definitions(*random_case(), label_policy=policy)
    assert (result["unknown_in_ap"], result["unknown_in_f1"]) == (policy, policy)


@pytest.mark.parametrize("protocol", EXPECTED_PROTOCOLS)
def test_every_protocol_is_its_row_of_choices(protocol):
    scores, labels = random_case(num_images=120)
    labels[:, 5] = np.where(labels[:, 5] > 0, -1, labels[:, 5])  # without positives
    # Ties, but none at the thresholds' very logits: there is a test for that.
    result = check_against_definitions((scores * 8).round() / 8 + 0.01, labels, protocol)
    kind, threshold, class_f1, in_ap, in_f1 = EXPECTED_PROTOCOLS[protocol]
    assert (result["protocol"], result["ap_kind"], result["class_f1"]) == (protocol, kind, class_f1)
    assert (result["threshold"], result["top_k"]) == (threshold, 3)
    assert (result["unknown_in_ap"], result["unknown_in_f1"]) == (in_ap, in_f1)
    assert ("swept" in result, "ranking_loss" in result) == ((protocol == "msrn",) * 2)
    assert protocols.PROTOCOLS.keys() == EXPECTED_PROTOCOLS.keys()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_definitions_on_any_small_case(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=7))
    # Few distinct values, so that ties are common; both sides of the threshold.
    values = st.sampled_from([-3.0, -0.5, 0.0, 0.25, 0.5, 2.0]) | st.floats(-30, 30, width=32)
    scores = data.draw(hnp.arrays(np.float32, shape, elements=values))
    labels = data.draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([-1, 0, 1])))
    labels[data.draw(st.integers(0, shape[0] - 1)), 0] = 1
    policy = data.draw(st.sampled_from(["as_positive", "as_negative", "ignore"]))
    protocol = data.draw(st.sampled_from([*EXPECTED_PROTOCOLS]))
    at = EXPECTED_PROTOCOLS[protocol][1]
    near = np.abs(scores.astype(np.float64) - math.log(at / (1 - at))) < 1e-6
    scores[near & (scores != 0)] = 0.75  # the threshold itself has its own test
    check_against_definitions(scores, labels, protocol)
    check_against_definitions(scores, labels, protocol, label_policy=policy)


def test_ignored_label_moves_no_metric():
    scores, labels = random_case(unknown=0.3)
    before = evaluate_scores(scores, labels, label_policy="ignore")
    scores[labels == 0] = 40 * np.random.default_rng(1).normal(size=(labels == 0).sum())
    assert evaluate_scores(scores, labels, label_policy="ignore") == before


def test_result_is_json():
    scores, labels = random_case()
    labels[:, 3] = -1
    result = evaluate_scores(scores, labels, frequent=np.ones(12, bool))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["num_images"], result["num_classes"]) == (200, 12)


def test_result_names_the_choices_of_its_protocol():
    result = evaluate_scores(*random_case(), "mcar", class_names=[*"abcdefghijkl"])
    assert (result["protocol"], result["threshold"], result["top_k"]) == ("mcar", 0.6, 3)
    assert result["class_names"] == [*"abcdefghijkl"]
    assert all(name == row.name for name, row in protocols.PROTOCOLS.items())


# --- the swept threshold of MSRN


@pytest.mark.parametrize("seed, misled", [(11, "CF1"), (28, "OF1")])
def test_sweep_is_the_best_of_twenty_logits(seed, misled):
    scores, labels = random_case(seed=seed)
    scores = scores + np.linspace(-0.6, 0.6, 12, dtype=np.float32)
    result = evaluate_scores(scores, labels, "msrn")
    f1_labels = treated(labels, "as_negative")
    figures = {
        k: definition_f1(scores, f1_labels, 1 / (1 + math.exp(-k / 10))) for k in range(-10, 10)
    }
    best = max(figures, key=lambda k: figures[k]["CF1"] + figures[k]["OF1"])
    assert -10 < best < 9 and best != 0
    assert best != max(figures, key=lambda k: figures[k][misled])  # alone
    swept = result["swept"]
    assert swept.pop("threshold") == best / 10
    assert swept == pytest.approx(figures[best], rel=1e-12)
    # The figures at logit 0 stand beside, under their usual names.
    assert {name: result[name] for name in F1_NAMES} == pytest.approx(figures[0], rel=1e-12)
    assert swept["CF1"] + swept["OF1"] > result["CF1"] + result["OF1"] + 0.1


def test_first_of_equally_good_thresholds_is_taken():
    scores, labels = np.array([[-0.85], [0.75]]), np.array([[-1], [1]], np.int8)
    # Every threshold in (-0.85, 0.75] is perfect.
    assert evaluate_scores(scores, labels, "msrn")["swept"]["threshold"] == -0.8
    # Out of reach of all twenty: the first.
    far = evaluate_scores(np.array([[5.0], [4.0]]), labels, "msrn")["swept"]
    assert (far["threshold"], far["OP"], far["OR"]) == (-1.0, 50, 100)
    # A threshold of 1 would be perfect, and is none of the twenty.
    beyond = evaluate_scores(np.array([[0.95], [1.05]]), labels, "msrn")["swept"]
    assert (beyond["threshold"], beyond["OP"], beyond["OR"]) == (-1.0, 50, 100)


@pytest.mark.parametrize("k", range(-10, 10))
def test_logit_exactly_at_a_swept_threshold_counts(k):
    at, below = np.float32(k / 10), np.nextafter(np.float32(k / 10), np.float32(-np.inf))
    scores, labels = np.array([[at], [below]], np.float32), np.array([[1], [-1]], np.int8)
    swept = evaluate_scores(scores, labels, "msrn")["swept"]
    assert (swept["threshold"], swept["OP"], swept["OR"]) == (k / 10, 100, 100)


@pytest.mark.parametrize("policy", ["as_positive", "as_negative", "ignore"])
def test_sweep_under_every_label_policy(policy):
    scores, labels = random_case(unknown=0.3)
    swept = evaluate_scores(scores, labels, "msrn", label_policy=policy)["swept"]
    probability = 1 / (1 + math.exp(-swept.pop("threshold")))
    expected = definition_f1(scores, treated(labels, policy), probability)
    assert swept == pytest.approx(expected, rel=1e-12)


def test_ranking_metrics_follow_the_labels_of_ap():
    scores, labels = random_case(unknown=0.3)
    result = evaluate_scores(scores, labels, "msrn")
    names = ("coverage_error", "label_ranking_average_precision", "ranking_loss")
    ranked = {name: result[name] for name in names}
    assert ranked == ranking_metrics(scores, labels)
    as_negative = evaluate_scores(scores, labels, "msrn", label_policy="as_negative")
    assert {name: as_negative[name] for name in names} == ranking_metrics(
        scores, treated(labels, "as_negative")
    )
    assert as_negative["coverage_error"] > ranked["coverage_error"]


def test_mean_average_precision_skips_the_undefined():
    assert average_precision.mean_average_precision([10.0, None, 20.0]) == 15
    assert average_precision.mean_average_precision(np.array([10.0, np.nan, 20.0])) == 15
    assert average_precision.mean_average_precision([10.0, None], np.array([False, True])) is None


def test_precision_recall_curve_of_known_labels():
    scores, labels = np.array([3.0, 2.5, 2.0, 1.0, 0.0]), np.array([1, 0, -1, 1, -1])
    precision, recall = average_precision.precision_recall_curve(scores, labels)
    points = set(zip(precision.round(6), recall, strict=True))
    assert points >= {(1.0, 0.5), (0.5, 0.5), (round(2 / 3, 6), 1.0)}
    assert (np.diff(recall) <= 0).all() and recall[-1] == 0


# --- bad input


def test_unknown_names_are_refused():
    case = random_case()
    with pytest.raises(UsageError, match="unknown protocol 'acm'; known: asl, mcar, mlgcn"):
        evaluate_scores(*case, "acm")
    with pytest.raises(UsageError, match="kind of AP is 'area'; known are raw, envelope, voc11"):
        average_precision.average_precision(*case, "area")
    with pytest.raises(UsageError, match="label policy is 'drop'"):
        evaluate_scores(*case, label_policy="drop")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    scores, labels = random_case()
    scores[17, 3] = value
    with pytest.raises(Failure, match=r"not finite.*image 17, class 3"):
        evaluate_scores(scores, labels)


@pytest.mark.parametrize(
    "scores, labels", [((3, 2), (2, 3)), ((3, 2), (3,)), ((3,), (3,)), ((3, 2, 1), (3, 2, 1))]
)
def test_shapes_that_do_not_fit_are_refused(scores, labels):
    with pytest.raises(UsageError, match="scores and labels must both be"):
        evaluate_scores(np.zeros(scores, np.float32), np.ones(labels, np.int8))


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(Failure, match="nothing to evaluate"):
        evaluate_scores(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.int8))


def test_labels_outside_their_range_are_refused():
    scores, labels = random_case()
    labels[5, 5] = 2
    with pytest.raises(Failure, match="found 2"):
        evaluate_scores(scores, labels)


def test_wrong_number_of_names_or_wrong_mask_is_refused():
    case = random_case()
    with pytest.raises(UsageError, match="2 class names for 12 classes"):
        evaluate_scores(*case, class_names=["a", "b"])
    with pytest.raises(UsageError, match=r"must be bool \[12\]"):
        evaluate_scores(*case, frequent=np.ones(11, bool))
    with pytest.raises(UsageError, match=r"must be bool \[12\]"):
        evaluate_scores(*case, frequent=np.arange(12))


def test_images_are_ranked_alike_in_either_precision_and_ties_keep_their_order():
    rng = np.random.default_rng(7)
    score = np.concatenate(
        [rng.normal(0, 1, 500), np.repeat([1.5, 0.0, -0.0, -2.0], 50), [1e-40, -1e-40, 3e38, -3e38]]
    ).astype(np.float32)
    score = rng.permutation(score)
    label = rng.integers(-1, 2, len(score))
    known = [i for i in range(len(score)) if label[i]]
    expected = sorted(known, key=lambda i: (-float(score[i]), i))
    np.testing.assert_array_equal(average_precision.ranked_images(score, label), expected)
    np.testing.assert_array_equal(
        average_precision.ranked_images(score.astype(np.float64), label), expected
    )
