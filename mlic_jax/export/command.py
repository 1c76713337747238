"""What is done with a bundle: `python -m mlic_jax.bundle verify|run|repository BUNDLE ...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.export import bundle, repository
from mlic_jax.export.run_bundle import Bundle, print_all
from mlic_jax.names import RUNTIMES, require_one_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="python -m mlic_jax.bundle", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="run the reference photos, and compare")
    run = commands.add_parser("run", help="label photos, as run.py in the bundle does")
    serve = commands.add_parser("repository", help="write what Triton or OpenVINO serves")
    for command in (verify, run, serve):
        command.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument(
        "--runtime", metavar="NAME", help=f"{', '.join(RUNTIMES)}; default: all installed"
    )
    verify.add_argument("--checkpoint", metavar="RUN", help="for jax: what it was exported from")
    run.add_argument("photos", nargs="+", metavar="PHOTO")
    run.add_argument("--top", type=int, metavar="N", help="so many labels, the likeliest")
    serve.add_argument("--server", required=True, metavar="NAME", help="triton or ovms")
    serve.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    serve.add_argument(
        "--name", metavar="NAME", help="of the model for clients; default: that of the bundle"
    )
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(given: argparse.Namespace) -> None:
    description = bundle.read(given.bundle)
    if given.command == "verify":
        _verify(given.bundle, description, given.runtime, given.checkpoint)
        return
    if given.command == "repository":
        bundle.require("onnx")
        name = given.name or given.bundle.resolve().name.partition(".")[0]
        repository.write(given.bundle, description, given.server, given.out, name)
        return
    if given.top is not None and given.top < 1:
        raise UsageError(f"--top is {given.top}; it must be positive")
    bundle.require("onnxruntime")
    bundle.model_file(given.bundle, description, "onnx", "run")
    if failed := print_all(Bundle(given.bundle), given.photos, given.top):
        raise Failure(f"{failed} of {len(given.photos)} photos could not be read")


def _verify(
    folder: Path, description: dict[str, Any], runtime: str | None, checkpoint: str | None
) -> None:
    from mlic_jax.export.verify import verify

    if runtime is not None:
        require_one_of("--runtime", runtime, RUNTIMES)
        if (runtime == "jax") != (checkpoint is not None):
            raise UsageError(
                "--runtime jax is the model that a bundle was exported from, and --checkpoint says "
                "which: give both, or none"
            )
    runtimes = [runtime] if runtime else _installed(description)
    if checkpoint is not None and runtime is None:
        runtimes.append("jax")
    if not runtimes:
        raise UsageError(f"nothing here runs {folder}: pip install onnxruntime")
    problems = []
    for name in runtimes:
        agreement = verify(folder, description, name, checkpoint if name == "jax" else None)
        print(agreement)
        problems.append(agreement.problem(description["tolerance"]))
    if wrong := list(filter(None, problems)):
        raise Failure("; ".join(wrong))


def _installed(description: dict[str, Any]) -> list[str]:
    """The runtimes that are here and that a bundle is for."""
    return [
        name
        for name, needed in bundle.RUNTIMES.items()
        if needed in description["formats"]
        and name in description.get("runtimes", bundle.RUNTIMES)
        and bundle.is_installed(name)
    ]


if __name__ == "__main__":
    sys.exit(main())
