"""What goes into a prepared set, examples of a source, and what comes out of it, records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True)
class Example:
    """One image of a source. Boxes may overlap the border: `prepare` clips them to the image."""

    image_id: str
    image: bytes | Path  # encoded, or the file that holds it
    labels: np.ndarray  # int8 [C] in {+1, 0, -1}
    boxes: np.ndarray  # int32 [K, 4] (y1, x1, y2, x2), pixels, upper bounds exclusive
    box_classes: np.ndarray  # int32 [K]
    # (height, width) as the annotations give it: whether the boxes are of the stored or of the
    # upright image, where an EXIF tag turns it. Without it they are of the stored one.
    size: tuple[int, int] | None = None
    # Boxes are float64 shares of the sides of the upright image, as YOLO has them, and not pixels.
    relative: bool = False


class RandomAccess(Protocol[Item]):
    """Items by their positions, each perhaps made when it is asked for: a list, but for slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Item:
        """Raises IndexError for a position that there is not."""
        ...

    def __iter__(self) -> Iterator[Item]:
        return (self[position] for position in range(len(self)))


class Source(Protocol):
    """Where images and labels come from. Files may stay unread until something is asked for."""

    name: str  # of the prepared set: lower-case letters, digits, underscores
    splits: tuple[str, ...]
    # JSON-able: kind, options, and the folder `root` where there are files: what the set is made
    # from. Where the root lies does not matter.
    description: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the C classes, in the order of `labels`."""

    @property
    def own_splits(self) -> tuple[str, ...]:
        """The splits that the set itself has, as far as it is for it to say; else empty."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading, for a person."""

    @property
    def annotation_files(self) -> Sequence[Path]:
        """Every file that class names, splits, labels and boxes are read from, as they are now.

        A folder stands for the names of the images in it. While all are as they were, a prepared
        set asks the source for nothing else; none: these never change.
        """

    def examples(self, split: str) -> RandomAccess[Example]:
        """The examples in their lasting order, not decoded.

        `[i]` is called from several threads, and more than once an image: to check it and to write
        it. A source for which it is expensive should remember the answer.
        """


@dataclass(frozen=True)
class Record:
    """One image of a prepared split."""

    image: bytes  # encoded
    image_id: str
    labels: np.ndarray  # int8 [C] in {+1, 0, -1}
    boxes: np.ndarray  # int32 [K, 4] (y1, x1, y2, x2), pixels, upper bounds exclusive
    box_classes: np.ndarray  # int32 [K]
    height: int
    width: int
