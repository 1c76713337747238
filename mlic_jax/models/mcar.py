"""MCAR: a global stream proposes attentional regions, a local stream looks at each (TIP 2021)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from mlic_jax.models.arrays import Float32Or64, Outputs, RowMask
from mlic_jax.models.heads.pooled import PointwiseClassifier, global_pool
from mlic_jax.models.ops.regions import class_regions, crop_and_resize

# Of all regions on a device, the share that is looked at in one go where unlikely ones are skipped:
# smaller parts skip more, larger ones fill the device better.
PARTS = 8


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
        local_size: pixels of a side of a crop; 0: those of the image, as released.
        local_bound: outside training, regions of classes whose global probability is lower are not
            looked at; 0: all are, as released.
    """

    features: nn.Module
    num_classes: int
    pooling: str
    top_n: int
    threshold: float
    localizer: str
    local_size: int = 0
    local_bound: float = 0.0

    def setup(self) -> None:
        self.convclass = PointwiseClassifier(self.num_classes)

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """Scores images globally, then by their regions.

        In training the backbone runs twice, so its running statistics move twice, first with the
        images and then with the crops. No gradient flows through the choice of the regions.

        Args:
            images: normalised.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: padding moves no batch statistics, see `ConvBatchNorm`; a crop is in the group
                of its image.

        Returns:
            `global_logits`, `local_logits` and `logits`, the maximum of the two, float32 `[B, C]`;
            `boxes` int32 `[B, N, 4]` (y1, x1, y2, x2 in input pixels, upper bounds exclusive) and
            `box_classes` int32 `[B, N]`, the highest-scored class first. With a `local_bound`, and
            not in training, also `looked_at`, bool `[B, N]`: of each region whether it was looked
            at; an image none of whose regions was has its global logits for local ones.
        """
        seen = self.look_globally(images, train, mask)
        return self.look_locally(images, seen, train, mask)

    def look_globally(
        self, images: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """The first look: `global_logits`, `boxes` and `box_classes`, see `__call__`."""
        maps = self.features(images, train, mask)[-1]
        global_logits = self.convclass(global_pool(maps, self.pooling))
        _, height, width, _ = images.shape
        found = self.attend(maps, global_logits, (height, width))
        boxes, box_classes = lax.stop_gradient(found)
        return {"global_logits": global_logits, "boxes": boxes, "box_classes": box_classes}

    def look_locally(
        self,
        images: Float[Array, "B H W 3"],
        seen: Outputs,
        train: bool = False,
        mask: RowMask | None = None,
    ) -> Outputs:
        """The second look, at the regions that `look_globally` found; returns what `__call__` does.

        What was `seen` may come from an earlier evaluation: nothing of it is computed again.
        """
        outputs = dict(seen)
        if self.local_bound > 0 and not train:
            outputs["looked_at"] = self.is_likely(seen)
            outputs["local_logits"] = self.score_likely(images, seen)
        else:
            outputs["local_logits"] = self.score_regions(images, seen["boxes"], train, mask)
        outputs["logits"] = jnp.maximum(outputs["global_logits"], outputs["local_logits"])
        return outputs

    def score_regions(
        self,
        images: Float[Array, "B H W 3"],
        boxes: Int32[Array, "B N 4"],
        train: bool,
        mask: RowMask | None,
    ) -> Float32Or64[Array, "B {self.num_classes}"]:
        """The highest logits of all regions of each image."""
        batch, regions = boxes.shape[:2]
        crops = lax.stop_gradient(crop_and_resize(images, boxes, self.local_size))
        crops = crops.reshape(batch * regions, *crops.shape[2:])
        crop_mask = None if mask is None else jnp.repeat(mask, regions)
        crop_maps = self.features(crops, train, crop_mask)[-1]
        crop_logits = self.convclass(global_pool(crop_maps, self.pooling))
        return jnp.max(crop_logits.reshape(batch, regions, -1), axis=1)

    def is_likely(self, seen: Outputs) -> Bool[Array, "B N"]:
        """Of each region whether its class has a global probability of `local_bound` or more."""
        logits = jnp.take_along_axis(seen["global_logits"], seen["box_classes"], axis=1)
        return nn.sigmoid(logits) >= self.local_bound

    def score_likely(
        self, images: Float[Array, "B H W 3"], seen: Outputs
    ) -> Float32Or64[Array, "B {self.num_classes}"]:
        """The highest logits of the likely regions of each image.

        The likely regions of all images are lined up, and looked at in a loop of parts of one size
        until none is left. The loop takes only rows that are on one device where it runs inside
        `jax.shard_map`; elsewhere devices would wait for each other's regions.
        """
        likely = self.is_likely(seen)
        batch, regions = likely.shape
        part = -(-batch * regions // PARTS)
        count = jnp.sum(likely)
        order = jnp.argsort(~likely.ravel(), stable=True)  # of all regions, the likely ones first
        order = jnp.pad(order, (0, -len(order) % part))
        boxes = seen["boxes"].reshape(batch * regions, 1, 4)

        def is_left(_: MCAR, carry: tuple[Array, Array]) -> Array:
            return carry[0] < count

        def look(model: MCAR, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            done, highest = carry
            chosen = lax.dynamic_slice_in_dim(order, done, part)
            rows = chosen // regions
            logits = model.score_regions(images[rows], boxes[chosen], train=False, mask=None)
            # The last part may be filled up with regions that are not likely.
            is_wanted = done + jnp.arange(part) < count
            logits = jnp.where(is_wanted[:, None], logits, -jnp.inf)
            return done + part, highest.at[rows].max(logits)

        nothing = jnp.full_like(seen["global_logits"], -jnp.inf)
        _, highest = nn.while_loop(
            is_left,  # type: ignore[arg-type] # Flax says bool, and it is traced
            look,
            self,
            (jnp.int32(0), nothing),
        )
        return jnp.where(jnp.any(likely, axis=1)[:, None], highest, seen["global_logits"])

    def attend(
        self,
        maps: Float[Array, "B h w F"],
        global_logits: Float32Or64[Array, "B {self.num_classes}"],
        image_size: tuple[int, int],
    ) -> tuple[Int32[Array, "B {self.top_n} 4"], Int32[Array, "B {self.top_n}"]]:
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
