"""Writing the records of a set: in the layout of TFDS, and what else it holds for reading."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mlic_jax.data import transforms
from mlic_jax.data.image_files import read_image_file
from mlic_jax.data.records import shards
from mlic_jax.data.records.checking import Scan
from mlic_jax.data.records.reading import PREPARED, Prepared, Split, index_file
from mlic_jax.data.records.schema import Example, Source
from mlic_jax.data.records.shards import Earlier, Kept
from mlic_jax.data.records.stamps import digest_of, stamps_file
from mlic_jax.data.transforms import Look
from mlic_jax.errors import Failure
from mlic_jax.files.atomic import write_text

_BEYOND = 1  # pixels by which a box may exceed its image: annotations are rounded


def write_set(
    source: Source,
    scans: Mapping[str, Scan],
    directory: Path,
    prepared: Prepared,
    earlier: Earlier | None = None,
) -> dict[str, Kept]:
    """Writes a set into an empty folder, with those shards of an earlier one that are as they were.

    Args:
        source: of the examples.
        scans: what is known of each split.
        directory: the folder.
        prepared: what it says of itself; `files` and `misfits` are filled in.
        earlier: the set that was there.

    Returns:
        What was kept of each split.

    Raises:
        Failure: an image is another one than was checked.
        OSError, RuntimeError: it cannot be written.
    """
    import tensorflow_datasets as tfds

    info = _dataset_info(source, scans, directory)
    infos, kept = [], {}
    for split, scan in scans.items():
        of_split, kept[split] = _write_split(
            source, split, scan, directory, info.features, prepared, earlier
        )
        infos.append(of_split)
        scan.made.save(stamps_file(directory, split))
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(directory)
    write_text(directory / PREPARED, json.dumps(asdict(prepared), indent=1))
    return kept


def _write_split(
    source: Source,
    split: str,
    scan: Scan,
    directory: Path,
    features: Any,
    prepared: Prepared,
    earlier: Earlier | None,
) -> tuple[Any, Kept]:
    """The records and the index of a split; returns what TFDS notes of it, and what was kept."""
    import tensorflow_datasets as tfds

    template = shards.template_of(directory, source.name, split)
    parts = list(enumerate(shards.parts_of(len(scan.positions))))
    keep = shards.to_keep(earlier, split, scan.made, prepared.upright) if earlier else set()
    known = {*earlier.prepared.misfits.get(split, ())} if earlier and keep else set()
    misfits = prepared.misfits.setdefault(split, [])
    files, lengths = [], []
    total = sum(len(scan.positions[part]) for k, part in parts if k not in keep)
    what = f"write {source.name} {split}"
    with tqdm(None, what, total, unit=" images", mininterval=1, disable=not total) as bar:
        for k, part in parts:
            file = Path(template.sharded_filepath(shard_index=k, num_shards=None))
            if earlier and k in keep:
                shards.keep_shard(earlier.directory / file.name, file)
                misfits += [i for i in scan.image_ids[part] if i in known]
                lengths.append(len(scan.image_ids[part]))
            else:
                rows = _rows(source, split, scan, part, prepared.upright, misfits)
                lengths.append(shards.write_shard(file, features, rows, bar))
            files.append(file)
    files.append(index_file(directory, split))
    np.savez(files[-1], image_ids=np.array(scan.image_ids), labels=np.stack(scan.labels))
    prepared.files[split] = {file.name: file.stat().st_size for file in files}
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=sum(file.stat().st_size for file in files[:-1]),
        filename_template=template,
    )
    return info, Kept(len(keep), len(parts))


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
        "source": {name: said for name, said in source.description.items() if name != "root"},
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
    info.set_file_format("array_record")
    return info


def _rows(
    source: Source, split: str, scan: Scan, part: slice, upright: bool, misfits: list[str]
) -> Iterator[dict[str, Any]]:
    """Records of a split; the ids of images with boxes that do not fit go to `misfits`."""
    examples = source.examples(split)
    readable = zip(scan.positions[part], scan.digests[part], scan.looks[part], strict=True)
    for position, digest, look in readable:
        example = examples[position]
        height, width = look.size(upright)
        boxes, fit = placed_boxes(example, look, upright)
        if not fit:
            misfits.append(example.image_id)
        boxes = np.clip(boxes, 0, [height, width, height, width])
        kept = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        yield {
            "image": _encoded(example, digest, f"{source.name} {split}"),
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
    if example.relative:
        boxes = _covering(boxes, look.size(True))
        if not upright:
            boxes = transforms.turn_boxes(boxes, look.turned_back())
    elif upright and (example.size in (None, stored) or example.size != shown):
        boxes = transforms.turn_boxes(boxes, look)
    beyond = (boxes[:, :2] < -_BEYOND).any() or (boxes[:, 2:] > np.add(shown, _BEYOND)).any()
    clipped = np.clip(boxes, 0, [*shown, *shown])
    empty = (clipped[:, :2] >= clipped[:, 2:]).any()
    other_size = bool(len(boxes)) and example.size not in (None, stored, look.size(True))
    return boxes, not (beyond or empty or other_size)


def _covering(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The smallest pixel boxes, int32, that cover shares of an image's sides, to hundredths."""
    corners = np.round(boxes * np.array(size * 2), 2)
    return np.hstack([np.floor(corners[:, :2]), np.ceil(corners[:, 2:])]).astype(np.int32)


def _encoded(example: Example, digest: str, where: str) -> bytes:
    image = example.image
    content = image if isinstance(image, bytes) else read_image_file(image)
    if digest_of(content) != digest:
        raise Failure(f"{where}, image {example.image_id} changed meanwhile: prepare the set again")
    return content
