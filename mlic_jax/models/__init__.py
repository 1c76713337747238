"""The registry: from the names of a configuration to Linen modules."""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from ml_collections import ConfigDict

from mlic_jax.errors import UsageError
from mlic_jax.models.attentive import Attentive
from mlic_jax.models.backbones import CREATORS, Settings
from mlic_jax.models.heads.csra import CSRA, TEMPERATURES
from mlic_jax.models.heads.decoders import (
    ML_DECODER_WIDTH,
    QUERY2LABEL_WIDTH,
    MLDecoder,
    Query2Label,
)
from mlic_jax.models.heads.pooled import POOLINGS, Pooled
from mlic_jax.models.mcar import MCAR
from mlic_jax.models.msrn import MSRN
from mlic_jax.models.options import UNSAID, ModelOptions
from mlic_jax.names import (
    BACKBONES,
    DTYPES,
    HEADS,
    LARGEST_SIDE,
    LOCALIZERS,
    MODELS,
    PRECISIONS,
    REMATS,
    require_one_of,
    stride_of,
)

_PUBLISHED = frozenset(MODELS)  # before any is registered

# From the options and the number of classes to a head of `Attentive`.
CreateHead = Callable[[ModelOptions, int], nn.Module]


def _csra(options: ModelOptions, num_classes: int) -> CSRA:
    require_one_of("model.csra_heads", str(options.csra_heads), map(str, TEMPERATURES))
    if not 0 <= options.csra_residual < float("inf"):
        raise UsageError(f"model.csra_residual is {options.csra_residual}; it must be at least 0")
    return CSRA(num_classes, options.csra_heads, options.csra_residual)


def _head_width(options: ModelOptions, published: int, multiple: int) -> int:
    if options.head_width < 0 or options.head_width % multiple:
        raise UsageError(
            f"model.head_width is {options.head_width}; with {options.name} it must be a multiple "
            f"of {multiple}, or 0 for the published {published}"
        )
    return options.head_width or published


ATTENTIVE_HEADS: dict[str, CreateHead] = {
    "csra": _csra,
    "ml_decoder": lambda options, num_classes: MLDecoder(
        num_classes, _head_width(options, ML_DECODER_WIDTH, 24)
    ),
    "query2label": lambda options, num_classes: Query2Label(
        num_classes, _head_width(options, QUERY2LABEL_WIDTH, 4)
    ),
}


def register_head(name: str, create: CreateHead) -> None:
    """Makes a head of one's own known as `model.name`, to train, evaluate and predict with.

    Args:
        name: of no model of the package. One that was registered before is replaced, for a recipe
            or a cell of a notebook that registers it may run again.
        create: the options and the number of classes to a Linen module, see `Attentive.head`.

    Raises:
        UsageError: the package has a model of that name.
    """
    if name in _PUBLISHED:
        raise UsageError(f"there is a model {name!r} already: give the head another name")
    ATTENTIVE_HEADS[name] = create
    if name not in MODELS:
        MODELS.append(name)


def create_backbone(
    name: str,
    width: float = 1.0,
    dtype: str = "float32",
    bn_groups: int = 1,
    remat: str = "none",
    drop_path: float = 0.0,
) -> nn.Module:
    """A backbone that maps images `[B, H, W, 3]` to the feature maps of its stages.

    Args:
        name: one of `BACKBONES`.
        width: multiplies the channel counts; 1 is the published network.
        dtype: one of `DTYPES`, of convolutions and maps. Statistics are float32 in any case.
        bn_groups: parts of a batch that are normalised each by itself, see `ConvBatchNorm`; of no
            use to a backbone without batch normalisation.
        remat: one of `REMATS`, what the backward pass computes again.
        drop_path: the rate of stochastic depth of the last block, of a backbone that has it.

    Raises:
        UsageError: an option is unknown or out of its range, or the backbone has no such thing.
    """
    require_one_of("model.backbone", name, BACKBONES)
    require_one_of("model.dtype", dtype, DTYPES)
    require_one_of("model.remat", remat, REMATS)
    for option, value in (("width", width), ("bn_groups", bn_groups)):
        if value <= 0:
            raise UsageError(f"model.{option} is {value}; it must be positive")
    if not 0 <= drop_path < 1:
        raise UsageError(f"model.drop_path is {drop_path}; it must be at least 0 and below 1")
    backbone = CREATORS[name](Settings(width, getattr(jnp, dtype), bn_groups, remat, drop_path))
    if drop_path and not hasattr(backbone, "drop_path"):
        raise UsageError(
            f"model.drop_path is {drop_path}, and {name} has no stochastic depth: leave it 0"
        )
    return backbone


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
        options.backbone,
        options.width,
        options.dtype,
        options.bn_groups,
        options.remat,
        options.drop_path,
    )
    if options.name == "msrn":
        return _create_msrn(options, features, num_classes, word_vectors, attention_mask)
    if options.name == "pooled":
        return _create_pooled(options, features, num_classes)
    _check_regions(options, num_classes)
    if options.name == "mcar":
        return _create_mcar(options, features, num_classes)
    return Attentive(
        features=features,
        head=ATTENTIVE_HEADS[options.name](options, num_classes),
        top_n=options.top_n,
        threshold=options.threshold,
        localizer=options.localizer,
    )


def spread(model: nn.Module, axis: str, shard_fc1: bool = False) -> nn.Module:
    """The model as it runs inside `jax.shard_map`, on some rows of a batch that is one to it.

    Args:
        axis: of the mesh, along which batches are split; statistics are of all rows along it.
        shard_fc1: the first dense layer of MSRN is split along it as well, by its inputs.
    """
    if hasattr(model.features, "layer"):  # others have no statistics that devices would exchange
        layer = partial(model.features.layer, axis=axis)
        model = model.clone(features=model.features.clone(layer=layer))
    return model.clone(fc1_axis=axis) if shard_fc1 else model


def _check_regions(options: ModelOptions, num_classes: int) -> None:
    require_one_of("model.localizer", options.localizer, LOCALIZERS)
    if not 1 <= options.top_n <= num_classes:
        raise UsageError(
            f"model.top_n is {options.top_n}; it must be 1 to {num_classes}, the number of classes"
        )
    if not 0 < options.threshold < 1:
        raise UsageError(f"model.threshold is {options.threshold}; it must lie between 0 and 1")


def _create_pooled(options: ModelOptions, features: nn.Module, num_classes: int) -> Pooled:
    require_one_of("model.pooling", options.pooling, POOLINGS)
    # Runs of an earlier version, which had no regions, may say more than there are classes.
    options = dataclasses.replace(options, top_n=min(options.top_n, num_classes))
    _check_regions(options, num_classes)
    return Pooled(
        features=features,
        num_classes=num_classes,
        pooling=options.pooling,
        top_n=options.top_n,
        threshold=options.threshold,
        localizer=options.localizer,
    )


def _create_mcar(options: ModelOptions, features: nn.Module, num_classes: int) -> MCAR:
    require_one_of("model.pooling", options.pooling, POOLINGS)
    stride = stride_of(options.backbone)
    if not 0 <= options.local_size <= LARGEST_SIDE or options.local_size % stride:
        raise UsageError(
            f"model.local_size is {options.local_size}; it must be a multiple of {stride} up to "
            f"{LARGEST_SIDE}, or 0 for crops as large as the image"
        )
    if options.region_grid not in (1, 2, 4, 8, 16, 32):
        raise UsageError(
            f"model.region_grid is {options.region_grid}; it must be 1, or a power of 2 up to 32"
        )
    return MCAR(
        features=features,
        num_classes=num_classes,
        pooling=options.pooling,
        top_n=options.top_n,
        threshold=options.threshold,
        localizer=options.localizer,
        local_size=options.local_size,
        region_grid=options.region_grid,
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
