"""The page of a bundle in a real browser: pixels as Pillow's, scores as Python's."""

import functools
import http.server
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data.transforms import INTERPOLATIONS
from mlic_jax.errors import Failure, UsageError
from mlic_jax.export import bundle, run_bundle, web_page, write
from mlic_jax.runtime.checkpoint import save_weights


@pytest.fixture(scope="module")
def exported(make_config, fresh_run, tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("needs npm on the PATH")
    config = make_config()
    config.model.name = "csra"
    variables, metadata = fresh_run(config)
    folder = tmp_path_factory.mktemp("web")
    save_weights(folder / "model", variables, metadata)
    try:
        return write.export(str(folder / "model"), folder / "bundle", ("onnx", "web"))
    except Failure as error:
        pytest.skip(f"needs npm and a registry: {error}")


@pytest.fixture
def address(exported):
    """Where a plain static server has the bundle."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=exported)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/web/"
        server.shutdown()


def test_the_page_proves_itself_and_labels_what_is_dropped(chromium, address, exported, tmp_path):
    chromium.open(address)
    chromium.wait_for("document.body?.dataset.error")
    assert float(chromium.value("document.body.dataset.error")) < 1e-3
    assert chromium.value("document.body.dataset.same") == "8"
    photo = exported / bundle.read(exported)["references"][2]
    chromium.drop(photo, "label")
    name = chromium.wait_for("document.querySelector('figcaption')?.textContent")
    assert name == photo.name
    expected = run_bundle.Bundle(exported)(photo)
    shown = chromium.value("[...document.querySelectorAll('li span')].map(x => x.textContent)")
    ranked = sorted(expected["scores"], key=expected["scores"].get, reverse=True)
    assert shown == (expected["labels"] or ranked[:3])
    (tmp_path / "torn.jpg").write_bytes(b"no photo")
    chromium.drop(tmp_path / "torn.jpg", "label")
    said = chromium.wait_for("document.querySelector('[role=alert]')?.textContent")
    assert "torn.jpg cannot be read" in said
    asked = [
        e["params"]["request"]["url"] for e in chromium.events if "request" in e.get("params", {})
    ]
    assert asked and all(url.startswith((address[:-4], "blob:", "data:")) for url in asked)


SIZES = [(90, 60), (60, 90), (300, 200), (7, 900), (64, 64), (33, 65)]


def test_squares_are_those_of_pillow(chromium, address):
    chromium.open(address)
    chromium.wait_for("document.body?.dataset.ready")
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        for interpolation in INTERPOLATIONS:
            for center_crop in (0.0, 0.875):
                how = {"size": 48, "interpolation": interpolation, "center_crop": center_crop}
                given = {"width": width, "height": height, "pixels": image.ravel().tolist()}
                found = chromium.value(
                    f"import('./squares.mjs').then(of => [...of.square({{...{json.dumps(given)},"
                    f"pixels: new Uint8ClampedArray({given['pixels']})}}, {json.dumps(how)})])"
                )
                expected = run_bundle.square(Image.fromarray(image), how).astype(int)
                error = np.abs(np.reshape(found, expected.shape) - expected).max()
                assert error <= 1, (width, height, how)


def test_a_page_needs_a_model_and_npm(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="web is a page around onnx: give onnx,web"):
        write.export("runs/none", tmp_path / "b", ("web",))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="npm, which is not on the PATH"):
        write.export("runs/none", tmp_path / "b", ("onnx", "web"))
    monkeypatch.undo()
    if shutil.which("npm"):
        monkeypatch.setattr(web_page, "PACKAGE", "onnxruntime-web@0.0.0-none")
        with pytest.raises(Failure, match=r"npm could not give onnxruntime-web@0\.0\.0-none"):
            web_page.write_page(tmp_path)
