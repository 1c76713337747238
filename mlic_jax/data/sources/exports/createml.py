"""CreateML: a list of objects of an image and its annotations, each with a label."""

from collections.abc import Iterator
from typing import Any

from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo, names


def _photos(content: Any) -> Iterator[Photo]:
    if not isinstance(content, list):
        raise Malformed("it must be a list of images")
    for entry in content:
        image = entry.get("image", entry.get("imagefilename"))
        labels = [names(box["label"], "label") for box in entry.get("annotations", [])]
        yield Photo(image, [name for part in labels for name in part])


PARSER = Parser(
    _photos,
    (b'"annotations"', b'"coordinates"', b'"label"'),
    "the JSON of CreateML, a list of images with their annotations",
    start=rb"\[",
)
