"""What a JAX program costs, told from its trace alone: FLOPs, bytes moved and memory at its peak.

The trace is read as XLA would run it. Convolutions, matrix products and their like are kernels that
read and write memory; reductions read through what is elementwise before them; everything
elementwise is done on the way into a kernel. Calls are inlined, loops counted once for every turn,
and what nobody reads is not computed. Of what `lax.platform_dependent` offers, one platform's is
counted, and of what `jax.shard_map` divides, one device's.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

# How a trace is read. Other names: no data moves; or elementwise, and computed where it is used.
ALIASES = {"reshape", "squeeze", "expand_dims", "copy", "stop_gradient", "optimization_barrier"}
ALIASES |= {"pvary"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax"}
KERNELS = {
    *("conv_general_dilated", "dot_general", "gather", "sort", "top_k", "reduce_window_max"),
    *("scatter", "scatter-add", "select_and_scatter_add", "select_and_gather_add"),
    *("cummax", "cummin", "cumsum", "dynamic_update_slice"),
    *("psum", "psum_invariant", "all_gather", "reduce_scatter"),
}
FUSED_INPUTS = 4  # of an array's own size: what needs more is written to memory on the way


@dataclasses.dataclass
class Cost:
    """Of a program: FLOPs of matrix units and of all else, bytes moved, peak and inputs (bytes)."""

    matrix: float = 0.0
    vector: float = 0.0
    moved: float = 0.0
    peak: float = 0.0
    inputs: float = 0.0


@dataclasses.dataclass
class _Array:
    size: int
    bytes: int
    roots: frozenset[int]  # the arrays in memory that it is computed from; itself if it is there


@dataclasses.dataclass
class _Kernel:
    reads: frozenset[int]
    writes: list[int]
    scratch: float = 0.0
    in_place: bool = False  # it may write over what it is the last to read


def cost_of(function: Callable, *arguments: Any, platform: str | None = None) -> Cost:
    """The cost of a function of arrays or shapes; its arguments' memory is free after last use.

    Args:
        platform: `cpu`, `cuda` or `tpu`, where the program would run; None: this machine's.
    """
    if isinstance(function, jax.stages.Wrapped):  # which may have no compiler's options in a trace
        function = jax.jit(function.__wrapped__)
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return _Program(platform or jax.default_backend()).cost(jaxpr)


class _Program:
    """A trace with its calls inlined, as the kernels that would run, in the order of the trace."""

    def __init__(self, platform: str):
        self.platform = platform
        self.arrays: list[_Array] = []
        self.kernels: list[_Kernel] = []
        self.total = Cost()

    def cost(self, jaxpr: core.Jaxpr) -> Cost:
        inputs = [self.new(v.aval, in_memory=True) for v in (*jaxpr.constvars, *jaxpr.invars)]
        self.total.inputs = self.bytes_of(inputs)
        outputs = self.inline(jaxpr, inputs)
        together: dict[frozenset[int], list[int]] = {}  # one kernel updates a parameter's state
        for i in outputs:
            if i not in self.arrays[i].roots:
                together.setdefault(self.large_roots(i), []).append(i)
        for indices in together.values():
            self.put_in_memory(*indices)
        self.total.peak = self.peak(inputs, outputs)
        self.total.moved += sum(self.bytes_of((*k.reads, *k.writes)) for k in self.kernels)
        return self.total

    def new(self, aval: Any, roots: frozenset[int] = frozenset(), in_memory: bool = False) -> int:
        index = len(self.arrays)
        roots = frozenset([index]) if in_memory else roots
        self.arrays.append(_Array(aval.size, aval.size * aval.dtype.itemsize, roots))
        return index

    def bytes_of(self, indices: Sequence[int]) -> int:
        return sum(self.arrays[i].bytes for i in indices)

    def large_roots(self, index: int) -> frozenset[int]:
        """What has to be read for an array, without what is small beside it."""
        array = self.arrays[index]
        return frozenset(r for r in array.roots if self.arrays[r].size >= array.size)

    def put_in_memory(self, *indices: int) -> None:
        """Writes in one kernel what is computed from the same arrays, unless it is there."""
        if indices[0] not in self.arrays[indices[0]].roots:
            roots = frozenset().union(*(self.arrays[i].roots for i in indices))
            self.kernels.append(_Kernel(roots, list(indices), in_place=True))
            for i in indices:
                self.arrays[i].roots = frozenset([i])

    def inline(self, jaxpr: core.Jaxpr, inputs: Sequence[int]) -> list[int]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

        def read(v: Any) -> int:
            return self.new(v.aval) if isinstance(v, core.Literal) else known[v]

        for equation in jaxpr.eqns:
            outputs = self.apply(equation, [read(v) for v in equation.invars])
            known |= zip(equation.outvars, outputs, strict=True)
        return [read(v) for v in jaxpr.outvars]

    def call(self, body: core.Jaxpr, inputs: Sequence[int]) -> list[int]:
        constants = [self.new(v.aval, in_memory=True) for v in body.constvars]
        return self.inline(body, [*constants, *inputs])

    def apply(self, equation: Any, inputs: list[int]) -> list[int]:
        name, avals = equation.primitive.name, [v.aval for v in equation.outvars]
        bodies = [] if name in KERNELS else bodies_of(equation)
        if name in ALIASES:
            return inputs
        if name == "platform_index":
            return [self.new(aval) for aval in avals]
        if platforms := equation.params.get("branches_platforms"):
            taken = [names is None or self.platform in names for names in platforms].index(True)
            return self.call(bodies[taken], inputs[1:])
        if name in ("scan", "while", "cond"):
            return self.loop(inputs, avals, bodies, equation.params.get("length", 1))
        if bodies:
            return self.call(bodies[0], inputs)
        if name in KERNELS:
            if name in ("conv_general_dilated", "dot_general"):
                self.total.matrix += matrix_flops(equation)
            for i in inputs:
                self.put_in_memory(i)
        elif name not in REDUCTIONS:
            roots = frozenset().union(*(self.arrays[i].roots for i in inputs))
            outputs = [self.new(aval, roots) for aval in avals]
            for i in outputs:
                self.total.vector += self.arrays[i].size
                if len(self.large_roots(i)) > FUSED_INPUTS:
                    self.put_in_memory(i)
            return outputs
        else:
            self.total.vector += sum(self.arrays[i].size for i in inputs)
        outputs = [self.new(aval, in_memory=True) for aval in avals]
        reads = frozenset().union(*(self.arrays[i].roots for i in inputs))
        self.kernels.append(_Kernel(reads, outputs))
        return outputs

    def loop(self, inputs: list[int], avals: list, bodies: list, length: int) -> list[int]:
        for i in inputs:
            self.put_in_memory(i)
        costs = [_Program(self.platform).cost(body) for body in bodies]
        self.total.matrix += length * max(c.matrix for c in costs)
        self.total.vector += length * max(c.vector for c in costs)
        self.total.moved += length * max(c.moved for c in costs)
        outputs = [self.new(aval, in_memory=True) for aval in avals]
        scratch = max(c.peak - c.inputs for c in costs)
        self.kernels.append(_Kernel(frozenset(inputs), outputs, scratch))
        return outputs

    def peak(self, inputs: Sequence[int], outputs: Sequence[int]) -> float:
        """Bytes at the worst moment."""
        kept = frozenset().union(*(self.arrays[i].roots for i in outputs))
        last = {i: k for k, kernel in enumerate(self.kernels) for i in kernel.reads}
        live = peak = self.bytes_of(inputs)
        for k, kernel in enumerate(self.kernels):
            ended = [i for i in kernel.reads if last[i] == k and i not in kept]
            freed = self.bytes_of(ended)
            live += self.bytes_of(kernel.writes)
            peak = max(peak, live - kernel.in_place * freed + kernel.scratch)
            unused = [i for i in kernel.writes if i not in last and i not in kept]
            live -= freed + self.bytes_of(unused)
        return peak


def bodies_of(equation: Any) -> list[core.Jaxpr]:
    """The programs that an equation calls: one, or several of a loop or a choice."""
    values = itertools.chain.from_iterable(
        value if isinstance(value, tuple) else (value,) for value in equation.params.values()
    )
    closed = (getattr(value, "jaxpr", value) for value in values)
    return [value for value in closed if isinstance(value, core.Jaxpr)]


def matrix_flops(equation: Any) -> float:
    """Of a convolution or a matrix product: two a product of numbers, padding left out."""
    left, right = (v.aval.shape for v in equation.invars)
    out, params = equation.outvars[0].aval.shape, equation.params
    if equation.primitive.name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
    numbers = params["dimension_numbers"]
    products = 1
    for i, (x, k, y) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        dilation = params["lhs_dilation"][i]
        at = np.arange(out[y])[:, None] * params["window_strides"][i] - params["padding"][i][0]
        at = at + np.arange(right[k]) * params["rhs_dilation"][i]
        products *= np.sum((at >= 0) & (at <= (left[x] - 1) * dilation) & (at % dilation == 0))
    batch = left[numbers.lhs_spec[0]] // params["batch_group_count"]
    return 2.0 * products * batch * out[numbers.out_spec[1]] * right[numbers.rhs_spec[1]]
