"""What a model says of one photo."""

import dataclasses

import numpy as np
from jaxtyping import Float32

SHOWN = 8  # labels of a photo in a line

Box = tuple[int, int, int, int]  # (y1, x1, y2, x2) in pixels, upper bounds exclusive


@dataclasses.dataclass(frozen=True)
class Region:
    """Where the model looked, and for which class: MCAR a second time, others the only one.

    `box` is (y1, x1, y2, x2), rows before columns; Pillow's crop takes (x1, y1, x2, y2).
    """

    class_name: str
    box: Box  # (y1, x1, y2, x2) in pixels of the upright photo, upper bounds exclusive
    global_probability: float  # of the class, from the whole photo
    # Of the class, the highest of all regions; None of a model that does not look again.
    local_probability: float | None
    # Class activation scores over what the model saw of the photo, in [0, 1].
    class_map: Float32[np.ndarray, "h w"] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """What the model says of one photo, or why it could not be read."""

    file: str  # as it was given, `printable`; empty for an image that is no file
    width: int | None = None  # pixels of the upright photo
    height: int | None = None
    labels: tuple[str, ...] = ()  # whose probability reaches its threshold, the likeliest first
    scores: dict[str, float] = dataclasses.field(default_factory=dict)  # class -> probability
    regions: tuple[Region, ...] = ()  # the likeliest in the whole photo first
    seen: Box | None = None  # what the model saw of the upright photo; None: it could not be read
    error: str | None = None

    def __str__(self) -> str:
        """One line: the labels with their probabilities, or why there are none."""
        return f"{self.file or 'a photo'}: {self.found()}"

    def __repr__(self) -> str:
        return f"Prediction({self})"

    def found(self) -> str:
        """The labels with their probabilities in a few words, or why there are none."""
        if self.error is not None:
            return self.error
        if not self.labels:
            likeliest = sorted(self.scores, key=self.scores.__getitem__)[-1:]
            return "no label" + "".join(
                f"; the likeliest is {name} {self.scores[name]:.2f}" for name in likeliest
            )
        shown = [f"{name} {self.scores[name]:.2f}" for name in self.labels[:SHOWN]]
        more = len(self.labels) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")
