"""One schema for every data set: a Source is prepared once into ArrayRecord, a Split reads it.

A prepared set is a folder `<prepared_dir>/<name>/` in the layout of TensorFlow Datasets (readable
by `tfds.builder_from_directory`), plus a small `index_<split>.npz` a split with the image ids and
labels, so that counting positives reads no images. TensorFlow is imported neither to write nor to
read.

The feature dict of a record:
  image     encoded bytes exactly as the source had them
  image_id  text, unique in its split
  labels    int8 [C] in {+1 present, -1 absent, 0 unknown}
  objects   sequence of {boxes int32 [4] (y1, x1, y2, x2; exclusive, in pixels), classes}
  height, width  int32, of the decoded image

Examples keep the order of their source, so the position of an image in a split never changes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from tqdm import tqdm

from mlic_jax import json_text, npz
from mlic_jax.data import transforms
from mlic_jax.data.image_files import printable, read_image_file
from mlic_jax.errors import Failure, UsageError

_EXAMPLES_PER_SHARD = 1000
_EXAMPLES_PER_WRITE = 64  # TFDS rewrites its metadata at every write: 9 ms
_NAMES_SHOWN = 5
_OF_TFDS = "tensorflow_datasets."
_INDEX_AXES = {"image_ids": ("text", "N"), "labels": ("integer", "NC")}  # see `npz.check`


@dataclass(frozen=True)
class Example:
    """One image of a source. Boxes may overlap the border: `prepare` clips them to the image."""

    image_id: str
    image: bytes | Path  # encoded, or the file that holds it
    labels: np.ndarray  # int8 [C] in {+1, 0, -1}
    boxes: np.ndarray  # int32 [K, 4] (y1, x1, y2, x2), pixels, upper bounds exclusive
    box_classes: np.ndarray  # int32 [K]


class Source(Protocol):
    """Where images and labels come from. Files may stay unread until something is asked for."""

    name: str  # of the prepared set: lower-case letters, digits, underscores
    splits: tuple[str, ...]
    description: dict[str, Any]  # JSON-able: kind, paths, options; what the set is made from

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the C classes, in the order of `labels`."""

    def examples(self, split: str) -> Sequence[Example]:
        """The examples in their lasting order, not decoded.

        `[i]` is called from several threads, and twice an image: to check it and to write it. A
        source for which it is expensive should remember the answer.
        """


@dataclass(frozen=True)
class Record:
    """One image of a prepared split."""

    image: bytes  # encoded
    image_id: str
    labels: np.ndarray  # int8 [C] in {+1, 0, -1}
    boxes: np.ndarray  # int32 [K, 4] (y1, x1, y2, x2), pixels, upper bounds exclusive
    box_classes: np.ndarray  # int32 [K]
    height: int
    width: int


class Split(Sequence[Record]):
    """Random access to one split of a prepared set. Pickles as its path and reopens its files."""

    def __init__(self, directory: Path, split: str):
        """Opens the split; see `open_split`, which says so when there is none."""
        self.directory = directory
        self.split = split
        metadata = _read_metadata(directory)
        self.class_names: tuple[str, ...] = tuple(metadata["class_names"])
        self.description: dict[str, Any] = metadata["source"]
        self.skipped: list[str] = metadata["skipped"].get(split, [])
        try:
            self.name, self._records = _open_records(directory, split)
        except Failure:
            raise
        except Exception as error:  # TFDS and protobuf have no common error
            raise _damaged(directory, error) from error

    def __reduce__(self):
        return Split, (self.directory, self.split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> Record:
        """The record at a position in [0, len).

        Parsing by TFDS takes about a twentieth of the time of decoding and resizing a COCO photo.

        Raises:
            Failure: the file is damaged there.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a split of {len(self)} images")
        try:
            fields = self._records[position]
            boxes, classes = fields["objects"]["boxes"], fields["objects"]["classes"]
            return Record(
                image=fields["image"],
                image_id=fields["image_id"].decode(),
                labels=fields["labels"],
                boxes=np.array(boxes, np.int32).reshape(-1, 4),
                box_classes=np.array(classes, np.int32),
                height=int(fields["height"]),
                width=int(fields["width"]),
            )
        except Exception as error:  # ArrayRecord and protobuf have no common error
            reason = " ".join(str(error).split())
            raise Failure(f"{self.where(position)} cannot be read: {reason}") from error

    def image_id(self, position: int) -> str:
        """The id of the image at a position, without reading the image."""
        return str(self._index["image_ids"][position])

    def labels(self) -> np.ndarray:
        """int8 [N, C], the labels of the whole split, without reading an image."""
        return self._index["labels"]

    def where(self, position: int) -> str:
        """How an error message names the image at a position."""
        return f"set {self.name}, split {self.split}, image {self.image_id(position)}"

    @cached_property
    def _index(self) -> dict[str, np.ndarray]:
        file = _index_file(self.directory, self.split)
        index = npz.read(file, "the index of a prepared split")
        if not {"image_ids", "labels"} <= index.keys():
            raise _damaged(self.directory, f"{file.name} lacks image_ids or labels")
        npz.check(index, _INDEX_AXES, str(file))
        if index["labels"].shape != (len(self), len(self.class_names)):
            raise _damaged(self.directory, f"{file.name} is of other images or classes")
        return index


def open_split(directory: str | os.PathLike, split: str) -> Split:
    """Opens a split of the prepared set in `directory` (what `prepare` returned).

    Raises:
        UsageError: there is no such set or split; the message names those that exist.
        Failure: the set is damaged.
    """
    directory = Path(directory)
    if not _is_prepared(directory):
        raise UsageError(f"no prepared set at {directory}{_what_exists(directory)}")
    splits = _prepared_splits(directory)
    if split not in splits:
        raise UsageError(f"no split {split!r} in {directory}; it has {', '.join(splits)}")
    return Split(directory, split)


def prepare(
    source: Source,
    prepared_dir: str | os.PathLike,
    on_corrupt: Literal["fail", "skip"] = "fail",
    workers: int = os.cpu_count() or 1,
) -> Path:
    """Writes all splits of a source into `<prepared_dir>/<source.name>/` and returns that folder.

    First every image is decoded once, in `workers` threads. What was found readable is noted in a
    journal, so that a killed run goes on where it was (a file that changed is checked again). Then
    the records are written. All of it happens in `<name>.incomplete`, and one rename makes it
    `<name>` after the counts were checked. A set that is already there is left alone.

    Args:
        source: what to prepare.
        prepared_dir: the folder of all prepared sets; created if missing.
        on_corrupt: what to do about missing and unreadable images: `fail` lists them all in a file
            and stops; `skip` leaves them out and keeps their names in the set.
        workers: threads that decode.

    Raises:
        UsageError: another source was prepared under this name; a name that cannot be a folder's.
        Failure: unreadable images, an empty split, duplicate image ids, wrong labels or classes.
    """
    _check_names(source, on_corrupt)
    final = Path(prepared_dir) / source.name
    staging = final.with_name(final.name + ".incomplete")
    if not final.exists():
        with _lock(staging):
            if not final.exists():  # another process may have prepared it while this one waited
                _prepare(source, staging, final, on_corrupt, workers)
    _check_same_source(source, final)
    return final


def _prepare(source: Source, staging: Path, final: Path, on_corrupt: str, workers: int) -> None:
    records = staging / "records"
    shutil.rmtree(records, ignore_errors=True)  # what a killed run was writing
    _check_class_names(source)
    with _Journal(staging / "readable.jsonl") as journal:
        if len(journal):
            print(f"{len(journal)} images were found readable by an earlier run")
        scans = {split: _scan(source, split, journal, workers) for split in source.splits}
    _report_unreadable(scans, source.name, staging / "unreadable.txt", on_corrupt)
    for split, scan in scans.items():
        _check_split(split, scan, len(source.class_names))
    records.mkdir()
    try:
        _write(source, scans, records)
        _check_written(records, scans)
    except (OSError, RuntimeError) as error:
        if isinstance(error, Failure):
            raise
        raise Failure(f"writing {records} failed: {error}") from error
    records.rename(final)
    shutil.rmtree(staging)
    sizes = ", ".join(f"{len(scan.image_ids)} {split}" for split, scan in scans.items())
    print(f"prepared {final}: {sizes}; {len(source.class_names)} classes")


# --- scan: is every image readable? ---


@dataclass
class _Scan:
    """What is known of a split before it is written: its readable images in order, and the rest."""

    positions: list[int]  # in source.examples(split)
    image_ids: list[str]
    labels: list[np.ndarray]
    sizes: list[tuple[int, int]]  # (height, width)
    unreadable: dict[str, str]  # "image id (path)" -> what is wrong


class _Journal:
    """The images found readable, with their sizes: a JSON line `[key, height, width]` each.

    The key of a file is its path, size and modification time; of bytes, their digest.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._sizes: dict[tuple, tuple[int, int]] = {}
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            # A line that was cut short by a kill, or damaged.
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                key, height, width = json.loads(line)
                self._sizes[tuple(key)] = height, width

    def __enter__(self):
        self._file = self._path.open("a")
        self._file.write("\n")  # ends a line that was cut short
        return self

    def __exit__(self, *exception):
        self._file.close()

    def __len__(self) -> int:
        return len(self._sizes)

    def size(self, image: bytes | Path) -> tuple[int, int]:
        """(height, width) of an image, decoding it unless that was done before.

        Raises:
            Failure: it cannot be read or decoded.
        """
        try:
            if isinstance(image, bytes):
                key = ("blake2b", hashlib.blake2b(image, digest_size=16).hexdigest())
            else:
                stat = image.stat()
                key = (str(image), stat.st_size, stat.st_mtime_ns)
            if key not in self._sizes:
                decoded = transforms.decode(_encoded(image))
                self._sizes[key] = decoded.height, decoded.width
                with self._lock:
                    self._file.write(json.dumps([key, decoded.height, decoded.width]) + "\n")
                    self._file.flush()
        except OSError as error:
            raise Failure(error.strerror or str(error)) from error
        return self._sizes[key]


def _scan(source: Source, split: str, journal: _Journal, workers: int) -> _Scan:
    examples = source.examples(split)
    scan = _Scan([], [], [], [], {})

    def check(position: int) -> tuple[Example, tuple[int, int] | str]:
        example = examples[position]
        try:
            return example, journal.size(example.image)
        except Failure as failure:
            return example, str(failure)

    with ThreadPoolExecutor(workers) as pool:
        try:
            checked = pool.map(check, range(len(examples)))
            bar = tqdm(
                checked,
                f"check {source.name} {split}",
                len(examples),
                unit=" images",
                mininterval=1,
            )
            for position, (example, size) in enumerate(bar):
                if isinstance(size, str):
                    name = example.image_id
                    if isinstance(example.image, Path):
                        name += f" ({printable(example.image)})"
                    scan.unreadable[name] = size
                    continue
                scan.positions.append(position)
                scan.image_ids.append(example.image_id)
                scan.labels.append(example.labels)
                scan.sizes.append(size)
        finally:
            pool.shutdown(cancel_futures=True)
    return scan


def _report_unreadable(
    scans: dict[str, _Scan], name: str, list_file: Path, on_corrupt: str
) -> None:
    lines = [
        f"{split}: {image}: {reason}"
        for split, scan in scans.items()
        for image, reason in scan.unreadable.items()
    ]
    if not lines:
        list_file.unlink(missing_ok=True)
        return
    if on_corrupt == "skip":
        print(f"{name}: {len(lines)} unreadable images are left out: {'; '.join(lines)}")
        return
    list_file.write_text("\n".join(lines) + "\n")
    raise Failure(
        f"{name}: {len(lines)} unreadable images: {_first(lines, '; ')}. All are listed in "
        f"{list_file}; repair them or prepare with on_corrupt=skip"
    )


# --- write ---


def _write(source: Source, scans: dict[str, _Scan], directory: Path) -> None:
    import tensorflow_datasets as tfds

    class_names = list(source.class_names)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Text(),
            "labels": tfds.features.Tensor(shape=(len(class_names),), dtype=np.int8),
            "objects": tfds.features.Sequence(
                {
                    "boxes": tfds.features.Tensor(shape=(4,), dtype=np.int32),
                    "classes": tfds.features.ClassLabel(names=class_names),
                }
            ),
            "height": np.int32,
            "width": np.int32,
        }
    )
    metadata = {
        "class_names": class_names,
        "source": source.description,
        "skipped": {split: list(scan.unreadable) for split, scan in scans.items()},
    }
    identity = tfds.core.DatasetIdentity(
        name=source.name,
        version=tfds.core.Version("1.0.0"),
        data_dir=os.fspath(directory),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features,
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(metadata),
    )
    # Not a GeneratorBasedBuilder: beyond 1 GB a split its shuffler, even when disabled, spills to a
    # temporary file through TensorFlow and then sorts the whole split in memory.
    writer = tfds.core.SequentialWriter(info, _EXAMPLES_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(scans))
    for split, scan in scans.items():
        rows = _rows(source.examples(split), scan)
        bar = tqdm(
            rows, f"write {source.name} {split}", len(scan.positions), unit=" images", mininterval=1
        )
        for chunk in _chunks(bar, _EXAMPLES_PER_WRITE):
            writer.add_examples({split: chunk})
        np.savez(
            _index_file(directory, split),
            image_ids=np.array(scan.image_ids),
            labels=np.stack(scan.labels),
        )
    writer.close_all()


def _rows(examples: Sequence[Example], scan: _Scan) -> Iterator[dict[str, Any]]:
    for position, (height, width) in zip(scan.positions, scan.sizes, strict=True):
        example = examples[position]
        boxes = np.clip(example.boxes.reshape(-1, 4), 0, [height, width, height, width])
        kept = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        yield {
            "image": _encoded(example.image),
            "image_id": example.image_id,
            "labels": example.labels,
            "objects": {
                "boxes": boxes[kept].astype(np.int32),
                "classes": example.box_classes[kept],
            },
            "height": height,
            "width": width,
        }


def _check_written(directory: Path, scans: dict[str, _Scan]) -> None:
    for name, scan in scans.items():
        split = Split(directory, name)
        if len(split) != len(scan.image_ids):
            raise Failure(
                f"{len(scan.image_ids)} {name} images were written but {len(split)} are there"
            )
        for position in (0, len(split) - 1):
            if split[position].image_id != scan.image_ids[position]:
                raise Failure(f"{split.where(position)} was not written where it belongs")


# --- checks of the request and of the source ---


def _check_names(source: Source, on_corrupt: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", source.name):
        raise UsageError(
            f"{source.name!r} cannot name a prepared set: "
            "use lower-case letters, digits and underscores"
        )
    for split in source.splits:
        if not re.fullmatch(r"\w+", split):
            raise UsageError(f"{split!r} cannot name a split: use letters, digits, underscores")
    if not source.splits:
        raise UsageError(f"{source.name}: no splits to prepare")
    if on_corrupt not in ("fail", "skip"):
        raise UsageError(f"on_corrupt is {on_corrupt!r}; it must be 'fail' or 'skip'")


def _check_class_names(source: Source) -> None:
    names = source.class_names
    if not names:
        raise Failure(f"{source.name}: there are no classes")
    if duplicates := _duplicates(names):
        raise Failure(f"{source.name}: class names occur more than once: {_first(duplicates)}")


def _check_split(split: str, scan: _Scan, num_classes: int) -> None:
    if not scan.image_ids:
        raise Failure(f"split {split} has no images")
    if duplicates := _duplicates(scan.image_ids):
        raise Failure(f"split {split}: image ids occur more than once: {_first(duplicates)}")
    for image_id, labels in zip(scan.image_ids, scan.labels, strict=True):
        good = labels.dtype == np.int8 and labels.shape == (num_classes,)
        if not (good and np.isin(labels, (-1, 0, 1)).all()):
            raise Failure(
                f"split {split}, image {image_id}: "
                f"labels must be {num_classes} int8 values in -1, 0, 1"
            )


def _check_same_source(source: Source, final: Path) -> None:
    advice = f"choose another name or delete {final}"
    if not _is_prepared(final):
        raise UsageError(f"{final} exists and is not a prepared set: {advice}")
    prepared = _read_metadata(final)["source"]
    wanted = json.loads(json.dumps(source.description))
    for field in sorted({*prepared, *wanted}):
        if prepared.get(field) != wanted.get(field):
            raise UsageError(
                f"{final} was prepared with {field}={prepared.get(field)!r}, and now it is "
                f"{wanted.get(field)!r}: {advice}"
            )
    if missing := [split for split in source.splits if split not in _prepared_splits(final)]:
        raise UsageError(f"{final} was prepared without the split {', '.join(missing)}: {advice}")


# --- files ---


@contextlib.contextmanager
def _lock(staging: Path) -> Iterator[None]:
    """Lets one process at a time prepare a set. The lock goes when its process ends, however."""
    try:
        staging.mkdir(parents=True, exist_ok=True)
        file = (staging / "lock").open("w")
    except OSError as error:
        raise UsageError(f"cannot write to {staging}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {staging}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _index_file(directory: Path, split: str) -> Path:
    return directory / f"index_{split}.npz"


def _is_prepared(directory: Path) -> bool:
    return (directory / "dataset_info.json").is_file() and (directory / "metadata.json").is_file()


def _prepared_splits(directory: Path) -> list[str]:
    info = json_text.read(directory / "dataset_info.json")
    try:
        return [str(split["name"]) for split in info["splits"]]
    except (KeyError, TypeError) as error:
        raise _damaged(directory, f"dataset_info.json: {error!r}") from None


def _read_metadata(directory: Path) -> dict[str, Any]:
    """What `_write` noted of a set: `class_names`, `source` and `skipped`."""
    metadata = json_text.read(directory / "metadata.json")
    kinds = {"class_names": list, "source": dict, "skipped": dict}
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(field), kind) for field, kind in kinds.items()
    ):
        raise _damaged(directory, f"metadata.json lacks one of {', '.join(kinds)}")
    if not all(isinstance(name, str) for name in metadata["class_names"]):
        raise _damaged(directory, "metadata.json: the class names are no names")
    return metadata


def _open_records(directory: Path, split: str) -> tuple[str, Any]:
    """The name of a prepared set, and the data source of a split of it."""
    import tensorflow_datasets as tfds  # here, because it takes most of a second

    _check_features(directory)
    builder = tfds.builder_from_directory(directory)
    for file in builder.info.splits[split].filenames:
        if not (directory / file).is_file():
            raise _damaged(directory, f"{file} is missing")
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.info.name, builder.as_data_source(split, decoders=decoders)


def _check_features(directory: Path) -> None:
    """Refuses features that TFDS would import another package for."""
    file = directory / "features.json"
    if not file.is_file():
        raise _damaged(directory, f"{file.name} is missing")
    values = [json_text.read(file)]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for name in ("pythonClassName", "python_class_name"):
                if not str(value.get(name, _OF_TFDS)).startswith(_OF_TFDS):
                    raise _damaged(directory, f"{file.name} names {value[name]!r}: not imported")
            values += value.values()
        elif isinstance(value, list):
            values += value


def _damaged(directory: Path, reason: Any) -> Failure:
    text = " ".join(str(reason).split())
    return Failure(f"{directory} is damaged ({text}): delete it, prepare it again")


def _what_exists(directory: Path) -> str:
    """The end of the message that there is no set at `directory`: what there is instead."""
    if directory.with_name(directory.name + ".incomplete").is_dir():
        return ": its preparation did not finish; prepare it again and it goes on where it was"
    folders = sorted(directory.parent.iterdir()) if directory.parent.is_dir() else []
    names = [folder.name for folder in folders if _is_prepared(folder)]
    return f"; {directory.parent} has {', '.join(names) if names else 'no prepared sets'}"


def _encoded(image: bytes | Path) -> bytes:
    return image if isinstance(image, bytes) else read_image_file(image)


def _chunks(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def _duplicates(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _first(names: Sequence[str], separator: str = ", ") -> str:
    rest = f"{separator}and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return separator.join(names[:_NAMES_SHOWN]) + rest
