"""The scores of a split as one file: what every metric and every picture is made from."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from mlic_jax.atomic import written_whole
from mlic_jax.errors import Failure, UsageError


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model said of every image of a split, beside the truth; row i is image i of the split.

    Enough to compute every metric and to draw every region again without the model.
    """

    logits: np.ndarray  # float32 [N, C], what metrics rank
    global_logits: np.ndarray  # float32 [N, C]
    local_logits: np.ndarray  # float32 [N, C]
    boxes: np.ndarray  # int32 [N, T, 4] (y1, x1, y2, x2), exclusive, in model input pixels
    box_classes: np.ndarray  # int32 [N, T]
    labels: np.ndarray  # int8 [N, C] in {+1, 0, -1}
    image_ids: np.ndarray  # str [N]
    class_names: np.ndarray  # str [C]
    set_name: str
    split: str
    image_size: int

    def save(self, path: Path) -> None:
        """Writes one `.npz`; `path` appears only when it is complete."""
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads what `save` wrote.

        Raises:
            UsageError: there is no such file.
            Failure: the file is not a score file.
        """
        if not Path(path).is_file():
            raise UsageError(f"no score file at {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                fields = {field.name: file[field.name] for field in dataclasses.fields(cls)}
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise Failure(f"{path} is not a score file of mlic_jax: {error}") from error
        for name, kind in (("set_name", str), ("split", str), ("image_size", int)):
            fields[name] = kind(fields[name])
        return cls(**fields)
