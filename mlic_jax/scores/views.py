"""Test-time augmentation: one image seen in several views, whose logits are averaged.

A view is the image at a size, as it is or mirrored. The first, the plain view, is what evaluation
sees without augmentation; everything but the logits comes from it alone. Images are decoded and
resized once, to the largest of the sizes, and the device makes the smaller ones: where a size above
`data.image_size` is asked for, the plain view has been resized twice, and its pixels are a few grey
levels from those of one resize.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from mlic_jax.data.transforms import Interpolation
from mlic_jax.models.arrays import Outputs
from mlic_jax.models.inputs import normalise
from mlic_jax.scores.options import ScoreOptions

_METHODS: dict[Interpolation, str] = {  # JAX's names of Pillow's filters
    "bilinear": "linear",
    "bicubic": "cubic",
    "lanczos": "lanczos3",
}


def view_sizes(options: ScoreOptions) -> tuple[int, ...]:
    """The sizes of all views in pixels, `data.image_size` first, none twice."""
    return tuple(dict.fromkeys((options.data.image_size, *options.eval.scales)))


def host_size(options: ScoreOptions) -> int:
    """The size in pixels that images are to have when they reach the device."""
    return max(view_sizes(options))


def score_views(
    apply: Callable[[Float[Array, "B S S 3"]], Outputs],
    images: UInt8[Array, "B L L 3"],
    options: ScoreOptions,
) -> Outputs:
    """What a model says of images, its logits averaged over the views of `config.eval`.

    Args:
        apply: normalised images to what the model says of them.
        images: L = `host_size(options)`.
        options: of which `eval.flip`, `eval.scales`, `data` and `augment` are used.

    Returns:
        The outputs of the plain view; of those whose name ends in `logits`, the mean of all views.
    """

    def outputs_of(view: Array) -> Outputs:
        return apply(normalise(view, options.augment))

    outputs = []
    for size in view_sizes(options):
        view = resize(images, size, options.data.interpolation)
        if options.eval.flip:
            # As a loop on the device: the model is compiled once for the two, and as fast.
            both = lax.map(outputs_of, jnp.stack([view, view[:, :, ::-1]]))
            outputs += [{name: both[name][k] for name in both} for k in (0, 1)]
        else:
            outputs.append(outputs_of(view))
    return mean_of_views(outputs)


def with_class_maps(outputs: Outputs, beside: Mapping[str, Any]) -> Outputs:
    """The outputs of a model with the `class_maps` that it sowed beside them, if it did."""
    maps = beside.get("intermediates", {}).get("class_maps", ())
    return outputs | dict(zip(("class_maps",), maps, strict=False))


def mean_of_views(outputs: Sequence[Outputs]) -> Outputs:
    """The outputs of the first view; of those whose name ends in `logits`, the mean of all."""
    means = {
        name: jnp.mean(jnp.stack([output[name] for output in outputs]), axis=0)
        for name in outputs[0]
        if name.endswith("logits")
    }
    return outputs[0] | means


def resize(
    images: UInt8[Array, "B L L 3"], size: int, interpolation: Interpolation = "bilinear"
) -> UInt8[Array, "B {size} {size} 3"]:
    """Antialiased, as Pillow does it.

    Its pixels are within two grey levels of Pillow's, which rounds between rows and columns. There
    it also cuts off what bicubic and Lanczos overshoot, and so is it done here.
    """
    length = images.shape[1]
    if length == size:
        return images
    pixels = images.astype(jnp.float32)
    for height, width in ((length, size), (size, size)):
        shape = (images.shape[0], height, width, 3)
        pixels = jax.image.resize(pixels, shape, _METHODS[interpolation], antialias=True)
        pixels = jnp.clip(pixels, 0, 255)
    return jnp.round(pixels).astype(jnp.uint8)
