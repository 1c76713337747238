"""Heads in which a query a label looks for it in the map: ML-Decoder and Query2Label.

Both are transformer decoders with normalisation after every addition, in float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

from mlic_jax.models.arrays import Float32Or64, Outputs
from mlic_jax.models.layers import PerLabel
from mlic_jax.models.precision import at_least_float32

DROPOUT = 0.1
EPSILON = 1e-5  # of layer normalisation, as PyTorch has it
ML_DECODER_WIDTH, QUERY2LABEL_WIDTH = 768, 2048
MOST_GROUPS = 100


class MLDecoder(nn.Module):
    """ML-Decoder (Ridnik et al., WACV 2023, arXiv 2111.12933): cross-attention alone.

    Its queries are drawn and never trained; they are with the statistics, in `batch_stats`. Of more
    than `MOST_GROUPS` labels a query serves several.

    Attributes:
        num_classes: C.
        width: of tokens and queries, a multiple of 24; the feed-forward layer is 8/3 as wide.
    """

    num_classes: int
    width: int = ML_DECODER_WIDTH

    @nn.compact
    def __call__(self, maps: Float[Array, "B h w F"], train: bool = False) -> Outputs:
        """Scores the last maps of a backbone.

        Args:
            train: with dropout, which needs a key `dropout`.

        Returns:
            `logits`, float32 `[B, C]`; and `class_maps`, float32 `[B, h, w, C]`: the attention of
            each label's query, a mean over heads, divided by its maximum.
        """
        groups = min(self.num_classes, MOST_GROUPS)
        labels = -(-self.num_classes // groups)  # of a group
        tokens = nn.relu(dense(self.width, "tokens")(positions_of(maps)))
        drawn = self.variable(
            "batch_stats",
            "queries",
            lambda: jax.random.normal(self.make_rng("params"), (groups, self.width)),
        )
        queries = jnp.broadcast_to(drawn.value, (maps.shape[0], groups, self.width))
        queries = add_and_norm(queries, queries, train, "norm_queries")
        seen, attention = Attention(8, name="attention")(queries, tokens, tokens, train)
        queries = add_and_norm(queries, seen, train, "norm_attention")
        queries = feed_forward(queries, self.width * 8 // 3, train)
        kernel = self.param("kernel", nn.initializers.xavier_normal(), (groups, self.width, labels))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        logits = jnp.einsum("bkf,kfl->bkl", queries, kernel, precision=lax.Precision.HIGHEST)
        logits = logits.reshape(maps.shape[0], -1)[:, : self.num_classes] + bias[None]
        attention = jnp.repeat(attention, labels, axis=1)[:, : self.num_classes]
        return {"logits": logits, "class_maps": as_maps(attention, *maps.shape[1:3])}


class Query2Label(nn.Module):
    """Query2Label (Liu et al., arXiv 2107.10834): an encoder layer and two decoder layers.

    The first decoder layer has no self-attention: of queries that have seen nothing of the image it
    would say the same of all images.

    Attributes:
        num_classes: C.
        width: D, a multiple of 4; the feed-forward layers are 4 times as wide.
    """

    num_classes: int
    width: int = QUERY2LABEL_WIDTH

    @nn.compact
    def __call__(self, maps: Float[Array, "B h w F"], train: bool = False) -> Outputs:
        """Scores the last maps of a backbone.

        Args:
            train: with dropout, which needs a key `dropout`.

        Returns:
            `logits`, float32 `[B, C]`; and `class_maps`, float32 `[B, h, w, C]`: the attention of
            each label in the last layer, a mean over heads, divided by its maximum.
        """
        memory = dense(self.width, "project")(positions_of(maps))
        _, height, width, _ = maps.shape
        places = jnp.asarray(sine_positions(height, width, self.width), memory.dtype)[None]
        memory = EncoderLayer(name="encoder")(memory, places, train)
        queries = self.param("queries", nn.initializers.normal(1), (self.num_classes, self.width))
        queries = jnp.broadcast_to(queries, (maps.shape[0], *queries.shape))
        for layer in range(2):
            decoder = DecoderLayer(self_attention=layer > 0, name=f"decoder{layer}")
            queries, attention = decoder(queries, memory, places, train)
        logits = PerLabel(name="per_label")(queries)
        return {"logits": logits, "class_maps": as_maps(attention, *maps.shape[1:3])}


class EncoderLayer(nn.Module):
    """Positions attend to each other, then a feed-forward layer 4 times as wide."""

    @nn.compact
    def __call__(
        self,
        tokens: Float32Or64[Array, "B P D"],
        places: Float32Or64[Array, "1 P D"],
        train: bool,
    ) -> Float32Or64[Array, "B P D"]:
        """Maps tokens to as many; `places` are added to queries and keys."""
        placed = tokens + places
        seen, _ = Attention(4, name="self_attention")(placed, placed, tokens, train)
        tokens = add_and_norm(tokens, seen, train, "norm_self")
        return feed_forward(tokens, 4 * tokens.shape[-1], train)


class DecoderLayer(nn.Module):
    """Labels attend to each other, then to positions, then a feed-forward layer 4 times as wide."""

    self_attention: bool = True

    @nn.compact
    def __call__(
        self,
        queries: Float32Or64[Array, "B C D"],
        memory: Float32Or64[Array, "B P D"],
        places: Float32Or64[Array, "1 P D"],
        train: bool,
    ) -> tuple[Float32Or64[Array, "B C D"], Float32Or64[Array, "B C P"]]:
        """Queries to as many, and their attention to the memory."""
        if self.self_attention:
            seen, _ = Attention(4, name="self_attention")(queries, queries, queries, train)
            queries = add_and_norm(queries, seen, train, "norm_self")
        attend = Attention(4, name="attention")
        seen, attention = attend(queries, memory + places, memory, train)
        queries = add_and_norm(queries, seen, train, "norm_attention")
        return feed_forward(queries, 4 * queries.shape[-1], train), attention


class Attention(nn.Module):
    """Attention of several heads, which says where it looked.

    Attributes:
        heads: divide the width of the queries.
    """

    heads: int

    @nn.compact
    def __call__(
        self,
        queries: Float32Or64[Array, "B Q D"],
        keys: Float32Or64[Array, "B P D"],
        values: Float32Or64[Array, "B P D"],
        train: bool,
    ) -> tuple[Float32Or64[Array, "B Q D"], Float32Or64[Array, "B Q P"]]:
        """What each query sees, and how it looks: the mean over heads, without dropout."""
        width = queries.shape[-1]

        queries, keys, values = (
            dense(width, name)(x).reshape(*x.shape[:2], self.heads, width // self.heads)
            for x, name in ((queries, "query"), (keys, "key"), (values, "value"))
        )
        scores = jnp.einsum("bqhd,bphd->bhqp", queries, keys) * (width // self.heads) ** -0.5
        attention = nn.softmax(scores)
        dropped = nn.Dropout(DROPOUT, deterministic=not train)(attention)
        seen = jnp.einsum("bhqp,bphd->bqhd", dropped, values)
        seen = dense(width, "out")(seen.reshape(*seen.shape[:2], width))
        return seen, jnp.mean(attention, axis=1)


def dense(width: int, name: str) -> nn.Dense:
    """A linear layer that starts as those of transformers do."""
    return nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), name=name)


def add_and_norm(
    x: Float32Or64[Array, "B N D"], seen: Float32Or64[Array, "B N D"], train: bool, name: str
) -> Float32Or64[Array, "B N D"]:
    """The sum of the two, the second after dropout, normalised over D."""
    seen = nn.Dropout(DROPOUT, deterministic=not train)(seen)
    return nn.LayerNorm(EPSILON, name=name)(x + seen)


def feed_forward(
    x: Float32Or64[Array, "B N D"], width: int, train: bool
) -> Float32Or64[Array, "B N D"]:
    """Two linear layers, the first of `width`, added and normalised."""
    hidden = nn.relu(dense(width, "expand")(x))
    hidden = nn.Dropout(DROPOUT, deterministic=not train)(hidden)
    return add_and_norm(x, dense(x.shape[-1], "reduce")(hidden), train, "norm_reduce")


def positions_of(maps: Float[Array, "B h w F"]) -> Float32Or64[Array, "B h*w F"]:
    """Maps as a row of positions, in float32 at least."""
    batch, height, width, inputs = maps.shape
    return at_least_float32(maps).reshape(batch, height * width, inputs)


def as_maps(
    attention: Float32Or64[Array, "B C {height*width}"], height: int, width: int
) -> Float32Or64[Array, "B {height} {width} C"]:
    """Attention to the positions of maps of that size, divided by its maximum."""
    share = attention / jnp.max(attention, axis=-1, keepdims=True)
    return jnp.moveaxis(share.reshape(*share.shape[:2], height, width), 1, -1)


def sine_positions(
    height: int, width: int, channels: int
) -> Float32[np.ndarray, "{height*width} {channels}"]:
    """Sines and cosines of where each position lies (Carion et al. 2020, DETR).

    Rows, then columns, counted from 1 and scaled to 2 pi at the far edge, at frequencies from 1
    down to 1 / 10000.

    Returns:
        Half of the channels for the row, half for the column; in each a sine and a cosine in turns.
    """
    count = channels // 2
    periods = 10000.0 ** (2 * (np.arange(count) // 2) / count)

    def waves(length: int) -> np.ndarray:
        angles = 2 * np.pi * np.arange(1, length + 1)[:, None] / length / periods[None]
        return np.where(np.arange(count)[None] % 2 == 0, np.sin(angles), np.cos(angles))

    rows = np.broadcast_to(waves(height)[:, None], (height, width, count))
    columns = np.broadcast_to(waves(width)[None], (height, width, count))
    both = np.concatenate([rows, columns], axis=-1)
    return both.reshape(height * width, 2 * count).astype(np.float32)
