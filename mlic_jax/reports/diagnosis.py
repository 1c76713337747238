"""The page of a diagnosis: errors by cause, where a model looks, and the photos that cost most.

A single file that loads nothing. `diagnosis.html.jinja` holds the words and the looks.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.localisation import LARGE, MEASURES, MEDIUM, SIZES
from mlic_jax.reports.page import LEAST_GLOBAL, page_template
from mlic_jax.reports.picture import colours_of_regions, picture_of
from mlic_jax.scores.files import Scores

CHANGED = 6  # photos in which a second look gained most, and lost most

# Of a trait its name on the page, and what it says.
TRAITS = {
    "small": (
        "small",
        f"the largest box of the class takes less than {100 * MEDIUM:.2g}% of the picture",
    ),
    "cut_off": ("cut off", "every box of the class reaches an edge"),
    "overlapped": ("overlapped", "half of every box of the class lies in boxes of other objects"),
    "alone": ("alone", "none of the classes is there that it usually occurs with"),
    "rare": ("rare", "at most ten photos of the training split show the class"),
    "companion": ("companion", "what the class usually occurs with is there"),
}

_PAGE = Path(__file__).with_name("diagnosis.html.jinja")
_FILTERS: dict[str, Callable[..., str]] = {
    "percent": lambda v: "n/a" if v is None else f"{v:.1f}",
    "signed": lambda v: "n/a" if v is None else f"{v:+.1f}",
    "probability": lambda v: f"{v:.2f}",
    "thousands": lambda v: f"{v:,}",
    "share": lambda part, whole: f"{100 * part / whole:.1f}" if whole else "n/a",
}


def write_page(
    path: Path,
    found: Mapping[str, Any],
    scores: Scores,
    predicted: np.ndarray,
    image_at: Callable[[int], np.ndarray],
    objects_at: Callable[[int], tuple[np.ndarray, np.ndarray]] | None,
) -> Path:
    """Writes the page; an earlier one stays until the new one is complete.

    Args:
        path: of the page, which is returned.
        found: what `mlic_jax.diagnose.run.diagnose` says.
        scores: that it is of.
        predicted: bool [N, C], the labels that count as predicted.
        image_at, objects_at: see `evaluation_page.write_report`.
    """

    def pictures(rows: list[Mapping[str, Any]], note: Callable[[Any], str]) -> list[Any]:
        return [
            (picture_of(scores, predicted, row["photo"], image_at, objects_at), note(row))
            for row in rows
        ]

    changed = found["second_look"]["by_photo"] if found["second_look"] else []
    best = [row for row in changed if row["points"] > 0][:CHANGED]
    worst = [row for row in reversed(changed) if row["points"] < 0][:CHANGED]
    page = page_template(_PAGE, _FILTERS).render(
        found=found,
        costliest=pictures(found["costliest"], _said_of_costs),
        changed=[
            (heading, pictures(rows, _said_of_change))
            for heading, rows in (("Gained most", best), ("Lost most", worst))
            if rows
        ],
        traits=TRAITS,
        measures=MEASURES,
        sizes=SIZES,
        bounds=(MEDIUM, LARGE),
        image_size=scores.image_size,
        looks_twice=scores.local_logits is not None,
        region_colours=colours_of_regions(scores),
        least_global=LEAST_GLOBAL,
        has_objects=objects_at is not None,
    )
    write_text(path, page)
    return path


def _said_of_costs(row: Mapping[str, Any]) -> str:
    labels = ", ".join(f"{of['name']} {of['kind']}, {of['AP']:.2f} AP" for of in row["labels"])
    return f"costs {row['cost']:.2f} points of mAP: {labels}"


def _said_of_change(row: Mapping[str, Any]) -> str:
    said = [f"{row['points']:+.2f} points of mAP"]
    said += [f"{what} {', '.join(row[what])}" for what in ("gained", "lost") if row[what]]
    return "; ".join(said)
