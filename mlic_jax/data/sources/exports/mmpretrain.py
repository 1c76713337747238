"""MMPretrain's multi-label sets: a list of images with numbers of classes, and their names."""

from collections.abc import Iterator
from typing import Any

from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo


def _photos(content: Any) -> Iterator[Photo]:
    classes = content["metainfo"].get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise Malformed("metainfo must have the list `classes`, the names of the classes")
    for entry in content["data_list"]:
        numbers = entry["gt_label"]
        numbers = numbers if isinstance(numbers, list) else [numbers]
        for number in numbers:
            if type(number) is not int or not 0 <= number < len(classes):
                raise Malformed(f"gt_label {number!r} is not the number of a class")
        yield Photo(entry["img_path"], [classes[number] for number in numbers])


PARSER = Parser(
    _photos,
    (b'"metainfo"', b'"data_list"', b'"img_path"', b'"gt_label"'),
    "the JSON of MMPretrain, with metainfo and data_list",
)
