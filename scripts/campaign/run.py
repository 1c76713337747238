"""Harms runs, checkpoints and files in thousands of seeded ways, and checks that the promises hold.

    python scripts/campaign/run.py all --minutes 60 --seed 0 --out docs/campaign \
        --page docs/reliability.md
    python scripts/campaign/run.py kill images --minutes 5
    python scripts/campaign/run.py kill --seed 0 --only 17

Case k of seed s is always the same input; where it is a moment to strike at, what the process is
doing then depends on the machine. Every fuzzer works in a process of its own. A case that does not
hold is said at once with the command that runs it again, and what it had on the disk is kept; the
others go on, and the exit code is 1.
"""

import argparse
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import present
from fuzzer import load, names
from present import Fault, Tally
from tqdm import tqdm
from worker import Worker

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.marked import split_page, update_page

MINUTES = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="run.py", description=__doc__.splitlines()[0])
    parser.add_argument("fuzzers", nargs="+", help=f"all, or some of {', '.join(names())}")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"in total; default {MINUTES:g}"
    )
    parser.add_argument(
        "--at-least",
        type=int,
        default=1,
        metavar="N",
        help="go on until each has tried so many, even if its time is over",
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--only", nargs="+", type=int, metavar="CASE", help="these cases alone")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write FUZZER.json there")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="add to what is in --out, from the case on that it came to",
    )
    parser.add_argument(
        "--retry",
        action="store_true",
        help="run what failed in --out again, once it is mended; it counts as it ends now",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="put the table of all that is in --out between <!-- campaign --> and <!-- end -->",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        default=Path("campaign_failed"),
        help="for what failed cases had on the disk; default campaign_failed",
    )
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    chosen = names() if "all" in options.fuzzers else list(dict.fromkeys(options.fuzzers))
    fuzzers = {name: load(name) for name in chosen}
    if (options.page or options.resume or options.retry) and not options.out:
        raise UsageError("--page, --resume and --retry need --out, where results are kept")
    if options.only and (options.resume or options.retry):
        raise UsageError("--only is for cases by themselves: leave --resume and --retry out")
    if options.page:
        split_page(options.page, present.MARK)  # before an hour of work, not after
    left_out = {name: lacking for name, each in fuzzers.items() if (lacking := each.lacks())}
    for name, lacking in left_out.items():
        _say(f"{name} is left out: {lacking}")
        del fuzzers[name]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the workers, as Ctrl-C does
    tallies = []
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        shared = Path(scratch, "shared")
        shared.mkdir()
        total = sum(fuzzer.share for fuzzer in fuzzers.values())
        for name, fuzzer in fuzzers.items():
            tally = _begin(name, options)
            seconds = 60 * options.minutes * fuzzer.share / total
            tallies.append(tally)
            try:
                _fuzz(tally, options, seconds, Path(scratch, name), shared)
            finally:  # also of a campaign that is interrupted, for --resume
                if options.out:
                    tally.write(options.out)
    if options.page:
        update_page(options.page, present.MARK, present.to_markdown(present.read_all(options.out)))
    print(present.to_markdown(tallies), end="")
    if failed := sum(len(tally.faults) for tally in tallies):
        raise Failure(f"{failed} cases did not hold; what they had is in {options.keep}")


def _begin(name: str, options: argparse.Namespace) -> Tally:
    """An empty tally, or the one that is to be added to."""
    file = options.out and options.out / f"{name}.json"
    if not ((options.resume or options.retry) and file.is_file()):
        return Tally(name, options.seed, machine=present.this_machine())
    tally = Tally.read(file)
    if (tally.seed, tally.machine) != (options.seed, present.this_machine()):
        raise UsageError(f"{file} is of seed {tally.seed} on {tally.machine}: leave --resume out")
    return tally


def _fuzz(
    tally: Tally, options: argparse.Namespace, seconds: float, scratch: Path, shared: Path
) -> None:
    """Runs cases until time is over and enough were tried, and adds what came of them."""
    fuzzer = load(tally.name)
    scratch.mkdir()
    numbers: Iterable[int] = options.only or itertools.count(tally.cases)
    if options.retry:
        numbers = [fault.case for fault in tally.faults]
        for fault in tally.faults:
            tally.held -= Counter(fault.held)
        tally.faults = []
    with (
        Worker(tally.name, shared, scratch / "log") as worker,
        tqdm(
            desc=tally.name,
            unit=f" {fuzzer.units}",
            initial=tally.tried,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar,
    ):
        worker.start()
        start, before = time.monotonic(), tally.seconds
        for case in numbers:
            folder = scratch / f"{tally.name}-{options.seed}-{case}"
            folder.mkdir()
            outcome = worker.run(options.seed, case, folder)
            tally.held += outcome.held
            if outcome.broken is not None:
                fault = Fault(options.seed, case, outcome.broken, dict(outcome.held))
                tally.faults.append(fault)
                bar.write(f"{fault.command(tally.name)}\n{outcome.broken}\n", sys.stderr)
                _keep(folder, options.keep)
            tally.cases += not options.retry
            tally.seconds = before + time.monotonic() - start
            left = seconds - (time.monotonic() - start)
            told = f"failed {len(tally.faults)}, {max(left, 0):.0f} s left"
            bar.set_postfix_str(told, refresh=False)
            bar.update(tally.tried - bar.n)
            is_endless = not (options.only or options.retry)
            if is_endless and left <= 0 and tally.tried >= options.at_least:
                break


def _keep(folder: Path, where: Path) -> None:
    """Moves what a case left on the disk to where it stays."""
    if not folder.is_dir():
        return
    where.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(where / folder.name, ignore_errors=True)
    shutil.move(folder, where / folder.name)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
