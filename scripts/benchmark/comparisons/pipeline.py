"""The input pipeline: one epoch of JPEGs as large as photographs of VOC, decoded and resized.

PyTorch's loader has as many worker processes as ours has threads, the same bytes (in memory, where
ours reads them from a prepared set) and the same filter. Neither normalises. Then the same with
`data.cache=pixels`, from the second epoch on.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import photos
from comparison import Case, Comparison, Sizes, Task
from frameworks import available_cores


def data_loader(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
    import torch

    encoded, labels = photos.split_bytes(given), given["labels"].cpu().numpy()
    loader = torch.utils.data.DataLoader(
        photos.Dataset(encoded, labels, sizes["image_size"]),
        batch_size=sizes["batch"],
        num_workers=available_cores(),
        persistent_workers=True,
    )

    def run() -> dict[str, Any]:
        epoch = ((images.numpy(), of_batch.numpy()) for images, of_batch in loader)
        sampled = photos.sampled(epoch)
        return {name: torch.from_numpy(array) for name, array in sampled.items()}

    return run


def epoch(name: str, ours: Callable, time_target: float) -> Task:
    return Task(
        name,
        photos.inputs,
        (
            Case("ours", "host", ours),
            Case("PyTorch, DataLoader", "torch", data_loader, time_target=time_target),
        ),
        tolerance=0,
        measures_memory=False,
        shows_rate=True,
    )


COMPARISON = Comparison(
    title="Input pipeline",
    sizes={"images": 512, "batch": 16, "image_size": 448},
    small={"images": 12, "batch": 8, "image_size": 64},
    tasks=(
        epoch("JPEG to {image_size} px", photos.pipeline, time_target=1.0),
        epoch(
            "JPEG to {image_size} px, ours kept by an earlier epoch",
            partial(photos.pipeline, cache="pixels"),
            time_target=5.0,
        ),
    ),
)
