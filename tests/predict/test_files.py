"""A folder of photos in, a table, lines, annotated photos and a page out, whole and readable."""

import copy
import csv
import dataclasses
import html.parser
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data.scenes import render
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import locked
from mlic_jax.metrics.operating_point import OperatingPoint
from mlic_jax.models.ops.regions import interpolation_matrix
from mlic_jax.predict import files
from mlic_jax.predict.files import (
    describe_predictor,
    draw_pictures,
    predict_files,
    write_predictions,
)
from mlic_jax.predict.finding import find_images
from mlic_jax.predict.predictor import Predictor
from mlic_jax.reports.drawing import MOST_SIDE
from mlic_jax.reports.predictions import (
    MAP_SIDE,
    annotate_prediction,
    annotated_name,
    heat_map,
    page_picture,
    picture_files,
    render_page,
    summary,
)
from mlic_jax.runtime.checkpoint import save_weights
from mlic_jax.scores.predictions import Prediction, Region

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = {
    *("annotated", "gallery", "index.html", "predictions.csv", "predictions.jsonl"),
    ".resume.jsonl",
}
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


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint)


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
    assert message.startswith("1 of 6 images could not be read or drawn: inner/cut.jpg")
    (row,) = (row for row in table(out) if row["file"] == "inner/cut.jpg")
    assert "truncated" in row["error"]
    page = Page(out / "index.html")
    assert "1 could not be read" in page.text
    assert row["error"] in page.text
    assert not (out / "annotated" / "inner" / "cut.jpg").exists()


def test_sidecars_have_the_labels_and_photos_stay_as_they_are(checkpoint, photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "a.jpg.xmp").write_text("nothing of the kind")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(Failure, match=r"could not be read.*; 1 sidecars could not.*a\.jpg\.xmp"):
        predict_files(checkpoint, str(folder), tmp_path / "out", sidecars=True)
    assert "sidecars: of 5 photos, 4 written anew" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    for row in table(tmp_path / "out"):
        sidecar = folder / f"{row['file']}.xmp"
        assert sidecar.exists() == (row["error"] == "")
        if sidecar not in before and row["error"] == "":
            for label in row["labels"].split(";"):
                assert f"<rdf:li>{label}</rdf:li>" in sidecar.read_text()


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
    named = {"index.html", "predictions.csv", "predictions.jsonl", ".resume.jsonl"}
    assert beside - linked == named
    assert "5 photos" in page.text
    assert ODD_NAME in page.text
    assert "a half" in page.text  # what the thresholds are
    for record in good:
        assert any(alt.startswith(f"{record['file']}: ") for alt in page.alts)
    assert page.text.count("at its peak") == 2 * len(good)
    source = (out / "index.html").read_text(encoding="utf-8")
    badges = re.findall(r'<span class="badge".*?>(\d+)</span>', source, re.DOTALL)
    beside_labels = re.findall(r'<li><span class="name"><span class="number".*?>(\d+)<', source)
    assert sorted(beside_labels) == sorted(badges) != []  # which label a box is of
    assert source.count("<img") == source.count('<img loading="lazy"') > 0


def test_predictions_are_replaced_and_nothing_else_is(predicted, checkpoint, photos, tmp_path):
    """One photo where there were five; and a folder of something else is left as it is."""
    out = tmp_path / "photos" / "predictions"
    out.parent.mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes((photos / "a.jpg").read_bytes())
    shutil.copytree(predicted[0], out)
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
    reader = Predictor.from_checkpoint(checkpoint, flip=True)
    page = render_page([picture], describe_predictor(reader, "run"))
    (tmp_path / "page.html").write_text(page)
    page = Page(tmp_path / "page.html")
    assert "1 photo, 0 labels found" in page.text
    assert "No label reaches its threshold." in page.text
    assert "no label (1)" in page.text
    assert "mirrored too" in page.text
    assert "ctivation" not in page.text
    assert "Regions" not in page.text


def test_regions_of_what_the_whole_photo_hardly_shows_are_known_and_not_drawn(tmp_path):
    """As in the demo that MCAR was released with: above 0.1, and not at it."""
    Image.new("RGB", (80, 60), "grey").save(tmp_path / "a.png")
    regions = tuple(
        Region(name, (0, 0, 30 + k, 40), likely, 0.9, np.full((2, 2), 0.5, np.float32))
        for k, (name, likely) in enumerate({"cat": 0.1, "dog": 0.100002, "yak": 0.05}.items())
    )
    names = ("cat", "dog", "yak")
    said = Prediction("a.png", 80, 60, names, dict.fromkeys(names, 0.9), regions)
    reader = SimpleNamespace(read=Image.open)
    entry = draw_pictures(reader, tmp_path, said, tmp_path / "a.png")
    assert [region["class"] for region in entry["row"]["regions"]] == list(names)
    shown = page_picture(entry, dict.fromkeys(names, 0.5))["regions"]
    assert [(region["number"], region["name"], region["height"]) for region in shown] == [
        (2, "dog", 31)
    ]
    *pictures, activation = picture_files(entry["row"])
    assert (shown[0]["map"], len(pictures)) == (activation, 2)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert written == {"a.png", *pictures, activation}
    image = Image.open(tmp_path / "a.png")
    only = dataclasses.replace(said, regions=regions[1:2])
    assert annotate_prediction(image, said) == annotate_prediction(image, only)
    assert annotate_prediction(image, said) != annotate_prediction(
        image, dataclasses.replace(said, regions=())
    )


def test_where_predictions_cannot_go(checkpoint, photos, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds something else than predictions"):
        predict_files(checkpoint, str(photos), tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        predict_files(checkpoint, str(photos), tmp_path / "mine.txt")
    with pytest.raises(Failure, match=r"cannot be written \(Not a directory\)$"):
        predict_files(checkpoint, str(photos / "a.jpg"), tmp_path / "mine.txt" / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_breaks_off_leaves_nothing(checkpoint, photos, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Predictor, "stream", fail)
    with pytest.raises(Failure, match="cannot be written"):
        predict_files(checkpoint, str(photos / "a.jpg"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_terminal_shows_a_few_labels_and_sums_up(
    checkpoint, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(files, "PRINTED", 4)
    with pytest.raises(Failure, match="1 of 6 images could not be read or drawn"):
        predict_files(checkpoint, str(photos), tmp_path / "out")
    shown = capsys.readouterr()
    said, rows = shown.out.splitlines()[1:], lines(tmp_path / "out")  # after what is passed over
    for line, row in zip(said[:4], rows, strict=False):
        found = [f"{name} {row['scores'][name]:.2f}" for name in row["labels"]]
        start = f"{row['file']}: {row['error'] or ', '.join(found[:8])}"
        assert line in (start, f"{start} and {len(found) - 8} more")
    assert said[4:6] == ["... and 2 more", "photos: 6, of which 1 could not be read or drawn"]
    counts = {name: sum(name in row["labels"] for row in rows) for name in rows[0]["scores"]}
    assert said[6] == "labels: " + ", ".join(
        f"{name} {counts[name]}"
        for name in sorted(counts, key=lambda name: (-counts[name], name))
        if counts[name]
    )
    assert said[7].startswith("table, photos and page: ")
    assert not any("image/s" in line or "\r" in line for line in said)  # of the bar
    assert "6/6" in shown.err
    with pytest.raises(Failure):
        predict_files(checkpoint, str(photos), tmp_path / "out", resume=True)
    assert "... and" not in capsys.readouterr().out


def test_a_summary_is_short():
    def row(labels, error=None):
        return {"labels": labels, "error": error}

    names = [f"label {k:02}" for k in range(15)]
    rows = [*([row(names)] * 3), row(names[2:3]), row([]), row([], "gone")]
    assert summary(rows) == [
        "photos: 6, of which 1 could not be read or drawn",
        "labels: label 02 4, label 00 3, label 01 3, "
        + ", ".join(f"label {k:02} 3" for k in range(3, 12))
        + ", 3 other labels, no label 1",
    ]
    assert summary([row([], "gone")]) == ["photos: 1, of which 1 could not be read or drawn"]
    assert summary([row(["cat"])]) == ["photos: 1", "labels: cat 1"]


def test_which_files_are_images(photos, tmp_path, capsys):
    def found(where, out=tmp_path):
        root, files = find_images(str(where), out)
        return root, [str(file.relative_to(root)) for file in files]

    assert found(photos) == (photos, NAMES)
    assert "1 files that are no images are passed over: .txt" in capsys.readouterr().out
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("a.jpg", "a.jpg.xmp", "b.png", "b.xmp"):
        (beside / name).touch()
    assert found(beside, tmp_path / "out")[1] == ["a.jpg", "b.png"]
    assert "passed over" not in capsys.readouterr().out  # sidecars of these photos
    (beside / "c.xmp").touch()
    found(beside, tmp_path / "out")
    assert "1 files that are no images are passed over: .xmp" in capsys.readouterr().out
    assert found(photos / "inner" / "*.jpg") == (photos / "inner", ["a.jpg", "cut.jpg"])
    assert found(photos / "**" / "*.[jJ]*") == (
        photos,
        ["a.jpg", "inner/a.jpg", "inner/cut.jpg", "inner/most/B.JPEG"],
    )
    assert found(photos / "notes.txt") == (photos, ["notes.txt"])  # asked for by its name
    assert found(photos, photos / "inner")[1] == [ODD_NAME, "a.jpg", "turned.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no such file or folder"):
        found(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no file matches this pattern"):
        found(tmp_path / "nowhere*")
    for where in (tmp_path / "empty", photos / "*.txt"):
        with pytest.raises(UsageError, match="no image of a format that Pillow reads"):
            found(where)


def test_no_two_photos_have_one_annotated_file():
    names = ["a.jpg", "a.png", "a.png.jpg", "a.png.jpg.jpg", "b/a.jpg", "a.JPEG", "a.gif"]
    names += ["a.png.jpg_/b.jpg", "a.png.jpg/b.jpg", "a.png.jpg__/b.jpg"]  # folders
    names += [f"{'x' * 251}.jpg", f"{'x' * 251}.png", f"{'y/' * 600}a.jpg"]
    chosen = [annotated_name(name) for name in names]
    assert chosen[:2] == ["a.jpg", "a.png.jpg"]
    assert len({*chosen}) == len(names)
    folders = {part for name in chosen for part in name.split("/")[:-1]}
    assert not folders & {*chosen}
    assert all(len(part) < 250 for name in chosen for part in name.split("/"))
    assert max(map(len, chosen)) < 1100


def test_activation_maps_are_upsampled_like_the_models_own():
    class_map = np.array([[0.2, 0.6, 0.1], [0.9, 0.4, 0.3]], np.float32)
    image = heat_map(class_map, (0, 0, 20, 30), (30, 20))
    fine = interpolation_matrix(2, MAP_SIDE) @ class_map @ interpolation_matrix(3, MAP_SIDE).T
    want = (fine - 0.1) / 0.8 * 63
    np.testing.assert_allclose(np.asarray(image), want, atol=0.51)
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert alpha[-1, 0] == alpha.max() > alpha[0, -1] == alpha.min()  # corners are the cells' own
    constant = heat_map(np.full((2, 2), 0.5, np.float32), (0, 0, 20, 30), (30, 20))
    assert np.asarray(constant).max() == 0


def test_activation_maps_lie_over_what_was_seen_of_a_photo():
    """Of a photo of 56 x 28 pixels the lower half: a quarter of the cells from the left on."""
    class_map = np.array([[0, 1], [2, 3]], np.float32)
    image = heat_map(class_map, (14, 14, 28, 28), (56, 28))
    levels, alpha = np.asarray(image), np.asarray(image.convert("RGBA"))[..., 3]
    seen = np.zeros((MAP_SIDE, MAP_SIDE), bool)
    seen[MAP_SIDE // 2 :, MAP_SIDE // 4 : MAP_SIDE // 2] = True
    np.testing.assert_array_equal(alpha > 0, seen)
    corners = levels[[MAP_SIDE // 2, -1]][:, [MAP_SIDE // 4, MAP_SIDE // 2 - 1]]
    np.testing.assert_array_equal(corners, [[0, 21], [42, 63]])


# --- odd photos


def by_file(out):
    """The rows by their file; table, lines and page must name the same files."""
    records = {record["file"]: record for record in lines(out)}
    assert [row["file"] for row in table(out)] == list(records)
    page = Page(out / "index.html")
    assert all(name in page.text for name in records)
    for link in page.links:
        assert (out / urllib.parse.unquote(link)).is_file(), link
    return records


def test_photos_that_no_jpeg_file_holds(checkpoint, photos, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    shutil.copy(photos / "a.jpg", folder)
    Image.new("RGB", (MOST_SIDE + 500, 40), (90, 20, 20)).save(folder / "wide.png")
    Image.new("RGB", (1, 2_000_000)).save(folder / "tall.png")
    predict_files(checkpoint, str(folder), out)
    rows = by_file(out)
    assert [row["error"] for row in rows.values()] == [None] * 3
    assert rows["wide.png"]["width"] == MOST_SIDE + 500
    assert all(region["box"]["x2"] <= MOST_SIDE + 500 for region in rows["wide.png"]["regions"])
    for name, size in (("wide.png.jpg", (MOST_SIDE, 40)), ("tall.png.jpg", (1, MOST_SIDE))):
        with Image.open(out / "annotated" / name) as image:
            assert image.size == size


def test_what_is_no_photo_is_a_row(checkpoint, photos, tmp_path, capsys):
    """Links to nothing, pipes, sockets, devices; and names that are not UTF-8 or of two lines."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    photo = (photos / "a.jpg").read_bytes()
    for name in (b"caf\xe9.jpg", rb"caf\xe9.jpg", b"two\nlines.jpg", b"x" * 251 + b".png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(photo)
    Path(os.fsdecode(os.fsencode(folder) + b"/broken\xff.jpg")).write_bytes(photo[:1000])
    (folder / "notes.\udce9").touch()
    (folder / "gone.jpg").symlink_to("nowhere\udce9.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.jpg"))
        with pytest.raises(Failure, match="6 of 10 images could not be read or drawn"):
            predict_files(checkpoint, str(folder), out)
    assert r"1 files that are no images are passed over: .\xe9" in capsys.readouterr().out
    rows = by_file(out)
    good = {r"caf\xe9.jpg", r"caf\\xe9.jpg", r"two\x0alines.jpg", "x" * 251 + ".png"}
    assert {name for name, row in rows.items() if row["error"] is None} == good
    assert len([path for path in (out / "annotated").iterdir()]) == 4
    assert "truncated" in rows[r"broken\xff.jpg"]["error"]
    assert rows["gone.jpg"]["error"] == r"a link to nowhere\xe9.jpg, which is not there"
    assert rows["loop.jpg"]["error"] == "Too many levels of symbolic links"
    assert rows["zero.jpg"]["error"] == "a device and no file"
    assert rows["pipe.jpg"]["error"] == "a pipe and no file"
    assert rows["socket.jpg"]["error"] == "a socket and no file"


def test_a_photo_that_cannot_be_drawn_keeps_its_labels(predictor, photos, tmp_path):
    """It goes after it was read. `write_predictions` has what is common to all ways to call it."""
    shutil.copytree(photos, tmp_path / "photos")
    two = [tmp_path / "photos" / name for name in ("a.jpg", "turned.png")]

    class Vanishing(Predictor):
        def stream(self, images):
            for prediction in super().stream(images):
                two[0].unlink(missing_ok=True)
                yield prediction

    vanishing = copy.copy(predictor)
    vanishing.__class__ = Vanishing
    out = tmp_path / "out"
    written = write_predictions(vanishing, two[0].parent, two, out, "run", {})
    assert [row["file"] for row in written if row["error"]] == ["a.jpg"]
    rows = by_file(out)
    assert rows["a.jpg"]["error"] == "cannot be drawn: No such file or directory"
    assert rows["a.jpg"]["labels"]
    assert rows["turned.png"]["error"] is None
    assert [path.name for path in (out / "annotated").iterdir()] == ["turned.png.jpg"]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "locked").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    if user == 0:  # whom nothing is closed to
        os.seteuid(65534)
    try:
        assert find_images(".", Path("out"))[1] == [Path("a.jpg"), Path("locked")]
    finally:
        os.seteuid(user)


# --- runs that are cut short


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of twenty photos, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(20):
        (folder / f"{i:02}.jpg").write_bytes(render(0, "test", i % 11).image)
    (folder / "05.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint, many, tmp_path_factory):
    """The outputs for them of a run that was not cut short."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.raises(Failure, match="1 of 20"):
        predict_files(checkpoint, str(many), out)
    return out


def contents(folder):
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# The command, which kills itself when it is about to do something to a file for the n-th time.
KILLED = """
import os, runpy, signal, sys
event, part, count = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
def hook(name, arguments):
    global count
    if name == event and part in str(arguments[0]):
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
runpy.run_module("mlic_jax.main", run_name="__main__", alter_sys=True)
"""
LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("mlic_jax.main", run_name="__main__", alter_sys=True)
"""


def command(code, *arguments):
    """Runs a command in a process of its own, on the same devices as this one."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_killed_run_goes_on(checkpoint, photos, many, whole, tmp_path, capsys):
    """Killed between photos and again while the outputs take their places."""
    out = tmp_path / "out"
    predict_files(checkpoint, str(photos / "a.jpg"), out)
    before = contents(out)
    flags = ["--mode=predict", f"--checkpoint={checkpoint}", f"--images={many}", f"--out={out}"]

    killed = command(KILLED, "open", ".partial/annotated/.", 16, *flags)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = (out / ".partial" / ".resume.jsonl").read_bytes().count(b"\n") - 1
    assert 0 < rows < 20
    for others in (table(out / ".partial"), lines(out / ".partial")):
        assert len(others) in (rows, rows - 1)  # it may die between one file and the next
    complete = {name: content for name, content in contents(out).items() if name in before}
    assert complete == before

    killed = command(KILLED, "os.rename", ".complete/gallery", 1, *flags, "--resume")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert f"{rows} of 20 photos were done before" in killed.stdout
    capsys.readouterr()
    with pytest.raises(Failure, match="1 of 20"):
        predict_files(checkpoint, str(many), out, resume=True)
    assert "20 of 20 photos were done before" in capsys.readouterr().out
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.999])
def test_a_line_that_was_cut_does_not_count(checkpoint, many, whole, tmp_path, kept):
    out = tmp_path / "out"
    shutil.copytree(whole, out / ".partial")
    journal = out / ".partial" / ".resume.jsonl"
    size = journal.stat().st_size
    os.truncate(journal, kept if isinstance(kept, int) else int(kept * size))
    with pytest.raises(Failure, match="1 of 20"):
        predict_files(checkpoint, str(many), out, resume=True)
    assert contents(out) == contents(whole)


def test_a_full_disk_costs_nothing_that_was_done(checkpoint, many, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(many, folder)
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(folder / "19.png")  # annotated 1 MB, the others 30 kB
    flags = ["--mode=predict", f"--checkpoint={checkpoint}", f"--images={folder}", f"--out={out}"]
    stopped = command(LIMITED, 500_000, *flags)
    assert stopped.returncode == 1
    assert stopped.stderr.strip().splitlines()[-1] == (
        f"error: {out}: cannot be written (File too large); what was done is kept, and --resume "
        "goes on with it"
    )
    assert "Traceback" not in stopped.stderr
    assert len(table(out / ".partial")) == 20
    for resume, where in ((True, out), (False, tmp_path / "new")):
        with pytest.raises(Failure, match="1 of 21"):
            predict_files(checkpoint, str(folder), where, resume=resume)
    assert contents(out) == contents(tmp_path / "new")


def test_only_what_is_new_is_predicted(checkpoint, many, whole, tmp_path, monkeypatch):
    """A completed run that is resumed with a photo less, one more and one that changed."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(many, folder)
    shutil.copytree(whole, out)
    (folder / "19.jpg").unlink()
    (folder / "05.jpg").write_bytes(render(0, "test", 5).image)  # which could not be read
    shutil.copy(folder / "00.jpg", folder / "99.jpg")
    asked = []
    stream = Predictor.stream

    def watched(self, images):
        asked.extend(images := list(images))
        return stream(self, images)

    monkeypatch.setattr(Predictor, "stream", watched)
    predict_files(checkpoint, str(folder), out, resume=True)
    # Batches of eight.
    assert [file.name for file in asked] == [
        *(f"{i:02}.jpg" for i in (*range(8), *range(16, 19))),
        "99.jpg",
    ]
    rows = by_file(out)
    assert list(rows) == [*(f"{i:02}.jpg" for i in range(19)), "99.jpg"]
    predict_files(checkpoint, str(folder), tmp_path / "new")
    assert contents(out) == contents(tmp_path / "new")
    asked.clear()
    predict_files(checkpoint, str(folder), out, resume=True)
    assert asked == []


def test_what_is_resumed_must_be_the_same_run(checkpoint, many, whole, tmp_path, fresh_run, config):
    before = contents(whole)
    for options, message in (
        ({"flip": True}, r"begun with flip=False \(now True\);"),
        ({"scales": [96]}, r"begun with scales=\[\] \(now \[96\]\);"),
        ({"local_bound": 0.5}, r"begun with local_bound=0.0 \(now 0.5\);"),
    ):
        with pytest.raises(UsageError, match=message):
            predict_files(checkpoint, str(many), whole, **options, resume=True)
    config.seed = 3
    save_weights(tmp_path / "other", *fresh_run(config))
    with pytest.raises(UsageError, match="begun with another checkpoint"):
        predict_files(tmp_path / "other", str(many), whole, resume=True)
    assert contents(whole) == before


def test_one_process_at_a_time(checkpoint, photos, tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match="another process is writing to"):
        predict_files(checkpoint, str(photos / "a.jpg"), tmp_path)


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
