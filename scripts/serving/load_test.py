"""How `ray_serve.py` bears load, and the end of a replica.

    serving/bin/python scripts/serving/load_test.py scenes.bundle --requests 400

Starts two replicas, posts the reference photos from so many threads, once in peace and once with
SIGKILL to a replica half-way, and prints a line of JSON. An answer is right if it is the one that
the bundle gives in this process. A request that got none or a 5xx is posted again, as every client
should, and counted. Fails where one is lost or wrong, or the replica does not come back.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import signal
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray_serve
from ray import serve

Answer = dict[str, Any]
REPLICAS = 2
TRIES, PAUSE = 20, 0.1  # of a request; seconds before the next
TOLERANCE = 1e-3  # of a probability, as `verify` allows


def post(url: str, photo: bytes) -> tuple[Answer | None, int]:
    """The answer, None if there was none in the end; and how often it was posted again."""
    for again in range(TRIES):
        try:
            with urllib.request.urlopen(url, photo, timeout=30) as answer:
                return json.load(answer), again
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return None, again
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(PAUSE)
    return None, TRIES


def is_same(said: Answer | None, expected: Answer) -> bool:
    """Whether an answer is what the bundle says."""
    return (
        said is not None
        and said["labels"] == expected["labels"]
        and said["regions"] == expected["regions"]
        and all(
            abs(said["scores"][name] - of) < TOLERANCE for name, of in expected["scores"].items()
        )
    )


def load(
    url: str,
    photos: list[tuple[bytes, Answer]],
    requests: int,
    clients: int,
    halfway: Callable[[], None] = lambda: None,
) -> Answer:
    """Posts photos in turn, and calls `halfway` when half of them are answered."""
    answered, lock = [], threading.Lock()

    def one(index: int) -> None:
        photo, expected = photos[index % len(photos)]
        start = time.perf_counter()
        said, again = post(url, photo)
        took = time.perf_counter() - start
        with lock:
            answered.append((took, again, is_same(said, expected)))
            is_half = len(answered) == requests // 2
        if is_half:
            halfway()

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(requests)))
    seconds = time.perf_counter() - start
    took, again, right = zip(*answered, strict=True)
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    return {
        "requests": requests,
        "clients": clients,
        "right": sum(right),
        "posted_again": sum(again),
        "photos_per_s": round(requests / seconds, 1),
        "p50_ms": round(1e3 * cuts[49], 1),
        "p99_ms": round(1e3 * cuts[98], 1),
    }


def seconds_of(bundle: Any, path: Path) -> float:
    """What the bundle takes for a photo without a server, on one core."""
    start = time.perf_counter()
    bundle(path)
    return time.perf_counter() - start


def replicas() -> list[Any]:
    """Those that are there."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return [
        ray.get_actor(of["name"], of["namespace"])
        for of in names
        if of["name"].startswith("SERVE_REPLICA::")
    ]


def kill_one() -> None:
    """Ends a replica's process at once."""
    pid = ray.get(replicas()[0].__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)


def wait_for_all() -> None:
    """Waits until as many replicas run as before; raises TimeoutError if they do not."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        (deployment,) = serve.status().applications["default"].deployments.values()
        if deployment.replica_states == {"RUNNING": REPLICAS} and len(replicas()) == REPLICAS:
            return
        time.sleep(PAUSE)
    raise TimeoutError("a replica that was killed did not come back within a minute")


def main() -> int:
    """Runs the command line; 1 where a request was lost or answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--requests", type=int, default=400, metavar="N")
    parser.add_argument("--clients", type=int, default=4, metavar="N")
    parser.add_argument("--port", type=int, default=8000, metavar="N")
    given = parser.parse_args()
    bundle = ray_serve.program(given.bundle).Bundle(given.bundle, threads=1)
    paths = [given.bundle / name for name in bundle.description["references"]]
    photos = [(path.read_bytes(), bundle(path)) for path in paths]
    alone = round(1e3 * statistics.median(seconds_of(bundle, path) for path in paths), 1)
    ray_serve.start(given.bundle, REPLICAS, given.port)
    url = f"http://127.0.0.1:{given.port}/"
    load(url, photos, 2 * len(photos), given.clients)  # what comes first is slow
    in_peace = load(url, photos, given.requests, given.clients)
    killed = load(url, photos, given.requests, given.clients, kill_one)
    wait_for_all()
    serve.shutdown()
    print(json.dumps({"alone_ms": alone, "in_peace": in_peace, "a_replica_killed": killed}))
    return 0 if in_peace["right"] == killed["right"] == given.requests else 1


if __name__ == "__main__":
    sys.exit(main())
