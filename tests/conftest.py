"""No dtype or rank promoted and eight CPU devices for every test; sets and settings they share."""

import contextlib
import gc
import json
import logging
import os
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests and the processes they start compile many programs again: each is kept.
CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

# Before any of these is imported: from here on they check what they are given and give back, an
# int for a float as type checkers do.
jaxtyping.install_import_hook(
    ("mlic_jax.models", "mlic_jax.scores", "mlic_jax.train.losses", "mlic_jax.train.label_losses"),
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

from mlic_jax.data.options import DataOptions
from mlic_jax.train.options import TrainOptions

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Files with tests of a minute come first: what is short fills the time of the workers to the end.
LONGEST = ("test_campaign.py", "test_processes.py", "test_main.py", "test_loop.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """What was imported stays: to look through it for garbage takes a second, again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def log_as_it_was():
    """What a test, or a library that it calls, sets of the log is not there for the next one."""
    loggers = [logging.getLogger(), logging.getLogger("mlic_jax")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs beside a checkout; a user's machine has none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of photographs ../shared, which is not part of the project")
    return folder


@pytest.fixture(scope="session")
def without_jax(tmp_path_factory) -> Path:
    """A folder for `PYTHONPATH` with which a process that imports JAX ends in an error of ours."""
    folder = tmp_path_factory.mktemp("without_jax")
    (folder / "jax.py").write_text("raise AssertionError('this needs no JAX, which takes seconds')")
    return folder


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory) -> Path:
    """Where the tests' small sets are prepared, once a session."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def make_config(prepared_dir) -> Callable:
    """A recipe of seconds: few small scenes, a narrow backbone, two epochs of three steps."""
    from mlic_jax.config import default_config

    def make():
        config = default_config()
        config.epochs = 2
        config.batch_size = 8
        config.log_every = 1
        config.model.backbone = "resnet10"
        config.model.width = 0.125
        config.model.top_n = 2
        config.data.source = "scenes"
        config.data.name = "tiny_scenes"
        config.data.prepared_dir = str(prepared_dir)
        config.data.scenes_sizes = (20, 9, 11)
        config.data.image_size = 64
        config.optim.learning_rate = 0.05
        config.eval.batch_size = 1  # of eight devices
        return config

    return make


@pytest.fixture(scope="session")
def in_float64() -> Callable:
    """(model or backbone, variables) -> both in float64, to be run inside `jax.enable_x64(True)`.

    For comparisons of what jumps: a gradient where a ReLU or a maximum changes sides, a region at
    its threshold. Of a million values some come within a rounding of float32 of such an edge, and
    the processor decides their side; within one of float64, none but those that are on it: a ramp
    of a profile meets a threshold of 1/2 exactly on a pixel of small maps.
    """
    from mlic_jax.models.layers import ConvBatchNorm

    def widen(module: nn.Module, variables: dict) -> tuple[nn.Module, dict]:
        backbone = getattr(module, "features", module)
        if hasattr(backbone, "layer"):
            backbone = backbone.clone(layer=partial(ConvBatchNorm, dtype=jnp.float64))
        if hasattr(backbone, "dtype"):
            backbone = backbone.clone(dtype=jnp.float64)
        if hasattr(module, "features"):
            backbone = module.clone(features=backbone)
        return backbone, jax.tree.map(partial(np.asarray, dtype=np.float64), variables)

    return widen


@pytest.fixture(scope="session")
def fresh_run() -> Callable:
    """(variables, metadata) of a run that did no step."""
    from mlic_jax.data import sources
    from mlic_jax.models import create_model
    from mlic_jax.train.resume import run_metadata
    from mlic_jax.train.start import initial_variables

    def make(config, workdir=Path()):
        split = sources.open_splits(DataOptions.of(config.data))["train"]
        model = create_model(config.model, len(split.class_names))
        return jax.device_get(initial_variables(model, TrainOptions.of(config))), run_metadata(
            config, split, workdir
        )

    return make


@pytest.fixture
def config(make_config):
    """`make_config` for a test to change."""
    return make_config()


@pytest.fixture(scope="session")
def files_of_at_most() -> Callable:
    """(bytes) -> a context; inside, writing more into a file fails, as on a full disk."""

    @contextlib.contextmanager
    def limited(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
    # Even what Chromium would ask for itself has no address.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
# Chromium reads commands from descriptor 3 and answers on 4.
START = """
import os, sys
_, its_input, its_output, *command = sys.argv
os.dup2(int(its_output), 100)
os.dup2(int(its_input), 3)
os.dup2(100, 4)
os.execv(command[0], command)
"""


class Browser:
    """Headless Chromium, spoken to over its DevTools protocol, which a pipe carries."""

    def __init__(self, folder):
        its_input, self._write = os.pipe()
        self._read, its_output = os.pipe()
        flags = (*FLAGS, f"--user-data-dir={folder}")
        with (folder / "stderr").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(its_input), str(its_output), CHROMIUM, *flags],
                pass_fds=(its_input, its_output),
                stderr=errors,
            )
        os.close(its_input)
        os.close(its_output)
        self.events, self._bytes, self._session, self._number = [], b"", {}, 0

    def open(self, url):
        """Shows a page, and notes what it loads and says."""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Network", "Page", "Runtime", "Log"):
            self(f"{domain}.enable")
        self("Page.navigate", url=url)

    def __call__(self, method, **params):
        """Sends a command and gives its result; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self):
        while b"\0" not in self._bytes:
            assert select.select([self._read], [], [], 60)[0], "Chromium does not answer"
            self._bytes += os.read(self._read, 2**16) or pytest.fail("Chromium has gone")
        message, _, self._bytes = self._bytes.partition(b"\0")
        return json.loads(message)

    def value(self, expression):
        """Of JavaScript in the page."""
        answer = self(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression):
        """Its value, once that is true."""
        for _ in range(300):
            if value := self.value(expression):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{expression} in: {self.value('document.body.innerText')}")

    def drop(self, path, selector):
        """Drags a file onto the middle of an element."""
        middle = """(() => { const box = document.querySelector(%r).getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2] })()"""
        x, y = self.value(middle % selector)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def close(self):
        """Ends it."""
        self._session = {}
        self("Browser.close")
        self.process.wait(20)
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def chromium(tmp_path_factory) -> Iterator[Browser]:
    """A browser without a screen."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
