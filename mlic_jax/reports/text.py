"""What a split's metrics are in words: a few lines for the person who waits, a table of classes."""

from collections.abc import Mapping
from typing import Any

from mlic_jax.metrics.ties import said_of_ties


def summary(values: dict[str, Any], name: str) -> str:
    """A few lines for the person who waits."""
    figures = [f"chance {values['chance']:.1f}"]
    if "global_mAP" in values:
        figures.append(f"global stream alone {values['global_mAP']:.1f}")
    figures.append(f"final mAP {values['mAP']:.1f}")
    lines = [
        f"{name}: {values['num_images']} images, {values['num_classes']} classes",
        f"  {', '.join(figures)}",
    ]
    if "mAP_frequent" in values:
        value = values["mAP_frequent"]
        lines.append(
            f"  mAP {'n/a' if value is None else format(value, '.1f')} over the "
            f"{values['num_frequent']} classes with enough positives in both splits"
        )
    if said := said_of_ties(values):
        lines.append(f"  {said}")
    names = ("OP", "OR", "OF1", "CP", "CR", values["class_f1"])

    def figures_of(what: str, found: Mapping[str, Any], suffix: str = "") -> str:
        return f"  {what}:  " + "  ".join(f"{name} {found[name + suffix]:.1f}" for name in names)

    at = f"at probability >= {values['threshold']:g}"
    lines.append(figures_of(f"all labels {at}", values))
    lines.append(figures_of(f"top-{values['top_k']} labels {at}", values, f"_{values['top_k']}"))
    if swept := values.get("swept"):
        at = f"at logit >= {swept['threshold']:g}, swept on these scores"
        lines.append(figures_of(f"all labels {at}", swept))
    if point := values.get("operating_point"):
        lines.append(figures_of(f"labels as predicted, {said_of_point(point)}", point["figures"]))
    if "ranking_loss" in values:
        lines.append(
            f"  ranking:  coverage error {values['coverage_error']:.2f} labels  label ranking AP "
            f"{values['label_ranking_average_precision']:.1f}  ranking loss "
            f"{values['ranking_loss']:.2f}"
        )
    if located := values.get("localisation"):
        lines.append(f"  where it looks:  {localisation_text(located)}")
    if said := said_of_tree(values):
        lines.append(f"  label tree: {said}")
    return "\n".join(lines)


def said_of_point(point: Mapping[str, Any]) -> str:
    """What an operating point is, of what `OperatingPoint.to_dict` says, and where it is from."""
    return f"with {point['rule']}, from {point['set']} {point['split']}"


def said_of_tree(values: Mapping[str, Any]) -> str:
    """How far labels and scores agree with the label tree; empty where there is none."""
    if (tree := values.get("label_tree")) is None:
        return ""
    pairs = len(tree["rules"]) * values["num_images"]
    return (
        f"of {pairs:,} (a rule and a photo) {sum(tree['labels']):,} labels and "
        f"{sum(tree['scores']):,} scores are against it"
    )


def localisation_text(located: Mapping[str, Any]) -> str:
    """The figures of `summarise_looks` over all, beside those of a random and a central region."""
    said = [
        f"{called} {found['model']:.1f} (random {found['random']:.1f}, central "
        f"{found['central']:.1f})"
        for name, called in (("pointing", "pointing"), ("iou", "IoU"), ("energy", "energy"))
        if (found := located.get(name)) and found["model"] is not None
    ]
    return "  ".join([*said, f"{located['regions']} of {located['objects']} objects have a region"])


def class_table(values: dict[str, Any]) -> str:
    """A line for every class; with the interval of its AP where `values` has `bootstrap`."""
    intervals = values.get("bootstrap", {}).get("AP")
    width = max(5, *map(len, values["class_names"]))
    heading = f"  {'class':{width}} {'positives':>9} {'AP':>6}"
    if intervals:
        heading += f" {values['bootstrap']['level']:>5}% interval"
    lines = [heading + "".join(f" {name:>6}" for name in ("P", "R", "F1"))]

    def percent(value: float | None) -> str:
        return f" {'-' if value is None else format(value, '.1f'):>6}"

    for c, name in enumerate(values["class_names"]):
        line = f"  {name:{width}} {values['positives'][c]:9,}{percent(values['AP'][c])}"
        if intervals:
            low, high = intervals[c] or (None, None)
            line += f" {percent(low)} {percent(high)}"
        lines.append(line + "".join(percent(values[name][c]) for name in ("P", "R", "F1")))
    return "\n".join(lines)
