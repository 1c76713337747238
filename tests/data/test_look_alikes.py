"""Look-alikes are found whatever was done to a photo, and other photos are none."""

import io

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data.look_alikes import FEW, pairs_across, signature


def _photo(seed, size=(200, 150)):
    """Smooth shapes, as photos have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda photo: _encoded(photo, quality=40),
        lambda photo: _encoded(photo, "PNG"),
        lambda photo: _encoded(photo.resize((120, 90))),
        lambda photo: _encoded(photo.point(lambda value: int(0.9 * value))),
    ],
)
def test_what_was_done_to_a_photo_hides_it_from_nobody(change):
    photos = [_photo(seed) for seed in range(12)]
    signatures = [signature(_encoded(photo, quality=95)) for photo in photos]
    changed = [signature(change(photo)) for photo in photos]
    found = pairs_across(signatures + changed, [0] * 12 + [1] * 12)
    assert found == {12 + i: i for i in range(12)}
    assert pairs_across(signatures + changed, [0] * 24) == {}  # all in one split


def test_pairs_against_comparing_every_two():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (40, 16), np.uint8)
    copies = bits.copy()
    for i, row in enumerate(copies):
        for place in rng.choice(128, i % 8, replace=False):
            row[place // 8] ^= 1 << (place % 8)
    signatures = [row.tobytes() for row in np.concatenate([bits, copies])] + [None]
    found = pairs_across(signatures, [0] * 40 + [1] * 40 + [2])
    assert found == {40 + i: i for i in range(40) if i % 8 <= FEW}


def test_what_shows_nothing_looks_like_nothing():
    assert signature(_encoded(Image.new("RGB", (50, 40), (9, 9, 9)))) is None
    assert signature(b"broken") is None
