"""A traced JAX function as an ONNX graph.

Its jaxpr is interpreted once: what depends on no input is computed now and becomes a constant, so
that batch normalisations are one product and one sum and whatever a model knows of its labels is a
table; every other primitive becomes ONNX operators (see `onnx_primitives.py`).

Broadcasts are not carried out before somebody needs them: ONNX operators broadcast by themselves.
So a value may have axes of length 1 where the jaxpr has more; `Graph.shapes` tells.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import helper, numpy_helper

from mlic_jax.errors import UsageError

OPSET = 18
BATCH = "batch"

# A constant, or the name of what a node gives.
Value = np.ndarray | str
Shape = tuple[Any, ...]  # of ints, or JAX's symbolic dimensions


class Graph:
    """The nodes of an ONNX graph while it is written.

    Attributes:
        shapes: of every value with a name.
        convolutions: of every one with a constant kernel what it was made of, to be made again.
        scope: the modules that are being written, as in `MCAR/features/stem`; nodes have it in
            their names.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.convolutions: dict[Value, tuple[Any, ...]] = {}
        self.scope = ""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, Shape, bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._transposed: dict[str, tuple[str, tuple[int, ...]]] = {}

    def input(self, name: str, shape: Shape, dtype: Any) -> str:
        """What the graph is given."""
        self.shapes[name] = shape
        self._inputs.append(_value_info(name, shape, dtype))
        return name

    def node(self, operator: str, inputs: Sequence[Value], shape: Shape, **attributes: Any) -> str:
        """What an operator makes of its inputs, of that shape."""
        return self.nodes(operator, inputs, [shape], **attributes)[0]

    def nodes(
        self, operator: str, inputs: Sequence[Value], shapes: Sequence[Shape], **attributes: Any
    ) -> list[str]:
        """The same of an operator with several outputs."""
        number = len(self._nodes)
        names = [f"{operator.lower()}_{number}_{k}" for k in range(len(shapes))]
        given = [self.name_of(value) for value in inputs]
        name = f"{self.scope}/{names[0]}"
        self._nodes.append(helper.make_node(operator, given, names, name, **attributes))
        self.shapes.update(zip(names, shapes, strict=True))
        return names

    def name_of(self, value: Value) -> str:
        """A constant's name; it is stored once."""
        if isinstance(value, str):
            return value
        value = np.asarray(value)
        # Not its bytes: all weights would be there once more.
        key = (str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).digest())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(np.array(value, order="C"), name))
            self.shapes[name] = value.shape
        return self._constants[key]

    def shape_of(self, value: Value) -> Shape:
        """As it is, not as it will be broadcast."""
        return self.shapes[value] if isinstance(value, str) else np.shape(value)

    def dims(self, shape: Shape) -> Value:
        """A shape as int64 `[rank]`."""
        if all(isinstance(dim, int | np.integer) for dim in shape):
            return np.array(shape, np.int64)
        parts = [self._dim(dim) for dim in shape]
        return self.node("Concat", parts, (len(shape),), axis=0)

    def _dim(self, dim: Any) -> Value:
        """A dimension as int64 `[1]`; of a batch, so many times the rows of the first input."""
        if isinstance(dim, int | np.integer):
            return np.array([dim], np.int64)
        constant, slope = _line(dim)
        sizes = self.node(
            "Shape", [self._inputs[0].name], (len(self.shapes[self._inputs[0].name]),)
        )
        rows = self.node("Gather", [sizes, np.array([0], np.int64)], (1,))
        product = self.node("Mul", [rows, np.array([slope], np.int64)], (1,))
        return self.node("Add", [product, np.array([constant], np.int64)], (1,))

    def reshape(self, value: Value, shape: Shape) -> Value:
        """As it is with other axes."""
        if self.shape_of(value) == tuple(shape):
            return value
        if not isinstance(value, str):
            return value.reshape(shape)
        symbolic = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int | np.integer)]
        if len(symbolic) == 1:
            dims: Value = np.array(
                [-1 if k in symbolic else d for k, d in enumerate(shape)], np.int64
            )
        else:
            dims = self.dims(shape)
        return self.node("Reshape", [value, dims], shape)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """With its axes in another order; one that undoes another leaves nothing of both."""
        order = tuple(order)
        if order == tuple(range(len(order))):
            return value
        if not isinstance(value, str):
            return value.transpose(order)
        if value in self._transposed:
            source, before = self._transposed[value]
            return self.transpose(source, [before[axis] for axis in order])
        shape = self.shapes[value]
        name = self.node("Transpose", [value], tuple(shape[axis] for axis in order), perm=order)
        self._transposed[name] = value, order
        return name

    def expand(self, value: Value, shape: Shape) -> Value:
        """As large as the jaxpr has it."""
        if self.shape_of(value) == tuple(shape):
            return value
        if not isinstance(value, str) and all(isinstance(dim, int | np.integer) for dim in shape):
            return np.broadcast_to(value, shape)
        return self.node("Expand", [value, self.dims(shape)], shape)

    def model(self, outputs: Mapping[str, Value], description: str) -> onnx.ModelProto:
        """The graph that gives these outputs, with what leads to none of them left out.

        Raises:
            onnx.checker.ValidationError: it is none that the standard allows.
        """
        infos = []
        for name, value in outputs.items():
            source = self.name_of(value)
            self._nodes.append(helper.make_node("Identity", [source], [name]))
            infos.append(helper.make_empty_tensor_value_info(name))
        nodes, needed = [], set(outputs)
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
        constants = [tensor for tensor in self._initializers if tensor.name in needed]
        graph = helper.make_graph(nodes[::-1], "mlic", self._inputs, infos, constants)
        model = helper.make_model(
            graph,
            producer_name="mlic_jax",
            doc_string=description,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=9,
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        for info in model.graph.output:  # of which inference gives a batch names of its own
            shape = self.shape_of(outputs[info.name])
            for dim, size in zip(info.type.tensor_type.shape.dim, shape, strict=True):
                if not isinstance(size, int):
                    dim.dim_param = str(size)
        onnx.checker.check_model(model, full_check=True)
        return model


def to_onnx(
    function: Callable[..., Mapping[str, Any]],
    example: jax.ShapeDtypeStruct,
    name: str = "pixels",
    description: str = "",
) -> onnx.ModelProto:
    """A function of one array as an ONNX model.

    Args:
        function: a pure function; arrays that it closes over become constants.
        example: the shape and type of its array, `[B, ...]`, where B may be symbolic.
        name: of the input.

    Raises:
        UsageError: the function does something that has no translation.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(example)
    graph = Graph()
    given = graph.input(name, example.shape, example.dtype)
    values = interpret(graph, traced.jaxpr, traced.consts, [given])
    avals = [atom.aval for atom in traced.jaxpr.outvars]
    values = [graph.expand(value, aval.shape) for value, aval in zip(values, avals, strict=True)]
    names, treedef = jax.tree.flatten(shapes)
    assert len(names) == len(values)
    return graph.model(jax.tree.unflatten(treedef, values), description)


def interpret(
    graph: Graph, jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[Value]
) -> list[Value]:
    """What a jaxpr gives for values, a node for all that is not known yet.

    Raises:
        UsageError: see `to_onnx`.
    """
    # They interpret in their turn: a loop has a body.
    from mlic_jax.export.onnx_primitives import ELEMENTWISE, FUNCTIONS, PRIMITIVES

    values: dict[Any, Value] = {}
    values.update(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return values[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    equation: Any
    outer = graph.scope
    for equation in jaxpr.eqns:
        graph.scope = f"{outer}/{equation.source_info.name_stack}".strip("/")
        name, given = equation.primitive.name, [read(atom) for atom in equation.invars]
        if name not in ELEMENTWISE:
            shapes = [atom.aval.shape for atom in equation.invars]
            given = [graph.expand(*of) for of in zip(given, shapes, strict=True)]
        known = [value for value in given if not isinstance(value, str)]
        if _function(equation) in FUNCTIONS and not known:
            outputs = [FUNCTIONS[_function(equation)](graph, given[0])]
        elif inner := _called(equation, given):
            outputs = interpret(graph, inner.jaxpr, inner.consts, given[name == "cond" :])
        elif name == "platform_index":  # that of whatever is not named
            outputs = [np.array(equation.params["platforms"].index(None), np.int32)]
        elif len(known) == len(given) and name not in ("broadcast_in_dim", "iota"):
            outputs = _computed(equation, known, name in ELEMENTWISE)
        elif name in PRIMITIVES:
            outputs = PRIMITIVES[name](graph, equation, *given)
        else:
            raise UsageError(f"ONNX has no translation of {name}: export to stablehlo")
        values.update(zip(equation.outvars, outputs, strict=True))
    graph.scope = outer
    return [read(atom) for atom in jaxpr.outvars]


def _function(equation: Any) -> str:
    """The name of the function of ours or JAX's that an equation calls; else nothing."""
    return equation.params["name"] if equation.primitive.name in ("jit", "pjit") else ""


def _called(equation: Any, given: Sequence[Value]) -> ClosedJaxpr | None:
    """The function that an equation calls, if it only calls one."""
    name = equation.primitive.name
    if name == "cond":
        if isinstance(given[0], str):
            raise UsageError("ONNX has no translation of a choice at run time: export to stablehlo")
        return equation.params["branches"][int(given[0])]
    inside = [of for of in equation.params.values() if isinstance(of, ClosedJaxpr | Jaxpr)]
    if name in ("scan", "while") or not inside:
        return None
    return ClosedJaxpr(inside[0], ()) if isinstance(inside[0], Jaxpr) else inside[0]


def _computed(equation: Any, known: Sequence[np.ndarray], is_elementwise: bool) -> list[Value]:
    """What an equation gives for constants."""
    if is_elementwise:
        known = np.broadcast_arrays(*known)
    outputs = equation.primitive.bind(*map(jax.numpy.asarray, known), **equation.params)
    return list(map(np.asarray, outputs if equation.primitive.multiple_results else [outputs]))


def _line(dim: Any) -> tuple[int, int]:
    """(c, k) of a dimension that is c + k * batch.

    Raises:
        UsageError: it is no such.
    """
    at = [int(dim._evaluate({BATCH: rows})) for rows in (1, 2, 3)]
    if at[2] - at[1] != at[1] - at[0]:
        raise UsageError(f"ONNX has no translation of a dimension {dim}: fix the batch size")
    return 2 * at[0] - at[1], at[1] - at[0]


def _value_info(name: str, shape: Shape, dtype: Any) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(
        name, kind, [dim if isinstance(dim, int) else str(dim) for dim in shape]
    )
