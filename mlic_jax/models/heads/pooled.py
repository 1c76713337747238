"""The baseline: a backbone, global pooling and a linear classifier. MCAR shares the last two."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mlic_jax.models.arrays import Float32Or64, Outputs, RowMask
from mlic_jax.models.ops.regions import regions_of_likeliest
from mlic_jax.models.precision import at_least_float32


def summarise(maps: Float[Array, "*N h w F"]) -> dict[str, Float32Or64[Array, "*N F"]]:
    """The `mean` and the `maximum` of maps over all positions, all that any pooling needs.

    Inside `jax.jit` the one that is not used is not computed.
    """
    maps = at_least_float32(maps)
    *rows, height, width, features = maps.shape
    of_positions = maps.reshape(*rows, height * width, features)
    maximum = highest(of_positions, height * width)
    return {"mean": jnp.mean(maps, axis=(-3, -2)), "maximum": maximum}


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def highest(maps: Float32Or64[Array, "*N P F"], positions: int) -> Float32Or64[Array, "*N F"]:
    """The maximum over the P positions, whose gradient goes to the first that has it.

    JAX's own looks for what equals the maximum. XLA may compute maps twice, and round them in
    another way: then nothing does, and the gradient is 0/0.
    """
    return jnp.max(maps, axis=-2)


def _highest_and_place(maps: Array, positions: int) -> tuple[Array, Array]:
    return highest(maps, positions), jnp.argmax(maps, axis=-2)


def _gradient_of_highest(positions: int, place: Array, g: Array) -> tuple[Array]:
    shape = (*(1,) * (g.ndim - 1), positions, 1)
    is_there = jnp.arange(positions).reshape(shape) == place[..., None, :]
    return (jnp.where(is_there, g[..., None, :], 0),)


highest.defvjp(_highest_and_place, _gradient_of_highest)


def global_pool(summary: Outputs, pooling: str) -> Float32Or64[Array, "... F"]:
    """Pooled features from what `summarise` gave, by a key of `POOLINGS`."""
    return POOLINGS[pooling](summary)


POOLINGS: dict[str, Callable[[Outputs], Float[Array, "... F"]]] = {
    "avg": lambda summary: summary["mean"],
    "max": lambda summary: summary["maximum"],
    "gwp": lambda summary: (summary["maximum"] + summary["mean"]) / 2,
}


class PointwiseClassifier(nn.Module):
    """One linear classifier for pooled features and for every position of a map alike."""

    num_classes: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "*batch F"]
    ) -> Float32Or64[Array, "*batch {self.num_classes}"]:
        """The logits of every vector of features."""
        # Uniform in +-1/sqrt(F), kernel and bias: how PyTorch starts a convolution.
        inputs = features.shape[-1]
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", uniform, (inputs, self.num_classes))
        bias = self.param(
            "bias",
            lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1) * inputs**-0.5,
            (self.num_classes,),
        )
        logits = jnp.dot(at_least_float32(features), kernel, precision=lax.Precision.HIGHEST)
        return logits + jnp.broadcast_to(bias, logits.shape)


class Pooled(nn.Module):
    """The baseline that every other model has to beat.

    Where a label is seen is a region, as MCAR has them; it is not looked at again.

    Attributes:
        features: the backbone, of which the last map is used.
        num_classes: C.
        pooling: a key of `POOLINGS`.
        top_n: regions of an image, of the classes with the highest logits.
        threshold, localizer: how they are found, see `class_regions`.
    """

    features: nn.Module
    num_classes: int
    pooling: str
    top_n: int
    threshold: float
    localizer: str

    def setup(self) -> None:
        self.convclass = PointwiseClassifier(self.num_classes)

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """Scores images; in training that is all, else it also says where the likeliest labels are.

        Args:
            images: normalised.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: padding moves no batch statistics, see `ConvBatchNorm`.

        Returns:
            `logits`, float32 `[B, C]`. And, but in training, `boxes` int32 `[B, N, 4]` and
            `box_classes` int32 `[B, N]`, see `MCAR`; `mutable=["intermediates"]` also gives their
            `class_maps`, float32 `[B, N, h, w]`.
        """
        if train:
            return self.score(self.look(images, train, mask))
        height, width = images.shape[1:3]
        return self.locate(self.look_everywhere(images), (height, width))

    def look(
        self, images: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """All that `score` needs of images, see `summarise`; arguments as of `__call__`."""
        return summarise(self.features(images, train, mask)[-1])

    def look_everywhere(self, images: Float[Array, "B H W 3"]) -> Outputs:
        """All that `locate` needs of images, the last map."""
        return {"maps": self.features(images)[-1]}

    def score(self, seen: Outputs) -> Outputs:
        """The logits, from what `look` returns."""
        return {"logits": self.convclass(global_pool(seen, self.pooling))}

    def locate(self, seen: Outputs, image_size: tuple[int, int]) -> Outputs:
        """What `__call__` returns, from what `look_everywhere` does of images of that size.

        A class activation map is what the classifier says of every position by itself. Of `avg` the
        mean of that is the logit. Of `max` and `gwp`, in which every feature is the maximum over
        positions, it is no sum to the logit, but the same classifier on the same features.
        """
        logits = self.score(summarise(seen["maps"]))["logits"]
        of_region = self.top_n, self.threshold, self.localizer
        boxes, classes, maps = regions_of_likeliest(
            stretched(self.convclass(seen["maps"])), logits, image_size, *of_region
        )
        self.sow("intermediates", "class_maps", maps)
        return {"logits": logits, "boxes": boxes, "box_classes": classes}


def stretched(scores: Float32Or64[Array, "B h w C"]) -> Float32Or64[Array, "B h w C"]:
    """The scores of each class, from their least in an image, 0, to their greatest, 1.

    Of a class that has the same everywhere, 1.
    """
    low, high = (of(scores, axis=(1, 2), keepdims=True) for of in (jnp.min, jnp.max))
    is_flat = low == high
    return jnp.where(is_flat, 1, (scores - low) / jnp.where(is_flat, 1, high - low))
