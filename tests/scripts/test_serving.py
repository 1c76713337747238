"""A bundle behind servers: Ray Serve under load, and the protocol of Triton and OpenVINO."""

import http.server
import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mlic_jax.export import write
from mlic_jax.runtime.checkpoint import save_weights

SERVING = Path(__file__).resolve().parents[2] / "scripts" / "serving"


@pytest.fixture(scope="module")
def bundle(make_config, fresh_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    config = make_config()
    config.model.name = "pooled"
    variables, metadata = fresh_run(config)
    save_weights(folder / "model", variables, metadata)
    return write.export(str(folder / "model"), folder / "scenes", ("onnx",))


@pytest.mark.slow
def test_nothing_is_lost_when_a_replica_is_killed(bundle):
    pytest.importorskip("ray.serve", reason="needs ray[serve], which no extra has")
    done = subprocess.run(
        [sys.executable, SERVING / "load_test.py", bundle, "--requests", "60", "--port", "8731"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["in_peace"]["right"] == said["a_replica_killed"]["right"] == 60
    assert said["in_peace"]["posted_again"] == 0 < said["alone_ms"]


@pytest.mark.slow
def test_what_is_no_photo_is_answered_by_a_line(bundle):
    pytest.importorskip("ray.serve", reason="needs ray[serve], which no extra has")
    command = [
        sys.executable,
        SERVING / "ray_serve.py",
        bundle,
        "--replicas",
        "1",
        "--port",
        "8732",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert "labels photos" in server.stdout.readline()
            (photo,) = bundle.glob("references/0.*")
            assert answer("http://127.0.0.1:8732/-/healthz") == (200, "success")
            status, said = answer("http://127.0.0.1:8732/", photo.read_bytes())
            assert status == 200 and set(json.loads(said)) == {"labels", "scores", "regions"}
            for body in (b"no photo", b""):
                status, said = answer("http://127.0.0.1:8732/", body)
                assert status == 400
                assert json.loads(said) == {
                    "error": "cannot identify image file in what was posted"
                }
            assert answer("http://127.0.0.1:8732/")[0] == 405
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0


def answer(url, body=None):
    """The status and the text of an answer."""
    try:
        with urllib.request.urlopen(url, body) as said:
            return said.status, said.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Protocol(http.server.BaseHTTPRequestHandler):
    """What the Open Inference Protocol says of a request whose tensors are bytes."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        (tensor,) = json.loads(body[:length])["inputs"]
        raw = body[length:]
        assert self.path == "/v2/models/scenes/infer" and tensor["datatype"] == "UINT8"
        assert len(raw) == tensor["parameters"]["binary_data_size"]
        pixels = np.frombuffer(raw, np.uint8).reshape(tensor["shape"])
        session = self.server.session
        found = session.run(None, {tensor["name"]: pixels})
        outputs = [
            {"name": of.name, "shape": value.shape, "data": value.ravel().tolist()}
            for of, value in zip(session.get_outputs(), found, strict=True)
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"model_name": "scenes", "outputs": outputs}).encode())

    def log_message(self, *what):
        pass


def test_a_client_labels_by_a_server_as_the_bundle_does(bundle, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"no photo")
    server = http.server.HTTPServer(("127.0.0.1", 0), Protocol)
    server.session = onnxruntime.InferenceSession(bundle / "model.onnx")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v2/models/scenes"
    (photo,) = bundle.glob("references/0.*")
    asked, program, torn = (
        subprocess.run([sys.executable, *command], capture_output=True, text=True)
        for command in (
            [SERVING / "ask.py", bundle, url, photo],
            [bundle / "run.py", photo],
            [SERVING / "ask.py", bundle, url, tmp_path / "torn.jpg"],
        )
    )
    server.shutdown()
    server.server_close()
    assert asked.returncode == 0, asked.stderr
    expected = json.loads(program.stdout)
    del expected["file"]
    assert json.loads(asked.stdout) == expected
    assert torn.returncode == 1 and "cannot identify image file" in torn.stderr
    assert len(torn.stderr.splitlines()) == 1
