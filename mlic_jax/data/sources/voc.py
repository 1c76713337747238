"""PASCAL VOC's layout, images with an XML file each: VOC itself (`VocFolder`), own data too."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlic_jax.data.class_names import VOC as CLASS_NAMES
from mlic_jax.data.image_files import is_image, printable
from mlic_jax.data.records import Example
from mlic_jax.data.sources.labels import (
    LARGEST_COORDINATE,
    check_extent,
    check_path,
    pixel_boxes,
    size_of,
    ternary_labels,
)
from mlic_jax.data.splitting import divide_examples
from mlic_jax.errors import Failure, UsageError

OWN = "own"  # in the place of the year of VOC
_SETS = Path("ImageSets", "Main")
_BYTES = 150  # of an object in an annotation, about
_LARGEST_FILE = 16 * 2**20  # of the annotations of an image, in bytes


class VocFolder:
    """VOC 2007 or 2012, or any set of the same 20 classes as a devkit folder.

    The image id is the file name without its suffix. A class is present with any object that is not
    marked difficult, unknown (0) where all are. Boxes are those of all objects, difficult ones too.
    In a split of which no image has an annotation (VOC 2012 test) all labels are unknown.

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

    @property
    def annotation_files(self) -> list[Path]:
        """Every file that splits, labels and boxes are read from."""
        folder = self._folder()
        lists = [folder / _SETS / f"{split}.txt" for split in self.splits]
        return [*lists, *sorted((folder / "Annotations").glob("*.xml"))]

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the split's file.

        Raises:
            UsageError: the folder or the split's file is missing.
            Failure: an annotation is missing, malformed, or of an unknown class.
        """
        folder = self._folder()
        image_ids = _listed(folder, split)
        annotations = {i: folder / "Annotations" / f"{i}.xml" for i in image_ids}
        annotated = any(file.is_file() for file in annotations.values())
        position = {name: i for i, name in enumerate(CLASS_NAMES)}
        return [
            _example(
                image_id,
                folder / "JPEGImages" / f"{image_id}.jpg",
                _read_known(file) if annotated else None,
                position,
            )
            for image_id, file in annotations.items()
        ]

    def _folder(self) -> Path:
        for folder in (self._root / f"VOC{self._year}", self._root):
            if (folder / _SETS).is_dir():
                return folder
        raise UsageError(
            f"no VOC devkit in {self._root}: it must hold VOC{self._year}/{_SETS}, "
            f"or be the folder VOC{self._year} itself"
        )


class VocLayout:
    """Own data in VOC's layout, with classes, and if need be splits, of its own.

    The image of `<image id>.xml` is the one of the same name with any suffix. Labels and boxes are
    those of `VocFolder`; the classes are all that the annotations name, sorted. Splits are the
    files in ImageSets/Main; without that folder `splitting.divide` makes two of all images that
    have an annotation.

    Args:
        name: of the prepared set.
        root: the folder that ImageSets and the other two are in.
        splits: those that are asked for.
        annotations: the folder of XML files.
        image_dir: the folder of images; "" is root itself.
        train_share, split_seed: of `splitting.divide`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        annotations: str = "Annotations",
        image_dir: str = "JPEGImages",
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        self.name = name
        self.splits = splits
        self._root = root
        self.description: dict[str, Any] = {
            "kind": "voc",
            "root": str(root),
            "year": OWN,
            "annotations": annotations,
            "image_dir": image_dir,
            "train_share": train_share,
            "split_seed": split_seed,
        }

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({obj.name for objects in self._objects.values() for obj in objects}))

    @cached_property
    def own_splits(self) -> tuple[str, ...]:
        """The splits of ImageSets/Main that have labels, sorted; empty without that folder."""
        names = {file.stem for file in (self._root / _SETS).glob("*.txt")}
        # The sets of VOC come with one more file for each class: cat_train.txt beside train.txt.
        of_classes = {name for name in names for other in names if name.endswith(f"_{other}")}
        return tuple(
            split
            for split in sorted(names - of_classes)
            if self._objects.keys() & _listed(self._root, split)
        )

    @property
    def annotation_files(self) -> list[Path]:
        """Every file that classes, splits, labels and boxes are read from."""
        lists = sorted((self._root / _SETS).glob("*.txt"))
        return [*lists, *sorted(self._annotations.glob("*.xml"))]

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the split's file, or by image id.

        Raises:
            UsageError: a folder or the split's file is missing; other splits are asked for.
            Failure: an annotation is missing or malformed; two images have the same name.
        """
        if (self._root / _SETS).is_dir():
            return self._examples(_listed(self._root, split))
        return self._divided[split]

    def _examples(self, image_ids: Sequence[str]) -> list[Example]:
        annotated = bool(self._objects.keys() & image_ids)
        if annotated:
            for image_id in image_ids:
                if image_id not in self._objects:
                    raise _no_annotation(self._annotations / f"{image_id}.xml")
        position = {name: i for i, name in enumerate(self.class_names)}
        size = sum(_BYTES * (1 + len(objects)) for objects in self._objects.values())
        check_extent(self.name, len(image_ids), len(position), size)
        return [
            _example(i, self._image(i), self._objects[i] if annotated else None, position)
            for i in image_ids
        ]

    @cached_property
    def _divided(self) -> dict[str, list[Example]]:
        return divide_examples(self, self._examples(list(self._objects)))

    @property
    def _annotations(self) -> Path:
        return self._root / self.description["annotations"]

    @cached_property
    def _objects(self) -> dict[str, list["_Object"]]:
        """The objects of every annotated image, by image id."""
        files = sorted(self._annotations.glob("*.xml"))
        if not files:
            raise UsageError(
                f"no annotations, <image id>.xml, in {self._annotations}: check `root` and "
                "`annotations`"
            )
        return {file.stem: _read_objects(file) for file in files}

    def _image(self, image_id: str) -> Path:
        folder = self._root / self.description["image_dir"]
        return self._images.get(image_id, folder / f"{image_id}.jpg")

    @cached_property
    def _images(self) -> dict[str, Path]:
        folder = self._root / self.description["image_dir"]
        if not folder.is_dir():
            raise UsageError(f"no image folder {folder}: check `root` and `image_dir`")
        images: dict[str, Path] = {}
        for file in sorted(filter(is_image, folder.iterdir())):
            if (other := images.setdefault(file.stem, file)) is not file:
                raise Failure(f"{file} and {other.name}: which is the image {file.stem}?")
        return images


class _Object(NamedTuple):
    name: str
    difficult: bool
    corners: tuple[float, float, float, float]  # (y1, x1, y2, x2), pixels, uppers exclusive
    size: tuple[int, int] | None  # (height, width) of its image, as the annotation gives it


def _listed(folder: Path, split: str) -> list[str]:
    """The image ids of the file of a split."""
    file = folder / _SETS / f"{split}.txt"
    if not file.is_file():
        raise UsageError(f"no split {split!r}: {file} does not exist")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Failure(f"{file} is not text in UTF-8: {error}") from None
    image_ids = [words[0] for line in lines if (words := line.split())]
    for image_id in image_ids:
        check_path(f"{image_id}.xml", f"{file}: an annotation file")
    return image_ids


def _read_objects(file: Path) -> list[_Object]:
    objects = []
    try:
        annotation = _parse(file)
        size = size_of(annotation.findtext("size/height"), annotation.findtext("size/width"))
        for obj in annotation.findall("object"):
            box = obj.find("bndbox")
            xmin, ymin, xmax, ymax = (
                float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if not all(abs(side) <= LARGEST_COORDINATE for side in (xmin, ymin, xmax, ymax)):
                raise ValueError("a side of a bndbox is no number of pixels")
            name = obj.findtext("name", "").strip()
            if not name:
                raise ValueError("an object has no name")
            difficult = obj.findtext("difficult", "0").strip() == "1"
            # In the file coordinates count from 1, and the upper ones are inclusive.
            objects.append(_Object(name, difficult, (ymin - 1, xmin - 1, ymax, xmax), size))
    except FileNotFoundError:
        raise _no_annotation(file) from None
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise Failure(f"{file} is malformed: {error}") from None
    return objects


def _parse(file: Path) -> ElementTree.Element:
    """The root of an XML file; entities of its own, which could be of any length, are refused."""
    if file.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"the annotations of an image, and larger than {_LARGEST_FILE:,} bytes")
    content = file.read_bytes()
    if b"<!ENTITY" in content.replace(b"\0", b""):  # of UTF-16, too
        raise ValueError("it declares entities, which no annotation needs")
    return ElementTree.fromstring(content)


def _read_known(file: Path) -> list[_Object]:
    """The objects of an annotation of VOC itself."""
    objects = _read_objects(file)
    for obj in objects:
        if obj.name not in CLASS_NAMES:
            raise Failure(f"{file}: unknown class {obj.name!r}")
    return objects


def _no_annotation(file: Path) -> Failure:
    return Failure(f"image {file.stem} has no annotation: {file} does not exist")


def _example(
    image_id: str, image: Path, objects: Sequence[_Object] | None, position: Mapping[str, int]
) -> Example:
    """An example from its objects; None: nothing is known of the image."""
    known = objects or ()
    classes = np.array([position[obj.name] for obj in known], np.int32)
    difficult = np.array([obj.difficult for obj in known], bool)
    labels = ternary_labels(classes, difficult, len(position))
    return Example(
        image_id=printable(image_id),
        image=image,
        labels=np.zeros_like(labels) if objects is None else labels,
        boxes=pixel_boxes([obj.corners for obj in known]),
        box_classes=classes,
        size=known[0].size if known else None,
    )
