"""Photos of a set that look alike, and lie in different splits or have different labels."""

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mlic_jax.data import look_alikes
from mlic_jax.data.records import Split
from mlic_jax.files.atomic import write_text, written_whole

COLUMNS = ("photo", "split", "other", "other_split", "bits", "differing", "picture")
SIDE, GAP = 256, 8  # pixels, of a picture and between two
MOST_PICTURES = 1000


class Pair(NamedTuple):
    """Two photos that look alike; each is (number of its split, position in it).

    Attributes:
        photo, other: of which `other` is the earlier one.
        bits: of 128 that differ; 0 of the same photo.
        differing: the classes that one shows and the other lacks.
    """

    photo: tuple[int, int]
    other: tuple[int, int]
    bits: int
    differing: tuple[int, ...]


def find_pairs(splits: Sequence[Split]) -> list[Pair]:
    """Pairs across splits, and pairs within one whose labels differ; the most alike first.

    Of every photo the most alike of those before it, and of those of earlier splits. A label that
    is unknown for one of two does not differ.
    """
    photos = [(number, i) for number, split in enumerate(splits) for i in range(len(split))]
    bar = tqdm(photos, "look for photos that are alike", unit=" images", leave=False)
    signatures = [look_alikes.signature(splits[number][i].image) for number, i in bar]
    of_split = [number for number, _ in photos]
    found = {
        pair
        for numbers in (range(len(photos)), of_split)
        for pair in look_alikes.pairs_across(signatures, numbers).items()
    }
    labels = np.concatenate([split.labels() for split in splits])
    pairs = []
    for photo, other in sorted(found):
        differing = np.flatnonzero(labels[photo] * labels[other] < 0).tolist()
        if differing or of_split[photo] != of_split[other]:
            one, two = signatures[photo], signatures[other]
            assert one and two, "what shows nothing is like nothing"
            bits = look_alikes.differing_bits(one, two)
            pairs.append(Pair(photos[photo], photos[other], bits, tuple(differing)))
    return sorted(pairs, key=lambda pair: pair.bits)


def write_pairs(pairs: Sequence[Pair], splits: Sequence[Split], folder: Path) -> None:
    """Writes `look_alikes.csv`, and of the first pairs small pictures, `look_alikes/0001.jpg`.

    Pictures of before are removed.
    """
    shutil.rmtree(folder / "look_alikes", ignore_errors=True)
    names = splits[0].class_names
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for number, pair in enumerate(pairs, 1):
        picture = f"look_alikes/{number:04}.jpg" if number <= MOST_PICTURES else ""
        if picture:
            with written_whole(folder / picture) as partial:
                side_by_side(pair, splits).save(partial, "JPEG", quality=85)
        (first, photo), (second, other) = pair.photo, pair.other
        writer.writerow(
            (
                *(splits[first].image_id(photo), splits[first].split),
                *(splits[second].image_id(other), splits[second].split),
                pair.bits,
                "|".join(names[c] for c in pair.differing),
                picture,
            )
        )
    write_text(folder / "look_alikes.csv", table.getvalue())


def side_by_side(pair: Pair, splits: Sequence[Split]) -> Image.Image:
    """The two photos of a pair, made small, on white."""
    small = []
    for number, position in (pair.photo, pair.other):
        image = splits[number].decode(splits[number][position])
        image.thumbnail((SIDE, SIDE))
        small.append(image)
    picture = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    for left, image in zip((0, SIDE + GAP), small, strict=True):
        picture.paste(image, (left + (SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return picture
