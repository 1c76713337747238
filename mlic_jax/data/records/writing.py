"""Writing the records of a set: in the layout of TFDS, and what else it holds for reading."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mlic_jax.data import transforms
from mlic_jax.data.image_files import read_image_file
from mlic_jax.data.records.checking import Scan
from mlic_jax.data.records.reading import PREPARED, Prepared, Split, index_file
from mlic_jax.data.records.schema import Example, Source
from mlic_jax.data.records.stamps import Photo, digest_of, stamps_file
from mlic_jax.data.transforms import Look
from mlic_jax.errors import Failure
from mlic_jax.files.atomic import write_text

_EXAMPLES_PER_SHARD = 1000
_EXAMPLES_PER_WRITE = 64  # TFDS rewrites its metadata at every write: 9 ms
_BEYOND = 1  # pixels by which a box may exceed its image: annotations are rounded


def write_set(
    source: Source,
    scans: Mapping[str, Scan],
    directory: Path,
    prepared: Prepared,
    kept: Mapping[str, Path],
) -> None:
    """Writes a set into an empty folder.

    Args:
        source: of the examples.
        scans: what is known of each split.
        directory: the folder.
        prepared: what it says of itself; `files` is filled in, and `misfits` of what is written.
        kept: the splits whose records a set in these folders has just as they are to be.

    Raises:
        Failure: an image is another one than was checked.
        OSError, RuntimeError: it cannot be written.
    """
    import tensorflow_datasets as tfds

    info = _dataset_info(source, scans, directory)
    # Not a GeneratorBasedBuilder: beyond 1 GB a split its shuffler, even when disabled, spills to a
    # temporary file through TensorFlow and then sorts the whole split in memory.
    writer = tfds.core.SequentialWriter(info, _EXAMPLES_PER_SHARD, file_format="array_record")
    written = [split for split in scans if split not in kept]
    writer.initialize_splits(written)
    for split in written:
        scan, misfits = scans[split], prepared.misfits.setdefault(split, [])
        rows = tqdm(
            _rows(source, split, scan, prepared.upright, misfits),
            f"write {source.name} {split}",
            len(scan.positions),
            unit=" images",
            mininterval=1,
        )
        for chunk in _chunks(rows, _EXAMPLES_PER_WRITE):
            writer.add_examples({split: chunk})
        np.savez(
            index_file(directory, split),
            image_ids=np.array(scan.image_ids),
            labels=np.stack(scan.labels),
        )
    writer.close_all()
    infos = {split: info.splits[split] for split in written}
    for split, folder in kept.items():
        infos[split] = tfds.builder_from_directory(folder).info.splits[split]
        for name in (*infos[split].filenames, index_file(folder, split).name):
            _link(folder / name, directory / name)
    info.set_splits(tfds.core.splits.SplitDict([infos[split] for split in scans]))
    info.write_to_directory(directory)

    for split, scan in scans.items():
        scan.made.save(stamps_file(directory, split))
        names = (*infos[split].filenames, index_file(directory, split).name)
        prepared.files[split] = {name: (directory / name).stat().st_size for name in names}
    write_text(directory / PREPARED, json.dumps(asdict(prepared), indent=1))


def check_written(directory: Path, scans: Mapping[str, Scan]) -> None:
    """Opens each split, which compares numbers, and reads its first and last record.

    Raises:
        Failure: they are not those that were to be written.
    """
    for name in scans:
        split = Split(directory, name)
        for position in (0, len(split) - 1):
            try:
                split[position]
            except Failure as failure:
                raise Failure(f"{failure} (it was not written where it belongs)") from failure


def _dataset_info(source: Source, scans: Mapping[str, Scan], directory: Path) -> Any:
    """TFDS's description of the set."""
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
    return tfds.core.DatasetInfo(
        builder=identity,
        features=features,
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(metadata),
    )


def _rows(
    source: Source, split: str, scan: Scan, upright: bool, misfits: list[str]
) -> Iterator[dict[str, Any]]:
    """The records of a split; the ids of images with boxes that do not fit go to `misfits`."""
    examples = source.examples(split)
    for position, photo in zip(scan.positions, scan.photos, strict=True):
        example = examples[position]
        height, width = photo.look.size(upright)
        boxes, fit = placed_boxes(example, photo.look, upright)
        if not fit:
            misfits.append(example.image_id)
        boxes = np.clip(boxes, 0, [height, width, height, width])
        kept = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        yield {
            "image": _encoded(example, photo, f"{source.name} {split}"),
            "image_id": example.image_id,
            "labels": example.labels,
            "objects": {
                "boxes": boxes[kept].astype(np.int32),
                "classes": example.box_classes[kept],
            },
            "height": height,
            "width": width,
        }


def placed_boxes(example: Example, look: Look, upright: bool) -> tuple[np.ndarray, bool]:
    """The boxes [K, 4] of an example in its image as it is to be seen, and whether they fit it.

    They are turned with the image, unless the size that the annotations give tells that they are of
    the upright one. They do not fit where that size is of neither, or where one is empty or reaches
    beyond the image by more than a pixel.
    """
    boxes = example.boxes.reshape(-1, 4)
    stored, shown = look.size(False), look.size(upright)
    if upright and (example.size in (None, stored) or example.size != shown):
        boxes = transforms.turn_boxes(boxes, look)
    beyond = (boxes[:, :2] < -_BEYOND).any() or (boxes[:, 2:] > np.add(shown, _BEYOND)).any()
    clipped = np.clip(boxes, 0, [*shown, *shown])
    empty = (clipped[:, :2] >= clipped[:, 2:]).any()
    other_size = bool(len(boxes)) and example.size not in (None, stored, look.size(True))
    return boxes, not (beyond or empty or other_size)


def _encoded(example: Example, photo: Photo, where: str) -> bytes:
    image = example.image
    content = image if isinstance(image, bytes) else read_image_file(image)
    if digest_of(content) != photo.digest:
        raise Failure(f"{where}, image {example.image_id} changed meanwhile: prepare the set again")
    return content


def _link(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except OSError:  # of a file system that has no links
        shutil.copy2(file, copy)


def _chunks(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk
