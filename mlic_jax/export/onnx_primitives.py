"""JAX's primitives as ONNX operators: a table of functions (graph, equation, *inputs) -> outputs.

Those of `ELEMENTWISE` take what is still to be broadcast; the others whole arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from mlic_jax.errors import UsageError
from mlic_jax.export.onnx_graph import Graph, Shape, Value, interpret

PRIMITIVES: dict[str, Callable[..., list[Value]]] = {}
ELEMENTWISE: set[str] = set()

SAME = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "pow": "Pow", "and": "And", "or": "Or", "xor": "Xor", "not": "Not", "eq": "Equal",
    "lt": "Less", "gt": "Greater", "le": "LessOrEqual", "ge": "GreaterOrEqual", "neg": "Neg",
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid",
    "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "erf": "Erf", "sin": "Sin",
    "cos": "Cos",
}  # fmt: skip
UNCHANGED = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision")

# Functions of JAX that are an operator: runtimes join these to the convolution before, and int8
# takes its ranges after them.
FUNCTIONS: dict[str, Callable[[Graph, Value], Value]] = {
    "relu": lambda graph, x: graph.node("Relu", [x], graph.shape_of(x)),
    "relu6": lambda graph, x: graph.node(
        "Clip", [x, np.zeros((), np.float32), np.full((), 6, np.float32)], graph.shape_of(x)
    ),
}


def translation(
    *names: str, elementwise: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Notes what translates these primitives: a function that gives one output, or a list."""

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        def translate(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
            outputs = function(graph, equation, *inputs)
            return outputs if isinstance(outputs, list) else [outputs]

        PRIMITIVES.update(dict.fromkeys(names, translate))
        if elementwise:
            ELEMENTWISE.update(names)
        return function

    return note


def _broadcast(graph: Graph, *values: Value) -> Shape:
    """The shape that values have together. A symbolic length is no 1."""
    shapes = [graph.shape_of(value) for value in values]
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(
        next((dim for dim in dims if not is_one(dim)), 1) for dims in zip(*padded, strict=True)
    )


def is_one(dim: Any) -> bool:
    """Of a length; one of JAX's symbolic lengths is none, and cannot be compared."""
    return isinstance(dim, int | np.integer) and dim == 1


def _of(graph: Graph, operator: str, *values: Value, **attributes: Any) -> str:
    """An operator that broadcasts."""
    return graph.node(operator, values, _broadcast(graph, *values), **attributes)


def _cast(graph: Graph, value: Value, dtype: Any) -> str:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return graph.node("Cast", [value], graph.shape_of(value), to=kind)


def _constant(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, np.int64)


# --- element by element


@translation(*SAME, elementwise=True)
def _same(graph: Graph, equation: Any, *inputs: Value) -> Value:
    name = equation.primitive.name
    if name in ("mul", "add") and (folded := _folded(graph, name, *inputs)) is not None:
        return folded
    return _of(graph, SAME[name], *inputs)


def _folded(graph: Graph, name: str, x: Value, y: Value) -> Value | None:
    """A convolution that multiplies, or adds, a constant a feature by itself; None: it cannot."""
    if not isinstance(x, str):
        x, y = y, x
    if x not in graph.convolutions or isinstance(y, str):
        return None
    source, kernel, bias, shape, attributes = graph.convolutions[x]
    if y.size != 1 and not y.shape[-1:] == (y.size,) == shape[-1:]:
        return None
    of_features = np.broadcast_to(y.reshape(-1), shape[-1:])
    if name == "mul":
        kernel, bias = kernel * of_features[:, None, None, None], bias * of_features
    else:
        bias = bias + of_features
    return _convolved(graph, source, kernel, shape, bias, **attributes)


@translation(*UNCHANGED, elementwise=True)
def _unchanged(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
    return list(inputs)


@translation("ne", elementwise=True)
def _ne(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return _of(graph, "Not", _of(graph, "Equal", x, y))


@translation("rem", elementwise=True)
def _rem(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return _of(graph, "Mod", x, y, fmod=1)


@translation("rsqrt", elementwise=True)
def _rsqrt(graph: Graph, equation: Any, x: Value) -> Value:
    return _of(graph, "Reciprocal", _of(graph, "Sqrt", x))


@translation("square", elementwise=True)
def _square(graph: Graph, equation: Any, x: Value) -> Value:
    return _of(graph, "Mul", x, x)


@translation("integer_pow", elementwise=True)
def _integer_pow(graph: Graph, equation: Any, x: Value) -> Value:
    return _of(graph, "Pow", x, _constant(equation.params["y"]))


@translation("erfc", elementwise=True)
def _erfc(graph: Graph, equation: Any, x: Value) -> Value:
    one = np.ones((), equation.invars[0].aval.dtype)
    return _of(graph, "Sub", one, _of(graph, "Erf", x))


@translation("round", elementwise=True)
def _round(graph: Graph, equation: Any, x: Value) -> Value:
    if equation.params["rounding_method"] != 1:
        raise UsageError("ONNX rounds halves to even numbers alone")
    return _of(graph, "Round", x)


@translation("convert_element_type", elementwise=True)
def _convert(graph: Graph, equation: Any, x: Value) -> Value:
    return _cast(graph, x, equation.params["new_dtype"])


@translation("select_n", elementwise=True)
def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise UsageError("ONNX chooses between two values alone")
    return _of(graph, "Where", which, cases[1], cases[0])


@translation("clamp", elementwise=True)
def _clamp(graph: Graph, equation: Any, low: Value, x: Value, high: Value) -> Value:
    return _of(graph, "Min", _of(graph, "Max", x, low), high)


# --- axes


@translation("broadcast_in_dim")
def _broadcast_in_dim(graph: Graph, equation: Any, x: Value, *_: Value) -> Value:
    dims, rank = equation.params["broadcast_dimensions"], len(equation.params["shape"])
    shape: list[Any] = [1] * rank
    for axis, dim in enumerate(dims):
        shape[dim] = graph.shape_of(x)[axis]
    return graph.reshape(x, tuple(shape))  # to be expanded by whoever cannot do without


@translation("iota")
def _iota(graph: Graph, equation: Any) -> Value:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    count = shape[axis]
    if not isinstance(count, int | np.integer):
        raise UsageError("ONNX has no translation of a count along the batch: fix the batch size")
    counted = np.arange(count, dtype=equation.params["dtype"])
    return counted.reshape([count if k == axis else 1 for k in range(len(shape))])


@translation("reshape")
def _reshape(graph: Graph, equation: Any, x: Value, *_: Value) -> Value:
    return graph.reshape(x, equation.outvars[0].aval.shape)


@translation("squeeze", "expand_dims")
def _squeeze(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.reshape(x, equation.outvars[0].aval.shape)


@translation("transpose")
def _transpose(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.transpose(x, equation.params["permutation"])


@translation("concatenate")
def _concatenate(graph: Graph, equation: Any, *inputs: Value) -> Value:
    shape = equation.outvars[0].aval.shape
    return graph.node("Concat", inputs, shape, axis=equation.params["dimension"])


@translation("stack")
def _stack(graph: Graph, equation: Any, *inputs: Value) -> Value:
    shape, axis = equation.outvars[0].aval.shape, equation.params["axis"]
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [graph.reshape(value, one) for value in inputs]
    return graph.node("Concat", parts, shape, axis=axis)


@translation("split")
def _split(graph: Graph, equation: Any, x: Value) -> list[Value]:
    shapes = [atom.aval.shape for atom in equation.outvars]
    sizes = _constant(equation.params["sizes"])
    return list(graph.nodes("Split", [x, sizes], shapes, axis=equation.params["axis"]))


@translation("slice")
def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    full, shape = graph.shape_of(x), equation.outvars[0].aval.shape
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    axes = [k for k in range(len(shape)) if shape[k] is not full[k] and shape[k] != full[k]]
    if not axes:
        return x
    chosen = [graph.dims(tuple(of[k] for k in axes)) for of in (starts, ends)]
    return graph.node(
        "Slice", [x, *chosen, _constant(axes), _constant([steps[k] for k in axes])], shape
    )


@translation("rev")
def _rev(graph: Graph, equation: Any, x: Value) -> Value:
    axes = equation.params["dimensions"]
    first, last = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes)
    given = [x, *map(_constant, (first, last, axes, [-1] * len(axes)))]
    return graph.node("Slice", given, equation.outvars[0].aval.shape)


@translation("pad")
def _pad(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior) or min(*low, *high) < 0:
        raise UsageError("ONNX pads at the edges alone")
    return graph.node("Pad", [x, _constant([*low, *high]), value], equation.outvars[0].aval.shape)


# --- along axes


REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
}


@translation(*REDUCTIONS)
def _reduce(graph: Graph, equation: Any, x: Value) -> Value:
    return _reduced(graph, REDUCTIONS[equation.primitive.name], equation, x)


@translation("reduce_or", "reduce_and")
def _reduce_bool(graph: Graph, equation: Any, x: Value) -> Value:
    operator = {"reduce_or": "ReduceMax", "reduce_and": "ReduceMin"}[equation.primitive.name]
    return _cast(graph, _reduced(graph, operator, equation, _cast(graph, x, np.int32)), bool)


def _reduced(graph: Graph, operator: str, equation: Any, x: Value) -> Value:
    axes = equation.params["axes"]
    shape = tuple(1 if k in axes else dim for k, dim in enumerate(graph.shape_of(x)))
    # With its axes it stays: without, OpenVINO 2026.4 has sums of products wrong.
    reduced = graph.node(operator, [x, _constant(axes)], shape, keepdims=1)
    return graph.reshape(reduced, equation.outvars[0].aval.shape)


@translation("argmax", "argmin")
def _arg(graph: Graph, equation: Any, x: Value) -> Value:
    operator = {"argmax": "ArgMax", "argmin": "ArgMin"}[equation.primitive.name]
    (axis,) = equation.params["axes"]
    shape = equation.outvars[0].aval.shape
    found = graph.node(operator, [x], shape, axis=axis, keepdims=0)
    return _cast(graph, found, equation.params["index_dtype"])


@translation("top_k")
def _top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    shapes = [atom.aval.shape for atom in equation.outvars]
    k, axis = _constant([equation.params["k"]]), equation.params.get("axis", -1)
    values, indices = graph.nodes("TopK", [x, k], shapes, axis=axis)
    return [values, _cast(graph, indices, np.int32)]


@translation("cumsum")
def _cumsum(graph: Graph, equation: Any, x: Value) -> Value:
    axis, reverse = equation.params["axis"], int(equation.params["reverse"])
    shape = equation.outvars[0].aval.shape
    return graph.node("CumSum", [x, np.array(axis, np.int64)], shape, reverse=reverse)


@translation("cummax", "cummin")
def _cumulative(graph: Graph, equation: Any, x: Value) -> Value:
    """As a maximum of what a triangle leaves; runtimes have a MaxPool of floats at most."""
    shape, axis = equation.outvars[0].aval.shape, equation.params["axis"]
    if axis != len(shape) - 1:
        raise UsageError("ONNX has a running maximum of the last axis alone")
    is_max, length = equation.primitive.name == "cummax", shape[axis]
    seen = np.tri(length, dtype=bool)
    seen = seen.T if equation.params["reverse"] else seen
    dtype = equation.invars[0].aval.dtype
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
    outside = np.array(info.min if is_max else info.max, dtype)
    rows = graph.reshape(x, (*shape[:-1], 1, length))
    masked = graph.node("Where", [seen, rows, outside], (*shape, length))
    return graph.node(
        "ReduceMax" if is_max else "ReduceMin", [masked, _constant([-1])], shape, keepdims=0
    )


# --- products and windows


@translation("dot_general")
def _dot_general(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    (of_x, of_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    shape = equation.outvars[0].aval.shape
    ranks = len(graph.shape_of(x)), len(graph.shape_of(y))
    if not batch_x and ranks[1] == 2 and (of_x, of_y) == ((ranks[0] - 1,), (0,)):
        if ranks[0] == 4 and not isinstance(y, str):  # of every position of a map
            return _convolved(graph, x, y.T[:, :, None, None], shape)
        return graph.node("MatMul", [x, y], shape)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names_x = [next(letters) for _ in range(ranks[0])]
    names_y = [next(letters) for _ in range(ranks[1])]
    for i, j in zip((*batch_x, *of_x), (*batch_y, *of_y), strict=True):
        names_y[j] = names_x[i]
    left = [names_x[i] for i in batch_x]
    left += [names_x[i] for i in range(ranks[0]) if i not in (*batch_x, *of_x)]
    left += [names_y[j] for j in range(ranks[1]) if j not in (*batch_y, *of_y)]
    said = f"{''.join(names_x)},{''.join(names_y)}->{''.join(left)}"
    return graph.node("Einsum", [x, y], shape, equation=said)


NCHW, NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def _convolved(
    graph: Graph,
    x: Value,
    kernel: Value,
    shape: Shape,
    bias: np.ndarray | None = None,
    **attributes: Any,
) -> Value:
    """A convolution of `[B, H, W, F]`, which ONNX has of `[B, F, H, W]`."""
    planes = tuple(shape[axis] for axis in NCHW)
    given = [graph.transpose(x, NCHW), kernel, *([] if bias is None else [bias])]
    found = graph.transpose(graph.node("Conv", given, planes, **attributes), NHWC)
    if isinstance(kernel, np.ndarray):
        bias = np.zeros(shape[-1:], kernel.dtype) if bias is None else bias
        graph.convolutions[found] = x, kernel, bias, shape, attributes
    return found


@translation("conv_general_dilated")
def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    given = equation.params
    numbers = given["dimension_numbers"]
    if set(given["lhs_dilation"]) != {1} or given["batch_group_count"] != 1:
        raise UsageError("ONNX has no translation of a transposed convolution")
    if numbers.lhs_spec != NCHW or numbers.out_spec != NCHW:
        raise UsageError("ONNX has a translation of convolutions of [B, H, W, F] alone")
    return _convolved(
        graph,
        x,
        graph.transpose(kernel, numbers.rhs_spec),
        equation.outvars[0].aval.shape,
        strides=given["window_strides"],
        pads=[pad for pads in zip(*given["padding"], strict=True) for pad in pads],
        dilations=given["rhs_dilation"],
        group=given["feature_group_count"],
    )


@translation("reduce_window_max", "reduce_window_sum")
def _window(graph: Graph, equation: Any, x: Value) -> Value:
    given, shape = equation.params, equation.outvars[0].aval.shape
    size, strides, padding = (
        given[name] for name in ("window_dimensions", "window_strides", "padding")
    )
    dilations = {*given["base_dilation"], *given["window_dilation"]}
    if len(size) != 4 or (size[0], size[3]) != (1, 1) or dilations != {1}:
        raise UsageError("ONNX has a translation of windows of positions alone")
    attributes = {
        "kernel_shape": size[1:3],
        "strides": strides[1:3],
        "pads": [pad for pads in zip(*padding[1:3], strict=True) for pad in pads],
    }
    is_max = equation.primitive.name == "reduce_window_max"
    operator = "MaxPool" if is_max else "AveragePool"
    attributes |= {} if is_max else {"count_include_pad": 1}
    planes = tuple(shape[axis] for axis in NCHW)
    pooled = graph.node(operator, [graph.transpose(x, NCHW)], planes, **attributes)
    if not is_max:
        pooled = _of(
            graph, "Mul", pooled, np.array(size[1] * size[2], equation.invars[0].aval.dtype)
        )
    return graph.transpose(pooled, NHWC)


@translation("gather")
def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> Value:
    """Elements or whole slices at indices, which no model of ours has out of bounds."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    batching, chosen = numbers.operand_batching_dims, numbers.start_index_map
    whole = [k for k in range(len(sizes)) if k not in (*batching, *chosen)]
    full, shape = graph.shape_of(x), equation.outvars[0].aval.shape
    if not isinstance(indices, str) and indices.ndim == 1 and not batching:  # one slice
        starts = indices.tolist()
        ends = [start + sizes[k] for start, k in zip(starts, chosen, strict=True)]
        given = map(_constant, (starts, ends, chosen))
        return graph.reshape(graph.node("Slice", [x, *given], sizes), shape)
    if (
        any(sizes[k] != 1 for k in (*batching, *chosen))
        or any(sizes[k] is not full[k] and sizes[k] != full[k] for k in whole)
        or numbers.start_indices_batching_dims != tuple(range(len(batching)))
        or set(numbers.collapsed_slice_dims) != set(chosen)
    ):
        raise UsageError("ONNX has no translation of a gather of parts of slices")
    offsets = [int(axis) for axis in numbers.offset_dims]
    order = [*(k for k in range(len(shape)) if k not in offsets), *offsets]
    first = graph.transpose(x, [int(k) for k in (*batching, *chosen, *whole)])
    at = _cast(graph, indices, np.int64)
    found = graph.node(
        "GatherND", [first, at], tuple(shape[k] for k in order), batch_dims=len(batching)
    )
    return graph.transpose(found, [order.index(k) for k in range(len(order))])


@translation("scan")
def _scan(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
    """Every turn by itself."""
    given, body = equation.params, equation.params["jaxpr"]
    fixed, carried = given["num_consts"], given["num_carry"]
    constants, carry, rows = (
        list(inputs[:fixed]), list(inputs[fixed : fixed + carried]), inputs[fixed + carried :],
    )  # fmt: skip
    turns: list[list[Value]] = []
    order = range(given["length"])
    for turn in reversed(order) if given["reverse"] else order:
        of_turn = [_row(graph, value, turn) for value in rows]
        outputs = interpret(graph, body.jaxpr, body.consts, [*constants, *carry, *of_turn])
        carry = outputs[:carried]
        turns.append(outputs[carried:])
    turns = turns[::-1] if given["reverse"] else turns
    avals = [atom.aval for atom in equation.outvars[carried:]]
    stacked = []
    for aval, of in zip(avals, zip(*turns, strict=True), strict=True):
        whole = [graph.expand(value, aval.shape[1:]) for value in of]
        parts = [graph.reshape(value, (1, *aval.shape[1:])) for value in whole]
        stacked.append(graph.node("Concat", parts, aval.shape, axis=0))
    return [*carry, *stacked]


def _row(graph: Graph, value: Value, index: int) -> Value:
    if not isinstance(value, str):
        return value[index]
    shape = graph.shape_of(value)[1:]
    return graph.node("Gather", [value, np.array(index, np.int64)], shape, axis=0)
