"""A folder of photos in, a table, lines, annotated photos and a page out, whole and readable."""

import csv
import html.parser
import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlic_jax.checkpoint import save_weights
from mlic_jax.data.scenes import render
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models.regions import interpolation_matrix
from mlic_jax.operating_point import OperatingPoint
from mlic_jax.predict import Predictor
from mlic_jax.predict_files import (
    MAP_SIDE,
    annotated_names,
    find_images,
    heat_map,
    predict_files,
    render_page,
)

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = {"annotated", "gallery", "index.html", "predictions.csv", "predictions.jsonl"}
ODD_NAME = "a & b <i>50% #1\"'.png"


@pytest.fixture(scope="module")
def checkpoint(make_config, fresh_run, tmp_path_factory):
    """Of a run that did no step; its operating point makes about half of all labels present."""
    variables, metadata = fresh_run(make_config())
    folder = tmp_path_factory.mktemp("checkpoint") / "weights"
    point = OperatingPoint(
        temperature=1.0,
        thresholds=(0.5,) * 12,
        rule="a half",
        set_name="toy",
        split="val",
        images=9,
        error_before=5.0,
        error_after=5.0,
    )
    save_weights(folder, variables, metadata | {"operating_point": point.to_dict()})
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of five photos in three folders, two files that are none, and one that is hidden."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "inner" / "most").mkdir(parents=True)
    scenes = [render(0, "test", i).image for i in range(4)]
    (folder / "a.jpg").write_bytes(scenes[0])
    (folder / "inner" / "a.jpg").write_bytes(scenes[1])
    (folder / "inner" / "most" / "B.JPEG").write_bytes(scenes[2])
    (folder / "inner" / "cut.jpg").write_bytes(scenes[2][:2000])
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden.jpg").write_bytes(scenes[3])
    Image.open(folder / "a.jpg").convert("L").save(folder / ODD_NAME)
    upright = Image.open(folder / "inner" / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    return folder


NAMES = [ODD_NAME, "a.jpg", "inner/a.jpg", "inner/cut.jpg", "inner/most/B.JPEG", "turned.png"]


@pytest.fixture(scope="module")
def predicted(checkpoint, photos, tmp_path_factory):
    """The outputs for that folder, and what the failure at the end says."""
    out = tmp_path_factory.mktemp("out") / "predictions"
    with pytest.raises(Failure) as error:
        predict_files(checkpoint, str(photos), out)
    return out, str(error.value)


def table(out):
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines(out):
    text = (out / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class Page(html.parser.HTMLParser):
    """The links, the image descriptions and the text of a page; every element must be closed."""

    def __init__(self, path):
        super().__init__()
        self.links, self.alts, self.text, self.open, self.labels = [], [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self.alts += [attributes["alt"]] if attributes.get("alt") else []
        self.labels += (
            [json.loads(attributes["data-labels"])] if "data-labels" in attributes else []
        )
        if tag not in ("img", "meta", "input", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_table_and_lines_say_what_the_predictor_says(predicted, checkpoint, photos):
    out, _ = predicted
    assert {entry.name for entry in out.iterdir()} == ENTRIES
    rows, records = table(out), lines(out)
    assert [row["file"] for row in rows] == [record["file"] for record in records] == NAMES
    predictions = Predictor.from_checkpoint(checkpoint)([photos / name for name in NAMES])
    for row, record, prediction in zip(rows, records, predictions, strict=True):
        assert (row["error"] or None) == record["error"] == prediction.error
        assert row["labels"] == ";".join(prediction.labels)
        assert record["labels"] == list(prediction.labels)
        assert record["scores"] == pytest.approx(prediction.scores, abs=2e-6)
        assert (record["width"], record["height"]) == (prediction.width, prediction.height)
        columns = list(row)[3:]
        assert columns == list(predictions[0].scores)
        if prediction.error is None:
            scores = {name: float(row[name]) for name in columns}
            assert scores == pytest.approx(prediction.scores, abs=2e-6)
        else:
            assert {row[name] for name in columns} == {""}
        for got, want in zip(record["regions"], prediction.regions, strict=True):
            assert got["class"] == want.class_name
            assert tuple(got["box"][edge] for edge in ("y1", "x1", "y2", "x2")) == want.box
            assert got["global"] == pytest.approx(want.global_probability, abs=2e-6)
            assert got["local"] == pytest.approx(want.local_probability, abs=2e-6)
    assert any(prediction.labels for prediction in predictions)


def test_a_photo_that_cannot_be_read_is_listed_everywhere(predicted):
    out, message = predicted
    assert message.startswith("1 of 6 images could not be read: inner/cut.jpg")
    (row,) = (row for row in table(out) if row["file"] == "inner/cut.jpg")
    assert "truncated" in row["error"]
    page = Page(out / "index.html")
    assert "1 could not be read" in page.text
    assert row["error"] in page.text
    assert not (out / "annotated" / "inner" / "cut.jpg").exists()


def test_annotated_photos_have_the_names_and_sizes_of_the_photos(predicted):
    out, _ = predicted
    found = {str(path.relative_to(out / "annotated")) for path in (out / "annotated").rglob("*.*")}
    assert found == {
        f"{ODD_NAME}.jpg",
        "a.jpg",
        "inner/a.jpg",
        "inner/most/B.JPEG",
        "turned.png.jpg",
    }
    for record in lines(out):
        if record["error"] is None:
            name = record["file"]
            name = name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg"
            with Image.open(out / "annotated" / name) as image:
                assert image.format == "JPEG"
                assert max(image.size) == 480  # scenes are small and were enlarged
                ratio = record["width"] / record["height"]
                assert image.width / image.height == pytest.approx(ratio, rel=0.01)


def test_a_turned_photo_has_regions_where_they_are_seen(predicted):
    records = {record["file"]: record for record in lines(predicted[0])}
    turned, upright = records["turned.png"], records["inner/a.jpg"]
    assert (turned["width"], turned["height"]) == (upright["width"], upright["height"])
    assert turned["regions"] == upright["regions"]
    assert turned["labels"] == upright["labels"]
    assert len(turned["regions"]) == 2


def test_the_page_shows_every_photo_and_loads_only_what_lies_beside_it(predicted):
    out, _ = predicted
    page, records = Page(out / "index.html"), lines(out)
    good = [record for record in records if record["error"] is None]
    assert page.labels == [record["labels"] for record in good]
    for link in page.links:
        assert (out / urllib.parse.unquote(link)).is_file(), link
    linked = {urllib.parse.unquote(link) for link in page.links}
    beside = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert beside - linked == {"index.html", "predictions.csv", "predictions.jsonl"}
    assert "5 photos" in page.text
    assert ODD_NAME in page.text
    assert "a half" in page.text  # what the thresholds are
    for record in good:
        assert any(alt.startswith(f"{record['file']}: ") for alt in page.alts)
    assert page.text.count("at its peak") == 2 * len(good)
    source = (out / "index.html").read_text(encoding="utf-8")
    assert source.count("<img") == source.count('<img loading="lazy"') > 0


def test_predictions_are_replaced_and_nothing_else_is(predicted, checkpoint, photos, tmp_path):
    """One photo where there were five; and a folder of something else is left as it is."""
    out = tmp_path / "photos" / "predictions"
    out.parent.mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes((photos / "a.jpg").read_bytes())
    predicted[0].rename(out)
    try:
        (out / "mine.txt").write_text("keep")
        predict_files(checkpoint, str(tmp_path / "photos"), out)
        assert [row["file"] for row in table(out)] == ["a.jpg"]  # not those in `out`
        assert [path.name for path in (out / "annotated").iterdir()] == ["a.jpg"]
        assert len(list((out / "gallery").iterdir())) == 3  # a photo and two maps
        assert {entry.name for entry in out.iterdir()} == {*ENTRIES, "mine.txt"}

        before = (out / "predictions.csv").read_bytes()
        with pytest.raises(UsageError, match="holds a backbone alone"):
            save_weights(tmp_path / "trunk", {"params": {"a": np.ones(1)}}, {"arch": "resnet50"})
            predict_files(tmp_path / "trunk", str(tmp_path / "photos"), out)
        assert (out / "predictions.csv").read_bytes() == before
    finally:
        out.rename(predicted[0])


def test_what_a_killed_run_left_is_in_nobodys_way(checkpoint, photos, tmp_path):
    (tmp_path / "out" / ".partial" / "annotated").mkdir(parents=True)
    (tmp_path / "out" / ".partial" / "annotated" / "old.jpg").touch()
    predict_files(checkpoint, str(photos / "a.jpg"), tmp_path / "out")
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == ENTRIES
    assert [path.name for path in (tmp_path / "out" / "annotated").iterdir()] == ["a.jpg"]


def test_the_page_of_a_model_without_regions(checkpoint, tmp_path):
    picture = {
        "file": "a.jpg",
        "error": None,
        "photo": "gallery/000000.jpg",
        "annotated": "annotated/a.jpg",
        "width": 30,
        "height": 20,
        "labels": (),
        "bars": [("red star", 0.2, 0.5)],
        "regions": [],
    }
    page = render_page(Predictor.from_checkpoint(checkpoint, flip=True), [picture], "run")
    (tmp_path / "page.html").write_text(page)
    page = Page(tmp_path / "page.html")
    assert "1 photo, 0 labels found" in page.text
    assert "No label reaches its threshold." in page.text
    assert "no label (1)" in page.text
    assert "mirrored too" in page.text
    assert "ctivation" not in page.text
    assert "Regions" not in page.text


def test_where_predictions_cannot_go(checkpoint, photos, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds something else than predictions"):
        predict_files(checkpoint, str(photos), tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        predict_files(checkpoint, str(photos), tmp_path / "mine.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_breaks_off_leaves_nothing(checkpoint, photos, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Predictor, "stream", fail)
    with pytest.raises(Failure, match="cannot be written"):
        predict_files(checkpoint, str(photos / "a.jpg"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_which_files_are_images(photos, tmp_path, capsys):
    def found(where, out=tmp_path):
        root, files = find_images(str(where), out)
        return root, [str(file.relative_to(root)) for file in files]

    assert found(photos) == (photos, NAMES)
    assert "1 files that are no images are passed over: .txt" in capsys.readouterr().out
    assert found(photos / "inner" / "*.jpg") == (photos / "inner", ["a.jpg", "cut.jpg"])
    assert found(photos / "**" / "*.[jJ]*") == (
        photos,
        ["a.jpg", "inner/a.jpg", "inner/cut.jpg", "inner/most/B.JPEG"],
    )
    assert found(photos / "notes.txt") == (photos, ["notes.txt"])  # asked for by its name
    assert found(photos, photos / "inner")[1] == [ODD_NAME, "a.jpg", "turned.png"]
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "nowhere", tmp_path / "empty", photos / "*.txt"):
        with pytest.raises(UsageError, match="no image of a format that Pillow reads"):
            found(where)


def test_no_two_photos_have_one_annotated_file():
    names = ["a.jpg", "a.png", "a.png.jpg", "b/a.jpg", "a.JPEG", "a.gif"]
    chosen = annotated_names(names)
    assert chosen[:2] == ["a.jpg", "a.png.jpg"]
    assert len(set(chosen)) == len(names)


def test_activation_maps_are_upsampled_like_the_models_own():
    class_map = np.array([[0.2, 0.6, 0.1], [0.9, 0.4, 0.3]], np.float32)
    image = heat_map(class_map)
    fine = interpolation_matrix(2, MAP_SIDE) @ class_map @ interpolation_matrix(3, MAP_SIDE).T
    want = (fine - 0.1) / 0.8 * 63
    np.testing.assert_allclose(np.asarray(image), want, atol=0.51)
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert alpha[-1, 0] == alpha.max() > alpha[0, -1] == alpha.min()  # corners are the cells' own
    assert np.asarray(heat_map(np.full((2, 2), 0.5, np.float32))).max() == 0  # constant


@pytest.mark.slow
def test_the_command(checkpoint, photos, tmp_path):
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    arguments = ["--mode=predict", "--checkpoint", str(checkpoint), "--images", str(photos)]
    options = ["--flip", "--local_size=32", "--local_bound=0.99"]
    answer = subprocess.run(
        [sys.executable, "-m", "mlic_jax.main", *arguments, "--out", "out", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines()[-1].startswith("error: 1 of 6 images")
    assert "out/index.html" in answer.stdout
    assert "6/6" in answer.stderr  # the progress
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == ENTRIES
    plain = Predictor.from_checkpoint(checkpoint)([photos / "a.jpg"])[0]
    assert lines(tmp_path / "out")[1]["scores"] != pytest.approx(plain.scores, abs=1e-4)
    assert plain.regions
    assert not any(line.get("regions") for line in lines(tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text()
    assert "32 px" in page
    assert "of probability 0.99 and more" in page
