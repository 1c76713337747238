"""The names of Swin Transformer, V1 and V2."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mlic_jax.models.backbones.swin import (
    HEAD_FEATURES,
    SIZES,
    distance_index,
    log_distances,
)
from weight_conversion.layouts.rules import (
    CONV,
    LINEAR,
    PER_MAP,
    Layout,
    Part,
    Rule,
    convolution,
    imagenet_head,
    linear,
    no_head,
    norm,
    unused,
)
from weight_conversion.preprocessing import Preprocessing

SWIN = tuple(name for name, size in SIZES.items() if size.version == 1)
SWIN_V2 = tuple(name for name, size in SIZES.items() if size.version == 2)
TORCHVISION = [
    f"{name}_{size}" for name in ("swin", "swinv2") for size in ("tiny", "small", "base")
]
# Those whose tensors have the names and shapes of another's, by that. A window of version 2 is told
# by a table in the file, which most leave out.
TWINS = {name: f"{name}_window16" for name in SWIN_V2 if f"{name}_window16" in SIZES}


class BlockNames(NamedTuple):
    """Of the parts of a block; `attention` makes the rules from its name and ours."""

    norms: tuple[str, str]
    attention: Callable[[str, str], list[Rule]]
    expand: str
    reduce: str


def _swin(
    stem: Sequence[str], stages: Sequence[str], down: Sequence[str], last: str, block: BlockNames
) -> tuple[Rule, ...]:
    """A Swin Transformer.

    Args:
        stem: its convolution and its normalisation.
        stages: what the names of the blocks of each of the four begin with.
        down: of those that lead to the last three stages.
        last: the normalisation at the end.
    """
    rules = [*convolution(stem[0], "stem/patches", CONV), *norm(stem[1], "stem/norm")]
    for number, name in enumerate(down, start=2):
        ours = f"downsample{number}"
        kernel = f"params/features/{ours}/reduction/kernel"
        rules += [*norm(f"{name}.norm", f"{ours}/norm")]
        rules.append(Rule(f"{name}.reduction.weight", kernel, LINEAR))
    for number, stage in enumerate(stages, start=1):
        name, ours = f"{stage}.{{block}}", f"stage{number}_{{block}}"
        rules += block.attention(name, f"features/{ours}/attention")
        for k, theirs in enumerate(block.norms, start=1):
            rules += norm(f"{name}.{theirs}", f"{ours}/norm{k}")
        rules += convolution(f"{name}.{block.expand}", f"{ours}/expand", LINEAR)
        rules += convolution(f"{name}.{block.reduce}", f"{ours}/reduce", LINEAR)
    return (*rules, *norm(last, "norm"))


def _positions(version: int, name: str, mlp: str, ours: str) -> list[Rule]:
    """What attention adds to its scores, and of version 2 multiplies their cosines by."""
    if version == 1:
        table = f"params/{ours}/position/bias"
        return [Rule(f"{name}.relative_position_bias_table", table, is_of_windows=True)]
    return [
        Rule(f"{name}.logit_scale", f"params/{ours}/logit_scale", PER_MAP),
        *linear(f"{name}.{mlp}.0", f"{ours}/position/hidden"),
        Rule(f"{name}.{mlp}.2.weight", f"params/{ours}/position/out/kernel", LINEAR),
    ]


def _fused(version: int, key_bias: bool, block: str, ours: str) -> list[Rule]:
    """Queries, keys and values as one linear layer; in version 2 no key has a bias that is used.

    Args:
        key_bias: whether the layer has all three biases nevertheless.
    """
    name = f"{block}.attn"
    rules = _positions(version, name, "cpb_mlp", ours)
    biases = {"query": f"{name}.q_bias", "value": f"{name}.v_bias"}
    for k, module in enumerate(("query", "key", "value")):
        path, part = f"params/{ours}/{module}", Part(k, 3)
        rules.append(Rule(f"{name}.qkv.weight", f"{path}/kernel", LINEAR, part))
        if version == 1 or (key_bias and module != "key"):
            rules.append(Rule(f"{name}.qkv.bias", f"{path}/bias", part=part))
        elif key_bias:
            rules.append(Rule(f"{name}.qkv.bias", f"unused/{name}.qkv.bias", part=part))
        elif module != "key":
            rules.append(Rule(biases[module], f"{path}/bias"))
    return [*rules, *linear(f"{name}.proj", f"{ours}/out")]


def _separate(version: int, block: str, ours: str) -> list[Rule]:
    """Queries, keys and values as files of Hugging Face's have them."""
    name = f"{block}.attention.self"
    rules = _positions(version, name, "continuous_position_bias_mlp", ours)
    for module in ("query", "key", "value"):
        rules += linear(f"{name}.{module}", f"{ours}/{module}")
    return [*rules, *linear(f"{block}.attention.output.dense", f"{ours}/out")]


def _separate5(block: str, ours: str) -> list[Rule]:
    """As the modules of version 5 of `transformers` call them."""
    rules = _positions(1, f"{block}.attention.relative_position_bias", "", ours)
    for theirs, module in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
        rules += linear(f"{block}.attention.{theirs}_proj", f"{ours}/{module}")
    return rules


# What the names of the blocks of each stage begin with.
LAYERS = tuple(f"layers.{k}.blocks" for k in range(4))
FEATURES = tuple(f"features.{k}" for k in (1, 3, 5, 7))
DOWNS = tuple(f"layers.{k}.downsample" for k in range(4))
MOST_BLOCKS = max(max(size.blocks) for size in SIZES.values())
BICUBIC = Preprocessing(interpolation="bicubic")
INDEX, COORDINATES = "relative_position_index", "relative_coords_table"


def _of_timm(version: int, down: Sequence[str]) -> tuple[Rule, ...]:
    attention = partial(_fused, version, False)
    names = BlockNames(("norm1", "norm2"), attention, "mlp.fc1", "mlp.fc2")
    return _swin(("patch_embed.proj", "patch_embed.norm"), LAYERS, down, "norm", names)


def _of_torchvision(version: int) -> tuple[Rule, ...]:
    down = [f"features.{k}" for k in (2, 4, 6)]
    names = BlockNames(("norm1", "norm2"), partial(_fused, version, True), "mlp.0", "mlp.3")
    return _swin(("features.0.0", "features.0.2"), FEATURES, down, "norm", names)


def _of_transformers(names: BlockNames, prefix: str) -> tuple[Rule, ...]:
    """In a model that calls it `prefix`."""
    return _swin(
        (f"{prefix}embeddings.patch_embeddings.projection", f"{prefix}embeddings.norm"),
        [f"{prefix}encoder.{stage}" for stage in LAYERS],
        [f"{prefix}encoder.{down}" for down in DOWNS[:3]],
        f"{prefix}layernorm",
        names,
    )


def _attentions(stages: Sequence[str], arch: str) -> Iterator[tuple[str, int, int]]:
    """Of every attention its name, its heads and the side of its windows."""
    blocks, *per_stage, _ = SIZES[arch]
    for stage, count, heads, side in zip(stages, blocks, *per_stage, strict=True):
        yield from ((f"{stage}.{block}.attn", heads, side) for block in range(count))


def _tables(stages: Sequence[str], is_flat: bool, arch: str) -> dict[str, np.ndarray]:
    """What a network computes of its windows and keeps with its weights.

    Args:
        stages: what the names of their blocks begin with.
        is_flat: whether an index has one axis, and not two.
    """
    tables = {}
    for name, _, side in _attentions(stages, arch):
        index = distance_index((side, side), side)
        tables[f"{name}.{INDEX}"] = index.ravel() if is_flat else index
        if SIZES[arch].version == 2:
            reach = 2 * side - 1
            table = log_distances(side, side - 1).reshape(1, reach, reach, 2)
            tables[f"{name}.{COORDINATES}"] = table.astype(np.float32)
    return tables


def _torchvision_tables(arch: str) -> dict[str, np.ndarray]:
    """And, in version 2, the biases of keys, which it sets to 0."""
    tables = _tables(FEATURES, True, arch)
    if SIZES[arch].version == 2:
        for name, heads, _ in _attentions(FEATURES, arch):
            tables[f"{name}.qkv.bias"] = np.zeros(HEAD_FEATURES * heads, np.float32)
    return tables


def _tables_kept(stages: Sequence[str]) -> list[Rule]:
    return [unused(f"{s}.{{block}}.attn.{name}") for s in stages for name in (INDEX, COORDINATES)]


def _ignored(stages: Sequence[str], attention: str = "attn") -> frozenset[str]:
    """Such tables, and the masks of an image size, of every block that there may be."""
    blocks = [f"{stage}.{k}" for stage in stages for k in range(MOST_BLOCKS)]
    tables = {f"{block}.{attention}.{name}" for block in blocks for name in (INDEX, COORDINATES)}
    return frozenset(tables | {f"{block}.attn_mask" for block in blocks})


def _layouts(version: int, archs: tuple[str, ...], model: str) -> Iterator[Layout]:
    """Of one version, which Hugging Face calls `model`."""
    ignored = _ignored(LAYERS)
    yield Layout(
        "timm",
        archs,
        (*_of_timm(version, DOWNS[1:]), *linear("head.fc", "classifier")),
        imagenet_head,
        BICUBIC,
        ignored,
    )
    yield Layout(  # github.com/microsoft/Swin-Transformer, and timm before 0.9
        "microsoft",
        archs,
        (*_of_timm(version, DOWNS[:3]), *linear("head", "classifier"), *_tables_kept(LAYERS)),
        imagenet_head,
        BICUBIC,
        frozenset(name for name in ignored if name.endswith("attn_mask")),
        partial(_tables, LAYERS, False),
    )
    yield Layout(
        "torchvision",
        tuple(name for name in archs if name in TORCHVISION),
        (*_of_torchvision(version), *linear("head", "classifier"), *_tables_kept(FEATURES)),
        imagenet_head,
        BICUBIC,
        constants=_torchvision_tables,
    )
    norms, mlp = ("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense")
    styles = {"transformers": BlockNames(norms, partial(_separate, version), *mlp)}
    if version == 1:
        styles["transformers5"] = BlockNames(norms, _separate5, "mlp.fc1", "mlp.fc2")
    for style, names in styles.items():
        yield Layout(  # SwinForImageClassification, Swinv2ForImageClassification
            style,
            archs,
            (*_of_transformers(names, f"{model}."), *linear("classifier", "classifier")),
            imagenet_head,
            BICUBIC,
            _ignored([f"{model}.encoder.{stage}" for stage in LAYERS], "attention.self"),
        )
        yield Layout(  # SwinModel, Swinv2Model
            f"{style}-trunk",
            archs,
            _of_transformers(names, ""),
            no_head,
            BICUBIC,
            _ignored([f"encoder.{stage}" for stage in LAYERS], "attention.self"),
        )


LAYOUTS = (*_layouts(1, SWIN, "swin"), *_layouts(2, SWIN_V2, "swinv2"))
