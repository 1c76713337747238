"""One case in a process of its own, which works only while it is asked to.

So that no framework shares threads, memory or settings with another, and a peak is its own.
"""

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from comparison import Sizes, Task, load
from frameworks import FRAMEWORKS

from mlic_jax.errors import Failure

_SECONDS_TO_END = 60


class Worker:
    """The parent's end: a context manager around a process.

    A call is answered by the process's function of that name, and raises Failure where that fails
    or the process ends.
    """

    def __init__(self, title: str, target: Callable, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._title = title
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, *arguments))
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.close()
        self._process.join(_SECONDS_TO_END)  # it ends where nothing more can be asked
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def call(self, name: str) -> Any:
        """What the process answers to `name`."""
        try:
            self._connection.send(name)
            succeeded, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Failure(
                f"{self._title}: its process ended with exit code {self._process.exitcode} (-9 is "
                "what a system sends that runs out of memory; smaller sizes need less)"
            ) from None
        if not succeeded:
            raise Failure(f"{self._title}: {answer}")
        return answer


def start_case(name: str, task: Task, variant: str, accelerated: bool) -> Worker:
    """A worker for a case of a task (its sizes filled in) of the comparison `name`. It answers to:

    outputs: runs it for the first time and returns what it computes, NumPy's arrays by name.
    peak: runs it and returns what memory it needs at most above the level before, bytes or None.
    time: runs it and returns when it began (seconds of a clock that all processes share) and how
        many seconds it took.
    """
    title = f"{task.title}, {variant}"
    return Worker(title, _case_functions, name, task.name, dict(task.sizes), variant, accelerated)


def start_probe(framework: str) -> Worker:
    """A worker that answers to `describe`: (version, accelerator or None), or None if missing."""
    return Worker(framework, _probe_functions, framework)


def _serve(connection: Connection, target: Callable, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    functions = None
    while True:
        try:
            name = connection.recv()
        except (EOFError, OSError):
            return
        try:
            functions = functions or target(*arguments)
            answer = (True, functions[name]())
        except Exception as error:
            traceback.print_exc()
            answer = (False, f"{type(error).__name__}: {error}")
        connection.send(answer)


def _case_functions(
    name: str, task_name: str, sizes: Sizes, variant: str, accelerated: bool
) -> Mapping[str, Callable]:
    task = load(name).task(task_name)
    case = task.case(variant)
    framework = FRAMEWORKS[case.framework](accelerated)
    run = case.make(_put(task.inputs(sizes), framework.put), sizes)

    def run_to_its_end() -> dict[str, Any]:
        outputs = run()
        framework.wait(outputs)
        return outputs

    def outputs() -> dict[str, np.ndarray]:
        return {name: framework.fetch(output) for name, output in run_to_its_end().items()}

    def timed() -> tuple[float, float]:
        start = time.perf_counter()
        run_to_its_end()
        return start, time.perf_counter() - start

    def peak() -> int | None:
        return framework.peak_bytes(run_to_its_end)

    return {"outputs": outputs, "peak": peak, "time": timed}


def _put(inputs: Any, put: Callable) -> Any:
    if isinstance(inputs, dict):
        return {name: _put(value, put) for name, value in inputs.items()}
    return put(inputs)


def _probe_functions(framework: str) -> Mapping[str, Callable]:
    def describe() -> tuple[str, str | None] | None:
        try:
            return FRAMEWORKS[framework](accelerated=True).describe()
        except ImportError:
            return None

    return {"describe": describe}
