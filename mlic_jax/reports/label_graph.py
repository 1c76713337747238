"""MSRN's labels as a picture: which occurs with which, and which share a group.

Where everything stands is decided here and drawn by `evaluation_page.html.jinja`. The labels stand
in two columns, one to a row, with their names outside: however many there are, no name hides
another.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlic_jax.data.co_occurrence import EDGE_PROBABILITY, attention_mask
from mlic_jax.reports.page import text_width

EDGES_LISTED = 12
NAME_LENGTH = 24  # of a name in the picture; the whole one is told when it is pointed at


# Of the picture, in its own units: pixels, where it is shown at its full size.
FONT_SIZE = 13
ROW_HEIGHT = 19
_LEAST_HEIGHT = 300
_HALF_WIDTH = 120  # from the middle to the column, where it bulges most
_DOTS = (3.5, 9)  # radii, the least and the largest
_GAP = 5  # between a dot and its name
_HEAD = 7  # length of an arrow's head


@dataclasses.dataclass(frozen=True)
class LabelGraph:
    """What MSRN knows of its C labels, and what it made of them: K groups."""

    counts: np.ndarray  # float [C, C]: [i, j] images with both i and j
    class_counts: np.ndarray  # float [C]: images with i
    group_assignment: np.ndarray  # float [C, K]: the shares of a label in the groups; they sum to 1

    def probability(self) -> np.ndarray:
        """Float64 [C, C]: [i, j] is P(j | i), the share of the images with i that show j, too.

        0 where no image shows i.
        """
        counts, images = np.asarray(self.counts, np.float64), self.class_counts[:, None]
        return np.divide(counts, images, out=np.zeros_like(counts), where=images > 0)

    def edges(self) -> np.ndarray:
        """Int [E, 2], the edges (i, j) that the network uses, the strongest first.

        There is one from i to j where P(j | i) >= 0.4; j then attends to i. Of equally likely ones
        the one that more images show comes first.
        """
        linked = attention_mask(self.counts, self.class_counts).T
        edges = np.argwhere(linked & ~np.eye(len(linked), dtype=bool))
        at = tuple(edges.T)
        return edges[np.lexsort((-self.counts[at], -self.probability()[at]))]

    def groups(self) -> list[np.ndarray]:
        """Of each of the K groups the labels whose largest share is in it, largest share first."""
        likeliest, share = self.group_assignment.argmax(axis=1), self.group_assignment.max(axis=1)
        ranked = np.argsort(-share, kind="stable")
        return [ranked[likeliest[ranked] == k] for k in range(self.group_assignment.shape[1])]


def describe(graph: LabelGraph, names: Sequence[str]) -> dict[str, Any]:
    """What the page shows of the graph of the labels `names` [C]: picture, tables and groups."""
    probability, edges = graph.probability(), graph.edges()
    share = graph.group_assignment.max(axis=1)
    return {
        "picture": draw(graph, names),
        "num_labels": len(names),
        "num_edges": len(edges),
        "strongest": [
            {
                "source": names[i],
                "target": names[j],
                "probability": probability[i, j],
                "together": int(graph.counts[i, j]),
                "images": int(graph.class_counts[i]),
            }
            for i, j in edges[:EDGES_LISTED]
        ],
        "connected": np.unique(edges).tolist(),
        "isolated": [names[c] for c in _isolated(graph)],
        "num_groups": graph.group_assignment.shape[1],
        "groups": [
            {"group": k, "labels": [(names[c], share[c]) for c in members]}
            for k, members in enumerate(graph.groups())
            if len(members)
        ],
        "mean_share": share.mean(),
    }


def draw(graph: LabelGraph, names: Sequence[str]) -> dict[str, Any]:
    """The picture as positions; (0, 0) is its middle.

    Returns:
        `width` and `height`;
        `headings` of the groups, where labels fall into several: `group`, `text`, `text_x`, `y`,
        `anchor`;
        `nodes` in the order of the labels: `group`, `x`, `y`, `radius` (the area tells in how many
        images the label is), `text`, `text_x`, `anchor`, and for the curious `name` and `images`;
        `edges`, the weakest first, so that the strongest lie on top: `source` and `target`
        (labels), `line` and `head` (SVG path data), `probability`, and `weight`, 0 to 1.
    """
    columns = _columns(graph)
    height = max(ROW_HEIGHT * max(map(len, columns)), _LEAST_HEIGHT)
    radius = _radii(graph.class_counts)
    headings: list[dict[str, Any]] = []
    placed: dict[int, dict[str, Any]] = {}
    for side, column in zip((-1, 1), columns, strict=True):
        for row, (kind, k) in enumerate(column):
            y = ((row + 0.5) / len(column) - 0.5) * height
            x = side * _HALF_WIDTH * np.sqrt(1 - (1.7 * y / height) ** 2)
            text = {
                "text_x": x + side * (_DOTS[1] + _GAP),
                "anchor": "end" if side < 0 else "start",
            }
            if kind == "group":
                headings.append(text | {"y": y, "group": k, "text": f"Group {k + 1}"})
                continue
            placed[k] = text | {"x": x, "y": y, "radius": radius[k], "name": names[k]}
            placed[k] |= {"text": _shortened(names[k]), "images": int(graph.class_counts[k])}
    likeliest = graph.group_assignment.argmax(axis=1)
    nodes = [placed[c] | {"group": int(likeliest[c])} for c in range(len(names))]
    reach = max(
        abs(node["text_x"]) + FONT_SIZE * text_width(node["text"]) for node in nodes + headings
    )
    probability = graph.probability()
    weight = np.clip((probability - EDGE_PROBABILITY) / (1 - EDGE_PROBABILITY), 0, 1)
    return {
        "width": 2 * reach,
        "height": height,
        "headings": headings,
        "nodes": nodes,
        "edges": [
            {
                "source": int(i),
                "target": int(j),
                "probability": probability[i, j],
                "weight": weight[i, j],
                **_arrow(nodes[i], nodes[j]),
            }
            for i, j in graph.edges()[::-1]
        ],
    }


def _isolated(graph: LabelGraph) -> np.ndarray:
    return np.setdiff1d(np.arange(len(graph.class_counts)), graph.edges())


def _columns(graph: LabelGraph) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The rows of the left and the right column: ("group", k) over its labels, ("label", c).

    The labels come by group, in a group those without an edge last, and else in their own order.
    """
    groups = {k: members for k, members in enumerate(graph.groups()) if len(members)}
    isolated = np.isin(np.arange(len(graph.class_counts)), _isolated(graph))
    rows = []
    for k, members in groups.items():
        if len(groups) > 1:
            rows.append(("group", k))
        members = np.sort(members)
        rows += [("label", int(c)) for c in members[np.argsort(isolated[members], kind="stable")]]
    half = -(-len(rows) // 2)
    if rows[half - 1][0] == "group":  # a heading stands over a label, not under a column
        half -= 1
    left, right = rows[:half], rows[half:]
    if len(groups) > 1 and right[0][0] == "label":  # a group goes on: its heading comes again
        right.insert(0, [row for row in left if row[0] == "group"][-1])
    return left, right


def _radii(class_counts: np.ndarray) -> np.ndarray:
    """Of dots whose area is proportional to the count, but for the smallest, still to be seen."""
    counts = np.maximum(class_counts, 0)
    return np.maximum(_DOTS[1] * np.sqrt(counts / max(counts.max(), 1)), _DOTS[0])


def _arrow(source: dict[str, Any], target: dict[str, Any]) -> dict[str, str]:
    """A curve from dot to dot, and its head, as SVG path data."""
    p, q = (np.array([node["x"], node["y"]]) for node in (source, target))
    across = (q - p) / np.linalg.norm(q - p)
    # Towards the middle, the more the farther; and to the left as seen from the source, so that of
    # two labels that lead to one another each has its own arrow.
    control = (p + q) / 2
    control[0] *= 1 - min(0.25 + float(np.linalg.norm(q - p)) / 400, 1.4)
    control += 7 * np.array([across[1], -across[0]])
    leaving, arriving = control - p, q - control
    leaving, arriving = leaving / np.linalg.norm(leaving), arriving / np.linalg.norm(arriving)
    start = p + source["radius"] * leaving
    tip = q - (target["radius"] + 1) * arriving
    base = tip - _HEAD * arriving
    wing = 0.4 * _HEAD * np.array([arriving[1], -arriving[0]])
    return {
        "line": f"M{_point(start)} Q{_point(control)} {_point(base)}",
        "head": f"M{_point(tip)} L{_point(base + wing)} L{_point(base - wing)} Z",
    }


def _point(xy: np.ndarray) -> str:
    return f"{xy[0]:.1f},{xy[1]:.1f}"


def _shortened(name: str) -> str:
    """Without its middle: long names that differ often do so in their last word."""
    if len(name) <= NAME_LENGTH:
        return name
    tail = (NAME_LENGTH - 1) // 2
    return name[: NAME_LENGTH - 1 - tail] + "…" + name[-tail:]
