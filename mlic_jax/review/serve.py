"""A page on this machine that asks for one label after the other.

    python -m mlic_jax.main --mode=review --workdir runs/mydata

A few routes of JSON on Python's own server, which needs no other package: every answer is on the
disk before the request ends, and the page shows the next question only then. The page is for one
browser or several, each with the name of a person.

It answers those alone who ask for this machine by its address or name, so that no other site's name
can be pointed at it, and takes answers from its own page alone: from nowhere else does a browser
send JSON without asking first, and nobody is told that they may.
"""

import io
import ipaddress
import json
import logging
import math
import re
import signal
import socket
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mlic_jax.data import sources
from mlic_jax.data.corrections import NAMES, VALUES, require_usable
from mlic_jax.data.image_files import printable
from mlic_jax.data.label_tree import of_options
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.names import require_one_of
from mlic_jax.predict.serve import PHOTO_SIDE, address, listen, shrunk, warm_up
from mlic_jax.review.look import Look
from mlic_jax.review.questions import Question, Questions
from mlic_jax.runtime.checkpoint import find_checkpoint
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.pooled import mean_features
from mlic_jax.scores.scoring import load_model

logger = logging.getLogger(__name__)

LONGEST_REQUEST = 2**20  # bytes
SECONDS = 30  # that a request may take to arrive
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.mjs": ("page.mjs", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}


def review_run(
    config: ConfigDict,
    checkpoint: Path | str,
    who: str,
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Serves the page until it is ended by Ctrl-C or SIGTERM; its address is printed.

    Args:
        config: of the run, with the data that are to be reviewed.
        checkpoint: the run (its best checkpoint), or one of its checkpoints.
        who: the name that the page has to begin with.
        host: the address to listen on. On another than the loopback one, anyone who reaches the
            machine can use the page.
        port: 0 for any that is free.

    Raises:
        UsageError: `data.corrections` names no file, there is no such checkpoint, or the address is
            in use.
        Failure: the checkpoint or the file of corrections cannot be read.
    """
    if not config.data.corrections:
        raise UsageError(
            "data.corrections is empty, the file for the answers: a recipe of mlic prepare names "
            "it; for another say --config.data.corrections=own/NAME/corrections.csv, here and in "
            "training"
        )
    require_usable(config.data.corrections)
    options, path = ScoreOptions.of(config), find_checkpoint(Path(checkpoint))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with listen(host, port) as listener:
            splits = list(
                {of.split: of for of in sources.open_prepared(options.data).values()}.values()
            )
            model, variables, _ = load_model(options, path, splits[0])
            features = [mean_features(model, variables, split, options) for split in splits]
            data, file = options.data, Path(config.data.corrections)
            tree = of_options(data, splits[0].class_names) if data.fill_parents else None
            questions = Questions(splits, np.concatenate(features), file, tree)
            look = Look(path)
            warm_up(look.predictor)
            with Server(listener, Review(questions, look, who)) as server:
                print(f"answers go to {questions.file}")
                print(f"the page is {address(listener)} until Ctrl-C", flush=True)
                server.serve_forever()
    except KeyboardInterrupt:
        print("ended")


class Review:
    """What the page asks for: methods by the names of its requests, from JSON to JSON."""

    def __init__(self, questions: Questions, look: Look, who: str):
        self.questions, self._look, self._who = questions, look, who
        self._unreadable: set[int] = set()
        self._lock = threading.Lock()  # one photo after the other goes through the model

    def start(self, _: Any) -> dict[str, Any]:
        """The person to begin with, and how many questions there are in each list."""
        counts = {name: self.questions.next(name)[1] for name in ("doubtful", "unlabelled")}
        return {"who": self._who, "classes": list(self.questions.class_names), "open": counts}

    def next(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The next question of the list `list`, none of `passed`, pairs of photo and class.

        With what could not be read on the way, a line a photo.
        """
        passed = {(index(row), index(c)) for row, c in asked["passed"]}
        notes: list[str] = []
        while True:
            question, count = self.questions.next(asked["list"], passed, self._unreadable)
            if question is None:
                return {"question": None, "open": 0, "notes": notes}
            try:
                return {"question": self._shown(question), "open": count, "notes": notes}
            except Exception as error:  # Pillow raises nearly anything, of this photo alone
                split, position = self.questions.photo(question.row)
                notes.append(printable(f"{split.where(position)} is left out: {reason(error)}"))
                self._unreadable.add(question.row)

    def answer(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keeps `answers`, each photo, class and word of `VALUES`, of the person `who`."""
        answers = [(index(row), index(c), str(word)) for row, c, word in given["answers"]]
        for _, _, word in answers:
            require_one_of("the answer", word, VALUES)
        self.questions.answer(answers, person(given))
        return {"kept": len(answers)}

    def rest(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keeps that nothing more is present in the photo `row`, which came without labels."""
        return {"kept": self.questions.answer_rest(index(given["row"]), person(given))}

    def undo(self, given: dict[str, Any]) -> dict[str, Any]:
        """Takes back the last answer of `who`, and shows its question again."""
        question = self.questions.undo(person(given))
        shown = None if question is None else self._shown(question)
        return {"question": shown, "notes": [] if shown else ["there is no answer to take back"]}

    def retrain(self, _: Any) -> dict[str, Any]:
        """Fits the probe to the labels as they are now; see `Questions.rank`."""
        return self.questions.rank()

    def photo(self, row: int) -> bytes:
        """A photo as JPEG, as large as it is shown."""
        content = io.BytesIO()
        shrunk(self._read(row), PHOTO_SIDE).save(content, "JPEG", quality=90)
        return content.getvalue()

    def _read(self, row: int) -> Image.Image:
        split, position = self.questions.photo(row)
        return split.decode(split[position])

    def _shown(self, question: Question) -> dict[str, Any]:
        """A question as the page shows it."""
        split, position = self.questions.photo(question.row)
        label = self.questions.label(question.row, question.class_index)
        name = split.class_names[question.class_index]
        people = self.questions.corrections()
        image = self._read(question.row)
        with self._lock:
            seen = self._look(question.row, image, name)
        probability = question.probability
        return {
            "row": question.row,
            "class_index": question.class_index,
            "photo": split.image_id(position),
            "split": split.split,
            "class": name,
            "kind": question.kind,
            "said": NAMES[int(split.labels()[label[1:]])],
            "people": [
                {"who": one.who, "answer": one.answer}
                for one in people.standing.get(label, {}).values()
            ],
            "probability": None if math.isnan(probability) else probability,
            "model": seen.probability,
            "box": seen.box and shares(seen.box, image),
            "present": [
                split.class_names[c]
                for c in np.flatnonzero(self.questions.labels()[question.row] > 0)
            ],
            "open_classes": len(self.questions.open_classes(question.row)),
            "image": f"/photo/{question.row}",
        }


def person(given: dict[str, Any]) -> str:
    """The name of who asks; raises TypeError where it is no text."""
    if not isinstance(given["who"], str):
        raise TypeError("who must be a name")
    return given["who"].strip()


def shares(box: tuple[int, int, int, int], image: Image.Image) -> list[float]:
    """Left, top, width and height of (y1, x1, y2, x2), as shares of the image."""
    y1, x1, y2, x2 = box
    width, height = image.size
    return [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]


# --- the server


class Server(ThreadingHTTPServer):
    """Serves a review on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, review: Review):
        super().__init__(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.review = listener, review
        self.names = {socket.gethostname().lower(), "localhost"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""
        logger.debug("a request of %s was cut off", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request: the page, a photo, or JSON to a method of `Review`."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS
    server: Server

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if not is_named(self.headers.get("Host", ""), self.server.names):
            self._send(403, "text/plain", b"this is not the name of the page")
        elif path in PAGE:
            name, kind = PAGE[path]
            self._send(200, kind, Path(__file__).with_name(name).read_bytes())
        elif photo := re.fullmatch("/photo/([0-9]{1,9})", path):
            self._answer("image/jpeg", lambda: self.server.review.photo(int(photo[1])))
        else:
            self._send(404, "text/plain", b"there is nothing here")

    def do_POST(self) -> None:
        method = METHODS.get(self.path)
        body = self._body()
        if method is None or body is None or not self._is_of_the_page():
            self.close_connection = True
            self._send(403, "text/plain", b"this is nothing that the page asks for")
            return

        def run() -> bytes:
            try:
                asked = json.loads(body)
                return json.dumps(method(self.server.review, asked)).encode()
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise UsageError(f"the request is malformed: {reason(error)}") from error

        self._answer("application/json", run)

    def _is_of_the_page(self) -> bool:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        return (
            is_named(host, self.server.names)
            and (origin is None or urllib.parse.urlsplit(origin).netloc == host)
            and self.headers.get_content_type() == "application/json"
        )

    def _body(self) -> bytes | None:
        """What was sent; None where its length is not told, or too great."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST_REQUEST:
            return None
        return self.rfile.read(int(length))

    def _answer(self, kind: str, make: Callable[[], bytes]) -> None:
        """Sends what is made; what goes wrong is a line, which the page shows."""
        try:
            self._send(200, kind, make())
        except ConnectionError:
            raise
        except UsageError as error:
            self._send(400, "text/plain; charset=utf-8", str(error).encode(errors="replace"))
        except Exception as error:
            if not isinstance(error, Failure):
                logger.warning("%s failed", self.path, exc_info=True)
            self._send(500, "text/plain; charset=utf-8", reason(error).encode(errors="replace"))

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", POLICY),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing is said of a request."""


METHODS = {
    "/start": Review.start,
    "/next": Review.next,
    "/answer": Review.answer,
    "/rest": Review.rest,
    "/undo": Review.undo,
    "/retrain": Review.retrain,
}


def is_named(host: str, names: set[str]) -> bool:
    """Whether a `Host` is an address, or one of the names of this machine; and no site's."""
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name in names
