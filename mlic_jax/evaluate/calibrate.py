"""Learns operating points, measures and draws them; see `operating_point.py` for what they are.

`--mode calibrate --workdir RUN` of mlic_jax.main stores one in the run's checkpoint; the same is
learned from a score file, and measured on another one, by

    python -m mlic_jax.calibrate scores_val.npz --rule per_class --apply scores_test.npz
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mlic_jax.checkpoint_config import as_predicted, describe
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import sources
from mlic_jax.errors import UsageError
from mlic_jax.files.atomic import write_text, written_whole
from mlic_jax.metrics.operating_point import (
    RULES,
    OperatingPoint,
    learn_operating_point,
    measure,
    rule_text,
)
from mlic_jax.reports.calibration import class_table, draw, figures_text, summary
from mlic_jax.runtime.checkpoint import find_checkpoint, update_metadata
from mlic_jax.scores.files import Scores
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.scoring import load_model, score_model


def write_results(folder: Path, scores: Scores, point: OperatingPoint) -> dict[str, Any]:
    """Writes `calibration_<split>.json` and `.png` of the split it was learned on.

    Returns:
        What `measure` says.
    """
    values = measure(scores, point)
    written = {"operating_point": point.to_dict(), **values}
    path = Path(folder) / f"calibration_{scores.split}.json"
    write_text(path, json.dumps(written, indent=1, allow_nan=False))
    with written_whole(path.with_suffix(".png")) as partial:
        draw(scores, point, values["classes"]).savefig(partial, format="png", dpi=120)
    return values


# --- commands


def calibrate_run(
    config: ConfigDict, workdir: Path, checkpoint: Path | str | None = None
) -> OperatingPoint:
    """Learns the operating point of a checkpoint and stores it in its metadata.

    The checkpoint is by default the best of the run in `workdir`. Its scores of the split in the
    role `config.calibration.split`, `calibration_<split>.json` and `.png` are written to `workdir`.
    Where prediction would look with other options than `config` has, nothing is stored, and that is
    printed: its labels would not be those of the operating point.

    Raises:
        UsageError: there is no checkpoint or it is of another model, the rule or its target is
            wrong, or the split is also the test split and `config.calibration.allow_test` is not
            set.
        Failure: see `learn_operating_point`.
    """
    options, calibration = ScoreOptions.of(config), config.calibration
    rule, target, role = calibration.rule, calibration.target or None, calibration.split
    rule_text(rule, target)  # before the minutes of scoring
    on_test = _is_test_split(role, options.data.splits)
    if on_test and not calibration.allow_test:
        raise UsageError(
            f"calibration.split={role} is the split {options.data.splits[role]!r}, on which the "
            "results are reported: choose another one, or say "
            "--config.calibration.allow_test=True and have it named"
        )
    path = find_checkpoint(Path(checkpoint or workdir))
    split = sources.open_splits(options.data)[role]
    model, variables, metadata = load_model(options, path, split)
    others = as_predicted(metadata, config, path)
    scores = score_model(model, variables, split, options)
    point = learn_operating_point(scores, rule, target, on_test=on_test)
    if jax.process_index() == 0:
        workdir = Path(workdir)
        scores.save(workdir / f"scores_{scores.split}.npz")
        values = write_results(workdir, scores, point)
        stored = f"not stored in {path}, for prediction looks with {describe(others)}"
        if not others:
            update_metadata(path, {"operating_point": point.to_dict()})
            stored = f"stored in {path}"
            if earlier := metadata.get("operating_point"):
                before = OperatingPoint.from_dict(earlier)
                stored += f", in place of: {before.rule} (of {before.set_name} {before.split})"
        print(summary(point))
        print(figures_text(values, "on the images that it was learned from"))
        print(f"{stored}; see also {workdir}/calibration_{scores.split}.json and .png")
    return point


def _is_test_split(role: str, splits: Mapping[str, str]) -> bool:
    if role not in splits or not splits[role]:
        raise UsageError(f"calibration.split is {role!r}; data.splits has {', '.join(splits)}")
    return splits[role] == splits.get("test")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = Parser(
        prog="python -m mlic_jax.calibrate",
        description="Learns an operating point from a score file of a validation split.",
    )
    parser.add_argument("scores", type=Path, help="a score file, scores_<split>.npz")
    parser.add_argument("--rule", default="one", help="; ".join(f"{r}: {t}" for r, t in _rules()))
    parser.add_argument("--target", type=float, help="for precision and recall, such as 0.9")
    parser.add_argument("--apply", type=Path, metavar="SCORES", help="measure it on this file too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write JSON and a picture")
    parser.add_argument(
        "--allow-test", action="store_true", help="learn on the split that results are reported on"
    )

    def run() -> None:
        options = parser.parse_args(arguments)
        scores = Scores.load(options.scores)
        applied = Scores.load(options.apply) if options.apply else None
        on_test = scores.split == "test"
        if applied is not None:
            if list(applied.class_names) != list(scores.class_names):
                raise UsageError(f"{options.apply} has other classes than {options.scores}")
            same = (applied.set_name, applied.split) == (scores.set_name, scores.split)
            on_test = on_test or same
        if on_test and not options.allow_test:
            raise UsageError(
                f"{options.scores} is of the split that results are reported on: learn from "
                "another one, or say --allow-test and have it named"
            )
        point = learn_operating_point(scores, options.rule, options.target, on_test=on_test)
        values = measure(scores, point)
        print(summary(point))
        print(class_table(values["classes"]))
        print(figures_text(values, f"{scores.set_name} {scores.split}, learned from"))
        if applied is not None:
            name = f"{applied.set_name} {applied.split}, {len(applied.logits)} images"
            print(figures_text(measure(applied, point), name))
        if options.output:
            write_results(options.output, scores, point)

    return exit_code(run)


def _rules() -> list[tuple[str, str]]:
    return [(rule, text.replace("{target:g}", "TARGET")) for rule, text in RULES.items()]
