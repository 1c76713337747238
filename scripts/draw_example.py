"""Draws the picture of the README: a scene, the regions that MCAR chose in it, and its labels.

    python scripts/draw_example.py --checkpoint runs/scenes --scenes 13 14 --output docs/example.jpg

The scenes are of the test split, which a run does not train on. Thresholds are those of the
checkpoint: first `python -m mlic_jax.main --mode calibrate --workdir runs/scenes
--config.calibration.rule=per_class`.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import scenes
from mlic_jax.files.atomic import written_whole
from mlic_jax.predict import Predictor
from mlic_jax.reports.page import REGION_COLOURS, is_drawn
from mlic_jax.scores.predictions import Prediction, Region

LABELS_SHOWN = 6
TITLES = ("photo", "regions, looked at again", "labels")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="draw_example.py", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a run on scenes")
    parser.add_argument("--scenes", type=int, nargs="+", default=[0], help="their numbers")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .jpg")
    options = parser.parse_args(arguments)
    return exit_code(lambda: draw(options.checkpoint, options.scenes, options.output))


def draw(checkpoint: str, numbers: Sequence[int], output: Path) -> None:
    """Writes the picture, a row a scene."""
    examples = [scenes.render(0, "test", number) for number in numbers]
    photos = [Image.open(io.BytesIO(example.image)) for example in examples]
    predictor = Predictor.from_checkpoint(checkpoint)
    figure = Figure(figsize=(9, 2.9 * len(photos)), layout="constrained", facecolor="white")
    rows = figure.subplots(len(photos), 3, squeeze=False)
    for axes, title in zip(rows[0], TITLES, strict=True):
        axes.set_title(title, fontsize=11)
    for (plain, marked, bars), photo, seen in zip(rows, photos, predictor(photos), strict=True):
        for axes in (plain, marked):
            axes.imshow(photo)
            axes.set_axis_off()
        _draw_regions(marked, seen)
        _draw_labels(
            bars, seen, dict(zip(predictor.class_names, predictor.thresholds, strict=True))
        )
    with written_whole(output) as partial:
        figure.savefig(partial, format="jpg", dpi=100, pil_kwargs={"quality": 88})


def _coloured(seen: Prediction) -> list[tuple[Region, str]]:
    regions = [region for region in seen.regions if is_drawn(region.global_probability)]
    return list(zip(regions, REGION_COLOURS, strict=False))


def _draw_regions(axes: Axes, seen: Prediction) -> None:
    for region, colour in _coloured(seen):
        y1, x1, y2, x2 = region.box
        corner, sides = (x1 - 0.5, y1 - 0.5), (x2 - x1, y2 - y1)
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=3))


def _draw_labels(axes: Axes, seen: Prediction, thresholds: dict[str, float]) -> None:
    """The likeliest labels; those of a region in its colour, a tick at each threshold."""
    names = sorted(seen.scores, key=seen.scores.get, reverse=True)[:LABELS_SHOWN]
    colours = {region.class_name: colour for region, colour in _coloured(seen)}
    places = np.arange(len(names))
    axes.barh(
        places, [seen.scores[n] for n in names], color=[colours.get(n, "#bbbbbb") for n in names]
    )
    axes.scatter([thresholds[n] for n in names], places, marker="|", s=150, color="black")
    axes.set_yticks(places, names)
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in seen.labels else "normal")


if __name__ == "__main__":
    sys.exit(main())
