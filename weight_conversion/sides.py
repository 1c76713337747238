"""One checkpoint in two frameworks behind one interface: our model, and the reference in PyTorch.

`run` and `train` of the two sides return arrays of the same names, shapes and order, as NumPy's.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mlic_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config
from mlic_jax.data import label_inputs
from mlic_jax.data.fitting import SQUASHED, Fit
from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.data.transforms import Range
from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.inputs import InputOptions, normalise
from mlic_jax.models.mcar import MCAR
from mlic_jax.models.options import UNSAID, ModelOptions
from mlic_jax.models.precision import in_precision
from mlic_jax.names import require_size
from mlic_jax.runtime import compilation
from mlic_jax.runtime.checkpoint import load_weights
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState, make_train_step
from weight_conversion.arrays import to_torch, with_dead_tensors
from weight_conversion.convert import load_checkpoint
from weight_conversion.layouts import REFERENCE_LAYOUTS
from weight_conversion.reading import file_in

Arrays = dict[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]  # uint8 [B, S, S, 3], labels int8 [B, C]

# How the names of a reference begin that train at the rate of the backbone.
TRUNK_PREFIXES = {"mcar": "features.", "msrn": "resnet_101."}
# The same of our parameters, by their top-level module; MSRN's branches belong to its backbone.
TRUNK_MODULES = ("features", "branch2", "branch3")

TRUNK_IMAGE_SIZE = 224  # where neither the checkpoint nor the command line says


@dataclass(frozen=True)
class Checkpoint:
    """Weights, the model that they are of, and the pixels that it takes."""

    name: str
    variables: dict[str, Any]  # {"params", "batch_stats"}
    label_inputs: dict[str, Any]  # of MSRN, word_vectors [C, 300] and attention_mask [C, C]
    model: ModelOptions  # with the name trunk of a backbone alone
    class_names: tuple[str, ...]  # "0", "1", ... where nobody says; none for a trunk
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = SQUASHED  # how photos become squares
    upright: bool = False  # whether photos were turned in training as their EXIF orientation says
    value_range: Range | None = None  # of those of more than 8 bits, see `transforms.decode`

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] to what both models take, float32."""
        return np.asarray(normalise(images, InputOptions(self.mean, self.std)))


def read_checkpoint(
    path: Path, image_size: int | None = None, weights: str | None = None
) -> Checkpoint:
    """Reads a file of PyTorch's or a folder with one, of which `weights` as in `wrapping.find`.

    Or one of ours.

    Raises:
        UsageError: there is none at `path`, `image_size` cannot be the size of an image, or there
            are no such `weights`.
        Failure: it is damaged, or of no known network.
    """
    is_ours = path.is_dir() and file_in(path) is None
    if is_ours and weights is not None:
        raise UsageError(f"{path}: --weights is for files of PyTorch's")
    name = path.name
    if is_ours:
        variables, info = load_weights(path)
    else:
        variables, info = load_checkpoint(path, weights=weights)
        name += f", {info['place']}" if "place" in info else ""
    preprocessing = info.get("preprocessing", {})
    size = image_size or preprocessing.get("image_size", TRUNK_IMAGE_SIZE)
    model = _model_options(info)
    require_size(f"the image size is {size}", size, model.backbone)
    names: Sequence[str] = ()
    if model.name != "trunk" and not (names := info.get("class_names") or ()):  # a file without
        classifier = variables["params"]["fc2" if model.name == "msrn" else "convclass"]
        names = [str(c) for c in range(len(classifier["bias"]))]
    return Checkpoint(
        name=name,
        variables={name: variables[name] for name in ("params", "batch_stats")},
        label_inputs=_label_inputs(variables, path) if model.name == "msrn" else {},
        model=model,
        class_names=tuple(names),
        image_size=size,
        mean=tuple(preprocessing.get("mean", IMAGENET_MEAN)),
        std=tuple(preprocessing.get("std", IMAGENET_STD)),
        fit=Fit(
            preprocessing.get("interpolation", SQUASHED.interpolation),
            preprocessing.get("center_crop", SQUASHED.center_crop),
        ),
        upright=info.get("config", {}).get("data", {}).get("upright", False),
        value_range=tuple(preprocessing.get("range") or ()) or None,
    )


def _model_options(info: Mapping) -> ModelOptions:
    if "config" in info:
        model = ModelOptions.of({**UNSAID, **info["config"]["model"]})
        # The released one, which the reference has, whatever was chosen.
        return replace(model, localizer="exact")
    return ModelOptions.of({**UNSAID, "name": "trunk", "backbone": info["arch"]})


def _label_inputs(variables: Mapping, path: Path) -> Arrays:
    if "label_inputs" not in variables:
        raise UsageError(f"{path} has no word vectors and label graph: convert it with both first")
    return label_inputs.arguments_of(variables)


def training_options(checkpoint: Checkpoint) -> TrainOptions:
    """The released recipe without augmentation, so that both sides see the same pixels.

    And with all products in full, whatever it is trained with: the reference runs on a CPU.
    """
    config = default_config().unlock()
    config.model.update(asdict(checkpoint.model), precision="highest")
    slow, fast = config.optim.multipliers.features, config.optim.multipliers.rest
    config.optim.multipliers = {
        name: slow if name in TRUNK_MODULES else fast for name in checkpoint.variables["params"]
    }
    config.augment.update(flip=False, jitter=0.0, mean=checkpoint.mean, std=checkpoint.std)
    return TrainOptions.of(config)


class Trunk(nn.Module):
    """A backbone alone, as a model without outputs, so that its variables lie as in the others."""

    features: nn.Module

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        self.features(images)
        return {}


class JaxSide:
    """Our model."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        if checkpoint.model.name == "trunk":
            backbone = create_backbone(checkpoint.model.backbone, checkpoint.model.width)
            self._model = Trunk(backbone)
        else:
            inputs = checkpoint.label_inputs
            self._model = create_model(checkpoint.model, len(checkpoint.class_names), **inputs)

        def apply(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
            with in_precision(checkpoint.model.precision, training=False):  # as `evaluate` has it
                outputs, state = self._model.apply(
                    variables,
                    images,
                    capture_intermediates=lambda module, method: module.name == "features",
                )
            # MCAR calls its backbone a second time, on the crops.
            maps = state["intermediates"]["features"]["__call__"][0]
            return _named_stages(maps) | outputs

        self.apply = compilation.jit(apply)

    def run(self, images: np.ndarray) -> Arrays:
        """Normalised images [B, S, S, 3] -> the stages "stage1", ... and the model's outputs."""
        return jax.device_get(self.apply(self._checkpoint.variables, images))

    def train(self, batches: Sequence[Batch], options: TrainOptions) -> "Trained":
        """Takes a step a batch, with the training step that `mlic_jax.main` runs."""
        variables = jax.tree.map(jnp.array, self._checkpoint.variables)  # a step reuses its memory
        params = variables["params"]
        schedule = create_schedule(options.optim, len(batches), options.epochs)
        optimizer = create_optimizer(options.optim, params, schedule)
        state = TrainState(jnp.int32(0), **variables, opt_state=optimizer.init(params))
        train_step = make_train_step(self._model, optimizer, schedule, options)
        losses, regions = [], []

        def note_regions(method: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            result = method(*args, **kwargs)
            if isinstance(context.module, MCAR) and context.method_name == "attend":
                jax.debug.callback(lambda *chosen: regions.append(_regions(*chosen)), *result)
            return result

        for images, labels in tqdm(batches, "train, jax", unit="step"):
            rows = {"index": np.arange(len(images), dtype=np.int32)}
            rows |= {"image": images, "labels": labels, "mask": np.ones(len(images), bool)}
            with nn.intercept_methods(note_regions):
                state, metrics = train_step(state, rows, jax.random.key(0))
            losses.append(float(metrics["loss"]))
            jax.effects_barrier()  # the regions of this step come before those of the next
        after = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        return Trained(losses, torch_state(after, self._checkpoint.model), regions)


class TorchSide:
    """The reference in plain PyTorch, on the CPU."""

    def __init__(self, checkpoint: Checkpoint):
        import torch

        self._checkpoint = checkpoint
        self._module = _torch_module(checkpoint)
        state = torch_state(checkpoint.variables, checkpoint.model)
        self._module.load_state_dict({name: torch.tensor(array) for name, array in state.items()})

    def run(self, images: np.ndarray) -> Arrays:
        """As `JaxSide.run`."""
        import torch

        calls: list[tuple] = []
        with contextlib.ExitStack() as hooks, torch.no_grad():
            for module in self._staged():
                hooks.enter_context(module.register_forward_hook(_note_maps(calls)))
            outputs = self._module.eval()(_nchw(images))
        # MSRN's layers are each called once; MCAR calls its backbone twice, on the crops at last.
        maps = sum(calls, ()) if self._checkpoint.model.name == "msrn" else calls[0]
        stages = _named_stages([stage.permute(0, 2, 3, 1) for stage in maps])
        outputs = outputs if isinstance(outputs, dict) else {}  # of a trunk the stages are all
        return {name: tensor.numpy() for name, tensor in (stages | outputs).items()}

    def _staged(self) -> list[Any]:
        """The modules whose outputs are the stages."""
        match self._checkpoint.model.name:
            case "trunk":
                return [self._module]
            case "mcar":
                return [self._module.features]
            case "msrn":
                trunk = self._module.resnet_101
                return [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]

    def train(
        self, batches: Sequence[Batch], options: TrainOptions, regions: Sequence[Arrays]
    ) -> "Trained":
        """As `JaxSide.train`, but looks again at the `regions` of each step, not at its own.

        What it would have chosen is returned.
        """
        import torch

        module, own = self._module.train(), []
        rate, optim = options.optim.learning_rate, options.optim
        prefix = TRUNK_PREFIXES[self._checkpoint.model.name]
        named = list(module.named_parameters())
        trunk = [parameter for name, parameter in named if name.startswith(prefix)]
        head = [parameter for name, parameter in named if not name.startswith(prefix)]
        sgd = torch.optim.SGD(
            [{"params": trunk, "lr": rate * optim.multipliers["features"]}, {"params": head}],
            lr=rate,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
        )
        losses = []
        for step, (images, labels) in enumerate(tqdm(batches, "train, torch", unit="step")):
            if regions:
                own.append(_impose(module, regions[step]))
            targets = resolve_unknown(labels, options.loss.label_policy) > 0
            outputs = module(_nchw(self._checkpoint.normalise(images)))
            loss = _torch_loss(outputs, torch.from_numpy(targets.astype(np.float32)))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
        state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        return Trained(losses, state, own)


@dataclass(frozen=True)
class Trained:
    """What some steps led to."""

    losses: list[float]  # before each step
    state: Arrays  # at the end, a state_dict of the reference
    regions: list[Arrays]  # of each step, "boxes" [B, N, 4] and "box_classes" [B, N]; or none


def _regions(boxes: Any, box_classes: Any) -> Arrays:
    return {"boxes": np.asarray(boxes), "box_classes": np.asarray(box_classes)}


def _impose(module: Any, regions: Arrays) -> Arrays:
    """Makes the reference MCAR look at `regions`; returns a dict that its own choice is put into.

    A region's edge moves by whole pixels, so one that rounding moves would part two trainings that
    are the same.
    """
    import torch

    own: Arrays = {}

    def localise(*arguments: Any) -> tuple:
        own.update(_regions(*type(module).localise(module, *arguments)))
        return tuple(torch.tensor(regions[name]) for name in ("boxes", "box_classes"))

    module.localise = localise
    return own


def torch_state(variables: Mapping, model: ModelOptions) -> Arrays:
    """Our variables as the state_dict of the reference module, under its names."""
    if model.name == "msrn":
        state = to_torch(variables, model.backbone, "msrn")
        return with_dead_tensors(state, model.backbone, "msrn")
    trunk = {kind: {"features": tree.get("features", {})} for kind, tree in variables.items()}
    state = to_torch(trunk, model.backbone, REFERENCE_LAYOUTS[model.backbone])
    if model.name == "trunk":
        return state
    convclass = variables["params"]["convclass"]
    return {f"features.{name}": array for name, array in state.items()} | {
        "convclass.weight": np.asarray(convclass["kernel"]).T[:, :, None, None],
        "convclass.bias": np.asarray(convclass["bias"]),
    }


def _torch_module(checkpoint: Checkpoint) -> Any:
    import torch

    from weight_conversion.torch_reference import backbones, mcar, msrn

    model = checkpoint.model
    _check_reference(model, backbones.RESNETS)
    if model.name == "trunk":
        return backbones.create_backbone(model.backbone, model.width)
    if model.name == "mcar":
        return mcar.MCAR(
            model.backbone,
            len(checkpoint.class_names),
            pooling=model.pooling,
            top_n=model.top_n,
            threshold=model.threshold,
            width=model.width,
        )
    # What the layers read of the graph is the sign alone.
    inputs = checkpoint.label_inputs.values()
    vectors, graph = (torch.tensor(array, dtype=torch.float32) for array in inputs)
    return msrn.MSRN(model.backbone, vectors, graph, model.pool_ratio)


def _check_reference(model: ModelOptions, resnets: Collection[str]) -> None:
    known = {"trunk": tuple(REFERENCE_LAYOUTS), "mcar": tuple(REFERENCE_LAYOUTS)}
    known["msrn"] = tuple(resnets)
    per_label = model.name == "msrn" and model.head != "dense"
    narrow = model.width != 1 and model.backbone in resnets
    if model.backbone not in known.get(model.name, ()) or per_label or narrow:
        raise UsageError(
            f"there is no PyTorch reference of {model.name} on {model.backbone} with these "
            "options, so nothing to compare it with"
        )


def _note_maps(calls: list[tuple]) -> Callable:
    """A forward hook that appends the output of its module, as a tuple of maps."""
    return lambda _module, _inputs, maps: calls.append(maps if isinstance(maps, tuple) else (maps,))


def _torch_loss(outputs: Mapping, targets: Any) -> Any:
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    if "group_loss" in outputs:
        return cross_entropy(outputs["logits"], targets) + outputs["group_loss"]
    streams = ("global_logits", "local_logits")
    return sum(cross_entropy(outputs[stream], targets) for stream in streams)


def _nchw(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _named_stages(maps: Sequence) -> dict[str, Any]:
    return {f"stage{k}": stage for k, stage in enumerate(maps, start=1)}
