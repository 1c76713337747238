"""The types of the package: mypy finds nothing wrong, and those who import it get them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def mypy(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_mypy_finds_nothing():
    """See `[tool.mypy]` in pyproject.toml for what it looks at."""
    result = mypy(cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
