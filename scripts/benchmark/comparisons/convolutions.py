"""The convolutions that the backbones are made of, one by one: what the floor of a model is.

Of a training step of MCAR at 256 px with two images: these and their four regions each are ten.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from comparison import Case, Comparison, Sizes, Task

PARTS = ("forward", "gradient of the input", "gradient of the kernel")


def inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    """Maps [B, S, S, F], a kernel [k, k, F, G] and the gradient of the result, at stride 1."""
    rng = np.random.default_rng(0)
    batch, side, kernel, channels, outputs = (
        sizes[name] for name in ("images", "side", "kernel", "channels", "outputs")
    )
    shapes = {
        "maps": (batch, side, side, channels),
        "kernel": (kernel, kernel, channels, outputs),
        "gradient": (batch, side, side, outputs),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def depthwise_inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    """The same, with one input to every output."""
    given = inputs(sizes)
    return given | {"kernel": given["kernel"][:, :, :1]}


def ours(part: str, depthwise: bool) -> Callable:
    def make(given: dict[str, Any], _: Sizes) -> Callable[[], dict[str, Any]]:
        import jax

        from mlic_jax.models.ops.convolution import convolve
        from mlic_jax.runtime.compilation import jit

        @jit
        def compute(maps, kernel, gradient):
            def convolved(maps, kernel):
                return convolve(maps, kernel, depthwise=depthwise)

            if part == "forward":
                return convolved(maps, kernel)
            gradients = jax.vjp(convolved, maps, kernel)[1](gradient)
            return gradients[part == "gradient of the kernel"]

        return lambda: {"out": compute(**given)}

    return make


def theirs(part: str, depthwise: bool) -> Callable:
    """Channels last, as PyTorch is fastest."""

    def make(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
        import torch

        layout = {"memory_format": torch.channels_last}
        maps, gradient = (
            given[name].permute(0, 3, 1, 2).contiguous(**layout) for name in ("maps", "gradient")
        )
        kernel = given["kernel"].permute(3, 2, 0, 1).contiguous(**layout)
        groups, pad = (sizes["channels"] if depthwise else 1), (sizes["kernel"] - 1) // 2
        wanted = (part == PARTS[1], part == PARTS[2], False)

        def run() -> dict[str, Any]:
            with torch.inference_mode():
                if part == "forward":
                    out = torch.conv2d(maps, kernel, padding=pad, groups=groups)
                else:
                    out = next(
                        each
                        for each in torch.ops.aten.convolution_backward(
                            *(gradient, maps, kernel, None, (1, 1), (pad, pad), (1, 1)),
                            *(False, (0, 0), groups, wanted),
                        )
                        if each is not None
                    )
            order = (2, 3, 1, 0) if part == PARTS[2] else (0, 2, 3, 1)
            return {"out": out.permute(order)}

        return run

    return make


def task(part: str, side: int, kernel: int, channels: int, outputs: int, depthwise: bool) -> Task:
    kind = "depthwise" if depthwise else "to {outputs}"
    return Task(
        f"{{kernel}}x{{kernel}}, {{channels}} channels {kind}, {{side}} x {{side}}, {part}",
        depthwise_inputs if depthwise else inputs,
        (
            Case("ours", "jax", ours(part, depthwise)),
            Case("PyTorch, tuned", "torch", theirs(part, depthwise)),
        ),
        {"side": side, "kernel": kernel, "channels": channels, "outputs": outputs},
        tolerance=1e-3,
        measures_memory=False,
    )


# (side, kernel, channels, outputs, depthwise)
LAYERS = (
    (64, 3, 64, 64, False),  # the four stages of a ResNet-50
    (32, 3, 128, 128, False),
    (16, 3, 256, 256, False),
    (8, 3, 512, 512, False),
    (32, 1, 512, 128, False),
    (64, 3, 144, 144, True),  # MobileNetV2
    (64, 1, 24, 144, False),
)

COMPARISON = Comparison(
    title="Convolutions",
    sizes={"images": 10},
    small={"images": 2, "side": 8, "channels": 4, "outputs": 4},
    tasks=tuple(task(part, *layer) for layer in LAYERS for part in PARTS),
)
