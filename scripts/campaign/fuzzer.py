"""What a fuzzer is: seeded cases of one kind of harm, and what must hold in each.

Every file of `fuzzers/` is one, and defines FUZZER.
"""

import abc
import contextlib
import importlib.util
import io
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlic_jax.command_line import exit_code
from mlic_jax.errors import UsageError

FOLDER = Path(__file__).with_name("fuzzers")

# What reading a file may take beyond what the process took before.
SECONDS = 5.0
TIMES_ITS_SIZE, MEGABYTES = 20, 200
ADDRESSES = 1 << 30  # of threads, which reserve far more than they use, and hang without it
BYTES_A_PIXEL, PIXELS_A_SECOND = 16, 1e7  # several copies of an image while it is decoded
LONGEST_LINE = 10_000  # characters; a longer one hides what it says

_LINES_SHOWN = 6  # of a stack trace


class Broken(Exception):
    """What should have held did not. The message says what, for the person who mends it."""


class Fuzzer(abc.ABC):
    """One kind of harm.

    Attributes:
        title: what is done, as a heading.
        units: what is counted, such as kills; a case may hold many.
        holds: what is checked of each, in a sentence.
        share: of the time of a whole campaign, relative to the others.
        seconds: after which a case that has not ended hangs.
    """

    title: ClassVar[str]
    units: ClassVar[str]
    holds: ClassVar[str]
    share: ClassVar[float]
    seconds: ClassVar[float]

    def __init__(self, shared: Path):  # noqa: B027, some share nothing
        """Makes what all cases share; `shared` is a folder that all fuzzers of a campaign have."""

    @classmethod
    def lacks(cls) -> str | None:
        """What this machine lacks for it, in words; None where it can be run."""
        return None

    @abc.abstractmethod
    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        """Runs one case, whose input follows from `rng` alone.

        Args:
            rng: of the seed and the number of the case.
            folder: empty, for all that the case writes. It is kept where the case fails.

        Yields:
            For each unit that held a few words, which kind it was and what came of it.

        Raises:
            Broken: something did not hold.
        """


def names() -> list[str]:
    """The fuzzers that there are, one a file."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name: str) -> type[Fuzzer]:
    """A fuzzer by its name.

    Raises:
        UsageError: there is none.
    """
    path = FOLDER / f"{name}.py"
    if name not in names():
        raise UsageError(f"there is no fuzzer {name!r}; known are all, {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"fuzzer_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FUZZER


# --- what checks share


def answer(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """(what a function returns, None), or (None, the line with which it refuses).

    Raises:
        Broken: it ends in anything else, or what a command would print of it is not one line.
    """
    returned = []
    line = refusal(lambda: exit_code(lambda: returned.append(function())))
    return (returned[0], None) if line is None else (None, line)


def refusal(command: Callable[[], int]) -> str | None:
    """The line with which a command refuses; None where its exit code is 0.

    Raises:
        Broken: it ends in anything else, or what it prints of it is not one line.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
            code = command()
    except BaseException:  # a fault of any kind is what is looked for
        raise Broken(f"it ends in {last_lines(traceback.format_exc())}") from None
    if code == 0:
        return None
    if "Traceback" in printed.getvalue():
        raise Broken(f"it ends in {last_lines(printed.getvalue())}")
    _, found, line = printed.getvalue().rstrip("\n").partition("error: ")
    if not found or "\n" in line:
        raise Broken(f"its refusal is not one line: {last_lines(printed.getvalue())}")
    if len(line) > LONGEST_LINE:
        raise Broken(f"its refusal has {len(line)} characters: {line[:200]}...")
    return line


def last_lines(text: str) -> str:
    """The end of what was printed, short enough to be read."""
    lines = [line[:300] for line in text.strip().splitlines()]
    return "\n".join(lines[-_LINES_SHOWN:])


@contextlib.contextmanager
def bounded(size: int, pixels: int = 0) -> Iterator[None]:
    """Inside, no more time and memory may be taken than an honest file needs.

    What the process held at its peak is seen at the end. Far more is refused to it: what is claimed
    is not to be got, even if it is never used.

    Args:
        size: bytes of the file.
        pixels: that it holds, if it is an image; they are honest work too.

    Raises:
        Broken: more was taken.
    """
    limit = TIMES_ITS_SIZE * size + MEGABYTES * 2**20 + BYTES_A_PIXEL * pixels
    allowed = SECONDS + pixels / PIXELS_A_SECOND
    before = _memory()
    Path("/proc/self/clear_refs").write_text("5")  # from now on the peak is that of the block
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (before["VmSize"] + limit + ADDRESSES, hard))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    seconds = time.process_time() - start
    taken = _memory()["VmHWM"] - before["VmRSS"]
    if seconds > allowed:
        raise Broken(f"it took {seconds:.1f} s of the processor; {allowed:.1f} are allowed")
    if taken > limit:
        raise Broken(f"it took {taken >> 20} MB; {limit >> 20} are allowed for {size} bytes")


def _memory() -> dict[str, int]:
    """The kernel's figures of this process, bytes by name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(count) * 1024 for name, count, _ in pairs}
