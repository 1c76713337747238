"""The report as a browser takes it: parsed, self-contained, with the right numbers and regions."""

import base64
import dataclasses
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mlic_jax.metrics.average_precision import average_precision
from mlic_jax.metrics.classification import evaluate_scores
from mlic_jax.reports import charts, evaluation_page
from mlic_jax.reports.label_graph import LabelGraph
from mlic_jax.reports.page import LEAST_GLOBAL, REGION_COLOURS, class_colours, text_width
from mlic_jax.scores.files import Scores

SIZE = 64
VOID = {"meta", "img", "input", "br", "link"}


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children = []

    def walk(self):
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def find(self, tag, **attributes):
        return [
            e
            for e in self.walk()
            if e.tag == tag
            and all(a in e.attributes.get(k.strip("_"), "").split() for k, a in attributes.items())
        ]

    @property
    def text(self):
        parts = (child.text if isinstance(child, Element) else child for child in self.children)
        return " ".join(" ".join(parts).split())


class Page(HTMLParser):
    """The tree of a page; fails on a tag that does not close the one that is open."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.root = self.open = Element("", {}, None)
        self.feed(self.source)
        self.close()
        assert self.open is self.root, f"<{self.open.tag}> is never closed"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.open)
        self.open.children.append(element)
        if tag not in VOID:
            self.open = element

    def handle_startendtag(self, tag, attrs):
        self.open.children.append(Element(tag, dict(attrs), self.open))

    def handle_endtag(self, tag):
        assert tag == self.open.tag, f"</{tag}> closes <{self.open.tag}>"
        self.open = self.open.parent

    def handle_data(self, data):
        self.open.children.append(data)


def make_scores(num_images=30, num_classes=12, top_n=4, names=None, seed=0):
    rng = np.random.default_rng(seed)
    shape = (num_images, num_classes)
    labels = rng.choice([-1, 0, 1], size=shape, p=[0.65, 0.05, 0.3]).astype(np.int8)
    labels[0] = 1
    logits_global = (rng.normal(size=shape) + labels).astype(np.float32)
    logits_local = (rng.normal(size=shape) + labels).astype(np.float32)
    corner = rng.integers(0, SIZE - 16, (num_images, top_n, 2))
    size = rng.integers(8, 17, (num_images, top_n, 2))
    return Scores(
        logits=np.maximum(logits_global, logits_local),
        global_logits=logits_global,
        local_logits=logits_local,
        boxes=np.concatenate([corner, corner + size], axis=-1).astype(np.int32),
        box_classes=np.argsort(-logits_global, axis=1)[:, :top_n].astype(np.int32),
        labels=labels,
        image_ids=np.array([f"photo{i:03}" for i in range(num_images)]),
        class_names=np.array(names or [f"class{c}" for c in range(num_classes)]),
        set_name="toys",
        split="test",
        image_size=SIZE,
    )


def image_at(i):
    """A smooth image that differs from every other one, and that JPEG keeps nearly as it is."""
    ramp = np.linspace(0, 200, SIZE)
    return np.stack(np.broadcast_arrays(ramp, ramp[:, None], 8 * i % 256), -1).astype(np.uint8)


def write(folder, scores, protocol="mcar", **options):
    metrics = evaluate_scores(
        scores.logits, scores.labels, protocol, class_names=scores.class_names
    )
    options = {"image_at": image_at, "title": "a run"} | options
    return evaluation_page.write_report(folder, scores, metrics, **options), metrics


def open_page(folder, scores, **options):
    return Page(write(folder, scores, **options)[0]).root


def number(figure):
    """Of the image that a figure shows."""
    return int(figure.find("p", class_="identity")[0].text.removeprefix("photo").split()[0])


def figures(page):
    return {figure.find("p", class_="identity")[0].text: figure for figure in page.find("figure")}


@pytest.fixture(scope="module")
def scores():
    return make_scores()


@pytest.fixture(scope="module")
def train_log(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = [{"step": k, "epoch": k / 10, "loss": 2 / (k + 1)} for k in range(0, 100, 2)]
    lines += [{"step": 50, "val/mAP": 41.0, "val/global_mAP": 35.0}]
    lines += [{"step": 100, "val/mAP": 57.0, "val/global_mAP": 49.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def objects_at(i):
    x = 28 if i % 2 else 8
    return np.array([[4, x, 20, x + 32], [0, 0, SIZE, SIZE]]), np.array([i % 12, 3])


@pytest.fixture(scope="module")
def page_path(tmp_path_factory, scores, train_log):
    folder = tmp_path_factory.mktemp("page")
    options = {"train_log": train_log, "summary": {"backbone": "resnet50"}}
    path, _ = write(folder, scores, objects_at=objects_at, **options)
    assert path == folder / "report" / "index.html"
    return path


@pytest.fixture(scope="module")
def page(page_path):
    return Page(page_path).root


# --- the page as a whole


def test_page_is_one_file_that_loads_nothing(page, page_path):
    assert [p.name for p in page_path.parent.iterdir()] == ["index.html"]
    for element in page.walk():
        assert element.tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href", "srcset"):
            assert element.attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    assert "@import" not in page_path.read_text()
    assert "url(" not in page.find("style")[0].text


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = Counter(e.attributes["id"] for e in page.walk() if "id" in e.attributes)
    assert max(ids.values()) == 1
    for element in page.walk():
        for name, value in element.attributes.items():
            if name in ("href", "xlink:href") and value.startswith("#"):
                assert value[1:] in ids
            if value and value.startswith("url(#"):
                assert value[5:-1] in ids


def test_page_says_what_a_screen_reader_and_a_phone_need(page):
    assert page.find("html")[0].attributes["lang"] == "en"
    viewport = [m for m in page.find("meta") if m.attributes.get("name") == "viewport"]
    assert "width=device-width" in viewport[0].attributes["content"]
    assert all(image.attributes["alt"].startswith("Image photo") for image in page.find("img"))
    assert all(
        svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden") == "true"
        for svg in page.find("svg")
    )
    assert len(page.find("h1")) == 1


def test_placeholder_colours_became_the_colours_of_the_page(page_path):
    source = page_path.read_text()
    assert not any(colour in source for colour in charts._VARIABLES.values())
    for variable in charts._VARIABLES:
        assert source.count(f"--{variable}: ") == 2, "once for the light theme, once for the dark"
        assert f"var(--{variable})" in source


def test_same_input_gives_the_same_bytes(tmp_path, scores, train_log, page_path):
    options = {"train_log": train_log, "summary": {"backbone": "resnet50"}}
    again, _ = write(tmp_path, scores, objects_at=objects_at, **options)
    assert again.read_bytes() == page_path.read_bytes()


def test_there_is_no_switch_for_boxes_that_there_are_not(tmp_path, scores, page_path):
    none = np.zeros((0, 4)), np.zeros(0, int)
    without, _ = write(tmp_path, scores, objects_at=lambda i: none)
    switches = ["True boxes" in path.read_text() for path in (page_path, without)]
    assert switches == [True, False]


# --- numbers


def test_headline_holds_the_figures(page, scores):
    metrics = evaluate_scores(scores.logits, scores.labels)
    alone = np.mean(average_precision(scores.global_logits, scores.labels))
    text = page.find("dl", class_="headline")[0].text
    for name, value in (
        ("Final mAP", metrics["mAP"]),
        ("Global stream mAP", alone),
        ("Chance", metrics["chance"]),
        ("OF1", metrics["OF1"]),
        ("CF1", metrics["CF1"]),
    ):
        assert f"{name} {value:.1f}" in text
    assert f"the second look: {metrics['mAP'] - alone:+.1f}" in text
    assert "30 images, 12 classes" in page.text
    assert page.find("title")[0].text == f"a run: {metrics['mAP']:.1f} mAP on toys test"
    assert "backbone resnet50" in page.text
    assert "Frequent mAP" not in page.text


def test_frequent_classes_are_shown_where_they_are_measured(tmp_path, scores):
    frequent = np.arange(12) < 5
    metrics = evaluate_scores(scores.logits, scores.labels, frequent=frequent)
    page = Page(evaluation_page.write_report(tmp_path, scores, metrics, image_at, title="run")).root
    expected = f"Frequent mAP {metrics['mAP_frequent']:.1f} over 5 frequent classes"
    assert expected in page.text


def test_equal_scores_are_said_where_they_decide(tmp_path, page, scores):
    assert "Equal scores" not in page.text
    constant = dataclasses.replace(scores, logits=np.zeros_like(scores.logits))
    path, metrics = write(tmp_path, constant)
    worst, best = metrics["tied"]["mAP"]
    assert worst < metrics["mAP"] < best
    expected = f"Equal scores: by the order of such images mAP is {worst:.1f} to {best:.1f}; it"
    assert expected in Page(path).root.text


def test_tables_hold_the_figures(page, scores):
    metrics = evaluate_scores(scores.logits, scores.labels)
    by_labels, by_class = page.find("table")
    rows = [
        [cell.text for cell in row.children if isinstance(cell, Element)]
        for row in by_labels.find("tr")
    ]
    for row, suffix in zip(rows[1:], ("", "_3"), strict=True):
        assert row[1:] == [
            f"{metrics[name.replace(' ', '_') + suffix]:.1f}" for name in rows[0][1:]
        ]
    ap = [
        average_precision(logits, scores.labels)
        for logits in (scores.global_logits, scores.local_logits, scores.logits)
    ]
    for c, row in enumerate(by_class.find("tr")[1:]):
        positives = (scores.labels[:, c] > 0).sum()
        expected = f"class{c} {positives} " + " ".join(f"{values[c]:.1f}" for values in ap)
        assert row.text == expected


def test_a_swept_threshold_stands_beside_the_fixed_one_under_its_name(tmp_path, page, scores):
    path, metrics = write(tmp_path, scores, "msrn")
    section = Page(path).root.find("section", **{"aria-labelledby": "metrics"})[0]
    header, fixed, _, swept = (
        [cell.text for cell in row.walk() if cell.tag in ("th", "td")]
        for row in section.find("table")[0].find("tr")
    )
    names = [name.replace(" ", "_") for name in header[1:]]
    assert names == ["CP", "CR", "CF1", "CF1_macro", "OP", "OR", "OF1"]
    assert fixed == ["All", *(f"{metrics[name]:.1f}" for name in names)]
    assert swept == ["Swept", *(f"{metrics['swept'][name]:.1f}" for name in names)]
    assert fixed[1:] != swept[1:]
    at = f"logit of {metrics['swept']['threshold']:.2f}"
    assert at in section.text
    assert "swept on the evaluated scores; not comparable with a fixed threshold" in section.text
    assert "wept" not in page.text


def test_ranking_metrics_are_shown_where_the_protocol_has_them(tmp_path, page, scores):
    path, metrics = write(tmp_path, scores, "msrn")
    text = Page(path).root.find("section", **{"aria-labelledby": "metrics"})[0].text
    assert f"Coverage error {metrics['coverage_error']:.2f} labels" in text
    assert f"Label ranking AP {metrics['label_ranking_average_precision']:.1f};" in text
    assert f"Ranking loss {metrics['ranking_loss']:.1f}% of" in text
    assert "Coverage error" not in page.text


def test_the_kind_of_f1_and_ap_is_the_protocols(tmp_path, scores):
    path, metrics = write(tmp_path, scores, "asl")
    headline = Page(path).root.find("dl", class_="headline")[0].text
    assert f"CF1 macro {metrics['CF1_macro']:.1f} mean of the F1 of the classes" in headline
    path, metrics = write(tmp_path, scores, "voc2007")
    page = Page(path).root
    by_class = page.find("table")[1].find("tr")[1:]
    shown = [row.find("td")[-1].text for row in by_class]
    assert shown == [f"{ap:.1f}" for ap in metrics["AP"]]
    alone = np.mean(average_precision(scores.global_logits, scores.labels, "voc11"))
    assert f"Global stream mAP {alone:.1f}" in page.text


def test_unknown_labels_count_as_the_metrics_say(tmp_path, scores):
    metrics = evaluate_scores(scores.logits, scores.labels, label_policy="as_positive")
    page = Page(evaluation_page.write_report(tmp_path, scores, metrics, image_at, title="run")).root
    alone = np.mean(average_precision(scores.global_logits, np.where(scores.labels < 0, -1, 1)))
    assert f"Global stream mAP {alone:.1f}" in page.text


def test_chart_of_classes_is_ranked_and_complete(page, scores):
    ap = average_precision(scores.logits, scores.labels)
    charts = page.find("div", class_="bars")[0].find("svg")
    assert len(charts) == 3  # twelve classes, five at most in each
    texts = [text.text for chart in charts for text in chart.find("text")]
    names = [text for text in texts if text.startswith("class")]
    assert names == [f"class{c}" for c in np.argsort(-ap, kind="stable")]
    assert all(f"{value:.1f}" in texts for value in ap)


# --- training curves


def test_curves_of_the_training_are_shown(page):
    titles = [svg.attributes["aria-label"] for svg in page.find("svg", role="img")]
    assert "Training loss, 2.000 at first and 0.020 at last." in titles
    assert "Validation mAP: highest 57.0, last 57.0." in titles
    assert "No training log" not in page.text


@pytest.mark.parametrize("log", [None, "absent.jsonl", "empty.jsonl"])
def test_page_without_a_training_log(tmp_path, scores, log):
    (tmp_path / "empty.jsonl").touch()
    page = open_page(tmp_path, scores, train_log=log and tmp_path / log)
    assert "No training log" in page.text
    assert len(page.find("div", class_="charts")[-1].find("svg")) == 1


def test_training_log_of_a_killed_run_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 2.5, "note": "x"}', '{"step": 2, "loss": NaN}', "[1]", "", "{}"]
    lines += ['{"step": 3, "loss": 1, "val/mAP": 40.5, "ok": true}', '{"step": 4, "lo']
    lines += ["[" * 100_000, '{"step": 1%s}' % ("0" * 400), '{"step": 1%s}' % ("0" * 5000)]
    path.write_text("\n".join(lines))
    log = evaluation_page.read_train_log(path)
    assert {name: [list(v) for v in curve] for name, curve in log.items()} == {
        "step": [[1, 2, 3], [1, 2, 3]],
        "loss": [[1, 3], [2.5, 1]],
        "val/mAP": [[3], [40.5]],
    }


# --- label graph


def label_graph(assignment, class_counts=20):
    """Twelve labels; of all of them only 0, 1 and 3 occur with 2."""
    counts = np.zeros((12, 12), np.float32)
    counts[0, 2], counts[1, 2], counts[2, 3] = 9, 16, 12
    class_counts = np.full(12, class_counts, np.float32)
    return LabelGraph(np.maximum(counts, counts.T), class_counts, np.array(assignment))


def graph_section(folder, graph):
    page = open_page(folder, make_scores(), label_graph=graph)
    return page.find("section", **{"aria-labelledby": "labels"})[0]


@pytest.fixture(scope="module")
def half_and_half(tmp_path_factory):
    """The section of a graph whose labels fall into the first and the third of three groups."""
    graph = label_graph([[0.9, 0.1, 0]] * 6 + [[0.2, 0.2, 0.6]] * 6)
    return graph_section(tmp_path_factory.mktemp("graph"), graph)


def test_label_graph_is_drawn_with_every_label_and_edge(half_and_half):
    (svg,) = half_and_half.find("svg")
    assert "12 labels, 6 edges" in svg.attributes["aria-label"]
    nodes = [g for g in svg.find("g") if "data-label" in g.attributes]
    assert [g.find("text")[0].text for g in nodes] == [f"class{c}" for c in range(12)]
    assert nodes[3].find("title")[0].text == "class3: 20 images"
    colours = [g.find("circle")[0].attributes["fill"] for g in nodes]
    assert colours == [REGION_COLOURS[0]] * 6 + [REGION_COLOURS[2]] * 6
    edges = svg.find("g", class_="edge")
    drawn = {(e.attributes["data-source"], e.attributes["data-target"]) for e in edges}
    assert drawn == {("0", "2"), ("2", "0"), ("1", "2"), ("2", "1"), ("2", "3"), ("3", "2")}
    assert edges[-1].find("title")[0].text.endswith(": 0.80")


def test_an_arrow_is_explained_in_words(half_and_half):
    text = half_and_half.text
    assert "40% of the images with the first also show the second" in text
    assert "the second then attends to the first" in text


def test_edges_are_listed_by_strength_and_labels_without_one_by_name(half_and_half):
    rows = [row.text for row in half_and_half.find("table")[0].find("tr")]
    assert rows[0] == "First Second P Images"
    assert rows[1] == "class1 class2 0.80 16 of 20" and rows[3] == "class2 class3 0.60 12 of 20"
    alone = ", ".join(f"class{c}" for c in range(4, 12))
    assert f"12 labels, 6 edges. 8 without any edge: {alone}." in half_and_half.text


def test_only_the_strongest_edges_are_listed(tmp_path):
    counts = np.full((12, 12), 15, np.float32)
    graph = LabelGraph(counts, np.full(12, 20, np.float32), np.ones((12, 1)))
    section = graph_section(tmp_path, graph)
    assert "12 labels, 132 edges; above, the strongest 12. No label is without an edge" in (
        section.text
    )
    assert len(section.find("tr")) == 13
    assert "The network has one group, which all labels share" in section.text


def test_groups_hold_their_labels_and_shares(half_and_half):
    assert "2 of 3 groups are the likeliest of some label" in half_and_half.text
    assert "share in a group is 0.75 on average; 0.33 would be no preference" in half_and_half.text
    first, third = half_and_half.find("div", class_="groups")[0].find("div", class_="card")
    assert first.text == "Group 1, 6 labels " + " ".join(f"class{c} 0.90" for c in range(6))
    assert third.text == "Group 3, 6 labels " + " ".join(f"class{c} 0.60" for c in range(6, 12))
    assert "collapsed" not in half_and_half.text


def test_a_collapsed_assignment_is_called_one(tmp_path):
    section = graph_section(tmp_path, label_graph([[0.3, 0.7]] * 12, class_counts=1000))
    assert (
        "All 12 labels most belong to the same one of 2 groups: the assignment has collapsed"
    ) in section.text
    assert "12 labels, 0 edges. So every label attends to itself alone." in section.text
    assert section.find("table") == []


def test_page_of_a_label_graph_is_sound(tmp_path):
    names = [f"<b>label {c}" for c in range(12)]
    graph = label_graph(np.eye(12))  # more groups than colours
    path, _ = write(tmp_path, make_scores(names=names), label_graph=graph)
    page = Page(path).root
    test_page_is_one_file_that_loads_nothing(page, path)
    test_ids_are_unique_and_every_reference_has_its_target(page)
    test_page_says_what_a_screen_reader_and_a_phone_need(page)
    assert page.find("section", **{"aria-labelledby": "labels"})[0].find("b") == []
    assert any(e.attributes["href"] == "#labels" for e in page.find("nav")[0].find("a"))


def test_page_without_a_label_graph_says_nothing_of_one(page):
    assert page.find("section", **{"aria-labelledby": "labels"}) == []
    assert not any(e.attributes["href"] == "#labels" for e in page.find("nav")[0].find("a"))


# --- gallery


def test_gallery_chooses_the_easy_the_hard_and_a_sample():
    scores = make_scores(num_images=200)
    scores.labels[7] = -1
    scores.logits[7] = -20  # the lowest loss of all, but there is nothing to see
    (easy, best), (hard, worst), (rest, sample) = evaluation_page.choose_images(scores)
    assert (easy, hard, rest) == ("Lowest loss", "Highest loss", "At random")
    assert len(best) == len(worst) == len(sample) == 8
    assert len({*best, *worst, *sample}) == 24
    assert 7 not in best
    p = 1 / (1 + np.exp(-scores.logits.astype(np.float64)))
    entropy = -np.log(np.where(scores.labels > 0, p, 1 - p))
    loss = np.array(
        [row[known].mean() for row, known in zip(entropy, scores.labels != 0, strict=True)]
    )
    loss[7] = loss[0]
    assert loss[best].max() <= np.sort(loss)[8] and np.argmin(loss) == best[0]
    assert loss[worst].min() >= np.sort(loss)[-8] and np.argmax(loss) == worst[0]


@pytest.mark.parametrize("num_images", [1, 2, 5, 23, 24])
def test_small_split_is_shown_whole(num_images):
    groups = evaluation_page.choose_images(make_scores(num_images=num_images))
    shown = np.concatenate([chosen for _, chosen in groups])
    assert sorted(shown) == list(range(num_images))
    assert all(len(chosen) for _, chosen in groups)


def test_each_picture_shows_its_own_image_and_regions(page, scores):
    shown = figures(page)
    assert len(shown) == len(page.find("figure")) == evaluation_page.GALLERY_SIZE
    for image_id, figure in shown.items():
        i = int(image_id.removeprefix("photo"))
        (image,) = figure.find("img")
        pixels = Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].split(",")[1])))
        assert pixels.size == (SIZE, SIZE)
        difference = np.asarray(pixels).astype(int) - image_at(i)
        assert abs(difference).mean() < 3
        drawing = figure.find("g", class_="regions")[0]
        assert drawing.parent.attributes["viewbox"] == f"0 0 {SIZE} {SIZE}"
        entries = figure.find("ol")[0].find("li")
        assert len(entries) == scores.boxes.shape[1]
        colours = set()
        for k, entry in enumerate(entries):
            c = scores.box_classes[i, k]
            first, final = (
                1 / (1 + np.exp(-float(logits[i, c])))
                for logits in (scores.global_logits, scores.logits)
            )
            assert entry.text == f"{k + 1} class{c} {first:.2f} / {final:.2f}"
            outline, badge = (
                g for g in drawing.find("g") if g.attributes.get("data-region") == str(k + 1)
            )
            for rectangle in outline.find("rect"):
                x, y, width, height = (
                    int(rectangle.attributes[name]) for name in ("x", "y", "width", "height")
                )
                assert [y, x, y + height, x + width] == scores.boxes[i, k].tolist()
            assert badge.text == str(k + 1)
            colour = outline.find("rect")[1].attributes["stroke"]
            assert colour in entry.find("span", class_="number")[0].attributes["style"]
            colours.add(colour)
        assert len(colours) == len(entries)


def test_regions_of_what_the_whole_image_hardly_shows_are_not_drawn(tmp_path):
    """As in the demo that MCAR was released with: above 0.1, and not at it."""
    scores = make_scores(num_images=1, top_n=3)
    for k, probability in enumerate((0.1, 0.100002, 0.05)):
        scores.global_logits[0, scores.box_classes[0, k]] = np.log(probability / (1 - probability))
    page = open_page(tmp_path, scores)
    (figure,) = page.find("figure")
    (entry,) = figure.find("ol")[0].find("li")
    assert entry.attributes["data-region"] == "2"
    drawn = [g.attributes.get("data-region") for g in figure.find("g")]
    assert drawn.count("2") == 2 and not {"1", "3"} & set(drawn)  # the outline and the badge
    assert "whose class has a global probability above 0.1" in page.text


def test_labels_are_marked_by_word_and_sign_and_not_by_colour_alone(page, scores):
    threshold = np.log(0.6 / 0.4)
    meant = {
        "✓ Found:": (1, True),
        "○ Missed:": (1, False),
        "✕ Wrongly predicted:": (-1, True),
        "? Predicted, truth unknown:": (0, True),
    }
    seen = Counter()
    for image_id, figure in figures(page).items():
        i = int(image_id.removeprefix("photo"))
        expected = {
            f"{words} class{c} {1 / (1 + np.exp(-float(scores.logits[i, c]))):.2f}"
            for words, (label, predicted) in meant.items()
            for c in range(12)
            if scores.labels[i, c] == label and (scores.logits[i, c] >= threshold) == predicted
        }
        labels = figure.find("div", class_="labels")[0].find("span", class_="label")
        assert {label.text for label in labels} == expected
        seen.update(label.attributes["class"] for label in labels)
    assert set(seen) == {"label hit", "label missed", "label wrong", "label unknown"}


@pytest.mark.parametrize(("steps", "marks"), [([3], 1), ([3, 4], 0)])
def test_a_loss_that_was_logged_once_is_a_mark(steps, marks):
    chart = charts.draw_loss(np.array(steps), np.linspace(2.0, 1.0, len(steps)))
    drawn, _ = chart.split('id="loss-legend_1"')
    assert len(re.findall(r"<use [^>]*fill: var\(--final\)", drawn)) == marks


def test_long_names_of_classes_are_cut_to_the_room_beside_the_bars():
    names = ["Neutrophil (segmented), mature", "W" * 20, "猫" * 20]
    (chart,) = charts.draw_average_precision(names, np.array([50.0, 40.0, 30.0]))
    drawn = re.findall(r"<!-- (.*…) -->", chart)
    assert [name[0] for name in drawn] == ["N", "W", "猫"]
    axis = float(re.search(r'<use [^>]*x="([\d.]+)"', chart)[1])  # points, as the font's 9.5
    assert all(9.5 * text_width(name) < axis for name in drawn)


def test_true_boxes_are_there_on_demand(page, tmp_path, scores):
    for image_id, figure in figures(page).items():
        i = int(image_id.removeprefix("photo"))
        objects = figure.find("g", class_="objects")[0]
        assert [t.text for t in objects.find("text")] == [f"class{i % 12}", "class3"]
        # Of the colour of the region of that class, or of one that no region of the photo has.
        colours = class_colours([*scores.box_classes[i].tolist(), i % 12, 3])
        drawn = [e.attributes["fill"] for e in objects.find("text")]
        assert drawn == [colours[i % 12], colours[3]]
        outlines = [e.attributes.get("stroke") for e in objects.find("rect")]
        assert outlines == [None, drawn[0], None, drawn[1]]
        # The box in the upper left has its name at its left edge; one on the right ends there.
        anchors = [e.attributes["text-anchor"] for e in objects.find("text")]
        assert anchors == (["end", "start"] if i % 2 else ["start", "start"])
        first = objects.find("rect")[1].attributes
        x = "28" if i % 2 else "8"
        assert [first[name] for name in ("x", "y", "width", "height")] == [x, "4", "32", "16"]
    (switch,) = (e for e in page.find("input") if e.attributes["id"] == "show-objects")
    assert "checked" not in switch.attributes
    without = open_page(tmp_path, scores)
    assert not [e for e in without.find("input") if e.attributes["id"] == "show-objects"]


def test_number_of_a_tiny_region_stays_inside_the_image(tmp_path):
    scores = make_scores(num_images=1)
    low, high = (0, 2), (SIZE - 2, SIZE)
    corners = [(y1, x1, y2, x2) for y1, y2 in (low, high) for x1, x2 in (low, high)]
    # Every order, so that every number stands in every corner of the image.
    for shift in range(4):
        boxes = np.roll(corners, shift, axis=0)[None].astype(np.int32)
        page = open_page(tmp_path, dataclasses.replace(scores, boxes=boxes))
        badges = [g for g in page.find("g", class_="regions")[0].find("g") if g.find("text")]
        for badge in badges[-4:]:
            x, y, side = (float(badge.find("rect")[0].attributes[k]) for k in ("x", "y", "width"))
            assert min(x, y) >= 0 and max(x, y) + side <= SIZE


# --- unusual input


def test_names_from_outside_are_escaped_everywhere(tmp_path):
    names = ["<b>&x", "a'\"><img src=x>", "$x$_^", "猫", 'id="#010101', "n" * 60]
    scores = dataclasses.replace(
        make_scores(num_classes=6, names=names),
        image_ids=np.array([f"<i>{i}" for i in range(30)]),
        set_name="<u>set",
    )
    path, _ = write(tmp_path, scores, title="<s>run", summary={"<q>": "<tt>"})
    page = Page(path).root
    injected = [*page.find("u"), *page.find("s"), *page.find("q"), *page.find("tt")]
    injected += [e for e in page.find("b") if "aria-hidden" not in e.attributes]
    injected += [e for e in page.find("i") if "class" not in e.attributes]
    assert injected == []
    assert len(page.find("img")) == evaluation_page.GALLERY_SIZE
    assert [row.find("th")[0].text for row in page.find("table")[1].find("tr")[1:]] == names
    drawn = {text.text for text in page.find("div", class_="bars")[0].find("text")}
    assert drawn >= {"<b>&x", "a'\"><img src=x>", "$x$_^", "猫", 'id="#010101', "n" * 14 + "…"}
    assert {figure.split(">")[0] for figure in figures(page)} == {"<i"}


@pytest.mark.parametrize(
    "num_images, num_classes, top_n", [(30, 12, 1), (40, 80, 4), (30, 9, 9), (1, 1, 1), (2, 2, 2)]
)
def test_any_number_of_images_classes_and_regions(tmp_path, num_images, num_classes, top_n):
    scores = make_scores(num_images, num_classes, top_n)
    page = open_page(tmp_path, scores)
    shown = page.find("figure")
    assert len(shown) == min(num_images, evaluation_page.GALLERY_SIZE)
    listed = [len(figure.find("ol")[0].find("li")) for figure in shown]
    of_regions = np.take_along_axis(scores.global_logits, scores.box_classes, axis=1)
    likely = 1 / (1 + np.exp(-of_regions)) > LEAST_GLOBAL
    assert sorted(listed) == sorted(likely[i].sum() for i in map(number, shown))
    assert max(listed) == top_n
    names = [t.text for t in page.find("div", class_="bars")[0].find("text")]
    assert sorted(n for n in names if n.startswith("class")) == sorted(scores.class_names)


def test_classes_without_positives_are_named_and_left_out(tmp_path):
    scores = make_scores()
    scores.labels[:, [2, 5]] = -1
    page = open_page(tmp_path, scores)
    assert "no part in class means: class2, class5." in page.text
    names = [t.text for t in page.find("div", class_="bars")[0].find("text")]
    assert len([n for n in names if n.startswith("class")]) == 10
    assert page.find("table")[1].find("tr")[3].text == "class2 0 n/a n/a n/a"


# --- atomic


def test_failure_midway_leaves_the_old_page(tmp_path, scores):
    path, _ = write(tmp_path, scores)
    before = path.read_bytes()
    calls = []

    def broken(i):
        calls.append(i)
        if len(calls) == 5:
            raise OSError("the photo has gone")
        return image_at(i)

    with pytest.raises(OSError, match="the photo has gone"):
        write(tmp_path, scores, image_at=broken, title="another")
    assert path.read_bytes() == before
    (path.parent / ".index.html.partial").mkdir()  # so that the writing itself fails
    with pytest.raises(IsADirectoryError):
        write(tmp_path, scores, title="another")
    assert path.read_bytes() == before


def test_new_page_replaces_the_old_one(tmp_path, scores):
    path, _ = write(tmp_path, scores)
    assert write(tmp_path, scores, title="another")[0] == path
    assert Page(path).root.find("h1")[0].text == "another"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_long_curve_is_thinned_evenly_along_its_recall():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(20000) < 0.1, 1, -1).astype(np.int8)
    scores = rng.normal(size=20000) + 2 * (labels > 0)
    recall, precision = charts._curve(scores, labels)
    assert 900 < len(recall) <= 1000
    assert (recall[0], recall[-1]) == (0, 1) and np.diff(recall).max() < 0.002
    for r, p in zip(recall[1:], precision[1:], strict=True):
        cutoff = np.sort(scores[labels > 0])[::-1][round(r * (labels > 0).sum()) - 1]
        assert p == pytest.approx((labels[scores >= cutoff] > 0).mean())
