"""MCAR and MSRN with the same random weights in both frameworks: inference and a training step.

Both get the same pixels and labels and take the same step of SGD. Ours normalises the pixels inside
its step, as it does in training; PyTorch's are normalised beforehand, by what loads them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from comparison import Case, Sizes
from ml_collections import ConfigDict

from mlic_jax.augment import normalise
from mlic_jax.config import default_config
from mlic_jax.models import create_model
from mlic_jax.optim import create_optimizer, create_schedule
from mlic_jax.train import TrainState, make_train_step

# How the names of a reference begin that train at the rate of the backbone.
_TRUNK_PREFIXES = ("features.", "resnet_101.")

# What is compared. MCAR's regions move by pixels where a sum is rounded otherwise, which random
# weights do not forgive: of its scores and losses only the global ones; `weight_conversion.verify`
# compares the rest on real ones.
_SCORES = {"mcar": "global_logits", "msrn": "logits"}
_LOSSES = {"mcar": "loss_global", "msrn": "loss"}


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

    return dict(jax.tree_util.tree_map_with_path(draw, shapes))


def cases(
    title: str, config_of: Callable[[Sizes], ConfigDict], torch_module: Callable
) -> tuple[Case, ...]:
    """Inference and a training step: ours, and PyTorch's as released and tuned.

    Tuned means channels last and, in inference, `torch.inference_mode`.

    Args:
        title: of the model, for the names of the tasks.
        config_of: sizes -> the recipe.
        torch_module: (config.model, given, sizes) -> the reference, its weights unset. `given` are
            the inputs of the comparison: `batch`, `variables` by title, and `label_inputs`.
    """
    tasks = (("inference", _jax_inference, _torch_inference), ("step", _jax_step, _torch_step))
    found = []
    for task, ours, theirs in tasks:
        name = f"{title}, {task}"
        found.append(Case(name, "ours", "jax", ours(title, config_of)))
        for variant, tuned in (("PyTorch, as released", False), ("PyTorch, tuned", True)):
            make = theirs(title, config_of, torch_module, tuned)
            found.append(Case(name, variant, "torch", make))
    return tuple(found)


def _our_model(config: ConfigDict, given: Mapping, sizes: Sizes) -> Any:
    label_inputs = {k: np.asarray(v) for k, v in given["label_inputs"].items()}
    return create_model(config.model, sizes["labels"], **label_inputs)


def _jax_inference(title: str, config_of: Callable) -> Callable:
    def make(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
        config = config_of(sizes)
        model = _our_model(config, given, sizes)
        images = normalise(given["batch"]["images"], config.augment)
        apply = jax.jit(model.apply)
        variables, name = given["variables"][title], _SCORES[config.model.name]
        # All outputs leave the compiled function, or it would not compute the local stream.
        return lambda: {name: apply(variables, images)[name]}

    return make


def _jax_step(title: str, config_of: Callable) -> Callable:
    def make(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
        config = config_of(sizes)
        variables = jax.tree.map(jnp.array, given.pop("variables")[title])  # a step reuses them
        schedule = create_schedule(config.optim, 1000, config.epochs)
        optimizer = create_optimizer(config.optim, variables["params"], schedule)
        opt_state = optimizer.init(variables["params"])
        state = TrainState(jnp.int32(0), **variables, opt_state=opt_state)
        step = make_train_step(_our_model(config, given, sizes), optimizer, config)
        batch = {"image": given["batch"]["images"], "labels": given["batch"]["labels"]}
        batch["mask"] = jnp.ones(len(batch["labels"]), bool)
        key, name = jax.random.key(0), _LOSSES[config.model.name]

        def run() -> dict[str, Any]:
            nonlocal state
            state, metrics = step(state, batch, key)
            return {name: metrics[name]}

        return run

    return make


def _reference(
    title: str, config: ConfigDict, torch_module: Callable, given: dict, sizes: Sizes, tuned: bool
) -> tuple[Any, Any]:
    """The module with our weights and the images that it takes, where the inputs are."""
    import torch

    from weight_conversion.sides import torch_state

    batch = given["batch"]["images"]
    variables = jax.tree.map(lambda tensor: tensor.cpu().numpy(), given.pop("variables")[title])
    module = torch_module(config.model, given, sizes)
    state = torch_state(variables, config.model)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    layout = torch.channels_last if tuned else torch.contiguous_format
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=batch.device)
        for values in (config.augment.mean, config.augment.std)
    )
    images = ((batch.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    return module.to(batch.device, memory_format=layout), images.contiguous(memory_format=layout)


def _torch_inference(
    title: str, config_of: Callable, torch_module: Callable, tuned: bool
) -> Callable:
    def make(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
        import torch

        config = config_of(sizes)
        module, images = _reference(title, config, torch_module, given, sizes, tuned)
        module.eval()
        name = _SCORES[config.model.name]
        without_gradients = torch.inference_mode if tuned else torch.no_grad

        def run() -> dict[str, Any]:
            with without_gradients():
                return {name: module(images)[name]}

        return run

    return make


def _torch_step(title: str, config_of: Callable, torch_module: Callable, tuned: bool) -> Callable:
    def make(given: dict[str, Any], sizes: Sizes) -> Callable[[], dict[str, Any]]:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

        config = config_of(sizes)
        module, images = _reference(title, config, torch_module, given, sizes, tuned)
        module.train()
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
        )

        def run() -> dict[str, Any]:
            outputs, losses = module(images), {}
            if "group_loss" in outputs:
                losses["loss"] = cross_entropy(outputs["logits"], targets) + outputs["group_loss"]
            else:
                losses["loss_global"] = cross_entropy(outputs["global_logits"], targets)
                losses["loss_local"] = cross_entropy(outputs["local_logits"], targets)
            loss = sum(losses.values())
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            return {name: losses[name].detach()}

        return run

    return make
