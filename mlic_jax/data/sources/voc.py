"""A PASCAL VOC devkit folder: JPEGImages, Annotations (XML) and ImageSets/Main."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.data.class_names import VOC as CLASS_NAMES
from mlic_jax.data.records import Example
from mlic_jax.data.sources.labels import pixel_boxes, ternary_labels
from mlic_jax.errors import Failure, UsageError


class VocFolder:
    """VOC 2007 or 2012, or any set of the same 20 classes in its layout.

    The image id is the file name without its suffix. A class is present with any object that is not
    marked difficult, unknown (0) where all are. Boxes are those of all objects, difficult ones too.

    Args:
        name: of the prepared set.
        root: the folder that holds `VOC<year>`, or that folder itself.
        splits: names of files in ImageSets/Main, such as trainval and test.
        year: "2007" or "2012".
    """

    class_names = CLASS_NAMES

    def __init__(self, name: str, root: Path, splits: tuple[str, ...], *, year: str = "2007"):
        self.name = name
        self.splits = splits
        self._root = root
        self._year = year
        self.description: dict[str, Any] = {"kind": "voc", "root": str(root), "year": year}

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the split's file.

        Raises:
            UsageError: the folder or the split's file is missing, or it has no annotations at all.
            Failure: an annotation is missing, malformed, or of an unknown class.
        """
        folder = self._folder()
        set_file = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not set_file.is_file():
            raise UsageError(f"no split {split!r}: {set_file} does not exist")
        lines = [line.split() for line in set_file.read_text().splitlines()]
        image_ids = [words[0] for words in lines if words]
        annotations = folder / "Annotations"
        if image_ids and not any((annotations / f"{i}.xml").is_file() for i in image_ids):
            raise UsageError(
                f"no image of the split {split!r} has labels in {annotations}: those of the "
                "VOC2012 test split are not public, so it cannot be prepared"
            )
        return [self._example(folder, image_id) for image_id in image_ids]

    def _folder(self) -> Path:
        for folder in (self._root / f"VOC{self._year}", self._root):
            if (folder / "ImageSets" / "Main").is_dir():
                return folder
        raise UsageError(
            f"no VOC devkit in {self._root}: it must hold VOC{self._year}/ImageSets/Main, "
            f"or be the folder VOC{self._year} itself"
        )

    def _example(self, folder: Path, image_id: str) -> Example:
        file = folder / "Annotations" / f"{image_id}.xml"
        classes, difficult, corners = [], [], []
        try:
            for obj in ElementTree.parse(file).getroot().findall("object"):
                name = obj.findtext("name", "").strip()
                if name not in CLASS_NAMES:
                    raise Failure(f"{file}: unknown class {name!r}")
                box = obj.find("bndbox")
                xmin, ymin, xmax, ymax = (
                    float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                classes.append(CLASS_NAMES.index(name))
                difficult.append(obj.findtext("difficult", "0").strip() == "1")
                corners.append((ymin - 1, xmin - 1, ymax, xmax))  # the file: 1-based, inclusive
        except FileNotFoundError:
            raise Failure(f"image {image_id} has no annotation: {file} does not exist") from None
        except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise Failure(f"{file} is malformed: {error}") from None
        classes = np.array(classes, np.int32)
        return Example(
            image_id=image_id,
            image=folder / "JPEGImages" / f"{image_id}.jpg",
            labels=ternary_labels(classes, np.array(difficult, bool), len(CLASS_NAMES)),
            boxes=pixel_boxes(corners),
            box_classes=classes,
        )
