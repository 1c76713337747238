"""Scoring on features that are computed once: of the plain view of a photo, and its mirror image.

With a host in the step of a model that looks at regions: see `features/regions.py`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.data.records import Split
from mlic_jax.features.regions import Regions
from mlic_jax.features.store import Backbone, Store, Views, as_computed
from mlic_jax.models.inputs import normalise
from mlic_jax.models.precision import in_precision
from mlic_jax.runtime import compilation, devices
from mlic_jax.scores.files import OUTPUTS
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.views import mean_of_views, with_class_maps


def uses_store(options: ScoreOptions) -> bool:
    """Whether scores are made from stored features, which are of one size and of all regions."""
    look = options.eval
    return options.features.store and not (look.scales or look.local_bound or look.global_scores)


def open_plain_store(
    model: nn.Module, variables: Mapping[str, Any], split: Split, options: ScoreOptions, mesh: Any
) -> Store:
    """The features of a split as evaluation sees it, and with `eval.flip` mirrored too.

    Raises:
        UsageError, Failure: see `Store`.
    """

    def inputs(images: jax.Array, views: jax.Array, _: jax.Array) -> jax.Array:
        mirrored = (views == 1)[:, None, None, None]
        return normalise(jnp.where(mirrored, images[:, :, ::-1], images), options.augment)

    decided = {"plain": True, "mean": options.augment.mean, "std": options.augment.std}
    look = "look_everywhere" if hasattr(model, "look_everywhere") else "look"
    fit = options.data.fit
    origin = decided | fit.changed()
    views = Views(1 + options.eval.flip, inputs, {"fit": fit}, False, origin, look)
    backbone = Backbone.of(model, variables, options.model, mesh)
    return Store(backbone, split, views, options.data, options.features)


def make_stored_step(
    model: nn.Module,
    store: Store,
    regions: Regions | None,
    options: ScoreOptions,
    weights: Any,
    rows: int,
    class_maps: bool = False,
) -> Callable[..., Any]:
    """The step of `make_eval_step` on a store: (variables, batch without images) -> outputs.

    Compiled, for weights as these are and lie and batches of so many rows; `regions` are those of
    the store, see `open_regions`. With `class_maps` also the maps that regions were found on.
    """
    seen = store.abstract_batch(rows, 1)["seen"]
    size = (store.image_size, store.image_size)
    of_seen = partial(_score, model, options.model.precision, size, class_maps)
    find_regions = None
    if regions is not None:
        find_regions = compile_find_regions(model, store, weights, seen, False, class_maps)
        seen = seen | regions.abstract(rows, model.top_n)
    jitted = compilation.jit(of_seen, out_shardings=devices.replicated(store.backbone.mesh))
    score = compilation.compile_ahead("the evaluation step", jitted, weights, seen)

    def of_view(variables: Any, view: np.ndarray, index: np.ndarray) -> dict[str, Any]:
        read = store.read(tuple(store.shapes), view, index)
        seen = devices.to_devices(read, store.backbone.mesh)
        if find_regions is None or regions is None:
            return score(variables, seen)
        found = find_regions(variables, seen)
        of_regions = regions.read(view, index, devices.to_host(found["boxes"]))
        seen |= devices.to_devices(of_regions, store.backbone.mesh)
        return found | score(variables, seen)

    def step(variables: Any, batch: dict[str, Any]) -> dict[str, Any]:
        index = devices.to_host(batch["index"])
        views = range(store.views.count)
        outputs = mean_of_views([of_view(variables, np.full_like(index, v), index) for v in views])
        outputs = {name: outputs[name] for name in (*OUTPUTS, "class_maps") if name in outputs}
        return outputs | {name: batch[name] for name in ("labels", "index")}

    return step


def compile_find_regions(
    model: nn.Module,
    store: Store,
    weights: Any,
    seen: Any,
    training: bool,
    class_maps: bool = False,
) -> Callable[..., Any]:
    """(variables, features of photos) -> where the model looks, see `MCAR.find_regions`."""
    size = (store.image_size, store.image_size)

    def find(variables: Any, seen: Any) -> dict[str, jax.Array]:
        with in_precision(store.backbone.options.precision, training):
            return _apply(model, class_maps, variables, seen, size, method="find_regions")

    jitted = compilation.jit(find, out_shardings=devices.replicated(store.backbone.mesh))
    return compilation.compile_ahead("the choice of regions", jitted, weights, seen)


def _score(
    model: nn.Module,
    precision: str,
    size: tuple[int, int],
    class_maps: bool,
    variables: Any,
    seen: Any,
) -> dict[str, jax.Array]:
    """With the regions in which a head that looks once sees the likeliest labels."""
    with in_precision(precision, training=False):
        if hasattr(model, "locate"):
            return _apply(model, class_maps, variables, seen, size, method="locate")
        return _apply(model, False, variables, seen, method="score")


def _apply(
    model: nn.Module, class_maps: bool, variables: Any, seen: Any, *arguments: Any, method: str
) -> dict[str, jax.Array]:
    """What a method says of features, with the maps that its regions were found on."""
    run: Callable[..., Any] = model.apply
    if not class_maps:
        return run(variables, as_computed(seen), *arguments, method=method)
    mutable = ["intermediates"]
    outputs, beside = run(variables, as_computed(seen), *arguments, method=method, mutable=mutable)
    return with_class_maps(outputs, beside)
