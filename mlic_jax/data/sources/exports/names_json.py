"""JSON that people write themselves: names of labels by image, or a list as in JSON Lines."""

from collections.abc import Iterator
from typing import Any

from mlic_jax.data.sources.columns import IMAGE, LABELS, plain
from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo, names


def _photos(content: Any) -> Iterator[Photo]:
    if isinstance(content, dict):
        for image, labels in content.items():
            yield Photo(image, names(labels, f"what {image!r} has"))
        return
    if not isinstance(content, list):
        raise Malformed("it must be a list of images, or lists of names by image")
    for entry in content:
        fields = {plain(field): value for field, value in reversed(entry.items())}
        image = next((fields[name] for name in IMAGE if name in fields), None)
        labels = next((fields[name] for name in LABELS if name in fields), None)
        yield Photo(image, names(labels, "the labels"), names(entry.get("unknown", []), "unknown"))


PARSER = Parser(
    _photos,
    (),
    "a JSON list of images with their labels, or lists of names by image",
    unlike=(b'"annotator"', b'"annotations"', b'"coordinates"'),
    start=rb"""\[\s*\{[^{}]*"(?:labels?|tags?|class(?:es)?|categor(?:y|ies))"\s*:"""
    rb"""|\{\s*"[^"]+\.(?i:jpe?g|png|webp|bmp|tiff?|gif)"\s*:\s*[\["]""",
)
