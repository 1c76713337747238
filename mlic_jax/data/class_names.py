"""The classes of the published sets, by name, each list in the order that a checkpoint may have.

The order belongs to a checkpoint: its classifier, label graph and word vectors follow it. COCO has
two in use: sorted in MCAR, MSRN and ML-GCN; that of the annotation files in TFDS, ASL and
Query2Label.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text
from mlic_jax.names import did_you_mean

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
COCO_ANNOTATION = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
NUSWIDE = (  # as released
    *("clouds", "sky", "person", "street", "window", "tattoo", "wedding", "animal", "cat"),
    *("buildings", "tree", "airport", "plane", "water", "grass", "cars", "road", "snow", "sunset"),
    *("railroad", "train", "flowers", "plants", "house", "military", "horses", "nighttime"),
    *("lake", "rocks", "waterfall", "sun", "vehicle", "sports", "reflection", "temple", "statue"),
    *("ocean", "town", "beach", "tower", "toy", "book", "bridge", "fire", "mountain", "rainbow"),
    *("garden", "police", "coral", "fox", "sign", "dog", "cityscape", "sand", "dancing", "leaf"),
    *("tiger", "moon", "birds", "food", "cow", "valley", "fish", "harbor", "bear", "castle"),
    *("boats", "running", "glacier", "swimmers", "elk", "frost", "protest", "soccer", "flags"),
    *("zebra", "surf", "whales", "computer", "earthquake", "map"),
)
APPAREL = (
    *("black", "blue", "brown", "green", "red", "white"),
    *("dress", "pants", "shirt", "shoes", "shorts"),
)
CLASS_LISTS: Mapping[str, tuple[str, ...]] = {
    "voc": VOC,
    "coco": tuple(sorted(COCO_ANNOTATION)),
    "coco-annotation": COCO_ANNOTATION,
    "nuswide": NUSWIDE,
    "apparel": APPAREL,
}


def read_class_names(where: str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes that a person names, in their order.

    Args:
        where: a key of `CLASS_LISTS`, the folder of a prepared set, or a text file with one name a
            line (blank lines do not count).

    Raises:
        UsageError: it is none of these.
        Failure: it cannot be read, has no names, or a name twice.
    """
    if isinstance(where, str) and where in CLASS_LISTS:
        return CLASS_LISTS[where]
    path = Path(where)
    try:
        if (metadata := path / "metadata.json").is_file():
            return _names_in(metadata)
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(
            f"{where} is no text file of class names, no prepared set and none of "
            f"{', '.join(CLASS_LISTS)}{did_you_mean(str(where), CLASS_LISTS)}"
        ) from None
    except (OSError, ValueError) as error:
        raise Failure(f"the class names in {path} cannot be read: {error}") from error
    names = [name for name in names if name]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise Failure(f"{path}: class names occur more than once: {', '.join(twice[:5])}")
    if not names:
        raise Failure(f"{path} has no class names; it must have one a line")
    return tuple(names)


def _names_in(metadata: Path) -> tuple[str, ...]:
    """The class names in the metadata of a prepared set."""
    content = json_text.read(metadata)
    names = content.get("class_names") if isinstance(content, dict) else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise Failure(f"{metadata} has no class names: prepare the set again")
    return tuple(names)
