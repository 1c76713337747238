"""From class maps to crops: localisation, cutting out and resizing, without any backbone (MCAR)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from comparison import Case, Comparison, Sizes, Task

THRESHOLD = 0.5
STRIDE = 32  # of the maps


def inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    """Images [B, S, S, 3], class maps [B, C, h, w] with one bump each, classes [B, N]."""
    rng = np.random.default_rng(0)
    batch, size, labels = sizes["images"], sizes["image_size"], sizes["labels"]
    side = size // STRIDE
    grid = np.arange(side)
    y, x = rng.uniform(0, side - 1, (2, batch, labels, 1, 1))
    width = rng.uniform(side / 8, side / 2, (batch, labels, 1, 1))
    distances = (grid[:, None] - y) ** 2 + (grid - x) ** 2
    maps = np.exp(-distances / (2 * width**2)) + 0.05 * rng.random(distances.shape)
    chosen = np.argsort(rng.random((batch, labels)), axis=1)[:, : sizes["regions"]]
    return {
        "images": rng.standard_normal((batch, size, size, 3), np.float32),
        "maps": maps.astype(np.float32),
        "classes": chosen.astype(np.int32),
    }


def ours(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from mlic_jax.models.ops.regions import class_regions, crop_and_resize

    size = sizes["image_size"]

    @jax.jit
    def look(images, maps, classes):
        maps = jnp.take_along_axis(maps, classes[:, :, None, None], axis=1)
        boxes = class_regions(maps, (size, size), THRESHOLD, "exact")
        crops = crop_and_resize(images, boxes)
        return {"boxes": boxes, "crops": crops.reshape(-1, size, size, 3)}

    return lambda: look(**given)


def as_released(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
    """Every class's map is upsampled; then a loop over the images and their regions."""
    import torch
    from torch.nn.functional import interpolate

    from weight_conversion.torch_reference import mcar

    size, regions = sizes["image_size"], sizes["regions"]
    images = given["images"].permute(0, 3, 1, 2).contiguous()
    maps, classes = given["maps"], given["classes"].long()

    def run() -> dict[str, Any]:
        with torch.no_grad():
            fine = interpolate(maps, (size, size), mode="bilinear", align_corners=True)
            boxes = torch.zeros(len(maps), regions, 4, dtype=torch.int32)
            for b in range(len(maps)):
                for n in range(regions):
                    (x1, x2), (y1, y2) = (
                        mcar.interval(
                            mcar.normalise(fine[b, classes[b, n]].amax(dim=axis)), THRESHOLD
                        )
                        for axis in (0, 1)
                    )
                    boxes[b, n] = torch.tensor([y1, x1, y2, x2], dtype=torch.int32)
            crops = mcar.crop_and_resize(images, boxes)
            return {"boxes": boxes, "crops": crops.permute(0, 2, 3, 1)}

    return run


def tuned(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
    """Only maps that are looked at are upsampled; all crops are one `grid_sample`."""
    import torch
    from torch_tuned import localise, sample_crops

    images = given["images"].permute(0, 3, 1, 2)  # channels last, as the pixels come
    maps, classes = given["maps"], given["classes"].long()
    image = torch.arange(len(maps), device=maps.device)[:, None]

    def run() -> dict[str, Any]:
        with torch.inference_mode():
            boxes = localise(maps[image, classes], sizes["image_size"], THRESHOLD)
            return {"boxes": boxes, "crops": sample_crops(images, boxes).permute(0, 2, 3, 1)}

    return run


COMPARISON = Comparison(
    title="Localise and crop (MCAR)",
    sizes={"images": 8, "regions": 4, "labels": 80, "image_size": 448},
    small={"images": 2, "regions": 2, "labels": 3, "image_size": 64},
    tasks=(
        Task(
            "localise and crop",
            inputs,
            (
                Case("ours", "jax", ours),
                Case("PyTorch, as released", "torch", as_released, time_target=5),
                Case("PyTorch, tuned", "torch", tuned),
            ),
            tolerance=1e-3,
        ),
    ),
)
