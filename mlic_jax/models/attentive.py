"""A backbone and one of the heads that attend to its last map: CSRA, ML-Decoder, Query2Label."""

import flax.linen as nn
from jaxtyping import Array, Float

from mlic_jax.models.arrays import Outputs, RowMask
from mlic_jax.models.ops.regions import regions_of_likeliest


class Attentive(nn.Module):
    """Where its head looks for a label is a region, as MCAR has them; it is not looked at again.

    Attributes:
        features: the backbone, of which the last map is used.
        head: maps `[B, h, w, F]` and whether it trains, to `logits`, float32 `[B, C]`, and
            `class_maps`, `[B, h, w, C]` in [0, 1]. In training it may use a key `dropout`.
        top_n: regions of an image, of the classes with the highest logits.
        threshold, localizer: how they are found, see `class_regions`.
    """

    features: nn.Module
    head: nn.Module
    top_n: int
    threshold: float
    localizer: str

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """Scores images: `look`, then `score`, then the regions of the likeliest labels.

        Given a key `dropout` the head trains, and no regions are found.

        Args:
            images: normalised.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: padding moves no batch statistics, see `ConvBatchNorm`.

        Returns:
            `logits`, float32 `[B, C]`; and `boxes` int32 `[B, N, 4]` and `box_classes` int32
            `[B, N]`, see `MCAR`. `mutable=["intermediates"]` also gives their `class_maps`, float32
            `[B, N, h, w]`.
        """
        seen = self.look(images, train, mask)
        if self.has_rng("dropout"):
            return self.score(seen)
        height, width = images.shape[1:3]
        return self.locate(seen, (height, width))

    def look(
        self, images: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """All that the head needs of images, the last map; arguments as of `__call__`."""
        return {"maps": self.features(images, train, mask)[-1]}

    def score(self, seen: Outputs) -> Outputs:
        """The logits, from what `look` returns."""
        return {"logits": self.head(seen["maps"], self.has_rng("dropout"))["logits"]}

    def locate(self, seen: Outputs, image_size: tuple[int, int]) -> Outputs:
        """What `__call__` returns, from what `look` does of images of that size."""
        said = self.head(seen["maps"], False)
        of_region = self.top_n, self.threshold, self.localizer
        boxes, classes, maps = regions_of_likeliest(
            said["class_maps"], said["logits"], image_size, *of_region
        )
        self.sow("intermediates", "class_maps", maps)
        return {"logits": said["logits"], "boxes": boxes, "box_classes": classes}
