"""Photos to labels and regions, from a checkpoint alone: no recipe, no data set.

    python -m mlic_jax.main --mode=predict --checkpoint runs/voc --images photos --out predictions

writes files (see `files.py`); in a notebook the same is

    Predictor.from_checkpoint("runs/voc")(["photo.jpg"])[0].labels
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, Unpack

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mlic_jax.checkpoint_config import own_config
from mlic_jax.config import check_scales
from mlic_jax.data import transforms
from mlic_jax.data.image_files import printable, read_image_file
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.metrics.operating_point import OperatingPoint, calibrated
from mlic_jax.metrics.protocols import PROTOCOLS
from mlic_jax.runtime import devices
from mlic_jax.runtime.checkpoint import load_weights
from mlic_jax.scores.predictions import Box, Prediction, Region
from mlic_jax.scores.scoring import create_eval_model, make_eval_step
from mlic_jax.scores.views import host_size

THREADS = 4  # that decode

Source = str | Path | Image.Image | np.ndarray


class LookOptions(TypedDict, total=False):
    """Options of `config.eval`, where they are not to be as a checkpoint says; None: they are."""

    flip: bool | None  # average the logits with those of the mirrored photo
    scales: Sequence[int] | None  # sizes beside the checkpoint's own, over all of which to average
    local_size: int | None  # pixels of a side of the crops that MCAR looks at
    # MCAR does not look at regions of classes whose global probability is lower, and they are not
    # among the `regions`.
    local_bound: float | None


class Predictor:
    """A model that is ready to look at photos, with all that its checkpoint says of their use.

    Probabilities are those of the checkpoint's operating point: logits are divided by its
    temperature, and a label counts as present from its threshold on. A checkpoint that was not
    calibrated has temperature 1 and the threshold of its protocol.

    Attributes:
        config: of the checkpoint, with what was changed of `config.eval`.
        class_names: of the C labels.
        thresholds: float64 `[C]`, probabilities.
        temperature: see above.
        rule: in words, what the thresholds are.
        value_range: what is black and what white of photos of more than 8 bits, as in training;
            None: it knew none, see `transforms.decode`.
        batch_size: photos that are looked at together. A batch of fewer is filled up, and so are
            those that the devices do not divide: one compilation serves all.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables: dict[str, Any],
        metadata: dict[str, Any],
        batch_size: int = 1,
    ):
        """Takes what `load_model` gives; `from_checkpoint` is for everyone else."""
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be positive")
        check_scales(config.eval.scales)
        self.config, self.batch_size = config, batch_size
        self.class_names = tuple(metadata["class_names"])
        value_range = metadata.get("preprocessing", {}).get("range")
        self.value_range = tuple(value_range) if value_range else None
        self.temperature, self.thresholds, self.rule = operating_point(config, metadata)
        model = create_eval_model(config, len(self.class_names), variables)
        used, self._rows = spread(batch_size, jax.local_device_count())
        self._mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:used]), ("data",))
        variables = {name: variables[name] for name in ("params", "batch_stats")}
        self._variables = jax.device_put(variables, devices.replicated(self._mesh))
        self._step = make_eval_step(model, config, self._mesh, class_maps=True)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        batch_size: int = 1,
        **look: Unpack[LookOptions],
    ) -> "Predictor":
        """Reads a run (its best checkpoint), one of its checkpoints or a converted whole model.

        Args:
            path: its folder.
            batch_size: photos that are looked at together.
            look: how, where that is not to be as the checkpoint says.

        Raises:
            UsageError: there is no checkpoint, it has no classes, or an argument is out of range.
            Failure: it cannot be read.
        """
        return cls(*load_model(path, **look), batch_size)

    def __call__(self, images: Iterable[Source]) -> list[Prediction]:
        """Looks at images: paths, PIL images, or uint8 arrays `[H, W, 3]` of RGB.

        Files and PIL images are turned upright as their EXIF orientation says. An image that cannot
        be read, for whatever reason, has an `error` and nothing else.

        Raises:
            UsageError: an array of another type or shape.
            Failure: the scores of an image are not finite.
        """
        return list(self.stream(images))

    def stream(self, images: Iterable[Source]) -> Iterator[Prediction]:
        """As a call, one after the other; images are read a batch ahead, by threads."""
        with ThreadPoolExecutor(THREADS) as pool:
            loaded = in_order(pool, self._load, images, self.batch_size + THREADS)
            while batch := list(itertools.islice(loaded, self.batch_size)):
                yield from self._predict(batch)

    def read(self, source: Source) -> Image.Image:
        """An image as the model is to see it: RGB, turned as its EXIF orientation says.

        Raises:
            UsageError: an array that is not uint8 `[H, W, 3]`.
            Failure, OSError: it cannot be read.
            Others: of a PIL image that is not loaded yet, nearly anything.
        """
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
                raise UsageError(
                    f"an image is {source.dtype} of the shape {source.shape}; arrays must be uint8 "
                    "of (height, width, 3), RGB"
                )
            return Image.fromarray(source)
        if isinstance(source, Image.Image):
            return transforms.to_rgb(source, upright=True, value_range=self.value_range)
        encoded = read_image_file(Path(source))
        return transforms.decode(encoded, upright=True, value_range=self.value_range)

    def _load(self, source: Source) -> tuple[Prediction, np.ndarray | None]:
        """The prediction as far as it is known from the file, and the pixels for the model."""
        name = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
        file = "" if isinstance(source, np.ndarray) else printable(name or "")
        try:
            image = self.read(source)
            pixels = transforms.resize(image, host_size(self.config))
        except UsageError:
            raise
        except Exception as error:  # Pillow raises nearly anything, which concerns this image alone
            return Prediction(file, error=reason(error)), None
        return Prediction(file, image.width, image.height), pixels

    def _predict(self, batch: list[tuple[Prediction, np.ndarray | None]]) -> Iterator[Prediction]:
        readable = [pixels for _, pixels in batch if pixels is not None]
        if readable:
            size = host_size(self.config)
            images = np.zeros((self._rows, size, size, 3), np.uint8)
            images[: len(readable)] = readable
            on_devices = devices.to_devices({"image": images}, self._mesh)
            outputs = jax.device_get(self._step(self._variables, on_devices))
        row = 0
        for known, pixels in batch:
            if pixels is None:
                yield known
                continue
            yield self._prediction(known, {name: rows[row] for name, rows in outputs.items()})
            row += 1

    def _prediction(self, known: Prediction, outputs: dict[str, np.ndarray]) -> Prediction:
        """Adds what the model said, `outputs` of one row."""
        if not np.isfinite(outputs["logits"]).all():
            raise Failure(f"{known.file}: its scores are not finite; the checkpoint is damaged")
        probabilities = calibrated(outputs["logits"], self.temperature)
        ranked = np.argsort(-probabilities, kind="stable")
        present = ranked[(probabilities >= self.thresholds)[ranked]]
        return dataclasses.replace(
            known,
            labels=tuple(self.class_names[c] for c in present),
            scores=dict(zip(self.class_names, probabilities.tolist(), strict=True)),
            regions=tuple(self._regions(known, outputs)) if "boxes" in outputs else (),
        )

    def _regions(self, known: Prediction, outputs: dict[str, np.ndarray]) -> Iterator[Region]:
        streams = [
            calibrated(outputs[name], self.temperature)
            for name in ("global_logits", "local_logits")
        ]
        size = self.config.data.image_size
        classes = outputs["box_classes"]
        looked_at = outputs.get("looked_at", np.ones(len(classes), bool))
        for k, c in enumerate(classes):
            if not looked_at[k]:
                continue
            yield Region(
                self.class_names[c],
                box_in_photo(outputs["boxes"][k], size, known.height, known.width),
                *(float(stream[c]) for stream in streams),
                outputs["class_maps"][k],
            )


def load_model(
    path: str | Path, **look: Unpack[LookOptions]
) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """The configuration, the variables and the metadata of a checkpoint that is a whole model.

    Options that are newer than the checkpoint have their defaults. For the arguments and what is
    raised see `Predictor.from_checkpoint`.
    """
    variables, metadata = load_weights(Path(path))
    config = own_config(metadata, path)
    if config.model.name == "msrn" and "label_inputs" not in variables:
        raise UsageError(
            f"{path} lacks what MSRN knows of its labels: convert it again with --graph and "
            "--vectors"
        )
    for name, value in look.items():
        if value is not None:
            config.eval[name] = tuple(value) if name == "scales" else value
    return config, variables, metadata


def operating_point(config: ConfigDict, metadata: dict[str, Any]) -> tuple[float, np.ndarray, str]:
    """The temperature, the thresholds `[C]` (probabilities) and, in words, what they are."""
    if stored := metadata.get("operating_point"):
        point = OperatingPoint.from_dict(stored)
        return point.temperature, np.array(point.thresholds), point.rule
    threshold = PROTOCOLS[config.eval.protocol].threshold
    rule = f"the threshold of the protocol {config.eval.protocol}, {threshold:g}"
    return 1.0, np.full(len(metadata["class_names"]), threshold), rule


def box_in_photo(box: np.ndarray, size: int, height: int, width: int) -> Box:
    """A box of the `size` x `size` input in a photo's pixels: all that it touches, never empty."""
    y1, x1, y2, x2 = (int(edge) for edge in box)
    return (
        y1 * height // size,
        x1 * width // size,
        -(-y2 * height // size),
        -(-x2 * width // size),
    )


def spread(batch_size: int, devices: int) -> tuple[int, int]:
    """How a batch is divided among devices: how many of them have rows, and the rows of all.

    Every one has as many, the fewest that are possible; what the batch does not fill is padding.
    """
    share = -(-batch_size // devices)
    used = -(-batch_size // share)
    return used, share * used


def even_batch_size(images: int, limit: int) -> int:
    """The rows of a batch, at most `limit`, with which the fewest rows are padding."""
    batches = -(-images // limit)
    return -(-images // batches)


def in_order(
    pool: ThreadPoolExecutor, function: Callable, items: Iterable, ahead: int
) -> Iterator[Any]:
    """`function` of every item, in order; threads are up to `ahead` items in advance."""
    under_way: collections.deque = collections.deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) > ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
