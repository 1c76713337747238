"""What a table of names is made of: rules, the leaves of a head, and what several tables share.

A rule pairs a source name with a target path; both are templates in which `{placeholder}` stands
for a number, so that one table serves both directions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mlic_jax.models.backbones.swin import window_of
from mlic_jax.models.backbones.vit import side_of
from weight_conversion.preprocessing import Preprocessing

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

IMAGENET_CLASSES = 1000
PLACEHOLDERS = {
    "block": r"0|[1-9]\d*",
    "later": r"[1-9]\d*",  # blocks but the first
    "n": r"[1-3]",
    "i": r"[2-9]|1[0-7]",  # the MobileNetV2 blocks that expand: all but the first
    "kind": r"weight|bias",
    "stage": r"[1-7]",
    "index": r"0|[1-9]\d*",  # see `Layout.blocks`
}


class Axes(NamedTuple):
    """What becomes of torch's axes: those of length 1 go, the others take `order`.

    Of these `start` come before the others and `ones` after them.
    """

    order: tuple[int, ...]
    ones: int = 0
    start: int = 0

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Torch's array as we have it."""
        kept = tensor.shape[self.start : self.start + len(self.order)]
        return tensor.reshape(kept).transpose(self.order)

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        return array.transpose(np.argsort(self.order)).reshape(self.their_shape(array.shape))

    def their_shape(self, ours: Shape) -> Shape:
        """That of `theirs`, by the shape of an array."""
        kept = (ours[axis] for axis in np.argsort(self.order))
        return (*(1,) * self.start, *kept, *(1,) * self.ones)


# A depthwise kernel [C, 1, 3, 3] is an ordinary OIHW kernel with one input channel, so CONV carries
# it to [3, 3, 1, C] as well.
CONV = Axes((2, 3, 1, 0))  # OIHW -> HWIO
LINEAR = Axes((1, 0))  # [out, in] -> [in, out]
POINTWISE = Axes((1, 0), ones=2)  # [out, in, 1, 1] -> [in, out]
PER_MAP = Axes((0,), ones=2)  # [C, 1, 1] -> [C]
PER_FEATURE = Axes((0,), start=3)  # [1, 1, 1, C] -> [C]


class Part(NamedTuple):
    """One of `count` equal parts of a tensor, along torch's axis 0."""

    index: int
    count: int

    def of(self, tensor: np.ndarray) -> np.ndarray:
        """This part."""
        size = len(tensor) // self.count
        return tensor[self.index * size : (self.index + 1) * size]


@dataclass(frozen=True)
class Rule:
    """`source` name <-> `target` path; without `axes` the array is the same in both.

    With a `part` it is of that alone: what one codebase fuses, as queries, keys and values. A
    table of positions (`is_table`) has those of any square grid; one of distances in windows
    (`is_of_windows`) can be resized to those in others.
    """

    source: str
    target: str
    axes: Axes | None = None
    part: Part | None = None
    is_table: bool = False
    is_of_windows: bool = False

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Torch's tensor, or its part, as we have it."""
        tensor = tensor if self.part is None else self.part.of(tensor)
        return tensor if self.axes is None else self.axes.ours(tensor)

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `ours`; of a part, it alone."""
        return array if self.axes is None else self.axes.theirs(array)

    def their_shape(self, ours: Shape) -> Shape:
        """Of the whole tensor, by the shape of our array."""
        shape = ours if self.axes is None else self.axes.their_shape(ours)
        return shape if self.part is None else (self.part.count * shape[0], *shape[1:])

    def can_be_resized(self, shape: Shape, ours: Shape) -> bool:
        """Whether a tensor of that shape has the distances in other windows than our array."""
        needed = self.their_shape(ours)
        is_like = self.is_of_windows and shape[1:] == needed[1:]
        return is_like and window_of(shape[0]) is not None

    def fault_of(self, shape: Shape, ours: Shape) -> str:
        """What is wrong with a tensor of that shape for our array; nothing: ""."""
        needed = self.their_shape(ours)
        if self.is_table and len(shape) == len(needed):
            needed = (*needed[:-2], shape[-2], needed[-1])  # however many rows
        if shape != needed:
            return f"is {list(shape)} and must be {list(needed)}"
        if self.is_table and side_of(shape[-2]) is None:
            return (
                f"is {list(shape)}, a table of {shape[-2]} positions, which are not those of a "
                "square grid, with or without the class token's, such as 197 or 196"
            )
        return ""


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


def differs(name: str, tensors: Mapping[str, np.ndarray], constant: np.ndarray) -> bool:
    """Whether a tensor is not what a network computes for its place."""
    return not np.allclose(tensors[name], constant, atol=1e-5)


@dataclass(frozen=True)
class Layout:
    """The names that one codebase gives to the tensors of `archs`, and its leaves over a trunk.

    Attributes:
        blocks: how many every stage has, of a codebase that counts them from the first to the last:
            `{index}` is this number of block `{block}` of stage `{stage}`.
    """

    name: str
    archs: tuple[str, ...]
    rules: tuple[Rule, ...]
    head: Callable[[Sizes], Leaves]
    # What photos became in training, as far as it is the same of all weights of these names; what
    # it lacks of mean and std is ImageNet's.
    usual: Preprocessing = field(default_factory=Preprocessing, hash=False)
    ignored: frozenset[str] = frozenset()  # tensors of a trunk that say nothing
    # Of an architecture, what it computes itself and keeps with its weights; each may be missing.
    constants: Callable[[str], dict[str, np.ndarray]] = lambda arch: {}
    # Whether a tensor in the place of such a constant has a network compute something else.
    is_other: Callable[[str, Mapping[str, np.ndarray], np.ndarray], bool] = differs
    blocks: tuple[int, ...] = ()

    def source_of(self, rule: Rule, numbers: Mapping[str, str]) -> str:
        """The source name of a rule whose target has these numbers."""
        given = dict(numbers)
        if self.blocks and "stage" in given:
            before = self.blocks[: int(given["stage"]) - 1]
            given["index"] = str(sum(before) + int(given["block"]))
        return rule.source.format(**given)


def unused(name: str) -> Rule:
    """Kept under its own name, so that it is there on the way back."""
    return Rule(name, f"unused/{name}")


def conv_bn(conv: str, bn: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{conv}.weight", f"params/features/{module}/kernel", CONV),
        Rule(f"{bn}.weight", f"params/features/{module}/scale"),
        Rule(f"{bn}.bias", f"params/features/{module}/bias"),
        Rule(f"{bn}.running_mean", f"batch_stats/features/{module}/mean"),
        Rule(f"{bn}.running_var", f"batch_stats/features/{module}/var"),
        # Counts steps; read by torch only where momentum is None, which these networks never set.
        unused(f"{bn}.num_batches_tracked"),
    )


def linear(name: str, module: str, axes: Axes = LINEAR) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.weight", f"params/{module}/kernel", axes),
        Rule(f"{name}.bias", f"params/{module}/bias"),
    )


def convolution(name: str, module: str, axes: Axes) -> tuple[Rule, ...]:
    return linear(name, f"features/{module}", axes)


def norm(name: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.weight", f"params/features/{module}/scale"),
        Rule(f"{name}.bias", f"params/features/{module}/bias"),
    )


def no_head(sizes: Sizes) -> Leaves:
    return Leaves({})


def imagenet_head(sizes: Sizes) -> Leaves:
    kernel = (sizes.channels[-1], IMAGENET_CLASSES)
    return Leaves(
        required={},
        optional={"params/classifier/kernel": kernel, "params/classifier/bias": kernel[1:]},
    )
