"""The command line: one clear line and an exit code for everything a person may get wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCENES = ("--config", "configs/mcar_scenes.py")
PREDICT = ("--mode=predict", "--checkpoint", ".", "--images", ".", "--out", "w")


def run(*arguments, cwd=ROOT):
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "mlic_jax.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help():
    answer = run("--help")
    assert "--workdir" in answer.stdout
    assert "--images" in answer.stdout
    assert "--[no]profile" in answer.stdout
    assert "train" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config is missing"),
        (SCENES, "--workdir is missing"),
        (("--config", "configs/nothing.py", "--workdir", "w"), "configs/nothing.py"),
        ((*SCENES, "--workdir", "w", "--config.epoch=3"), "has no option 'epoch'"),
        ((*SCENES, "--workdir", "w", "--config.model.foo=3"), "has no option 'foo'"),
        ((*SCENES, "--workdir", "w", "--config.epochs=many"), "many"),
        ((*SCENES, "--workdir", "w", "--nonsense=1"), "nonsense"),
        ((*SCENES, "--workdir", "w", "--mode", "fly"), "fly"),
        ((*SCENES, "--workdir", "w", "extra"), "extra"),
        (("--config", "configs/mcar_voc2007.py:resnet9,448", "--workdir", "w"), "resnet9"),
        ((*SCENES, "--workdir", "w", "--config.data.image_size=100"), "multiple of 32"),
        ((*SCENES, "--workdir", "w", "--config.model.top_n=99"), "model.top_n is 99"),
        ((*SCENES, "--workdir", "w", "--config.batch_size=0"), "batch_size is 0"),
        ((*SCENES, "--workdir", "w", "--config.init_from=nowhere"), "nowhere"),
        ((*SCENES, "--workdir", "w", "--mode", "evaluate"), "no checkpoint"),
        ((*SCENES, "--workdir", "w", "--mode", "calibrate"), "no checkpoint"),
        ((*SCENES, "--workdir", "w", "--config.eval.scales=(50,)"), "eval.scales has 50"),
        (("--mode=predict", "--images", ".", "--out", "w"), "--checkpoint is missing"),
        (("--mode=predict", "--checkpoint", ".", "--out", "w"), "--images is missing"),
        (("--mode=predict", "--checkpoint", ".", "--images", "."), "--out is missing"),
        ((*PREDICT, "--scales=448,big"), "not in pixels"),
        (PREDICT, "no image of a format that Pillow reads"),
        ((*SCENES, "--workdir", "w", "--resume"), "--resume is for --mode=predict"),
        ((*PREDICT, "--distributed"), "--mode=predict is for one process"),
        (
            ("--config", "configs/mcar_coco.py", "--workdir", "w", "--config.data.source=coco"),
            "root",
        ),
    ],
)
def test_usage_errors(arguments, message, tmp_path, config):
    arguments = [
        str(ROOT / part) if part.startswith("configs/mcar") else part for part in arguments
    ]
    if any("mcar_scenes" in part for part in arguments):
        arguments += [
            f"--config.data.prepared_dir={config.data.prepared_dir}",
            "--config.data.scenes_sizes=(20, 9, 11)",
            "--config.data.name=tiny_scenes",
        ]
    answer = run(*arguments, cwd=tmp_path)
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    line = answer.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "w").exists()  # nothing half-written
