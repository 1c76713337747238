"""What a verification found, in words and as a page."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlic_jax.files.atomic import write_text
from mlic_jax.reports.page import page_template

CHART_DECADES = (-9, 0)  # of the errors that the page shows


def summary(result: Mapping[str, Any]) -> str:
    """The table that is printed."""
    photos = result["photos"]
    lines = [
        f"{result['checkpoint']}: {photos['count']} photos of {photos['name']} at "
        f"{photos['size']} px, JAX against PyTorch",
        "",
        f"{'':26}{'absolute':>12}{'relative':>12}",
    ]
    for name, error in result["errors"].items():
        lines.append(f"{name:26}{error['absolute']:12.2e}{error['relative']:12.2e}")
    lines += [*_score_lines(result), *_training_lines(result), *_top_lines(result), ""]
    for check in result["checks"]:
        verdict = "pass" if check["passed"] else "FAIL"
        lines.append(
            f"{verdict}  {check['name']}: {check['value']:.2e}, at most {check['at_most']:g}"
        )
    return "\n".join(lines)


def _score_lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, where in (
        ("scores", "all images"),
        ("scores_where_boxes_agree", "where all boxes agree"),
    ):
        if key in result:
            values = dict(result[key])
            lines.append(f"probabilities, {where} ({values.pop('images')}):")
            lines += [f"  {name:24}{value:12.2e}" for name, value in values.items()]
    if boxes := result.get("boxes"):
        lines.append(
            f"boxes: {boxes['identical']:.2%} of {boxes['count']} identical, "
            f"{boxes['within_one_pixel']:.2%} within one pixel"
        )
    if groups := result.get("groups"):
        lines.append(f"labels in the same group: {groups['labels_in_the_same_group']:.2%}")
    if ap := result.get("average_precision"):
        lines.append(
            f"mAP: jax {ap['jax']:.3f}, torch {ap['torch']:.3f}, difference {ap['difference']:+.4f}"
        )
        worst = max(ap["classes"], key=lambda row: abs(row["difference"]))
        lines.append(f"largest difference of an AP: {worst['difference']:+.4f} ({worst['name']})")
    return ["", *lines] if lines else []


def _top_lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for photo in result.get("top", ()):
        said = (
            f"{row.get('name', row['index'])} {row['probability']:.1%}" for row in photo["classes"]
        )
        lines.append(f"{photo['id']}: {', '.join(said)}")
    return ["", *lines] if lines else []


def _training_lines(result: Mapping[str, Any]) -> list[str]:
    if "training" not in result:
        return []
    training = result["training"]
    lines = ["", f"{'training':10}{'loss, jax':>14}{'loss, torch':>14}{'relative':>12}"]
    for k, step in enumerate(training["steps"], start=1):
        row = f"{step['jax']:14.6f}{step['torch']:14.6f}{step['relative']:12.2e}"
        lines.append(f"{f'step {k}':10}{row}")
    lines.append("apart at the end, of how far they moved:")
    lines += [f"  {group:24}{value:12.2e}" for group, value in training["groups"].items()]
    if boxes := training["boxes"]:
        own = f"{boxes['identical']:.2%}"
        lines.append(f"both looked at JAX's boxes; PyTorch alone would have chosen {own} of them")
    return lines


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the page; it is one file that loads nothing."""
    filters = {"error": lambda value: f"{value:.1e}" if value else "0", "place": place_on_chart}
    template = page_template(Path(__file__).with_name("page.html.jinja"), filters)
    relative = {name: error["relative"] for name, error in result["errors"].items()}
    page = template.render(result=result, relative=relative, decades=CHART_DECADES)
    write_text(path, page)


def place_on_chart(error: float) -> float:
    """Where the charts, logarithmic over `CHART_DECADES`, have an error: percent of their width."""
    low, high = CHART_DECADES
    decade = math.log10(error) if error > 0 else low
    return 100 * (min(max(decade, low), high) - low) / (high - low)
