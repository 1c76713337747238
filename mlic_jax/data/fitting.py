"""How a photo becomes the square that a model sees, and where in the photo that square lies.

A photo is squashed to the square; or its shorter side is resized to a little more than that of the
square, which is then cut out of its middle, as ImageNet's networks are evaluated.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from mlic_jax.data.transforms import FILTERS, Interpolation, resize, resized

# Pixels of a whole photo that is resized; of a larger one, such as a ribbon, the square alone is.
MOST_RESIZED = 2**24


@dataclass(frozen=True)
class Frame:
    """Where the square of a photo lies, all in (height, width) or (y, x).

    Attributes:
        photo: the photo's size.
        resized: the size that the photo is resized to.
        corner: the upper left corner of the square in the resized photo.
        size: S, of a side of the square.
    """

    photo: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: int

    def box_in_photo(
        self, box: tuple[int, int, int, int] | np.ndarray, grid: int
    ) -> tuple[int, int, int, int]:
        """A box (y1, x1, y2, x2) of the square in the photo's pixels: all that it touches.

        Never empty where the box is not.

        Args:
            box: whole numbers, upper bounds exclusive, with `grid` to a side of the square.
        """
        y1, x1, y2, x2 = (int(edge) for edge in box)
        (top, bottom), (left, right) = (
            (
                photo * (corner * grid + low * self.size) // (resized * grid),
                -(-photo * (corner * grid + high * self.size) // (resized * grid)),
            )
            for photo, resized, corner, low, high in zip(
                self.photo, self.resized, self.corner, (y1, x1), (y2, x2), strict=True
            )
        )
        return top, left, bottom, right

    def boxes_in_square(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes `[K, 4]` of the photo in pixels of the square, cut off at its edges, int32.

        Also bool `[K]`: of which of them any part lies in it.
        """
        scale = np.array(self.resized * 2) / np.array(self.photo * 2)
        moved = boxes * scale - np.array(self.corner * 2)
        is_seen = (moved[:, 2:] > 0).all(axis=1) & (moved[:, :2] < self.size).all(axis=1)
        return np.clip(np.round(moved), 0, self.size).astype(np.int32), is_seen


@dataclass(frozen=True)
class Fit:
    """How photos become squares: `data.interpolation` and `data.center_crop`.

    Attributes:
        interpolation: Pillow's filter, antialiased.
        center_crop: the side of the central square that is seen, as a share of the photo's shorter
            side (timm's `crop_pct`), up to 1; 0: the whole photo is, squashed.
    """

    interpolation: Interpolation = "bilinear"
    center_crop: float = 0.0

    def frame(self, height: int, width: int, size: int) -> Frame:
        """Where the square of `size` pixels a side lies in a photo of height x width.

        With a central crop the shorter side becomes E = floor(size / center_crop), as timm has it,
        and the longer one floor(E * longer / shorter); the square begins at round((E - size) / 2),
        where a half is rounded to the even number, and likewise along the other side, both as
        torchvision's `Resize` and `CenterCrop`.
        """
        photo = height, width
        if not self.center_crop:
            return Frame(photo, (size, size), (0, 0), size)
        edge, shorter = math.floor(size / self.center_crop), min(photo)
        tall, wide = edge * height // shorter, edge * width // shorter
        corner = round((tall - size) / 2), round((wide - size) / 2)
        return Frame(photo, (tall, wide), corner, size)

    def square(self, image: Image.Image, size: int) -> np.ndarray:
        """The square of an RGB image, uint8 `[size, size, 3]`; see `frame` and `resized`."""
        if not self.center_crop:
            return resize(image, size, self.interpolation)
        frame = self.frame(image.height, image.width, size)
        (tall, wide), (top, left) = frame.resized, frame.corner
        if tall * wide > MOST_RESIZED:
            y, x = image.height / tall, image.width / wide
            box = (left * x, top * y, (left + size) * x, (top + size) * y)
            return np.array(image.resize((size, size), FILTERS[self.interpolation], box))
        whole = resized(image, tall, wide, self.interpolation)
        return np.array(whole.crop((left, top, left + size, top + size)))

    def changed(self) -> dict[str, Any]:
        """What is not as by default, so that what was made before there was a choice is known."""
        return {name: value for name, value in asdict(self).items() if value != _AS_EVER[name]}

    def described(self) -> str:
        """What is not as by default, in words that follow a size; else nothing."""
        changed = self.changed()
        said = [changed["interpolation"]] if "interpolation" in changed else []
        if self.center_crop:
            said.append(f"the central {self.center_crop:.4g} of the shorter side")
        return "".join(f", {words}" for words in said)


SQUASHED = Fit()
_AS_EVER = asdict(SQUASHED)
