"""How papers train: named settings of optimiser, schedule, augmentation, averaging and batch.

`--config.recipe=asl` trains any configuration so; options that are given beside it go before it.
In Python, and in a recipe file, `with_recipe(config, "asl")`. A recipe says nothing of the model,
of the loss, of the size of images or of what is frozen: heads and losses are compared by it.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from mlic_jax.config import apply_mcar_recipe, default_config, train_msrn_as_released
from mlic_jax.names import require_one_of


def with_recipe(config: ConfigDict, name: str) -> ConfigDict:
    """A copy of a configuration that trains as a paper does.

    All of `optim` and `augment`, `epochs`, `batch_size`, `data.train_crop`, `data.crop_scale` and
    `eval.weights` are as the recipe says, or else as the default; but groups of parameters that are
    frozen stay so.

    Args:
        name: one of `names.RECIPES`.

    Raises:
        UsageError: it is none of them.
    """
    require_one_of("recipe", name, _RECIPES)
    config, default = config.copy_and_resolve_references(), default_config()
    frozen = {group: 0.0 for group, rate in config.optim.multipliers.items() if rate == 0}
    with config.unlocked():
        for section in ("optim", "augment"):
            config[section] = default[section].copy_and_resolve_references()
        config.epochs, config.batch_size = default.epochs, default.batch_size
        config.data.train_crop = default.data.train_crop
        config.data.crop_scale = default.data.crop_scale
        config.eval.weights = default.eval.weights
        _RECIPES[name](config)
        config.optim.multipliers.update(frozen)
        config.recipe = name
    return config.lock()


def _released(config: ConfigDict) -> None:
    """As MCAR (or of a model `msrn`, MSRN) was released: SGD in steps, flip and, of MCAR, jitter.

    Other heads than these two as MCAR. MCAR has one variant with rates of its own.
    """
    if config.model.name == "msrn":
        train_msrn_as_released(config)
    elif config.model.name == "mcar":
        apply_mcar_recipe(config, None)


def _asl(config: ConfigDict) -> None:
    """ASL (arXiv 2009.14119) and ML-Decoder (2111.12933), as trained on COCO.

    Pixels in [0, 1], not freed of ImageNet's mean: their TResNet learned so. Of a backbone that
    learned otherwise set `augment.mean` and `augment.std` beside the recipe. Their Adam also cycles
    its momentum, and their list of RandAugment's operations has a few others.
    """
    _one_cycle(config)
    config.epochs, config.optim.schedule_share = 40, 0.5  # of 80, and stopped there
    config.batch_size = 56
    config.optim.name = "adam"
    config.optim.weight_decay = 1e-4
    config.optim.decay_biases_and_norms = False
    _without_mean(config)


def _q2l(config: ConfigDict) -> None:
    """Query2Label (arXiv 2107.10834), as trained on COCO."""
    _one_cycle(config)
    config.epochs = 80
    config.batch_size = 64
    config.optim.name = "adamw"
    config.optim.weight_decay = 1e-2


def _csra(config: ConfigDict) -> None:
    """CSRA (arXiv 2108.02456): SGD at 0.01 for the backbone and ten times that for the head."""
    config.epochs = 30
    config.batch_size = 64
    config.data.train_crop = "random_resized_crop"
    config.data.crop_scale = (0.7, 1.0)
    config.augment.jitter = 0.0
    config.optim.learning_rate = 0.1
    config.optim.multipliers = {"features": 0.1, "rest": 1.0}
    config.optim.schedule = "cosine"
    _without_mean(config)


def _one_cycle(config: ConfigDict) -> None:
    """What ASL and Query2Label share: 1e-4 for all, 80 epochs, Cutout, RandAugment, an average."""
    config.augment.flip, config.augment.jitter = False, 0.0
    config.augment.cutout = 0.5
    config.augment.randaugment = 2
    config.optim.learning_rate = 1e-4
    config.optim.multipliers = {"features": 1.0, "rest": 1.0}
    config.optim.schedule = "one_cycle"
    config.optim.ema = 0.9997
    config.eval.weights = "ema"


def _without_mean(config: ConfigDict) -> None:
    config.augment.mean, config.augment.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


_RECIPES: dict[str, Callable[[ConfigDict], None]] = {
    "released": _released,
    "asl": _asl,
    "csra": _csra,
    "q2l": _q2l,
}
