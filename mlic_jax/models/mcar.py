"""MCAR: a global stream proposes attentional regions, a local stream looks at each (TIP 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mlic_jax.models.pooled import PointwiseClassifier, global_pool
from mlic_jax.models.regions import class_regions, crop_and_resize


class MCAR(nn.Module):
    """The two streams over one backbone and one classifier.

    Pooling is global, which is what the released system does for sizes that are multiples of 32.

    Attributes:
        features: the backbone; its last map feeds everything.
        num_classes: C.
        pooling: `avg`, `max`, or `gwp` (the mean of both).
        top_n: regions of an image, N <= C.
        threshold: where a region's profiles are cut.
        localizer: `exact` (the released semantics) or `clean` (repaired).
    """

    features: nn.Module
    num_classes: int
    pooling: str
    top_n: int
    threshold: float
    localizer: str

    def setup(self):
        self.convclass = PointwiseClassifier(self.num_classes)

    def __call__(
        self, images: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Scores images globally, then by their regions.

        In training the backbone runs twice, so its running statistics move twice, first with the
        images and then with the crops. No gradient flows through the choice of the regions.

        Args:
            images: float32 `[B, S, S, 3]`, normalised.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: bool `[B]`, False for padding.

        Returns:
            `global_logits`, `local_logits` and `logits`, the maximum of the two, float32 `[B, C]`;
            `boxes` int32 `[B, N, 4]` (y1, x1, y2, x2 in input pixels, upper bounds exclusive) and
            `box_classes` int32 `[B, N]`, the highest-scored class first.
        """
        maps = self.features(images, train, mask)[-1]
        global_logits = self.convclass(global_pool(maps, self.pooling))
        boxes, box_classes = lax.stop_gradient(self.attend(maps, global_logits, images.shape[1:3]))

        batch, regions = box_classes.shape
        crops = lax.stop_gradient(crop_and_resize(images, boxes))
        crops = crops.reshape(batch * regions, *images.shape[1:])
        crop_mask = None if mask is None else jnp.repeat(mask, regions)
        crop_maps = self.features(crops, train, crop_mask)[-1]
        crop_logits = self.convclass(global_pool(crop_maps, self.pooling))
        local_logits = jnp.max(crop_logits.reshape(batch, regions, -1), axis=1)
        return {
            "logits": jnp.maximum(global_logits, local_logits),
            "global_logits": global_logits,
            "local_logits": local_logits,
            "boxes": boxes,
            "box_classes": box_classes,
        }

    def attend(
        self, maps: jax.Array, global_logits: jax.Array, image_size: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """The regions of the `top_n` classes with the highest global scores.

        `apply(..., mutable=["intermediates"])` also gives their class activation scores, float32
        `[B, N, h, w]`, as `class_maps`.
        """
        _, box_classes = lax.top_k(global_logits, self.top_n)
        class_maps = jnp.moveaxis(nn.sigmoid(self.convclass(maps)), -1, 1)
        class_maps = jnp.take_along_axis(class_maps, box_classes[:, :, None, None], axis=1)
        self.sow("intermediates", "class_maps", class_maps)  # for who asks, at no cost for others
        boxes = class_regions(class_maps, image_size, self.threshold, self.localizer)
        return boxes, box_classes
