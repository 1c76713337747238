"""Measures ways to compute the same thing side by side: time, and memory at its peak.

    python scripts/benchmark/run.py spatial_attention --json attention.json --chart attention.svg
    python scripts/benchmark/run.py msrn --size image_size=224 batch=2
    python scripts/benchmark/run.py FILE.py      (a comparison of your own, see comparison.py)

Every variant has a process of its own. First their outputs are compared: what computes something
else is refused. Then they are timed in turns, one call each a round. At last each says what memory
a call needs at its peak above the level before: on a CPU that of the process, with malloc told to
keep nothing that is freed, so that no leftovers count. Where a framework sees an accelerator it is
measured there too, in a table of its own. Without the extra `torch` its variants are left out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import present
from comparison import load, names
from measure import FRAMEWORK_TITLES, look_around, measure

from mlic_jax.atomic import write_text
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import UsageError

ROUNDS = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="run.py", description=__doc__.splitlines()[0])
    parser.add_argument("comparison", help=f"{', '.join(names())}, or a file with a COMPARISON")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--small", action="store_true", help="at sizes of seconds, to try it out")
    parser.add_argument("--size", nargs="+", default=[], metavar="NAME=N", help="sizes to replace")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all that was measured")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="a picture, .svg or .png")
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="put the table between <!-- benchmark: NAME --> and <!-- end --> there",
    )
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.rounds < 1:
        raise UsageError(f"--rounds is {options.rounds}; it must be at least 1")
    if options.chart:
        present.check_chart(options.chart)
    name = Path(options.comparison).stem
    if options.readme:
        present.split_readme(options.readme, name)  # before minutes of measuring, not after
    comparison = load(options.comparison).resized(options.small, _sizes(options.size))
    machine = look_around(comparison)
    for framework in machine.missing:
        title = FRAMEWORK_TITLES[framework]
        _note(f"{title} is not installed: measuring without its variants")
    tables = measure(options.comparison, comparison, machine, options.rounds, _note)
    measured = (comparison, machine, tables)

    text = present.to_markdown(*measured, options.rounds)
    print(text, end="")
    if options.json:
        content = present.to_json(name, *measured, options.rounds)
        write_text(options.json, json.dumps(content, indent=2) + "\n")
    if options.chart:
        present.write_chart(options.chart, comparison, tables)
    if options.readme:
        present.update_readme(options.readme, name, text)


def _sizes(pairs: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not value.isdigit() or int(value) < 1:
            raise UsageError(f"--size {pair} must be NAME=N with N a positive whole number")
        sizes[name] = int(value)
    return sizes


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
