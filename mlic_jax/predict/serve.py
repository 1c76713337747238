"""A page on this machine: drop a photo on it, and its labels and regions appear.

    python -m mlic_jax.main --mode=serve --checkpoint runs/voc

Gradio (the extra `serve`) takes the uploads and lets one photo after the other through; what is
shown is HTML from `serve.html.jinja`, with the images in it. All of it works without a network:
Gradio asks nobody anything, and the browser is told to load from this server alone. By itself
Gradio would fetch an address that a request gives in the place of an upload; it gets to see no
request that the page does not make. Uploads lie in a folder of the server's own, for minutes, and
are gone when it ends.
"""

import asyncio
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mlic_jax.data.image_files import printable
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.predict.predictor import Predictor
from mlic_jax.reports.page import REGION_COLOURS, data_uri, is_drawn, page_template
from mlic_jax.reports.predictions import annotate_prediction
from mlic_jax.scores.predictions import Prediction
from mlic_jax.scores.views import host_size, view_sizes

if TYPE_CHECKING:
    import fastapi

MAX_MEGABYTES = 20  # of an upload; for its pixels see `transforms.decode`
LIKELIEST = 10  # labels that are listed, present or not
PHOTO_SIDE, CROP_SIDE = 1280, 400  # of the longer side of what is shown, pixels
WAITING = 20  # photos that may wait for their turn
KEPT = 600  # seconds that an upload lies on the disk, at least; at most twice as long

# Gradio reads these when it is imported: it is to report and to look up nothing.
SILENCE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
# The browser's Content-Security-Policy: what Gradio's own page needs, and nothing from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)

# What the page asks for: its parts, the place of an upload in the queue, what becomes of it. Gradio
# has more routes, some of which fetch what they are told to.
ASKED = {
    "GET": re.compile(
        r"/|/(assets|static|svelte)/.*|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
        r"|/gradio_api/(info|startup-events|heartbeat/[^/]+|queue/data|upload_progress|theme\.css)/?"
    ),
    "POST": re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)/?"),
}
LONGEST_JOB = 2**16  # bytes of what is put into the queue; it names an upload

_TEMPLATE = Path(__file__).with_name("serve.html.jinja")


def serve(checkpoint: str | Path, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serves the page until it is ended by Ctrl-C or SIGTERM; its address is printed.

    Args:
        checkpoint: a run (its best checkpoint), one of its checkpoints or a converted whole model.
        host: the address to listen on. On another than the loopback one, anyone who reaches the
            machine can use the page.
        port: 0 for any that is free.

    Raises:
        UsageError: Gradio is missing, there is no such checkpoint, or the address is in use.
        Failure: the checkpoint cannot be read.
    """
    os.environ |= SILENCE
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UsageError(
            f"the page needs Gradio: pip install 'mlic_jax[serve]' ({error})"
        ) from error
    # Both ways to end it unwind the stack, which removes the uploads. That what an open page has
    # under way ends with the server is no error.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("uvicorn.error").addFilter(lambda record: not _is_cancelled(record))
    try:
        with listen(host, port) as listener, tempfile.TemporaryDirectory() as uploads:
            os.environ["GRADIO_TEMP_DIR"] = uploads
            predictor = Predictor.from_checkpoint(checkpoint)
            app = create_app(predictor)
            options = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
            print(f"the model is compiled, in {warm_up(predictor):.1f} s")
            print(f"the page is {address(listener)} until Ctrl-C", flush=True)
            uvicorn.Server(options).run(sockets=[listener])
    except KeyboardInterrupt:
        print("ended")


def _is_cancelled(record: logging.LogRecord) -> bool:
    return bool(record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises UsageError where there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: {error.strerror}; --port 0 takes any that is free"
        ) from error


def address(listener: socket.socket) -> str:
    """Of the page, with a warning where it is not for this machine alone."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    if ipaddress.ip_address(host).is_loopback:
        return url
    return f"{url} (for everyone who can reach this machine)"


def warm_up(predictor: Predictor) -> float:
    """Compiles the model with a black photo; gives the seconds that it took."""
    start = time.perf_counter()
    size = host_size(predictor.options)
    predictor([np.zeros((size, size, 3), np.uint8)])
    return time.perf_counter() - start


def create_app(predictor: Predictor) -> "fastapi.FastAPI":
    """The page as an ASGI application; `serve` says what the environment must be before."""
    import fastapi
    import gradio

    def answer_upload(path: str) -> tuple[None, str]:
        return None, answer(predictor, Path(path))  # None: there is room for the next photo

    with gradio.Blocks(title="Labels of a photo", delete_cache=(KEPT, KEPT)) as page:
        gradio.HTML(introduction(predictor), apply_default_css=False)
        upload = gradio.File(
            label=f"A photo, up to {MAX_MEGABYTES} MB", height=160, elem_id="upload"
        )
        shown = gradio.HTML(elem_id="answer", min_height=120, apply_default_css=False)
        upload.upload(
            answer_upload,
            upload,
            [upload, shown],
            concurrency_limit=1,
            show_progress_on=shown,
            api_visibility="private",
        )
    page.queue(max_size=WAITING)
    page.has_launched = True  # else Gradio would take any file of this machine for an upload
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Sealed)
    return gradio.mount_gradio_app(
        app,
        page,
        path="/",
        max_file_size=f"{MAX_MEGABYTES}mb",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        theme=gradio.themes.Default(primary_hue="blue", font="system-ui", font_mono="ui-monospace"),
    )


_Scope = dict[str, Any]
_Receive = Callable[[], Awaitable[dict[str, Any]]]
_Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Sealed:
    """Lets the requests of the page through and no others, and adds `POLICY` to every response."""

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        async def send_sealed(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = message | {"headers": [*message.get("headers", ()), policy]}
            await send(message)

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if not is_asked(scope):
            return await _refuse(send_sealed)
        if scope["path"].rstrip("/").endswith("/queue/join"):
            job = clean_job(await _body(receive))
            if job is None:
                return await _refuse(send_sealed)
            scope, receive = _with_body(scope, receive, job)
        await self.app(scope, receive, send_sealed)


def is_asked(scope: dict[str, Any]) -> bool:
    """Whether the page makes requests like this one."""
    method = "GET" if scope.get("method") == "HEAD" else scope.get("method")
    return method in ASKED and ASKED[method].fullmatch(scope["path"]) is not None


def clean_job(body: bytes) -> bytes | None:
    """What is put into the queue: a file of this machine, by its path, and nothing else.

    Gradio then checks that it is an upload. None where the body is of another kind.
    """
    try:
        job = json.loads(body)
        (file,) = job["data"]
        path = file["path"]
        if not path.startswith("/"):  # an address, which Gradio would fetch
            return None
        kept = {name: job.get(name) for name in ("fn_index", "session_hash", "trigger_id")}
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return json.dumps({"data": [file], **kept}).encode()


async def _body(receive: _Receive) -> bytes:
    """Of a request; empty where it is longer than `LONGEST_JOB`."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LONGEST_JOB:
            return b""
    return body


def _with_body(scope: _Scope, receive: _Receive, body: bytes) -> tuple[_Scope, _Receive]:
    """A request, with another body."""
    messages = [{"type": "http.request", "body": body}]

    async def receive_body() -> dict[str, Any]:
        return messages.pop() if messages else await receive()

    replaced = (b"content-length", b"content-type")
    kept = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    new = zip(replaced, (f"{len(body)}".encode(), b"application/json"), strict=True)
    return scope | {"headers": [*kept, *new]}, receive_body


async def _refuse(send: _Send) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": b"this is nothing that the page asks for"})


# --- what is shown


def introduction(predictor: Predictor) -> str:
    """The head of the page, HTML: what the model is."""
    model = predictor.options.model
    sizes = ", ".join(f"{size}" for size in view_sizes(predictor.options))
    return _html(
        "introduction",
        [
            f"{model.name} on {model.backbone}",
            f"{sizes} px{predictor.options.data.fit.described()}",
            f"{len(predictor.class_names)} labels",
            f"labels from {predictor.rule}",
        ],
    )


def answer(predictor: Predictor, path: Path) -> str:
    """What the model says of a photo, or why it says nothing, as HTML."""
    try:
        image = predictor.read(path)
        (prediction,) = predictor.stream([np.asarray(image)])
        if prediction.error:
            raise Failure(prediction.error)
        annotated = data_uri(shrunk(annotate_prediction(image, prediction), PHOTO_SIDE))
        regions = region_rows(image, prediction)
    except Exception as error:  # Pillow raises nearly anything, which concerns this photo alone
        return _html("refusal", printable(path.name), reason(error))
    rows = label_rows(predictor, prediction)
    return _html(
        "answer",
        file=printable(path.name),
        prediction=prediction,
        annotated=annotated,
        labels=[row for row in rows if row["present"]],
        likeliest=rows[:LIKELIEST],
        regions=regions,
    )


def label_rows(predictor: Predictor, prediction: Prediction) -> list[dict[str, Any]]:
    """Every label with its probability and its threshold, the likeliest first."""
    thresholds = dict(zip(predictor.class_names, predictor.thresholds.tolist(), strict=True))
    ranked = sorted(prediction.scores, key=prediction.scores.__getitem__, reverse=True)
    return [
        {
            "name": name,
            "score": prediction.scores[name],
            "threshold": thresholds[name],
            "present": name in prediction.labels,
        }
        for name in ranked
    ]


def region_rows(image: Image.Image, prediction: Prediction) -> list[dict[str, Any]]:
    """Drawn regions with their crops; those of labels that are present first, as they are coloured.

    Args:
        image: the upright photo that the prediction is of.
        prediction: without an error.
    """
    # The k-th region that `annotate_prediction` draws has the k-th colour.
    rows: list[dict[str, Any]] = []
    regions = [region for region in prediction.regions if is_drawn(region.global_probability)]
    below = [region.class_name not in prediction.labels for region in regions]
    for k in np.argsort(below, kind="stable"):
        region = regions[k]
        y1, x1, y2, x2 = region.box
        rows.append(
            {
                "name": region.class_name,
                "colour": None if below[k] else REGION_COLOURS[len(rows) % len(REGION_COLOURS)],
                "crop": data_uri(shrunk(image.crop((x1, y1, x2, y2)), CROP_SIDE)),
                "global_probability": region.global_probability,
                "local_probability": region.local_probability,
            }
        )
    return rows


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """A copy, its longer side at most `side` pixels."""
    image = image.copy()
    image.thumbnail((side, side))
    return image


def _html(macro: str, *arguments: Any, **named: Any) -> str:
    """What a macro of the template gives; its arguments are text, and are escaped."""
    template = page_template(_TEMPLATE, {"probability": lambda value: f"{value:.2f}"})
    return str(getattr(template.module, macro)(*arguments, **named))
