"""Operating points against brute force: temperature, every rule, calibration error, and a run."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import Failure, UsageError
from mlic_jax.evaluate import calibrate, calibrate_score_file
from mlic_jax.evaluate.run import evaluate_run
from mlic_jax.metrics import operating_point
from mlic_jax.metrics.operating_point import (
    OperatingPoint,
    expected_calibration_error,
    learn_operating_point,
)
from mlic_jax.reports import calibration
from mlic_jax.runtime.checkpoint import load_weights, read_metadata, save_weights
from mlic_jax.scores.files import Scores


def make_scores(logits, labels, split="val", names=None):
    logits = np.asarray(logits, np.float32)
    return Scores(
        logits=logits,
        labels=np.asarray(labels, np.int8),
        image_ids=np.array([f"{split}{i}" for i in range(len(logits))]),
        class_names=np.array(names or [f"class{c}" for c in range(logits.shape[1])]),
        set_name="made",
        split=split,
        image_size=64,
    )


def random_scores(seed, images=40, classes=5, split="val", steps=4):
    """Overconfident logits with many ties, unknown labels, and a last class without positives."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 1], (images, classes), p=[0.6, 0.4])
    logits = np.round((labels + rng.normal(0, 1.5, labels.shape)) * steps) / steps * 3
    labels[rng.random(labels.shape) < 0.15] = 0
    labels[labels[:, -1] > 0, -1] = -1
    return make_scores(logits, labels, split)


# --- references, an entry at a time


def reference_probability(logit, temperature):
    x = float(logit) / temperature
    return 1 / (1 + np.exp(-x)) if x > 0 else np.exp(x) / (1 + np.exp(x))


def reference_counts(probabilities, labels, threshold):
    hits = predicted = positives = 0
    for probability, label in zip(probabilities, labels, strict=True):
        if label:
            predicted += probability >= threshold
            positives += label > 0
            hits += probability >= threshold and label > 0
    return hits, predicted, positives


def reference_threshold(probabilities, labels, rule, target=None):
    """Tries a threshold below each known probability; None where nothing is good enough."""
    known = sorted({p for p, label in zip(probabilities, labels, strict=True) if label})
    best, best_value = None, 0
    for below, at in zip([0.0, *known], known, strict=False):
        threshold = (below + at) / 2
        hits, predicted, positives = reference_counts(probabilities, labels, threshold)
        if not positives:
            return None
        if rule == "f1":
            value = 2 * hits / (predicted + positives)
            if value >= best_value and hits:  # ascending: of equal ones the highest
                best, best_value = threshold, value
        elif rule == "precision":
            if hits / predicted >= target and best is None:
                best = threshold
        elif hits / positives >= target:
            best = threshold
    return best


def reference_error(probabilities, labels, bins):
    known = [(p, y > 0) for p, y in zip(probabilities, labels, strict=True) if y]
    total = 0.0
    for k in range(bins):
        inside = [(p, y) for p, y in known if k / bins < p <= (k + 1) / bins or (k == 0 and p == 0)]
        if inside:
            promised, present = np.mean(inside, axis=0)
            total += len(inside) / len(known) * abs(promised - present)
    return 100 * total


# --- temperature


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_has_the_least_cross_entropy_of_a_fine_grid(seed):
    scores = random_scores(seed)
    temperature = learn_operating_point(scores).temperature
    assert temperature > 1  # of overconfident scores

    known = scores.labels != 0
    margins = (scores.labels * scores.logits.astype(float))[known]

    def cross_entropy(t):
        return np.log1p(np.exp(-margins / t)).mean()

    grid = np.geomspace(0.05, 20, 2001)
    best = grid[np.argmin([cross_entropy(t) for t in grid])]
    assert temperature == pytest.approx(best, rel=0.004)  # a step of the grid is 0.3 %
    assert cross_entropy(temperature) <= cross_entropy(best)


def test_a_known_temperature_is_found():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (20000, 3))
    labels = np.where(rng.random(z.shape) < 1 / (1 + np.exp(-z)), 1, -1)
    for temperature in (0.4, 1.0, 3.0):
        found = operating_point.learn_temperature(z * temperature, labels)
        assert found == pytest.approx(temperature, rel=0.03)


def test_unknown_labels_do_not_move_the_temperature():
    scores = random_scores(3)
    wild = np.where(scores.labels == 0, 1e4, scores.logits)
    assert learn_operating_point(make_scores(wild, scores.labels)).temperature == (
        learn_operating_point(scores).temperature
    )


@pytest.mark.parametrize(("sign", "end"), [(1, 0), (-1, 1)])
def test_the_temperature_stays_in_its_range(sign, end):
    labels = np.array([[1], [-1], [1], [-1]])
    point = learn_operating_point(make_scores(sign * 0.5 * labels, labels))  # told apart perfectly
    assert point.temperature == operating_point.TEMPERATURES[end]
    assert "the end of the range" in calibration.summary(point)


# --- thresholds


def check_thresholds(scores, rule, reference_rule, target=None):
    """Learns, and compares every threshold with brute force; gives the point."""
    point = learn_operating_point(scores, rule, target)
    probabilities = np.vectorize(reference_probability)(scores.logits, point.temperature)
    np.testing.assert_allclose(point.probabilities(scores.logits), probabilities, rtol=1e-12)
    one = reference_threshold(probabilities.ravel(), scores.labels.ravel(), "f1")
    expected, fallback = [], []
    for c, name in enumerate(scores.class_names):
        own = reference_threshold(probabilities[:, c], scores.labels[:, c], reference_rule, target)
        if own is None:
            fallback.append(name)
        expected.append(one if own is None or rule == "one" else own)
    np.testing.assert_allclose(point.thresholds, expected, rtol=1e-12)
    assert point.fallback == (() if rule == "one" else tuple(fallback))
    return point


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 1000])  # many ties, hardly any
def test_the_rules_are_those_of_brute_force(seed, steps):
    scores = random_scores(seed, steps=steps)
    assert len(set(check_thresholds(scores, "one", "f1").thresholds)) == 1
    assert check_thresholds(scores, "per_class", "f1").fallback == ("class4",)
    for target in (0.3, 0.5, 0.75):
        check_thresholds(scores, "precision", "precision", target)
        check_thresholds(scores, "recall", "recall", target)
    assert check_thresholds(scores, "recall", "recall", 1.0).fallback == ("class4",)


def test_targets_that_are_met_exactly_count():
    labels = np.array([[1], [1], [-1], [1], [-1], [1], [-1]])
    scores = make_scores(np.arange(7, 0, -1)[:, None] - 4, labels)
    for rule, target, predicted in (
        ("precision", 2 / 3, 6),
        ("precision", 0.75, 4),
        ("precision", 1.0, 2),
        ("recall", 0.75, 4),
        ("recall", 0.5, 2),
    ):
        point = learn_operating_point(scores, rule, target)
        assert point.predicted(scores.logits).sum() == predicted, (rule, target)


def test_equal_scores_are_predicted_together():
    scores = make_scores([[2], [1], [1], [1], [0]], [[1], [1], [-1], [-1], [-1]])
    point = learn_operating_point(scores, "precision", 0.5)
    assert point.predicted(scores.logits).sum() == 4  # 2 of 4; not 2 of the first 2 or 3
    point = learn_operating_point(scores, "precision", 0.6)
    assert point.predicted(scores.logits).sum() == 1


def test_thresholds_hold_apart_neighbouring_floats():
    first = 0.3
    second = np.nextafter(first, 1)
    # The middle of two neighbours is rounded to the lower one in one of the pairs.
    for low, high in ((first, second), (second, np.nextafter(second, 1))):
        curve = operating_point.sweep(np.array([high, low]), np.array([1, -1]))
        assert low < curve.thresholds[0] <= high
    high = np.float32(0.3)
    low = np.nextafter(high, np.float32(0))
    scores = make_scores([[high], [low], [-2], [3]], [[1], [-1], [-1], [-1]])
    point = learn_operating_point(scores, "recall", 1.0)
    np.testing.assert_array_equal(point.predicted(scores.logits)[:, 0], [True, False, False, True])


def test_probabilities_of_zero_and_one_are_separated_where_they_can_be():
    scores = make_scores([[-1e4], [1e4], [-1e4], [1e4]], [[-1], [1], [1], [1]])
    point = learn_operating_point(scores, "recall", 1.0)
    assert point.thresholds == (0.0,) and point.predicted(scores.logits).all()
    assert learn_operating_point(scores, "precision", 1.0).predicted(scores.logits).sum() == 2


def test_unknown_labels_do_not_move_thresholds():
    scores = random_scores(1)
    wild = np.where(scores.labels == 0, 7.0, scores.logits)
    for rule, target in (("one", None), ("per_class", None), ("precision", 0.6), ("recall", 0.6)):
        assert learn_operating_point(make_scores(wild, scores.labels), rule, target) == (
            learn_operating_point(scores, rule, target)
        )


def test_a_target_out_of_reach_is_named():
    logits = np.array([[3, 3], [2, 2], [1, 1], [0, 0]])
    labels = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]])
    scores = make_scores(logits, labels, names=["dog", "cat"])
    point = learn_operating_point(scores, "precision", 0.9)
    one = learn_operating_point(scores).thresholds[0]
    assert point.fallback == ("cat",) and point.thresholds[1] == one
    assert point.rule == "a threshold for each class, the least with a precision of 0.9"
    rows = operating_point.measure(scores, point)["classes"]
    assert "reaches the target: cat" in calibration.summary(point, rows)
    assert [row["fallback"] for row in rows] == [False, True]
    with pytest.raises(Failure, match=r"made val reaches a precision of 0\.9"):
        learn_operating_point(make_scores(logits[:, 1:], labels[:, 1:]), "precision", 0.9)


@pytest.mark.parametrize(
    ("rule", "target", "message"),
    [
        ("best", None, "rule is 'best'; known are one, per_class, precision, recall"),
        ("one", 0.5, "has no target"),
        ("precision", None, "needs a target"),
        ("recall", 0.0, "the target is 0;"),
        ("recall", 90, "must be a fraction"),
        ("recall", float("nan"), "must be a fraction"),
    ],
)
def test_wrong_rules_and_targets(rule, target, message):
    with pytest.raises(UsageError, match=message):
        learn_operating_point(random_scores(0), rule, target)


def test_scores_that_nothing_can_be_learned_from():
    with pytest.raises(Failure, match="not finite"):
        learn_operating_point(make_scores([[np.nan], [1]], [[1], [-1]]))
    with pytest.raises(Failure, match="no label of made val is present"):
        learn_operating_point(make_scores([[0], [1]], [[0], [-1]]))


# --- calibration error


@pytest.mark.parametrize("bins", [1, 4, 10, 15])
def test_the_calibration_error_of_brute_force(bins):
    rng = np.random.default_rng(bins)
    edges = np.arange(bins + 1) / bins  # what lies on an edge, 0 and 1 too
    probabilities = np.concatenate([edges, rng.random(200) ** 2])
    labels = rng.choice([-1, 0, 1], len(probabilities))
    expected = reference_error(probabilities, labels, bins)
    found = expected_calibration_error(probabilities, labels, bins)
    assert found == pytest.approx(expected, abs=1e-10)
    square = probabilities[: 2 * (len(labels) // 2)].reshape(-1, 2)
    found = expected_calibration_error(square, labels[: square.size].reshape(-1, 2), bins)
    assert found == pytest.approx(
        reference_error(square.ravel(), labels[: square.size], bins), abs=1e-10
    )


def test_the_calibration_error_by_hand():
    probabilities, labels = np.array([[0.9, 0.9], [0.9, 0.3]]), np.array([[1, 1], [-1, -1]])
    # Three at 0.9 of which two are present, one at 0.3 that is not.
    expected = 100 * (0.75 * abs(0.9 - 2 / 3) + 0.25 * 0.3)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    assert expected_calibration_error(np.array([0.0, 1.0, 0.4]), np.array([-1, 1, 0])) == 0


def test_the_errors_before_and_after_are_those_of_the_probabilities():
    scores = random_scores(2)
    point = learn_operating_point(scores)
    for temperature, found in ((1, point.error_before), (point.temperature, point.error_after)):
        p = np.vectorize(reference_probability)(scores.logits, temperature)
        assert found == pytest.approx(reference_error(p.ravel(), scores.labels.ravel(), 15))
    assert point.error_after < point.error_before


# --- what it is worth, and how it is kept


def test_the_figures_before_and_after():
    scores = random_scores(5)
    point = learn_operating_point(scores, "per_class")
    values = operating_point.measure(scores, point)
    p = np.vectorize(reference_probability)(scores.logits, point.temperature)
    for key, thresholds in (("at_half", None), ("at_operating_point", point.thresholds)):
        counts = [
            reference_counts(scores.logits[:, c], scores.labels[:, c], 0.0)
            if thresholds is None
            else reference_counts(p[:, c], scores.labels[:, c], thresholds[c])
            for c in range(5)
        ]
        hits, predicted, positives = np.sum(counts, axis=0)
        assert values[key]["OF1"] == pytest.approx(200 * hits / (predicted + positives))
        precision, recall = np.mean([(h / q, h / n) for h, q, n in counts[:4]], axis=0)
        f1 = 200 * precision * recall / (precision + recall)
        assert values[key]["CF1"] == pytest.approx(f1)
    for row, (h, q, n) in zip(values["classes"][:4], counts, strict=False):
        assert row["F1"] == pytest.approx(200 * h / (q + n)) and row["positives"] == n
        assert row["precision"] == pytest.approx(100 * h / q)
        assert row["recall"] == pytest.approx(100 * h / n)
    assert values["classes"][4]["F1"] is None and values["classes"][4]["fallback"]
    assert "class4" in calibration.class_table(values["classes"])


def test_thresholds_that_say_little_are_named():
    labels = np.array([[1, 1, -1]] * 4 + [[1, -1, -1]] * 4 + [[-1, -1, -1]] * 4)
    logits = labels + np.arange(36).reshape(12, 3) / 40
    logits[0, :2] = -3.0  # a present one that looks absent
    scores = make_scores(logits, labels)
    point = learn_operating_point(scores, "per_class")
    said = calibration.summary(point, operating_point.measure(scores, point)["classes"])
    one = point.thresholds[2]
    assert f"the one threshold, {one:.4f}, for want of positives" in said
    assert "learns from all classes together): class1 (4)" in said
    assert "class0" not in said
    point = learn_operating_point(scores, "one")
    classes = operating_point.measure(scores, point)["classes"]
    assert calibration.summary(point, classes) == calibration.summary(point)


def test_an_operating_point_through_json_and_back():
    point = learn_operating_point(random_scores(0), "per_class", on_test=True)
    stored = json.loads(json.dumps(point.to_dict()))
    assert OperatingPoint.from_dict(stored) == point
    assert stored["set"] == "made" and stored["split"] == "val" and stored["images"] == 40
    assert stored["rule"].endswith(", learned on the test split")
    assert set(stored["expected_calibration_error"]) == {"before", "after"}
    for damaged in ({**stored, "thresholds": None}, {**stored, "temperature": "warm"}, {}):
        with pytest.raises(Failure, match="damaged"):
            OperatingPoint.from_dict(damaged)


# --- commands


def test_from_score_files_alone(tmp_path, capsys):
    val, test = random_scores(0), random_scores(1, split="test")
    val.save(tmp_path / "val.npz")
    test.save(tmp_path / "test.npz")
    arguments = [str(tmp_path / "val.npz"), "--rule", "per_class"]
    applied = ["--apply", str(tmp_path / "test.npz"), "--output", str(tmp_path / "out")]
    assert calibrate_score_file.main([*arguments, *applied]) == 0
    printed = capsys.readouterr().out
    point = learn_operating_point(val, "per_class")
    assert calibration.summary(point) in printed
    values = operating_point.measure(test, point)
    assert f"OF1 {values['at_operating_point']['OF1']:.1f}" in printed
    assert "made test, 40 images" in printed and "test split" not in printed
    written = json.loads((tmp_path / "out" / "calibration_val.json").read_text())
    assert OperatingPoint.from_dict(written["operating_point"]) == point
    with Image.open(tmp_path / "out" / "calibration_val.png") as picture:
        assert picture.size == (1200, 576)


def test_the_test_split_only_when_told_and_then_named(tmp_path, capsys):
    random_scores(0).save(tmp_path / "val.npz")
    random_scores(1, split="test").save(tmp_path / "test.npz")
    same = [str(tmp_path / "val.npz"), "--apply", str(tmp_path / "val.npz")]
    for arguments in ([str(tmp_path / "test.npz")], same):
        assert calibrate_score_file.main(arguments) == 2
        assert "--allow-test" in capsys.readouterr().err
        assert calibrate_score_file.main([*arguments, "--allow-test"]) == 0
        assert "learned on the test split" in capsys.readouterr().out


def test_wrong_command_lines(tmp_path, capsys):
    path = tmp_path / "val.npz"
    random_scores(0).save(path)
    random_scores(0, classes=4, split="test").save(tmp_path / "other.npz")
    assert calibrate_score_file.main([str(tmp_path / "none.npz")]) == 2
    assert calibrate_score_file.main([str(path), "--rule", "best"]) == 2
    assert calibrate_score_file.main([str(path), "--rule", "recall"]) == 2
    assert calibrate_score_file.main([str(path), "--apply", str(tmp_path / "other.npz")]) == 2
    assert calibrate_score_file.main([str(path), "--rule", "recall", "--target", "0.9"]) == 0
    assert capsys.readouterr().err.count("error: ") == 4


@pytest.fixture(scope="module")
def fresh_checkpoint(make_config, fresh_run, tmp_path_factory):
    """A checkpoint of a model with fresh weights."""
    checkpoint = tmp_path_factory.mktemp("fresh") / "checkpoint"
    save_weights(checkpoint, *fresh_run(make_config()))
    return checkpoint


@pytest.fixture
def run(config, fresh_checkpoint, tmp_path):
    """A recipe, a workdir and a checkpoint, for a test to change."""
    return config, tmp_path / "run", shutil.copytree(fresh_checkpoint, tmp_path / "checkpoint")


def test_a_checkpoint_learns_its_operating_point(run, capsys):
    config, workdir, checkpoint = run
    before, metadata = load_weights(checkpoint)
    point = calibrate.calibrate_run(config, workdir, checkpoint)
    printed = capsys.readouterr().out
    assert calibration.summary(point) in printed and "9 images" in printed
    assert (point.set_name, point.split, point.images) == ("tiny_scenes", "val", 9)

    after, stored = load_weights(checkpoint)
    assert stored == metadata | {"operating_point": point.to_dict()}
    jax.tree.map(np.testing.assert_array_equal, after, before)
    written = json.loads((workdir / "calibration_val.json").read_text())
    assert written["operating_point"] == point.to_dict()
    assert (workdir / "calibration_val.png").is_file()

    again = Scores.load(workdir / "scores_val.npz")
    assert learn_operating_point(again) == point

    # Evaluation then says what the labels of prediction are worth.
    values = evaluate_run(config, workdir, checkpoint)
    figures = operating_point.measure(Scores.load(workdir / "scores_test.npz"), point)
    said = values["operating_point"]
    assert said == point.to_dict() | {"figures": figures["at_operating_point"]}
    line = f"labels as predicted, with {point.rule}, from tiny_scenes val"
    assert line in capsys.readouterr().out
    assert f"with {point.rule}, from" in (workdir / "report" / "index.html").read_text()
    config.eval.flip = True  # as prediction does not look
    assert "operating_point" not in evaluate_run(config, workdir, checkpoint)
    config.eval.flip = False
    split = sources.open_splits(DataOptions.of(config.data))["val"]
    assert list(again.image_ids) == [split.image_id(i) for i in range(9)]
    np.testing.assert_array_equal(again.labels, split.labels())


def test_a_run_refuses_the_test_split_unless_told(run):
    config, workdir, checkpoint = run
    config.data.splits.val = "test"
    with pytest.raises(UsageError, match=r"calibration\.split=val is the split 'test'"):
        calibrate.calibrate_run(config, workdir, checkpoint)
    assert "operating_point" not in read_metadata(checkpoint) and not workdir.exists()
    config.calibration.allow_test = True
    config.calibration.rule, config.calibration.target = "recall", 0.8
    point = calibrate.calibrate_run(config, workdir, checkpoint)
    assert point.rule.endswith("a recall of 0.8, learned on the test split")
    assert read_metadata(checkpoint)["operating_point"]["rule"] == point.rule


def test_wrong_options_are_refused_before_anything_is_scored(run):
    config, workdir, checkpoint = run
    config.calibration.rule = "recall"
    with pytest.raises(UsageError, match="needs a target"):
        calibrate.calibrate_run(config, workdir, checkpoint)
    config.calibration.rule, config.calibration.split = "one", "dev"
    with pytest.raises(UsageError, match=r"calibration\.split is 'dev'; data\.splits has"):
        calibrate.calibrate_run(config, workdir, checkpoint)
    config.calibration.split = "val"
    with pytest.raises(UsageError, match="no checkpoint"):
        calibrate.calibrate_run(config, workdir)
