"""PASCAL VOC itself, as a devkit folder; `voc_layout` has own data in its layout."""

from pathlib import Path
from typing import Any

from mlic_jax.data.class_names import VOC as CLASS_NAMES
from mlic_jax.data.records import Example
from mlic_jax.data.sources.labels import check_path
from mlic_jax.data.sources.voc_xml import VocObject, example_of, read_objects
from mlic_jax.errors import Failure, UsageError

SETS = Path("ImageSets", "Main")


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
    own_splits: tuple[str, ...] = ()  # a person names them
    notes: tuple[str, ...] = ()

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
        lists = [folder / SETS / f"{split}.txt" for split in self.splits]
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
            example_of(
                image_id,
                folder / "JPEGImages" / f"{image_id}.jpg",
                _read_known(file) if annotated else None,
                position,
            )
            for image_id, file in annotations.items()
        ]

    def _folder(self) -> Path:
        for folder in (self._root / f"VOC{self._year}", self._root):
            if (folder / SETS).is_dir():
                return folder
        raise UsageError(
            f"no VOC devkit in {self._root}: it must hold VOC{self._year}/{SETS}, "
            f"or be the folder VOC{self._year} itself"
        )


def _listed(folder: Path, split: str) -> list[str]:
    """The image ids of the file of a split: the first word of each line."""
    file = folder / SETS / f"{split}.txt"
    return [line.split()[0] for line in read_list(file)]


def read_list(file: Path) -> list[str]:
    """The lines of the file of a split, without blank ones.

    Raises:
        UsageError: there is no such file.
        Failure: it is no text, or a line is no image id.
    """
    if not file.is_file():
        raise UsageError(f"no split {file.stem!r}: {file} does not exist")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"{file} is not text in UTF-8: {error}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        check_path(f"{line.split()[0]}.xml", f"{file}: an annotation file")
    return lines


def _read_known(file: Path) -> list[VocObject]:
    """The objects of an annotation of VOC itself."""
    objects = read_objects(file)
    for obj in objects:
        if obj.name not in CLASS_NAMES:
            raise Failure(f"{file}: unknown class {obj.name!r}")
    return objects
