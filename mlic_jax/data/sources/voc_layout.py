"""Own data in the layout of PASCAL VOC: an XML file for each image."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlic_jax.data.image_files import is_image, is_junk
from mlic_jax.data.records import Example
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.labels import check_extent
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.split_names import SPLIT, by_pattern, role_of, splits_of
from mlic_jax.data.sources.voc import SETS, read_list
from mlic_jax.data.sources.voc_xml import VocObject, example_of, no_annotation, read_objects
from mlic_jax.data.splitting import divide_examples
from mlic_jax.errors import Failure, UsageError

OWN = "own"  # in the place of the year of VOC
_BYTES = 150  # of an object in an annotation, about
_Objects = dict[str, list[VocObject]]


class VocLayout:
    """Own data in VOC's layout, with classes, and if need be splits, of its own.

    The image of `<image id>.xml` is the one of the same name with any suffix. Labels and boxes are
    those of `VocFolder`; the classes are all that the annotations name, sorted. Splits are folders,
    if there is `{split}` in the options, or the files in ImageSets/Main, or what all lists of
    classes there have, as in cat_train.txt (VoTT). Of one list, or of all images that have an
    annotation where there is none, `splitting.divide` makes two.

    Args:
        name: of the prepared set.
        root: the folder that ImageSets and the other two are in.
        splits: those that are asked for.
        annotations: the folder of XML files, or a pattern of such folders.
        image_dir: the folder of images, or a pattern; "" is root itself.
        train_share, split_seed: of `splitting.divide`.
    """

    notes: tuple[str, ...] = ()

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
        self._read: dict[str, _Objects] = {}
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
        folders = map(self._objects, self._folders_of_splits or ("",))
        found = (obj for objects in folders for of_image in objects.values() for obj in of_image)
        return tuple(sorted({obj.name for obj in found}))

    @cached_property
    def own_splits(self) -> tuple[str, ...]:
        """The splits that have labels, sorted; empty where there is no more than one."""
        if self._is_pattern:
            return self._folders_of_splits
        return self._labelled if len(self._labelled) > 1 else ()

    @property
    def annotation_files(self) -> list[Path]:
        """Every file that classes, splits, labels and boxes are read from."""
        lists = sorted((self._root / SETS).glob("*.txt"))
        folders = [self._folder("annotations", s) for s in self._folders_of_splits or ("",)]
        return [*lists, *(file for folder in folders for file in layout.xml_files(folder))]

    def examples(self, split: str) -> list[Example]:
        """The examples in the order of the split's file, or by image id.

        Raises:
            UsageError: a folder or the split's file is missing; other splits are asked for.
            Failure: an annotation is missing or malformed; two images have the same name.
        """
        if self._is_pattern:
            if split not in self._folders_of_splits:
                has = ", ".join(self._folders_of_splits)
                raise UsageError(f"set {self.name} has no split {split!r}; it has {has}")
            return self._examples(list(self._objects(split)), split)
        if self.own_splits or self._lists.keys() >= {*self.splits}:
            if split not in self._lists:
                read_list(self._root / SETS / f"{split}.txt")  # says that it is not there
            return self._examples(self._lists[split])
        return self._divided[split]

    def _examples(self, image_ids: Sequence[str], split: str = "") -> list[Example]:
        objects, images = self._objects(split), self._images(split)
        annotated = bool(objects.keys() & image_ids)
        for image_id in image_ids if annotated else ():
            if image_id not in objects:
                raise no_annotation(self._folder("annotations", split) / f"{image_id}.xml")
        position = {name: i for i, name in enumerate(self.class_names)}
        size = sum(_BYTES * (1 + len(of_image)) for of_image in objects.values())
        check_extent(self.name, len(image_ids), len(position), size)
        missing = self._folder("image_dir", split)
        return [
            example_of(
                image_id,
                images.get(image_id, missing / f"{image_id}.jpg"),
                objects[image_id] if annotated else None,
                position,
            )
            for image_id in image_ids
        ]

    @cached_property
    def _divided(self) -> dict[str, list[Example]]:
        listed = [self._lists[split] for split in self._labelled]
        image_ids = listed[0] if listed else list(self._objects(""))
        return divide_examples(self, self._examples(image_ids))

    @property
    def _is_pattern(self) -> bool:
        return SPLIT in self.description["annotations"]

    @cached_property
    def _folders_of_splits(self) -> tuple[str, ...]:
        splits = splits_of(self._root, self.description["annotations"])
        return tuple(s for s in splits if _has_xml(self._folder("annotations", s)))

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        """The image ids of every split that has a file in ImageSets/Main."""
        if self._is_pattern:
            return {}
        known = self._objects("").keys()
        return {
            split: list(dict.fromkeys(i for file in files for i in _ids(read_list(file), known)))
            for split, files in _files_of_lists(self._root / SETS).items()
        }

    @cached_property
    def _labelled(self) -> tuple[str, ...]:
        """The splits in ImageSets/Main of which any image has an annotation, sorted."""
        known = self._objects("").keys()
        return tuple(sorted(split for split, ids in self._lists.items() if known & set(ids)))

    def _folder(self, option: str, split: str) -> Path:
        return self._root / self.description[option].replace(SPLIT, split)

    def _objects(self, split: str) -> _Objects:
        """The objects of every annotated image of a folder, by image id."""
        if split not in self._read:
            folder = self._folder("annotations", split)
            files = layout.xml_files(folder)
            if not files:
                raise UsageError(
                    f"no annotations, <image id>.xml, in {folder}: check `root` and `annotations`"
                )
            self._read[split] = {file.stem: read_objects(file) for file in files}
        return self._read[split]

    def _images(self, split: str) -> dict[str, Path]:
        folder = self._folder("image_dir", split)
        if not folder.is_dir():
            raise UsageError(f"no image folder {folder}: check `root` and `image_dir`")
        images: dict[str, Path] = {}
        for file in sorted(filter(is_image, folder.iterdir())):
            if (other := images.setdefault(file.stem, file)) is not file:
                raise Failure(f"{file} and {other.name}: which is the image {file.stem}?")
        return images


def _files_of_lists(folder: Path) -> dict[str, list[Path]]:
    """The files that list the images of each split.

    The sets of VOC come with one more file for each class, cat_train.txt beside train.txt; VoTT
    writes these alone.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.txt")) if not is_junk(file)}
    of_classes = {name for name in files for other in files if name.endswith(f"_{other}")}
    splits = {name: [file] for name, file in files.items() if name not in of_classes}
    of_split: dict[str, list[Path]] = defaultdict(list)
    for name, file in files.items():
        of_split[name.rpartition("_")[2]].append(file)
    if len(files) > 1 and all("_" in name for name in files) and all(map(role_of, of_split)):
        return dict(of_split)
    return splits


def _ids(lines: Iterable[str], known: Iterable[str]) -> list[str]:
    """The image ids of lines, which may go on with a number, and may have a suffix."""
    ids = []
    for line in lines:
        bare = re.sub(r"\s+[+-]?[01]$", "", line)
        spellings = [line, bare, Path(bare).stem, line.split()[0]]
        usual = Path(bare).stem if is_image(Path(bare)) else bare
        ids.append(next((name for name in spellings if name in known), usual))
    return ids


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    if annotations is not None:
        if SPLIT in str(annotations):
            named = splits_of(annotations.parent, annotations.name)
            folders = [annotations.parent / annotations.name.replace(SPLIT, s) for s in named]
            return _layout(images, annotations) if any(map(_has_xml, folders)) else None
        return _layout(images, annotations) if _has_xml(annotations) else None
    if not images.is_dir():
        return None
    years = [folder for folder in sorted(images.glob("VOC20[0-9][0-9]")) if folder.is_dir()]
    root = layout.only(years, "VOC devkits", "--images") or images
    if root.name == "JPEGImages" and _has_xml(root.parent / "Annotations"):
        root = root.parent
    folders = list(filter(_has_xml, [root, *layout.folders_in(root)]))
    usual = [folder for folder in folders if folder.name == "Annotations"] or folders
    patterns = by_pattern(root, [folder / "x.xml" for folder in usual])
    if len(patterns) == 1:
        return _layout(root, root / next(iter(patterns)).removesuffix("/x.xml"))
    folder = layout.only(usual, "folders of XML annotations")
    return None if folder is None else _layout(root, folder)


FORMAT = layout.Format(find, "XML annotations as VOC's, one for each image")


def _layout(images: Path, annotations: Path) -> Layout:
    """With as root the folder of ImageSets, if there is one."""
    options = layout.options(images, annotations)
    splits = splits_of(Path(options["root"]), options["annotations"]) or ("",)
    folders = {s: Path(str(annotations).replace(SPLIT, s)) for s in splits}
    names = {s: [file.stem for file in layout.xml_files(f)] for s, f in folders.items()}
    folder, notes = layout.image_folder(images, annotations / "x.xml", names)
    seen = f"{annotations.name}/*.xml" + (f" for {', '.join(splits)}" if splits[0] else "")
    return Layout("voc", seen, layout.options(folder, annotations) | {"year": OWN}, notes)


def _has_xml(folder: Path) -> bool:
    """Whether a folder has XML files of images, and not of something else."""
    files = layout.xml_files(folder)
    head = files[0].read_bytes()[:4096].replace(b"\0", b"") if files else b""
    return re.search(rb"<annotation[\s>]", head) is not None
