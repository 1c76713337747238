"""CVAT for images 1.1: XML of all images, with shapes and tags in each, and a list of labels."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo
from mlic_jax.data.sources.voc_xml import parse_xml

_LARGEST_FILE = 2**30  # bytes
_NO_SUBSET = "default"  # what CVAT writes of images that nobody put into one


def _read(file: Path) -> ElementTree.Element:
    try:
        return parse_xml(file, _LARGEST_FILE)
    except (ElementTree.ParseError, LookupError) as error:  # of an unknown encoding
        raise Malformed(str(error)) from None


def _photos(root: ElementTree.Element) -> Iterator[Photo]:
    if root.tag != "annotations":
        raise Malformed(f"it begins with <{root.tag}>")
    if root.find("track") is not None:
        raise Malformed("it is of a video; export it as CVAT for images 1.1")
    listed = {_name(label.findtext("name")) for label in root.iterfind("meta//labels/label")}
    subsets = {image.get("subset", "") for image in root.iterfind("image")}
    of_none = subsets <= {"", _NO_SUBSET}
    for image in root.iterfind("image"):
        # Shapes (box, polygon, mask, skeleton, ...) and tags alike; what they hold are attributes.
        labels = [_name(part.get("label")) for part in image]
        for label in labels:
            if not label or (listed and label not in listed):
                said = f"{image.get('name')!r} has the label {label!r}"
                raise Malformed(f"{said}, which is none of its list <labels>")
        yield Photo(image.get("name"), labels, split="" if of_none else image.get("subset", ""))


def _name(text: str | None) -> str:
    return " ".join((text or "").split())


PARSER = Parser(
    _photos,
    (b"<annotations",),
    "the XML of CVAT for images, with <image> in <annotations>",
    read=_read,
    suffix=".xml",
)
