"""Serves a bundle with Ray Serve: a photo is posted, and what the model says comes back as JSON.

    python -m venv serving
    serving/bin/pip install -q 'ray[serve]' numpy pillow onnxruntime
    serving/bin/python scripts/serving/ray_serve.py scenes.bundle --replicas 2
    curl --data-binary @photo.jpg http://127.0.0.1:8000/

The answer is that of `run.py` in the bundle, whose program labels the photos here too; a photo that
cannot be read is answered by 400 and an `error`. This file and the bundle are all that it needs.
"""

import argparse
import asyncio
import importlib.util
import io
import os
from pathlib import Path
from types import ModuleType

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it tells its makers of its use

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


def program(folder: Path) -> ModuleType:
    """`run.py` of a bundle."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A replica computes one photo on its core while it decodes the next; others wait in the proxy,
# where they are safe from its end.
@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=2)
class Labels:
    """A replica: a process with the model in it."""

    def __init__(self, folder: Path):
        self.bundle = program(folder).Bundle(folder, threads=1)

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method != "POST":
            return JSONResponse({"error": "post a photo"}, 405, {"Allow": "POST"})
        photo = io.BytesIO(await request.body())
        said = await asyncio.to_thread(self.bundle, photo)
        del said["file"]
        if "error" in said:
            said["error"] = said["error"].replace(repr(photo), "in what was posted")
        return JSONResponse(said, 400 if "error" in said else 200)


def start(folder: Path, replicas: int, port: int) -> None:
    """Starts Ray, and the replicas behind a proxy at 127.0.0.1; it logs into files alone."""
    ray.init(num_cpus=replicas, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Labels.options(num_replicas=replicas).bind(folder.resolve()))


def main() -> None:
    """Runs the command line, until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--replicas", type=int, default=2, metavar="N", help="cores that label")
    parser.add_argument("--port", type=int, default=8000, metavar="N")
    given = parser.parse_args()
    if not (given.bundle / "run.py").is_file():
        parser.error(f"{given.bundle} is no bundle with a model in ONNX: it has no run.py")
    start(given.bundle, given.replicas, given.port)
    print(
        f"http://127.0.0.1:{given.port}/ labels photos that are posted; Ctrl-C ends it", flush=True
    )
    try:
        asyncio.run(asyncio.Event().wait())
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
