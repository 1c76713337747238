"""Compares heads, losses, labels and recipes of training on equal terms: one trunk, one protocol.

    python scripts/compare.py --sets own/voc_animals/voc_animals.py own/ucmerced/ucmerced.py \
        --heads pooled csra mcar --losses bce asl --seeds 0 1 2 --rates 3e-4 2e-3 1e-2 \
        --out runs/matrix --config.features.store=True --config.data.views=4

A cell of the matrix is a head, a loss, labels and a recipe on a set with a seed. For the first seed
a run is made of every rate, of which the best on `val` is taken; other seeds take that rate. The
best checkpoint on `val` is scored on `test`, once. With `features.store` only heads are trained;
without, whole models. A run that has ended is never done again: the same command goes on where it
was killed, unless options, labels, photos or weights are others by then. A run that fails is red,
and the others are done; where the disk is full the matrix ends, and the same command goes on.

Where a set has boxes, it also says where methods that have regions look, see `localisation`.

On every axis options may stand beside a name, as in `csra:model.csra_heads=4,init_prior=0`.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matrix import results
from matrix.cells import ALL_LABELS, AS_THE_SET, AXES, RIDGE, Cell, Method, methods
from matrix.data import Digests
from matrix.page import draw_ranks, render, said_of_runs, to_markdown
from matrix.results import Done
from matrix.runs import LOG, Outcome, Stopped, Worker, earlier, evaluate, run
from tqdm import tqdm

from mlic_jax import recipes
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import locked, write_text
from mlic_jax.files.marked import split_page, update_page

RESULTS = "comparison.json"
# Options that decide what a figure is of.
PROTOCOL = ("eval.protocol", "eval.label_policy", "eval.ties")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", required=True, metavar="RECIPE", help="as --config")
    parser.add_argument(
        "--heads", nargs="+", required=True, metavar="HEAD", help=f"models, or {RIDGE}, a probe"
    )
    parser.add_argument("--losses", nargs="+", default=["bce"], metavar="LOSS")
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[ALL_LABELS],
        metavar="KEPT",
        help="of training: all, or as in 0.4-absent, 0.4-unknown, one_positive-absent",
    )
    parser.add_argument("--recipes", nargs="+", default=[AS_THE_SET], metavar="RECIPE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[], metavar="R", help="default: the recipe's"
    )
    parser.add_argument("--backbone", metavar="NAME", help="model.backbone of all")
    parser.add_argument("--baseline", metavar="METHOD", help="default: the first head and loss")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="Markdown with a place `<!-- comparison: DIR -->`"
    )
    parser.add_argument("--retry", action="store_true", help="do again what failed")

    def compare() -> None:
        options, given = parser.parse_known_args(arguments)
        if options.backbone:
            given.append(f"--config.model.backbone={options.backbone}")
        for option, axis in AXES.items():
            name = axis.removeprefix("--")
            is_said = getattr(options, name) != parser.get_default(name)
            if is_said and any(one.startswith(f"--config.{option}=") for one in given):
                raise UsageError(f"--config.{option} is for {axis} to say")
        if options.page:
            split_page(options.page, mark_of(options.out))
        sets = {recipe: recipes.load(recipe).data.name for recipe in options.sets}
        compared = methods(options.heads, options.losses, options.labels, options.recipes)
        baseline = options.baseline or str(compared[0])
        if baseline not in map(str, compared):
            known = "; ".join(map(str, compared))
            raise UsageError(f"--baseline {baseline} is not compared; these are: {known}")
        seeds, rates = (list(dict.fromkeys(of)) for of in (options.seeds, options.rates))
        cells = matrix(sets, tuple(given), compared, seeds)
        digests = Digests()
        data = {cell: digests(cell.config()) for cell in cells}
        plan = Plan(cells, rates, options.out, data, options.retry)
        to_do = look_at_what_is_done(plan)
        options.out.mkdir(parents=True, exist_ok=True)
        with locked(options.out):
            done = do_all(plan, to_do, baseline)
            if options.page:
                content = json.loads((options.out / RESULTS).read_text())
                update_documents(options.page, options.out, content)
        if failed := sum(one.has_failed for one in done):
            raise Failure(
                f"{failed} of {len(done)} cells failed: the page says why; --retry does them again"
            )

    return exit_code(compare)


def matrix(
    sets: Mapping[str, str],
    given: tuple[str, ...],
    compared: Sequence[Method],
    seeds: Sequence[int],
) -> list[Cell]:
    """All cells of sets, recipes with the names of their data.

    Raises:
        UsageError: one that no run could be of, or that nothing could be compared with.
    """
    cells = []
    for recipe, name in sets.items():
        if list(sets.values()).count(name) > 1:
            raise UsageError(f"--sets {recipe}: another one is of the data {name} too")
        of_set = [
            Cell(name, recipe, given, method, seed)
            for method in compared
            for seed in (seeds if method.head.name != RIDGE else seeds[:1])
        ]
        first = of_set[0].config()
        for cell in of_set:
            config = cell.config()
            for option in ("data.name", "data.splits", *PROTOCOL):
                if config[option] != first[option]:
                    raise UsageError(
                        f"{cell.method} differs in {option}, {config[option]!r} and not "
                        f"{first[option]!r}: it cannot be compared"
                    )
        cells += of_set
    return cells


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be there in the end.

    Attributes:
        cells: those of the first seed choose the rate of their method.
        rates: to choose among; none: the recipe's.
        out: the folder of all.
        data: of each cell the digests of what it reads.
        retry: what failed, and what cannot be read, is done again.
    """

    cells: Sequence[Cell]
    rates: Sequence[float]
    out: Path
    data: Mapping[Cell, dict[str, str]]
    retry: bool

    def earlier(self, cell: Cell, rate: float | None) -> Outcome | None:
        """How a run ended, if it has; see `runs.earlier`."""
        return earlier(cell, rate, cell.folder(self.out, rate), self.data[cell], self.retry)

    def grid(self, cell: Cell) -> list[float | None]:
        """The rates to choose among; None: the recipe's. The probe has none."""
        is_probe = cell.method.head.name == RIDGE
        return [None] if is_probe or not self.rates else list(self.rates)

    def choose(self, cell: Cell, tries: Mapping[float | None, Outcome]) -> Done:
        """The cell, of whose runs the best on val counts."""
        worth = {rate: outcome.mean_ap for rate, outcome in tries.items()}
        good = {rate: value for rate, value in worth.items() if value is not None}
        rate = max(good, key=good.__getitem__) if good else next(iter(tries))
        named = {"" if rate is None else repr(rate): outcome for rate, outcome in tries.items()}
        return Done(
            cell,
            rate,
            tries[rate],
            cell.folder(self.out, rate),
            {name: outcome.mean_ap for name, outcome in named.items()},
            {name: outcome.error for name, outcome in named.items() if outcome.error},
        )


def look_at_what_is_done(plan: Plan) -> int:
    """How many runs there are to do yet.

    Raises:
        UsageError: one that is done, or begun, is of other options or data.
    """
    to_do = 0
    for cell in plan.cells:
        outcomes = [plan.earlier(cell, rate) for rate in plan.grid(cell)]
        there = [one for one in outcomes if one is not None]
        is_first = cell.seed == plan.cells[0].seed  # whose runs choose the rate
        to_do += len(outcomes) - len(there) if is_first else not there
    return to_do


def do_all(plan: Plan, to_do: int, baseline: str) -> list[Done]:
    """Does every run that is not done, and writes the results; when stopped, of what there is."""
    done: dict[Cell, Done] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for one in run_all(plan, to_do):
            done[one.cell] = one
    finally:
        done |= not_reached(plan, done)
        in_order = [done[cell] for cell in plan.cells if cell in done]
        if in_order:
            write_results(in_order, baseline, plan.rates, plan.out)
    return in_order


def run_all(plan: Plan, to_do: int) -> Iterator[Done]:
    """Does every run that is not done, `to_do` of them."""
    chosen: dict[tuple[str, Method], float | None] = {}
    with Worker() as worker, tqdm(total=to_do, unit="run", smoothing=0.1) as bar:
        bar.write(f"what a run says is in {plan.out}/cells/SET/METHOD/SEED/RATE/{LOG}")
        for cell in plan.cells:
            method = cell.set_name, cell.method
            grid = [chosen[method]] if method in chosen else plan.grid(cell)
            what = f"{cell.set_name}: {cell.method}, seed {cell.seed}"
            bar.set_description(what[:60])
            done = run_cell(plan, worker, cell, grid, bar)
            if error := done.outcome.error:
                bar.write(f"failed: {what}: {error}")
            else:
                for rate, error in done.errors.items():
                    bar.write(f"failed: {what}, rate {rate}: {error}")
            chosen.setdefault(method, done.rate)
            yield done


def run_cell(
    plan: Plan, worker: Worker, cell: Cell, grid: Sequence[float | None], bar: tqdm
) -> Done:
    """A run for every rate, of which the best on val is scored on test."""
    tries = {}
    for rate in grid:
        outcome = plan.earlier(cell, rate)
        if outcome is None:
            outcome = run(worker, cell, rate, cell.folder(plan.out, rate), plan.data[cell])
            bar.update()
        tries[rate] = outcome
    done = plan.choose(cell, tries)
    if done.outcome.mean_ap is None:
        return done
    try:
        if not (done.is_readable() if plan.retry else done.is_scored()):
            worker.do(evaluate, cell, done.rate, done.folder)
        done.scores(), done.metrics()
    except Stopped:
        raise
    except Failure as error:
        outcome = dataclasses.replace(done.outcome, mean_ap=None, error=str(error))
        return dataclasses.replace(done, outcome=outcome)
    return done


def not_reached(plan: Plan, done: Mapping[Cell, Done]) -> dict[Cell, Done]:
    """The cells that were not come to before the end, and have ended earlier."""
    found: dict[Cell, Done] = {}
    chosen: dict[tuple[str, Method], float | None] = {}
    for cell in plan.cells:
        method, one = (cell.set_name, cell.method), done.get(cell)
        if one is None:
            grid = [chosen[method]] if method in chosen else plan.grid(cell)
            tries = {rate: plan.earlier(cell, rate) for rate in grid}
            ended = {rate: outcome for rate, outcome in tries.items() if outcome is not None}
            if len(ended) < len(grid):
                continue
            one = plan.choose(cell, ended)
            if not (one.outcome.error or one.is_readable()):
                continue
            found[cell] = one
        chosen.setdefault(method, one.rate)
    return found


def write_results(done: Sequence[Done], baseline: str, rates: Sequence[float], out: Path) -> None:
    """Writes `comparison.json` and `index.html`; prints a line a method."""
    names = dict.fromkeys(one.cell.set_name for one in done)
    by_set = [[one for one in done if one.cell.set_name == name] for name in names]
    content = results.summed_up([results.of_set(of, baseline) for of in by_set], rates)
    write_text(out / RESULTS, json.dumps(content, indent=1))
    write_text(out / "index.html", render(content))
    for of in content["sets"]:
        print(f"{of['set']}:")
        for method, values in of["methods"].items():
            if values["mAP"] is None:
                print(f"  {method}: failed")
                continue
            low, high = values["interval"]
            line = f"  {method}: mAP {values['mAP']:.1f} ({low:.1f} to {high:.1f})"
            line += said_of_runs(values)
            if "difference" in values:
                line += f", {values['difference']:+.1f} to {baseline}, "
                line += f"p {values['holm']:.3f} (Holm)"
            print(line)
    print(f"page and figures: {out / 'index.html'}, {out / RESULTS}")


def mark_of(out: Path) -> str:
    """Of the place in a page where the table of a matrix is."""
    return f"comparison: {out.resolve().name}"


def update_documents(page: Path, out: Path, content: dict[str, Any]) -> None:
    """Puts the table into a page, and the figures and the picture of ranks beside it."""
    update_page(page, mark_of(out), to_markdown(content))
    folder, name = page.with_suffix(""), out.resolve().name
    write_text(folder / f"{name}.json", json.dumps(without_folders(content), indent=1))
    if content["over_sets"]:
        draw_ranks(content["over_sets"]).savefig(folder / f"{name}.svg", metadata={"Date": None})


def without_folders(content: dict[str, Any]) -> dict[str, Any]:
    """The figures of a matrix without where it and its recipes lay."""
    for of_set in content["sets"]:
        for values in of_set["methods"].values():
            for cell in values["cells"]:
                del cell["folder"], cell["recipe"]
    return content


if __name__ == "__main__":
    sys.exit(main())
