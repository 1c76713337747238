"""Photographs for the input pipeline: made up, of a photograph's size, detail and bytes."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from comparison import Sizes
from frameworks import available_cores
from PIL import Image

from mlic_jax.data import records

WIDTH, HEIGHT = 500, 375
CLASSES = 20
DIFFERENT = 64  # photographs; a longer set repeats them
QUALITY = 90


def inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    """`images` JPEGs, their bytes one after the other [total], where each ends [N], labels [N, C].

    Their colours are noise of all scales, the coarser the stronger, as in photographs.
    """
    rng = np.random.default_rng(0)
    count = sizes["images"]
    different = [_jpeg(rng) for _ in range(min(count, DIFFERENT))]
    encoded = [different[i % len(different)] for i in range(count)]
    return {
        "bytes": np.frombuffer(b"".join(encoded), np.uint8).copy(),
        "ends": np.cumsum([len(image) for image in encoded]),
        "labels": np.where(rng.random((count, CLASSES)) < 0.1, 1, -1).astype(np.int8),
    }


def split_bytes(given: dict[str, np.ndarray]) -> list[bytes]:
    """The encoded images of `inputs`, as NumPy's or PyTorch's arrays."""
    encoded = np.asarray(given["bytes"]).tobytes()
    ends = np.asarray(given["ends"]).tolist()
    return [encoded[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _jpeg(rng: np.random.Generator) -> bytes:
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
    for exponent in range(1, 8):  # of cells across the image; the finest are four pixels
        cells = rng.standard_normal((2**exponent, 2**exponent, 3)) * 128 / 2 ** (exponent / 1.5)
        for channel in range(3):
            plane = Image.fromarray(cells[..., channel].astype(np.float32))
            pixels[..., channel] += plane.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    pixels += 6 * rng.standard_normal((HEIGHT, WIDTH, 1))  # the grain of a sensor
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


@lru_cache
def _folder() -> tempfile.TemporaryDirectory:
    """Of this process, and deleted as it ends."""
    return tempfile.TemporaryDirectory()


def prepared(encoded: Sequence[bytes], labels: np.ndarray) -> records.Split:
    """A prepared set of these images, for as long as the process lives."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        path = records.prepare(_Source(encoded, labels), Path(_folder().name))
    return records.open_split(path, "test")


class _Source:
    """As `records.prepare` wants it."""

    name, splits = "photos", ("test",)
    class_names = tuple(f"class {c:02d}" for c in range(CLASSES))
    annotation_files = ()

    def __init__(self, encoded: Sequence[bytes], labels: np.ndarray):
        self.description = {"kind": "photos", "images": len(encoded)}
        self._encoded, self._labels = encoded, labels

    def examples(self, split: str) -> list[records.Example]:
        none = np.zeros((0, 4), np.int32), np.zeros(0, np.int32)
        return [
            records.Example(f"{i:06d}", image, labels, *none)
            for i, (image, labels) in enumerate(zip(self._encoded, self._labels, strict=True))
        ]


class Dataset:
    """What a `torch.utils.data.DataLoader` reads: the same pixels, written as its users do."""

    def __init__(self, encoded: Sequence[bytes], labels: np.ndarray, size: int):
        self._encoded, self._labels, self._size = encoded, labels, size

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        with Image.open(io.BytesIO(self._encoded[i])) as image:
            square = (self._size, self._size)
            image = image.convert("RGB").resize(square, Image.Resampling.BILINEAR)
        return np.array(image), self._labels[i]


def pipeline(
    given: dict[str, np.ndarray], sizes: Sizes, cache: Literal["none", "pixels"] = "none"
) -> Callable[[], dict[str, np.ndarray]]:
    """A case: an epoch of ours, in one thread a core; of pixels that are kept, not the first."""
    from mlic_jax.data.pipeline import batches

    split = prepared(split_bytes(given), given["labels"])

    def run() -> dict[str, np.ndarray]:
        epoch = batches(
            split,
            batch_size=sizes["batch"],
            image_size=sizes["image_size"],
            shuffle=False,
            threads=available_cores(),
            cache=cache,
        )
        return sampled(
            (batch["image"][batch["mask"]], batch["labels"][batch["mask"]]) for batch in epoch
        )

    if cache == "pixels":
        with contextlib.redirect_stdout(io.StringIO()):
            run()
    return run


def sampled(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Uses up batches of (images, labels), and keeps a few pixels of each to be compared."""
    kept = [(images[:, ::37, ::37].copy(), labels) for images, labels in batches]
    pixels, labels = map(np.concatenate, zip(*kept, strict=True))
    return {"pixels": pixels, "labels": labels}
