"""The features of a split: what a head needs of every view of every photo, in files of rows.

A store is a folder `<prepared set>.features/<split>-<digest>`, where the digest is of all that the
features follow from: the backbone's weights and options, the photos, how they become what the
backbone sees, and the type of number. So nothing is ever read for anything else, and whatever has
all that in common shares a store: runs with other heads and rates, and their evaluations. Each view
has a file a feature, `view3.maps`; of a model that looks at regions also one of the pixels that
these are cut out of, and all views share the file of regions, see `regions.py`. `about.json` says
what a store is of. It may be deleted at any time.
"""

import collections
import contextlib
import fcntl
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from mlic_jax.data import pipeline, transforms
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.data.records.stamps import Made, digest_of, stamps_file
from mlic_jax.errors import Failure, UsageError
from mlic_jax.features.options import FeatureOptions
from mlic_jax.files.atomic import write_text
from mlic_jax.files.rows import Rows, reserve, said_size
from mlic_jax.models.options import ModelOptions
from mlic_jax.models.precision import in_precision
from mlic_jax.runtime import compilation, devices
from mlic_jax.runtime.checkpoint import digest_of_arrays

logger = logging.getLogger(__name__)

AT_ONCE = 32  # photos that go through the backbone together, at least
MOST_PIXELS = 2**28  # bytes of the views that are made of a group of photos at once
PIXELS = "pixels"  # of a view, uint8 [S, S, 3]

Batch = dict[str, jax.Array]
Seen = dict[str, np.ndarray]


@dataclass(frozen=True)
class Views:
    """Some views of photos: how they become what a backbone sees.

    Attributes:
        count: V.
        inputs: images uint8 `[B, S, S, 3]`, their views and their positions in the split, int32
            `[B]`, to what the model takes.
        crop: what `pipeline.chosen` takes of the geometry, by name.
        training: whether the backbone is as precise as in training, see `in_precision`.
        origin: what decides all this, as JSON holds it.
        look: the method of the model that gives what is kept of what it takes.
    """

    count: int
    inputs: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    crop: Mapping[str, Any]
    training: bool
    origin: Mapping[str, Any]
    look: str = "look"


@dataclass(frozen=True)
class Backbone:
    """The backbone of a model, which stays as it is.

    Attributes:
        model: whose it is.
        options: of the model.
        mesh: the devices.
        weights: on all of them.
        digest: of the weights.
    """

    model: nn.Module
    options: ModelOptions
    mesh: Mesh
    weights: Mapping[str, Any]
    digest: str

    @classmethod
    def of(
        cls, model: nn.Module, variables: Mapping[str, Any], options: ModelOptions, mesh: Mesh
    ) -> "Backbone":
        """That of a model with these variables."""
        weights = {
            collection: {"features": jax.device_get(variables[collection]["features"])}
            for collection in ("params", "batch_stats")
            if "features" in variables[collection]  # not every backbone has statistics
        }
        digest = digest_of_arrays(weights)
        weights = devices.lay_out(weights, devices.replicated(mesh))
        return cls(model, options, mesh, weights, digest)

    def compiled(
        self, name: str, look: Callable[..., Batch], views: Views, batch: Any
    ) -> Callable[..., Batch]:
        """`look`, (weights, batch) -> features, as a program: batch -> features on every device."""

        def run(weights: Mapping[str, Any], batch: Batch) -> Batch:
            with in_precision(self.options.precision, views.training):
                return look(weights, batch)

        jitted = compilation.jit(run, out_shardings=devices.replicated(self.mesh))
        program = compilation.compile_ahead(name, jitted, self.weights, batch)
        return lambda rows: program(self.weights, devices.to_devices(rows, self.mesh))


class Store:
    """The features of every view of every photo of a split.

    Attributes:
        folder: where they are.
        backbone: what made them.
        views: the V views.
        shapes: of each feature of a photo, as it is on disk.
    """

    def __init__(
        self,
        backbone: Backbone,
        split: Split,
        views: Views,
        data: DataOptions,
        options: FeatureOptions,
    ):
        """Opens the store of a split and computes what is not there, or is damaged.

        A line says where it is and how long that took; what is killed here goes on where it was.

        Raises:
            UsageError: there are several processes.
            Failure: an image cannot be read, the disk is too small, or it refuses something.
        """
        if jax.process_count() > 1:
            raise UsageError("features.store is for one process: leave it, or the other processes")
        self.backbone, self.views, self.split = backbone, views, split
        self.image_size, self._data = data.image_size, data
        self.dtype = options.dtype
        self._at_once = AT_ONCE + -AT_ONCE % backbone.mesh.size
        shapes = jax.eval_shape(self._look, backbone.weights, self.abstract_images(self._at_once))
        self.shapes = {
            name: jax.ShapeDtypeStruct(of.shape[1:], self.on_disk(of.dtype))
            for name, of in shapes.items()
        }
        about = self._about()
        name = digest_of(json.dumps(about, sort_keys=True).encode())[:16]
        directory = Path(split.directory)
        self.folder = directory.with_name(f"{directory.name}.features") / f"{split.split}-{name}"
        with _alone_in(self.folder):
            if not (self.folder / "about.json").exists():  # which may lie where nobody may write
                write_text(self.folder / "about.json", json.dumps(about, indent=1))
            self._rows = [self._open_view(view) for view in range(views.count)]
            self._complete()

    def on_disk(self, dtype: Any) -> np.dtype:
        """The type on disk of what is computed in another."""
        return np.dtype(self.dtype if dtype == jnp.float32 else dtype)

    def batches(self, order: Iterable[dict[str, np.ndarray]]) -> Generator[dict[str, Any]]:
        """The batches of `pipeline.order`, each with the features of its rows, as `seen`."""
        for batch in order:
            yield batch | {"seen": self.read(tuple(self.shapes), batch["view"], batch["index"])}

    def abstract_batch(self, rows: int, num_classes: int) -> dict[str, Any]:
        """What `batches` yields of so many rows, on the devices, without its values."""
        batch: dict[str, Any] = devices.abstract_batch(self.backbone.mesh, rows, 1, num_classes)
        by_rows = batch.pop("image").sharding
        seen = {
            name: jax.ShapeDtypeStruct((rows, *of.shape), of.dtype, sharding=by_rows)
            for name, of in self.shapes.items()
        }
        return batch | {"view": batch["index"], "seen": seen}

    def abstract_images(self, rows: int) -> dict[str, Any]:
        """Images with their views and their positions, on the devices, without their values."""
        batch = devices.abstract_batch(self.backbone.mesh, rows, self.image_size, 1)
        return {"image": batch["image"], "view": batch["index"], "index": batch["index"]}

    def read(self, names: tuple[str, ...], view: np.ndarray, index: np.ndarray) -> Seen:
        """Some features, or `PIXELS`, of rows `[B]` by their view and photo; of padding 0.

        Raises:
            Failure: a row is no longer there.
        """
        found = {}
        for name in names:
            of = self._rows[0][name]
            found[name] = np.zeros((len(index), *of.shape), of.dtype)
            for row in np.flatnonzero(index >= 0):
                rows = self._rows[view[row]][name]
                if not rows.read(int(index[row]), found[name][row]):
                    raise Failure(f"{rows.path} was changed meanwhile: start again")
        return found

    def _about(self) -> dict[str, Any]:
        """All that the features follow from."""
        backbone = self.backbone.options
        return {
            "features": {name: f"{of.dtype} {of.shape}" for name, of in self.shapes.items()},
            "weights": self.backbone.digest,
            "backbone": f"{backbone.backbone} {backbone.width:g} {backbone.dtype}",
            "precision": [backbone.precision, self.views.training, jax.default_backend()],
            "photos": digest_of_photos(self.split),
            "decoding": [self.split.upright, self.split.value_range, *transforms.versions()],
            "image_size": self.image_size,
            "views": dict(self.views.origin),
        }

    def _open_view(self, view: int) -> dict[str, Rows]:
        shapes = dict(self.shapes)
        if hasattr(self.backbone.model, "look_at_regions"):
            square = (self.image_size, self.image_size, 3)
            shapes[PIXELS] = jax.ShapeDtypeStruct(square, jnp.uint8)
        return {
            name: Rows(self.folder / f"view{view}.{name}", len(self.split), of.shape, of.dtype)
            for name, of in shapes.items()
        }

    def _look(self, weights: Mapping[str, Any], batch: Batch) -> Batch:
        images = self.views.inputs(batch["image"], batch["view"], batch["index"])
        apply: Callable[..., Any] = self.backbone.model.apply
        return apply(weights, images, method=self.views.look)

    def _complete(self) -> None:
        """Computes what is missing, and says so."""
        missing = [_union(rows.missing() for rows in of_view.values()) for of_view in self._rows]
        files = [rows for of_view in self._rows for rows in of_view.values()]
        damaged = sum(rows.damaged for rows in files)
        what = f"features of {len(self.split):,} photos ({self.split.name} {self.split.split})"
        if damaged:
            logger.warning("%d rows of the %s are damaged: computed anew", damaged, what)
        count = sum(map(len, missing))
        if count:
            size = sum(
                len(photos) * sum(rows.row_size for rows in of_view.values())
                for photos, of_view in zip(missing, self._rows, strict=True)
            )
            reserve(self.folder, size, f"the {what}")
            seconds = self.compute(missing)
            rate = f"{count} views in {seconds:.1f} s, {count / max(seconds, 1e-9):.1f} a second"
            logger.info("Computed the %s: %s", what, rate)
        size = sum(rows.row_size for rows in files) * len(self.split)
        logger.info("The %s are in %s, %s", what, self.folder, said_size(size))

    @functools.cached_property
    def look(self) -> Callable[[Batch | Seen], Batch]:
        """The program: images with their views and positions, as `abstract_images`, to features."""
        images = self.abstract_images(self._at_once)
        return self.backbone.compiled("the pass over the photos", self._look, self.views, images)

    def compute(self, missing: Sequence[np.ndarray]) -> float:
        """Computes the features of some photos of each view and keeps them; gives the seconds.

        In groups that do not depend on what is there, so that a photo always has the same
        neighbours and a pass that was killed ends in the very same bytes. A photo is decoded once
        for as many views as `MOST_PIXELS` allows.
        """
        wanted = {(view, photo) for view, of in enumerate(missing) for photo in of.tolist()}
        together = max(1, MOST_PIXELS // (self._at_once * 3 * self.image_size**2))
        views_of = collections.defaultdict[tuple[int, int], set[int]](set)
        for view, photo in wanted:
            views_of[photo // self._at_once, view // together].add(view)
        photos = np.arange(len(self.split))
        groups = [
            (photos[group * self._at_once :][: self._at_once], np.array(sorted(views)))
            for (group, _), views in sorted(views_of.items())
        ]
        look = self.look
        batches = pipeline.chosen(
            self.split,
            groups,
            batch_size=self._at_once,
            image_size=self.image_size,
            workers=self._data.workers,
            threads=self._data.threads,
            **self.views.crop,
        )
        start = time.monotonic()
        bar = tqdm(desc=f"features of {self.split.split}", total=len(wanted), unit="view")
        with bar, contextlib.closing(batches):
            in_flight = collections.deque[tuple[Seen, Batch]]()
            for batch in batches:
                in_flight.append((batch, look(batch)))
                if len(in_flight) > 1:  # written while the devices work at the next ones
                    bar.update(self._write(wanted, *in_flight.popleft()))
            while in_flight:
                bar.update(self._write(wanted, *in_flight.popleft()))
        return time.monotonic() - start

    def _write(self, wanted: set[tuple[int, int]], batch: Seen, seen: Batch) -> int:
        """Keeps those rows of a batch that are wanted; gives how many."""
        found = devices.to_host(seen) | {PIXELS: batch["image"]}
        places = list(zip(batch["view"].tolist(), batch["index"].tolist(), strict=True))
        for row, (view, photo) in enumerate(places):
            if (view, photo) in wanted:
                for name, rows in self._rows[view].items():
                    rows.write(photo, found[name][row].astype(rows.dtype))
        return sum(place in wanted for place in places)


def as_computed(seen: Any) -> Any:
    """Features as they were before some were halved for the disk."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float16 else x, seen)


def _union(numbers: Iterator[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(list(numbers)))


def digest_of_photos(split: Split) -> str:
    """Of the encoded photos of a split, in their order."""
    try:
        made = Made.load(stamps_file(split.directory, split.split)).readable()
        digests = made.digests.tolist()
    except (Failure, UsageError):  # of a set that an earlier version prepared
        digests = [digest_of(record.image).encode() for record in split]
    return digest_of(b"".join(digests))


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Makes a folder, and waits until no other process computes what is to be in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise Failure(f"{folder} cannot be made: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # of a network file system that locks no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
