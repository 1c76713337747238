"""Puts faults into copies of the code, one at a time, and tells which of them the tests notice.

    python scripts/mutation.py
    python scripts/mutation.py --only mcar msrn --jobs 2

A fault is one that a person could make: an option not passed on, a wrong axis, a bound off by one.
`scripts/mutation_faults/` holds a file a module, `<name>.toml`: the path of the module, the tests
that are about it (few files, for they run once a fault), and of each fault what is wrong and the
text before and after. A fault may name tests of its own. One whose text does not occur exactly once
is stale: the module has changed, and the fault has to be written anew.

Each fault goes into a copy of the working tree, never into the tree itself, where `pytest -x -q -m
'not slow'` runs its tests; the same tests must pass there without it. A fault that is not noticed
either changes nothing that anybody could see, and is to be replaced by one that does, or it needs a
test. Compiled programs are kept, so that a second run is much faster than the first.

The table is printed and written to --out as JSON, in which what was found of other modules before
stays. The exit code is 1 where fewer than 95 % of the faults that were tried are noticed, or one is
stale.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
LEAST_NOTICED = 0.95
# What the tests need of the tree.
COPIED = ("configs", "docs", "mlic_jax", "scripts", "tests", "weight_conversion")
COPIED += ("README.md", "pyproject.toml", "setup.cfg")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One wrong line of code."""

    module: str  # the name of its file in the folder of faults
    path: str  # of the module's code, from the root of the tree
    what: str  # is wrong
    before: str
    after: str
    tests: tuple[str, ...]  # files, or single tests as pytest names them


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    module: str
    what: str
    result: str  # noticed, not noticed or stale
    seconds: float = 0.0
    by: str = ""  # the test that noticed it


def read_faults(folder: Path, only: Sequence[str] = ()) -> list[Fault]:
    """The faults of all modules, or of some, by module and in the order of their file.

    Raises:
        UsageError: there is no such module, or no fault at all.
        Failure: a file is malformed, or two of its faults have one name.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.toml"))}
    if unknown := sorted(set(only) - files.keys()):
        raise UsageError(f"no faults of {', '.join(unknown)}; there are {', '.join(files)}")
    faults = [fault for name in only or files for fault in _faults_of(files[name])]
    if not faults:
        raise UsageError(f"no faults in {folder}")
    return faults


def _faults_of(file: Path) -> list[Fault]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        common = {"module": file.stem, "path": table.pop("path"), "tests": table.pop("tests")}
        faults = [Fault(**{**common, **fields}) for fields in table.pop("faults")]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise Failure(f"{file} is no table of faults: {error}") from error
    if table or len({fault.what for fault in faults}) < len(faults):
        raise Failure(f"{file}: a key is unknown, or two faults have the same name")
    return [dataclasses.replace(fault, tests=tuple(fault.tests)) for fault in faults]


def is_stale(fault: Fault, tree: Path) -> bool:
    """Whether the module in a tree does not hold the fault's text exactly once."""
    path = tree / fault.path
    return not path.is_file() or path.read_text(encoding="utf-8").count(fault.before) != 1


def copy_tree(root: Path, copy: Path) -> None:
    """Copies what the tests need, without compiled code."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(root / name, copy / name)


@contextmanager
def put_in(fault: Fault, copy: Path) -> Iterator[None]:
    """Inside, the copy of the tree has the fault."""
    path = copy / fault.path
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(fault.before, fault.after), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(sound, encoding="utf-8")


def run_tests(tests: Sequence[str], copy: Path, limit: float | None = None) -> tuple[int, str]:
    """Runs tests in a copy of the tree, killed after `limit` seconds: pytest's exit code, output.

    No bytecode is written: it is told by time and size, and a fault may leave both as they were.
    """
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(copy), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what a test started dies with it
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return signal.SIGKILL, f"nothing after {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output


def time_without_fault(tests: Sequence[str], copy: Path) -> float:
    """The seconds that tests take in a copy without a fault.

    Raises:
        Failure: they do not pass, so that they would notice anything.
    """
    started = time.monotonic()
    code, output = run_tests(tests, copy)
    if code:
        failed = f"pytest {' '.join(tests)} exits with {code}: {last_line(output)}"
        raise Failure(f"without any fault, {failed}")
    return time.monotonic() - started


def last_line(output: str) -> str:
    """What pytest says at its end."""
    return (output.strip().splitlines() or ["nothing was printed"])[-1]


def try_out(fault: Fault, copy: Path, usual: float) -> Outcome:
    """Runs the tests of a fault that take `usual` seconds without it; hanging is noticed too."""
    if is_stale(fault, copy):
        return Outcome(fault.module, fault.what, "stale")
    started = time.monotonic()
    with put_in(fault, copy):
        code, output = run_tests(fault.tests, copy, limit=60 + 5 * usual)
    seconds = round(time.monotonic() - started, 1)
    if code == 0:
        return Outcome(fault.module, fault.what, "not noticed", seconds)
    by = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - |$)", output, re.MULTILINE)
    return Outcome(fault.module, fault.what, "noticed", seconds, by[1] if by else last_line(output))


def try_all(faults: Sequence[Fault], jobs: int) -> list[Outcome]:
    """Tries every fault, `jobs` at a time, each of these in a copy of its own of the tree."""
    selections = list(dict.fromkeys(fault.tests for fault in faults))
    outcomes = []
    here = threading.local()

    def copy_here() -> None:
        here.copy = Path(tempfile.mkdtemp(dir=folder))
        copy_tree(ROOT, here.copy)

    with (
        tempfile.TemporaryDirectory(prefix="mutation-") as folder,
        ThreadPoolExecutor(jobs, initializer=copy_here) as pool,
    ):
        try:
            times = pool.map(lambda tests: time_without_fault(tests, here.copy), selections)
            times = tqdm(times, "without faults", len(selections))
            usual = dict(zip(selections, times, strict=True))
            tried = pool.map(lambda fault: try_out(fault, here.copy, usual[fault.tests]), faults)
            for outcome in tqdm(tried, "faults", len(faults)):
                tqdm.write(line_of(outcome))
                outcomes.append(outcome)
        finally:
            pool.shutdown(cancel_futures=True)
    return outcomes


def line_of(outcome: Outcome) -> str:
    """How an outcome is printed."""
    line = f"{outcome.result:11} {outcome.seconds:6.1f} s  {outcome.module}: {outcome.what}"
    return f"{line} ({outcome.by})" if outcome.by else line


def table_of(outcomes: Sequence[Outcome]) -> str:
    """A line a module, then whatever was not noticed."""
    lines = [f"{'module':20} faults noticed seconds"]
    for module in [*dict.fromkeys(o.module for o in outcomes), "all"]:
        rows = [o for o in outcomes if module in (o.module, "all")]
        noticed = sum(o.result == "noticed" for o in rows)
        lines.append(f"{module:20} {len(rows):6} {noticed:7} {sum(o.seconds for o in rows):7.0f}")
    return "\n".join([*lines, *(line_of(o) for o in outcomes if o.result != "noticed")])


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes the outcomes as JSON; those of other modules that are in the file stay in it."""
    modules = {outcome.module for outcome in outcomes}
    rows = json.loads(path.read_text(encoding="utf-8"))["faults"] if path.is_file() else []
    rows = [row for row in rows if row["module"] not in modules]
    rows = sorted([*rows, *map(dataclasses.asdict, outcomes)], key=lambda row: row["module"])
    noticed = sum(row["result"] == "noticed" for row in rows)
    found = {"tried": len(rows), "noticed": noticed, "faults": rows}
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line of this script; returns the exit code."""
    parser = Parser(prog="python scripts/mutation.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=(), metavar="MODULE", help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="so many tests at a time")
    parser.add_argument("--faults", type=Path, default=ROOT / "scripts" / "mutation_faults")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "mutation.json")

    def run() -> None:
        options = parser.parse_args(arguments)
        if options.jobs < 1:
            raise UsageError(f"--jobs is {options.jobs}; it must be at least 1")
        outcomes = try_all(read_faults(options.faults, options.only), options.jobs)
        write_outcomes(options.out, outcomes)
        print(table_of(outcomes))
        noticed = sum(outcome.result == "noticed" for outcome in outcomes)
        if stale := sum(outcome.result == "stale" for outcome in outcomes):
            raise Failure(f"{stale} faults are stale: write them anew in {options.faults}")
        if noticed < LEAST_NOTICED * len(outcomes):
            raise Failure(
                f"{noticed} of {len(outcomes)} faults are noticed, fewer than {LEAST_NOTICED:.0%}"
            )

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
