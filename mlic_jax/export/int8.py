"""Static quantisation of an ONNX model by onnxruntime's own tools, and what it costs.

The backbone's products alone are of 8 bits. What scores labels and finds regions stays in float32:
there a small error moves a box by many pixels. So do depthwise convolutions, a few of the products:
their features have ranges of their own, and one scale for all of them costs points of mAP.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from mlic_jax.data.fitting import Fit
from mlic_jax.data.records import Split
from mlic_jax.export.bundle import Runtime, run_in_batches
from mlic_jax.metrics.average_precision import average_precision, mean_average_precision

CALIBRATED_WITH = 64  # photos of training, from which the ranges of all maps are told
BACKBONE = "/features/"  # in the names of its nodes
QUANTISED = ("Conv", "MatMul")
ROWS = 8  # photos at a time


def quantise(model: Path, out: Path, split: Split, fit: Fit, size: int, batch: int | None) -> None:
    """Writes `model` with a backbone of 8 bits.

    Args:
        split: what the model was trained with.
        fit, size: how a photo becomes what the model sees.
        batch: that it takes; None: any.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Photos(CalibrationDataReader):
        def __init__(self) -> None:
            step = max(1, len(split) // CALIBRATED_WITH)
            chosen = list(range(0, len(split), step))[:CALIBRATED_WITH]
            self._batches = squares(split, chosen, fit, size, batch or ROWS)

        def get_next(self) -> dict[str, np.ndarray] | None:
            pixels = next(self._batches, None)
            if pixels is None or (batch and len(pixels) < batch):
                return None
            return {"pixels": pixels}

    nodes = onnx.load(str(model), load_external_data=False).graph.node
    in_float = [node.name for node in nodes if BACKBONE not in node.name or _is_depthwise(node)]
    quantize_static(
        str(model),
        str(out),
        Photos(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTISED),
        per_channel=True,
        nodes_to_exclude=in_float,
    )


def _is_depthwise(node: onnx.NodeProto) -> bool:
    return any(of.name == "group" and of.i > 1 for of in node.attribute)


def squares(
    split: Split, indices: list[int], fit: Fit, size: int, rows: int
) -> Iterator[np.ndarray]:
    """Photos of a split as a model sees them, uint8 `[B, size, size, 3]`, B at most `rows`."""
    for start in range(0, len(indices), rows):
        photos = [split.decode(split[index]) for index in indices[start : start + rows]]
        yield np.stack([fit.square(photo, size) for photo in photos])


def mean_ap(runtime: Runtime, split: Split, fit: Fit, size: int, batch: int | None) -> float:
    """The mAP of a split, percent."""
    batches = squares(split, list(range(len(split))), fit, size, batch or ROWS)
    probabilities = np.concatenate(
        [run_in_batches(runtime, pixels, batch)["probabilities"] for pixels in batches]
    )
    value = mean_average_precision(average_precision(probabilities, split.labels()))
    assert value is not None  # a validation split has positives
    return value
