"""The picture of the label graph: arrows the right way round, names that never hide one another."""

import functools
import itertools
import re

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from mlic_jax.data import co_occurrence
from mlic_jax.reports.label_graph import FONT_SIZE, NAME_LENGTH, LabelGraph, describe, draw

# Of 10 images each: 4 of those with 0 show 1, and so on. Only 0 -> 1 (0.4), 2 -> 1 (0.9) and
# 1 -> 2 (0.45) are edges; 1 -> 0 is 4 of 20, 3 has 3 of 10 with 0, 4 is in no image.
COUNTS = np.zeros((5, 5), np.float32)
COUNTS[0, 1] = COUNTS[1, 0] = 4
COUNTS[1, 2] = COUNTS[2, 1] = 9
COUNTS[0, 3] = COUNTS[3, 0] = 3
CLASS_COUNTS = np.array([10, 20, 10, 10, 0], np.float32)
ASSIGNMENT = np.array([[0.6, 0.3, 0.1], [0.1, 0.0, 0.9], [0.8, 0.2, 0.0], [0.7, 0, 0.3], [0, 0, 1]])
NAMES = ["ant", "bee", "cow", "dog", "emu"]
GRAPH = LabelGraph(COUNTS, CLASS_COUNTS, ASSIGNMENT)


def random_graph(classes, groups=4, seed=0):
    rng = np.random.default_rng(seed)
    topics = rng.random((5, classes)) ** 4
    present = rng.random((400, classes)) < topics[rng.integers(0, 5, 400)]
    counted = co_occurrence.count(np.where(present, 1, -1).astype(np.int8), "as_positive")
    return LabelGraph(*counted, rng.dirichlet([0.3] * groups, classes).astype(np.float32))


def numbers(path):
    return np.array(re.findall(r"-?\d+\.\d+", path), float).reshape(-1, 2)


def test_an_edge_leads_to_what_the_images_of_a_label_show_too():
    assert GRAPH.edges().tolist() == [[2, 1], [1, 2], [0, 1]]
    assert GRAPH.probability()[2, 1] == 0.9 and GRAPH.probability()[1, 2] == 0.45
    assert not GRAPH.probability()[4].any()


def test_along_an_edge_the_second_label_attends_to_the_first():
    graph = random_graph(30)
    attends = co_occurrence.attention_mask(graph.counts, graph.class_counts)
    edges = {(i, j) for i, j in graph.edges().tolist()}
    assert 30 < len(edges) < 400
    for i, j in itertools.permutations(range(30), 2):
        likely = graph.class_counts[i] > 0 and graph.counts[i, j] / graph.class_counts[i] >= 0.4
        assert ((i, j) in edges) == likely == attends[j, i]


def test_the_strongest_edge_comes_first_and_of_equal_ones_the_one_more_images_show():
    counts = np.zeros((4, 4), np.float32)
    counts[0, 1], counts[2, 3], counts[3, 0] = 2, 20, 9
    graph = LabelGraph(counts, np.array([4, 1, 40, 10], np.float32), np.ones((4, 1)))
    assert graph.edges().tolist() == [[3, 0], [2, 3], [0, 1]]


def test_a_label_is_in_the_group_of_its_largest_share():
    assert [group.tolist() for group in GRAPH.groups()] == [[2, 3, 0], [], [4, 1]]


def test_what_the_page_says():
    said = describe(GRAPH, NAMES)
    assert said["num_labels"] == 5 and said["num_edges"] == 3 and said["num_groups"] == 3
    first = {"source": "cow", "target": "bee", "probability": 0.9, "together": 9, "images": 10}
    assert said["strongest"][0] == first
    assert said["isolated"] == ["dog", "emu"] and said["connected"] == [0, 1, 2]
    assert said["groups"] == [
        {"group": 0, "labels": [("cow", 0.8), ("dog", 0.7), ("ant", 0.6)]},
        {"group": 2, "labels": [("emu", 1.0), ("bee", 0.9)]},
    ]
    assert said["mean_share"] == pytest.approx((0.6 + 0.9 + 0.8 + 0.7 + 1) / 5)


# --- picture


@functools.cache
def text_width(text):
    font = FontProperties(family="DejaVu Sans", weight="bold")  # wider than most
    return TextPath((0, 0), text, FONT_SIZE, prop=font).get_extents().xmax


def boxes(picture):
    """(left, top, right, bottom) of every text as a font draws it, and of every dot."""
    found = []
    for text in [*picture["nodes"], *picture["headings"]]:
        width = text_width(text["text"])
        left = text["text_x"] - (width if text["anchor"] == "end" else 0)
        top = text["y"] - 0.62 * FONT_SIZE
        found.append((left, top, left + width, top + 1.24 * FONT_SIZE))
    for node in picture["nodes"]:
        x, y, r = node["x"], node["y"], node["radius"]
        found.append((x - r, y - r, x + r, y + r))
    return found


@pytest.mark.parametrize("classes", [1, 2, 3, 12, 81])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", ["{}", "an Extraordinarily LONG name of label {}"])
def test_no_name_hides_another_or_leaves_the_picture(classes, groups, name):
    names = [name.format(c) for c in range(classes)]
    picture = draw(random_graph(classes, groups), names)
    half_width, half_height = picture["width"] / 2, picture["height"] / 2
    placed = boxes(picture)
    for left, top, right, bottom in placed:
        assert -half_width <= left and right <= half_width
        assert -half_height <= top and bottom <= half_height
    for a, b in itertools.combinations(placed, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert [node["name"] for node in picture["nodes"]] == names


def test_long_names_keep_both_ends():
    names = ["x" * NAME_LENGTH, "one very long name of label 7", "one very long name of label 8"]
    texts = [node["text"] for node in draw(random_graph(3), names)["nodes"]]
    assert texts == ["x" * NAME_LENGTH, "one very lon… of label 7", "one very lon… of label 8"]
    assert all(len(text) == NAME_LENGTH for text in texts)


def test_arrows_start_at_the_first_label_and_point_at_the_second():
    for graph in (GRAPH, random_graph(20)):
        picture = draw(graph, [str(c) for c in range(len(graph.counts))])
        drawn = [(edge["source"], edge["target"]) for edge in picture["edges"]]
        assert drawn == [tuple(edge) for edge in graph.edges()[::-1].tolist()]
        for edge in picture["edges"]:
            ends = [picture["nodes"][edge[end]] for end in ("source", "target")]
            start, _, base = numbers(edge["line"])
            tip, *wings = numbers(edge["head"])
            for point, node, gap in zip((start, tip), ends, (0, 1), strict=True):
                distance = np.hypot(point[0] - node["x"], point[1] - node["y"])
                assert distance == pytest.approx(node["radius"] + gap, abs=0.2)
            np.testing.assert_allclose(np.mean(wings, axis=0), base, atol=0.11)


def test_two_labels_that_lead_to_one_another_have_an_arrow_each():
    there, back = (
        numbers(edge["line"])[1]
        for edge in draw(GRAPH, NAMES)["edges"]
        if {edge["source"], edge["target"]} == {1, 2}
    )
    assert np.linalg.norm(there - back) > 10


def test_area_tells_the_images_and_weight_the_probability():
    picture = draw(GRAPH, NAMES)
    area = [node["radius"] ** 2 for node in picture["nodes"]]
    assert area[1] == pytest.approx(2 * area[0]) and area[0] == area[2] == area[3]
    assert 0 < area[4] < area[0]
    weights = [edge["weight"] for edge in picture["edges"]]
    assert weights == pytest.approx([0, (0.45 - 0.4) / 0.6, (0.9 - 0.4) / 0.6])


def test_groups_stand_together_under_their_headings_and_labels_without_an_edge_last():
    picture = draw(GRAPH, NAMES)
    rows = [(node["x"] > 0, node["y"], node["name"]) for node in picture["nodes"]]
    rows += [(h["text_x"] > 0, h["y"], h["text"]) for h in picture["headings"]]
    column = [text for _, _, text in sorted(rows)]
    assert column == ["Group 1", "ant", "cow", "dog", "Group 3", "bee", "emu"]
    assert [node["group"] for node in picture["nodes"]] == [0, 2, 0, 0, 2]


def test_a_group_that_goes_on_in_the_second_column_has_its_heading_there_too():
    assignment = np.eye(2)[[0, 0, 0, 0, 1]]
    picture = draw(LabelGraph(COUNTS, CLASS_COUNTS, assignment), NAMES)
    where = [(heading["group"], heading["text_x"] > 0) for heading in picture["headings"]]
    assert where == [(0, False), (0, True), (1, True)]


def test_one_group_needs_no_heading():
    picture = draw(LabelGraph(COUNTS, CLASS_COUNTS, np.eye(3)[[1] * 5]), NAMES)
    assert picture["headings"] == []
    assert {node["group"] for node in picture["nodes"]} == {1}


def test_the_same_graph_is_the_same_picture():
    assert draw(random_graph(81), range_names(81)) == draw(random_graph(81), range_names(81))


def range_names(classes):
    return [f"label {c}" for c in range(classes)]


def test_published_counts_that_are_no_counts_are_drawn():
    counts = np.array([[0, 50], [-3, 0]], np.float32)
    picture = draw(LabelGraph(counts, np.array([10, 0], np.float32), np.ones((2, 1))), ["a", "b"])
    (edge,) = picture["edges"]
    assert edge["probability"] == 5 and edge["weight"] == 1
