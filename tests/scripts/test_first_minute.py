"""The first minute: the table of a run of the command, and what is compiled twice in a log."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmark" / "first_minute.py"


@pytest.fixture(scope="module")
def module():
    """The script's module, beside those that it imports."""
    sys.path.insert(0, str(SCRIPT.parent))
    import first_minute

    yield first_minute
    sys.path.remove(str(SCRIPT.parent))


def test_a_program_is_compiled_twice(module, tmp_path):
    """As JAX says it: another function of the same sums and shapes is the same program."""
    code = "import jax\nfor n in (2, 3, 2): jax.jit(lambda x: x + 1)(jax.numpy.zeros(n))"
    environment = os.environ | {
        "JAX_LOG_COMPILES": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert module.compiled_twice(done.stderr) == ["jit__lambda"]


def test_wrong_recipes(load_script, module, capsys):
    assert load_script(SCRIPT)("--only", "nothing") == 2
    assert "--only nothing: no such recipe" in capsys.readouterr().err


def test_the_page_has_a_place():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert page.count("<!-- benchmark: first_minute -->\n") == 1


@pytest.mark.slow
def test_a_recipe(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark: first_minute -->\n<!-- end -->\n")
    command = [sys.executable, SCRIPT, "--only", "mcar_scenes", "--out", tmp_path, "--page", page]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr  # nothing was compiled twice
    runs = json.loads((tmp_path / "first_minute.json").read_text())["recipes"]["mcar_scenes"]
    assert runs["programs"] > 2
    assert 0 < runs["compiled_seconds"]["the training step"] < runs["cold_seconds"]
    assert re.search(r"^\| `mcar_scenes` \| mcar, resnet10, 96 px \|", page.read_text(), re.M)
