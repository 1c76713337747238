"""The demo page: what it shows is what `Predictor` says; server and browser are real ones."""

import base64
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.data.scenes import render
from mlic_jax.errors import UsageError
from mlic_jax.metrics.operating_point import OperatingPoint
from mlic_jax.models import create_model
from mlic_jax.predict.predictor import Predictor
from mlic_jax.predict.serve import (
    CROP_SIDE,
    LIKELIEST,
    MAX_MEGABYTES,
    PHOTO_SIDE,
    address,
    answer,
    clean_job,
    introduction,
    is_asked,
    listen,
    warm_up,
)
from mlic_jax.reports.page import REGION_COLOURS
from mlic_jax.reports.predictions import annotate_prediction
from mlic_jax.runtime.checkpoint import save_weights
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.resume import run_metadata
from mlic_jax.train.start import initial_variables

ROOT = Path(__file__).resolve().parents[2]
ODD = 'a <s>&"label"</s> {{7*7}} ${7*7}'  # a label that must not be taken for code


def save_run(config, folder, thresholds=None):
    """A checkpoint of a run that did no step, whose operating point has these thresholds."""
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    model = create_model(config.model, len(split.class_names))
    variables = jax.device_get(initial_variables(model, TrainOptions.of(config)))
    if "convclass" in variables["params"]:  # spread over many probabilities, as a trained model's
        classifier = variables["params"]["convclass"]
        classifier["kernel"] = 8 * classifier["kernel"]
    metadata = run_metadata(config, split, folder)
    names = [ODD, *metadata["class_names"][1:]]
    point = OperatingPoint(
        temperature=1.0,
        thresholds=tuple(thresholds or [0.5] * len(names)),
        rule="half <of> it",
        set_name="scenes",
        split="val",
        images=9,
        error_before=2.0,
        error_after=1.0,
    )
    metadata |= {"class_names": names, "operating_point": point.to_dict()}
    save_weights(folder, variables, metadata)
    return folder


@pytest.fixture(scope="module")
def photo(request, tmp_path_factory):
    """A real photograph where there is one, else a scene; a JPEG file that is not square."""
    try:
        folder = request.getfixturevalue("shared") / "images" / "coco2014_val"
        return sorted(folder.glob("*.jpg"))[0]
    except (pytest.skip.Exception, IndexError):
        path = tmp_path_factory.mktemp("photo") / "scene.jpg"
        path.write_bytes(render(0, "test", 0).image)
        return path


@pytest.fixture(scope="module")
def checkpoint(make_config, photo, tmp_path_factory):
    """Of a model which finds in `photo` every other label, by likelihood, and the odd one."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = make_config()
    config.model.top_n = 4
    scores = Predictor.from_checkpoint(save_run(config, folder / "plain"))([photo])[0].scores
    ranked = sorted(scores, key=scores.get, reverse=True)
    present = {ODD, *ranked[::2]}
    shift = {name: -0.01 if name in present else 0.01 for name in scores}
    thresholds = [float(np.clip(scores[name] + shift[name], 0, 1)) for name in scores]
    return save_run(config, folder / "calibrated", thresholds)


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint)


class Shown(HTMLParser):
    """What an answer shows: texts by the class of their list, images, and all text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.images, self.rows, self.text, self._hidden = [], [], [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self._hidden = tag == "style"
        if tag == "img":
            self.images.append(attributes["src"])
        if tag == "li":
            label, kind = attributes["data-label"], attributes["class"]
            self.rows.append([label, kind, attributes.get("style"), ""])

    def handle_data(self, data):
        if self._hidden:
            return
        self.text += data
        if self.rows:
            self.rows[-1][3] = " ".join([*self.rows[-1][3].split(), *data.split()])

    def picture(self, k):
        """Image k, decoded."""
        kind, encoded = self.images[k].split(",")
        assert kind == "data:image/jpeg;base64"
        return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_an_answer_is_what_the_predictor_says(predictor, photo):
    (want,) = predictor([photo])
    shown = Shown(answer(predictor, photo))
    image = Image.open(photo).convert("RGB")
    assert f"{photo.name} · {image.width} \N{MULTIPLICATION SIGN} {image.height} px" in shown.text
    ranked = sorted(want.scores, key=want.scores.get, reverse=True)
    assert 0 < len(want.labels) < len(ranked)
    assert f"{len(want.labels)} labels" in shown.text

    present, likeliest = shown.rows[: len(want.labels)], shown.rows[len(want.labels) :][:LIKELIEST]
    assert [row[0] for row in present] == list(want.labels)
    assert [row[0] for row in likeliest] == ranked[:LIKELIEST]
    for label, kind, _, text in present + likeliest:
        assert kind == ("present" if label in want.labels else "below")
        assert text.startswith(f"{label} {want.scores[label]:.2f}")


def test_regions_are_drawn_and_cut_out(predictor, photo):
    (want,) = predictor([photo])
    shown = Shown(answer(predictor, photo))
    image = Image.open(photo).convert("RGB")
    drawn = np.asarray(annotate_prediction(image, want), np.float32)
    assert np.abs(np.asarray(shown.picture(0), np.float32) - drawn).mean() < 5  # JPEG alone differs
    assert np.abs(drawn - np.asarray(image.resize(drawn.shape[1::-1]))).mean() > 5

    regions = sorted(want.regions, key=lambda region: region.class_name not in want.labels)
    assert {region.class_name in want.labels for region in regions} == {True, False}
    rows = shown.rows[-len(regions) :]
    assert len(shown.images) == 1 + len(regions)
    for k, (region, (label, kind, style, text)) in enumerate(zip(regions, rows, strict=True)):
        assert label == region.class_name
        found = label in want.labels
        assert kind == ("present" if found else "below")
        assert style == (f"--colour: {REGION_COLOURS[k]}" if found else None)
        assert f"here {region.local_probability:.2f}" in text
        assert f"whole photo {region.global_probability:.2f}" in text
        y1, x1, y2, x2 = region.box
        crop = image.crop((x1, y1, x2, y2))
        crop.thumbnail((CROP_SIDE, CROP_SIDE))
        got = shown.picture(1 + k)
        assert got.size == crop.size
        assert np.abs(np.asarray(got, np.float32) - np.asarray(crop)).mean() < 5


def test_names_are_text_and_not_code(predictor, photo, tmp_path):
    (want,) = predictor([photo])
    assert ODD in want.labels
    path = tmp_path / "<q>&.jpg"
    shutil.copy(photo, path)
    shown = Shown(answer(predictor, path))
    assert ODD in shown.text
    assert path.name in shown.text
    assert not {"s", "q"} & set(shown.tags)
    shown = Shown(introduction(predictor))
    assert "half <of> it" in shown.text
    assert "mcar on resnet10" in shown.text
    assert "12 labels" in shown.text


def test_photos_are_shown_upright_and_no_larger_than_needed(predictor, tmp_path):
    ramp = np.add.outer(np.arange(1500), np.arange(2000))
    upright = np.stack([ramp // 14, ramp[:, ::-1] // 14, np.full_like(ramp, 90)], -1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    stored = Image.fromarray(np.rot90(upright.astype(np.uint8)).copy())
    stored.save(tmp_path / "turned.png", exif=exif)
    shown = Shown(answer(predictor, tmp_path / "turned.png"))
    assert "turned.png · 2000 \N{MULTIPLICATION SIGN} 1500 px" in shown.text
    assert shown.picture(0).size == (PHOTO_SIDE, PHOTO_SIDE * 3 // 4)
    (want,) = predictor([upright.astype(np.uint8)])
    assert [row[0] for row in shown.rows[: len(want.labels)]] == list(want.labels)
    for k in range(len(want.regions)):
        assert max(shown.picture(1 + k).size) <= CROP_SIDE


def test_a_baseline_shows_where_it_sees_its_labels(config, photo, tmp_path):
    """In one look: a region has no probability of its own."""
    config.model.update(name="pooled", top_n=2)
    predictor = Predictor.from_checkpoint(save_run(config, tmp_path / "run", [0.0] * 12))
    (prediction,) = predictor([photo])
    shown = Shown(answer(predictor, photo))
    assert "Where the model looked" in shown.text
    assert re.search(r"whole photo \d", shown.text) and not re.search(r"here \d", shown.text)
    drawn = [region.class_name for region in prediction.regions if region.global_probability > 0.1]
    assert 0 < len(drawn) <= 2 and len(shown.images) == 1 + len(drawn)


def test_a_photo_without_labels(config, photo, tmp_path):
    config.model.top_n = 4  # as `checkpoint`, whose program is kept
    folder = save_run(config, tmp_path / "run", [1.0] * 12)
    page = answer(Predictor.from_checkpoint(folder), photo)
    assert "No labels" in page
    assert "<details open>" in page  # the likeliest are what there is to see
    assert [row[1] for row in Shown(page).rows] == ["below"] * (LIKELIEST + 4)


def png(side):
    """The beginning of a PNG file which says that it has side x side pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check + b"\0\0\x20\0IDAT"


def bad_files(photo):
    """File name -> (its bytes, what the page says of it)."""
    whole = photo.read_bytes()
    return {
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "text.jpg": (b"no image", "not of a format that Pillow reads"),
        "empty.png": (b"", "not of a format that Pillow reads"),
        "huge.png": (png(10_000), "the limit is 89478485 pixels"),
        "bomb.png": (png(60_000), "the limit is 89478485 pixels"),
    }


@pytest.mark.parametrize("name", ["cut.jpg", "text.jpg", "empty.png", "huge.png", "bomb.png"])
def test_what_cannot_be_read_gets_one_message(predictor, photo, tmp_path, name):
    content, message = bad_files(photo)[name]
    (tmp_path / name).write_bytes(content)
    shown = Shown(answer(predictor, tmp_path / name))
    assert f"No answer for {name}" in shown.text
    assert message in shown.text
    assert (shown.images, shown.rows) == ([], [])
    for noise in ("Traceback", "object at", str(tmp_path)):
        assert noise not in shown.text


ELSEWHERE = "http://host.invalid/a.jpg"


def hand_written(path):
    """A request's body that names a file elsewhere wherever Gradio might look for one."""
    file = {"path": path, "url": path, "orig_name": "a.jpg", "meta": {"_type": "gradio.FileData"}}
    job = {"data": [file], "fn_index": 0, "session_hash": "hand", "event_data": file}
    more = {"component_id": 1, "fn_name": "preprocess", "upload": file, "value": file}
    return json.dumps(job | more).encode()


@pytest.mark.parametrize("size", [(66_000, 20), (1, 1_000_000)])
def test_a_photo_of_extreme_shape_is_shown(predictor, tmp_path, size):
    Image.new("RGB", size, (90, 20, 20)).save(tmp_path / "odd\udce9.png")
    shown = Shown(answer(predictor, tmp_path / "odd\udce9.png"))
    assert f"odd\\xe9.png · {size[0]} \N{MULTIPLICATION SIGN} {size[1]} px" in shown.text
    assert max(shown.picture(0).size) == PHOTO_SIDE


def test_only_what_the_page_asks_for_gets_through():
    def asked(method, path):
        return is_asked({"method": method, "path": path})

    for path in ("/", "/config", "/assets/a/b.js", "/gradio_api/queue/data"):
        assert asked("GET", path) and asked("HEAD", path)
        assert not asked("POST", path)
    assert asked("POST", "/gradio_api/upload")
    assert asked("POST", "/gradio_api/queue/join")
    for path in (f"file={ELSEWHERE}", f"file/{ELSEWHERE}", f"proxy={ELSEWHERE}", "upload"):
        assert not asked("GET", f"/gradio_api/{path}")
    for path in ("run/answer_upload", "call/answer_upload", "component_server", "stream/1"):
        assert not asked("POST", f"/gradio_api/{path}")
    assert not asked("PUT", "/")
    assert not is_asked({"type": "websocket", "path": "/"})


def test_what_is_put_into_the_queue_is_a_path_and_no_address():
    job = json.loads(clean_job(hand_written("/tmp/upload/a.jpg")))
    file = {"path": "/tmp/upload/a.jpg", "meta": {"_type": "gradio.FileData"}}
    assert job.pop("data") == [file]
    assert job == {"fn_index": 0, "session_hash": "hand", "trigger_id": None}
    for path in (ELSEWHERE, "HTTPS://host.invalid", "ftp://host.invalid", "a.jpg", "", None, {}):
        assert clean_job(hand_written(path)) is None
    for body in (b"", b"[]", b"{", b"\xff", b'{"data": [1]}', b'{"data": []}', b"[" * 100_000):
        assert clean_job(body) is None


def test_the_model_is_compiled_before_the_first_photo(checkpoint, photo):
    predictor = Predictor.from_checkpoint(checkpoint)
    assert warm_up(predictor) > 0
    assert predictor._step._cache_size() == 1
    answer(predictor, photo)
    assert predictor._step._cache_size() == 1


def test_addresses():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address(listener) == f"http://127.0.0.1:{port}/"
        with pytest.raises(UsageError, match=f"--host 127.0.0.1 --port {port}: .*in use.*--port 0"):
            listen("127.0.0.1", port)
    with listen("0.0.0.0", 0) as listener:
        assert "everyone who can reach this machine" in address(listener)
    with pytest.raises(UsageError, match=r"--host 203\.0\.113\.1 "):
        listen("203.0.113.1", 0)  # of documentation; no machine has it


# --- the real server

# The command, and a file that names every address which Python connects to or looks up. What
# uvloop's event loop looks up nobody would see: uvicorn does without it.
WATCHED = """
import runpy, sys
sys.modules["uvloop"] = None
log = open(sys.argv.pop(1), "a", buffering=1)
def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        print(arguments[1], file=log)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        print(arguments[0], file=log)
sys.addaudithook(hook)
runpy.run_module("mlic_jax.main", run_name="__main__", alter_sys=True)
"""


def command(code, *arguments, **environment):
    """A command's arguments and environment for subprocess."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path} | environment
    return {"args": [sys.executable, "-c", code, *map(str, arguments)], "env": environment}


def test_gradio_is_an_extra(checkpoint):
    code = "import sys; sys.modules['gradio'] = None; from mlic_jax.main import run; run()"
    flags = ("--mode=serve", f"--checkpoint={checkpoint}")
    done = subprocess.run(**command(code, *flags), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install 'mlic_jax[serve]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class Server:
    """The page of a checkpoint in a process of its own, on a free port."""

    def __init__(self, checkpoint, folder):
        self.contacts, self.temporary, self.log = (
            folder / name for name in ("contacts.txt", "tmp", "log.txt")
        )
        self.temporary.mkdir()
        flags = ("--mode=serve", f"--checkpoint={checkpoint}", "--port=0")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                **command(WATCHED, self.contacts, *flags, TMPDIR=str(self.temporary)),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.url = self._wait_for(r"the page is (http://127\.0\.0\.1:\d+/) until Ctrl-C")

    def _wait_for(self, pattern):
        for _ in range(1200):
            if found := re.search(pattern, self.log.read_text()):
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def request(self, path, body=None, kind="application/json"):
        """(status, headers, text) of an answer."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def send(self, name, content):
        """Uploads a file; gives (status, text)."""
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--edge--\r\n"
        kind = "multipart/form-data; boundary=edge"
        status, _, text = self.request("gradio_api/upload", body, kind)
        return status, text

    def predict(self, path, session):
        """What becomes of a file of the server's, as its last event says."""
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        job = {"data": [file], "fn_index": 0, "session_hash": session}
        assert self.request("gradio_api/queue/join", json.dumps(job).encode())[0] == 200
        _, _, events = self.request(f"gradio_api/queue/data?session_hash={session}")
        events = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
        (done,) = [event for event in events if event["msg"] == "process_completed"]
        return done

    def ask(self, name, content, session):
        """Uploads a file and gives the page's answer, as the browser does."""
        status, text = self.send(name, content)
        assert status == 200, text
        done = self.predict(json.loads(text)[0], session)
        assert done["success"], done
        cleared, shown = done["output"]["data"]
        assert cleared is None
        return Shown(shown)


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs Gradio, the extra `serve`")
    server = Server(checkpoint, tmp_path_factory.mktemp("server"))
    yield server
    server.process.kill()
    server.process.wait()


def test_the_page_names_no_other_machine(server):
    status, headers, page = server.request("")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded
    assert not [url for url in loaded if "//" in url]
    _, _, style = server.request("theme.css")
    assert "@import" not in style
    assert "url(http" not in style


def test_labels_over_http(server, predictor, photo):
    (want,) = predictor([photo])
    shown = server.ask(photo.name, photo.read_bytes(), "one")
    rows = shown.rows[: len(want.labels)]
    assert [row[0] for row in rows] == list(want.labels)
    assert len(shown.images) == 1 + len(want.regions)


def test_photos_at_once_each_get_their_answer(server, predictor, tmp_path):
    paths = [tmp_path / f"{k}.jpg" for k in range(4)]
    got = {}

    def ask(k):
        got[k] = server.ask(paths[k].name, paths[k].read_bytes(), f"many{k}")

    for k, path in enumerate(paths):
        path.write_bytes(render(0, "test", k).image)
    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, want in enumerate(predictor(paths)):
        assert f"{k}.jpg" in got[k].text
        assert [row[0] for row in got[k].rows[: len(want.labels)]] == list(want.labels)


def test_uploads_that_are_refused(server, photo):
    limit = MAX_MEGABYTES * 1024**2
    status, text = server.send("big.jpg", bytes(limit + 1))
    assert status == 413
    assert "maximum allowed size" in text
    status, text = server.send("just.jpg", bytes(limit))
    assert status == 200
    for name, (content, message) in bad_files(photo).items():
        shown = server.ask(name, content, f"bad {name}".replace(" ", ""))
        assert f"No answer for {name}" in shown.text
        assert message in shown.text
    assert photo.name in server.ask(photo.name, photo.read_bytes(), "after").text
    assert "Traceback" not in server.log.read_text()


def test_files_of_the_machine_are_not_read(server, photo, tmp_path):
    shutil.copy(photo, tmp_path / "secret.jpg")
    path = str(tmp_path / "secret.jpg")
    status, _, _ = server.request(f"gradio_api/file={path}")
    assert status == 403
    done = server.predict(path, "thief")
    assert not done["success"]
    assert "data:image" not in json.dumps(done)


# Gradio's own routes: path -> methods.
ROUTES = """
import json, gradio
from gradio.routes import App
with gradio.Blocks() as page:
    pass
paths = App.create_app(page).openapi()["paths"]
print(json.dumps({path: list(methods) for path, methods in paths.items()}))
"""


def test_no_request_has_the_server_look_for_another_machine(server, photo):
    """Every route of Gradio's is asked for a file elsewhere; what contacts it makes is noted."""
    listed = subprocess.run(**command(ROUTES), capture_output=True, text=True, timeout=60).stdout
    routes = json.loads(listed.splitlines()[-1])
    assert {"/gradio_api/file={path_or_url}", "/gradio_api/queue/join"} <= {*routes}
    asked = [
        (method.upper(), re.sub(r"{\w*}", value, path.replace("{api_name}", "answer_upload")))
        for path, methods in routes.items()
        for method in methods
        for value in (("hand", ELSEWHERE) if "{" in path else ("",))
    ]
    url = urllib.parse.urlsplit(server.url)
    for method, path in asked:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
        body = hand_written(ELSEWHERE) if method == "POST" else None
        connection.request(method, path, body, {"Content-Type": "application/json"})
        status = connection.getresponse().status  # some answers never end
        connection.close()
        if "=http" in path or "/queue/join" in path:
            assert status == 403, path
    for path in (ELSEWHERE, "HTTPS://host.invalid", "//host.invalid/a", "ftp://host.invalid", "a"):
        status = server.request("gradio_api/queue/join", hand_written(path))[0]
        assert status == (200 if path.startswith("/") else 403)
    for body in (b"", b"[]", b"{", b'{"data": [1]}', b"[" * 10_000, b" " * 2**17):
        assert server.request("gradio_api/queue/join", body)[0] == 403
    assert photo.name in server.ask(photo.name, photo.read_bytes(), "afterwards").text
    contacts = server.contacts.read_text().splitlines()
    assert [line for line in contacts if "127.0.0.1" not in line] == []


# --- the page in a browser

# What the page shows of its answer: [label, kind, score] of every bar of the first list.
LABELS = """[...document.querySelector('#answer .bars').children].map(
    row => [row.dataset.label, row.className, row.querySelector('b').innerText])"""
SHOWN = "document.querySelector('#answer figcaption')?.innerText.includes(%r)"


def test_in_a_browser(chromium, server, predictor, photo, tmp_path):
    (want,) = predictor([photo])
    chromium.open(server.url)
    chromium.wait_for("document.querySelector('#upload input[type=file]') !== null")
    chromium.drop(photo, "#upload")
    chromium.wait_for(SHOWN % photo.name)
    assert chromium.value(LABELS) == [
        [name, "present", f"{want.scores[name]:.2f}"] for name in want.labels
    ]
    images = "[...document.querySelectorAll('#answer img')]"
    chromium.wait_for(f"{images}.every(image => image.complete)")
    widths = chromium.value(f"{images}.map(image => image.naturalWidth)")
    assert len(widths) == 1 + len(want.regions)
    assert min(widths) > 0
    for width in (400, 1400):
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == 400}
        chromium("Emulation.setDeviceMetricsOverride", **screen)
        assert chromium.value("document.documentElement.scrollWidth") <= width

    # What is refused says so, and the next photo is welcome.
    (tmp_path / "big.jpg").write_bytes(bytes(MAX_MEGABYTES * 1024**2 + 1))
    chromium.drop(tmp_path / "big.jpg", "#upload")
    chromium.wait_for("document.body.innerText.includes('maximum allowed size of 20')")
    (tmp_path / "cut.jpg").write_bytes(bad_files(photo)["cut.jpg"][0])
    chromium.drop(tmp_path / "cut.jpg", "#upload")
    message = chromium.wait_for("document.querySelector('#answer [role=alert]')?.innerText")
    assert "cut.jpg" in message
    assert "truncated" in message
    shutil.copy(photo, tmp_path / "again.jpg")
    chromium.drop(tmp_path / "again.jpg", "#upload")
    chromium.wait_for(SHOWN % "again.jpg")
    assert chromium.value("document.querySelector('#answer [role=alert]')") is None

    asked = [
        event["params"]["request"]["url"]
        for event in chromium.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert any("/upload" in url for url in asked)
    assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []
    said = [event for event in chromium.events if event["method"] == "Log.entryAdded"]
    assert "Content Security Policy" not in json.dumps(said)


def test_it_ends_without_a_trace(server):
    """The last test of `server`, which it ends; what the others made it do counts here too."""
    uploads = [path for path in server.temporary.rglob("*") if path.is_file()]
    assert uploads
    before = server.log.read_text()
    assert before.count("the model is compiled") == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    said = server.log.read_text().removeprefix(before)
    assert said.endswith("ended\n")
    assert "Traceback" not in said
    assert not [path for path in uploads if path.exists()]
    contacts = server.contacts.read_text().splitlines()
    assert [line for line in contacts if "127.0.0.1" not in line] == []
