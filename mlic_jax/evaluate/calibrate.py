"""Learns the operating point of a checkpoint; see `operating_point.py` for what they are.

`--mode calibrate --workdir RUN` of mlic_jax.main stores it in the run's checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from mlic_jax.checkpoint_config import as_predicted, describe
from mlic_jax.data import sources
from mlic_jax.errors import UsageError
from mlic_jax.metrics.operating_point import OperatingPoint, learn_operating_point, rule_text
from mlic_jax.reports.calibration import figures_text, summary, write_results
from mlic_jax.runtime import processes
from mlic_jax.runtime.checkpoint import find_checkpoint, update_metadata
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.scoring import load_model, score_model


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
    if processes.is_first():
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
        print(summary(point, values["classes"]))
        print(figures_text(values, "on the images that it was learned from"))
        print(f"{stored}; see also {workdir}/calibration_{scores.split}.json and .png")
    return point


def _is_test_split(role: str, splits: Mapping[str, str]) -> bool:
    if role not in splits or not splits[role]:
        raise UsageError(f"calibration.split is {role!r}; data.splits has {', '.join(splits)}")
    return splits[role] == splits.get("test")
