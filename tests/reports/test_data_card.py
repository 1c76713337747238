"""The data card as a page: what stands on it, and the places of its pictures."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.data import card, records
from mlic_jax.data.kept_labels import kept_of
from mlic_jax.data.options import DataOptions
from mlic_jax.data.scenes import CLASS_NAMES, Scenes
from mlic_jax.reports import data_card
from mlic_jax.reports.page import REGION_COLOURS, page_template

ROLES = {"train": "train", "val": "val", "test": "val"}
COMMANDS = {"train": "python -m mlic_jax.main --config 'a <b>.py'"}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    source = Scenes(name="few_scenes", sizes={"train": 40, "val": 12})
    folder = records.prepare(source, tmp_path_factory.mktemp("prepared"), workers=1)
    return {split: records.open_split(folder, split) for split in source.splits}


@pytest.fixture(scope="module")
def described(splits):
    return card.describe(splits)


class Page(HTMLParser):
    """The text of a page, its tags, and those left open."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self.open = [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.words.append(data)


def test_the_page(described, splits):
    text = data_card.render_page(described, ROLES, splits["train"], COMMANDS)
    page = Page(text)
    assert page.open == []
    assert "Images 52 40 train, 12 val" in page.text
    assert "val serves as validation and as test" in page.text
    assert COMMANDS["train"] in page.text
    labels = splits["train"].labels()
    for c, name in enumerate(CLASS_NAMES):
        assert re.search(rf"{name} {(labels[:, c] == 1).sum()} \d", page.text), name
    photos = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(photos) == data_card.PHOTOS
    assert all(photo["src"].startswith("data:image/jpeg;base64,") for photo in photos)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)  # it loads nothing
    assert "http" not in text


def test_the_page_shows_which_labels_are_kept(splits, config):
    config.data.update({"keep_labels": 0.4, "dropped_labels": "unknown"})
    described = card.describe(splits, 0, DataOptions.of(config.data))
    page = Page(data_card.render_page(described, ROLES, splits["train"], COMMANDS))
    labels = splits["train"].labels()
    kept = kept_of(labels, DataOptions.of(config.data))
    for c, name in enumerate(CLASS_NAMES):
        before, left = ((values[:, c] == 1).sum() for values in (labels, kept))
        # Between them the share, and how many are unknown.
        assert re.search(rf"{name} {before} \S+ \S+ {left} \d", page.text), name
    present = f"{(kept == 1).sum()} of {(labels == 1).sum()} present"
    absent = f"{(kept == -1).sum()} of {(labels == -1).sum()} absent"
    assert f"data.keep_labels=0.4 keeps {present} and {absent} labels" in page.text
    assert described["kept"]["unknown"] == (kept == 0).sum(axis=0).tolist()


def test_classes_of_which_no_label_is_kept_are_a_problem(described):
    kept = {"said": "few are kept", "positives": [0, *[1] * (len(CLASS_NAMES) - 1)]}
    said = card.findings(described | {"kept": kept}, ROLES)
    assert ("problem", f"no label of {CLASS_NAMES[0]} is kept: nothing is learned of it") in said
    assert ("note", "few are kept") in said


def test_true_boxes_have_the_names_and_colours_of_their_classes(described, splits):
    text = data_card.render_page(described, ROLES, splits["train"], COMMANDS)
    drawings = re.findall(r'<svg class="boxes".*?</svg>', text, re.DOTALL)
    assert len(drawings) == data_card.PHOTOS
    for drawing in drawings:
        titles = re.findall("<title>(.*?)</title>", drawing)
        assert re.findall("<text .*?>(.*?)</text>", drawing) == titles
        colours = re.findall(' stroke="(.*?)"', drawing)
        assert re.findall('<text fill="(.*?)"', drawing) == colours
        # A name starts in the left half or ends in the right one, so that there is room for it.
        width = float(re.search('viewBox="0 0 ([0-9.]+)', drawing)[1])
        texts = re.findall(' x="([0-9.]+)" text-anchor="(.*?)"', drawing)
        assert len(texts) == len(titles)
        room = [float(x) if anchor == "end" else width - float(x) for x, anchor in texts]
        assert min(room) > 0.45 * width
        assert len({*zip(titles, colours, strict=True)}) == len({*titles})
        assert len({*colours}) == min(len({*titles}), len(REGION_COLOURS))


@pytest.mark.parametrize("name", ["data_card", "evaluation_page"])
def test_no_page_is_wider_than_a_phone(name, described, splits):
    """What is wide scrolls in a frame of its own, and no name breaks within a word."""
    folder = Path(data_card.__file__).parent
    template = (folder / f"{name}.html.jinja").read_text()
    frames = re.findall(r'<div class="([^"]*)"[^>]*>\s*<table', template)
    assert len(frames) == template.count("<table") > 0
    assert all("scroll" in frame.split() for frame in frames)
    style = page_template(folder / "scroll.css.jinja", {}).render()
    assert re.search(r"\.scroll, pre {\s*overflow-x: auto;", style)
    assert '{% include "scroll.css.jinja" %}' in template
    for rule in re.findall(r"^(?:th|td|\.label|.*\.name)\b[^{]*{[^}]*}", template, re.MULTILINE):
        assert "anywhere" not in rule


def test_names_are_escaped(described, splits):
    evil = described | {"name": "<script>", "class_names": [f"<b>{n}" for n in CLASS_NAMES]}
    text = data_card.render_page(evil, ROLES, splits["train"], COMMANDS)
    assert "<script>" not in text and "<b>red" not in text
    assert "<b>red star" in Page(text).text


def test_rows_of_classes(described, splits):
    rows = data_card.class_rows(described)
    positives = [row["splits"][0]["positives"] for row in rows]
    assert positives == sorted(positives, reverse=True)
    assert max(cell["width"] for row in rows for cell in row["splits"]) == pytest.approx(100)
    labels = {split: splits[split].labels() for split in splits}
    for row in rows:
        c = CLASS_NAMES.index(row["name"])
        for cell, split in zip(row["splits"], splits, strict=True):
            assert cell["share"] == pytest.approx((labels[split][:, c] == 1).mean())
            assert cell["unknown"] == (labels[split][:, c] == 0).sum()


def test_rows_of_numbers_of_labels(described, splits):
    rows = data_card.histogram(described)
    for n, row in enumerate(rows):
        assert row["labels"] == n
        for bar, split in zip(row["bars"], splits.values(), strict=True):
            assert bar["images"] == ((split.labels() == 1).sum(axis=1) == n).sum()
            assert bar["share"] == pytest.approx(bar["images"] / len(split))


def test_the_matrix(described, splits):
    picture = data_card.matrix(described)
    present = splits["train"].labels() == 1
    frequency = [present[:, CLASS_NAMES.index(name)].sum() for name in picture["names"]]
    assert frequency == sorted(frequency, reverse=True) and picture["left_out"] == 0
    cells = {(cell["row"], cell["column"]): cell for cell in picture["cells"]}
    for row, name in enumerate(picture["names"]):
        for column, other in enumerate(picture["names"]):
            a, b = (present[:, CLASS_NAMES.index(n)] for n in (name, other))
            if row == column or not (a & b).any():
                assert (row, column) not in cells
            else:
                assert cells[row, column]["share"] == pytest.approx(b[a].mean())
                assert cells[row, column]["together"] == (a & b).sum()


def test_a_matrix_of_many_classes_and_one_of_none():
    counts = np.diag(np.arange(60))
    names = [f"c{i}" for i in range(60)]
    many = {"class_names": names, "co_occurrence": {"counts": counts.tolist()}}
    picture = data_card.matrix(many)
    assert picture["names"] == names[:-41:-1] and picture["left_out"] == 20
    none = {"class_names": ["a"], "co_occurrence": {"counts": [[0]]}}
    assert data_card.matrix(none) == {"names": [], "left_out": 1, "cells": []}


SMALL = [[10 + i, 10, 1] for i in range(36)]


def test_the_chart_of_sizes():
    chart = data_card.draw_sizes([[640, 480, 9], [480, 640, 4], [100, 50, 1], *SMALL])
    assert chart["ticks"] == [(25, 200), (50, 400), (75, 600), (100, 800)]
    first = chart["dots"][0]
    assert (first["x"], first["y"], first["text"]) == (80, 60, "640 x 480: 9")
    areas = [dot["radius"] ** 2 for dot in chart["dots"][:3]]
    np.testing.assert_allclose(np.divide(areas, areas[0]), [1, 4 / 9, 1 / 9])
    assert chart["quantiles"] == [[10, 34, 640], [10, 10, 640]]
    assert chart["distinct"] == 39


@pytest.mark.parametrize("side", [1, 3, 7, 24, 100, 999, 1001, 20000])
def test_ticks_are_round_and_few(side):
    chart = data_card.draw_sizes([[side, 1, 5]])
    assert 1 <= len(chart["ticks"]) <= 5
    assert 50 <= max(dot["x"] for dot in chart["dots"]) <= 100


def test_a_set_of_one_class_without_labels(splits, described):
    """Nothing is divided by nothing."""
    part = {
        "images": 2,
        "unlabelled": 2,
        "labels_per_image": [2],
        "positives": [0],
        "unknown": [0],
        "without_positives": ["a"],
        "unreadable": ["x.jpg (x.jpg)"],
        "negatives": [2],
        "misfits": ["y.jpg"],
    }
    bare = described | {
        "class_names": ["a"],
        "splits": {"train": part, "val": part},
        "co_occurrence": {"split": "train", "counts": [[0]], "pairs": []},
    }
    text = Page(data_card.render_page(bare, ROLES, splits["train"], COMMANDS)).text
    assert "No two classes occur together" in text and "Unreadable in val x.jpg (x.jpg)" in text
