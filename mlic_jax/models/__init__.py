"""The registry: from the names of a configuration to Linen modules."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from ml_collections import ConfigDict

from mlic_jax.errors import UsageError
from mlic_jax.models.backbones.mobilenet_v2 import MobileNetV2
from mlic_jax.models.backbones.resnet import ResNet
from mlic_jax.models.heads.pooled import POOLINGS, Pooled
from mlic_jax.models.layers import ConvBatchNorm
from mlic_jax.models.mcar import MCAR
from mlic_jax.models.msrn import MSRN
from mlic_jax.models.options import UNSAID, ModelOptions
from mlic_jax.names import (
    BACKBONES,
    DTYPES,
    HEADS,
    LOCALIZERS,
    MODELS,
    PRECISIONS,
    REMATS,
    require_one_of,
)


def create_backbone(
    name: str,
    width: float = 1.0,
    dtype: str = "float32",
    bn_groups: int = 1,
    remat: str = "none",
) -> nn.Module:
    """A backbone that maps images `[B, H, W, 3]` to the feature maps of its stages.

    Args:
        name: one of `BACKBONES`.
        width: multiplies the channel counts; 1 is the published network.
        dtype: one of `DTYPES`, of convolutions and maps. Statistics are float32 in any case.
        bn_groups: parts of a batch that are normalised each by itself, see `ConvBatchNorm`.
        remat: one of `REMATS`, what the backward pass computes again.

    Raises:
        UsageError: an option is unknown or not positive.
    """
    require_one_of("model.backbone", name, BACKBONES)
    require_one_of("model.dtype", dtype, DTYPES)
    require_one_of("model.remat", remat, REMATS)
    for option, value in (("width", width), ("bn_groups", bn_groups)):
        if value <= 0:
            raise UsageError(f"model.{option} is {value}; it must be positive")
    layer = partial(ConvBatchNorm, dtype=getattr(jnp, dtype), bn_groups=bn_groups)
    if name == "mobilenet_v2":
        return MobileNetV2(width, layer, remat)
    return ResNet(int(name.removeprefix("resnet")), width, layer, remat)


def create_model(
    config: ModelOptions | ConfigDict,
    num_classes: int,
    word_vectors: Shaped[np.ndarray, "..."] | None = None,
    attention_mask: Shaped[np.ndarray, "..."] | None = None,
) -> nn.Module:
    """The model that `config.model` describes, for `num_classes` labels.

    Args:
        config: `config.model`, or such a section of an earlier version, see `UNSAID`.
        num_classes: C.
        word_vectors: float `[C, V]`, what MSRN knows of its labels; no other model reads it.
        attention_mask: bool `[C, C]`, the graph of MSRN's labels: True where label i (row) attends
            to label j (column), itself included.

    Raises:
        UsageError: an option is unknown or does not fit the number of classes, or the label inputs
            of MSRN are missing or do not fit it.
    """
    options = config if isinstance(config, ModelOptions) else ModelOptions.of({**UNSAID, **config})
    require_one_of("model.name", options.name, MODELS)
    require_one_of("model.precision", options.precision, PRECISIONS)
    features = create_backbone(
        options.backbone, options.width, options.dtype, options.bn_groups, options.remat
    )
    if options.name == "msrn":
        return _create_msrn(options, features, num_classes, word_vectors, attention_mask)
    require_one_of("model.pooling", options.pooling, POOLINGS)
    if options.name == "pooled":
        return Pooled(features, num_classes, options.pooling)
    return _create_mcar(options, features, num_classes)


def spread(model: nn.Module, axis: str, shard_fc1: bool = False) -> nn.Module:
    """The model as it runs inside `jax.shard_map`, on some rows of a batch that is one to it.

    Args:
        axis: of the mesh, along which batches are split; statistics are of all rows along it.
        shard_fc1: the first dense layer of MSRN is split along it as well, by its inputs.
    """
    layer = partial(model.features.layer, axis=axis)
    model = model.clone(features=model.features.clone(layer=layer))
    return model.clone(fc1_axis=axis) if shard_fc1 else model


def _create_mcar(options: ModelOptions, features: nn.Module, num_classes: int) -> MCAR:
    require_one_of("model.localizer", options.localizer, LOCALIZERS)
    if not 1 <= options.top_n <= num_classes:
        raise UsageError(
            f"model.top_n is {options.top_n}; it must be 1 to {num_classes}, the number of classes"
        )
    if not 0 < options.threshold < 1:
        raise UsageError(f"model.threshold is {options.threshold}; it must lie between 0 and 1")
    if options.local_size < 0 or options.local_size % 32:
        raise UsageError(
            f"model.local_size is {options.local_size}; it must be a multiple of 32, or 0 for "
            "crops as large as the image"
        )
    return MCAR(
        features=features,
        num_classes=num_classes,
        pooling=options.pooling,
        top_n=options.top_n,
        threshold=options.threshold,
        localizer=options.localizer,
        local_size=options.local_size,
    )


def _create_msrn(
    options: ModelOptions,
    features: nn.Module,
    num_classes: int,
    word_vectors: np.ndarray | None,
    attention_mask: np.ndarray | None,
) -> MSRN:
    require_one_of("model.head", options.head, HEADS)
    num_groups = int(options.pool_ratio * num_classes)
    if not 1 <= num_groups <= num_classes:
        raise UsageError(
            f"model.pool_ratio is {options.pool_ratio}, which makes {num_groups} groups of "
            f"{num_classes} labels; it must be at least 1/{num_classes} and at most 1"
        )
    if word_vectors is None or attention_mask is None:
        raise UsageError(
            "model.name is 'msrn', which needs a word vector for every label and a graph of the "
            "labels; give both"
        )
    if word_vectors.ndim != 2 or len(word_vectors) != num_classes:
        raise UsageError(
            f"the word vectors have the shape {word_vectors.shape}; {num_classes} labels need "
            f"({num_classes}, dimensions)"
        )
    if attention_mask.shape != (num_classes, num_classes) or attention_mask.dtype != bool:
        raise UsageError(
            f"the attention mask is {attention_mask.dtype} of the shape {attention_mask.shape}; "
            f"{num_classes} labels need bool of ({num_classes}, {num_classes})"
        )
    if not attention_mask.diagonal().all():
        raise UsageError("the attention mask keeps a label from itself; its diagonal must be True")
    return MSRN(
        features=features,
        word_vectors=word_vectors,
        attention_mask=attention_mask,
        num_groups=num_groups,
        head=options.head,
    )
