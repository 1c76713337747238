"""Small images and sources made on the spot, for the tests of the data package."""

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlic_jax.config import default_config
from mlic_jax.data import records, sources
from mlic_jax.data.detect import detect, roles_of
from mlic_jax.data.options import DataOptions


def _jpeg(seed: int, width: int = 24, height: int = 18) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def jpeg():
    """jpeg(seed, width, height) -> the bytes of a JPEG of noise."""
    return _jpeg


@dataclasses.dataclass
class _ToySource:
    """A source that holds its examples in memory."""

    name: str
    contents: dict[str, list[records.Example]]
    class_names: tuple[str, ...] = ("ant", "bee", "cat")
    description: dict = dataclasses.field(default_factory=lambda: {"kind": "toy"})
    annotation_files: tuple = ()
    own_splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def splits(self):
        return tuple(self.contents)

    def examples(self, split):
        return self.contents[split]


@pytest.fixture(scope="session")
def toy_example():
    """toy_example(i) -> an Example with a JPEG of its own size, labels and 0 to 2 boxes."""

    def make(i: int, **changes) -> records.Example:
        example = records.Example(
            image_id=f"photo{i}",
            image=_jpeg(i, width=20 + i % 5, height=16 + i % 3),
            labels=np.array([(i % 3) - 1, 1, -1], np.int8),
            boxes=np.array([[1, 2, 5, 8], [0, 0, 16, 20]], np.int32)[: i % 3],
            box_classes=np.array([1, 2], np.int32)[: i % 3],
        )
        return dataclasses.replace(example, **changes)

    return make


@pytest.fixture(scope="session")
def toy_source(toy_example):
    """toy_source(name, train=10, val=4) -> a source with so many examples a split."""

    def make(name: str = "toy", **sizes: int) -> _ToySource:
        sizes = sizes or {"train": 10, "val": 4}
        contents = {split: [toy_example(i) for i in range(n)] for split, n in sizes.items()}
        return _ToySource(name, contents)

    return make


@pytest.fixture(scope="session")
def toy_split(toy_source, tmp_path_factory):
    """A prepared split of ten images."""
    folder = records.prepare(toy_source(train=10), tmp_path_factory.mktemp("prepared"))
    return records.open_split(folder, "train")


@pytest.fixture
def plant(tmp_path):
    """plant({name: text or bytes}, photos=[names]) -> a folder of these files."""

    def make(files=(), photos=()):
        for i, name in enumerate(photos):
            _write(tmp_path / "data" / name, _jpeg(i, 8, 8))
        for name, content in dict(files).items():
            _write(
                tmp_path / "data" / name,
                content.encode() if isinstance(content, str) else content,
            )
        return tmp_path / "data"

    return make


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


class OwnData:
    """What is read of own data: the layout, the source, and the labels of every photo.

    `labels` is file -> the names of its labels, those that are unknown with a `?`; `of` has the
    same of one split.
    """

    def __init__(self, folder, annotations=None, format=None, **told):
        annotations = annotations and str(folder / annotations)
        self.layout = detect(str(folder), annotations, format, told)
        data = default_config().data
        data.update({"source": self.layout.format, "name": "mine", **self.layout.options})
        with data.unlocked():
            data.splits = {}
            self.own_splits = sources.create(DataOptions.of(data)).own_splits
            data.splits = roles_of(self.own_splits)
        self.source = sources.create(DataOptions.of(data))
        self.of = {split: dict(self._labels(split, folder)) for split in self.source.splits}
        self.labels = {file: names for part in self.of.values() for file, names in part.items()}
        self.notes = "\n".join((*self.layout.notes, *getattr(self.source, "notes", ())))

    def _labels(self, split, folder):
        for example in self.source.examples(split):
            assert example.image.is_file(), example.image
            names = zip(self.source.class_names, example.labels, strict=True)
            shown = {name if label else f"{name}?" for name, label in names if label >= 0}
            file = Path(os.path.normpath(example.image))
            yield file.relative_to(folder).as_posix(), shown


@pytest.fixture
def read_own():
    """read_own(folder, annotations, format, **options) -> an `OwnData`."""
    return OwnData
