"""From a prepared split to batches: order, decode, crop and resize on the host, run by grain.

Batch k of a run is a pure function of (seed, k): which images it holds of (seed, epoch), how one of
them is cropped of (seed, view, image), where the view is the epoch, or of V views that take turns
epoch mod V. So a run resumes at any step without replaying the steps before it, and neither
threads, worker processes nor the number of hosts change what it sees.
"""

import contextlib
import itertools
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from mlic_jax.command_line import hush_pillow
from mlic_jax.data import transforms
from mlic_jax.data.fitting import SQUASHED, Fit
from mlic_jax.data.records import Split
from mlic_jax.data.records.pixels import Squares, open_squares
from mlic_jax.errors import Failure, UsageError

# First words of the two kinds of random streams; without them (seed, epoch) and (seed, epoch, 0)
# would be the same stream to NumPy.
_ORDER, _CROP = 1, 2

TrainCrop = Literal["squash", "random_resized_crop", "multi_scale"]
TRAIN_CROPS: tuple[TrainCrop, ...] = get_args(TrainCrop)
Cache = Literal["none", "pixels"]
CACHES: tuple[Cache, ...] = get_args(Cache)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of batches in an epoch; the last one may be partly padding."""
    return -(-num_examples // batch_size)


def batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int,
    seed: int = 0,
    shuffle: bool,
    epochs: int = 1,
    first_step: int = 0,
    fit: Fit = SQUASHED,
    train_crop: TrainCrop = "squash",
    crop_scale: tuple[float, float] = (0.25, 1.0),
    views: int = 0,
    crop_seed: int | None = None,
    cache: Cache = "none",
    cache_gib: float = 10.0,
    workers: int = 0,
    threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[dict[str, np.ndarray]]:
    """This process's part of every batch of a run, from step `first_step` on.

    Every epoch holds every image once, in an order of its own if `shuffle`. Its last batch is
    filled up with padding, so all batches have one shape and all processes make as many steps.

    Args:
        split: what to read.
        batch_size: of the global batch, over all processes.
        image_size: S. Images become S x S as `fit` says, unless `train_crop` says otherwise.
        seed: not negative.
        shuffle: a new permutation every epoch, or the order of the split.
        epochs: of the whole run.
        first_step: the step of the whole run to start at.
        fit: see image_size; of what is cropped at random its interpolation alone counts.
        train_crop: "squash", as `fit` says; "random_resized_crop" with the share of the area in
            `crop_scale`; or "multi_scale", the crops that MSRN was trained with.
        crop_scale: see train_crop.
        views: V, of every image; 0: another one every epoch.
        crop_seed: what crops are drawn from; None: from `seed`.
        cache: "pixels" keeps what `fit` makes of images on disk, where any later pass reads it; the
            batches are the same. A line says where it is kept, or why not: random crops never are.
        cache_gib: what the images kept of a set may take; see `open_squares`.
        workers: processes that decode, each with `threads` threads; 0 decodes in this process.
        threads: that decode, each a whole batch.
        process_index: which rows of the global batch are ours: the process_index-th part of them.
        process_count: the number of those parts.

    Returns:
        An iterator (close it, or exhaust it, to stop its threads and workers) of dicts with
        b = batch_size / process_count: image uint8 [b, S, S, 3] RGB; labels int8 [b, C]; index
        int32 [b], the position in the split; mask bool [b]; of V views also view int32 [b].
        Padding has image 0, label -1, index -1, mask False.

    Raises:
        UsageError: a value out of range.
        Failure: (from the iterator) an image cannot be read; it names the set, split and image.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("image_size", image_size, 1),
        ("seed", seed, 0),
        ("epochs", epochs, 0),
        ("threads", threads, 1),
        ("workers", workers, 0),
        ("views", views, 0),
    ):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")
    if batch_size % process_count:
        raise UsageError(
            f"batch_size {batch_size} is not divisible by the number of processes, {process_count}"
        )
    if train_crop not in TRAIN_CROPS:
        raise UsageError(f"train_crop is {train_crop!r}; it must be one of {TRAIN_CROPS}")
    if cache not in CACHES:
        raise UsageError(f"cache is {cache!r}; it must be one of {CACHES}")
    steps = epochs * steps_per_epoch(len(split), batch_size)
    if not 0 <= first_step <= steps:
        raise UsageError(f"first_step is {first_step} and the run has {steps} steps")
    squares = None
    if cache == "pixels" and train_crop == "squash":
        squares = open_squares(split, image_size, cache_gib, fit)
    elif cache == "pixels":
        print(f"pixels are not kept: crops ({train_crop}) are of other pixels every time")
    rows = batch_size // process_count
    source = _Batches(
        split=split,
        batch_size=batch_size,
        rows=slice(process_index * rows, (process_index + 1) * rows),
        image_size=image_size,
        seed=seed,
        crop_seed=seed if crop_seed is None else crop_seed,
        fit=fit,
        shuffle=shuffle,
        first_step=first_step,
        steps=steps,
        train_crop=train_crop,
        crop_scale=crop_scale,
        views=views,
        squares=squares,
    )
    return _iterate(source, workers, threads)


def order(
    split: Split,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool,
    epochs: int = 1,
    first_step: int = 0,
    views: int,
) -> Generator[dict[str, np.ndarray]]:
    """What `batches` yields of V views in one process, without the images."""
    labels = split.labels()
    for step in range(first_step, epochs * steps_per_epoch(len(split), batch_size)):
        index, view = _rows_of_step(len(split), step, batch_size, shuffle, seed, views)
        of_rows = np.where(index[:, None] >= 0, labels[index], np.int8(-1))
        yield {"labels": of_rows, "index": index, "mask": index >= 0, "view": view}


def chosen(
    split: Split,
    groups: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int,
    image_size: int,
    seed: int = 0,
    fit: Fit = SQUASHED,
    train_crop: TrainCrop = "squash",
    crop_scale: tuple[float, float] = (0.25, 1.0),
    workers: int = 0,
    threads: int = 4,
) -> Generator[dict[str, np.ndarray]]:
    """Batches of some views of groups of images, each image decoded once for all of them.

    Options are as of `batches`.

    Args:
        groups: of each the positions in the split, at most `batch_size`, and the views.

    Returns:
        An iterator over the views of the first group, those of the second and so on: dicts of
        image, index and view as `batches` yields them. The pixels of two groups may be in memory.
    """
    source = _Photos(
        split=split,
        image_size=image_size,
        crop_seed=seed,
        fit=fit,
        train_crop=train_crop,
        crop_scale=crop_scale,
        wanted=tuple((int(photo), views) for photos, views in groups for photo in photos),
    )
    with contextlib.closing(_iterate(source, workers, threads)) as decoded:
        for photos, views in groups:
            images = np.zeros((len(views), batch_size, image_size, image_size, 3), np.uint8)
            for row, of_photo in enumerate(itertools.islice(decoded, len(photos))):
                images[:, row] = of_photo["image"]
            index = _padded(photos, batch_size)
            for view, image in zip(views, images, strict=True):
                yield {"image": image, "index": index, "view": np.full_like(index, view)}


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What grain reads from by random access: how an image of a split becomes a square."""

    split: Split
    image_size: int
    crop_seed: int
    fit: Fit
    train_crop: TrainCrop
    crop_scale: tuple[float, float]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker, whose process knows nothing of what the command said of warnings."""
        self.__dict__.update(state)
        hush_pillow()

    def _decode(self, i: int) -> Image.Image:
        record = self.split[i]
        try:
            return self.split.decode(record)
        except Failure as failure:
            raise Failure(f"{self.split.where(i)}: {failure}") from failure

    def _to_square(self, image: Image.Image, i: int, view: int) -> np.ndarray:
        rng, size = np.random.default_rng((_CROP, self.crop_seed, view, i)), self.image_size
        how = self.fit.interpolation
        if self.train_crop == "random_resized_crop":
            scale = self.crop_scale
            return transforms.random_resized_crop(image, size, rng, scale, interpolation=how)
        if self.train_crop == "multi_scale":
            return transforms.multi_scale_crop(image, size, rng, how)
        return self.fit.square(image, size)


@dataclass(frozen=True, kw_only=True)
class _Batches(_Source):
    """All batches of a run from `first_step` on."""

    batch_size: int
    rows: slice  # of the global batch, that are ours
    seed: int
    shuffle: bool
    first_step: int
    steps: int
    views: int
    squares: Squares | None  # kept on disk

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        step = position + self.first_step
        index, view = (
            of_step[self.rows]
            for of_step in _rows_of_step(
                len(self.split), step, self.batch_size, self.shuffle, self.seed, self.views
            )
        )
        images = np.empty((len(index), self.image_size, self.image_size, 3), np.uint8)
        labels = np.full((len(index), len(self.split.class_names)), -1, np.int8)
        real = index[index >= 0]  # padding is always last
        for row, i in enumerate(real):
            self._load(int(i), int(view[row]), images[row])
        images[len(real) :] = 0
        labels[: len(real)] = self.split.labels()[real]
        batch = {"image": images, "labels": labels, "index": index, "mask": index >= 0}
        return batch | ({"view": view} if self.views else {})

    def _load(self, i: int, view: int, pixels: np.ndarray) -> None:
        """Fills in the pixels of an image, uint8 [S, S, 3]."""
        if self.squares and self.squares.read(i, pixels):
            return
        pixels[:] = self._to_square(self._decode(i), i, view)
        if self.squares:
            self.squares.write(i, pixels)


@dataclass(frozen=True, kw_only=True)
class _Photos(_Source):
    """Images one by one, each in some views."""

    wanted: Sequence[tuple[int, np.ndarray]]  # positions in the split, with their views

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        """Its views, uint8 `[W, S, S, 3]`; where they are all the same, one for all."""
        i, views = self.wanted[position]
        image = self._decode(i)
        views = views[:1] if self.train_crop == "squash" else views
        return {"image": np.stack([self._to_square(image, i, int(view)) for view in views])}


def _rows_of_step(
    examples: int, step: int, batch_size: int, shuffle: bool, seed: int, views: int
) -> tuple[np.ndarray, np.ndarray]:
    """The index and the view of all rows of a step, int32 [B] each."""
    epoch, step = divmod(step, steps_per_epoch(examples, batch_size))
    order = _epoch_order(examples, seed, epoch) if shuffle else np.arange(examples)
    index = _padded(order[step * batch_size : (step + 1) * batch_size], batch_size)
    return index, np.full(batch_size, epoch % views if views else epoch, np.int32)


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """Int32 `[length]`, filled up with -1."""
    return np.pad(rows.astype(np.int32), (0, length - len(rows)), constant_values=-1)


@lru_cache(maxsize=4)
def _epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(examples)


def _iterate(
    source: _Batches | _Photos, workers: int, threads: int
) -> Generator[dict[str, np.ndarray]]:
    import grain
    from absl import flags

    read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = grain.MapDataset.source(source).to_iter_dataset(read_options)
    if workers:
        if not flags.FLAGS.is_parsed():  # outside absl's app.run, as in a notebook
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        # Through pipes, not shared memory: that is 64 MB in a container, and what is in it when a
        # run ends is reported as a leak.
        options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    iterator = iter(dataset)
    try:
        yield from iterator
    except Failure:
        raise
    except RuntimeError as error:
        raise Failure(f"reading set {source.split.name} stopped: {error}") from error
    finally:
        iterator.close()
