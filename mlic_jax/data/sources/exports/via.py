"""VGG's VIA: regions of every image with attributes, and attributes of the whole image."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo


def _photos(content: Any) -> Iterator[Photo]:
    images = content.get("_via_img_metadata", content)
    found = [(image["filename"], list(_values(image))) for image in images.values()]
    attributes = {attribute for _, values in found for attribute, _ in values}
    for name, values in found:
        # Of one attribute the values are names of classes; of several `colour=red` tells which.
        named = len(attributes) > 1
        yield Photo(name, [f"{attr}={value}" if named else value for attr, value in values])


def _values(image: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The attributes and their values, of an image and of its regions."""
    regions = image.get("regions") or []
    regions = regions.values() if isinstance(regions, dict) else regions  # of VIA 1
    attributes = [image.get("file_attributes") or {}]
    attributes += [region.get("region_attributes") or {} for region in regions]
    for attribute, value in (pair for part in attributes for pair in part.items()):
        if isinstance(value, dict):  # of boxes to tick
            values = [name for name, is_set in value.items() if is_set in (True, "true")]
        elif isinstance(value, str):
            values = [value.strip()]
        else:
            raise Malformed(f"the attribute {attribute} must be a text or options")
        yield from ((attribute, name) for name in values if name)


PARSER = Parser(
    _photos,
    (b'"filename"', b'"regions"', b'"file_attributes"'),
    "the JSON of VIA, with regions and file_attributes of every image",
    start=rb"\{",
)
