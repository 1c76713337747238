"""Where the checkpoints of a run lie, and which a path may mean: names alone, and no JAX."""

import os
from pathlib import Path

from mlic_jax.errors import UsageError


def candidates(path: Path | str) -> list[Path]:
    """The folders of the checkpoints that a path may mean: itself, or all of the run in it.

    Raises:
        UsageError: there is none.
    """
    path = Path(os.path.realpath(path))  # whose names say what run it is of
    if path.is_file():
        convert = "a checkpoint of PyTorch becomes one by `mlic convert`"
        raise UsageError(
            f"no checkpoint at {path}: it is a file, and a checkpoint a folder; {convert}"
        )
    if not path.is_dir():
        raise UsageError(f"no checkpoint at {path}: there is no such folder")
    if (path / "hashes.json").is_file():
        raise UsageError(
            f"no checkpoint at {path}: it is a bundle, for `mlic bundle`, or for `mlic predict` "
            "with --runtime onnxruntime"
        )
    if path.name == "checkpoints" and steps_in(path):
        path = path.parent
    if (path / "variables").is_dir() or (path / "metadata").is_dir():  # damaged, without one
        return [path]
    found = steps_in(path)[-1:] or run_checkpoints(path)
    if not found:
        raise UsageError(f"no checkpoint at {path}: it holds neither one nor a run with one")
    return found


def run_checkpoints(workdir: Path) -> list[Path]:
    """The folders of all complete checkpoints of a run; those of earlier versions lay deeper."""
    folder = Path(workdir).absolute() / "checkpoints"
    return [*steps_in(folder), *steps_in(folder / "latest"), *steps_in(folder / "best")]


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is of; None of a converted model."""
    above = checkpoint.parents[:2] if checkpoint.name.isdigit() else ()  # they once lay deeper
    return next((folder.parent for folder in above if folder.name == "checkpoints"), None)


def steps_in(folder: Path) -> list[Path]:
    """The folders in it whose names are steps, in their order."""
    steps = (entry for entry in folder.glob("*") if entry.name.isdigit())
    return sorted(steps, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint of a run is named after."""
    return int(checkpoint.name)
