"""One run of many processes: how they find each other, wait, agree, and end together.

All of them run the same command with `--distributed`. Their launcher (Slurm, Open MPI, GKE, a TPU
slice) tells each who it is, or the flags below do.
"""

import contextlib
import ctypes
import itertools
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from mlic_jax.errors import Failure, UsageError

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "This is one of many processes of the run.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT where process 0 listens, if no launcher says so."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "With --coordinator: of the run.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "With --coordinator: of this process, from 0.", lower_bound=0
)
JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", 300, "How long the processes wait for each other at the start.", lower_bound=1
)
LOST_SECONDS = flags.DEFINE_integer(
    "lost_seconds", 45, "A process silent for so long is lost, and the run ends.", lower_bound=2
)

# How long process 0 may take for what the others wait for: to prepare a set, to write a report.
WAIT_SECONDS = 6 * 3600
# How long a failing process waits for others that fail of the same, to say what each knows of it;
# and how long if it is a wrong request, as it then is to all of them.
FAILING_SECONDS, REFUSING_SECONDS = 3, 30
# How long a file may take to be seen by the other processes.
SHARING_SECONDS = 5

LOST = (
    "another process of this run ended or cannot be reached; its own output says why. The same "
    "command on all processes resumes from the latest checkpoint"
)
ABORTED = (
    "a library aborted this process, and what stands above is what it said of it. The same command "
    "on all processes resumes from the latest checkpoint"
)

# What XLA says where the fault may be in another process.
_SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")

_uses = itertools.count()  # a barrier's name may be used once, and so a key's
_at_abort: Any = None  # a handler of C's, which must live as long as the process
_STDERR = 2  # the file, whatever Python has for it

T = TypeVar("T")


@contextlib.contextmanager
def joined(mode: flags.FlagHolder[str], modes: Collection[str]) -> Iterator[None]:
    """Inside, with `--distributed`, this process is one of the run's; without, nothing changes.

    Only process 0 prints and logs; errors are said by all. No process ends well before all do.
    Where one ends otherwise the rest end within `--lost_seconds` and a little, whatever they were
    waiting for: they say `LOST`, and it its own reason.

    Args:
        mode: the flag that says what to do.
        modes: what many processes can do together.

    Raises:
        UsageError: the flags contradict each other, or no launcher is found and they are not given.
        Failure: the others are not there in time.
    """
    if not DISTRIBUTED.value:
        if any(flag.value is not None for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)):
            raise UsageError("--coordinator, --num_processes and --process_id need --distributed")
        yield
        return
    if mode.value not in modes:
        raise UsageError(f"{mode.value} is for one process: leave --distributed out")
    import jax

    initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    with contextlib.ExitStack() as stack:
        if not is_first():
            logging.disable(logging.WARNING)
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield
            jax.distributed.shutdown()  # waits for all
        except Exception as error:
            if _may_be_of_another(error):
                time.sleep(LOST_SECONDS.value + 2)  # if it is so, this process is aborted
            seconds = REFUSING_SECONDS if isinstance(error, UsageError) else FAILING_SECONDS
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                _client().wait_at_barrier("failing", 1000 * seconds)
            raise


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Finds the other processes; arguments that are None are the launcher's to tell.

    Raises:
        UsageError, Failure: see `joined`.
    """
    import jax

    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UsageError("--coordinator, --num_processes and --process_id are given all or none")
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise UsageError(f"--coordinator is {coordinator!r}; it must be HOST:PORT")
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise UsageError(f"--process_id is {process_id}; it must be below {num_processes}")
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    # It takes SIGTERM, which is to end a process as ever where nobody looks at it: `stop_requests`.
    jax.config.update("jax_enable_preemption_service", False)
    where = coordinator or "the coordinator that the launcher names"
    missing = (
        f"the processes did not find each other at {where} within {JOIN_SECONDS.value} s: are all "
        "of them running, and can they reach it?"
    )
    _say_at_abort(lambda: missing)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=JOIN_SECONDS.value,
            heartbeat_timeout_seconds=LOST_SECONDS.value,
            shutdown_timeout_seconds=WAIT_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise Failure(f"process 0 cannot listen at {where}: {error}") from error
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise UsageError(
            "--distributed finds no launcher that it knows (Slurm, Open MPI, GKE, TPU): give "
            f"--coordinator=HOST:PORT, --num_processes and --process_id ({error})"
        ) from error
    _say_at_abort(_reason_of_abort)


def is_first() -> bool:
    """Whether this process is the one that prints and writes reports."""
    import jax

    return jax.process_index() == 0


def first_alone(action: Callable[[], T]) -> T:
    """`action` of process 0 while the others wait, and then theirs, which finds its work done."""
    if is_first():
        result = action()
        wait_for_all("the first is done")
        return result
    wait_for_all("the first is done")
    return action()


def of_all(name: str, value: str) -> list[str]:
    """The values of all processes, in their order, on every one of them."""
    import jax

    if jax.process_count() == 1:
        return [value]
    name = f"{name} {next(_uses)}"
    _client().key_value_set(f"{name}/{jax.process_index()}", value)
    return [
        _client().blocking_key_value_get(f"{name}/{i}", 1000 * WAIT_SECONDS)
        for i in range(jax.process_count())
    ]


def check_shared(option: str, folder: Path) -> None:
    """Makes a folder, unless it is there, and has all processes look for a file that one writes.

    Raises:
        UsageError: on all of them, where one does not see it; no process leaves anything behind.
    """
    import jax

    if jax.process_count() == 1:
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    # By each, though the first could do it for all: a network file system may remember for long
    # that there was no such folder, except where its own client makes one.
    folder.mkdir(parents=True, exist_ok=True)
    nonce = folder / f".{of_all('nonce', secrets.token_hex(8))[0]}"
    if is_first():
        nonce.touch()
    wait_for_all("the nonce is written")
    deadline = time.monotonic() + SHARING_SECONDS
    while not (seen := nonce.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    all_see = "" not in of_all("the nonce is seen", "yes" if seen else "")
    if is_first():
        nonce.unlink()
    if not all_see:
        for path in missing:
            with contextlib.suppress(OSError):  # another process has it too, or it is not empty
                path.rmdir()
        raise UsageError(f"{option} {folder} must be a folder that all processes share")


def wait_for_all(name: str) -> None:
    """Returns once every process is here; `name` is for the error."""
    import jax

    if jax.process_count() > 1:
        _client().wait_at_barrier(f"{name} {next(_uses)}", 1000 * WAIT_SECONDS)


@contextlib.contextmanager
def stop_requests(step: int) -> Iterator[Callable[[int], bool]]:
    """Inside, SIGTERM and Ctrl-C end no process, but the loop can ask whether there was one.

    A second Ctrl-C acts at once, as ever; with one process so does a second SIGTERM.

    Args:
        step: where all processes are.

    Yields:
        Whether to stop at a step; to be asked of every following step, one by one. A signal to one
        process stops all at the same step, which comes a second or two after it: JAX looks for it
        so often, and has all stop after the step of the one that is furthest. What comes in the
        last second of this context is not heard.
    """
    import jax
    from jax._src import distributed
    from jax.experimental import multihost_utils

    stop = threading.Event()
    previous: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }

    def request(number: int, _: object) -> None:
        signal.signal(number, previous[number])
        if jax.process_count() == 1:
            stop.set()
        else:
            signal.raise_signal(signal.SIGTERM)

    def stop_at(step: int) -> bool:
        if jax.process_count() == 1:
            return stop.is_set()
        return multihost_utils.reached_preemption_sync_point(step)

    try:
        signal.signal(signal.SIGINT, request)
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, request)
        else:
            jax.config.update("jax_enable_preemption_service", True)
            distributed.global_state.initialize_preemption_sync_manager()  # JAX takes SIGTERM
            stop_at(step)
        yield stop_at
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _may_be_of_another(error: BaseException | None) -> bool:
    """Whether it, or one that it followed from, is what XLA says where another process is lost.

    The first error is that of the lost process; what is closed after it may fail in its own way.
    """
    import jax

    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and any(
            sign in str(error) for sign in _SIGNS_OF_LOSS
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say_at_abort(reason: Callable[[], str]) -> None:
    """Has this process say a line and end with code 1 where it is aborted.

    JAX's coordination service does nothing else about a lost process, from a thread of its own
    while Python waits for the devices: a handler of Python's would not run.
    """
    global _at_abort

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(_: int) -> None:
        os.write(_STDERR, f"error: {reason()}\n".encode())
        os._exit(1)

    _at_abort = end
    ctypes.CDLL(None).signal(signal.SIGABRT, end)


def _reason_of_abort() -> str:
    """Another process, unless the coordination service still serves this one as if all were well.

    Its client, where it is what aborts, may not answer at all.
    """
    from jax._src import distributed

    me = distributed.global_state.process_id
    served = threading.Event()

    def ask() -> None:
        with contextlib.suppress(RuntimeError):
            _client().wait_at_barrier(f"{me} is aborted", 1000 * FAILING_SECONDS, [me])
            served.set()

    threading.Thread(target=ask, daemon=True).start()
    return ABORTED if served.wait(FAILING_SECONDS) else LOST


def _client() -> Any:
    """Of JAX's coordination service: its barriers, unlike those of the devices, may take hours."""
    from jax._src import distributed

    return distributed.global_state.client
