"""The notebooks run from their first cell to their last, each a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
NAMES = ("predict_and_look", "fine_tune", "compare_runs")


def test_all_are_tried():
    cells = {path.stem for path in NOTEBOOKS.glob("*.py") if "# %%" in path.read_text()}
    assert cells == {*NAMES}


def test_the_notebooks(tmp_path):
    """In one folder: they share the first run."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    said = {}
    for name in NAMES:
        done = subprocess.run(
            [sys.executable, NOTEBOOKS / f"{name}.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        said[name] = done.stdout
    assert "Predictor(mcar on resnet10, 64 px; 12 labels: " in said["predict_and_look"]
    assert "photos/0.jpg: " in said["predict_and_look"]
    assert (tmp_path / "annotated.png").is_file()
    assert "own/test/" in said["fine_tune"]
    assert "p = " in said["compare_runs"]
