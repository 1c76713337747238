"""What is written of steps: means over a window, exact after a resume, and what is not finite."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import Failure
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step_log import StepLog, duration


class NoCheckpoints:
    """Of a run that has saved nothing."""

    def latest_path(self):
        return None


@pytest.fixture
def open_log(config, tmp_path):
    config.log_every, config.epochs = 4, 9
    split = sources.open_splits(DataOptions.of(config.data))["train"]

    def start(first_step=0, window=None):
        return StepLog(
            tmp_path, NoCheckpoints(), first_step, True, 3, split, TrainOptions.of(config), window
        )

    return start


def add_steps(log, losses, first):
    for step, loss in enumerate(losses, start=first):
        values = {"loss": jnp.float32(loss), "learning_rate": jnp.float32(step)}
        log.add(step, np.arange(8), values)
    log.drain()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_the_mean_of_its_window_and_the_rate_of_its_last_step(open_log, tmp_path):
    log = open_log()
    add_steps(log, (1, 2, 3, 6, 5, 5, 5, 9), first=1)
    found = lines(tmp_path)  # though the file is still open
    log.close()
    assert [(line["step"], line["loss"], line["learning_rate"]) for line in found] == [
        (4, 3.0, 4.0),
        (8, 6.0, 8.0),
    ]


def test_the_last_steps_have_a_line_however_few(open_log, config, tmp_path):
    config.epochs = 2  # of three steps
    log = open_log()
    add_steps(log, (1, 2, 3, 2, 3, 4), first=1)
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(4, 2.0), (6, 3.5)]


def test_a_window_goes_on_where_the_run_does(open_log, tmp_path):
    """What a checkpoint keeps of it goes through JSON."""
    log = open_log()
    add_steps(log, (0.1, 0.2, 0.7), first=1)
    window = json.loads(json.dumps(log.window()))
    log.close()
    log = open_log(3, window)
    add_steps(log, (0.4,), first=4)
    log.close()
    in_one = sum(float(np.float32(loss)) for loss in (0.1, 0.2, 0.7, 0.4)) / 4
    assert [line["loss"] for line in lines(tmp_path)] == [in_one]


def test_every_epoch_has_a_line(open_log, config, capsys):
    config.epochs, config.eval.every = 3, 2
    log = open_log()
    add_steps(log, (1, 2, 3), first=1)
    add_steps(log, (2, 2, 5), first=4)
    log.add_validation(6, {"mAP": 80.0, "OF1": 70.0, "global_mAP": 75.0})
    add_steps(log, (1, 1, 1), first=7)
    log.add_validation(9, {"mAP": 90.0, "OF1": 70.0})
    log.close()
    found = capsys.readouterr().out.splitlines()
    rate, left = r"\d+\.\d images/s", r"; \d+ s left"
    for line, wanted in zip(
        found,
        (
            rf"epoch 1 of 3: loss 2\.0000, {rate}{left}",
            rf"epoch 2 of 3: loss 3\.0000, {rate}, val mAP 80\.00, OF1 70\.0, "
            rf"global stream alone mAP 75\.00{left}",
            rf"epoch 3 of 3: loss 1\.0000, {rate}, val mAP 90\.00, OF1 70\.0",
        ),
        strict=True,
    ):
        assert re.fullmatch(wanted, line), line


def test_a_validation_that_was_cut_short_is_said_without_a_loss(open_log, capsys):
    log = open_log(3)
    log.add_validation(3, {"mAP": 80.0, "OF1": 70.0})
    log.close()
    assert capsys.readouterr().out == "epoch 1 of 9, val mAP 80.00, OF1 70.0\n"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (3599.9, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_a_step_that_is_not_finite_is_told_with_its_images(open_log):
    log = open_log()
    with pytest.raises(
        Failure, match=r"step 2 is not finite \(.*loss nan.*no checkpoint was saved"
    ):
        add_steps(log, (1.0, float("nan")), first=1)
    log.close()
