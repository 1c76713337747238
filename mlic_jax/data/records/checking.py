"""Whether every image of a source is readable, and a journal of those that are.

The journal is what a killed run goes on from. What an earlier set noted serves the same way: an
image is decoded once, and again only when its content is another.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from mlic_jax.data import transforms
from mlic_jax.data.image_files import printable, read_image_file
from mlic_jax.data.records.schema import Example, Source
from mlic_jax.data.records.stamps import (
    ABSENT,
    Made,
    Photo,
    Stamp,
    digest_of,
    name_below,
    stamp_of,
    truth_of,
)
from mlic_jax.data.transforms import Look
from mlic_jax.errors import Failure

T = TypeVar("T")


@dataclass
class Scan:
    """What is known of a split before it is written: its readable images in order, and the rest."""

    positions: list[int] = field(default_factory=list)  # in source.examples(split)
    image_ids: list[str] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)  # of the encoded images
    looks: list[Look] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # "image id (path)" -> what is wrong
    every: list[tuple[str, str, Photo]] = field(default_factory=list)  # all, see `Made.of`

    @cached_property
    def made(self) -> Made:
        """What the split is made from; to be asked for when all images were looked at."""
        return Made.of(self.every)


class Journal:
    """The images found readable: a JSON line `[file, stamp, digest, look]` each."""

    def __init__(self, path: Path, root: Path | None):
        """Reads what an earlier run noted; `root` is the source's."""
        self._path, self._root = path, root
        self._lock = threading.Lock()
        self._digests: dict[tuple[bytes, Stamp], str] = {}
        self._looks: dict[str, Look] = {}
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            # A line that was cut short by a kill, or damaged.
            with contextlib.suppress(ValueError, TypeError, RecursionError, AttributeError):
                file, stamp, digest, (height, width, orientation, extent, whole) = json.loads(line)
                look = Look(height, width, orientation, extent and tuple(extent), whole)
                self._know(Photo(file.encode("latin-1"), Stamp(*stamp), digest, look), look)
        self._count = len(self._looks)

    def __enter__(self) -> "Journal":
        self._file = self._path.open("a")
        self._file.write("\n")  # ends a line that was cut short
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        """The number of different images that an earlier run noted."""
        return self._count

    def learn(self, made: Made) -> None:
        """Takes over what an earlier set noted."""
        for photo in made.photos():
            if photo.look is not None:
                self._know(photo, photo.look)

    def photo(self, image: bytes | Path) -> tuple[Photo, str]:
        """What is known of an image, which is decoded unless that was done before.

        Returns:
            That, and what is wrong with it: "" where it is readable.
        """
        name, stamp = b"", ABSENT
        if isinstance(image, Path):
            name, stamp = name_below(self._root, image), stamp_of(image)
            digest = self._digests.get((name, stamp))
            if digest is not None:
                return Photo(name, stamp, digest, self._looks[digest]), ""
        unread = Photo(name, stamp, "", None)
        try:
            content = image if isinstance(image, bytes) else read_image_file(image)
            unread = unread._replace(digest=digest_of(content))
            if unread.digest in self._looks and not name:
                return unread._replace(look=self._looks[unread.digest]), ""
            look = self._looks.get(unread.digest) or transforms.look(content)
        except OSError as error:
            return unread, error.strerror or str(error)
        except Failure as failure:
            return unread, str(failure)
        photo = unread._replace(look=look)
        self._note(photo, look)
        return photo, ""

    def _note(self, photo: Photo, look: Look) -> None:
        with self._lock:
            self._know(photo, look)
            line = [photo.file.decode("latin-1"), photo.stamp, photo.digest, look]
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def _know(self, photo: Photo, look: Look) -> None:
        self._looks[photo.digest] = look
        if photo.file:
            self._digests[photo.file, photo.stamp] = photo.digest


def scan_split(source: Source, split: str, journal: Journal, workers: int) -> Scan:
    """Looks at every image of a split, in `workers` threads."""
    examples = source.examples(split)
    scan = Scan()

    def check(position: int) -> tuple[Example, str, Photo, str]:
        example = examples[position]
        return example, truth_of(example), *journal.photo(example.image)

    checked = tqdm(
        _in_threads(check, len(examples), workers),
        f"check {source.name} {split}",
        len(examples),
        unit=" images",
        mininterval=1,
    )
    for position, (example, truth, photo, reason) in enumerate(checked):
        scan.every.append((example.image_id, truth, photo))
        if photo.look is None:
            name = example.image_id
            if isinstance(example.image, Path):
                name += f" ({printable(example.image)})"
            scan.unreadable[name] = reason
            continue
        scan.positions.append(position)
        scan.image_ids.append(example.image_id)
        scan.labels.append(example.labels)
        scan.digests.append(photo.digest)
        scan.looks.append(photo.look)
    return scan


def _in_threads(function: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """`function` of 0, 1, ... in order; what has not begun when the caller stops is not done."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(function, range(count))
        finally:
            pool.shutdown(cancel_futures=True)
