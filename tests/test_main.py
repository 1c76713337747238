"""The command line: one clear line and an exit code for everything a person may get wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCENES = ("--config", "configs/mcar_scenes.py")
PREDICT = ("--mode=predict", "--checkpoint", ".", "--images", ".", "--out", "w")


def run(*arguments, cwd=ROOT, before=ROOT):
    """The command; modules are looked for in the folder `before` first."""
    path = os.pathsep.join(map(str, (before, ROOT)))
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", "mlic_jax.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help(without_jax):
    answer = run("--help", before=without_jax)
    assert answer.returncode == 0
    assert "--workdir" in answer.stdout
    assert "--images" in answer.stdout
    assert "--profile" in answer.stdout
    assert "train" in answer.stdout
    assert len(answer.stdout.splitlines()) < 75
    of_serve = run("--mode=serve", "--help", before=without_jax).stdout
    assert "--port" in of_serve and "--images" not in of_serve


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config is missing"),
        (SCENES, "--workdir is missing"),
        (("--config", "configs/nothing.py", "--workdir", "w"), "configs/nothing.py"),
        (("--workdir", "w", "--config.epochs=3"), "--config is missing"),
        (("--mode=evaluate",), "--workdir is missing, and --checkpoint too"),
        (
            ("--mode=evaluate", "--workdir=w", "--config.eval.flop=True"),
            "no option 'eval.flop'",
        ),
        ((*PREDICT, "--config.eval.flip=True"), "--config is for train, evaluate"),
        ((*SCENES, "--workdir", "w", "--config.epoch=3"), "has no option 'epoch'"),
        ((*SCENES, "--workdir", "w", "--config.model.foo=3"), "has no option 'model.foo'"),
        ((*SCENES, "--workdir", "w", "--config.epochs=many"), "many"),
        ((*SCENES, "--workdir", "w", "--nonsense=1"), "nonsense"),
        ((*SCENES, "--workdir", "w", "--mode", "fly"), "fly"),
        ((*SCENES, "--workdir", "w", "--mode", "evalaute"), "did you mean 'evaluate'?"),
        ((*SCENES, "--wrkdir", "w"), "Did you mean: workdir"),
        (("--config=mcar_coco:resnet51", "--workdir=w"), "did you mean 'resnet50'?"),
        ((*PREDICT, "x"), "unexpected argument 'x'; options are"),
        ((*SCENES, "--workdir", "w", "extra"), "extra"),
        (("--config", "configs/mcar_voc2007.py:resnet9,448", "--workdir", "w"), "resnet9"),
        ((*SCENES, "--workdir", "w", "--config.data.image_size=100"), "multiple of 32"),
        ((*SCENES, "--workdir", "w", "--config.batch_size=0"), "batch_size is 0"),
        ((*SCENES, "--workdir", "w", "--config.init_from=nowhere"), "nowhere"),
        ((*SCENES, "--workdir", "w", "--mode", "evaluate"), "no checkpoint"),
        ((*SCENES, "--workdir", "w", "--mode", "calibrate"), "no checkpoint"),
        ((*SCENES, "--workdir", "w", "--config.eval.scales=(50,)"), "eval.scales has 50"),
        (("--mode=predict", "--images", ".", "--out", "w"), "--checkpoint is missing"),
        (("--mode=predict", "--checkpoint", ".", "--out", "w"), "--images is missing"),
        (("--mode=predict", "--checkpoint", ".", "--images", "."), "--out is missing"),
        ((*PREDICT, "--scales=448,big"), "not in pixels"),
        ((*PREDICT, "--scales=²"), "not in pixels"),
        ((*PREDICT, "--runtime=onnx"), "--runtime is 'onnx'; known are jax, stablehlo, onnxruntim"),
        ((*PREDICT[:5], ".", "--out=w"), "in quotes, as in --images 'photos/*.jpg'"),
        ((*SCENES, "--workdir="), "--workdir is missing"),
        ((*SCENES, "--workdir", "w", "--mode=evaluate", "--scales=64"), "--scales is for"),
        (
            (*SCENES, "--workdir", "w", "--mode=calibrate", "--flip"),
            "--flip is for predict, not for calibrate",
        ),
        ((*SCENES, "--mode=prepare", "--deterministic"), "--deterministic is for train, ev"),
        ((*SCENES, "--workdir", "w", "--images=photos"), "--images is for predict"),
        ((*SCENES, "--workdir", "w", "--mode=evaluate", "--recover"), "--recover is for"),
        ((*PREDICT, "--profile"), "--profile is for train, evaluate, not for predict"),
        ((*SCENES, "--workdir", "w", "--resume"), "--resume is for predict"),
        ((*PREDICT, "--distributed"), "predict is for one process"),
        ((*PREDICT, "--images=no"), "--images no: there is no such file or folder"),
        (("--mode=evaluate", "--workdir=no"), "there is no such folder"),
        (("--mode=evaluate", "--workdir=."), "it holds neither one nor a run with one"),
        (("--mode=calibrate", "--checkpoint=."), "it holds neither one nor a run with one"),
        (("--mode=serve", "--checkpoint=."), "it holds neither one nor a run with one"),
        (PREDICT, "it holds neither one nor a run with one"),
        ((*SCENES, "--workdir", "w", "--config.init_from=."), "it holds neither one nor a run"),
    ],
)
def test_usage_errors(arguments, message, tmp_path, config, without_jax):
    check_usage_error(arguments, message, tmp_path, config, without_jax)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SCENES, "--workdir", "w", "--config.model.top_n=99"), "model.top_n is 99"),
        (PREDICT, "no image of a format that Pillow reads"),
        (
            ("--config", "configs/mcar_coco.py", "--workdir", "w", "--config.data.source=coco"),
            "root",
        ),
    ],
)
def test_usage_errors_that_only_a_set_or_photos_show(arguments, message, tmp_path, config):
    (tmp_path / "variables").mkdir()  # which make a folder a checkpoint
    check_usage_error(arguments, message, tmp_path, config, ROOT)


def check_usage_error(arguments, message, folder, config, before):
    arguments = [
        str(ROOT / part) if part.startswith("configs/mcar") else part for part in arguments
    ]
    if any("mcar_scenes" in part for part in arguments):
        arguments += [
            f"--config.data.prepared_dir={config.data.prepared_dir}",
            "--config.data.scenes_sizes=(20, 9, 11)",
            "--config.data.name=tiny_scenes",
        ]
    answer = run(*arguments, cwd=folder, before=before)
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    line = answer.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (folder / "w").exists()  # nothing half-written


# Every line that the modes may print: on stdout what they found, on stderr their log and bars.
SAID = (
    r"prepared .*: 20 train, 9 val, 11 test; 12 classes",
    r"(train|val|test): tiny_scenes (train|val|test), \d+ images in .*",
    r"epoch 1 of 1: loss \d\.\d{4}, \d+\.\d images/s, val mAP .*",
    r"resuming .*/checkpoints/3, of 3 steps",
    r".*/checkpoints/3: as it says itself(; changed: eval.batch_size 32 \(now 2\))?",
    r"tiny_scenes test: 11 images, 12 classes",
    r"  chance .* final mAP .*",
    r"  (all|top-3) labels at probability .*",
    r"  where it looks:  pointing .* \d+ of \d+ objects have a region",
    r"tiny_scenes test: 11 images, predicted at probability 0.6",
    r"  (missed|wrong): \d+ of \d+ \(.*\)",
    r"  second look: \d+ labels gained, \d+ lost",
    r"page and figures: .*",
    r"scores, metrics and report: .*",
    r"learned on tiny_scenes val, 9 images: .*",
    r"  (temperature|threshold) .*",
    r"on the images that it was learned from, .*",
    r"  at (0.5|the operating point): .*",
    r"stored in .*",
    r"photo.png: .* \d\.\d\d",
    r"photos: 1",
    r"labels: .* 1",
    r"table, photos and page: .*",
)
LOGGED = (
    r"mcar on resnet10: [\d,]+ parameters, see .*/run/parameters.txt",
    r"Compil(ing|ed) .*",
    r"(predict|(check|write|score) .*):.*\d+/\d+.*",  # a bar
    r"\s*\x1b\[A\s*",  # the end of one below another
)


def test_modes_that_succeed_end_with_0_and_print_their_own_lines_alone(make_config, tmp_path):
    """A checkpoint needs no recipe, and what it says of itself is what training said of it."""
    data = make_config().data
    recipe = [
        *("--config", "configs/mcar_scenes.py", f"--config.data.prepared_dir={tmp_path}/prepared"),
        *(f"--config.data.name={data.name}", f"--config.data.scenes_sizes={data.scenes_sizes}"),
        *("--config.epochs=1", "--config.batch_size=8", "--config.model.width=0.125"),
        *("--config.data.image_size=64", "--config.log_every=1", f"--workdir={tmp_path}/run"),
        *("--config.model.pooling=avg", "--config.model.localizer=clean"),
    ]
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.png")
    files = ("--images", f"{tmp_path}/photo.png", "--out", f"{tmp_path}/predictions")
    options = {
        **dict.fromkeys(("prepare", "train"), recipe),
        "evaluate": [f"--workdir={tmp_path}/run"],
        "diagnose": [f"--workdir={tmp_path}/run"],
        "calibrate": [f"--checkpoint={tmp_path}/run", "--config.eval.batch_size=2"],
        "predict": ["--checkpoint", f"{tmp_path}/run", *files, "--deterministic"],
    }
    written = {}
    for mode in ("prepare", "train", "train", "evaluate", "diagnose", "calibrate", "predict"):
        answer = run(*options[mode], "--mode", mode, cwd=ROOT)
        assert answer.returncode == 0, answer.stderr
        for text, known in ((answer.stdout, SAID), (answer.stderr, LOGGED)):
            for line in filter(str.strip, re.split(r"[\r\n]+", text)):
                assert any(re.fullmatch(pattern, line) for pattern in known), (mode, line)
        names = ("metrics_test.json", "scores_test.npz", "report/index.html")
        found = {name: (tmp_path / "run" / name) for name in names if mode != "prepare"}
        found = {name: path.read_bytes() for name, path in found.items()}
        assert not written or found == written, mode
        written = found
    assert (tmp_path / "predictions" / "index.html").is_file()
    assert not (tmp_path / "run" / "evaluations").exists()
    metrics = json.loads(written["metrics_test.json"])
    assert metrics["overrides"] == {}
    diagnosed = json.loads((tmp_path / "run" / "diagnosis" / "diagnosis.json").read_text())
    assert diagnosed["localisation"] == metrics["localisation"]


def test_a_workdir_below_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    recipe = str(ROOT / "configs" / "mcar_scenes.py")
    answer = run("--config", recipe, "--workdir", "file/run", cwd=tmp_path)
    assert answer.returncode == 2
    wanted = "error: --workdir file/run: file is a file; it must be a folder\n"
    assert answer.stderr == wanted


def test_deterministic_reaches_xla(tmp_path):
    """Said after JAX is imported, and before it starts its devices, as `main` says it."""
    program = """
import jax
from mlic_jax.main import read_flags
read_flags(["main", "--mode=train", "--deterministic"])
jax.jit(lambda x: x + 1)(1.0)
"""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    read = [path.read_text() for path in tmp_path.glob("*.debug_options")]
    assert read and all("xla_gpu_deterministic_ops: true" in options for options in read)
