"""Images with annotations in COCO's `instances` JSON: one file a split, or one that is divided."""

import glob
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax import json_text
from mlic_jax.data.records import Example
from mlic_jax.data.sources.labels import (
    LARGEST_COORDINATE,
    check_extent,
    check_path,
    order_classes,
    pixel_boxes,
    size_of,
    ternary_labels,
)
from mlic_jax.data.splitting import divide_examples
from mlic_jax.errors import Failure, UsageError

_SPLIT = "{split}"


class CocoFolder:
    """COCO, or any set in its layout.

    If `annotations` is no pattern, its one file is of all images, and `splitting.divide` makes two
    splits of them.

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
        train_share, split_seed: of `splitting.divide`.
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
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        order_classes((), class_order)
        self._is_divided = _SPLIT not in annotations
        if self._is_divided and _SPLIT in image_dir:
            raise UsageError(
                f"annotations is {annotations!r}, one file of all images: then image_dir must be "
                f"one folder, and it is {image_dir!r}"
            )
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
        if self._is_divided:
            self.description |= {"train_share": train_share, "split_seed": split_seed}

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        first, *others = self.splits
        names = self._annotations[first].class_names
        for split in others:
            if self._annotations[split].class_names != names:
                file, other = self._annotation_file(first), self._annotation_file(split)
                raise Failure(f"the categories of {file} and {other} are not the same")
        return order_classes(list(names.values()), self.description["class_order"])

    @property
    def own_splits(self) -> tuple[str, ...]:
        """The splits that have a file of annotations, sorted; empty where one file is of all."""
        return splits_of(self._root, self.description["annotations"])

    @property
    def annotation_files(self) -> list[Path]:
        """Every file that classes, labels and boxes are read from."""
        return list(dict.fromkeys(self._annotation_file(split) for split in self.splits))

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the annotation file.

        Raises:
            UsageError: the image folder or the annotation file is missing; of one file, other
                splits are asked for.
            Failure: the annotation file is malformed or contradicts itself.
        """
        return self._divided[split] if self._is_divided else self._annotated(split)

    def _annotated(self, split: str) -> list[Example]:
        """All examples of the annotation file that the split is in."""
        annotations = self._annotations[split]
        folder = self._root / self.description["image_dir"].replace(_SPLIT, split)
        if not folder.is_dir():
            raise UsageError(f"no image folder {folder}: check `root` and `image_dir`")
        size = self._annotation_file(split).stat().st_size
        check_extent(self.name, len(annotations.file_names), len(self.class_names), size)
        position = {name: i for i, name in enumerate(self.class_names)}
        positions = {c: position[name] for c, name in annotations.class_names.items()}
        return [
            _example(
                folder, file_name, annotations.objects[image], positions, annotations.sizes[image]
            )
            for image, file_name in annotations.file_names.items()
            if self.description["keep_unlabelled"] or annotations.objects[image]
        ]

    @cached_property
    def _divided(self) -> dict[str, list[Example]]:
        """The splits of one file of annotations."""
        return divide_examples(self, self._annotated(self.splits[0]))

    @cached_property
    def _annotations(self) -> dict[str, "_Annotations"]:
        files = {split: self._annotation_file(split) for split in self.splits}
        read = {file: _Annotations(file) for file in dict.fromkeys(files.values())}
        return {split: read[file] for split, file in files.items()}

    def _annotation_file(self, split: str) -> Path:
        return self._root / self.description["annotations"].replace(_SPLIT, split)


def splits_of(root: Path, annotations: str) -> tuple[str, ...]:
    """The splits for which a pattern below root has files, sorted; none if it is no pattern."""
    first, *others = annotations.split(_SPLIT)
    if not others:
        return ()
    wanted = re.escape(first) + r"(\w+)" + r"\1".join(map(re.escape, others))
    files = root.glob("*".join(map(glob.escape, (first, *others))))
    matches = (re.fullmatch(wanted, file.relative_to(root).as_posix()) for file in files)
    return tuple(sorted(match[1] for match in matches if match))


class _Annotations:
    """One annotation file, checked: what it says of each image.

    Attributes:
        class_names: category id -> name, in the file's order.
        file_names: image id -> file name, in the file's order.
        sizes: image id -> (height, width), None where the file does not say.
        objects: image id -> (category id, box [x, y, width, height], is it a crowd) of each object.
    """

    def __init__(self, file: Path):
        if not file.is_file():
            raise UsageError(f"no annotation file {file}: check `root` and `annotations`")
        content = json_text.read(file)
        categories, images, annotations = (
            _entries(file, content, *fields)
            for fields in (
                ("categories", "id", "name"),
                ("images", "id", "file_name"),
                ("annotations", "id", "image_id", "category_id", "bbox"),
            )
        )
        self.class_names = {c["id"]: c["name"] for c in categories}
        self.file_names = {image["id"]: image["file_name"] for image in images}
        self.sizes = {
            image["id"]: size_of(image.get("height"), image.get("width")) for image in images
        }
        if len(self.class_names) != len(categories):
            raise Failure(f"{file}: category ids occur more than once")
        if len(self.file_names) != len(images):
            raise Failure(f"{file}: image ids occur more than once")
        objects = [
            (a["id"], a["image_id"], a["category_id"], a["bbox"], bool(a.get("iscrowd", 0)))
            for a in annotations
        ]
        self.objects = defaultdict(list)
        for annotation, image, category, box, crowd in objects:
            where = f"{file}: annotation {annotation}"
            if image not in self.file_names:
                raise Failure(f"{where} is of image {image}, which the file does not list")
            if category not in self.class_names:
                raise Failure(f"{where} is of category {category}, which the file does not list")
            self.objects[image].append((category, box, crowd))


def _entries(file: Path, content: Any, name: str, *fields: str) -> list[dict[str, Any]]:
    """A list of the file, the entries of which have the fields, of the right types."""
    where = f"{file} is not in COCO's format"
    if not isinstance(content, dict):
        raise Failure(f"{where}: it must be an object with images, annotations and categories")
    if name not in content:
        raise Failure(f"{where}: it lacks the field {name!r}")
    if not isinstance(content[name], list):
        raise Failure(f"{where}: the field {name!r} must be a list")
    for position, entry in enumerate(content[name]):
        if not isinstance(entry, dict):
            raise Failure(f"{where}: {name}[{position}] must be an object")
        for field in fields:
            if field not in entry:
                raise Failure(f"{where}: {name}[{position}] lacks the field {field!r}")
            _check_field(entry[field], field, f"{where}: {name}[{position}], field {field!r}")
    return content[name]


def _check_field(value: Any, field: str, where: str) -> None:
    if field == "file_name":
        check_path(value, where)
    elif field == "name":
        if not (isinstance(value, str) and value):
            raise Failure(f"{where} must be a name")
    elif field == "bbox":
        if not _is_box(value):
            raise Failure(f"{where} must be 4 finite numbers [x, y, width, height]")
    elif not _is_id(value):
        raise Failure(f"{where} must be a number or a text")


def _is_id(value: Any) -> bool:
    # Whole numbers without a bound could be made so that all have the same hash.
    return type(value) is str or (type(value) in (int, float) and abs(value) < 2**64)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(side) in (int, float) and abs(side) <= LARGEST_COORDINATE for side in box)
    )


def _example(
    folder: Path,
    file_name: str,
    objects: list[tuple],
    positions: dict[Any, int],
    size: tuple[int, int] | None,
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
        size=size,
    )
