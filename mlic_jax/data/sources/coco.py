"""A folder of images with annotations in COCO's `instances` JSON, one file a split."""

import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.data.records import Example
from mlic_jax.data.sources.labels import order_classes, pixel_boxes, ternary_labels
from mlic_jax.errors import Failure, UsageError


class CocoFolder:
    """COCO, or any set in its layout.

    The image id is the file name. A class is present with any object that is not a crowd, unknown
    (0) where there are only crowds. Boxes are those of the objects that are not crowds.

    Args:
        name: of the prepared set.
        root: the folder that the two patterns are relative to.
        splits: their names, which replace "{split}" in the patterns.
        image_dir: pattern of the folder that the file names are relative to.
        annotations: pattern of the JSON file.
        class_order: "alphabetical" or "annotation" (the order of the file's categories).
        keep_unlabelled: whether images without any annotation are kept; the originals drop them.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        image_dir: str = "{split}",
        annotations: str = "instances_{split}.json",
        class_order: str = "alphabetical",
        keep_unlabelled: bool = False,
    ):
        order_classes((), class_order)
        self.name = name
        self.splits = splits
        self._root = root
        self.description: dict[str, Any] = {
            "kind": "coco",
            "root": str(root),
            "image_dir": image_dir,
            "annotations": annotations,
            "class_order": class_order,
            "keep_unlabelled": bool(keep_unlabelled),
        }

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        first, *others = self.splits
        names = self._annotations[first].class_names
        for split in others:
            if self._annotations[split].class_names != names:
                file, other = self._annotation_file(first), self._annotation_file(split)
                raise Failure(f"the categories of {file} and {other} are not the same")
        return order_classes(list(names.values()), self.description["class_order"])

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the annotation file.

        Raises:
            UsageError: the image folder or the annotation file is missing.
            Failure: the annotation file is malformed or contradicts itself.
        """
        annotations = self._annotations[split]
        folder = self._root / self.description["image_dir"].replace("{split}", split)
        if not folder.is_dir():
            raise UsageError(f"no image folder {folder}: check `root` and `image_dir`")
        positions = {
            category: self.class_names.index(name)
            for category, name in annotations.class_names.items()
        }
        return [
            _example(folder, file_name, annotations.objects[image], positions)
            for image, file_name in annotations.file_names.items()
            if self.description["keep_unlabelled"] or annotations.objects[image]
        ]

    @cached_property
    def _annotations(self) -> dict[str, "_Annotations"]:
        return {split: _Annotations(self._annotation_file(split)) for split in self.splits}

    def _annotation_file(self, split: str) -> Path:
        return self._root / self.description["annotations"].replace("{split}", split)


class _Annotations:
    """One annotation file, checked: what it says of each image.

    Attributes:
        class_names: category id -> name, in the file's order.
        file_names: image id -> file name, in the file's order.
        objects: image id -> (category id, box [x, y, width, height], is it a crowd) of each object.
    """

    def __init__(self, file: Path):
        if not file.is_file():
            raise UsageError(f"no annotation file {file}: check `root` and `annotations`")
        try:
            content = json.loads(file.read_bytes())
            self.class_names = {c["id"]: c["name"] for c in content["categories"]}
            self.file_names = {image["id"]: image["file_name"] for image in content["images"]}
            objects = [
                (a["id"], a["image_id"], a["category_id"], a["bbox"], bool(a.get("iscrowd", 0)))
                for a in content["annotations"]
            ]
        except ValueError as error:  # JSON and UTF-8 errors
            raise Failure(f"{file} is not JSON: {error}") from None
        except KeyError as error:
            raise Failure(f"{file} is not in COCO's format: it lacks the field {error}") from None
        except TypeError as error:
            raise Failure(f"{file} is not in COCO's format: {error}") from None
        if len(self.class_names) != len(content["categories"]):
            raise Failure(f"{file}: category ids occur more than once")
        if len(self.file_names) != len(content["images"]):
            raise Failure(f"{file}: image ids occur more than once")
        self.objects = defaultdict(list)
        for annotation, image, category, box, crowd in objects:
            where = f"{file}: annotation {annotation}"
            if image not in self.file_names:
                raise Failure(f"{where} is of image {image}, which the file does not list")
            if category not in self.class_names:
                raise Failure(f"{where} is of category {category}, which the file does not list")
            if not _is_box(box):
                raise Failure(f"{where}: bbox must be 4 finite numbers [x, y, width, height]")
            self.objects[image].append((category, box, crowd))


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and bool(np.isfinite(np.array(box, np.float64)).all())
    except (TypeError, ValueError):
        return False


def _example(
    folder: Path, file_name: str, objects: list[tuple], positions: dict[Any, int]
) -> Example:
    classes = np.array([positions[category] for category, _, _ in objects], np.int32)
    crowd = np.array([crowd for _, _, crowd in objects], bool)
    x, y, width, height = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4).T
    boxes = pixel_boxes(np.stack([y, x, y + height, x + width], axis=1))
    return Example(
        image_id=file_name,
        image=folder / file_name,
        labels=ternary_labels(classes, crowd, len(positions)),
        boxes=boxes[~crowd],
        box_classes=classes[~crowd],
    )
