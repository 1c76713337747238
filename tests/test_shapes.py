"""Shapes and dtypes of arrays are said by annotations, all of them, and tests hold code to it."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mlic_jax.models.heads.pooled import Pooled
from mlic_jax.models.layers import ConvBatchNorm
from mlic_jax.models.msrn import MSRN
from mlic_jax.models.ops.convolution import convolve
from mlic_jax.models.ops.regions import class_regions
from mlic_jax.scores.files import Scores
from mlic_jax.train.losses import binary_cross_entropy

PACKAGE = Path(__file__).resolve().parents[1] / "mlic_jax"
ROOMS = [
    *sorted((PACKAGE / "models").rglob("*.py")),
    *sorted((PACKAGE / "scores").rglob("*.py")),
    PACKAGE / "train" / "losses.py",
]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ARRAYS = ("Array", "AnyArray", "ndarray")  # of JAX, of either, of NumPy


def is_public(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")


def public_annotations(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr | None]]:
    """Of functions, methods, fields and aliases, with where each stands; None where one lacks."""
    for node in body:
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            for where, annotation in public_annotations(node.body):
                yield f"{node.name}.{where}", annotation
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id, node.annotation
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            yield node.targets[0].id, node.value
        elif isinstance(node, FUNCTIONS) and is_public(node.name):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for argument in every:
                if argument.arg not in ("self", "cls"):
                    yield f"{node.name}({argument.arg})", argument.annotation
            if node.name != "setup":  # which Flax calls, and gives back nothing
                yield f"{node.name} -> ", node.returns


def says_axes(node: ast.AST) -> bool:
    """Whether it is one of jaxtyping's, as `Float[Array, "B C"]`."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return False
    axes = node.slice.elts[-1]
    return isinstance(axes, ast.Constant) and isinstance(axes.value, str)


def names_bare_array(node: ast.AST) -> bool:
    """Whether an array is named in an annotation whose axes and dtype are not."""
    if says_axes(node):
        return False
    if isinstance(node, ast.Name | ast.Attribute):
        return (node.id if isinstance(node, ast.Name) else node.attr) in ARRAYS
    return any(map(names_bare_array, ast.iter_child_nodes(node)))


OF_ROOMS = pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(PACKAGE)))


@OF_ROOMS
def test_every_public_array_says_its_axes(path):
    for where, annotation in public_annotations(ast.parse(path.read_text(encoding="utf-8")).body):
        assert annotation is not None, f"{path}: {where} has no annotation"
        assert where == "AnyArray" or not names_bare_array(annotation), (
            f"{path}: {where} is {ast.unparse(annotation)}, which lacks the axes"
        )


@OF_ROOMS
def test_every_module_is_checked(path):
    """None was imported before `conftest.py` asked for it."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    assert type(module.__loader__).__module__.startswith("jaxtyping.")


@pytest.mark.parametrize(
    "code",
    [
        "def f(x: jax.Array) -> None: ...",
        "def f(x: Float[Array, 'B C']) -> Array: ...",
        "def f(x: 'int', *, y: np.ndarray | None) -> None: ...",
        "def f(x: tuple[Float[Array, 'B C'], dict[str, jax.Array]]) -> None: ...",
        "class Layer(nn.Module):\n  @nn.compact\n  def __call__(self, x: Array) -> None: ...",
        "class Layer(nn.Module):\n  vectors: np.ndarray",
        "Pair = tuple[jax.Array, jax.Array]",
    ],
)
def test_a_bare_array_is_seen(code):
    found = list(public_annotations(ast.parse(code).body))
    assert any(names_bare_array(annotation) for _, annotation in found)


def zeros(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.zeros(shape, dtype)


def scores(**changed) -> Scores:
    fields = {
        "logits": np.zeros((2, 3), np.float32),
        "labels": np.ones((2, 3), np.int8),
        "image_ids": np.array(["a", "b"]),
        "class_names": np.array(["x", "y", "z"]),
        "set_name": "set",
        "split": "test",
        "image_size": 64,
    }
    return Scores(**fields | changed)


@pytest.mark.parametrize(
    "wrong",
    {
        "a rank": lambda: convolve(zeros(8, 8, 3), zeros(3, 3, 3, 4)),
        "an axis of two arguments": lambda: convolve(zeros(1, 8, 8, 3), zeros(3, 5, 3, 4)),
        "a dtype": lambda: class_regions(zeros(2, 5, 7, dtype=int), (64, 64), 0.5, "exact"),
        "a dtype of too few bits": lambda: class_regions(
            zeros(2, 5, 7, dtype=jnp.bfloat16), (64, 64), 0.5, "exact"
        ),
        "targets of other labels": lambda: binary_cross_entropy(
            zeros(4, 3), zeros(4, 2), zeros(4, 3, dtype=bool)
        ),
        "an argument of a module, traced": lambda: jax.eval_shape(
            ConvBatchNorm(4).init, jax.random.key(0), zeros(2, 8, 8, 3), True, zeros(3, dtype=bool)
        ),
        "what a module inside another gives back": lambda: jax.eval_shape(
            Pooled(lambda images, train, mask: [images[0]], 3, "avg", 2, 0.5, "exact").init,
            jax.random.key(0),
            zeros(2, 8, 8, 3),
        ),
        "a field of a module": lambda: MSRN(
            ConvBatchNorm(4), np.zeros((3, 2), np.float32), np.ones((4, 4), bool), 1, "dense"
        ),
        "a field of scores": lambda: scores(labels=np.ones((2, 4), np.int8)),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_wrong_is_refused(wrong):
    _, call = wrong
    with pytest.raises(TypeCheckError):
        call()


def test_what_is_right_is_taken():
    assert convolve(zeros(1, 8, 7, 3), zeros(3, 3, 3, 4), 2).shape == (1, 4, 4, 4)
    assert class_regions(zeros(2, 5, 7), (64, 64), 0.5, "exact").shape == (2, 4)
    assert scores().logits.shape == (2, 3)
