"""Generated scenes: coloured shapes, cluttered, occluded, at every size, with boxes for all.

A multi-label set that needs no download. A label is a shape in a colour ("red star"). Scenes have
themes, so labels do not occur independently: a label graph of this set means something. Grey and
many-coloured clutter belongs to no class. Every image is a pure function of (seed, split, index).
"""

import dataclasses
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Example, RandomAccess
from mlic_jax.errors import UsageError

COLOURS = {
    "red": (214, 48, 44),
    "yellow": (236, 196, 38),
    "green": (48, 158, 72),
    "blue": (46, 92, 206),
}
SHAPES = ("disc", "ring", "star")
CLASS_NAMES = tuple(sorted(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))
SPLIT_SIZES = {"train": 3000, "val": 300, "test": 1000}

SIDES = (112, 160)  # of an image, pixels
OBJECTS = (2, 5)
OBJECT_SIDES = (0.14, 0.45)  # of the image's shorter side
CLUTTER = (1, 4)
SUPERSAMPLING = 2
# An object of which less than this share can be seen is not counted as present, nor as absent.
LEAST_VISIBLE = 0.35
NUM_THEMES = 6
OFF_THEME = 0.15


# The classes that each theme draws its objects from, int [NUM_THEMES, 4]; every class is in one.
_theme_rng = np.random.default_rng(20210)
_drawn = [_theme_rng.permutation(len(CLASS_NAMES)) for _ in range(2)]
THEMES = np.concatenate(_drawn)[: NUM_THEMES * 4].reshape(NUM_THEMES, 4)

_IS_INSIDE = [0] * 128 + [255] * 128  # a table for masks: half covered is inside


class Scenes:
    """The source of generated scenes, of the same form as every other set."""

    class_names = CLASS_NAMES
    annotation_files: tuple[Path, ...] = ()
    own_splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, name: str = "scenes", seed: int = 0, sizes: dict[str, int] | None = None):
        """Describes the set; images are rendered one by one when they are asked for.

        Args:
            name: of the prepared set.
            seed: another seed gives another set of the same kind.
            sizes: images of every split; default `SPLIT_SIZES`.
        """
        self.name = name
        self.seed = seed
        self.sizes = dict(SPLIT_SIZES if sizes is None else sizes)
        self.splits = tuple(self.sizes)
        self.description: dict[str, Any] = {"kind": "scenes", "seed": seed, "sizes": self.sizes}

    def examples(self, split: str) -> RandomAccess[Example]:
        """The scenes of a split, rendered on access."""
        return SceneSequence(self.seed, split, self.sizes[split])


@dataclasses.dataclass(frozen=True)
class SceneSequence(RandomAccess[Example]):
    """The scenes of one split."""

    seed: int
    split: str
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Example:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return render(self.seed, self.split, index)


def create(data: DataOptions) -> Scenes:
    """The source that the options describe.

    Raises:
        UsageError: `scenes_sizes` are not three positive numbers.
    """
    if len(data.scenes_sizes) != len(SPLIT_SIZES) or min(data.scenes_sizes) < 1:
        raise UsageError(
            f"data.scenes_sizes is {tuple(data.scenes_sizes)}; it must be the numbers of images "
            f"of {', '.join(SPLIT_SIZES)}, given once"
        )
    sizes = dict(zip(SPLIT_SIZES, data.scenes_sizes, strict=True))
    return Scenes(name=data.name, seed=data.scenes_seed, sizes=sizes)


@lru_cache(maxsize=8192)  # preparing a set asks for every image twice
def render(seed: int, split: str, index: int) -> Example:
    """One scene: a textured background, clutter, then objects in front of each other."""
    rng = np.random.default_rng([seed, int.from_bytes(split.encode(), "little"), index])
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
    canvas = _background(rng, height * SUPERSAMPLING, width * SUPERSAMPLING)
    for _ in range(rng.integers(*CLUTTER, endpoint=True)):
        _draw_clutter(rng, canvas)

    theme = THEMES[rng.integers(NUM_THEMES)]
    owner = Image.new("L", canvas.size)  # 1 + the number of the object seen at each pixel
    classes, areas, boxes = [], [], []
    for number in range(rng.integers(*OBJECTS, endpoint=True)):
        off_theme = rng.random() < OFF_THEME
        label = int(rng.integers(len(CLASS_NAMES)) if off_theme else rng.choice(theme))
        colour, shape = CLASS_NAMES[label].split()
        mask, corner = _place(rng, canvas.size, shape)
        canvas.paste(_texture(rng, COLOURS[colour], mask.size), corner, mask)
        owner.paste(number + 1, corner, mask.point(_IS_INSIDE, "1"))
        classes.append(label)
        areas.append(mask.point(_IS_INSIDE).histogram()[255])
        boxes.append(_bounding_box(mask, corner))

    labels = np.full(len(CLASS_NAMES), -1, np.int8)
    for label, area, seen in zip(classes, areas, owner.histogram()[1:], strict=False):
        labels[label] = max(labels[label], 1 if seen >= LEAST_VISIBLE * area else 0)
    return Example(
        image_id=f"{split}-{index:06d}",
        image=_encode(rng, canvas.resize((width, height), Image.Resampling.BOX)),
        labels=labels,
        boxes=np.array(boxes, np.int32),
        box_classes=np.array(classes, np.int32),
    )


def _encode(rng: np.random.Generator, image: Image.Image) -> bytes:
    """A noisy photograph of it, as JPEG."""
    noise = rng.normal(0, 6, (image.height, image.width, 1)).astype(np.float32)
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=92, subsampling=0)
    return encoded.getvalue()


def _background(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Soft colour patches: a few random pixels, enlarged."""
    coarse = rng.integers(60, 200, size=(rng.integers(2, 6), rng.integers(2, 6), 3))
    # Towards grey, so that a patch is no object's colour.
    coarse = (0.35 * coarse + 0.65 * coarse.mean(axis=-1, keepdims=True)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def _draw_clutter(rng: np.random.Generator, canvas: Image.Image) -> None:
    """A grey shape, or a line of any colour."""
    draw = ImageDraw.Draw(canvas)
    if rng.random() < 0.5:
        grey = int(rng.integers(30, 226))
        mask, corner = _place(rng, canvas.size, SHAPES[rng.integers(len(SHAPES))])
        canvas.paste((grey, grey, grey), corner, mask)
    else:
        ends = [tuple(int(v) for v in rng.uniform(0, canvas.size)) for _ in range(2)]
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.line(ends, fill=colour, width=int(rng.integers(1, 3)) * SUPERSAMPLING)


def _texture(
    rng: np.random.Generator, colour: tuple[int, int, int], size: tuple[int, int]
) -> Image.Image:
    """A shade of a colour in stripes of random contrast, which say nothing of the class."""
    shade = rng.uniform(0.7, 1.15) * np.array(colour) + rng.normal(0, 8, 3)
    stripes = np.sin(np.arange(size[0]) * rng.uniform(0.05, 0.5) + rng.uniform(0, 6))
    row = shade * (1 + rng.uniform(0, 0.2) * stripes[:, None])
    row = Image.fromarray(np.clip(row, 0, 255).astype(np.uint8)[None])
    return row.resize(size, Image.Resampling.NEAREST)


def _place(
    rng: np.random.Generator, canvas_size: tuple[int, int], shape: str
) -> tuple[Image.Image, tuple[int, int]]:
    """A shape's mask, at a random size and angle, and the corner where it lies fully inside."""
    shorter = min(canvas_size)
    low, high = np.log(OBJECT_SIDES)
    side = round(float(np.exp(rng.uniform(low, high))) * shorter)
    mask = _shape_mask(shape, side)
    if shape == "star":
        mask = mask.rotate(float(rng.uniform(-25, 25)), Image.Resampling.BILINEAR)
    x, y = (int(rng.integers(0, full - side + 1)) for full in canvas_size)
    return mask, (x, y)


def _shape_mask(shape: str, side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if shape == "disc":
        draw.ellipse((1, 1, side - 2, side - 2), fill=255)
    elif shape == "ring":
        draw.ellipse((1, 1, side - 2, side - 2), outline=255, width=max(2, side // 5))
    else:
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radius = np.where(np.arange(10) % 2 == 0, 0.49, 0.2) * side
        points = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radius[:, None] + side / 2
        draw.polygon([tuple(point) for point in points], fill=255)
    return mask


def _bounding_box(mask: Image.Image, corner: tuple[int, int]) -> tuple[int, int, int, int]:
    """(y1, x1, y2, x2) in image pixels, upper bounds exclusive, of a mask placed on the canvas."""
    x1, y1, x2, y2 = mask.point(_IS_INSIDE).getbbox() or (0, 0, 0, 0)
    return (
        (corner[1] + y1) // SUPERSAMPLING,
        (corner[0] + x1) // SUPERSAMPLING,
        -(-(corner[1] + y2) // SUPERSAMPLING),
        -(-(corner[0] + x2) // SUPERSAMPLING),
    )
