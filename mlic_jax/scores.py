"""The scores of a split as one file: what every metric and every picture is made from."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from mlic_jax.atomic import written_whole
from mlic_jax.errors import Failure, UsageError

# What a model may say of every image.
OUTPUTS = ("logits", "global_logits", "local_logits", "boxes", "box_classes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model said of every image of a split, beside the truth; row i is image i of the split.

    Enough to compute every metric and to draw every region again without the model.
    """

    logits: np.ndarray  # float32 [N, C], what metrics rank
    labels: np.ndarray  # int8 [N, C] in {+1, 0, -1}
    image_ids: np.ndarray  # str [N]
    class_names: np.ndarray  # str [C]
    set_name: str
    split: str
    image_size: int
    # Of a model that looks twice:
    global_logits: np.ndarray | None = None  # float32 [N, C]
    local_logits: np.ndarray | None = None  # float32 [N, C]
    boxes: np.ndarray | None = None  # int32 [N, T, 4] (y1, x1, y2, x2), exclusive, in input pixels
    box_classes: np.ndarray | None = None  # int32 [N, T]

    @property
    def streams(self) -> dict[str, np.ndarray]:
        """The logits [N, C] of every stream there is: `final`, and `global` and `local`."""
        streams = {"global": self.global_logits, "local": self.local_logits, "final": self.logits}
        return {name: logits for name, logits in streams.items() if logits is not None}

    def save(self, path: Path) -> None:
        """Writes one `.npz`; `path` appears only when it is complete."""
        with written_whole(path) as partial, partial.open("wb") as file:
            given = dataclasses.asdict(self).items()
            np.savez_compressed(file, **{name: value for name, value in given if value is not None})

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
            # Opened here, for NumPy leaves files open that it cannot read.
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                fields = {
                    field.name: file[field.name]
                    for field in dataclasses.fields(cls)
                    if field.default is dataclasses.MISSING or field.name in file
                }
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise Failure(f"{path} is not a score file of mlic_jax: {error}") from error
        for name, kind in (("set_name", str), ("split", str), ("image_size", int)):
            fields[name] = kind(fields[name])
        return cls(**fields)
