"""The objects of an image in PASCAL VOC's XML, and examples made of them."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlic_jax.data.image_files import printable
from mlic_jax.data.records import Example
from mlic_jax.data.sources.labels import LARGEST_COORDINATE, pixel_boxes, size_of, ternary_labels
from mlic_jax.errors import Failure

_LARGEST_FILE = 16 * 2**20  # of the annotations of an image, in bytes
_DECLARED = re.compile(rb"^\s*<\?xml[^>]*encoding\s*=\s*[\"']([\w.-]+)[\"'][^>]*\?>")
# Encodings of several bytes a character, which expat does not know.
_OF_SEVERAL_BYTES = {
    *("gbk", "gb2312", "gb18030", "big5", "cp936", "cp949", "cp950", "cp932"),
    *("euc-jp", "euc-kr", "shift_jis", "shift-jis"),
}


class VocObject(NamedTuple):
    """An object; without corners where it has a polygon or nothing in the place of a box."""

    name: str
    difficult: bool
    corners: tuple[float, float, float, float] | None  # (y1, x1, y2, x2), pixels, uppers exclusive
    size: tuple[int, int] | None  # (height, width) of its image, as the annotation gives it


def read_objects(file: Path) -> list[VocObject]:
    objects = []
    try:
        root = parse_xml(file)
        if root.tag != "annotation":
            raise ValueError(f"it is no <annotation> of VOC, but <{root.tag}>")
        size = size_of(root.findtext("size/height"), root.findtext("size/width"))
        for obj in root.findall("object"):
            corners = _corners(obj.find("bndbox"))
            name = " ".join(obj.findtext("name", "").split())
            if not name:
                raise ValueError("an object has no name")
            difficult = obj.findtext("difficult", "0").strip() == "1"
            objects.append(VocObject(name, difficult, corners, size))
    except FileNotFoundError:
        raise no_annotation(file) from None
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise Failure(f"{file} is malformed: {error}") from None
    return objects


def _corners(box: ElementTree.Element | None) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    sides = [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
    if not all(abs(side) <= LARGEST_COORDINATE for side in sides):
        raise ValueError("a side of a bndbox is no number of pixels")
    xmin, ymin, xmax, ymax = sides
    # In the file coordinates count from 1, and the upper ones are inclusive.
    return ymin - 1, xmin - 1, ymax, xmax


def parse_xml(file: Path, largest: int = _LARGEST_FILE) -> ElementTree.Element:
    """The root of an XML file; entities of its own, which could be of any length, are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ElementTree.ParseError, ValueError, LookupError: it is malformed, has entities, is of more
            bytes than `largest`, or in an unknown encoding.
    """
    if file.stat().st_size > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    content = file.read_bytes()
    if b"<!ENTITY" in content.replace(b"\0", b""):  # of UTF-16, too
        raise ValueError("it declares entities, which no annotation needs")
    declared = _DECLARED.match(content)
    if declared and (encoding := declared[1].decode().lower()) in _OF_SEVERAL_BYTES:
        return ElementTree.fromstring(content[declared.end() :].decode(encoding))
    return ElementTree.fromstring(content)


def no_annotation(file: Path) -> Failure:
    return Failure(f"image {file.stem} has no annotation: {file} does not exist")


def example_of(
    image_id: str, image: Path, objects: Sequence[VocObject] | None, position: Mapping[str, int]
) -> Example:
    """An example from its objects; None: nothing is known of the image."""
    known = objects or ()
    classes = np.array([position[obj.name] for obj in known], np.int32)
    difficult = np.array([obj.difficult for obj in known], bool)
    boxed = np.array([obj.corners is not None for obj in known], bool)
    labels = ternary_labels(classes, difficult, len(position))
    return Example(
        image_id=printable(image_id),
        image=image,
        labels=np.zeros_like(labels) if objects is None else labels,
        boxes=pixel_boxes([obj.corners for obj in known if obj.corners is not None]),
        box_classes=classes[boxed],
        size=known[0].size if known else None,
    )
