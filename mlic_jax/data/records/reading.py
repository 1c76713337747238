"""Reading a prepared set: random access to its splits, and one line where it is damaged."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlic_jax.data import transforms
from mlic_jax.data.records.schema import RandomAccess, Record
from mlic_jax.data.transforms import Range
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text, npz

PREPARED = "prepared.json"  # written last
_OF_TFDS = "tensorflow_datasets."
_INDEX_AXES = {"image_ids": ("text", "N"), "labels": ("integer", "NC")}  # see `npz.check`


class Split(RandomAccess[Record]):
    """Random access to one split of a prepared set. Pickles as its path and reopens its files.

    Attributes:
        class_names: of the C labels.
        description: of the source.
        skipped: the images that were unreadable and are left out.
        misfits: ids of the images with boxes that do not fit them.
        upright: whether images are turned as their EXIF orientation says.
        value_range: of deep images, see `transforms.decode`; None where there are none.
    """

    def __init__(self, directory: Path, split: str, labels: np.ndarray | None = None):
        """Opens the split; see `open_split`, which says so when there is none.

        Args:
            labels: instead of those of the set, see `with_labels`.
        """
        self.directory = directory
        self.split = split
        metadata = read_metadata(directory)
        self.class_names: tuple[str, ...] = tuple(metadata["class_names"])
        self.description: dict[str, Any] = metadata["source"]
        self.skipped: list[str] = metadata["skipped"].get(split, [])
        prepared = read_prepared(directory)
        self.upright, self.value_range = prepared.upright, prepared.value_range
        self.misfits = prepared.misfits.get(split, [])
        _check_sizes(directory, prepared.files.get(split, {}))
        try:
            self.name, self._records = _open_records(directory, split)
        except Failure:
            raise
        except Exception as error:  # TFDS and protobuf have no common error
            raise damaged(directory, error) from error
        self._index, self._labels = self._read_index(), labels

    def __reduce__(self) -> tuple[type["Split"], tuple[Path, str, np.ndarray | None]]:
        return Split, (self.directory, self.split, self._labels)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int, /) -> Record:
        """The record at a position in [0, len).

        Parsing by TFDS takes about a twentieth of the time of decoding and resizing a COCO photo.

        Raises:
            Failure: the file is damaged there, or the set was prepared again since it was opened.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a split of {len(self)} images")
        try:
            fields = self._records[position]
            boxes, classes = fields["objects"]["boxes"], fields["objects"]["classes"]
            record = Record(
                image=fields["image"],
                image_id=fields["image_id"].decode(),
                labels=fields["labels"] if self._labels is None else self._labels[position],
                boxes=np.array(boxes, np.int32).reshape(-1, 4),
                box_classes=np.array(classes, np.int32),
                height=int(fields["height"]),
                width=int(fields["width"]),
            )
        except Exception as error:  # ArrayRecord and protobuf have no common error
            reason = " ".join(str(error).split())
            raise Failure(f"{self.where(position)} cannot be read: {reason}") from error
        if record.image_id != self.image_id(position):
            raise Failure(
                f"{self.where(position)}: its record is of {record.image_id}; the set was made "
                "again meanwhile, or its files are of different sets: start again"
            )
        return record

    def decode(self, record: Record) -> Image.Image:
        """The pixels of a record as the set is to be seen: RGB, upright if it is an upright set.

        Raises:
            Failure: see `transforms.decode`.
        """
        return transforms.decode(record.image, self.upright, self.value_range)

    def image_id(self, position: int) -> str:
        """The id of the image at a position, without reading the image."""
        return str(self._index["image_ids"][position])

    def labels(self) -> np.ndarray:
        """int8 [N, C], the labels of the whole split, without reading an image."""
        return self._index["labels"] if self._labels is None else self._labels

    def has_boxes(self) -> bool:
        """Whether any image has the box of an object; reads records up to the first that does."""
        return any(len(record.boxes) for record in self)

    def with_labels(self, labels: np.ndarray) -> "Split":
        """The same photos with other labels, int8 `[N, C]`, in worker processes too."""
        return Split(self.directory, self.split, labels)

    def where(self, position: int) -> str:
        """How an error message names the image at a position."""
        return f"set {self.name}, split {self.split}, image {self.image_id(position)}"

    def _read_index(self) -> dict[str, np.ndarray]:
        file = index_file(self.directory, self.split)
        if not file.is_file():
            raise damaged(self.directory, f"{file.name} is missing")
        try:
            index = npz.read(file, "the index of a prepared split")
            if not {"image_ids", "labels"} <= index.keys():
                raise Failure(f"{file.name} lacks image_ids or labels")
            npz.check(index, _INDEX_AXES, file.name)
        except Failure as failure:
            raise damaged(self.directory, failure) from None
        if index["labels"].shape != (len(self), len(self.class_names)):
            raise damaged(self.directory, f"{file.name} is of other images or classes")
        return index


def open_split(directory: str | os.PathLike[str], split: str) -> Split:
    """Opens a split of the prepared set in `directory` (what `prepare` returned).

    Raises:
        UsageError: there is no such set or split; the message names those that exist.
        Failure: the set is damaged.
    """
    directory = Path(directory)
    if not is_prepared(directory):
        raise UsageError(f"no prepared set at {directory}{_what_exists(directory)}")
    splits = prepared_splits(directory)
    if split not in splits:
        raise UsageError(f"no split {split!r} in {directory}; it has {', '.join(splits)}")
    return Split(directory, split)


# --- files ---


@dataclass
class Prepared:
    """What `prepared.json` says: how the images of a set are to be seen, and of its files.

    The default is what holds of a set that an earlier version prepared.
    """

    upright: bool = False
    value_range: Range | None = None
    range_is_told: bool = True  # from the images, and not given
    misfits: dict[str, list[str]] = field(default_factory=dict)  # split -> ids of images
    # split -> name -> bytes, of its index and its shards
    files: dict[str, dict[str, int]] = field(default_factory=dict)


def read_prepared(directory: Path) -> Prepared:
    """Raises Failure where the file is damaged."""
    file = directory / PREPARED
    if not file.exists():
        return Prepared()
    try:
        content = json_text.read(file)
        prepared = Prepared(**content)
        if prepared.value_range is not None:
            black, white = prepared.value_range
            prepared.value_range = float(black), float(white)
        return prepared
    except (TypeError, ValueError) as error:
        raise damaged(directory, f"{file.name}: {error}") from None


def index_file(directory: Path, split: str) -> Path:
    """Where the image ids and labels of a split lie."""
    return directory / f"index_{split}.npz"


def is_prepared(directory: Path) -> bool:
    """Whether a folder holds a prepared set."""
    return (directory / "dataset_info.json").is_file() and (directory / "metadata.json").is_file()


def prepared_splits(directory: Path) -> list[str]:
    """The names of the splits of a prepared set."""
    info = json_text.read(directory / "dataset_info.json")
    try:
        return [str(split["name"]) for split in info["splits"]]
    except (KeyError, TypeError) as error:
        raise damaged(directory, f"dataset_info.json: {error!r}") from None


def read_metadata(directory: Path) -> dict[str, Any]:
    """What was noted of a set for TFDS: `class_names`, `source` and `skipped`."""
    metadata = json_text.read(directory / "metadata.json")
    kinds = {"class_names": list, "source": dict, "skipped": dict}
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(field), kind) for field, kind in kinds.items()
    ):
        raise damaged(directory, f"metadata.json lacks one of {', '.join(kinds)}")
    if not all(isinstance(name, str) for name in metadata["class_names"]):
        raise damaged(directory, "metadata.json: the class names are no names")
    return metadata


def damaged(directory: Path, reason: Any) -> Failure:
    """The failure that a prepared set is not as it was written."""
    text = " ".join(str(reason).split())
    return Failure(f"{directory} is damaged ({text}): delete it, prepare it again")


def _check_sizes(directory: Path, sizes: dict[str, int]) -> None:
    """Refuses files that are missing or were cut since they were written."""
    for name, size in sizes.items():
        try:
            found = (directory / name).stat().st_size
        except OSError:
            raise damaged(directory, f"{name} is missing") from None
        if found != size:
            raise damaged(directory, f"{name} has {found:,} bytes, and {size:,} were written")


def _open_records(directory: Path, split: str) -> tuple[str, Any]:
    """The name of a prepared set, and the data source of a split of it."""
    import tensorflow_datasets as tfds  # here, because it takes most of a second

    _check_features(directory)
    builder = tfds.builder_from_directory(directory)
    for file in builder.info.splits[split].filenames:
        if not (directory / file).is_file():
            raise damaged(directory, f"{file} is missing")
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.info.name, builder.as_data_source(split, decoders=decoders)


def _check_features(directory: Path) -> None:
    """Refuses features that TFDS would import another package for."""
    file = directory / "features.json"
    if not file.is_file():
        raise damaged(directory, f"{file.name} is missing")
    values = [json_text.read(file)]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for name in ("pythonClassName", "python_class_name"):
                if not str(value.get(name, _OF_TFDS)).startswith(_OF_TFDS):
                    raise damaged(directory, f"{file.name} names {value[name]!r}: not imported")
            values += value.values()
        elif isinstance(value, list):
            values += value


def _what_exists(directory: Path) -> str:
    """The end of the message that there is no set at `directory`: what there is instead."""
    if directory.with_name(directory.name + ".incomplete").is_dir():
        return ": its preparation did not finish; prepare it again and it goes on where it was"
    folders = sorted(directory.parent.iterdir()) if directory.parent.is_dir() else []
    names = [folder.name for folder in folders if is_prepared(folder)]
    return f"; {directory.parent} has {', '.join(names) if names else 'no prepared sets'}"
