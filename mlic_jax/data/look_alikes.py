"""Images of different splits that look alike: a photo saved again, scaled, or taken a moment later.

Of each image 128 bits say in which of 8 x 8 places it becomes brighter to the right, and downwards
(a difference hash). Saving a photo of COCO again, scaling or darkening it changes 2 of them, and at
most 7 of 97 in 100 photos; other photos differ in 31 or more.
"""

import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

FEW = 7  # bits by which two that look alike may differ
_BANDS = [slice(start, start + 2) for start in range(0, 16, 2)]  # FEW + 1 of them, in bytes
_FLAT = 4.0  # standard deviation of the brightness, below which an image shows nothing
_ONES = np.array([byte.bit_count() for byte in range(256)])


def signature(encoded: bytes) -> bytes | None:
    """The 16 bytes of an image; None where it shows nothing, or cannot be decoded."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.draft("L", (64, 64))  # of a JPEG, an eighth of the pixels at best
            small = image.convert("L").resize((9, 9), Image.Resampling.BOX)
    except Exception:  # of broken files Pillow raises nearly anything
        return None
    pixels = np.asarray(small, np.int16)
    if pixels.std() < _FLAT:
        return None
    right, down = np.diff(pixels, axis=1)[:8] > 0, np.diff(pixels, axis=0)[:, :8] > 0
    return np.packbits(np.concatenate([right, down])).tobytes()


def differing_bits(one: bytes, other: bytes) -> int:
    """Of two signatures."""
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def pairs_across(signatures: Sequence[bytes | None], splits: Sequence[int]) -> dict[int, int]:
    """Which images look like one of an earlier split.

    Args:
        signatures: of N images.
        splits: [N], the number of the split of each.

    Returns:
        Image -> the one of an earlier split that differs in the fewest bits, at most `FEW`.
    """
    found: dict[int, tuple[int, int]] = {}
    split_of = np.asarray(splits)
    for band in _BANDS:  # in one of them two of at most FEW different bits are the same
        members = defaultdict(list)
        for i, bits in enumerate(signatures):
            if bits is not None:
                members[bits[band]].append(i)
        for group in members.values():
            if len(set(split_of[group])) > 1:
                _compare(np.array(group), signatures, split_of, found)
    return {image: other for image, (_, other) in sorted(found.items())}


def _compare(
    group: np.ndarray,
    signatures: Sequence[bytes | None],
    splits: np.ndarray,
    found: dict[int, tuple[int, int]],
) -> None:
    """Notes in `found`: image -> (bits, other)."""
    bits = np.array([list(signatures[i]) for i in group], np.uint8)
    for row, image in enumerate(group.tolist()):
        earlier = np.flatnonzero(splits[group] < splits[image])
        if not len(earlier):
            continue
        differing = _ONES[bits[earlier] ^ bits[row]].sum(axis=1)
        nearest = int(differing.argmin())
        pair = int(differing[nearest]), int(group[earlier[nearest]])
        if pair[0] <= FEW:
            found[image] = min(pair, found.get(image, pair))
