"""Photos to labels and regions, from a checkpoint alone: no recipe, no data set.

    python -m mlic_jax.main --mode=predict --checkpoint runs/voc --images photos --out predictions

writes files (see `files.py`); in a notebook the same is

    predictor = Predictor.from_checkpoint("runs/voc")
    predictor("photo.jpg").labels  # one photo -> one Prediction
    predictor(["a.jpg", "b.jpg"])  # several -> a list of them
    predictor.annotated("photo.jpg")  # an image, with the regions of the labels
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mlic_jax.checkpoint_config import own_config
from mlic_jax.config_checks import check_scales
from mlic_jax.data import label_tree, transforms
from mlic_jax.data.fitting import Frame
from mlic_jax.data.label_tree import LabelTree
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.metrics.operating_point import OperatingPoint, calibrated
from mlic_jax.metrics.protocols import PROTOCOLS
from mlic_jax.names import did_you_mean, require_one_of
from mlic_jax.predict.photos import Source, each_photo, is_one, name_of, read_photo
from mlic_jax.reports.predictions import annotate_prediction
from mlic_jax.runtime import compilation, devices
from mlic_jax.runtime.checkpoint import load_weights
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.predictions import Prediction, Region
from mlic_jax.scores.scoring import create_eval_model, make_eval_step
from mlic_jax.scores.views import host_size, view_sizes

THREADS = 4  # that decode
NAMED = 5  # labels in the name of a predictor

Thresholds = float | Mapping[str, float]  # of all labels, or of those that are named

Item = TypeVar("Item")
Result = TypeVar("Result")


class LookOptions(TypedDict, total=False):
    """Options of `config.eval`, where they are not to be as a checkpoint says; None: they are."""

    flip: bool | None  # average the logits with those of the mirrored photo
    scales: Sequence[int] | None  # sizes beside the checkpoint's own, over all of which to average
    local_size: int | None  # pixels of a side of the crops that MCAR looks at
    # MCAR does not look at regions of classes whose global probability is lower, and they are not
    # among the `regions`.
    local_bound: float | None
    label_tree: str | None  # a file of rules, with which scores are made to agree


class Predictor:
    """A model that is ready to look at photos, with all that its checkpoint says of their use.

    Probabilities are those of the checkpoint's operating point: logits are divided by its
    temperature, and a label counts as present from its threshold on. A checkpoint that was not
    calibrated has temperature 1 and the threshold of its protocol.

    What it knows of the model itself is in `__init__` and `_look` alone: `export.predictor` has
    another one.

    Attributes:
        config: of the checkpoint, with what was changed of `config.eval`.
        options: what scoring takes of it.
        fit: how a photo becomes what the model sees.
        size: S, pixels of a side of that.
        grid: to so many pixels of a side boxes refer.
        about: for people, what the model is and how it looks.
        class_names: of the C labels.
        thresholds: float64 `[C]`, probabilities.
        temperature: see above.
        rule: in words, what the thresholds are.
        value_range: what is black and what white of photos of more than 8 bits, as in training;
            None: there were none in training; it is told from each photo then, which is printed.
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
        check_scales(config.eval.scales, config.model.backbone)
        self.config, self.options = config, ScoreOptions.of(config)
        self.fit, self.size = self.options.data.fit, host_size(self.options)
        self.grid, self.about = self.options.data.image_size, _about(self.options)
        self.batch_size = batch_size
        self.class_names = tuple(metadata["class_names"])
        self._see_range(metadata.get("preprocessing", {}).get("range"))
        self._tree = tree_of(config, metadata)
        self.temperature, self.thresholds, self.rule = operating_point(
            config.eval.protocol, metadata
        )
        model = create_eval_model(self.options, len(self.class_names), variables)
        used, self._rows = spread(batch_size, jax.local_device_count())
        self._mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:used]), ("data",))
        variables = {name: variables[name] for name in ("params", "batch_stats")}
        self._variables = jax.device_put(variables, devices.replicated(self._mesh))
        self._step = make_eval_step(model, self.options, self._mesh, class_maps=True)

    def _see_range(self, value_range: tuple[float, float] | None) -> None:
        self.value_range: transforms.Range | None = None
        if value_range:
            black, white = value_range
            self.value_range = black, white
        self._ranges_told: set[transforms.Range] = set()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        batch_size: int = 1,
        **look: Unpack[LookOptions],
    ) -> "Predictor":
        """Reads a run (its best checkpoint), one of its checkpoints or a converted whole model.

        Its program is compiled with the first photo, and kept for later sessions, see
        `compilation.keep_programs`.

        Args:
            path: its folder.
            batch_size: photos that are looked at together.
            look: how, where that is not to be as the checkpoint says.

        Raises:
            UsageError: there is no checkpoint, it has no classes, or an argument is out of range.
            Failure: it cannot be read.
        """
        compilation.keep_programs()
        return cls(*load_model(path, **look), batch_size)

    def __repr__(self) -> str:
        model, names = self.options.model, ", ".join(self.class_names[:NAMED])
        sizes = ", ".join(str(size) for size in view_sizes(self.options))
        sizes += f" px{self.options.data.fit.described()}"
        more = ", ..." if len(self.class_names) > NAMED else ""
        return (
            f"Predictor({model.name} on {model.backbone}, {sizes}; "
            f"{len(self.class_names)} labels: {names}{more}; labels from {self.rule})"
        )

    def __call__(
        self,
        images: Source | Iterable[Source],
        *,
        threshold: Thresholds | None = None,
        top: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Looks at one photo, which gives one prediction, or at several, which give a list.

        Photos that cannot be read, for whatever reason, have an `error` and nothing else.

        Args:
            images: a path, an address (http, https), a PIL image, bytes, an open file, or an array
                (NumPy's or JAX's) of uint8 or of floats in [0, 1]: `[H, W, 3]` of RGB, `[H, W, 4]`
                of RGBA or `[H, W]` of grey; see `photos.read_photo`. Or an iterable of these, or
                arrays as one, `[B, H, W, 3]`.
            threshold: the probability from which on a label counts as present, in the place of the
                checkpoint's; or that of some labels, by their names.
            top: the most labels that a photo has; without a `threshold` it has so many, the
                likeliest, whatever their probabilities.

        Raises:
            UsageError: what is no photo, an array of another type or shape, a threshold that is no
                probability or of an unknown label, a `top` out of range.
            Failure: the scores of a photo are not finite.
        """
        predictions = list(self.stream(images, threshold=threshold, top=top))
        return predictions[0] if is_one(images) else predictions

    def stream(
        self,
        images: Source | Iterable[Source],
        *,
        threshold: Thresholds | None = None,
        top: int | None = None,
    ) -> Iterator[Prediction]:
        """As a call, one after the other; photos are read a batch ahead, by threads."""
        thresholds = self.thresholds
        if top is not None:
            if top not in range(1, len(self.class_names) + 1):
                raise UsageError(f"top is {top}; it must be 1 to {len(self.class_names)} labels")
            threshold = 0.0 if threshold is None else threshold
        if threshold is not None:
            thresholds = changed_thresholds(self.class_names, thresholds, threshold)
        return self._stream(each_photo(images), thresholds, top)

    def _stream(
        self, images: Iterable[Source], thresholds: np.ndarray, top: int | None
    ) -> Iterator[Prediction]:
        with ThreadPoolExecutor(THREADS) as pool:
            loaded = in_order(pool, self._load, images, self.batch_size + THREADS)
            while batch := list(itertools.islice(loaded, self.batch_size)):
                for known, outputs in self._outputs(batch):
                    yield self._prediction(known, outputs, thresholds, top) if outputs else known

    def read(self, source: Source) -> Image.Image:
        """A photo as the model is to see it; see `photos.read_photo`, also for what it raises."""
        return read_photo(source, lambda image: self._to_rgb(image, name_of(source)))

    def annotated(self, source: Source, prediction: Prediction | None = None) -> Image.Image:
        """A photo with its labels and their regions drawn, which a notebook shows.

        Args:
            source: see a call.
            prediction: of this photo, where there is one already.

        Raises:
            UsageError: it is no photo.
            Failure, OSError, others: it cannot be read, see `photos.read_photo`.
        """
        image = self.read(source)  # which is upright, whatever its tag still says
        if prediction is None:
            (prediction,) = self.stream([np.asarray(image)])
        return annotate_prediction(image, prediction)

    def _to_rgb(self, image: Image.Image, name: str) -> Image.Image:
        value_range = self.value_range or transforms.range_of(image)
        if value_range is not None and value_range not in (self.value_range, *self._ranges_told):
            self._ranges_told.add(value_range)
            black, white = value_range
            print(
                f"{name or 'a photo'} has more than 8 bits, and the model was trained "
                f"on none such: black is {black:g} and white {white:g}, as its pixels look"
            )
        return transforms.to_rgb(image, upright=True, value_range=value_range)

    def _load(self, source: Source) -> tuple[Prediction, np.ndarray | None]:
        """The prediction as far as it is known from the file, and the pixels for the model."""
        file = name_of(source)
        try:
            image = self.read(source)
            pixels = self.fit.square(image, self.size)
        except UsageError:
            raise
        except Exception as error:  # Pillow raises nearly anything, which concerns this image alone
            return Prediction(file, error=reason(error)), None
        seen = self._frame(image.height, image.width).box_in_photo((0, 0, 1, 1), grid=1)
        return Prediction(file, image.width, image.height, seen=seen), pixels

    def _frame(self, height: int, width: int) -> Frame:
        """What is seen of a photo of that size."""
        return self.fit.frame(height, width, self.size)

    def _outputs(
        self, batch: list[tuple[Prediction, np.ndarray | None]]
    ) -> Iterator[tuple[Prediction, dict[str, np.ndarray]]]:
        """Each photo of a batch with what the model says of it, nothing where it was not read."""
        readable = [pixels for _, pixels in batch if pixels is not None]
        if readable:
            outputs = self._look(np.stack(readable))
        row = 0
        for known, pixels in batch:
            if pixels is None:
                yield known, {}
                continue
            yield known, {name: rows[row] for name, rows in outputs.items()}
            row += 1

    def _look(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What the model says of uint8 `[B, S, S, 3]`, B at most `batch_size`: arrays by name.

        `probabilities` `[B, C]`, and where there are regions what `_regions` takes.
        """
        images = np.zeros((self._rows, *pixels.shape[1:]), np.uint8)
        images[: len(pixels)] = pixels
        on_devices = devices.to_devices({"image": images}, self._mesh)
        outputs = jax.device_get(self._step(self._variables, on_devices))
        if self._tree is not None:
            outputs["logits"] = self._tree.consistent(outputs["logits"])
        return outputs | {
            name.replace("logits", "probabilities"): np.where(
                np.isfinite(of), calibrated(of, self.temperature), np.nan
            )
            for name, of in outputs.items()
            if name.endswith("logits")
        }

    def _prediction(
        self,
        known: Prediction,
        outputs: dict[str, np.ndarray],
        thresholds: np.ndarray,
        top: int | None,
    ) -> Prediction:
        """Adds what the model said, `outputs` of one row."""
        probabilities = outputs["probabilities"]
        if not np.isfinite(probabilities).all():
            raise Failure(f"{known.file}: its scores are not finite; the checkpoint is damaged")
        ranked = np.argsort(-probabilities, kind="stable")
        present = ranked[(probabilities >= thresholds)[ranked]][:top]
        return dataclasses.replace(
            known,
            labels=tuple(self.class_names[c] for c in present),
            scores=dict(zip(self.class_names, probabilities.tolist(), strict=True)),
            regions=tuple(self._regions(known, outputs)) if "boxes" in outputs else (),
        )

    def _regions(self, known: Prediction, outputs: dict[str, np.ndarray]) -> Iterator[Region]:
        if known.height is None or known.width is None:  # it was not read
            return
        of_photo = outputs.get("global_probabilities", outputs["probabilities"])
        of_regions = outputs.get("local_probabilities")
        frame = self._frame(known.height, known.width)
        classes = outputs["box_classes"]
        looked_at = outputs.get("looked_at", np.ones(len(classes), bool))
        for k, c in enumerate(classes):
            if not looked_at[k]:
                continue
            yield Region(
                self.class_names[c],
                frame.box_in_photo(outputs["boxes"][k], self.grid),
                float(of_photo[c]),
                None if of_regions is None else float(of_regions[c]),
                outputs["class_maps"][k],
            )


def _about(options: ScoreOptions) -> dict[str, str]:
    """What a model is and how it looks, for people."""
    model, views = options.model, options.eval
    sizes = ", ".join(f"{size} px" for size in view_sizes(options))
    about = {
        "model": f"{model.name} on {model.backbone}",
        "image size": sizes + options.data.fit.described(),
    }
    if views.flip:
        about["mirrored too"] = "yes"
    if views.local_size:
        about["crops"] = f"{views.local_size} px"
    if views.local_bound:
        about["regions"] = f"of probability {views.local_bound:g} and more"
    return about


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
    tree = look.pop("label_tree", None)
    if tree is not None:
        metadata["label_tree"] = label_tree.read(tree, metadata["class_names"]).named()
        config.eval.consistent = True
    for name, value in look.items():
        require_one_of("an argument", name, LookOptions.__annotations__)
        if value is not None:
            config.eval[name] = tuple(value) if isinstance(value, Sequence) else value
    return config, variables, metadata


def tree_of(config: ConfigDict, metadata: Mapping[str, Any]) -> LabelTree | None:
    """The tree that a checkpoint's scores are to agree with; None: they stay as they are."""
    if not config.eval.consistent:
        return None
    rules = [("the checkpoint's label tree", *rule) for rule in metadata["label_tree"]]
    return label_tree.of_rules(rules, metadata["class_names"])


def operating_point(protocol: str, metadata: dict[str, Any]) -> tuple[float, np.ndarray, str]:
    """The temperature, the thresholds `[C]` (probabilities) and, in words, what they are."""
    if stored := metadata.get("operating_point"):
        point = OperatingPoint.from_dict(stored)
        return point.temperature, np.array(point.thresholds), point.rule
    threshold = PROTOCOLS[protocol].threshold
    rule = f"the threshold of the protocol {protocol}, {threshold:g}"
    return 1.0, np.full(len(metadata["class_names"]), threshold), rule


def changed_thresholds(
    class_names: Sequence[str], thresholds: np.ndarray, threshold: Thresholds
) -> np.ndarray:
    """The thresholds `[C]` with those that are asked for; see `Predictor.__call__`."""
    asked: Mapping[str, Any]  # from people, so it may be anything
    asked = threshold if isinstance(threshold, Mapping) else dict.fromkeys(class_names, threshold)
    changed = np.array(thresholds, np.float64)
    for name, value in asked.items():
        if name not in class_names:
            raise UsageError(f"threshold: no label {name!r}{did_you_mean(name, class_names)}")
        if not (isinstance(value, (int, float, np.number)) and 0 <= value <= 1):
            raise UsageError(f"a threshold is {value!r}; it must be a probability, 0 to 1")
        changed[class_names.index(name)] = value
    return changed


def spread(batch_size: int, devices: int) -> tuple[int, int]:
    """How a batch is divided among devices: how many of them have rows, and the rows of all.

    Every one has as many, the fewest that are possible; what the batch does not fill is padding.
    """
    share = -(-batch_size // devices)
    used = -(-batch_size // share)
    return used, share * used


def common_batch_size(images: int, limit: int) -> int:
    """The rows of a batch: `limit`, or for few images a power of two that holds them all.

    So a handful of programs, which are kept, serves every number of images; what the last batch
    lacks is padding.
    """
    return min(limit, 1 << (images - 1).bit_length())


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`function` of every item, in order; threads are up to `ahead` items in advance."""
    under_way: collections.deque[Future[Result]] = collections.deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) > ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
