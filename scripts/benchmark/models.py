"""Models with the same random weights in both frameworks: inference and a training step.

Both get the same pixels and labels and take the same step of SGD. Ours normalises the pixels inside
its step, as it does in training; PyTorch's are normalised beforehand, by what loads them.

PyTorch as released is the reference in its own layout. Tuned it is that of `torch_tuned`, channels
last, with `torch.inference_mode` and the batch normalisation folded into the convolutions, or with
a fused optimiser. Compiled it is that in `torch.compile`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from comparison import Case, Sizes, Task
from ml_collections import ConfigDict

from mlic_jax.config import default_config
from mlic_jax.models import create_model
from mlic_jax.models.inputs import InputOptions, normalise
from mlic_jax.runtime import compilation
from mlic_jax.train.losses import total_loss
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState, make_train_step

# How the names of a reference begin that train at the rate of the backbone.
_TRUNK_PREFIXES = ("features.", "resnet_101.")

# What is compared. MCAR's regions move by pixels where a sum is rounded otherwise, which random
# weights do not forgive: of its scores and losses only the global ones; `weight_conversion.verify`
# compares the rest on real ones.
SCORES = {"mcar": "global_logits", "msrn": "logits", "pooled": "logits"}
_LOSSES = {"mcar": "loss_global", "msrn": "loss", "pooled": "loss"}


def recipe(**model: Any) -> ConfigDict:
    """The released recipe for a model with these options, without anything random in it."""
    config = default_config().unlock()
    config.model.update(model)
    config.augment.update(flip=False, jitter=0.0)
    if model["name"] == "msrn":
        config.optim.multipliers.update(branch2=0.1, branch3=0.1)
    return config


def random_batch(sizes: Sizes) -> dict[str, np.ndarray]:
    """Smooth images uint8 [B, S, S, 3], and labels int8 [B, C] of which one in ten is present."""
    rng = np.random.default_rng(0)
    batch, size = sizes["images"], sizes["image_size"]
    blocks = rng.integers(0, 256, (batch, size // 16, size // 16, 3), np.uint8)
    labels = np.where(rng.random((batch, sizes["labels"])) < 0.1, 1, -1).astype(np.int8)
    return {"images": blocks.repeat(16, axis=1).repeat(16, axis=2), "labels": labels}


def random_variables(config: ConfigDict, sizes: Sizes, **label_inputs: np.ndarray) -> dict:
    """Weights that keep activations in range; no model is compiled to draw them."""
    model = create_model(config.model, sizes["labels"], **label_inputs)
    image = jax.ShapeDtypeStruct((1, sizes["image_size"], sizes["image_size"], 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        match path[-1].key:
            case "scale":
                return np.full(leaf.shape, 0.5, np.float32)
            case "var":
                return np.ones(leaf.shape, np.float32)
            case "bias" | "mean":
                return np.zeros(leaf.shape, np.float32)
        weights = rng.standard_normal(leaf.shape, np.float32)
        weights *= np.sqrt(2 / np.prod(leaf.shape[:-1] or leaf.shape)).astype(np.float32)
        return weights

    return {"batch_stats": {}} | dict(jax.tree_util.tree_map_with_path(draw, shapes))


@dataclass(frozen=True)
class Subject:
    """A model to compare.

    Attributes:
        recipe: sizes -> its recipe.
        module: (config.model, inputs, sizes, tuned) -> PyTorch's, its weights unset.
        label_inputs: sizes -> what the model knows of its labels.
    """

    recipe: Callable[[Sizes], ConfigDict]
    module: Callable[[ConfigDict, Mapping, Sizes, bool], Any]
    label_inputs: Callable[[Sizes], dict[str, np.ndarray]] = lambda sizes: {}

    def inputs(self, sizes: Sizes) -> dict[str, Any]:
        """The `batch`, the `variables` and the `label_inputs`."""
        label_inputs = self.label_inputs(sizes)
        return {
            "batch": random_batch(sizes),
            "variables": random_variables(self.recipe(sizes), sizes, **label_inputs),
            "label_inputs": label_inputs,
        }

    def model(self, given: Mapping, sizes: Sizes) -> Any:
        """Ours."""
        label_inputs = {name: np.asarray(array) for name, array in given["label_inputs"].items()}
        return create_model(self.recipe(sizes).model, sizes["labels"], **label_inputs)


def mcar(backbone: str) -> Subject:
    """MCAR on a backbone, in whose name a size in braces becomes its value."""

    def recipe_of(sizes: Sizes) -> ConfigDict:
        name = backbone.format_map(sizes)
        return recipe(name="mcar", backbone=name, top_n=sizes["regions"])

    def module(model: ConfigDict, _: Mapping, sizes: Sizes, tuned: bool) -> Any:
        from torch_tuned import TunedMCAR

        from weight_conversion.torch_reference.mcar import MCAR

        options = {name: model[name] for name in ("pooling", "top_n", "threshold", "width")}
        return (TunedMCAR if tuned else MCAR)(model.backbone, sizes["labels"], **options)

    return Subject(recipe_of, module)


def pooled(backbone: str) -> Subject:
    """A backbone, pooled, and a linear classifier."""

    def module(model: ConfigDict, _: Mapping, sizes: Sizes, tuned: bool) -> Any:
        from torch_tuned import Pooled, fuse_attention

        module = Pooled(model.backbone, sizes["labels"], model.pooling, width=model.width)
        return fuse_attention(module) if tuned else module

    return Subject(lambda sizes: recipe(name="pooled", backbone=backbone.format_map(sizes)), module)


def trunk(backbone: str) -> Subject:
    """The backbone alone, for PyTorch's side; it takes the inputs of `mcar`."""

    def module(model: ConfigDict, *_: Any) -> Any:
        from weight_conversion.torch_reference.backbones import create_backbone

        return create_backbone(model.backbone, model.width)

    return Subject(lambda sizes: recipe(name="trunk", backbone=backbone.format_map(sizes)), module)


@dataclass(frozen=True)
class Targets:
    """How many times ours a variant should at least take, in inference and in a training step."""

    inference: float | None = None
    step: float | None = None
    peak: float | None = None


def tasks(
    name: str,
    subject: Subject,
    released: Targets,
    tuned: Targets,
    compiled: Targets | None = None,
    **options: Any,
) -> tuple[Task, Task]:
    """Inference and a training step: ours, and PyTorch's as released and tuned.

    Args:
        name: of the tasks, as `Task.name`, to which what is done is added.
        subject: the model.
        released: what is wanted of ours against the reference as released.
        tuned: the same of the tuned reference.
        compiled: the same of the compiled one, if it is measured.
        options: of both tasks.
    """
    # The targets, and whether it is tuned and compiled.
    references = {
        "PyTorch, as released": (released, False, False),
        "PyTorch, tuned": (tuned, True, False),
    }
    if compiled:
        references["PyTorch, compiled"] = (compiled, True, True)

    def task(what: str, ours: Callable, theirs: Callable, target_of: Callable) -> Task:
        cases = [Case("ours", "jax", partial(ours, subject))]
        for variant, (targets, *how) in references.items():
            make = partial(theirs, subject, *how)
            cases.append(Case(variant, "torch", make, target_of(targets), targets.peak))
        return Task(f"{name}, {what}", subject.inputs, tuple(cases), **options)

    return (
        task("inference", jax_inference, torch_inference, lambda targets: targets.inference),
        task("train step", jax_step, torch_step, lambda targets: targets.step),
    )


def jax_inference(
    subject: Subject, given: dict[str, Any], sizes: Sizes
) -> Callable[[], dict[str, Any]]:
    config = subject.recipe(sizes)
    images = normalise(given["batch"]["images"], InputOptions.of(config.augment))
    model, variables = subject.model(given, sizes), given["variables"]
    name = SCORES[config.model.name]

    @compilation.jit
    def forward(variables, images):
        outputs = model.apply(variables, images)
        # All of them leave the compiled function, or it would not compute MCAR's local stream. The
        # regions that a pooled model has besides are nothing that PyTorch's looks for.
        return {name: outputs[name]} if config.model.name == "pooled" else outputs

    return lambda: {name: forward(variables, images)[name]}


def jax_step(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
    config = subject.recipe(sizes)
    variables = jax.tree.map(jnp.array, given.pop("variables"))  # a step reuses their memory
    options = TrainOptions.of(config)
    schedule = create_schedule(options.optim, 1000, options.epochs)
    optimizer = create_optimizer(options.optim, variables["params"], schedule)
    state = TrainState(jnp.int32(0), **variables, opt_state=optimizer.init(variables["params"]))
    step = make_train_step(subject.model(given, sizes), optimizer, schedule, options)
    batch = {"image": given["batch"]["images"], "labels": given["batch"]["labels"]}
    batch["mask"] = jnp.ones(len(batch["labels"]), bool)
    key, name = jax.random.key(0), _LOSSES[config.model.name]

    def run() -> dict[str, Any]:
        nonlocal state
        state, metrics = step(state, batch, key)
        return {name: metrics[name]}

    return run


def jax_forwards(
    subject: Subject, given: dict[str, Any], sizes: Sizes
) -> Callable[[], dict[str, Any]]:
    """The forward pass of a training step, three times: what a step is thought to cost."""
    config = subject.recipe(sizes)
    model = subject.model(given, sizes)
    images = normalise(given["batch"]["images"], InputOptions.of(config.augment))
    labels = given["batch"]["labels"]

    @compilation.jit
    def forward(variables):
        outputs, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return total_loss(outputs, labels > 0, labels != 0)[0], updates

    return lambda: {f"loss{i}": forward(given["variables"])[0] for i in range(3)}


def jax_kept(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
    """The forward pass of a training step alone, with what it keeps for the backward pass."""
    config = subject.recipe(sizes)
    model = subject.model(given, sizes)
    images = normalise(given["batch"]["images"], InputOptions.of(config.augment))
    labels = given["batch"]["labels"]

    @compilation.jit
    def forward(variables):
        def loss_of(params):
            outputs, _ = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return total_loss(outputs, labels > 0, labels != 0)[0]

        return jax.vjp(loss_of, variables["params"])

    def run() -> dict[str, Any]:
        loss, backward = jax.block_until_ready(forward(given["variables"]))
        del backward  # not before: its arrays are what a peak is about
        return {"loss": loss}

    return run


def reference(
    subject: Subject, tuned: bool, given: dict[str, Any], sizes: Sizes
) -> tuple[Any, Any]:
    """PyTorch's module with our weights, and the images that it takes, where the inputs are."""
    import torch

    from weight_conversion.sides import torch_state

    config, batch = subject.recipe(sizes), given["batch"]["images"]
    variables = jax.tree.map(lambda tensor: tensor.cpu().numpy(), given.pop("variables"))
    module = subject.module(config.model, given, sizes, tuned)
    state = torch_state(variables, config.model)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    layout = torch.channels_last if tuned else torch.contiguous_format
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=batch.device)
        for values in (config.augment.mean, config.augment.std)
    )
    images = ((batch.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    return module.to(batch.device, memory_format=layout), images.contiguous(memory_format=layout)


def torch_inference(
    subject: Subject, tuned: bool, compiled: bool, given: dict[str, Any], sizes: Sizes
) -> Callable[[], dict[str, Any]]:
    import torch
    from torch_tuned import fold_batch_norm

    module, images = reference(subject, tuned, given, sizes)
    module.eval()
    if tuned:
        fold_batch_norm(module)
    if compiled:
        module.compile()
    name = SCORES[subject.recipe(sizes).model.name]
    without_gradients = torch.inference_mode if tuned else torch.no_grad

    def run() -> dict[str, Any]:
        with without_gradients():
            return {name: module(images)[name]}

    return run


def torch_step(
    subject: Subject, tuned: bool, compiled: bool, given: dict[str, Any], sizes: Sizes
) -> Callable[[], dict[str, Any]]:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    config = subject.recipe(sizes)
    module, images = reference(subject, tuned, given, sizes)
    module.train()
    if compiled:
        module.compile()
    targets = (given["batch"]["labels"] > 0).float()
    named = list(module.named_parameters())
    trunk = [parameter for name, parameter in named if name.startswith(_TRUNK_PREFIXES)]
    head = [parameter for name, parameter in named if not name.startswith(_TRUNK_PREFIXES)]
    rate, name = config.optim.learning_rate, _LOSSES[config.model.name]
    sgd = torch.optim.SGD(
        [
            {"params": trunk, "lr": rate * config.optim.multipliers["features"]},
            {"params": head},
        ],
        lr=rate,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        fused=tuned or None,
    )

    def run() -> dict[str, Any]:
        outputs, losses = module(images), {}
        if "group_loss" in outputs:
            losses["loss"] = cross_entropy(outputs["logits"], targets) + outputs["group_loss"]
        elif name == "loss":
            losses["loss"] = cross_entropy(outputs["logits"], targets)
        else:
            losses["loss_global"] = cross_entropy(outputs["global_logits"], targets)
            losses["loss_local"] = cross_entropy(outputs["local_logits"], targets)
        sum(losses.values()).backward()
        sgd.step()
        sgd.zero_grad()  # at the end: the gradients count in the peak, as ours do
        return {name: losses[name].detach()}

    return run
