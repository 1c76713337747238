"""Scripts are files and no package: their `main` is loaded from the file, in this process."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], Callable]:
    """The script's file -> run(arguments) -> exit code."""

    def load(path: Path) -> Callable:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return lambda *arguments: script.main([str(argument) for argument in arguments])

    return load
