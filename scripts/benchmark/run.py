"""Measures ways to compute the same thing side by side: time, and memory at its peak.

    python scripts/benchmark/run.py all --rounds 3 --out DIR --page docs/benchmarks.md
    python scripts/benchmark/run.py spatial_attention --out DIR
    python scripts/benchmark/run.py mcar --only ResNet-50 step --size images=4
    python scripts/benchmark/run.py mcar --only MobileNetV2 --out DIR --page docs/benchmarks.md
    python scripts/benchmark/run.py FILE.py      (a comparison of your own, see comparison.py)

Every variant has a process of its own. First their outputs are compared: what computes something
else is refused. Then they are timed in turns, one call each a round. At last each says what memory
a call needs at its peak above the level before: on a CPU that of the process, with malloc told to
keep nothing that is freed, so that no leftovers count. Where a framework sees an accelerator it is
measured there too, in a table of its own. Without the extra `torch` its variants are left out.

A task that fails is said in a line, and the others go on; the exit code is then 1.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import present
from comparison import load, names
from measure import look_around, measure, plan
from present import Results

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.files.marked import split_page

ROUNDS = 7
SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="run.py", description=__doc__.splitlines()[0])
    known = f"all, {', '.join(names())}, or a file with a COMPARISON"
    parser.add_argument("comparison", help=known)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"begin no further round of a task after so long; default {SECONDS}",
    )
    parser.add_argument("--small", action="store_true", help="at sizes of seconds, to try it out")
    parser.add_argument("--size", nargs="+", default=[], metavar="NAME=N", help="sizes to replace")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="tasks named so; those that --out has of the same machine and versions stay there",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write NAME.json, all that was measured, and a chart",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="put every table between <!-- benchmark: NAME --> and <!-- end --> there",
    )
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.rounds < 1:
        raise UsageError(f"--rounds is {options.rounds}; it must be at least 1")
    wants_all = options.comparison == "all"
    if wants_all and (options.size or options.only):
        raise UsageError("--size and --only are for one comparison; say which")
    paths = names() if wants_all else [options.comparison]
    sizes = _sizes(options.size)
    whole = {path: load(path).resized(options.small, sizes) for path in paths}
    comparisons = {path: comparison.only(options.only) for path, comparison in whole.items()}
    if options.page:
        for path in paths:  # before minutes of measuring, not after
            split_page(options.page, present.mark_of(Path(path).stem))

    machine = look_around(name for each in comparisons.values() for name in each.frameworks)
    missing = dict.fromkeys(
        title for each in comparisons.values() for title in machine.missing(each)
    )
    for title in missing:
        _note(f"{title} is not installed: measuring without its variants")
    plans = {path: plan(comparison, machine) for path, comparison in comparisons.items()}
    progress = _progress(sum(map(len, plans.values())))
    everything = []
    for path, comparison in comparisons.items():
        name = Path(path).stem
        tables, failures = measure(
            path, plans[path], options.rounds, options.seconds, progress(comparison.title)
        )
        results = Results(name, comparison, machine, options.rounds, tuple(tables), tuple(failures))
        everything.append(results)  # of this run alone
        if tables:  # what stands in the files stays there where nothing was measured
            if options.out and options.only:
                results = present.with_earlier(results, whole[path], options.out / f"{name}.json")
            _publish(results, options.out, options.page)
        for failure in failures:
            _note(f"not measured: {failure}")
    _say_targets(everything)
    failures = [failure for results in everything for failure in results.failures]
    if wants_all:
        failures += [f"{title} is not installed" for title in missing]
    if failures:
        raise Failure("; ".join(failures))


def _publish(results: Results, out: Path | None, page: Path | None) -> None:
    text, chart = present.to_markdown(results), None
    print(text, flush=True)
    if out:
        content = json.dumps(present.to_json(results), indent=2)
        write_text(out / f"{results.name}.json", content + "\n")
        picture = out / f"{results.name}.svg"
        chart = picture if present.write_chart(picture, results) else None
    if page:
        present.update_table(page, results.name, text, chart)


def _say_targets(everything: Sequence[Results]) -> None:
    verdicts = [verdict for results in everything for verdict in present.verdicts(results)]
    missed = [
        f"{what} is {ratio.value:.3g} times ours, to be {ratio.target:g}"
        for what, ratio in verdicts
        if not ratio.met
    ]
    if verdicts:
        _note(f"{len(verdicts) - len(missed)} of {len(verdicts)} targets are met")
    for line in missed:
        _note(f"missed: {line}")


def _progress(total: int) -> Callable[[str], Callable[[str], None]]:
    """(heading) -> (line) -> None: says it with how many of all tasks, and minutes, have passed."""
    start, count = time.monotonic(), itertools.count(1)

    def under(heading: str) -> Callable[[str], None]:
        def note(line: str) -> None:
            minutes, seconds = divmod(round(time.monotonic() - start), 60)
            _note(f"[{next(count)}/{total}, {minutes}:{seconds:02d}] {heading}: {line}")

        return note

    return under


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
