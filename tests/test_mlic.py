"""The command `mlic`: what it lists, where it leads, and that an installed wheel has all of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlic_jax.__main__ import LISTS, is_mode, run

ROOT = Path(__file__).resolve().parents[1]


def as_module(*words, cwd=ROOT, path=ROOT):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_lists(capsys):
    assert run(["--help"]) == run([]) == 0
    first, second = capsys.readouterr().out.split("usage: ")[1:]
    assert first == second
    assert run(["help"]) == run(["help", "recipes"]) == 0
    assert capsys.readouterr().out == f"usage: {first}mlic recipes  {LISTS['recipes']}\n"
    for command in ("train", "predict", "prepare", "convert", "verify", "recipes", "completion"):
        assert f"\n  {command} " in first
    assert run(["recipes"]) == 0
    assert "\n  msrn_coco      MSRN on COCO 2014" in capsys.readouterr().out
    assert run(["options", "optim.momentum"]) == 0
    assert capsys.readouterr().out == "--config.optim.momentum=0.9\n    sgd\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "mlic has no command 'trian', see mlic --help; did you mean 'train'?"),
        (["--verison"], "did you mean '--version'?"),
        (["evaluate", "."], "no score file at .: a folder; of a run's it is --workdir"),
        (
            ["options", "momentm"],
            "no option has 'momentm' in name or meaning; did you mean 'optim.",
        ),
        (
            ["completion", "fsh"],
            "the shell is 'fsh'; known are bash, zsh, fish; did you mean 'fish'",
        ),
        (["completion"], "the shell is ''; known are bash, zsh, fish"),
        (["convert", "a.pth", "--output=x", "--clases=coco"], "did you mean '--classes'?"),
        (
            ["build-word-vectors", "--classes=cooc", "--package", "--output=x"],
            "did you mean 'coco'?",
        ),
        # A part of an option is none, as absl has it for modes.
        (["prepare", "--images=x", "--nam=y"], "did you mean '--name'?"),
        (["voc-server", "wriet"], "did you mean 'write'?"),
    ],
)
def test_a_wrong_word(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mlic"])
    assert run(words) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert message in line


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("train", True),
        ("train --config mcar_scenes", True),
        ("evaluate --workdir runs/voc", True),
        ("evaluate scores_test.npz --bootstrap 10", False),
        ("calibrate scores_val.npz", False),
        ("prepare --images photos --name mine", False),
        ("prepare --help", False),
        ("prepare --config=mcar_scenes", True),
        ("prepare --config mcar_scenes --config.seed=1", True),
        ("convert a.pth", False),
    ],
)
def test_one_word_for_a_run_and_for_a_file(line, mode):
    command, *words = line.split()
    assert is_mode(command, words) == mode


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("mlic_jax", "prepare", "--help"), 0, "usage: mlic prepare "),
        (("mlic_jax", "train", "--help"), 0, "usage: mlic train "),
        (("mlic_jax.train",), 2, "error: --config is missing"),
        (("mlic_jax.predict",), 2, "error: --checkpoint is missing"),
        (("mlic_jax.evaluate",), 2, "error: --workdir is missing, and --checkpoint too"),
        (("mlic_jax.evaluate", "no.npz"), 2, "error: no score file at no.npz"),
        (("mlic_jax.calibrate", "no.npz"), 2, "error: no score file at no.npz"),
        (("mlic_jax.calibrate",), 2, "error: --workdir is missing, and --checkpoint too"),
        (("mlic_jax.voc_server", "--help"), 0, "usage: mlic voc-server "),
    ],
)
def test_every_door_leads_somewhere(words, code, said, without_jax):
    answer = as_module(*words, path=os.pathsep.join(map(str, (without_jax, ROOT))))
    assert answer.returncode == code
    assert (answer.stdout + answer.stderr).startswith(said)


def test_a_reader_that_ends_early_sees_no_error():
    program = f"{sys.executable} -m mlic_jax options | true"
    answer = subprocess.run(
        ["bash", "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (answer.stdout, answer.stderr) == ("", "")


def test_lists_and_misspelt_files_need_no_library_of_seconds():
    program = """
import sys
from mlic_jax.__main__ import run
for words in (["--help"], ["options", "seed"], ["evaluate", "no.npz"], ["calibrate", "no.npz"]):
    run(words)
assert not {"jax", "sklearn"} & sys.modules.keys()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_an_installed_wheel_has_all_of_it(tmp_path):
    """Built from a copy of what it is made of, installed beside the rest, run from elsewhere."""
    source, site = tmp_path / "source", tmp_path / "site"
    for part in ("mlic_jax", "weight_conversion", "configs"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, source)
    pip = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    installed = as_module(*pip, f"--target={site}", ".", cwd=source)
    assert installed.returncode == 0, installed.stderr
    recipes = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert recipes == {path.name for path in site.glob("mlic_jax/configs/*.py")}
    rooms = ("mlic_jax", "weight_conversion")
    templates = {path.name for room in rooms for path in (ROOT / room).rglob("*.jinja")}
    assert templates == {path.name for path in site.rglob("*.jinja")}
    assert (site / "mlic_jax" / "py.typed").is_file()  # so that checkers read the types of it

    def mlic(*words):
        return subprocess.run(
            [sys.executable, site / "bin" / "mlic", *words],
            cwd=tmp_path,
            env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )

    assert "mcar_scenes " in mlic("recipes").stdout
    sizes = "--config.data.scenes_sizes=(4, 2, 2)"
    prepared = mlic("prepare", "--config=mcar_scenes", sizes)
    assert prepared.stdout.count("images in prepared/scenes") == 3, prepared.stderr
    refused = mlic("train", "--config=mcar_scene")
    assert "did you mean 'mcar_scenes'?" in refused.stderr
