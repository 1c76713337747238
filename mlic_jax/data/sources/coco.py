"""Images with annotations in COCO's `instances` JSON: one file a split, or one that is divided."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.data.records import Example
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.coco_file import CocoFile, CocoObject
from mlic_jax.data.sources.labels import (
    check_extent,
    check_path,
    forward,
    order_classes,
    pixel_boxes,
    ternary_labels,
)
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.photos import Photos
from mlic_jax.data.sources.rows import Row, Rows, split_by_path
from mlic_jax.data.sources.split_names import SPLIT, splits_of
from mlic_jax.data.splitting import divide_examples
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text

# Where files of annotations in COCO's format usually lie, a file a split.
_PATTERNS = (
    "instances_{split}.json",
    "annotations/instances_{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
    "annotations/{split}.json",
)
_MANY_CROWDS = 0.1  # of the objects; of COCO's 1.2 % are crowds


class CocoFolder:
    """COCO, or any set in its layout.

    If `annotations` is no pattern, its one file is of all images, and `splitting.divide` makes two
    splits of them.

    The image id is the file name. A class is present with any object that is not a crowd, unknown
    (0) where there are only crowds. Boxes are those of the objects that are not crowds, as far as
    they have any. A category without objects that is above all others is no class.

    Args:
        name: of the prepared set.
        root: the folder that the two patterns are relative to.
        splits: their names, which replace "{split}" in the patterns.
        image_dir: pattern of the folder that the file names are relative to.
        annotations: pattern of the JSON file.
        class_order: "alphabetical" or "annotation" (the order of the file's categories).
        keep_unlabelled: whether images without any annotation are kept; the originals drop them.
        crowds: what objects are that say `iscrowd`: "unknown", or "present" where a tool says it of
            every mask.
        train_share, split_seed: of `splitting.divide`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        image_dir: str = "{split}",
        annotations: str = "instances_{split}.json",
        class_order: str = "alphabetical",
        keep_unlabelled: bool = False,
        crowds: str = "unknown",
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        order_classes((), class_order)
        if crowds == "ask":
            raise UsageError(
                "many objects say `iscrowd`: say --crowds present if your tool says it of masks, "
                "as CVAT does, and --crowds unknown if they are crowds that nobody counted"
            )
        if crowds not in ("unknown", "present"):
            raise UsageError(f"crowds is {crowds!r}; it must be 'unknown' or 'present'")
        self._is_divided = SPLIT not in annotations
        if self._is_divided and SPLIT in image_dir:
            raise UsageError(
                f"annotations is {annotations!r}, one file of all images: then image_dir must be "
                f"one folder, and it is {image_dir!r}"
            )
        self.name = name
        self.splits = splits
        self._root = root
        self.description: dict[str, Any] = {
            "kind": "coco",
            "root": str(root),
            "image_dir": image_dir,
            "annotations": annotations,
            "class_order": class_order,
            "keep_unlabelled": bool(keep_unlabelled),
        }
        if crowds != "unknown":
            self.description["crowds"] = crowds
        if self._is_divided:
            self.description |= {"train_share": train_share, "split_seed": split_seed}

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        first, *others = self.splits
        names = set(self._annotations[first].class_names.values())
        for split in others:
            if set(self._annotations[split].class_names.values()) != names:
                file, other = self._annotation_file(first), self._annotation_file(split)
                raise Failure(f"the categories of {file} and {other} are not the same")
        ordered = [
            name
            for name in dict.fromkeys(self._annotations[first].class_names.values())
            if name != self._root_category
        ]
        return order_classes(ordered, self.description["class_order"])

    @cached_property
    def _root_category(self) -> str | None:
        """The category that is above all others, if no object is of it."""
        root = self._annotations[self.splits[0]].root
        for annotations in self._annotations.values():
            names = annotations.class_names
            if any(names[c] == root for found in annotations.objects.values() for c, *_ in found):
                return None
        return root

    @property
    def own_splits(self) -> tuple[str, ...]:
        """The splits that have a file of annotations, or a folder in the paths of one file; sorted.

        A list of images to predict, without annotations, is none.
        """
        if self._is_divided:
            return tuple(sorted({*self._by_path.values()} - {""}))
        splits = splits_of(self._root, self.description["annotations"])
        return tuple(s for s in splits if _has_annotations(self._annotation_file(s))) or splits

    @cached_property
    def _by_path(self) -> dict[str, str]:
        """The splits of images of one file of annotations, as their paths have them, else ""."""
        names = _file_names(self._annotation_file("")) if self._is_divided else []
        rows = split_by_path(Rows((), [Row(name, name, ()) for name in names])).rows
        return {row.image: row.split for row in rows}

    @property
    def annotation_files(self) -> list[Path]:
        """Every file that classes, labels and boxes are read from."""
        return list(dict.fromkeys(self._annotation_file(split) for split in self.splits))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading, for a person."""
        notes = []
        if self._is_divided and self.own_splits:
            notes.append(f"splits are the folders of the paths: {', '.join(self.own_splits)}")
        if root := self._root_category:
            notes.append(f"the category {root} is above all others, and no class")
        files = {self._annotation_file(s): self._annotations[s] for s in self.splits}.values()
        bare = sum(image not in file.objects for file in files for image in file.file_names)
        if bare and not self.description["keep_unlabelled"]:
            notes.append(
                f"photos without annotations are left out: {bare:,}; --keep-unlabelled keeps them"
            )
        return tuple(notes)

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the annotation file.

        Raises:
            UsageError: the image folder or the annotation file is missing; of one file, other
                splits are asked for.
            Failure: the annotation file is malformed or contradicts itself.
        """
        return self._divided[split] if self._is_divided else self._annotated(split)

    def _annotated(self, split: str) -> list[Example]:
        """All examples of the annotation file that the split is in."""
        annotations = self._annotations[split]
        folder = self._root / self.description["image_dir"].replace(SPLIT, split)
        if not folder.is_dir():
            raise UsageError(f"no image folder {folder}: check `root` and `image_dir`")
        size = self._annotation_file(split).stat().st_size
        check_extent(self.name, len(annotations.file_names), len(self.class_names), size)
        position = {name: i for i, name in enumerate(self.class_names)}
        positions = {
            c: position[name] for c, name in annotations.class_names.items() if name in position
        }
        listed = {
            image: file_name
            for image, file_name in annotations.file_names.items()
            if self.description["keep_unlabelled"] or annotations.objects.get(image)
        }
        place = self.description["image_dir"].replace(SPLIT, split)
        files = Photos(self._root, place).locate(list(listed.values()))
        return [
            _example(
                file_name,
                file,
                annotations.objects.get(image, []),
                positions,
                len(position),
                annotations.sizes[image],
            )
            for (image, file_name), file in zip(listed.items(), files, strict=True)
        ]

    @cached_property
    def _divided(self) -> dict[str, list[Example]]:
        """The splits of one file of annotations."""
        examples = self._annotated(self.splits[0])
        if not {*self.splits} <= {*self.own_splits}:
            return divide_examples(self, examples)
        of = self._by_path
        return {s: [e for e in examples if of.get(e.image_id) == s] for s in self.splits}

    @cached_property
    def _annotations(self) -> dict[str, CocoFile]:
        files = {split: self._annotation_file(split) for split in self.splits}
        crowds_count = self.description.get("crowds") == "present"
        read = {file: CocoFile(file, crowds_count) for file in dict.fromkeys(files.values())}
        return {split: read[file] for split, file in files.items()}

    def _annotation_file(self, split: str) -> Path:
        return self._root / self.description["annotations"].replace(SPLIT, split)


def _example(
    file_name: str,
    file: Path,
    objects: list[CocoObject],
    positions: dict[Any, int],
    num_classes: int,
    size: tuple[int, int] | None,
) -> Example:
    classes = np.array([positions[category] for category, _, _ in objects], np.int32)
    crowd = np.array([crowd for _, _, crowd in objects], bool)
    boxed = np.array([box is not None for _, box, _ in objects], bool) & ~crowd
    sides = [box or [0, 0, 0, 0] for _, box, _ in objects]
    x, y, width, height = np.array(sides, np.float64).reshape(-1, 4).T
    boxes = pixel_boxes(np.stack([y, x, y + height, x + width], axis=1))
    return Example(
        image_id=file_name,
        image=file,
        labels=ternary_labels(classes, crowd, num_classes),
        boxes=boxes[boxed],
        box_classes=classes[boxed],
        size=size,
    )


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    if annotations is not None and SPLIT in str(annotations):
        return _layout(images, annotations) if annotations.suffix == ".json" else None
    if annotations is not None and annotations.is_file():
        return _layout(images, annotations) if _is_coco(annotations) else None
    root = annotations or images
    if not root.is_dir():
        return None
    for pattern in _PATTERNS:
        files = [root / pattern.replace(SPLIT, split) for split in splits_of(root, pattern)]
        files = [file for file in files if _is_coco(file)]
        if len(files) > 1 and any("train" in str(f.relative_to(root)) for f in files):
            return _layout(images, root / pattern)
    for files in layout.files_in(root, (".json",)):
        what = "files in COCO's format"
        if found := layout.one_or_a_split_each(root, list(filter(_is_coco, files)), what):
            return _layout(images, found[0])
    return None


FORMAT = layout.Format(find, "annotations in COCO's JSON, one file or one a split", ("crowds",))


def _layout(images: Path, annotations: Path) -> Layout:
    options = layout.options(images, annotations)
    root, pattern = Path(options["root"]), options["annotations"]
    splits = splits_of(root, pattern)
    if SPLIT in pattern and not splits:
        raise UsageError(f"no file fits --annotations {annotations}")
    files = {split: root / pattern.replace(SPLIT, split) for split in splits or ("",)}
    without = [os.path.relpath(file, root) for file in files.values() if not _has_annotations(file)]
    files = {split: file for split, file in files.items() if _has_annotations(file)} or files
    folder, notes = layout.image_folder(
        images, annotations, {split: _file_names(file) for split, file in files.items()}
    )
    options = layout.options(folder, annotations)
    if without:
        notes += (f"{', '.join(without)}: no annotations, not read",)
    if crowds := _crowds(list(files.values())):
        options["crowds"] = crowds
        notes += (f"objects with iscrowd are {crowds}",)
    seen = f"{annotations.name} for {', '.join(splits)}" if splits else annotations.name
    return Layout("coco", seen, options, notes)


def _is_coco(file: Path) -> bool:
    return file.suffix == ".json" and _has_fields(file)


def _has_fields(file: Path) -> bool:
    """Whether a file has the fields of COCO's format; it may be too large to be parsed for that."""
    content = file.read_bytes() if file.is_file() else b""
    return all(field in content for field in (b'"images"', b'"annotations"', b'"categories"'))


def _has_annotations(file: Path) -> bool:
    """Whether a file in COCO's format has any annotations."""
    return _has_fields(file) and not re.search(rb'"annotations"\s*:\s*\[\s*\]', file.read_bytes())


def _file_names(file: Path) -> list[str]:
    found = re.findall(rb'"file_name"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")', file.read_bytes())
    where = f"{file}: a file_name"
    return [forward(check_path(json_text.parse(name, where), where)) for name in found]


def _crowds(files: Sequence[Path]) -> str:
    """What objects with `iscrowd` are, if it is not what COCO means by it: "unknown".

    CVAT says it of every mask that was drawn with a brush.
    """
    crowds, others = 0, 0
    of_cvat = any(file.stem.endswith("_default") for file in files)
    for file in files:
        content = file.read_bytes()
        said = re.findall(rb'"iscrowd"\s*:\s*(1|true)?', content)
        crowds += sum(map(bool, said))
        others += sum(not value for value in said)
        of_cvat |= re.search(rb'"attributes"\s*:\s*\{\s*"occluded"', content) is not None
    if not crowds:
        return ""
    return "present" if of_cvat else "ask" if crowds > _MANY_CROWDS * (crowds + others) else ""
