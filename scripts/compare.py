"""Compares heads, losses, labels and recipes of training on equal terms: one trunk, one protocol.

    python scripts/compare.py --sets own/voc_animals/voc_animals.py own/ucmerced/ucmerced.py \
        --heads pooled csra mcar --losses bce asl --seeds 0 1 2 --rates 3e-4 2e-3 1e-2 \
        --out runs/matrix --config.features.store=True --config.data.views=4

A cell of the matrix is a head, a loss, labels and a recipe on a set with a seed. For the first seed
a run is made of every rate, of which the best on `val` is taken; other seeds take that rate. The
best checkpoint on `val` is scored on `test`, once. With `features.store` only heads are trained;
without, whole models. A run that has ended is never done again: the same command goes on where it
was killed. A run that fails is red, and the others are done.

Where a set has boxes, it also says where methods that have regions look, see `localisation`.

On every axis options may stand beside a name, as in `csra:model.csra_heads=4,init_prior=0`.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matrix import results
from matrix.cells import ALL_LABELS, AS_THE_SET, RIDGE, Cell, Method, methods
from matrix.page import draw_ranks, render, to_markdown
from matrix.results import Done
from matrix.runs import LOG, OUTCOME, Outcome, Worker, earlier, evaluate, run
from tqdm import tqdm

from mlic_jax import recipes
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.files.marked import split_page, update_page

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
        to_do = look_at_what_is_done(cells, rates, options.out, options.retry)
        done: list[Done] = []
        try:
            for one in run_all(cells, rates, options.out, to_do):
                done.append(one)
        finally:  # of what was killed or stopped, what there is
            if done:
                content = write_results(done, baseline, rates, options.out)
        if options.page:
            update_documents(options.page, options.out, content)
        if failed := sum(bool(one.outcome.error) for one in done):
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


def look_at_what_is_done(
    cells: Sequence[Cell], rates: Sequence[float], out: Path, retry: bool
) -> int:
    """How many runs there are to do yet; with `retry` those that failed are forgotten.

    Raises:
        UsageError: one that is done is of other options.
    """
    to_do = 0
    for cell in cells:
        grid = grid_of(cell, rates)
        outcomes = [earlier(cell, rate, cell.folder(out, rate)) for rate in grid]
        for rate, outcome in zip(grid, outcomes, strict=True):
            if retry and outcome is not None and outcome.error:
                (cell.folder(out, rate) / OUTCOME).unlink()
        there = [one for one in outcomes if one is not None and not (retry and one.error)]
        is_first = cell.seed == cells[0].seed  # whose runs choose the rate
        to_do += len(grid) - len(there) if is_first else not there
    return to_do


def run_all(cells: Sequence[Cell], rates: Sequence[float], out: Path, to_do: int) -> Iterator[Done]:
    """Does every run that is not done, `to_do` of them."""
    chosen: dict[tuple[str, Method], float | None] = {}
    with Worker() as worker, tqdm(total=to_do, unit="run", smoothing=0.1) as bar:
        bar.write(f"what a run says is in {out}/cells/SET/METHOD/SEED/RATE/{LOG}")
        for cell in cells:
            method = cell.set_name, cell.method
            grid = [chosen[method]] if method in chosen else grid_of(cell, rates)
            what = f"{cell.set_name}: {cell.method}, seed {cell.seed}"
            bar.set_description(what[:60])
            done = run_cell(worker, cell, grid, out, bar)
            if error := done.outcome.error:
                bar.write(f"failed: {what}: {error}")
            chosen.setdefault(method, done.rate)
            yield done


def grid_of(cell: Cell, rates: Sequence[float]) -> list[float | None]:
    """The rates to choose among; None: the recipe's. The probe has none."""
    return [None] if cell.method.head.name == RIDGE or not rates else list(rates)


def run_cell(
    worker: Worker, cell: Cell, grid: Sequence[float | None], out: Path, bar: tqdm
) -> Done:
    """A run for every rate, of which the best on val is scored on test."""
    tries: list[tuple[float | None, Outcome, Path]] = []
    for rate in grid:
        folder = cell.folder(out, rate)
        outcome = earlier(cell, rate, folder)
        if outcome is None:
            outcome = run(worker, cell, rate, folder)
            bar.update()
        tries.append((rate, outcome, folder))
    good = [one for one in tries if one[1].mean_ap is not None]
    rate, outcome, folder = max(good, key=lambda one: one[1].mean_ap) if good else tries[0]
    if good and not list(folder.glob("metrics_*.json")):
        try:
            worker.do(evaluate, cell, rate, folder)
        except Failure as error:
            outcome = dataclasses.replace(outcome, mean_ap=None, error=str(error))
    values = {"" if of is None else repr(of): tried.mean_ap for of, tried, _ in tries}
    return Done(cell, rate, outcome, folder, values)


def write_results(
    done: Sequence[Done], baseline: str, rates: Sequence[float], out: Path
) -> dict[str, Any]:
    """Writes `comparison.json`, which it returns, and `index.html`; prints a line a method."""
    names = dict.fromkeys(one.cell.set_name for one in done)
    by_set = [[one for one in done if one.cell.set_name == name] for name in names]
    content = results.summed_up([results.of_set(of, baseline) for of in by_set], rates)
    write_text(out / "comparison.json", json.dumps(content, indent=1))
    write_text(out / "index.html", render(content))
    for of in content["sets"]:
        print(f"{of['set']}:")
        for method, values in of["methods"].items():
            if values["mAP"] is None:
                print(f"  {method}: failed")
                continue
            low, high = values["interval"]
            line = f"  {method}: mAP {values['mAP']:.1f} ({low:.1f} to {high:.1f})"
            if "difference" in values:
                line += f", {values['difference']:+.1f} to {baseline}, "
                line += f"p {values['holm']:.3f} (Holm)"
            print(line)
    print(f"page and figures: {out / 'index.html'}, {out / 'comparison.json'}")
    return content


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
