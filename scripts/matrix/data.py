"""What runs of a matrix read: digests that tell whether it is still the same.

Cells of earlier commands are compared with those of later ones, and in between people correct
labels, or put other photos and weights under the same paths.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.data.records.stamps import digest_of, digest_of_file
from mlic_jax.features.store import digest_of_photos

# Options that name a file, or a folder of files, beside the set.
FILES = ("init_from", "data.label_graph", "data.word_vectors", "data.label_tree")


class Digests:
    """The digests of configurations; sets and files that several have are read once."""

    def __init__(self) -> None:
        self._splits: dict[str, dict[str, str]] = {}
        self._files: dict[str, str] = {}

    def __call__(self, config: ConfigDict) -> dict[str, str]:
        """Of each split, by its role, and of each of `FILES` that there is, by its option.

        A set is prepared first where need be.

        Raises:
            UsageError, Failure: see `sources.open_splits`.
        """
        about = config.data.to_json()
        if about not in self._splits:
            splits = sources.open_splits(DataOptions.of(config.data))
            self._splits[about] = {role: _of_split(split) for role, split in splits.items()}
        return self._splits[about] | self._of_files(config)

    def _of_files(self, config: ConfigDict) -> dict[str, str]:
        found = {}
        for option in FILES:
            if (path := config[option]) and Path(path).exists():
                if path not in self._files:
                    self._files[path] = _of_path(Path(path))
                found[option] = self._files[path]
        return found


def _of_split(split: Split) -> str:
    """Of its labels, of what its photos are called, and of the photos."""
    ids = "\0".join(split.image_id(i) for i in range(len(split)))
    parts = [split.labels().tobytes(), ids.encode(), digest_of_photos(split).encode()]
    return digest_of(b"\0".join(parts))


def _of_path(path: Path) -> str:
    """Of a file, or of all in a folder, and of their names there."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    parts = [f"{file.relative_to(path)} {digest_of_file(file)}" for file in files]
    return digest_of("\n".join(parts).encode())
