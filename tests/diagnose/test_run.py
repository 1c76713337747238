"""A diagnosis from score file and set: its page in a browser, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.data import sources
from mlic_jax.data.objects import read_objects
from mlic_jax.data.options import DataOptions
from mlic_jax.diagnose import run
from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics.operating_point import OperatingPoint
from mlic_jax.metrics.precision_recall import predicted_labels
from mlic_jax.reports import diagnosis
from mlic_jax.scores.files import Scores

SIZE = 48


@pytest.fixture(scope="module")
def splits(make_config):
    return sources.open_splits(DataOptions.of(make_config().data))


@pytest.fixture(scope="module")
def scores(splits):
    """Of a model that is right more often than not, and looks twice somewhere."""
    rng = np.random.default_rng(0)
    split = splits["test"]
    labels = split.labels()
    first, second = (labels * 1.5 + rng.normal(0, 2, labels.shape) for _ in range(2))
    corners = rng.integers(0, 30, (len(split), 2, 2))
    return Scores(
        logits=np.maximum(first, second).astype(np.float32),
        global_logits=first.astype(np.float32),
        local_logits=second.astype(np.float32),
        labels=labels,
        image_ids=np.array([split.image_id(i) for i in range(len(split))]),
        class_names=np.array(split.class_names),
        set_name=split.name,
        split=split.split,
        image_size=SIZE,
        boxes=np.concatenate([corners, corners + 12], axis=-1).astype(np.int32),
        box_classes=np.argsort(-first, axis=1)[:, :2].astype(np.int32),
        class_maps=rng.random((len(split), 2, 3, 3)).astype(np.float32),
    )


def point_of(scores, temperature):
    return OperatingPoint(
        temperature=temperature,
        thresholds=(0.4,) * len(scores.class_names),
        rule="of a test",
        set_name=scores.set_name,
        split="val",
        images=9,
        error_before=3.0,
        error_after=1.0,
    )


def page_of(folder, scores, splits, found, objects):
    split = splits["test"]
    return diagnosis.write_page(
        folder / "index.html",
        found,
        scores,
        predicted_labels(scores.logits, 0.5),
        lambda i: np.array(split.decode(split[i]).resize((SIZE, SIZE))),
        None if objects is None else objects.__getitem__,
    )


def test_the_page_shows_the_figures_and_loads_nothing(scores, splits, tmp_path, chromium):
    objects = read_objects(splits["test"], SIZE)
    found = run.diagnose(scores, splits["train"].labels(), objects, None, 0.5)
    found["doubtful"] = {"columns": ["photo", "class"], "rows": [["<b>1</b>", "red star"]]}
    json.dumps(found, allow_nan=False)
    assert found["localisation"]["regions"] > 0 and found["second_look"]["gained"] > 0
    page = page_of(tmp_path, scores, splits, found, objects)
    chromium.open(page.as_uri())
    chromium.wait_for("document.readyState === 'complete'")
    asked = [e for e in chromium.events if e.get("method") == "Network.requestWillBeSent"]
    urls = [event["params"]["request"]["url"] for event in asked]
    assert all(url == page.as_uri() or url.startswith("data:") for url in urls), urls
    said = chromium.value("document.body.innerText")
    assert chromium.value("document.querySelectorAll('nav a[href=\"#second\"]').length") == 1
    for heading in ("Errors by likely cause", "Where it looks", "Gained most", "Doubtful labels"):
        assert heading in said
    assert f"of {found['errors']['missed']['labels']} labels that are present" in said
    assert "<b>1</b>" in said  # as text
    costliest = chromium.value(
        "[...document.querySelectorAll('section:has(#costliest) .identity')].map(e => e.innerText)"
    )
    assert costliest == [row["id"] for row in found["costliest"]]
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert chromium.value(wide)


def test_without_boxes_regions_or_a_second_look_the_rest_is_there(scores, splits, tmp_path):
    once = dataclasses.replace(
        scores, global_logits=None, local_logits=None, boxes=None, box_classes=None, class_maps=None
    )
    found = run.diagnose(once, splits["train"].labels(), None, None, 0.5)
    assert found["second_look"] is None
    assert not {"recall_by_size", "localisation"} & found.keys()
    assert "small" not in found["errors"]["missed"]["causes"]
    found |= {"no_boxes": "the set has no boxes, COCO has", "doubtful": None}
    text = page_of(tmp_path, once, splits, found, None).read_text()
    assert 'href="#second"' not in text
    for said in (
        "The set has no boxes, COCO has.",
        "The model looks once",
        "By the number of labels",
    ):
        assert said in text
    objects = read_objects(splits["test"], SIZE)
    with_boxes = run.diagnose(once, splits["train"].labels(), objects, None, 0.5)
    assert "small" in with_boxes["errors"]["missed"]["causes"]
    page = page_of(tmp_path, once, splits, with_boxes | {"doubtful": None}, objects)
    assert "The model has no regions." in page.read_text()


def test_an_operating_point_decides_and_its_probabilities_stand_beside(scores, splits):
    point = point_of(scores, temperature=3.0)
    train = splits["train"].labels()
    found, plain = (run.diagnose(scores, train, None, p, 0.9) for p in (point, None))
    assert found["errors"]["missed"]["errors"] < plain["errors"]["missed"]["errors"]
    assert (found["predicted_at"], plain["predicted_at"]) == ("of a test", "probability 0.9")
    assert list(plain["confidence"]) == ["as_it_is"]
    calibrated = found["confidence"]["calibrated"]["by_class"][0]["probability"]
    probabilities = 1 / (1 + np.exp(-scores.logits[:, 0].astype(np.float64) / 3))
    known = scores.labels[:, 0] != 0
    assert calibrated == pytest.approx(100 * probabilities[known].mean())


def test_without_a_score_file_it_says_what_to_run(tmp_path):
    with pytest.raises(
        UsageError, match=r"no score file .*: python -m mlic_jax.main --mode evaluate --workdir"
    ):
        run.read_scores(tmp_path, "test")


def test_users_of_the_short_command_are_told_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mlic diagnose"])
    with pytest.raises(UsageError, match=r": mlic evaluate --workdir \S+ writes it"):
        run.read_scores(tmp_path, "test")


@pytest.mark.parametrize(("source", "is_told"), [("yolo", True), ("csv", False)])
def test_preparing_again_is_advice_for_sets_in_yolos_format(source, is_told, splits):
    data = dataclasses.replace(DataOptions.of(default_config().data), source=source)
    said = run.said_of_no_boxes(data, splits["test"])
    assert ("an earlier version" in said) == is_told


def test_scores_that_are_not_finite(scores, tmp_path):
    logits = scores.logits.copy()
    logits[0, 0] = np.nan
    dataclasses.replace(scores, logits=logits).save(tmp_path / "scores_test.npz")
    with pytest.raises(Failure, match="its scores are not finite"):
        run.read_scores(tmp_path, "test")


def test_a_list_of_doubtful_labels_that_is_none_is_left_out(tmp_path, capsys):
    path = tmp_path / "doubtful.csv"
    path.write_text(f"photo,class\n{'a' * 200_000},dog\n")
    assert run.read_doubtful(path) is None
    assert "doubtful.csv is left out, it is no table" in capsys.readouterr().out


def test_a_split_without_known_labels_has_no_errors(scores, tmp_path):
    path = tmp_path / "scores_test.npz"
    dataclasses.replace(scores, labels=np.zeros_like(scores.labels)).save(path)
    with pytest.raises(UsageError, match="no label of the split is known"):
        run.read_scores(tmp_path, "test")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"image_ids": np.arange(11).astype(str)}, "images"),
        ({"class_names": np.arange(12).astype(str)}, "classes"),
        ({"labels": np.ones((11, 12), np.int8)}, "labels"),
    ],
)
def test_scores_of_another_set_are_refused(change, what, scores, splits, tmp_path):
    with pytest.raises(UsageError, match=f"has other {what} than the score file"):
        run.check_same_split(dataclasses.replace(scores, **change), splits["test"], tmp_path)
    run.check_same_split(scores, splits["test"], tmp_path)


def test_the_top_of_doubtful_labels_is_read_where_it_is(tmp_path):
    path = tmp_path / "doubtful.csv"
    assert run.read_doubtful(path) is None
    path.write_text("photo,class\n")
    assert run.read_doubtful(path) is None
    path.write_text("photo,class\n" + "a.jpg,cat\n" * 30)
    found = run.read_doubtful(path)
    assert found == {"columns": ["photo", "class"], "rows": [["a.jpg", "cat"]] * 20}
