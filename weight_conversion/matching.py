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
from mlic_jax.models.backbones.swin import window_of
from weight_conversion.layouts import ARCHS, LAYOUTS, TWINS
from weight_conversion.layouts.rules import PLACEHOLDERS, Layout, Leaves, Rule, Shape, Shapes, Sizes

FEWEST = 10  # names; no network has fewer, which need not be told from each other


@dataclass
class Match:
    """How the tensors of a checkpoint fill `arch` under `layout`, and everything that is wrong."""

    arch: str
    layout: Layout
    sizes: Sizes
    filled: dict[str, tuple[str, Rule]] = field(default_factory=dict)  # target -> source, rule
    problems: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)  # those of them that are of shapes
    left_out: list[str] = field(default_factory=list)  # tensors beside a trunk, its head's too
    # Of what is of other windows the shape that it gets: tables, and what goes with them.
    resized: dict[str, Shape] = field(default_factory=dict)  # by target

    @property
    def is_exact(self) -> bool:
        """Whether every tensor is what it is there."""
        return not self.problems and not self.resized


def detect(shapes: Mapping[str, Shape], arch: str | None = None) -> Match:
    """Finds the layout and architecture that the tensors of a checkpoint fill exactly.

    Tensors beside those of a trunk are left out, and so is its head if it is of other classes than
    ImageNet's: a head is what it gets here. Of a whole model every tensor counts. Tables of the
    distances in other windows are resized for an `arch` alone.

    Args:
      shapes: the shape of every tensor by its name.
      arch: insist on this architecture; that of MCAR and MSRN is their backbone's.

    Raises:
      UsageError: `arch` is unknown, or the tensors are those of another architecture, or without
        an `arch` those of two.
      Failure: nothing fits; lists the problems under the layout that comes closest.
    """
    best = closest(shapes, arch)
    check(best, shapes, arch)
    return best


def closest(shapes: Mapping[str, Shape], arch: str | None = None) -> Match:
    """The match with the fewest problems: of `arch`, unless it has some and another has none.

    Of those without any, without an `arch`, one with nothing to resize.

    Raises:
      UsageError: `arch` is unknown.
    """
    if arch is None:
        return _closest_of_all(shapes)
    if arch not in ARCHS:
        raise UsageError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHS)}")
    of_arch = (match(shapes, layout, arch) for layout in LAYOUTS if arch in layout.archs)
    best = min(of_arch, key=lambda m: (len(m.problems), len(m.left_out)))
    if not best.problems or (of_all := _closest_of_all(shapes)).problems:
        return best
    return of_all


def check(best: Match, shapes: Mapping[str, Shape], arch: str | None) -> None:
    """Raises what `detect` raises, of the `closest` match."""
    if not best.problems and arch not in (None, best.arch):
        raise UsageError(f"these are the weights of {best.arch}, not of {arch}")
    if best.problems and 2 * len(best.filled) <= len(shapes):
        names = ", ".join(map(repr, list(shapes)[:3])) or "none"
        known = ", ".join(f"{layout.name} {name}" for layout in LAYOUTS for name in layout.archs)
        raise Failure(f"no known network (its tensors: {names}, ...); known are {known}")
    if 2 * len(best.misshapen) > len(best.filled):
        names = ", ".join(best.layout.archs)
        title = f"{best.layout.name} names of a size that is none of {names}"
        raise Failure(f"{title}: {best.misshapen[0]}")
    if arch is None and best.resized and not best.problems:
        raise UsageError(_said_of_windows(best, shapes))
    if best.problems:
        title = f"does not fit {best.arch} under {best.layout.name} names"
        raise Failure(listing(title, best.problems))
    twin = TWINS.get(best.arch)
    if arch is None and twin and not match(shapes, best.layout, twin).problems:
        raise UsageError(
            f"it fits {best.arch} and {twin}, which differ in what no tensor tells: say which "
            "with --arch"
        )


def _said_of_windows(best: Match, shapes: Mapping[str, Shape]) -> str:
    """That its windows are none of those that are known, and what can be done."""
    target, ours = next(iter(best.resized.items()))
    given, wanted = (window_of(rows) for rows in (shapes[best.filled[target][0]][0], ours[0]))
    archs = [arch for arch in best.layout.archs if not match(shapes, best.layout, arch).problems]
    return (
        f"it fits {best.arch} but for windows of {given}x{given} where that has {wanted}x{wanted}: "
        f"their tables are resized for --arch {' or '.join(archs)}"
    )


def _closest_of_all(shapes: Mapping[str, Shape]) -> Match:
    """What fits, or nearly does, of the layouts that know most of the names.

    Only of those, and to the first that fits: to know what a network needs it has to be traced.
    """
    known = {layout: sum(map(bool, map(_sources(layout).fullmatch, shapes))) for layout in LAYOUTS}
    matches: list[Match] = []
    for layout in (layout for layout, count in known.items() if count == max(known.values())):
        for arch in layout.archs:
            matches.append(match(shapes, layout, arch))
            if matches[-1].is_exact or known[layout] < FEWEST:
                return matches[-1]
    return min(matches, key=lambda m: (len(m.problems), len(m.resized)))


def match(shapes: Mapping[str, Shape], layout: Layout, arch: str) -> Match:
    """Compares the names and shapes of tensors with those that `layout` gives to all of `arch`."""
    result = Match(arch, layout, sizes_of(shapes, arch))
    leaves = leaves_of(layout, arch, result.sizes)
    known = leaves.required | leaves.optional | leaves.dead
    names = _names(layout, arch)
    is_trunk = not layout.head(result.sizes).required
    for name, shape in shapes.items():
        if name in names:
            result.filled |= {target: (name, rule) for target, rule in names[name]}
        elif name in layout.ignored or (
            is_trunk and name.partition(".")[0] not in _modules(layout, arch)
        ):
            result.left_out.append(name)
        else:
            result.problems.append(f"tensor {name!r} {list(shape)} is unknown")
    if is_trunk:
        _leave_out_other_classes(result, shapes, leaves.optional)
    faults = {
        target: fault
        for target, (name, rule) in result.filled.items()
        if (fault := rule.fault_of(tuple(shapes[name]), known[target]))
    }
    result.resized = _resized(result, shapes, {target: known[target] for target in faults})
    wrong = {  # by name: one that is fused fills several
        result.filled[target][0]: f"tensor {result.filled[target][0]!r} {fault}"
        for target, fault in faults.items()
        if target not in result.resized
    }
    result.misshapen += wrong.values()
    result.problems += result.misshapen
    wanted = dict(leaves.required)
    if any(target in result.filled for target in leaves.optional):
        wanted |= leaves.optional
    result.problems += [
        f"tensor {name!r} is missing"
        for name, targets in names.items()
        if any(target in wanted and target not in result.filled for target, _ in targets)
    ]
    return result


def _resized(result: Match, shapes: Mapping[str, Shape], misshapen: Shapes) -> Shapes:
    """Those that can be resized, with what a network computes of its windows, if there are any."""
    tables = {
        target: ours
        for target, ours in misshapen.items()
        if result.filled[target][1].can_be_resized(tuple(shapes[result.filled[target][0]]), ours)
    }
    constants = result.layout.constants(result.arch) if tables else {}
    beside = {t: ours for t, ours in misshapen.items() if result.filled[t][0] in constants}
    return tables | beside


def _leave_out_other_classes(
    result: Match, shapes: Mapping[str, Shape], optional: Mapping[str, Shape]
) -> None:
    """Leaves out a classifier that is right but for the number of its classes, torch's axis 0."""
    head = {target: result.filled[target] for target in optional if target in result.filled}
    given = [tuple(shapes[name]) for name, _ in head.values()]
    needed = [rule.their_shape(optional[target]) for target, (_, rule) in head.items()]
    is_alike = all(
        len(g) == len(n) and g[0] == given[0][0] != n[0] and g[1:] == n[1:]
        for g, n in zip(given, needed, strict=True)
    )
    for target, (name, _) in head.items() if is_alike else ():
        del result.filled[target]
        result.left_out.append(name)


@functools.cache
def _modules(layout: Layout, arch: str) -> frozenset[str]:
    """How the names of a trunk begin: anything else under them would change what it computes."""
    return frozenset(source_name(t, layout)[0].partition(".")[0] for t in _trunk(arch)[0])


@functools.cache
def _sources(layout: Layout) -> re.Pattern[str]:
    """Any source name of `layout`; one expression, for there are thousands of names and rules."""
    patterns = (_pattern(rule.source).pattern for rule in layout.rules)
    return re.compile("|".join(re.sub(r"\?P<\w+>", "?:", pattern) for pattern in patterns))


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, placeholder, text, ..., text
    for k, part in enumerate(parts):
        parts[k] = re.escape(part) if k % 2 == 0 else f"(?P<{part}>{PLACEHOLDERS[part]})"
    return re.compile("".join(parts))


def sizes_of(shapes: Mapping[str, Shape], arch: str) -> Sizes:
    """The sizes that most of the tensors which have them agree on; 1 where none is there."""

    def agreed(*places: tuple[str, int]) -> int:
        found = [shapes[name][axis] for name, axis in places if len(shapes.get(name, ())) > axis]
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
    constants = {f"unused/{name}": array.shape for name, array in layout.constants(arch).items()}
    dead = head.dead | counts | constants
    return Leaves(_trunk(arch)[0] | head.required, head.optional, dead)


@functools.cache
def _step_counts(layout: Layout, arch: str) -> tuple[str, ...]:
    """The paths of `num_batches_tracked`: beside every running mean, by its torch name.

    None where a layout has no rule for them, as of layers that do not count.
    """
    means = [source_name(t, layout)[0] for t in _trunk(arch)[0] if t.endswith("/mean")]
    paths = [f"unused/{name.removesuffix('running_mean')}num_batches_tracked" for name in means]
    has_them = any(rule.source.endswith("num_batches_tracked") for rule in layout.rules)
    return tuple(paths) if has_them else ()


@functools.cache
def _names(layout: Layout, arch: str) -> dict[str, list[tuple[str, Rule]]]:
    """Every name of `arch` under `layout`: its target and its rule; of a fused one, several."""
    leaves = leaves_of(layout, arch, Sizes(_trunk(arch)[1], classes=1, groups=1))
    names: dict[str, list[tuple[str, Rule]]] = {}
    for target in leaves.required | leaves.optional | leaves.dead:
        name, rule = source_name(target, layout)
        for other, other_rule in names.setdefault(name, []):
            if other_rule.part == rule.part:
                raise ValueError(f"{layout.name}: {name} is the name of {other} and {target}")
        names[name].append((target, rule))
    return names


def source_name(target: str, layout: Layout) -> tuple[str, Rule]:
    """The name that `layout` gives to the leaf at `target`, and the one rule that says so."""
    found = [
        (layout.source_of(rule, numbers.groupdict()), rule)
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
