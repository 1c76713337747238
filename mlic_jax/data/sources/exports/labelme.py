"""labelme: a file an image, with the shapes in it, and flags of the whole image."""

from collections.abc import Iterator
from typing import Any

from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo


def _photos(content: Any) -> Iterator[Photo]:
    labels = [shape["label"] for shape in content["shapes"]]
    if not all(isinstance(label, str) for label in labels):
        raise Malformed("the label of a shape must be a name")
    flags = content.get("flags") or {}
    yield Photo(content["imagePath"], labels + [name for name, is_set in flags.items() if is_set])


PARSER = Parser(
    _photos,
    (b'"shapes"', b'"imagePath"'),
    "files of labelme, JSON with shapes and imagePath, one for each image",
    file_an_image=True,
)
