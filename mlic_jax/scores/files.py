"""The scores of a split as one file: what every metric and every picture is made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, Shaped

from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text, npz

# What a model may say of every image.
OUTPUTS = ("logits", "global_logits", "local_logits", "boxes", "box_classes", "looked_at")

# Of these, what a model that looks twice says after the first look.
GLOBAL_OUTPUTS = ("global_logits", "boxes", "box_classes")

# Type and axes of every array in a file, see `npz.check`: N images, C classes, T regions, each
# found on a map of h x w.
_AXES = {
    **dict.fromkeys(("logits", "global_logits", "local_logits"), ("float", "NC")),
    "labels": ("integer", "NC"),
    "image_ids": ("text", "N"),
    "class_names": ("text", "C"),
    **dict.fromkeys(("set_name", "split", "origin"), ("text", "")),
    "image_size": ("integer", ""),
    "boxes": ("integer", "NT4"),
    "box_classes": ("integer", "NT"),
    "looked_at": ("boolean", "NT"),
    "class_maps": ("float", "NThw"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model said of every image of a split, beside the truth; row i is image i of the split.

    Enough to compute every metric and to draw every region again without the model.
    """

    logits: Float32[np.ndarray, "N C"]  # what metrics rank
    labels: Integer[np.ndarray, "N C"]  # in {+1, 0, -1}
    image_ids: Shaped[np.ndarray, " N"]  # str
    class_names: Shaped[np.ndarray, " C"]  # str
    set_name: str
    split: str
    image_size: int
    # Of a model that looks twice:
    global_logits: Float32[np.ndarray, "N C"] | None = None
    local_logits: Float32[np.ndarray, "N C"] | None = None
    # (y1, x1, y2, x2), exclusive, in input pixels, of T regions an image.
    boxes: Integer[np.ndarray, "N T 4"] | None = None
    box_classes: Integer[np.ndarray, "N T"] | None = None
    # The regions that were looked at; None: all. An image without any has its global logits for
    # local ones: the second look changed nothing.
    looked_at: Bool[np.ndarray, "N T"] | None = None
    # What the regions were found on, at least 0; of a set that has boxes to hold them against.
    class_maps: Float[np.ndarray, "N T h w"] | None = None
    # What decides the global outputs, to tell whether they can serve again; see global_pass.py.
    origin: dict[str, Any] | None = None

    @property
    def streams(self) -> dict[str, Float32[np.ndarray, "N C"]]:
        """The logits of every stream there is: `final`, and `global` and `local`."""
        streams = {"global": self.global_logits, "local": self.local_logits, "final": self.logits}
        return {name: logits for name, logits in streams.items() if logits is not None}

    def save(self, path: Path) -> None:
        """Writes one `.npz`; `path` appears only when it is complete."""
        fields = dataclasses.asdict(self)
        if self.origin is not None:
            fields["origin"] = json.dumps(self.origin)
        npz.write(Path(path), fields)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads what `save` wrote.

        Raises:
            UsageError: there is no such file.
            Failure: the file is not a score file.
        """
        path, what = Path(path), "a score file of mlic_jax"
        if not path.is_file():
            run = ": a folder; of a run's it is --workdir" if path.is_dir() else ""
            raise UsageError(f"no score file at {path}{run}")
        arrays = npz.read(path, what)
        fields: dict[str, Any] = {
            field.name: arrays[field.name]
            for field in dataclasses.fields(cls)
            if field.name in arrays
        }
        required = (f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING)
        if missing := [name for name in required if name not in fields]:
            raise Failure(f"{path} is not {what}: it lacks {', '.join(missing)}")
        npz.check(fields, _AXES, f"{path} is not {what}")
        if not fields["logits"].size or not np.isin(fields["labels"], (-1, 0, 1)).all():
            raise Failure(f"{path} is not {what}: it is empty, or its labels are not -1, 0 and 1")
        for name, kind in (("set_name", str), ("split", str), ("image_size", int)):
            fields[name] = kind(fields[name])
        for name in {"logits", "global_logits", "local_logits"} & fields.keys():
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
                fields[name] = fields[name].astype(np.float32)
        if "origin" in fields:
            fields["origin"] = json_text.parse(str(fields["origin"]), f"{path}, origin")
            if not isinstance(fields["origin"], dict):
                raise Failure(f"{path} is not {what}: its origin is no object")
        return cls(**fields)
