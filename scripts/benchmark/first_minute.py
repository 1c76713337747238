"""The first minute: how long a recipe takes from the command to its first training step.

    python scripts/benchmark/first_minute.py --out docs/benchmark --page docs/benchmarks.md
    python scripts/benchmark/first_minute.py --only mcar_custom msrn_custom ...

Every recipe trains for one step, by its own command at its own image size, from random weights on a
handful of generated scenes that are prepared before: first with an empty cache of programs, then
with what that run left there, and is then stopped. What the first run compiles is counted: a
program that is compiled twice fails the command. `--only` measures some recipes and leaves the
others in the files as they are.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import present
from measure import _cpu

from mlic_jax import recipes
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.files.marked import split_page

NAME = "first_minute"
COMMAND = [sys.executable, "-m", "mlic_jax.main"]
# The same, and JAX says every program that it compiles, which the command hides.
SHOWING_PROGRAMS = """
import logging, runpy
logger = logging.getLogger("jax")
logger.setLevel(logging.WARNING)
logger.propagate = False
runpy.run_module("mlic_jax.main", run_name="__main__", alter_sys=True)
"""
HELP_RUNS = 5
SECONDS = 600  # until a run is given up
IMAGES = 2  # of a step: what is compiled takes as long for more, and the step itself less

# What JAX says under JAX_LOG_COMPILES, and what we say.
COMPILING = re.compile(r"Compiling \S+ with global shapes and types")
FOUND = re.compile(r"Persistent compilation cache hit for '(\S+)'")
COMPILED = re.compile(r"Compiled (.+?) in ([\d.]+) s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="first_minute.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="default: all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write first_minute.json there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table there")
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    for name in options.only:
        if name not in recipes.known():
            raise UsageError(f"--only {name}: no such recipe; see `mlic recipes`")
    if options.page:
        split_page(options.page, present.mark_of(NAME))
    file = options.out and options.out / f"{NAME}.json"
    measured = {"cpu": _cpu(), "recipes": {}}
    if options.only and file and file.is_file():
        before = json.loads(file.read_text())
        if before["cpu"] != measured["cpu"]:
            raise UsageError(f"{file} is of {before['cpu']}: measure all recipes, without --only")
        measured = before
    measured["help_seconds"] = help_seconds()
    twice = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name in options.only or recipes.known():
            print(f"{name} ...", file=sys.stderr, flush=True)
            runs, log = measure(name, Path(folder))
            measured["recipes"][name] = runs
            twice += [f"{name}: {program}" for program in compiled_twice(log)]
    text = to_markdown(measured)
    print(text)
    if file:
        write_text(file, json.dumps(measured, indent=2, sort_keys=True) + "\n")
    if options.page:
        present.update_table(options.page, NAME, text, chart=None)
    if twice:
        raise Failure(f"compiled twice: {'; '.join(twice)}")


def help_seconds() -> float:
    """How long `--help` takes: the median of a few."""
    seconds = []
    for _ in range(HELP_RUNS):
        start = time.monotonic()
        subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - start)
    return sorted(seconds)[HELP_RUNS // 2]


def on_scenes(name: str, folder: Path) -> list[str]:
    """The options that have a recipe train on a few scenes, one step after the other."""
    config = recipes.load(name)
    values = {
        "data.source": "scenes",
        "data.name": "scenes",
        "data.prepared_dir": folder / "prepared",
        "data.scenes_sizes": "(8,4,4)",
        "data.splits.train": "train",
        "data.splits.val": "val",
        "data.splits.test": "val",
        "batch_size": IMAGES,
        "log_every": 1,
        "checkpoint_every": 1,
    }
    if config.model.name == "msrn":
        values["data.word_vectors"] = "one_hot"
        values["model.pool_ratio"] = max(config.model.pool_ratio, 0.1)  # of twelve labels one group
    return [f"--config={recipes.find(name)}"] + [
        f"--config.{option}={value}" for option, value in values.items()
    ]


def prepare(folder: Path) -> None:
    """Generates the scenes, which all recipes share."""
    command = [*COMMAND, "--mode=prepare", *on_scenes("mcar_scenes", folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What is written of a recipe, and the log of its run with nothing compiled before."""
    cold_seconds, log = first_step(name, folder)
    warm_seconds, _ = first_step(name, folder)
    config = recipes.load(name)
    compiled = {what: float(seconds) for what, seconds in COMPILED.findall(log)}
    runs = {
        "model": f"{config.model.name}, {config.model.backbone}, {config.data.image_size} px",
        "cold_seconds": cold_seconds,
        "warm_seconds": warm_seconds,
        "compiled_seconds": compiled,
        "programs": len(COMPILING.findall(log)),
    }
    return runs, log


def first_step(name: str, folder: Path) -> tuple[float, str]:
    """Seconds from the command to its first step, and what was logged until then.

    Raises:
        Failure: it ends before, or takes too long.
    """
    environment = os.environ | {
        "XDG_CACHE_HOME": str(folder / f"cache_{name}"),
        "JAX_LOG_COMPILES": "1",
    }
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        path, curves = Path(workdir) / "log", Path(workdir) / "run" / "metrics.jsonl"
        options = [f"--workdir={curves.parent}", *on_scenes(name, folder)]
        command = [sys.executable, "-c", SHOWING_PROGRAMS, *options]
        start = time.monotonic()
        with path.open("w") as log:
            run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while not (curves.is_file() and curves.stat().st_size):
                if run.poll() is not None or time.monotonic() - start > SECONDS:
                    last = path.read_text(errors="replace").splitlines()[-1:]
                    raise Failure(f"{name}: no step after {SECONDS} s, or it ended: {last}")
                time.sleep(0.02)
            seconds = time.monotonic() - start
        finally:
            run.kill()
            run.wait()
        return seconds, path.read_text(errors="replace")


def compiled_twice(log: str) -> list[str]:
    """The programs that a run took from the cache: where that was empty, its own, made before."""
    return FOUND.findall(log)


def to_markdown(measured: dict[str, Any]) -> str:
    """The table, and a line of what holds for all recipes."""
    lines = [
        f"On {measured['cpu']}: seconds from the command to the first training step of {IMAGES} "
        "images, with no program kept from an earlier run and with all; of the first, what was "
        f"compiled before the step. `--help` takes {measured['help_seconds']:.2f} s.",
        "",
        "| recipe | model | none kept, s | all kept, s | training step, s | evaluation, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, runs in sorted(measured["recipes"].items()):
        step, evaluation = _compiled(runs["compiled_seconds"])
        times = (runs["cold_seconds"], runs["warm_seconds"], step, evaluation)
        lines.append(f"| `{name}` | {runs['model']} | {' | '.join(f'{t:.1f}' for t in times)} |")
    return "\n".join(lines) + "\n"


def _compiled(seconds: dict[str, float]) -> tuple[float, float]:
    """Of the training step, and of all else."""
    step = seconds["the training step"]
    return step, sum(seconds.values()) - step


if __name__ == "__main__":
    sys.exit(main())
