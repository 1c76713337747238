"""Where a model looks, beside where the objects are: the pointing game, overlap, and energy.

All of a present class at a time, in the square that the model sees. Three measures of its region
and of the class map that this was found on, each in [0, 1]:

- `pointing`: whether the peak of the map lies in a true box of the class (Zhang et al., ECCV 2016,
  arXiv 1608.00507, without its tolerance); of several equal peaks, their share;
- `iou`: of the region and the box of the class that it overlaps best;
- `energy`: the share of the map that lies in the boxes of the class (Wang et al., CVPRW 2020,
  arXiv 1910.01279).

Each position of a map stands for its share of the square, and its peak is in the middle of that; in
between a map is upsampled bilinearly (as Pillow and OpenCV do; regions are found, as MCAR was
released, with the corners on those of the square, which would put the peaks of a small map on the
edges). Beside the model stand two that do not look: `random`, the expectation of a point
anywhere, of a region of the same size anywhere and of a map that is the same everywhere; and
`central`, the middle of the square, the region of the same size there and a map that is flat in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# COCO's 32 x 32 and 96 x 96 pixels as shares of a photo of 640 x 480: what is smaller than the
# first is small, what is at least as large as the second is large.
MEDIUM, LARGE = 1 / 300, 3 / 100
SIZES = ("small", "medium", "large")
MEASURES = ("pointing", "iou", "energy")
LOOKERS = ("model", "random", "central")

# A region at random is put at so many places at most, evenly, along each side of the square.
_PLACES = 16

Objects = tuple[np.ndarray, np.ndarray]  # of an image: boxes int [K, 4], classes int [K]


@dataclass(frozen=True)
class Looks:
    """A row for each class of an image that is present there and has a box; P rows.

    Attributes:
        images, classes: int [P].
        shares: float [P], of the square that the largest box of the class takes.
        has_region: bool [P], whether the class has a region in the image.
        figures: of each measure and each of `LOOKERS`, float [P], NaN where there is no region;
            of a model without maps `iou` alone.
    """

    images: np.ndarray
    classes: np.ndarray
    shares: np.ndarray
    has_region: np.ndarray
    figures: Mapping[str, Mapping[str, np.ndarray]]


def size_of(shares: np.ndarray) -> np.ndarray:
    """Which of `SIZES` a box has, int, from its share of the picture, of any shape."""
    return np.digitize(shares, (MEDIUM, LARGE))


def localise(
    labels: np.ndarray,
    objects: Sequence[Objects],
    image_size: int,
    boxes: np.ndarray | None,
    box_classes: np.ndarray | None,
    class_maps: np.ndarray | None = None,
) -> Looks:
    """Measures the regions of N images; the labels that are not +1 do not count.

    Args:
        labels: [N, C] in {+1, 0, -1}.
        objects: of each image the true boxes (y1, x1, y2, x2; upper bounds exclusive) in pixels of
            the square, and their classes.
        image_size: S, of a side of the square.
        boxes: int [N, T, 4], the regions; None: the model has none.
        box_classes: int [N, T], their classes, in an image none twice.
        class_maps: float [N, T, h, w], at least 0.
    """
    measures = MEASURES if class_maps is not None else ("iou",)
    rows: list[tuple[int, int, float, Mapping[str, Sequence[float]] | None]] = []
    for i, (of_image, classes) in enumerate(objects):
        for c in np.unique(classes):
            own = of_image[classes == c]
            if labels[i, c] <= 0 or not len(own):
                continue
            sides = own[:, 2:] - own[:, :2]
            share = float(sides.prod(axis=1).max()) / image_size**2
            found = None
            if boxes is not None and box_classes is not None:
                for k in np.flatnonzero(box_classes[i] == c)[:1]:
                    class_map = None if class_maps is None else class_maps[i, k]
                    found = measure(boxes[i, k], own, image_size, class_map)
            rows.append((i, int(c), share, found))
    missing = (np.nan,) * len(LOOKERS)
    return Looks(
        images=np.array([i for i, *_ in rows], np.int64),
        classes=np.array([c for _, c, *_ in rows], np.int64),
        shares=np.array([share for *_, share, _ in rows], np.float64),
        has_region=np.array([found is not None for *_, found in rows], bool),
        figures={
            name: {
                who: np.array([missing[w] if f is None else f[name][w] for *_, f in rows], float)
                for w, who in enumerate(LOOKERS)
            }
            for name in measures
        },
    )


def measure(
    region: np.ndarray, boxes: np.ndarray, image_size: int, class_map: np.ndarray | None = None
) -> dict[str, tuple[float, float, float]]:
    """The figures of one region, of each of `LOOKERS`; see the module.

    Args:
        region: int [4], not empty.
        boxes: int [K, 4], the true ones of its class, K at least 1.
        image_size: S.
        class_map: float [h, w], at least 0; without it there is `iou` alone.
    """
    height, width = (int(side) for side in region[2:] - region[:2])
    middle = ((image_size - height) // 2, (image_size - width) // 2)
    everywhere = (_places(image_size - height), _places(image_size - width))
    overlaps = [
        overlap(tops, lefts, (height, width), boxes)
        for tops, lefts in (region[:2, None], everywhere, np.array(middle)[:, None])
    ]
    figures = {"iou": tuple(float(values.mean()) for values in overlaps)}
    if class_map is not None:
        inside = np.zeros((image_size, image_size), bool)
        for y1, x1, y2, x2 in boxes:
            inside[y1:y2, x1:x2] = True
        share = float(inside.mean())
        y, x = middle
        in_middle = float(inside[y : y + height, x : x + width].mean())
        centre = float(inside[image_size // 2, image_size // 2])
        figures["pointing"] = (_pointed(class_map, inside), share, centre)
        figures["energy"] = (_energy(class_map, inside), share, in_middle)
    return figures  # type: ignore[return-value] # three values each


def overlap(
    tops: np.ndarray, lefts: np.ndarray, size: tuple[int, int], boxes: np.ndarray
) -> np.ndarray:
    """Of regions of one size at every top and left, the IoU with the box that each overlaps best.

    Args:
        tops: int [Y]; lefts: int [X].
        size: (height, width).
        boxes: int [K, 4].

    Returns:
        float64 [Y, X].
    """
    down, across = (
        np.minimum(at[:, None] + side, boxes[:, high]) - np.maximum(at[:, None], boxes[:, low])
        for at, side, low, high in ((tops, size[0], 0, 2), (lefts, size[1], 1, 3))
    )
    common = np.maximum(down, 0)[:, None] * np.maximum(across, 0)[None]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return (common / (size[0] * size[1] + areas - common)).max(axis=-1)


def _places(free: int) -> np.ndarray:
    """Where a region is put along a side of which it leaves so many pixels free."""
    return np.round(np.linspace(0, free, min(_PLACES, free + 1))).astype(np.int64)


def _pointed(class_map: np.ndarray, inside: np.ndarray) -> float:
    """The share of the peaks of a map [h, w] that lie `inside`, bool [S, S]."""
    peaks = np.argwhere(class_map == class_map.max())
    y, x = ((2 * peaks + 1) * len(inside) // (2 * np.array(class_map.shape))).T
    return float(inside[y, x].mean())


def _energy(class_map: np.ndarray, inside: np.ndarray) -> float:
    """The share of an upsampled map [h, w] that lies `inside`, bool [S, S]; 0 of an empty map.

    The fine map is never built: what each position gives to the pixels inside is summed.
    """
    rows, columns = (_upsampling(length, len(inside)) for length in class_map.shape)
    within = rows.T @ inside @ columns
    whole = np.outer(rows.sum(axis=0), columns.sum(axis=0))
    class_map = class_map.astype(np.float64)
    total = float((whole * class_map).sum())
    return float((within * class_map).sum()) / total if total > 0 else 0.0


def _upsampling(coarse: int, fine: int) -> np.ndarray:
    """Bilinear weights float64 [fine, coarse], constant beyond the outermost middles."""
    places = np.clip((np.arange(fine) + 0.5) * (coarse / fine) - 0.5, 0, coarse - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(coarse)))


def summarise_looks(looks: Looks, class_names: Sequence[str]) -> dict[str, Any]:
    """The means in percent, as JSON holds them: over all, `by_size` and `by_class`.

    Of each: `objects`, how many classes of images have boxes; `regions`, of how many of them the
    model has a region, which the means are over; and of each measure that there is a mean of each
    of `LOOKERS`, None where there is no region.
    """
    sizes = size_of(looks.shares)
    return {
        **_means(looks, np.ones(len(sizes), bool)),
        "by_size": {name: _means(looks, sizes == k) for k, name in enumerate(SIZES)},
        "by_class": {name: _means(looks, looks.classes == c) for c, name in enumerate(class_names)},
    }


def _means(looks: Looks, rows: np.ndarray) -> dict[str, Any]:
    counted = rows & looks.has_region
    has_any = bool(counted.any())
    return {
        "objects": int(rows.sum()),
        "regions": int(counted.sum()),
        **{
            measure: {
                who: 100 * float(values[counted].mean()) if has_any else None
                for who, values in of.items()
            }
            for measure, of in looks.figures.items()
        },
    }
