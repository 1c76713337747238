"""Follows a run's steps on the host: a line an epoch, curves, and the guard against NaN."""

import collections
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mlic_jax.data.records import Split
from mlic_jax.errors import Failure
from mlic_jax.runtime import devices, processes
from mlic_jax.runtime.run_checkpoints import RunCheckpoints
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.writers import MetricWriter

# Steps whose metrics may still be on their way while the next ones are dispatched.
STEPS_IN_FLIGHT = 2


class StepLog:
    """Follows the steps on the host without making the device wait: lines, curves, NaN guard."""

    def __init__(
        self,
        workdir: Path,
        checkpoints: RunCheckpoints,
        first_step: int,
        validated: bool,
        epoch_steps: int,
        split: Split,
        options: TrainOptions,
        window: dict[str, Any] | None = None,
    ):
        """Opens the files.

        Args:
            first_step: the step that the run goes on from.
            validated: whether the validation of that step, if it ends an epoch, was done.
            window: what `window` said at that step.
        """
        self._checkpoints = checkpoints
        self._epoch_steps = epoch_steps
        self._split = split
        self._every = options.log_every
        self._epochs, self._validate_every = options.epochs, options.eval.every
        self._batch_size = options.batch_size
        self._writer = None
        if processes.is_first():
            self._writer = MetricWriter(workdir, first_step, validated)
        self._in_flight = collections.deque[tuple[int, np.ndarray, dict[str, jax.Array]]]()
        total = options.epochs * epoch_steps
        self._bar = tqdm(
            total=total,
            initial=first_step,
            desc="train",
            unit="step",
            disable=None if processes.is_first() else True,  # None: unless a person looks on
        )
        self._first_step, self._start = first_step, time.monotonic()
        self._images, self._since = 0, self._start
        self._of_epoch = _Epoch(self._start)
        window = window or {"steps": 0, "sums": {}}
        self._steps, self._sums = window["steps"], collections.Counter(window["sums"])

    def window(self) -> dict[str, Any]:
        """Of the steps since the last line, once all are read, what their means will be made of."""
        return {"steps": self._steps, "sums": dict(self._sums)}

    def add(self, step: int, index: np.ndarray, step_metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a dispatched step, and reads those of an earlier one.

        Raises:
            Failure: that one was not finite.
        """
        self._in_flight.append((step, index, step_metrics))
        if len(self._in_flight) > STEPS_IN_FLIGHT:
            self._read_oldest()

    def drain(self) -> None:
        """Reads all that is in flight and flushes what was written; raises as `add` does."""
        while self._in_flight:
            self._read_oldest()
        if self._writer:
            self._writer.flush()

    def _read_oldest(self) -> None:
        step, index, step_metrics = self._in_flight.popleft()
        values = {name: float(value) for name, value in devices.to_host(step_metrics).items()}
        if not all(map(math.isfinite, values.values())):
            raise Failure(self._not_finite(step, index, values))
        position = (step - 1) % self._epoch_steps * self._batch_size  # in the epoch
        images = min(self._batch_size, len(self._split) - position)
        self._images += images
        self._steps += 1
        self._sums.update(values)
        self._of_epoch.add(images, values["loss"])
        self._bar.update()
        self._log_window(step, values["learning_rate"])
        epoch, rest = divmod(step, self._epoch_steps)
        if not rest and epoch % self._validate_every and epoch < self._epochs:
            self._say_epoch(step, "")  # else the validation says it

    def _log_window(self, step: int, learning_rate: float) -> None:
        """Writes the means over the last `log_every` steps, where these end."""
        if step % self._every and step != self._bar.total:  # what is left at the end counts too
            return
        means = {name: total / self._steps for name, total in self._sums.items()}
        means["learning_rate"] = learning_rate
        self._steps, self._sums = 0, collections.Counter()
        now = time.monotonic()
        rate = self._images / (now - self._since)
        self._images, self._since = 0, now
        self._bar.set_postfix_str(f"loss {means['loss']:.4f}, {rate:.1f} images/s", refresh=False)
        self._write(step, {**means, "images_per_second": rate})

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._writer:
            self._writer.write(step, {"epoch": step / self._epoch_steps, **values})

    def _not_finite(self, step: int, index: np.ndarray, values: dict[str, float]) -> str:
        images = ", ".join(self._split.image_id(i) for i in index if i >= 0)
        if jax.process_count() > 1:
            images = f"{images or 'none'} in process {jax.process_index()}"
        figures = ", ".join(f"{name} {value:g}" for name, value in values.items())
        saved = self._checkpoints.latest_path()
        good = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved yet"
        return (
            f"step {step} is not finite ({figures}); its images: {images}; {good}. "
            "A lower optim.learning_rate usually helps"
        )

    def add_validation(self, step: int, values: dict[str, Any]) -> None:
        """Writes the metrics of a validation and says them in a line."""
        names = ("mAP", "global_mAP", "OF1", "CF1", "OF1_3", "CF1_3")
        self._write(step, {f"val/{name}": values[name] for name in names if name in values})
        self.drain()
        said = f", val mAP {values['mAP']:.2f}, OF1 {values['OF1']:.1f}"
        if "global_mAP" in values:
            said += f", global stream alone mAP {values['global_mAP']:.2f}"
        self._say_epoch(step, said)
        self._images, self._since = 0, time.monotonic()  # its time is not that of the steps

    def _say_epoch(self, step: int, validation: str) -> None:
        """Says in a line how an epoch went, and how long the rest will take if all goes on so."""
        now = time.monotonic()
        line = f"epoch {step // self._epoch_steps} of {self._epochs}"
        line += self._of_epoch.summary() + validation
        if self._first_step < step < self._bar.total:
            a_step = (now - self._start) / (step - self._first_step)
            line += f"; {duration(a_step * (self._bar.total - step))} left"
        self._bar.write(line)
        self._of_epoch = _Epoch(now)

    def close(self) -> None:
        """Ends the bar and closes the files."""
        self._bar.close()
        if self._writer:
            self._writer.close()


class _Epoch:
    """What the line of an epoch says of its training steps."""

    def __init__(self, start: float):
        self._steps, self._images, self._loss = 0, 0, 0.0
        self._start = self._end = start

    def add(self, images: int, loss: float) -> None:
        self._steps += 1
        self._images += images
        self._loss += loss
        self._end = time.monotonic()

    def summary(self) -> str:
        """The mean loss and the rate; nothing where this process trained on none of it."""
        if not self._steps:
            return ""
        rate = self._images / max(self._end - self._start, 1e-9)
        return f": loss {self._loss / self._steps:.4f}, {rate:.1f} images/s"


def duration(seconds: float) -> str:
    """A time for people, as `2 h 5 min` or `40 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
