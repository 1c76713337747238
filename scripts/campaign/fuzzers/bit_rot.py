"""A finished checkpoint with a damaged file: the same numbers, or a line that says so."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from fuzzer import Broken, Fuzzer, answer, bounded
from mutations import damaged
from tiny_run import TinyRuns

from mlic_jax.runtime.checkpoint import (
    find_checkpoint,
    latest_checkpoint,
    load_weights,
    read_metadata,
)

EVALUATED = ("best", "scores_test.npz", "metrics_test.json")  # results of the best checkpoint
RESUMED = 0.02  # the share of cases in which a run is really resumed


class BitRot(Fuzzer):
    title = "Bit rot in a checkpoint"
    units = "damaged checkpoints"
    holds = (
        "loading gives the very same arrays and metadata, or one line that names the checkpoint; "
        "a fiftieth is really resumed: refused in one line or to the same end as ever, with "
        "`--recover` always to the end"
    )
    share = 6
    seconds = 600

    def __init__(self, shared: Path):
        self._runs = TinyRuns(shared)

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        workdir = folder / "run"
        shutil.copytree(self._runs.alone, workdir)
        chosen = (find_checkpoint, latest_checkpoint)[rng.integers(2)]
        checkpoint = chosen(workdir)
        expected = load_weights(checkpoint)
        kind, file = rot(rng, checkpoint)
        (folder / "damage.txt").write_text(f"{kind} {file.relative_to(workdir)}\n")
        try:
            outcome = self._load(checkpoint, expected)
            if rng.random() < RESUMED:
                outcome += f", {self._resume(workdir, checkpoint)}"
        except Broken as broken:
            raise Broken(f"{kind} {file.relative_to(workdir)}: {broken}") from None
        yield f"{kind}: {outcome}"

    def _load(self, checkpoint: Path, expected: tuple) -> str:
        size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())

        def load() -> tuple:
            return load_weights(checkpoint), read_metadata(checkpoint)

        with bounded(size):
            loaded, refusal = answer(load)
        if refusal is not None:
            if str(checkpoint) not in refusal:
                raise Broken(f"the line does not say of which checkpoint: {refusal}")
            return "refused"
        (variables, metadata), again = loaded
        if metadata != expected[1] or again != expected[1]:
            raise Broken("other metadata are loaded in silence")
        if not _same_trees(variables, expected[0]):
            raise Broken("other numbers are loaded in silence")
        return "as ever"

    def _resume(self, workdir: Path, checkpoint: Path) -> str:
        """Runs the command, where it refuses also with --recover."""
        latest = latest_checkpoint(workdir)
        ended = self._runs.to_its_end(workdir)
        if ended.code:
            ended.check_one_line(1)
            self._runs.to_the_end(workdir, "--recover")
        # What was before the latest is not trained again: if it is the best, another one is now.
        is_lost = checkpoint != latest and not checkpoint.exists()
        self._runs.check_same_as_alone(workdir, EVALUATED if is_lost else ())
        return "recovered" if ended.code else "resumed"


def rot(rng: np.random.Generator, checkpoint: Path) -> tuple[str, Path]:
    """Damages one file of a checkpoint, or two; gives in a word how, and which."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    file = files[rng.integers(len(files))]
    content = file.read_bytes()
    match rng.integers(5):
        case 0:
            file.unlink()
            return "deleted", file
        case 1 if content:
            os.truncate(file, int(rng.integers(len(content))))
            return "cut", file
        case 2:
            others = [other for other in files if other.read_bytes() != content]
            other = others[rng.integers(len(others))]
            file.write_bytes(other.read_bytes())
            other.write_bytes(content)
            return "swapped", file
        case 3 if content:
            place = int(rng.integers(len(content)))
            flipped = content[place] ^ 1 << int(rng.integers(8))
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
            return "bit flipped", file
        case _:
            file.write_bytes(damaged(rng, content))
            return "damaged", file


def _same_trees(found: dict, expected: dict) -> bool:
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


FUZZER = BitRot
