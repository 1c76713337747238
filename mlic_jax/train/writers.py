"""Where a run's numbers go: `metrics.jsonl` for programs, TensorBoard event files for people."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from mlic_jax.files.atomic import write_text

logger = logging.getLogger(__name__)


class MetricWriter:
    """Writes scalars of a step to both; continues a run after `first_step`.

    What a killed run wrote beyond the step it resumes from is dropped: it will be written again.
    """

    def __init__(self, workdir: Path, first_step: int, validated: bool = True):
        """Opens both files; `validated`: what was written of a validation at that step stays."""
        workdir = Path(workdir)
        self._path = workdir / "metrics.jsonl"
        self._drop_after(first_step, validated)
        self._lines = self._path.open("a", encoding="utf-8")
        self._events = _event_writer(workdir / "tensorboard", purge_step=first_step + 1)

    def _drop_after(self, last_step: int, validated: bool) -> None:
        if not self._path.exists():
            if last_step:
                logger.warning("%s is not there: its curves begin at %d", self._path, last_step)
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                keep = entry["step"] <= last_step
                if entry["step"] == last_step and not validated:
                    keep = "val/mAP" not in entry
            except (ValueError, KeyError, TypeError, RecursionError):
                keep = False  # cut off by the kill
            if keep:
                kept.append(line + "\n")
        write_text(self._path, "".join(kept))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line, which survives the process from now on, and one point of every curve."""
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """The curves written so far survive the process too."""
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        self._lines.close()
        self._events.close()


def _event_writer(folder: Path, purge_step: int) -> Any:
    """tensorboardX's, kept from importing PyTorch: two seconds for nothing that scalars need."""
    modules: dict[str, Any] = sys.modules
    hidden = modules.setdefault("torch", None)  # None: there is no such module
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden is None:
            del modules["torch"]
    return SummaryWriter(str(folder), purge_step=purge_step)
