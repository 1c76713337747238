"""`mlic evaluate SCORES.npz`: the metrics of a score file, without its model and without JAX."""

import json
from pathlib import Path

import numpy as np

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data.label_policy import POLICIES, resolve_unknown
from mlic_jax.errors import UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.protocols import PROTOCOLS
from mlic_jax.metrics.ties import TIES
from mlic_jax.reports.text import class_table, summary
from mlic_jax.scores.files import Scores


def check_same_images(scores: Scores, other: Scores) -> None:
    """Raises UsageError unless two score files are of the same images, labels and classes."""
    for name in ("class_names", "image_ids", "labels"):
        if not np.array_equal(getattr(scores, name), getattr(other, name)):
            raise UsageError(
                f"the two score files differ in their {name.replace('_', ' ')} "
                f"({scores.set_name} {scores.split}: {len(scores.logits)} images, "
                f"{other.set_name} {other.split}: {len(other.logits)}): "
                "a paired test needs the same split, evaluated with the same classes"
            )


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = Parser(prog="python -m mlic_jax.evaluate", description=__doc__)
    parser.add_argument("scores", type=Path, help="a score file, scores_<split>.npz")
    parser.add_argument("--protocol", default="mcar", choices=sorted(PROTOCOLS))
    parser.add_argument(
        "--label-policy", choices=POLICIES, help="of unknown labels; default: the protocol's"
    )
    parser.add_argument(
        "--ties", choices=TIES, help="how equal scores rank; default: the protocol's"
    )
    parser.add_argument("--per-class", action="store_true", help="also print a line for each class")
    parser.add_argument(
        "--bootstrap", type=int, metavar="N", help="intervals from N resamples, such as 1000"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the score file of another model on the same images: test the difference in mAP",
    )
    parser.add_argument("--json", type=Path, help="also write every metric to this file")

    def run() -> None:
        options = parser.parse_args(arguments)
        scores = Scores.load(options.scores)
        other = Scores.load(options.against) if options.against else None
        if other is not None:
            check_same_images(scores, other)
        # scikit-learn takes a second, for which nobody waits to hear of a misspelt file.
        from mlic_jax.metrics import significance
        from mlic_jax.metrics.classification import evaluate_scores

        values = evaluate_scores(
            scores.logits,
            scores.labels,
            options.protocol,
            class_names=list(scores.class_names),
            label_policy=options.label_policy,
            ties=options.ties,
        )
        labels = resolve_unknown(scores.labels, values["unknown_in_ap"])
        print(summary(values, f"{scores.set_name} {scores.split}"))
        if options.bootstrap is not None:
            values["bootstrap"] = intervals = significance.bootstrap_intervals(
                scores.logits, labels, values["ap_kind"], resamples=options.bootstrap
            )
            low, high = intervals["mAP"]
            print(
                f"  mAP {values['mAP']:.1f}, {intervals['level']}% interval {low:.1f} to {high:.1f}"
                f" (bootstrap of the images, {intervals['resamples']:,} resamples)"
            )
        if other is not None:
            values["against"] = test = significance.compare(
                scores.logits,
                other.logits,
                labels,
                values["ap_kind"],
                resamples=options.bootstrap or significance.RESAMPLES,
            )
            low, high = test["interval"]
            print(
                f"  against {options.against}: mAP {test['mAP']:.1f} - {test['mAP_of_other']:.1f} ="
                f" {test['difference']:+.2f}, {test['level']}% interval {low:+.2f} to {high:+.2f}, "
                f"p = {test['p_value']:.2g} ({test['test']}, {test['resamples']:,} resamples)"
            )
        if options.per_class:
            print(class_table(values))
        if options.json:
            write_text(options.json, json.dumps(values, indent=1))

    return exit_code(run)
