"""Which layout a checkpoint's tensors are of, and which tensor is which leaf of ours."""

import functools
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_backbone
from weight_conversion.layouts import (
    ARCHS,
    LAYOUTS,
    PLACEHOLDERS,
    Layout,
    Leaves,
    Rule,
    Shape,
    Shapes,
    Sizes,
)


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
    best = _closest(shapes)
    if not best.problems and arch not in (None, best.arch):
        raise UsageError(f"these are the weights of {best.arch}, not of {arch}")
    if best.problems and arch is not None:
        of_arch = (match(shapes, layout, arch) for layout in LAYOUTS if arch in layout.archs)
        best = min(of_arch, key=lambda m: len(m.problems))
    if 2 * len(best.filled) <= len(shapes):
        names = ", ".join(map(repr, list(shapes)[:3])) or "none"
        known = ", ".join(f"{layout.name} {name}" for layout in LAYOUTS for name in layout.archs)
        raise Failure(f"no known network (its tensors: {names}, ...); known are {known}")
    if best.problems:
        title = f"does not fit {best.arch} under {best.layout.name} names"
        raise Failure(listing(title, best.problems))
    return best


def _closest(shapes: Mapping[str, Shape]) -> Match:
    """What fits, or nearly does, of the layouts that know most of the names.

    Only of those, and to the first that fits: to know what a network needs it has to be traced.
    """
    names = [name.removeprefix("module.") for name in shapes]
    known = {}
    for layout in LAYOUTS:
        patterns = [_pattern(rule.source) for rule in layout.rules]
        known[layout] = sum(any(p.fullmatch(name) for p in patterns) for name in names)
    best = None
    for layout, count in known.items():
        for arch in layout.archs if count == max(known.values()) else ():
            found = match(shapes, layout, arch)
            if best is None or len(found.problems) < len(best.problems):
                best = found
            if not found.problems or not count:
                return best
    return best


def match(shapes: Mapping[str, Shape], layout: Layout, arch: str) -> Match:
    """Compares the names and shapes of tensors with those that `layout` gives to all of `arch`."""
    result = Match(arch, layout, sizes_of(shapes, arch))
    leaves = leaves_of(layout, arch, result.sizes)
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


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, placeholder, text, ..., text
    for k, part in enumerate(parts):
        parts[k] = re.escape(part) if k % 2 == 0 else f"(?P<{part}>{PLACEHOLDERS[part]})"
    return re.compile("".join(parts))


def sizes_of(shapes: Mapping[str, Shape], arch: str) -> Sizes:
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


def leaves_of(layout: Layout, arch: str, sizes: Sizes) -> Leaves:
    """All leaves that a checkpoint of `arch` has under `layout`."""
    head = layout.head(sizes)
    counts = dict.fromkeys(_step_counts(layout, arch), ())
    return Leaves(_trunk(arch)[0] | head.required, head.optional, head.dead | counts)


@functools.cache
def _step_counts(layout: Layout, arch: str) -> tuple[str, ...]:
    """The paths of `num_batches_tracked`: beside every running mean, by its torch name."""
    means = [source_name(t, layout)[0] for t in _trunk(arch)[0] if t.endswith("/mean")]
    return tuple(f"unused/{name.removesuffix('running_mean')}num_batches_tracked" for name in means)


@functools.cache
def _names(layout: Layout, arch: str) -> dict[str, tuple[str, Rule]]:
    """Every name of `arch` under `layout`: its target and its rule."""
    leaves = leaves_of(layout, arch, Sizes(_trunk(arch)[1], classes=1, groups=1))
    names: dict[str, tuple[str, Rule]] = {}
    for target in leaves.required | leaves.optional | leaves.dead:
        name, rule = source_name(target, layout)
        if name in names:
            raise ValueError(f"{layout.name}: {name} is the name of {names[name][0]} and {target}")
        names[name] = (target, rule)
    return names


def _source_shape(target_shape: Shape, rule: Rule) -> Shape:
    return target_shape if rule.axes is None else rule.axes.their_shape(target_shape)


def source_name(target: str, layout: Layout) -> tuple[str, Rule]:
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


def listing(title: str, problems: list[str], most: int = 8) -> str:
    """One line, however many problems there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return f"{title}: {'; '.join([*problems[:most], *more])}"
