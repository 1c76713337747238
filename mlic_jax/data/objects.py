"""The true boxes of photos in the pixels of the square that a model sees."""

import numpy as np

from mlic_jax.data.fitting import SQUASHED, Fit
from mlic_jax.data.records import Record, Split

# Of one image: boxes int32 [K, 4] (y1, x1, y2, x2; upper bounds exclusive) and their classes [K].
Objects = tuple[np.ndarray, np.ndarray]


def objects_of_square(record: Record, size: int, fit: Fit = SQUASHED) -> Objects:
    """Boxes int32 `[K, 4]` and classes `[K]` of what is seen of an image in `size` pixels."""
    frame = fit.frame(record.height, record.width, size)
    boxes, is_seen = frame.boxes_in_square(record.boxes)
    return boxes[is_seen], record.box_classes[is_seen]


def read_objects(split: Split, size: int, fit: Fit = SQUASHED) -> list[Objects] | None:
    """Those of every image of a split, in its order; None where no image has a box.

    Raises:
        Failure: the set is damaged.
    """
    if not split.has_boxes():
        return None
    return [objects_of_square(record, size, fit) for record in split]
