"""The features of regions, by view, photo and box: one that was looked at before costs nothing.

Which regions a head asks for follows from what it has learned so far, so they cannot be computed
before a run: each is when it is first asked for, and kept in a file of the store.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mlic_jax.features.store import PIXELS, Batch, Store
from mlic_jax.files.rows import KeyedRows
from mlic_jax.runtime import devices

AT_ONCE = 8  # regions that go through the backbone together, at least
_NOWHERE = (0, 0, 0, 1, 1)  # position in the split and box of what only fills up a group


def open_regions(store: Store, model: nn.Module) -> "Regions | None":
    """The regions of a store as a model looks at them; None: it does not look at any."""
    return Regions(store, model.local_size) if hasattr(model, "look_at_regions") else None


class Regions:
    """The features of the regions of a store's photos, for a model that looks at regions.

    Attributes:
        asked: how many regions were asked for so far.
        known: how many of them had been looked at before.
    """

    def __init__(self, store: Store, local_size: int):
        """Opens the file of the regions that are looked at in that size, see `MCAR.local_size`.

        Raises:
            Failure: the disk refuses it.
        """
        self._store = store
        mesh = store.backbone.mesh
        self._at_once = AT_ONCE + -AT_ONCE % mesh.size
        by_rows = devices.split_by_rows(mesh)
        boxes = jax.ShapeDtypeStruct((self._at_once, 4), np.int32, sharding=by_rows)
        batch = store.abstract_images(self._at_once) | {"boxes": boxes}
        self._model = store.backbone.model.clone(local_size=local_size)
        shapes = jax.eval_shape(self._look, store.backbone.weights, batch)
        self.names = tuple(sorted(shapes))
        of = shapes[self.names[0]]
        path = store.folder / f"regions{local_size or store.image_size}.rows"
        shape = (len(self.names), *of.shape[1:])
        self._rows = KeyedRows(path, 6, shape, store.on_disk(of.dtype))
        self._shape, self._dtype = shape, store.on_disk(of.dtype)
        self._program = store.backbone.compiled(
            "the backbone on regions", self._look, store.views, batch
        )
        self.asked = self.known = 0

    def abstract(self, rows: int, regions: int) -> dict[str, Any]:
        """What `read` returns of so many rows, on the devices, without its values."""
        by_rows = devices.split_by_rows(self._store.backbone.mesh)
        shape = (rows, regions, *self._shape[1:])
        return {n: jax.ShapeDtypeStruct(shape, self._dtype, sharding=by_rows) for n in self.names}

    def read(self, view: np.ndarray, index: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
        """The features `[B, N, F]` of regions int32 `[B, N, 4]`, of padding 0.

        Args:
            view, index: int32 `[B]`, of which view of which photo they are.

        Raises:
            Failure: the disk does not give or take a row.
        """
        rows, regions = boxes.shape[:2]
        keys = {
            (row, region): (int(view[row]), int(index[row]), *boxes[row, region].tolist())
            for row in np.flatnonzero(index >= 0).tolist()
            for region in range(regions)
        }
        new = [key for key in dict.fromkeys(keys.values()) if key not in self._rows]
        for start in range(0, len(new), self._at_once):
            self._compute(new[start : start + self._at_once])
        self.asked += len(keys)
        self.known += len(keys) - len(new)
        found = np.zeros((rows, regions, *self._shape), self._dtype)
        for place, key in keys.items():
            found[place] = self._rows[key]
        return {name: np.ascontiguousarray(found[:, :, k]) for k, name in enumerate(self.names)}

    def _compute(self, keys: list[tuple[int, ...]]) -> None:
        filled = [*keys, *[(0, *_NOWHERE)] * (self._at_once - len(keys))]
        numbers = np.array(filled, np.int32)
        view, index, boxes = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
        pixels = self._store.read((PIXELS,), view, index)[PIXELS]
        batch = {"image": pixels, "view": view, "index": index, "boxes": boxes}
        seen = devices.to_host(self._program(batch))
        rows = np.stack([seen[name] for name in self.names], axis=1)
        self._rows.append(keys, rows[: len(keys)].astype(self._dtype))

    def _look(self, weights: Mapping[str, Any], batch: Batch) -> Batch:
        images = self._store.views.inputs(batch["image"], batch["view"], batch["index"])
        apply: Callable[..., Any] = self._model.apply
        seen = apply(weights, images, batch["boxes"][:, None], method="look_at_regions")
        return {name: x[:, 0] for name, x in seen.items()}
