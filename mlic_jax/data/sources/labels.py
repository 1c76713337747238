"""What the sources share: from annotated objects to ternary labels, boxes and class order."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlic_jax.errors import Failure, UsageError

# What a file system may hold, in bytes: of a path, and of a name in it.
_LONGEST_PATH, _LONGEST_NAME = 4095, 255
LARGEST_COORDINATE = 1e9  # of a box, in pixels: twice as much is still an int32


def check_path(value: Any, where: str) -> str:
    """A path of an annotation file, as it is; `where` is how a message begins.

    Raises:
        Failure: no file can have it.
    """
    if not isinstance(value, str):
        raise Failure(f"{where} must be a path")
    if not value:
        raise Failure(f"{where} is empty, it must be a path")
    if "\0" in value:
        raise Failure(f"{where}: {value[:60]!r} is no path, it has a zero byte")
    names = [len(name.encode("utf-8", "replace")) for name in value.split("/")]
    if max(names) > _LONGEST_NAME or sum(names) + len(names) > _LONGEST_PATH:
        raise Failure(f"{where}: {value[:60]!r}... is longer than a path can be")
    return value


def forward(path: str) -> str:
    """A path of annotations as it is below a folder; of Windows' with slashes, without a drive."""
    if "\\" not in path:
        return path
    return re.sub("^[A-Za-z]:", "", path).replace("\\", "/").lstrip("/")


def check_extent(set_name: str, images: int, classes: int, size: int) -> None:
    """Refuses a set with far more labels than its annotations, of so many bytes, can be about.

    Labels are arrays of all classes for every image: a small table in which each image has a label
    of its own would take any memory.

    Raises:
        Failure: they are more than 64 million, and 30 for each byte: a table of 1,000 classes and a
            million images has 50 bytes an image, and 20 for each.
    """
    if images * classes > 64_000_000 + 30 * size:
        raise Failure(
            f"set {set_name}: {images:,} images have {classes:,} different labels: are texts or "
            "numbers taken for labels? Name fewer classes"
        )


def ternary_labels(classes: np.ndarray, unsure: np.ndarray, num_classes: int) -> np.ndarray:
    """The labels of an image from its objects.

    Args:
        classes: int [K], the class of each object.
        unsure: bool [K], objects that cannot decide (VOC's difficult ones, COCO's crowds).
        num_classes: C.

    Returns:
        int8 [C]: +1 with any sure object of the class, 0 where every one is unsure, -1 without any.
    """
    labels = np.full(num_classes, -1, np.int8)
    labels[classes[unsure]] = 0
    labels[classes[~unsure]] = 1
    return labels


def pixel_boxes(corners: ArrayLike) -> np.ndarray:
    """The smallest int32 [K, 4] boxes that cover float (y1, x1, y2, x2) [K, 4], uppers exclusive.

    Coordinates are rounded to hundredths of a pixel first: annotation files have no more, and a sum
    such as 0.1 + 0.2 must not grow a box by a pixel.
    """
    rounded = np.round(np.asarray(corners, np.float64).reshape(-1, 4), 2)
    covering = np.concatenate([np.floor(rounded[:, :2]), np.ceil(rounded[:, 2:])], axis=1)
    return covering.astype(np.int32)


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) of an image as annotations give it; None where they give no such size."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 and max(size) <= LARGEST_COORDINATE else None


def order_classes(names: Sequence[str], class_order: str) -> tuple[str, ...]:
    """Class names as they are in the annotations, or sorted.

    MCAR, MSRN and ML-GCN sort COCO's classes; TFDS, ASL and Query2Label keep the file's order.
    """
    if class_order not in ("alphabetical", "annotation"):
        raise UsageError(
            f"class_order is {class_order!r}; it must be 'alphabetical' or 'annotation'"
        )
    return tuple(sorted(names) if class_order == "alphabetical" else names)
