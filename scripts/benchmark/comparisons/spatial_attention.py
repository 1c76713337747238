"""The spatial attention of MSRN, for evaluation and with its gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
from comparison import Case, Comparison, Sizes


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
    from mlic_jax.models.spatial_attention import spatial_attention

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
    import torch

    features = maps.flatten(2)  # [B, D, P]
    means = [
        ((features * embedding[:, None]).softmax(dim=2) * features).sum(dim=2)
        for embedding in embeddings
    ]
    return torch.stack(means, dim=1)


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


COMPARISON = Comparison(
    title="Spatial attention of MSRN",
    sizes={"images": 8, "positions": 784, "labels": 84, "channels": 512},
    small={"images": 2, "positions": 30, "labels": 5, "channels": 16},
    inputs=inputs,
    cases=tuple(
        Case(task, variant, framework, make(operation))
        for task, ours, theirs in (
            ("forward", jax_forward, torch_forward),
            ("forward and backward", jax_both, torch_both),
        )
        for variant, framework, make, operation in (
            ("ours", "jax", ours, streaming),
            ("JAX, naive", "jax", ours, naive),
            ("PyTorch, as released", "torch", theirs, as_released),
            ("PyTorch, label by label", "torch", theirs, label_by_label),
        )
    ),
)
