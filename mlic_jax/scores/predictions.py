"""What a model says of one photo."""

import dataclasses

import numpy as np

pass

Box = tuple[int, int, int, int]  # (y1, x1, y2, x2) in pixels, upper bounds exclusive


@dataclasses.dataclass(frozen=True)
class Region:
    """Where the model looked a second time, and for which class."""

    class_name: str
    box: Box  # (y1, x1, y2, x2) in pixels of the upright photo, upper bounds exclusive
    global_probability: float  # of the class, from the whole photo
    local_probability: float  # of the class, the highest of all regions
    # Class activation scores over the whole photo, float32 [h, w] in [0, 1].
    class_map: np.ndarray = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one photo, or why it could not be read."""

    file: str  # as it was given, `printable`; empty for an image that is no file
    width: int | None = None  # pixels of the upright photo
    height: int | None = None
    labels: tuple[str, ...] = ()  # whose probability reaches its threshold, the likeliest first
    scores: dict[str, float] = dataclasses.field(default_factory=dict)  # class -> probability
    regions: tuple[Region, ...] = ()  # the likeliest in the whole photo first
    error: str | None = None
