"""The spatial attention of MSRN, for evaluation and with its gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
from comparison import Case, Comparison, Sizes, Task


def inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    """Features [B, P, D], embeddings [C, D] and the gradient of the result [B, C, D]."""
    rng = np.random.default_rng(0)
    batch, positions, labels, channels = (
        sizes[name] for name in ("images", "positions", "labels", "channels")
    )
    shapes = {
        "features": (batch, positions, channels),
        "embeddings": (labels, channels),
        "gradient": (batch, labels, channels),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def streaming(features: Any, embeddings: Any) -> Any:
    """Ours."""
    from mlic_jax.models.ops.spatial_attention import spatial_attention

    return spatial_attention(features, embeddings)


def naive(features: Any, embeddings: Any) -> Any:
    """The formula as it stands, in arrays [B, C, P, D]; JAX derives its gradients."""
    import jax
    import jax.numpy as jnp

    f = features[:, None]
    return jnp.sum(jax.nn.softmax(f * embeddings[:, None], axis=2) * f, axis=2)


def as_released(maps: Any, embeddings: Any) -> Any:
    """The reference, which also builds the arrays of every position, label and channel."""
    from weight_conversion.torch_reference.msrn import spatial_attention

    return spatial_attention(maps, embeddings)


def label_by_label(maps: Any, embeddings: Any) -> Any:
    """The same in a loop, the arrays of one label at a time."""
    from torch_tuned import attend_by_label

    return attend_by_label(maps, embeddings)


def jax_forward(operation: Callable) -> Callable:
    def make(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
        import jax

        forward = jax.jit(operation)
        return lambda: {"out": forward(given["features"], given["embeddings"])}

    return make


def jax_both(operation: Callable) -> Callable:
    def make(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
        import jax

        @jax.jit
        def both(features, embeddings, gradient):
            out, pullback = jax.vjp(operation, features, embeddings)
            features_gradient, embeddings_gradient = pullback(gradient)
            return {
                "out": out,
                "features_gradient": features_gradient,
                "embeddings_gradient": embeddings_gradient,
            }

        return lambda: both(**given)

    return make


def torch_forward(operation: Callable) -> Callable:
    def make(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
        import torch

        maps = _maps(given["features"])

        def run() -> dict[str, Any]:
            with torch.no_grad():
                return {"out": operation(maps, given["embeddings"])}

        return run

    return make


def torch_both(operation: Callable) -> Callable:
    def make(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
        import torch

        arguments = _maps(given["features"]).requires_grad_(), given["embeddings"].requires_grad_()

        def run() -> dict[str, Any]:
            out = operation(*arguments)
            of_maps, of_embeddings = torch.autograd.grad(out, arguments, given["gradient"])
            return {
                "out": out,
                "features_gradient": of_maps.flatten(2).permute(0, 2, 1),
                "embeddings_gradient": of_embeddings,
            }

        return run

    return make


def _maps(features: Any) -> Any:
    """[B, P, D] as torch's convolutions leave them, [B, D, P, 1]."""
    return features.permute(0, 2, 1)[..., None].contiguous()


def task(name: str, ours: Callable, theirs: Callable, time_target: float) -> Task:
    return Task(
        name,
        inputs,
        (
            Case("ours", "jax", ours(streaming)),
            Case("JAX, naive", "jax", ours(naive)),
            Case("PyTorch, as released", "torch", theirs(as_released), time_target, 18),
            Case("PyTorch, tuned", "torch", theirs(label_by_label)),
        ),
    )


COMPARISON = Comparison(
    title="Spatial attention of MSRN",
    sizes={"images": 8, "positions": 784, "labels": 84, "channels": 512},
    small={"images": 2, "positions": 30, "labels": 5, "channels": 16},
    tasks=(
        task("forward", jax_forward, torch_forward, 10),
        task("forward and backward", jax_both, torch_both, 20),
    ),
)
