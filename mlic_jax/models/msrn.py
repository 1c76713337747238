"""MSRN: labels and groups of labels, embedded by their graph, look at three depths of a backbone.

Multi-layered semantic representation network, as the released system computes it.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from mlic_jax.errors import UsageError
from mlic_jax.models.arrays import Float32Or64, Outputs, RowMask, StageMaps
from mlic_jax.models.label_graph import GraphAttention, group_loss, pool_into_groups
from mlic_jax.models.layers import PerLabel, uniform
from mlic_jax.models.ops.convolution import convolve
from mlic_jax.models.ops.spatial_attention import spatial_attention

CHANNELS = 512  # of every embedding, and of the maps that it attends to
HIDDEN = 2048  # of the dense head
MAPS = ("maps2", "maps3", "maps4")  # of the stages that it looks at


class MSRN(nn.Module):
    """The network on any backbone of three or more stages.

    Attributes:
        features: the backbone; its last three maps are attended to.
        word_vectors: a vector for every label.
        attention_mask: True where label i (row) attends to label j (column) in the graph, itself
            included.
        num_groups: K, of the groups that the labels pool into.
        head: `dense` (as released: two layers over everything) or `per_label` (a label's score
            from what it and the one group that it most belongs to see, with weights of its own).
        fc1_axis: of the mesh, inside `jax.shard_map`, along which `fc1` is split, see `Linear`.
    """

    features: nn.Module
    word_vectors: Float[np.ndarray, "C V"]
    attention_mask: Bool[np.ndarray, "C C"]
    num_groups: int
    head: str
    fc1_axis: str | None = None

    def __call__(
        self, images: Float[Array, "B S S 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """Scores images: `look`, then `score`.

        Args:
            images: normalised; S >= 64.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: padding moves no batch statistics, see `ConvBatchNorm`.

        Returns:
            Float32: `logits` `[B, C]`; `group_loss` `[]`, to be added to that of the logits; and
            `group_assignment` `[C, K]`, whose rows sum to 1.

        Raises:
            UsageError: the images are too small for the last map to be pooled.
        """
        return self.score(self.look(images, train, mask))

    def look(
        self, images: Float[Array, "B S S 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """All that the head needs of images, the maps of the backbone's last three stages.

        Arguments and errors are those of `__call__`.
        """
        maps = self.features(images, train, mask)[-3:]
        if min(maps[-1].shape[1:3]) < 2:
            raise UsageError(
                f"images of {images.shape[1]}x{images.shape[2]} px leave MSRN no position to "
                "attend to; data.image_size must be at least 64"
            )
        return dict(zip(MAPS, maps, strict=True))

    @nn.compact
    def score(self, seen: Outputs) -> Outputs:
        """What `__call__` returns, from what `look` does."""
        labels, groups, assignment = self.embed_labels()
        maps = tuple(seen[name] for name in MAPS)
        attended = self.attend(maps, jnp.concatenate([labels, groups]))
        return {
            "logits": self.classify(attended, assignment),
            "group_loss": group_loss(labels, groups, assignment),
            "group_assignment": assignment,
        }

    def embed_labels(
        self,
    ) -> tuple[
        Float32Or64[Array, "C 512"],
        Float32Or64[Array, "{self.num_groups} 512"],
        Float32Or64[Array, "C {self.num_groups}"],
    ]:
        """Embeddings of the labels and of the groups, and the assignment of those to these."""
        neighbours = jnp.asarray(self.attention_mask)
        labels = Linear(256, name="label_linear")(jnp.asarray(self.word_vectors, jnp.float32))
        labels = GraphAttention(300, name="label_attention0")(labels, neighbours)
        labels = GraphAttention(CHANNELS, name="label_attention1")(labels, neighbours)
        nodes = nn.relu(labels)
        members = GraphAttention(CHANNELS, name="group_attention")(nodes, neighbours)
        logits = GraphAttention(self.num_groups, name="group_assignment")(nodes, neighbours)
        return labels, *pool_into_groups(members, logits)

    def attend(
        self, maps: StageMaps, embeddings: Float32Or64[Array, "nodes 512"]
    ) -> Float32Or64[Array, "B nodes 3*512"]:
        """What every embedding sees of every map, in (-1, 1)."""
        seen = []
        for stage, x in zip((2, 3, 4), maps, strict=True):
            if stage != 4:
                x = Linear(x.shape[-1], name=f"branch{stage}")(x)
            x = Linear(CHANNELS, name=f"project{stage}")(halve(x))
            seen.append(spatial_attention(x.reshape(x.shape[0], -1, CHANNELS), embeddings))
        return jnp.tanh(jnp.concatenate(seen, axis=-1))

    def classify(
        self, seen: Float32Or64[Array, "B nodes F"], assignment: Float32Or64[Array, "C K"]
    ) -> Float32Or64[Array, "B C"]:
        """Logits from what labels and groups see."""
        num_classes = len(assignment)
        if self.head == "dense":
            fc1 = Linear(HIDDEN, self.fc1_axis, name="fc1")
            hidden = fc1(seen.reshape(seen.shape[0], -1))
            return Linear(num_classes, name="fc2")(nn.leaky_relu(hidden, 0.01))
        labels, groups = jnp.split(seen, [num_classes], axis=1)
        own_group = groups[:, jnp.argmax(assignment, axis=-1)]
        return PerLabel(name="per_label")(jnp.concatenate([labels, own_group], axis=-1))


class Linear(nn.Module):
    """A linear layer with a bias, or, of maps, a 1x1 convolution with one.

    Attributes:
        axis: of the mesh, inside `jax.shard_map`, over which the rows are spread and the kernel
            lies in slices of its inputs; what goes in and out of it is exchanged instead of it.
    """

    features: int
    axis: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"] | Float[Array, "B F"]
    ) -> Float[Array, "B H W {self.features}"] | Float[Array, "B {self.features}"]:
        if self.axis is not None:  # all rows, of the slice of the inputs that is here
            x = lax.all_to_all(x, self.axis, split_axis=1, concat_axis=0, tiled=True)
        start = uniform(x.shape[-1])
        kernel = self.param("kernel", start, (x.shape[-1], self.features))
        bias = self.param("bias", start, (self.features,))
        if x.ndim == 4:
            kernel = kernel[None, None].astype(x.dtype)
            return convolve(x, kernel) + bias[None, None, None].astype(x.dtype)
        x = jnp.dot(x.astype(kernel.dtype), kernel, precision=lax.Precision.HIGHEST)
        if self.axis is not None:  # the sums over all slices, of the rows that are here
            x = lax.psum_scatter(x, self.axis, scatter_dimension=0, tiled=True)
        return x + bias[None]


def halve(x: Float[Array, "B H W F"]) -> Float[Array, "B H//2 W//2 F"]:
    """Maximum over 2x2 windows at stride 2; an odd last line is dropped.

    As maxima of pairs: the gradient of a window reduction is several times slower on a CPU. A tie
    shares its gradient, where PyTorch would send it to the first.
    """
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width].reshape(batch, height, 2, width, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])
