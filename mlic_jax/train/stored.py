"""Training on features that are computed once: the views of a photo, and a step from them.

Of a model that looks at regions the host comes into the step, once: where it looks follows from
what it has just learned, and which of these regions it has looked at before is known on the disk.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from mlic_jax.data.records import Split
from mlic_jax.features.regions import Regions
from mlic_jax.features.store import Backbone, Store, Views
from mlic_jax.runtime import compilation, devices
from mlic_jax.scores.stored import compile_find_regions
from mlic_jax.train.augment import augment_views
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState


def open_training_store(
    model: nn.Module, variables: Mapping[str, Any], split: Split, options: TrainOptions, mesh: Mesh
) -> Store:
    """The features of the augmented views that a run with `data.views` trains on.

    Raises:
        UsageError, Failure: see `Store`.
    """
    data, augmented = options.data, options.augment

    def inputs(images: jax.Array, views: jax.Array, index: jax.Array) -> jax.Array:
        return augment_views(images, views, index, jax.random.key(options.views_seed), augmented)

    crop = {
        "seed": options.views_seed,
        "train_crop": data.train_crop,
        "crop_scale": data.crop_scale,
    }
    fit = data.train_fit
    decided = {name: getattr(augmented, name) for name in ("flip", "jitter", "mean", "std")}
    # Only where they do something, so that stores of before are still known.
    decided |= fit.changed()
    if augmented.cutout:
        decided["cutout"] = augmented.cutout
    if augmented.randaugment:
        decided |= {name: getattr(augmented, name) for name in ("randaugment", "magnitude")}
    views = Views(data.views, inputs, crop | {"fit": fit}, training=True, origin=crop | decided)
    backbone = Backbone.of(model, variables, options.model, mesh)
    return Store(backbone, split, views, data, options.features)


def compile_stored_step(
    train_step: Callable[..., Any],
    model: nn.Module,
    store: Store,
    regions: Regions | None,
    options: TrainOptions,
    state: TrainState,
    key: jax.Array,
) -> Callable[..., Any]:
    """The step of `make_train_step` on the batches of a store, compiled.

    Args:
        train_step: what `make_train_step` made.
        model: as it runs on a whole batch.
        regions: of the store, see `open_regions`.
        state, key: as they are and lie.
    """
    rows, mesh = options.batch_size, store.backbone.mesh
    batch = store.abstract_batch(rows, len(store.split.class_names))
    what = "the training step"
    if regions is None:
        return compilation.compile_ahead(what, train_step, state, batch, key)
    find_regions = compile_find_regions(
        model, store, state.variables(), batch["seen"], training=True
    )
    batch["seen"] |= regions.abstract(rows, model.top_n)
    train_step = compilation.compile_ahead(what, train_step, state, batch, key)

    def step(
        state: TrainState, batch: dict[str, Any], key: jax.Array
    ) -> tuple[TrainState, dict[str, Any]]:
        boxes = find_regions(state.variables(), batch["seen"])["boxes"]
        asked, known = regions.asked, regions.known
        of_regions = regions.read(*devices.to_host((batch["view"], batch["index"], boxes)))
        seen = batch["seen"] | devices.to_devices(of_regions, mesh)
        state, metrics = train_step(state, batch | {"seen": seen}, key)
        asked, known = regions.asked - asked, regions.known - known
        share = known / asked if asked else 1.0  # of padding nothing is asked for
        return state, metrics | {"known_regions": np.float32(share)}

    return step
