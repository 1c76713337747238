"""Named arrays in one `.npz`: written whole, read without running code."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.atomic import written_whole
from mlic_jax.errors import Failure


def write(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes one file, leaving out what is None; `path` appears only when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **given)


def read(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of a file; `what` is how a message names the kind of file, with its article.

    Raises:
        Failure: the file is damaged or holds Python objects.
    """
    try:
        # Opened here, for NumPy leaves files open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise Failure(f"{path} is not {what}: {error}") from error
