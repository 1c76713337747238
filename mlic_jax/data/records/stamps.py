"""What a prepared set was made from, as its folder keeps it.

Of every file of annotations and every photo, size and times are kept, and a digest for where these
differ: a folder that was copied has other times and the same content. So checking a set reads no
photo that was left alone. Files are named relative to the root of their source, which may move.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlic_jax.data.image_files import is_image, read_image_file
from mlic_jax.data.records.reading import damaged
from mlic_jax.data.records.schema import Example, Source
from mlic_jax.data.transforms import Look
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text, npz
from mlic_jax.files.atomic import write_text, written_whole

ANNOTATIONS = "annotations.json"
# Of each example; see `npz.check`. Looks: height, width, orientation, extent (NaN: none), whole.
_AXES = {"image_ids": ("text", "N"), "stamps": ("integer", "N3"), "looks": ("float", "N6")}
_BYTES = ("files", "digests", "truths")


class Stamp(NamedTuple):
    """What tells without reading it that a file is the one it was; times in nanoseconds."""

    size: int
    modified: int
    changed: int  # of its inode: also where somebody has set the time of modification


ABSENT = Stamp(-1, 0, 0)  # also of what is no file


def stamp_of(path: str | bytes | os.PathLike[str]) -> Stamp:
    """The stamp of a file, `ABSENT` where there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return ABSENT
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def digest_of(content: bytes) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_of_file(path: str | bytes | os.PathLike[str]) -> str:
    """The digest of a file's content, "" where it cannot be read."""
    try:
        return digest_of(read_image_file(Path(os.fsdecode(path))))
    except (OSError, Failure):
        return ""


def truth_of(example: Example) -> str:
    """The digest of all that an example says beside its image."""
    boxes = example.boxes.astype(np.float64 if example.relative else np.int32)
    objects = (boxes, example.box_classes.astype(np.int32))
    parts = [array.tobytes() for array in (example.labels, *objects)]
    return digest_of(b"|".join([*parts, repr(example.size).encode()]))


class Photo(NamedTuple):
    """What is known of the image of an example."""

    file: bytes  # its name below the root of the source; b"" of an image that is no file
    stamp: Stamp
    digest: str  # of the encoded image; "" where it could not be read
    look: Look | None  # None: it could not be decoded


@dataclass(frozen=True)
class Made:
    """What the N examples of a split were made from, in their order, unreadable images too."""

    image_ids: np.ndarray  # str [N]
    truths: np.ndarray  # bytes [N], of `truth_of`
    files: np.ndarray  # bytes [N]; this and the rest see `Photo`
    stamps: np.ndarray  # int64 [N, 3]
    digests: np.ndarray  # bytes [N]
    looks: np.ndarray  # float64 [N, 6]; height 0: it could not be decoded

    @classmethod
    def of(cls, examples: Sequence[tuple[str, str, Photo]]) -> "Made":
        """Gathers what is known of each example: its id, `truth_of` it, and the photo."""
        image_ids, truths, photos = zip(*examples, strict=True) if examples else ((), (), ())
        count = len(photos)
        return cls(
            image_ids=np.array(image_ids, np.str_),
            truths=np.array(truths, np.bytes_),
            files=np.array([photo.file for photo in photos], np.bytes_),
            stamps=np.array([photo.stamp for photo in photos], np.int64).reshape(count, 3),
            digests=np.array([photo.digest for photo in photos], np.bytes_),
            looks=np.array([_numbers(photo.look) for photo in photos]).reshape(count, 6),
        )

    def photos(self) -> Iterable[Photo]:
        """What is known of each image."""
        rows = zip(
            self.files.tolist(),
            self.stamps.tolist(),
            self.digests.tolist(),
            self.looks.tolist(),
            strict=True,
        )
        for file, stamp, digest, numbers in rows:
            yield Photo(file, Stamp(*stamp), digest.decode(), _look(numbers))

    def save(self, path: Path) -> None:
        """Writes one `.npz`, whole: another process may be reading the earlier one."""
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))  # not packed: names alike could be to a thousandth

    @classmethod
    def load(cls, path: Path) -> "Made":
        """Raises Failure where there is no such file, or it is damaged."""
        fields = npz.read(path, "what a prepared split was made from")
        try:
            made = cls(**fields)
        except TypeError:
            raise Failure(f"{path.name} lacks what it should hold") from None
        npz.check(fields, _AXES, path.name)
        shape = (len(made.image_ids),)
        if any(fields[name].shape != shape or fields[name].dtype.kind != "S" for name in _BYTES):
            raise Failure(f"{path.name} holds arrays that do not fit together")
        return made

    def readable(self) -> "Made":
        """Those of the examples whose image could be decoded."""
        return Made(**{name: array[self.looks[:, 0] > 0] for name, array in vars(self).items()})

    def same_content(self, other: "Made", part: slice) -> bool:
        """Whether a part has the same examples, with the same images, labels and boxes."""
        return all(
            np.array_equal(getattr(self, name)[part], getattr(other, name)[part])
            for name in ("image_ids", "truths", "digests")
        )


def stamps_file(directory: Path, split: str) -> Path:
    """Where the `Made` of a split lies."""
    return directory / f"stamps_{split}.npz"


def root_of(source: Source) -> Path | None:
    """The folder that the files of a source lie in; None where it has none."""
    root = source.description.get("root")
    return Path(os.path.abspath(root)) if root else None


def name_below(root: Path | None, path: Path) -> bytes:
    """A path relative to the root, or absolute where it is not below it."""
    absolute = os.path.abspath(path)
    is_below = root is not None and _is_below(absolute, root)
    return os.fsencode(os.path.relpath(absolute, root) if is_below else absolute)


class Annotations(NamedTuple):
    """A file of annotations, or a folder whose images say something by their names."""

    file: str  # its name below the root of the source
    stamp: Stamp
    digest: str


def annotations_of(source: Source, noted: Sequence[Annotations] = ()) -> list[Annotations]:
    """The files of annotations as they are now; none is read whose stamp is as `noted`."""
    root = root_of(source)
    known = {earlier[:2]: earlier for earlier in noted}
    now = []
    for path in dict.fromkeys(source.annotation_files):
        key = os.fsdecode(name_below(root, path)), stamp_of(path)
        digest_now = _digest_of_names if path.is_dir() else digest_of_file
        now.append(known.get(key) or Annotations(*key, digest_now(path)))
    return now


def _digest_of_names(folder: Path) -> str:
    names = [os.fsencode(file.name) for file in folder.iterdir() if is_image(file)]
    return digest_of(b"\0".join(sorted(names)))


def write_annotations(directory: Path, annotations: list[Annotations] | None) -> None:
    """Notes what `annotations_of` gave."""
    write_text(directory / ANNOTATIONS, json.dumps(annotations))


def read_annotations(directory: Path) -> list[Annotations] | None:
    """What was noted of a prepared set; None: an earlier version noted nothing of its source.

    Raises:
        Failure: it is missing or damaged.
    """
    file = directory / ANNOTATIONS
    try:
        content = json_text.read(file)
        if content is None:
            return None
        return [Annotations(name, Stamp(*stamp), digest) for name, stamp, digest in content]
    except (UsageError, TypeError, ValueError) as error:
        raise damaged(directory, f"{file.name}: {error}") from None


def _is_below(path: str, root: Path) -> bool:
    return path == os.fspath(root) or path.startswith(os.path.join(root, ""))


def _numbers(look: Look | None) -> list[float]:
    if look is None:
        return [0.0] * 6
    return [look.height, look.width, look.orientation, *(look.extent or (np.nan,) * 2), look.whole]


def _look(numbers: list[float]) -> Look | None:
    height, width, orientation, least, greatest, whole = numbers
    if not height:
        return None
    extent = None if np.isnan(least) else (least, greatest)
    return Look(int(height), int(width), int(orientation), extent, bool(whole))
