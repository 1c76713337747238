"""Ours against limits: what we could do at best, and what the convolutions of a framework can.

- MCAR's inference against its backbone alone on as many images: each, and each of its regions.
- Its training step against three times the forward pass.
- The input pipeline against decoding alone, in as many threads; and of pixels that are kept,
  against a copy of as many in memory.
- The pass over the photos that `features.store` makes, decoding and writing included, against the
  backbone alone on as many images in memory.
- The backbone alone in both frameworks. Where PyTorch's takes less than ours, the convolutions
  themselves are what stands between MCAR and its targets.
"""

import contextlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import models
import numpy as np
import photos
from comparison import Case, Comparison, Sizes, Task
from frameworks import available_cores
from models import Subject

from mlic_jax.features.store import AT_ONCE, Store
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.inputs import InputOptions, normalise
from mlic_jax.runtime import compilation, devices
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.stored import open_training_store

Run = Callable[[], dict[str, Any]]


def backbone_passes(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    """The backbone alone, once for an image and once for every region of it."""
    return _forward(*_alone(subject, given, sizes), copies=1 + sizes["regions"])


def our_forward(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    return _forward(*_alone(subject, given, sizes), copies=1)


def our_gradient(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    features, variables, images = _alone(subject, given, sizes)

    @compilation.jit
    def step(variables, images):
        def loss_of(params):
            maps, updates = features.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.square(maps[-1])), updates

        return jax.value_and_grad(loss_of, has_aux=True)(variables["params"])

    return lambda: {"loss": step(variables, images)[0][0]}


def their_forward(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    import torch
    from torch_tuned import fold_batch_norm

    module, images = models.reference(subject, True, given, sizes)
    fold_batch_norm(module.eval())

    def run() -> dict[str, Any]:
        with torch.inference_mode():
            return {"map": module(images)[-1]}

    return run


def their_gradient(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    module, images = models.reference(subject, True, given, sizes)
    module.train()

    def run() -> dict[str, Any]:
        loss = module(images)[-1].square().mean()
        loss.backward()
        module.zero_grad()
        return {"loss": loss.detach()}

    return run


def _alone(subject: Subject, given: dict[str, Any], sizes: Sizes) -> tuple[Any, dict, jax.Array]:
    """Our backbone of a model, its variables, and the images."""
    config = subject.recipe(sizes)
    features = create_backbone(config.model.backbone, config.model.width)
    variables = {kind: tree["features"] for kind, tree in given["variables"].items()}
    return features, variables, normalise(given["batch"]["images"], InputOptions.of(config.augment))


def _forward(features: Any, variables: dict, images: jax.Array, copies: int) -> Run:
    """The last map, [B, F, h, w], of so many copies of the images."""

    @compilation.jit
    def last_map(variables, images):
        return jnp.moveaxis(features.apply(variables, images)[-1], 3, 1)

    images = jnp.tile(images, (copies, 1, 1, 1))
    return lambda: {"map": last_map(variables, images)}


def decoding(given: dict[str, np.ndarray], _: Sizes) -> Run:
    """Nothing but decoding, an image a thread."""
    from mlic_jax.data.transforms import decode

    encoded, threads = photos.split_bytes(given), ThreadPoolExecutor(available_cores())

    def run() -> dict[str, Any]:
        sides = [image.width for image in threads.map(decode, encoded)]
        return {"sides": np.array(sides)}

    return run


def copying(given: dict[str, np.ndarray], sizes: Sizes) -> Run:
    """Nothing but copying batches of pixels out of memory, one a thread."""
    encoded, threads = photos.split_bytes(given), ThreadPoolExecutor(available_cores())
    photographs = photos.Dataset(encoded, given["labels"], sizes["image_size"])
    pixels = np.stack([photographs[i][0] for i in range(len(encoded))])
    starts = range(0, len(pixels), sizes["batch"])

    def run() -> dict[str, Any]:
        copies = threads.map(lambda start: pixels[start : start + sizes["batch"]].copy(), starts)
        return {"corners": np.concatenate([copy[:, 0, 0] for copy in copies])}

    return run


def feature_pass(given: dict[str, Any], sizes: Sizes) -> Run:
    """All photos in all views, each anew."""
    store = _store(given, sizes)
    photos_of_views = [np.arange(sizes["images"])] * sizes["views"]

    def run() -> dict[str, Any]:
        with contextlib.redirect_stderr(io.StringIO()):
            return {"seconds": np.array(store.compute(photos_of_views))}

    return run


def bare_inference(given: dict[str, Any], sizes: Sizes) -> Run:
    """The same program on as many images that are there."""
    store = _store(given, sizes)
    rng, images = np.random.default_rng(0), store.abstract_images(AT_ONCE)
    batch = {name: np.zeros(of.shape, of.dtype) for name, of in images.items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    count = sizes["views"] * -(-sizes["images"] // AT_ONCE)

    def run() -> dict[str, Any]:
        features = [store.look(batch) for _ in range(count)]
        return {"maximum": features[-1]["maximum"]}

    return run


def _store(given: dict[str, Any], sizes: Sizes) -> Store:
    """The features of made-up photos, computed once."""
    config = models.recipe(name="pooled", backbone="mobilenet_v2")
    config.data.image_size, config.data.views = sizes["image_size"], sizes["views"]
    config.data.train_crop = "random_resized_crop"
    options = TrainOptions.of(config)
    split = photos.prepared(photos.split_bytes(given), np.asarray(given["labels"]))
    model = create_model(options.model, photos.CLASSES)
    variables = models.random_variables(config, {**sizes, "labels": photos.CLASSES})
    with contextlib.redirect_stderr(io.StringIO()):
        return open_training_store(model, variables, split, options, devices.create_mesh())


def against_limit(name: str, backbone: str, ours: Callable, limit: Callable, **sizes: int) -> Task:
    subject = models.mcar(backbone)
    cases = (
        Case("ours", "jax", partial(ours, subject)),
        Case("limit", "jax", partial(limit, subject)),
    )
    return Task(
        name, subject.inputs, cases, MCAR_SIZES | sizes, tolerance=None, measures_memory=False
    )


def alone(name: str, backbone: str, ours: Callable, theirs: Callable, **sizes: int) -> Task:
    subject = models.mcar(backbone)
    cases = (
        Case("ours", "jax", partial(ours, subject)),
        Case("PyTorch, tuned", "torch", partial(theirs, models.trunk(backbone))),
    )
    return Task(
        name, subject.inputs, cases, MCAR_SIZES | sizes, tolerance=1e-2, measures_memory=False
    )


MCAR_SIZES = {"images": 2, "labels": 20, "regions": 4}
MOBILENET = ("MobileNetV2", "mobilenet_v2", {})
RESNETS = [("ResNet-{depth}", "resnet{depth}", {"depth": depth}) for depth in (50, 101)]

COMPARISON = Comparison(
    title="Limits",
    sizes={"image_size": 448},
    small={"images": 2, "labels": 5, "regions": 2, "image_size": 64, "depth": 18, "batch": 8},
    tasks=(
        *(
            against_limit(f"MCAR on {title}, {what}", backbone, ours, limit, **sizes)
            for title, backbone, sizes in (MOBILENET, RESNETS[0])
            for what, ours, limit in (
                (
                    "inference; limit: 1 + {regions} passes of the backbone",
                    models.jax_inference,
                    backbone_passes,
                ),
                (
                    "train step; limit: 3 of its forward passes",
                    models.jax_step,
                    models.jax_forwards,
                ),
            )
        ),
        *(
            Task(
                name,
                photos.inputs,
                (Case("ours", "host", ours), limit),
                sizes={"images": 512, "batch": 16},
                tolerance=None,
                measures_memory=False,
                shows_rate=True,
            )
            for name, ours, limit in (
                (
                    "input pipeline; limit: decoding alone",
                    photos.pipeline,
                    Case("limit", "host", decoding),
                ),
                (
                    "input pipeline, kept pixels; limit: a copy in memory",
                    partial(photos.pipeline, cache="pixels"),
                    Case("limit", "host", copying, time_target=0.5),
                ),
            )
        ),
        Task(
            "features of {views} views, MobileNetV2, {image_size} px; limit: its bare inference",
            photos.inputs,
            (
                Case("ours", "jax", feature_pass),
                Case("limit", "jax", bare_inference, time_target=0.9),
            ),
            sizes={"images": 128, "views": 4, "image_size": 256},
            tolerance=None,
            measures_memory=False,
        ),
        *(
            alone(f"{title} alone, {what}", backbone, ours, theirs, **sizes)
            for title, backbone, sizes in (MOBILENET, *RESNETS)
            for what, ours, theirs in (
                ("forward", our_forward, their_forward),
                ("forward and backward", our_gradient, their_gradient),
            )
        ),
    ),
)
