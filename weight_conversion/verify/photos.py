"""The photos that both sides look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mlic_jax.data import transforms
from mlic_jax.data.fitting import SQUASHED, Fit
from mlic_jax.data.label_files import order_of
from mlic_jax.data.records import open_split
from mlic_jax.data.transforms import Range
from mlic_jax.errors import Failure, UsageError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Photos:
    """The images that both frameworks see: of a prepared split, or of a folder, without labels."""

    name: str
    ids: Sequence[str]
    decoded: Callable[[int], Image.Image]
    labels: np.ndarray | None = None  # int8 [N, C] in {+1, 0, -1}
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def pixels(self, rows: Sequence[int], size: int, fit: Fit = SQUASHED) -> np.ndarray:
        """The images at `rows` as `fit` has them, uint8 [B, S, S, 3].

        Raises:
            Failure: one cannot be read.
        """
        return np.stack([self._pixels(int(i), size, fit) for i in rows])

    def _pixels(self, i: int, size: int, fit: Fit) -> np.ndarray:
        try:
            return fit.square(self.decoded(i), size)
        except (Failure, OSError) as error:
            raise Failure(f"{self.name}, {self.ids[i]}: {error}") from error


def open_photos(
    data: Path,
    split: str | None,
    limit: int | None,
    upright: bool = False,
    value_range: Range | None = None,
) -> Photos:
    """The first `limit` images of a prepared set's split (by default `test`) or of a folder.

    A set says itself how its images are to be seen.

    Args:
        upright, value_range: how those of a folder are, see `transforms.decode`.

    Raises:
        UsageError: there is no such folder, set or split, or it holds no photo.
    """
    if not data.is_dir():
        raise UsageError(f"{data}: no such folder")
    if (data / "dataset_info.json").is_file():
        records = open_split(data, split or "test")
        ids = [records.image_id(i) for i in range(len(records))][:limit]
        labels = records.labels()[:limit]
        name = f"{records.name} {records.split}"
        return Photos(name, ids, lambda i: records.decode(records[i]), labels, records.class_names)
    if split is not None:
        raise UsageError(f"--split is for a prepared set, and {data} holds none")
    files = sorted(file for file in data.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        raise UsageError(f"{data} holds neither a prepared set nor photos")
    ids = [str(file.relative_to(data)) for file in files][:limit]
    return Photos(
        data.resolve().name,
        ids,
        lambda i: transforms.decode(files[i].read_bytes(), upright, value_range),
    )


def in_order_of(class_names: Sequence[str], photos: Photos) -> np.ndarray | None:
    """The labels of `photos`, int8 [N, C], in the order of a checkpoint's `class_names`.

    A checkpoint that does not name its classes has them in the order of the set.

    Raises:
        UsageError: the classes are not those of the set.
    """
    if photos.labels is None or not class_names:
        return None
    if list(class_names) == [str(c) for c in range(len(photos.class_names))]:
        return photos.labels
    return photos.labels[:, order_of(photos.class_names, class_names, photos.name)]
