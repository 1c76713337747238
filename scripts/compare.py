"""Compares heads, losses, labels and recipes of training on equal terms: one trunk, one protocol.

    python scripts/compare.py --sets own/voc_animals/voc_animals.py own/ucmerced/ucmerced.py \
        --heads pooled csra mcar --losses bce asl --seeds 0 1 2 --rates 3e-4 2e-3 1e-2 \
        --out runs/matrix --config.features.store=True --config.data.views=4

A cell of the matrix is a head, a loss, labels and a recipe on a set with a seed. For the first seed
a run is made of every rate, of which the best on `val` is taken; other seeds take that rate. The
best checkpoint on `val` is scored on `test`, once. With `features.store` only heads are trained;
without, whole models. A run that has ended is never done again: the same command goes on where it
was killed. A run that fails is red, and the others are done.

On every axis options may stand beside a name, as in `csra:model.csra_heads=4,init_prior=0`.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from comparison import results
from comparison.cells import ALL_LABELS, AS_THE_SET, RIDGE, Cell, Method, methods
from comparison.page import draw_ranks, render, to_markdown
from comparison.results import Done
from comparison.runs import Outcome, Worker, evaluate, run
from tqdm import tqdm

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text
from mlic_jax.files.atomic import write_text
from mlic_jax.files.marked import split_page, update_page


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

    def compare() -> None:
        options, given = parser.parse_known_args(arguments)
        if options.backbone:
            given.append(f"--config.model.backbone={options.backbone}")
        if options.page:
            split_page(options.page, mark_of(options.out))
        compared = methods(options.heads, options.losses, options.labels, options.recipes)
        baseline = options.baseline or str(compared[0])
        if baseline not in map(str, compared):
            raise UsageError(
                f"--baseline {baseline} is not compared; these are: {'; '.join(map(str, compared))}"
            )
        cells = matrix(options.sets, tuple(given), compared, options.seeds)
        done = run_all(cells, options.rates, options.out)
        sets = [results.of_set(of, baseline) for of in done]
        write_results(sets, options.rates, options.out)
        if options.page:
            update_documents(options.page, options.out)

    return exit_code(compare)


def matrix(
    sets: Sequence[str], given: tuple[str, ...], compared: Sequence[Method], seeds: Sequence[int]
) -> dict[str, list[Cell]]:
    """The cells of each set by its name; raises UsageError for one that no run could be of."""
    found: dict[str, list[Cell]] = {}
    for recipe in sets:
        cells = [
            Cell(recipe, given, method, seed)
            for method in compared
            for seed in (seeds if method.head.name != RIDGE else seeds[:1])
        ]
        names = {cell.config().data.name for cell in cells}
        (name, *others) = names
        if others or name in found:
            raise UsageError(f"--sets {recipe}: the set {name} is compared already")
        found[name] = cells
    return found


def run_all(cells: dict[str, list[Cell]], rates: Sequence[float], out: Path) -> list[list[Done]]:
    """Does every run that is not done; the cells of each set."""
    tries = 0
    for of_set in cells.values():
        first = of_set[0].seed
        tries += sum(len(grid_of(cell, rates)) if cell.seed == first else 1 for cell in of_set)
    done = []
    with Worker() as worker, tqdm(total=tries, unit="run", smoothing=0.1) as bar:
        for name, of_set in cells.items():
            chosen: dict[Method, float | None] = {}
            done.append([])
            for cell in of_set:
                grid = [chosen[cell.method]] if cell.method in chosen else grid_of(cell, rates)
                bar.set_description(f"{name}: {cell.method}, seed {cell.seed}"[:60])
                one = run_cell(worker, name, cell, grid, out, lambda: bar.update(1))
                if one.outcome.error:
                    bar.write(
                        f"failed: {name}, {cell.method}, seed {cell.seed}: {one.outcome.error}"
                    )
                chosen.setdefault(cell.method, one.rate)
                done[-1].append(one)
    return done


def grid_of(cell: Cell, rates: Sequence[float]) -> list[float | None]:
    """The rates to choose among; None: the recipe's. The probe has none."""
    return [None] if cell.method.head.name == RIDGE or not rates else list(rates)


def run_cell(
    worker: Worker,
    set_name: str,
    cell: Cell,
    grid: Sequence[float | None],
    out: Path,
    ran: Callable[[], None],
) -> Done:
    """A run for every rate, of which the best on val is scored on test."""
    tries: list[tuple[float | None, Outcome, Path]] = []
    for rate in grid:
        rate_name = "rate" if rate is None else f"rate{rate:g}"
        folder = cell.folder(out, set_name) / rate_name
        tries.append((rate, run(worker, cell, rate, folder), folder))
        ran()
    good = [one for one in tries if one[1].mean_ap is not None]
    rate, outcome, folder = max(good, key=lambda one: one[1].mean_ap) if good else tries[0]
    if good and not list(folder.glob("metrics_*.json")):
        try:
            worker.do(evaluate, cell, rate, folder)
        except Failure as error:
            outcome = dataclasses.replace(outcome, mean_ap=None, error=str(error))
    values = {f"{of:g}" if of else "": tried.mean_ap for of, tried, _ in tries}
    return Done(set_name, cell, rate, outcome, folder, values)


def write_results(sets: Sequence[dict], rates: Sequence[float], out: Path) -> None:
    """Writes `comparison.json` and `index.html`, and prints a line a method."""
    content = results.summed_up(sets, rates)
    write_text(out / "comparison.json", json.dumps(content, indent=1))
    write_text(out / "index.html", render(content))
    for of in sets:
        print(f"{of['set']}:")
        for method, values in of["methods"].items():
            if values["mAP"] is None:
                print(f"  {method}: failed")
                continue
            low, high = values["interval"]
            line = f"  {method}: mAP {values['mAP']:.1f} ({low:.1f} to {high:.1f})"
            if "difference" in values:
                line += f", {values['difference']:+.1f} to the baseline, p {values['holm']:.3f}"
            print(line)
    print(f"page and figures: {out / 'index.html'}, {out / 'comparison.json'}")


def mark_of(out: Path) -> str:
    """Of the place in a page where the table of a matrix is."""
    return f"comparison: {out.name}"


def update_documents(page: Path, out: Path) -> None:
    """Puts the table into a page, and the figures and the picture of ranks beside it."""
    content = json_text.read(out / "comparison.json")
    update_page(page, mark_of(out), to_markdown(content))
    beside = page.with_suffix("") / out.name
    write_text(beside.with_suffix(".json"), json.dumps(without_folders(content), indent=1))
    if content["over_sets"]:
        figure = draw_ranks(content["over_sets"])
        figure.savefig(beside.with_suffix(".svg"), metadata={"Date": None})


def without_folders(content: dict[str, Any]) -> dict[str, Any]:
    """The figures of a matrix without where it lay."""
    for of_set in content["sets"]:
        for values in of_set["methods"].values():
            for cell in values["cells"]:
                del cell["folder"]
    return content


if __name__ == "__main__":
    sys.exit(main())
