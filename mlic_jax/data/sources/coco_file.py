"""A file in COCO's `instances` JSON, read and checked."""

from pathlib import Path
from typing import Any

from mlic_jax.data.sources.labels import LARGEST_COORDINATE, check_path, forward, size_of
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text

CocoObject = tuple[Any, list[float] | None, bool]  # id of its category, box, whether it is a crowd


class CocoFile:
    """One annotation file, checked: what it says of each image.

    Args:
        file: the file.
        crowds_count: whether objects with `iscrowd` are objects as others.

    Attributes:
        class_names: category id -> name, in the file's order.
        file_names: image id -> file name, in the file's order.
        sizes: image id -> (height, width), None where the file does not say.
        objects: image id -> (category id, box [x, y, width, height] or None, is it a crowd) of each
            object.
        root: the name of the one category that all others say is above them, or None.
    """

    def __init__(self, file: Path, crowds_count: bool = False):
        if not file.is_file():
            raise UsageError(f"no annotation file {file}: check `root` and `annotations`")
        content = json_text.read(file)
        categories, images, annotations = (
            _entries(file, content, *fields)
            for fields in (
                ("categories", "id", "name"),
                ("images", "id", "file_name"),
                ("annotations", "id", "image_id", "category_id"),
            )
        )
        self.class_names = {c["id"]: c["name"].strip() for c in categories}
        self.file_names = {image["id"]: forward(image["file_name"]) for image in images}
        self.sizes = {
            image["id"]: size_of(image.get("height"), image.get("width")) for image in images
        }
        if len(self.class_names) != len(categories):
            raise Failure(f"{file}: category ids occur more than once")
        if len(self.file_names) != len(images):
            raise Failure(f"{file}: image ids occur more than once")
        self.root = _root_of(categories)
        objects = [
            (a["id"], a["image_id"], a["category_id"], _box(file, a), bool(a.get("iscrowd", 0)))
            for a in annotations
        ]
        self.objects: dict[Any, list[CocoObject]] = {}
        for annotation, image, category, box, crowd in objects:
            where = f"{file}: annotation {annotation}"
            if image not in self.file_names:
                raise Failure(f"{where} is of image {image}, which the file does not list")
            if category not in self.class_names:
                raise Failure(f"{where} is of category {category}, which the file does not list")
            self.objects.setdefault(image, []).append((category, box, crowd and not crowds_count))


def _root_of(categories: list[dict[str, Any]]) -> str | None:
    above = [c["supercategory"] for c in categories if isinstance(c.get("supercategory"), str)]
    return next(
        (
            c["name"].strip()
            for c in categories
            if above.count(c["name"]) == len(categories) - 1 > 1
        ),
        None,
    )


def _box(file: Path, annotation: dict[str, Any]) -> list[float] | None:
    """The box of an annotation, which labels of whole images have none of."""
    box = annotation.get("bbox") or None
    if box is not None and not _is_box(box):
        where = f"{file} is not in COCO's format: annotation {annotation['id']}, field 'bbox'"
        raise Failure(f"{where} must be 4 finite numbers [x, y, width, height]")
    return box


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
        if not (isinstance(value, str) and value.strip()):
            raise Failure(f"{where} must be a name")
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
