"""A disk that is full, has no room for more files, or cannot be written: one line, nothing lost."""

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fuzzer import Broken, Fuzzer, answer
from tiny_run import TinyRuns, check_nothing_half_written, photos

from mlic_jax.runtime.checkpoint import find_checkpoint, latest_checkpoint, load_weights

DISK = 64 << 20  # bytes
LAST_FILES = 200  # about as many as a run makes


class DiskFull(Fuzzer):
    title = "A full or read-only disk"
    units = "full disks"
    holds = (
        "the command ends with exit code 1 or 2 and one line, without a stack trace; what was "
        "saved before loads and is verified; once there is room the same command ends well, "
        "training bit for bit as a run left alone"
    )
    share = 6
    seconds = 600

    def __init__(self, shared: Path):
        self._runs = TinyRuns(shared)
        self._photos = photos(shared / "photos")
        self._shared = shared
        self._bytes = sum(path.stat().st_size for path in self._runs.alone.rglob("*"))

    @functools.cached_property
    def _predictions(self) -> Path:
        """What is predicted where there is room."""
        out = self._shared / "predictions"
        if not out.is_dir():
            self._runs.to_the_end(self._runs.alone, *self._predict(out))
        return out

    @classmethod
    def lacks(cls) -> str | None:
        if os.geteuid() != 0 or not shutil.which("mount"):
            return "it mounts small disks: run it as root, or under unshare --map-root-user --mount"
        return None

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        mode = rng.choice(["train", "train", "train", "prepare", "predict"])
        limit = rng.choice(["no space", "no space", "no files", "read-only", "no folder"])
        with mounted(folder / "disk") as disk:
            out = disk / "below" if limit == "no folder" else disk / "out"
            try:
                yield f"{mode}, {limit}: {self._check(rng, mode, limit, disk, out)}"
            except Broken as broken:
                remount(disk, f"size={DISK}")
                shutil.copytree(disk, folder / "kept", ignore=shutil.ignore_patterns("filler"))
                raise Broken(f"{mode}, {limit}: {broken}") from None

    def _check(self, rng: np.random.Generator, mode: str, limit: str, disk: Path, out: Path) -> str:
        filler = disk / "filler"
        match limit:
            case "no space":
                free = int(rng.uniform(0, 1.2) * self._bytes)
                with filler.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, DISK - free)
            case "no files":
                remount(disk, f"nr_inodes={int(rng.integers(1, LAST_FILES))}")
            case "read-only":
                remount(disk, "ro")
            case "no folder":
                out.write_text("a file in the place of the folder")
        target = out / "run" if limit == "no folder" else out
        ended = self._run(mode, target)
        if ended.code or limit in ("read-only", "no folder"):
            # Preparing and predicting call a folder that cannot be written a wrong request, and so
            # does all that is told to write below a file.
            failure = mode == "train" and limit != "no folder"
            ended.check_one_line(*((1,) if failure else (1, 2)))
        self._check_saved(target)

        remount(disk, f"rw,size={DISK},nr_inodes=100000")
        for made in (filler, out) if limit == "no folder" else (filler,):
            made.unlink(missing_ok=True)
        again = self._run(mode, target)
        if again.code:
            raise Broken(f"with room again it ends with exit code {again.code}: {again.err[-500:]}")
        self._check_result(mode, target)
        return "ended well" if ended.code == 0 else "one line"

    def _run(self, mode: str, out: Path):
        match mode:
            case "train":
                return self._runs.to_its_end(out)
            case "prepare":
                where = f"--config.data.prepared_dir={out}"
                return self._runs.to_its_end(out, "--mode=prepare", where)
            case _:
                return self._runs.to_its_end(self._runs.alone, *self._predict(out))

    def _predict(self, out: Path) -> tuple[str, ...]:
        images = f"--images={self._photos}"
        return "--mode=predict", f"--checkpoint={self._runs.alone}", images, f"--out={out}"

    def _check_saved(self, workdir: Path) -> None:
        """Whatever is there under the name of a checkpoint is one."""
        if latest_checkpoint(workdir) is None:
            return
        for find in (latest_checkpoint, find_checkpoint):
            _, refusal = answer(lambda find=find: load_weights(find(workdir)))
            if refusal:
                raise Broken(f"what was saved before is lost: {refusal}")

    def _check_result(self, mode: str, out: Path) -> None:
        if mode == "train":
            self._runs.check_same_as_alone(out)
            return
        expected = self._runs.prepared if mode == "prepare" else self._predictions
        names = [path.relative_to(expected) for path in sorted(expected.rglob("*.*"))]
        for name in names:
            same = (out / name).is_file() == (expected / name).is_file()
            if not same or (
                name.suffix in (".csv", ".json", ".jsonl", ".arecord")
                and (out / name).read_bytes() != (expected / name).read_bytes()
            ):
                raise Broken(f"{name} is another than where there was room from the start")
        check_nothing_half_written(out)


@contextlib.contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """A small disk of its own, in memory."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def remount(disk: Path, options: str) -> None:
    """Changes what the disk allows."""
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


FUZZER = DiskFull
