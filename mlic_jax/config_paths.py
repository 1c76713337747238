"""Where the files lie that a configuration names: from another folder, and after all have moved.

On a command line a path is relative to the working directory, as ever. In a recipe of own data it
is relative to the recipe's file, so that both may move together and be used from anywhere. In a
checkpoint it is absolute, for the run may be looked at from anywhere; where run and data have moved
(or were copied) together, it is where it was as seen from the run.
"""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlic_jax.data.word_vectors import ONE_HOT
from mlic_jax.names import IDENTITY

# The options that name files or folders of the machine; those below data.root are relative to it.
PATHS = (
    *("init_from", "data.root", "data.prepared_dir", "data.word_vectors", "data.label_graph"),
    "data.label_tree",
)


def beside(recipe: str, path: str) -> str:
    """The absolute path of what a recipe names relative to its own file, `__file__`."""
    return _joined(os.path.dirname(os.path.abspath(recipe)), path)


def seen_from(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """A path relative to a folder; absolute where only the root of the file system holds both.

    What shares no folder, as a mounted disk and a home, does not move together either.
    """
    folder, path = os.path.abspath(folder), _absolute(os.fspath(path))
    apart = os.path.commonpath([folder, path]) == os.sep
    return path if apart else os.path.relpath(path, folder)


def is_path(option: str, value: Any) -> bool:
    """Whether the value of an option is a path."""
    return option in PATHS and value not in ("", ONE_HOT, IDENTITY)


def absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, as JSON, with its paths absolute; they are of the working directory."""
    return _changed(config, _absolute)


def located(metadata: Mapping[str, Any], run: Path | None) -> dict[str, Any]:
    """The configuration in a checkpoint's metadata, as JSON, with its paths as they are now.

    Args:
        metadata: `config`, and `folder` where it is of a run: where that was.
        run: the folder of the run now; None: it is of none.
    """
    config = absolute(metadata["config"])
    if run is None or "folder" not in metadata:
        return config

    def moved(path: str) -> str:
        beside_run = _joined(os.path.abspath(run), seen_from(metadata["folder"], path))
        return path if os.path.exists(path) and not os.path.exists(beside_run) else beside_run

    return _changed(config, moved)


def _changed(config: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed = copy.deepcopy(dict(config))
    for option in PATHS:
        group, _, name = option.rpartition(".")
        part = changed.get(group, {}) if group else changed
        if is_path(option, part.get(name, "")):
            part[name] = change(part[name])
    return changed


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _joined(folder: str, path: str) -> str:
    return os.path.normpath(os.path.join(folder, path))
