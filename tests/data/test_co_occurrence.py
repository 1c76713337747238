"""Counts against a plain loop, the mask against the released formula, and every finding of lint."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest

from mlic_jax.data import co_occurrence, records
from mlic_jax.data.class_names import CLASS_LISTS
from mlic_jax.data.co_occurrence import CoOccurrence
from mlic_jax.data.label_files import order_of
from mlic_jax.errors import Failure, UsageError

FAULTY = ("nuswide", "apparel")
SOUND = ("voc", "coco")


def random_labels(images=300, classes=9, seed=0):
    """int8 [N, C] with a tenth of unknown labels; class 7 never occurs, classes 0 and 1 often."""
    rng = np.random.default_rng(seed)
    present = rng.random((images, classes)) < np.linspace(0.7, 0.1, classes)
    labels = np.where(present, 1, -1).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = 0
    labels[:, 7] = -1
    return labels


def loop_counts(labels, counts_as_present):
    classes = labels.shape[1]
    counts, class_counts = np.zeros((classes, classes)), np.zeros(classes)
    for row in labels:
        for i in range(classes):
            if row[i] in counts_as_present:
                class_counts[i] += 1
                for j in range(classes):
                    if j != i and row[j] in counts_as_present:
                        counts[i, j] += 1
    return counts, class_counts


@pytest.fixture
def graph():
    """The co-occurrence of random labels, in which class 7 never occurs."""
    counts, class_counts = co_occurrence.count(random_labels(), "as_negative")
    names = tuple("abcdefghi")
    return CoOccurrence(counts, class_counts, names, "toy", "train", "as_negative")


# --- counting ---


@pytest.mark.parametrize(
    ("policy", "counts_as_present"),
    [("as_positive", (1, 0)), ("as_negative", (1,)), ("ignore", (1,))],
)
def test_counts_are_those_of_a_loop(policy, counts_as_present):
    labels = random_labels()
    counts, class_counts = co_occurrence.count(labels, policy)
    expected, expected_class_counts = loop_counts(labels, counts_as_present)
    assert counts.dtype == class_counts.dtype == np.float32
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(class_counts, expected_class_counts)


def test_the_policy_for_difficult_labels_matters():
    labels = np.array([[1, 0], [0, 1], [1, -1]], np.int8)
    assert co_occurrence.count(labels, "as_positive")[0].tolist() == [[0, 2], [2, 0]]
    assert co_occurrence.count(labels, "as_negative")[0].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(UsageError, match="label policy is 'maybe'"):
        co_occurrence.count(labels, "maybe")


def test_a_prepared_split_and_no_other(toy_source, tmp_path):
    source = toy_source(train=10, val=4)
    folder = records.prepare(source, tmp_path)
    graph = co_occurrence.from_split(records.open_split(folder, "train"), "as_positive")
    labels = np.stack([example.labels for example in source.examples("train")])
    counts, class_counts = loop_counts(labels, (1, 0))
    np.testing.assert_array_equal(graph.counts, counts)
    np.testing.assert_array_equal(graph.class_counts, class_counts)
    assert graph.class_names == ("ant", "bee", "cat")
    assert (graph.set_name, graph.split, graph.difficult_policy) == ("toy", "train", "as_positive")


# --- files ---


def assert_same(got, expected):
    for field in dataclasses.fields(CoOccurrence):
        value, want = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(want, np.ndarray):
            assert value.dtype == want.dtype == np.float32
            np.testing.assert_array_equal(value, want)
        else:
            assert value == want


def test_a_graph_comes_back_as_it_was(graph, tmp_path):
    graph.save(tmp_path / "graph.npz")
    assert_same(co_occurrence.load(tmp_path / "graph.npz"), graph)
    nameless = dataclasses.replace(graph, class_names=None)
    nameless.save(tmp_path / "graph.npz")
    assert_same(co_occurrence.load(str(tmp_path / "graph.npz")), nameless)


def test_a_pickle_is_taken_as_it_is(tmp_path):
    adj, nums = np.array([[3, 1.5], [-2, 0]]), np.array([0, 7], np.int64)
    path = tmp_path / "toy_adj.pkl"
    path.write_bytes(pickle.dumps({"adj": adj, "nums": nums}))
    expected = CoOccurrence(
        adj.astype(np.float32), nums.astype(np.float32), None, "toy_adj.pkl", "", ""
    )
    assert_same(co_occurrence.load(path), expected)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"adj": np.eye(2)},
        {"adj": np.eye(2), "nums": np.ones(3)},
        {"adj": np.ones((2, 3)), "nums": np.ones(2)},
        {"adj": np.eye(2), "nums": 5},
        {"adj": [[1, 2], [3]], "nums": [1, 2]},
        {"adj": [["a", "b"], ["c", "d"]], "nums": [1, 2]},
        {"adj": {}, "nums": [1]},
    ],
)
def test_a_pickle_of_anything_else_fails(content, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(Failure, match=r"a\.pkl is no label graph"):
        co_occurrence.load(path)


def test_an_npz_of_anything_else_fails(graph, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, logits=np.ones(3))
    with pytest.raises(Failure, match="no label graph: it lacks class_counts, counts"):
        co_occurrence.load(path)
    dataclasses.replace(graph, class_names=("too", "few")).save(path)
    with pytest.raises(Failure, match=r"class_names must be text \[9\], and is <U3 \(2,\)"):
        co_occurrence.load(path)
    with pytest.raises(UsageError, match=r"nothing\.npz"):
        co_occurrence.load(tmp_path / "nothing.npz")


# --- order ---


def test_permuting_is_counting_permuted_labels(graph):
    order = np.random.default_rng(1).permutation(9)
    counts, class_counts = co_occurrence.count(random_labels()[:, order], "as_negative")
    permuted = graph.permute(order)
    np.testing.assert_array_equal(permuted.counts, counts)
    np.testing.assert_array_equal(permuted.class_counts, class_counts)
    assert permuted.class_names == tuple(graph.class_names[i] for i in order)
    back = order_of(permuted.class_names, graph.class_names, "it")
    assert_same(permuted.permute(back), graph)
    assert dataclasses.replace(graph, class_names=None).permute(order).class_names is None
    for wrong in (range(8), [0] * 9, range(1, 10)):
        with pytest.raises(UsageError, match="no order of 9 classes"):
            graph.permute(wrong)


# --- the mask ---


def released_mask(counts, class_counts, threshold=0.4):
    """The whole formula of the released system, its weighting and normalisation included."""
    graph = counts / class_counts[:, None]
    graph = np.where(graph >= threshold, 1.0, 0.0)
    graph = graph * 0.25 / (graph.sum(axis=0, keepdims=True) + 1e-6)
    graph = graph + np.eye(len(counts))
    scale = np.diag(graph.sum(axis=1) ** -0.5)
    return (graph @ scale).T @ scale > 0


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_the_mask_is_the_sign_of_the_released_matrix(seed, threshold):
    labels = np.delete(random_labels(seed=seed), 7, axis=1)  # the formula divides by every count
    counts, class_counts = co_occurrence.count(labels, "as_positive")
    mask = co_occurrence.attention_mask(counts, class_counts, threshold)
    assert mask.dtype == bool
    assert 8 < mask.sum() < 64 and (mask != mask.T).any()  # says something of the direction
    np.testing.assert_array_equal(mask, released_mask(counts, class_counts, threshold))


@pytest.mark.parametrize("name", SOUND + FAULTY)
def test_the_mask_of_published_graphs(name, shared):
    graph = co_occurrence.load(shared / "msrn_data" / f"{name}_adj.pkl")
    mask = co_occurrence.attention_mask(graph.counts, graph.class_counts)
    expected = released_mask(graph.counts.astype(np.float64), graph.class_counts.astype(np.float64))
    np.testing.assert_array_equal(mask, expected)
    edges = {"voc": 6, "coco": 111, "nuswide": 2, "apparel": 24}[name]
    assert mask.sum() == len(mask) + edges


def test_the_direction_and_the_bound_of_an_edge():
    """Of 5 images with class 0, 2 have class 1, exactly 0.4; of 10 with class 1, 2 have class 0."""
    mask = co_occurrence.attention_mask(np.array([[0, 2], [2, 0]]), np.array([5, 10]))
    assert mask.tolist() == [[True, False], [True, True]]


def test_a_class_without_images_attends_to_itself_alone(graph):
    mask = co_occurrence.attention_mask(graph.counts, graph.class_counts)
    assert np.flatnonzero(mask[7]).tolist() == np.flatnonzero(mask[:, 7]).tolist() == [7]


# --- lint ---


def faults(*arguments, **options):
    findings = co_occurrence.lint(*arguments, **options)
    return [finding for finding in findings if not finding.startswith(co_occurrence.NOTE)]


@pytest.mark.parametrize("name", SOUND)
def test_published_graphs_that_are_sound(name, shared):
    graph = co_occurrence.load(shared / "msrn_data" / f"{name}_adj.pkl")
    assert co_occurrence.lint(graph, CLASS_LISTS[name]) == []


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("nuswide", ("diagonal is not 0: 81 of 81 entries, such as 44841 of clouds", "plus one")),
        (
            "apparel",
            (
                "asymmetry: 24 pairs .* black with dress 450 and dress with black 0",
                "probabilities above 1: 24, such as dress in 450 of 1 images with black",
                "column sums .* plus one, not numbers of images",
                "rows without edges: dress, pants, shirt, shoes, shorts, although",
            ),
        ),
    ],
)
def test_published_graphs_that_are_faulty(name, messages, shared):
    graph = co_occurrence.load(shared / "msrn_data" / f"{name}_adj.pkl")
    findings = faults(graph, CLASS_LISTS[name])
    assert len(findings) == len(messages)
    for finding, message in zip(findings, messages, strict=True):
        assert re.search(message, finding)


def test_a_counted_graph_is_sound_and_its_empty_class_noted(graph):
    assert co_occurrence.lint(graph, graph.class_names, graph.class_counts) == [
        "note: rows without edges: h never occur with another class"
    ]


def test_two_labels_an_image_are_sound():
    """Column sums are then the class counts themselves: the right graph of Apparel."""
    rng = np.random.default_rng(0)
    labels = np.full((200, 8), -1, np.int8)
    labels[np.arange(200), rng.integers(0, 4, 200)] = 1
    labels[np.arange(200), rng.integers(4, 8, 200)] = 1
    counts, class_counts = co_occurrence.count(labels, "as_positive")
    np.testing.assert_array_equal(counts.sum(axis=0), class_counts)
    assert co_occurrence.lint(CoOccurrence(counts, class_counts, None, "", "", "")) == []
    wrong = CoOccurrence(counts, class_counts + 1, None, "", "", "")
    assert len(faults(wrong)) == 1 and "plus one" in faults(wrong)[0]


@pytest.mark.parametrize(
    ("field", "where", "value", "message"),
    [
        ("counts", (0, 1), -1, "co-occurrence counts are not counts: 1 .* -1 of a with b"),
        ("counts", (0, 1), 2.5, "co-occurrence counts are not counts: 1 .* 2.5 of a with b"),
        ("counts", (0, 1), np.nan, "co-occurrence counts are not counts: 1 .* nan of a with b"),
        ("class_counts", 2, 2.5, "^class counts are not counts: 1 .* 2.5 of c"),
        ("class_counts", 2, np.inf, "^class counts are not counts: 1 .* inf of c"),
        ("counts", (3, 3), 4, "diagonal is not 0: 1 of 9 entries, such as 4 of d with itself"),
        ("counts", (0, 1), 3, "asymmetry: 1 pairs have two counts, such as a with b 3 and b with"),
        ("class_counts", 8, 1, "probabilities above 1: 7, such as a in .* of 1 images with i"),
        ("counts", 2, 0, "rows without edges: c, although other classes occur with them"),
    ],
)
def test_every_fault_has_a_finding(graph, field, where, value, message):
    values = getattr(graph, field).copy()
    values[where] = value
    findings = faults(dataclasses.replace(graph, **{field: values}))
    assert any(re.search(message, finding) for finding in findings), findings
    assert not faults(graph)


def test_both_kinds_of_numbers_are_looked_at(graph):
    counts, class_counts = graph.counts.copy(), graph.class_counts.copy()
    counts[0, 1], class_counts[2] = -1, 2.5
    wrong = dataclasses.replace(graph, counts=counts, class_counts=class_counts)
    first, second = faults(wrong)
    assert first.startswith("co-occurrence counts are") and second.startswith("class counts are")


def test_two_classes_may_look_like_column_sums_plus_one():
    counts, class_counts = np.float32([[0, 1], [1, 0]]), np.float32([2, 2])
    sound = CoOccurrence(counts, class_counts, ("a", "b"), "", "", "")
    assert co_occurrence.lint(sound) == []


def test_a_frequent_class_in_its_place_does_not_hide_the_order_of_the_others(graph):
    """Of the counts themselves the largest would decide alone."""
    ours = np.float32([90_000, 1, 3, 10, 30, 100, 300, 900, 2_000])
    theirs = np.float32([90_000, 2_000, 900, 300, 100, 30, 10, 3, 1])
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    graph = dataclasses.replace(graph, counts=np.zeros((9, 9), np.float32), class_counts=ours)
    (finding,) = faults(graph, class_counts=theirs)
    assert re.search(r"class counts \(their logarithms\) correlate .* at -?0\.\d\d only", finding)
    assert not faults(graph, class_counts=ours * 2)


def test_a_class_order_that_does_not_fit(graph):
    names = graph.class_names
    (finding,) = faults(graph, ("b", "a", *names[2:]))
    assert re.search("order does not fit the set: 2 of 9 differ; position 0 is a in", finding)
    (finding,) = faults(graph, names[:-1])
    assert finding == "the graph has 9 classes and the set 8"
    (finding,) = faults(graph, (*names[:-1], "z"))
    assert re.search("lacks z and has i", finding)
    assert not faults(dataclasses.replace(graph, class_names=None), names[::-1])


def test_class_counts_tell_the_order_of_published_graphs(shared):
    """COCO's pickle is in alphabetical order: 128 photos show it, and that it is not the file's."""
    graph = co_occurrence.load(shared / "msrn_data" / "coco_adj.pkl")
    file = json.loads((shared / "coco128" / "instances_train.json").read_text())
    names = {category["id"]: category["name"] for category in file["categories"]}
    present = {(a["image_id"], names[a["category_id"]]) for a in file["annotations"]}
    for order, fits in ((sorted(names.values()), True), (list(names.values()), False)):
        class_counts = np.array([sum(name == other for _, other in present) for name in order])
        findings = co_occurrence.lint(graph, order, class_counts)
        assert bool(findings) != fits
        assert fits or re.search("correlate with those of the set at -?0.0", findings[0])
