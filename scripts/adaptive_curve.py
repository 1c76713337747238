"""Draws what accuracy MCAR's second look buys for what time: mAP against images/s of a trained run.

    python scripts/adaptive_curve.py --workdir runs/scenes
    python scripts/adaptive_curve.py --workdir runs/voc \
        --bounds 0 0.02 0.1 --local-sizes 448 224 --top-n 4 --picture voc.png

Each combination of `eval.local_bound`, `eval.local_size` and `eval.top_n` scores the same images of
the test split, held in memory: neither decoding nor compilation counts. Times are taken in turns,
a pass over all images each a round, so that whatever else the machine does meets all alike. The
plain setting, with bound 0, crops and regions as the checkpoint says, and the global stream alone
are always among them. Any option can be set, as in `--config.eval.batch_size=64`; a recipe,
`--config FILE`, is for a converted model alone, which names no data.

Written to the run's folder, unless --json and --picture say otherwise: `adaptive_curve.json` and
`adaptive_curve.svg`.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from mlic_jax import recipes
from mlic_jax.checkpoint_config import set_up
from mlic_jax.command_line import Parser, asked_of_config, exit_code, parse_flags
from mlic_jax.config_checks import check_config
from mlic_jax.data import pipeline, sources
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.evaluate import run
from mlic_jax.evaluate.run import MetricOptions
from mlic_jax.files.atomic import write_text, written_whole
from mlic_jax.runtime import devices
from mlic_jax.scores import scoring, views
from mlic_jax.scores.files import Scores
from mlic_jax.scores.options import ScoreOptions

BOUNDS = (0.0, 0.01, 0.05, 0.2, 0.5)

# Told apart in every common form of colour blindness.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vPX"
_LINE = "#888888"
_STYLE = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "mlic_jax"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the second look is taken; with `top_n` 0 it is not."""

    top_n: int = 0
    local_size: int = 0  # pixels
    local_bound: float = 0.0

    def __str__(self) -> str:
        if not self.top_n:
            return "global stream alone"
        return f"top {self.top_n}, {self.local_size} px, bound {self.local_bound:g}"


@dataclasses.dataclass(frozen=True)
class Point:
    """What a setting achieves."""

    setting: Setting
    mean_ap: float  # percent
    regions: float  # looked at in an image, on average
    images: int
    seconds: tuple[float, ...]  # of every round, for all images

    @property
    def speed(self) -> float:
        """Images a second, of the median round."""
        return self.images / statistics.median(self.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(
        prog="adaptive_curve.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="a recipe that says which data to take")
    parser.add_argument("--workdir", metavar="DIR", type=Path, help="the run")
    parser.add_argument(
        "--checkpoint", metavar="DIR", type=Path, help="default: the best one of the run"
    )
    parser.add_argument("--bounds", type=float, nargs="+", default=BOUNDS, metavar="P")
    parser.add_argument(
        "--local-sizes", type=int, nargs="+", metavar="PIXELS", help="default: as plain, and half"
    )
    parser.add_argument(
        "--top-n", type=int, nargs="+", metavar="N", help="default: as plain, half as many, and 1"
    )
    parser.add_argument("--images", type=int, default=1000, help="of the split; default 1000")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each; default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what to write")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="an .svg or .png to write")

    def run() -> None:
        options, more = parser.parse_known_args(arguments)
        _run(options, read_options(options.config, more))

    return exit_code(run)


def read_options(
    recipe: str | None, arguments: Sequence[str]
) -> tuple[ConfigDict | None, dict[str, Any]]:
    """The recipe FILE or FILE:variant, and the options set as `--config.field=value`."""
    values = flags.FlagValues()
    argv = ["", *([f"--config={recipe}"] if recipe else []), *arguments]
    flag = recipes.define_flag("config", "the recipe", values, argv)
    if extra := parse_flags(argv, values, flag)[1:]:
        raise UsageError(f"unexpected argument {extra[0]!r}; see --help")
    return asked_of_config(flag, values)


def _run(options: argparse.Namespace, asked: tuple[ConfigDict | None, dict[str, Any]]) -> None:
    if options.picture and options.picture.suffix not in (".svg", ".png"):
        raise UsageError(f"--picture is {options.picture}; its name must end in .svg or .png")
    for option in ("images", "rounds"):
        if getattr(options, option) < 1:
            raise UsageError(f"--{option} is {getattr(options, option)}; it must be positive")
    setup = set_up(options.checkpoint, options.workdir, *asked)
    config = setup.config
    check_config(config)
    if config.model.name != "mcar":
        raise UsageError(f"model.name is {config.model.name!r}; only mcar looks twice")
    print(setup.said)
    split = sources.open_splits(DataOptions.of(config.data))["test"]
    _, variables, _ = scoring.load_model(ScoreOptions.of(config), setup.path, split)
    plain = plain_setting(config)
    settings = grid(plain, options.bounds, options.local_sizes, options.top_n)
    points = measure(settings, config, variables, split, options.images, options.rounds)

    about = {
        "set": split.name,
        "split": split.split,
        "images": points[0].images,
        "backbone": config.model.backbone,
        "image_size": config.data.image_size,
        "batch_size": config.eval.batch_size,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "rounds": options.rounds,
    }
    print(table(points, plain))
    written = options.json or setup.workdir / "adaptive_curve.json"
    write_text(written, json.dumps(about | {"points": to_json(points, plain)}, indent=1))
    picture = options.picture or setup.workdir / "adaptive_curve.svg"
    draw(picture, points, plain, about)
    print(f"wrote {written} and {picture}")


# --- settings


def plain_setting(config: ConfigDict) -> Setting:
    """As the checkpoint is evaluated, with every region looked at."""
    return Setting(
        top_n=config.eval.top_n or config.model.top_n,
        local_size=config.eval.local_size or config.model.local_size or config.data.image_size,
    )


def grid(
    plain: Setting,
    bounds: Sequence[float],
    local_sizes: Sequence[int] | None = None,
    top_n: Sequence[int] | None = None,
) -> list[Setting]:
    """The plain setting, the global stream alone, and all combinations; none twice."""
    if local_sizes is None:
        half = plain.local_size // 64 * 32
        local_sizes = (plain.local_size, half) if half else (plain.local_size,)
    if top_n is None:
        top_n = (plain.top_n, -(-plain.top_n // 2), 1)
    settings = itertools.starmap(Setting, itertools.product(top_n, local_sizes, bounds))
    return list(dict.fromkeys((plain, Setting(), *settings)))


def configured(config: ConfigDict, setting: Setting) -> ScoreOptions:
    """The options with which the only evaluation code evaluates a setting."""
    config = config.copy_and_resolve_references()
    if not setting.top_n:
        config.model.name = "pooled"  # the same weights make the same global scores
    config.eval.update(dataclasses.asdict(setting))
    return ScoreOptions.of(config)


# --- measurement


def measure(
    settings: Sequence[Setting],
    config: ConfigDict,
    variables: dict[str, Any],
    split: Split,
    images: int,
    rounds: int,
) -> list[Point]:
    """Scores the first images of a split with every setting, once for mAP and then for the time.

    Raises:
        UsageError: a setting is none that the model could have.
        Failure: an image cannot be read.
    """
    mesh = devices.create_mesh()
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    weights = devices.lay_out(weights, devices.replicated(mesh))
    batches = list(device_batches(split, config, images, mesh))
    passes, scores = [], []
    # All models first: a wrong setting is told before minutes of work.
    models = [
        scoring.create_eval_model(configured(config, setting), len(split.class_names), variables)
        for setting in settings
    ]
    for setting, model in zip(tqdm(settings, "score", leave=False), models, strict=True):
        step = scoring.make_eval_step(model, configured(config, setting), mesh)
        passes.append(lambda step=step: [step(weights, batch) for batch in batches])
        scores.append(gather(passes[-1](), split, config))
    seconds: list[list[float]] = [[] for _ in settings]
    for _ in tqdm(range(rounds), "time", unit="round", leave=False):
        for one_pass, of_setting in zip(passes, seconds, strict=True):
            of_setting.append(seconds_of(one_pass))
    return [
        Point(
            setting=setting,
            mean_ap=run.compute_metrics(of_setting, MetricOptions.of(config.eval))["mAP"],
            regions=setting.top_n
            if of_setting.looked_at is None
            else float(of_setting.looked_at.sum(axis=1).mean()),
            images=len(of_setting.logits),
            seconds=tuple(times),
        )
        for setting, of_setting, times in zip(settings, scores, seconds, strict=True)
    ]


def device_batches(
    split: Split, config: ConfigDict, images: int, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, jax.Array]]:
    """The first images in whole batches, on the devices."""
    options = ScoreOptions.of(config)
    rows = scoring.batch_rows(options, mesh)
    batches = pipeline.batches(
        split,
        batch_size=rows,
        image_size=views.host_size(options),
        fit=options.data.fit,
        shuffle=False,
        threads=options.data.threads,
    )
    for batch in itertools.islice(batches, -(-images // rows)):
        batch["index"][batch["index"] >= images] = -1
        yield devices.to_devices(batch, mesh)


def gather(outputs: Sequence[dict[str, jax.Array]], split: Split, config: ConfigDict) -> Scores:
    """The scores of the real rows of all batches."""
    fetched = jax.device_get(list(outputs))
    rows = {name: np.concatenate([batch[name] for batch in fetched]) for name in fetched[0]}
    index = rows.pop("index")
    return Scores(
        **{name: values[index >= 0] for name, values in rows.items()},
        image_ids=np.array([split.image_id(i) for i in index[index >= 0]]),
        class_names=np.array(split.class_names),
        set_name=split.name,
        split=split.split,
        image_size=config.data.image_size,
    )


def seconds_of(one_pass: Callable[[], Any]) -> float:
    """The time of a pass over all images, until its outputs are there."""
    start = time.perf_counter()
    jax.block_until_ready(one_pass())
    return time.perf_counter() - start


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, the slowest first: no other point is as good in both and better in one."""
    best, kept = -np.inf, []
    for point in sorted(points, key=lambda point: (-point.speed, -point.mean_ap)):
        if point.mean_ap > best:
            best = point.mean_ap
            kept.append(point)
    return kept[::-1]


# --- what is written


def table(points: Sequence[Point], plain: Setting) -> str:
    """A line for every point, the fastest last; a star marks the front."""
    (reference,) = (point for point in points if point.setting == plain)
    on_front = front(points)
    lines = ["  setting                     regions/image    mAP  images/s  times plain"]
    for point in sorted(points, key=lambda point: point.speed):
        name = f"{point.setting}{' (plain)' if point is reference else ''}"
        lines.append(
            f"{'*' if point in on_front else ' '} {name:<34} {point.regions:6.2f} "
            f"{point.mean_ap:6.1f} {point.speed:9.1f} {point.speed / reference.speed:12.2f}"
        )
    return "\n".join([*lines, "  * nothing else is both as accurate and as fast"])


def to_json(points: Sequence[Point], plain: Setting) -> list[dict[str, Any]]:
    """All that was measured."""
    on_front = front(points)
    return [
        dataclasses.asdict(point.setting)
        | {
            "mAP": point.mean_ap,
            "regions_per_image": point.regions,
            "images_per_second": point.speed,
            "seconds": list(point.seconds),
            "plain": point.setting == plain,
            "on_front": point in on_front,
        }
        for point in points
    ]


def draw(path: Path, points: Sequence[Point], plain: Setting, about: dict[str, Any]) -> None:
    """Colours are crop sizes, shapes are numbers of regions, and beside each point is its bound."""
    sizes = sorted({point.setting.local_size for point in points if point.setting.top_n})
    tops = sorted({point.setting.top_n for point in points if point.setting.top_n})
    colours = {size: _COLOURS[k % len(_COLOURS)] for k, size in enumerate(reversed(sizes))}
    markers = {top: _MARKERS[k % len(_MARKERS)] for k, top in enumerate(reversed(tops))}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        best = front(points)
        axes.plot(
            [point.speed for point in best],
            [point.mean_ap for point in best],
            color=_LINE,
            linestyle="--",
            linewidth=1,
            label="Pareto front",
        )
        for point in points:
            setting, at = point.setting, (point.speed, point.mean_ap)
            style = {"color": "black", "marker": "*", "markersize": 11}
            text = str(setting)
            if setting.top_n:
                style = {
                    "color": colours[setting.local_size],
                    "marker": markers[setting.top_n],
                    "markersize": 6,
                }
                text = f"{setting.local_bound:g}"
            if setting == plain:
                axes.plot(*at, "o", markersize=13, markerfacecolor="none", color="black")
                text = "plain"
            axes.plot(*at, linestyle="none", **style)
            offset, side = ((4, 5), "left") if setting.top_n else ((-4, -12), "right")
            axes.annotate(text, at, offset, textcoords="offset points", ha=side, fontsize=7)
        for size in reversed(sizes):
            axes.plot([], [], "s", color=colours[size], label=f"crops of {size} px")
        for top in reversed(tops):
            axes.plot([], [], markers[top], color=_LINE, label=f"top {top} regions")
        axes.plot([], [], " ", label="beside a point: its bound")
        axes.set(xlabel="images/s, model alone (higher is better)", ylabel="mAP, %")
        axes.set_title(
            f"{about['set']} {about['split']}, {about['images']} images of "
            f"{about['image_size']} px, {about['backbone']}, on {about['device']}",
            loc="left",
            fontsize=9,
        )
        axes.margins(x=0.1, y=0.08)
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        with written_whole(path) as partial:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=metadata)


if __name__ == "__main__":
    sys.exit(main())
