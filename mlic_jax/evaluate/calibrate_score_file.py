"""`mlic calibrate SCORES.npz`: an operating point from a score file, without its model and JAX.

It is measured on the same file, and on another one with `--apply`.
"""

from collections.abc import Sequence
from pathlib import Path

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import UsageError
from mlic_jax.metrics.operating_point import RULES, learn_operating_point, measure
from mlic_jax.reports.calibration import class_table, figures_text, summary, write_results
from mlic_jax.scores.files import Scores


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
        print(summary(point, values["classes"]))
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
