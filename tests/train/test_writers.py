"""Curves on disk: readable by programs and by TensorBoard, exact after a resume."""

import json
import os
import subprocess
import sys

from tensorboardX.proto import event_pb2

from mlic_jax.train.writers import MetricWriter


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """The scalars of all event files: length (8 bytes), its CRC (4), the event, its CRC (4)."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_both_files_hold_every_scalar(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": 0.25, "val/mAP": 90.0})
    assert lines(tmp_path) == [  # though nothing was flushed or closed
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "val/mAP": 90.0},
    ]
    writer.close()
    assert events(tmp_path) == [(1, "loss"), (2, "loss"), (2, "val/mAP")]


def test_a_validation_that_was_not_noted_is_dropped(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step, scalars in ((3, {"loss": 0.5}), (3, {"val/mAP": 90.0}), (4, {"loss": 0.4})):
        writer.write(step, scalars)
    writer.close()
    MetricWriter(tmp_path, 3, validated=True).close()
    assert lines(tmp_path) == [{"step": 3, "loss": 0.5}, {"step": 3, "val/mAP": 90.0}]
    MetricWriter(tmp_path, 3, validated=False).close()
    assert lines(tmp_path) == [{"step": 3, "loss": 0.5}]


def test_curves_that_are_gone_are_missed_aloud(tmp_path, caplog):
    MetricWriter(tmp_path, 0).close()
    assert caplog.text == ""
    (tmp_path / "metrics.jsonl").unlink()
    MetricWriter(tmp_path, 7).close()
    assert "metrics.jsonl is not there: its curves begin at 7" in caplog.text


def test_what_lies_beyond_the_resumed_step_is_dropped(tmp_path):
    text = '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 3}\n{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    writer = MetricWriter(tmp_path, 2)
    writer.write(3, {"loss": 30})
    writer.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 30]


def test_damaged_lines_are_dropped(tmp_path):
    good = b'{"step": 1, "loss": 1}\n'
    damaged = [b"caf\xe9", b"[" * 100_000, b"[1]", b'{"step": {}}', b'{"step": %s}' % (b"9" * 5000)]
    (tmp_path / "metrics.jsonl").write_bytes(good + b"\n".join(damaged))
    MetricWriter(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


def test_writing_imports_no_pytorch(tmp_path):
    """Which tensorboardX does where it is installed, as it seems to be here."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    program = f"""
import importlib.util, sys
from mlic_jax.train.writers import MetricWriter
writer = MetricWriter({str(tmp_path)!r}, 0)
writer.write(1, {{"loss": 0.5}})
writer.close()
assert "torch" not in sys.modules and importlib.util.find_spec("torch")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert events(tmp_path) == [(1, "loss")]
