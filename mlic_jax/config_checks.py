"""Which values no run could use: told before anything is read or written."""

import math
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from mlic_jax.command_line import refuse_addresses
from mlic_jax.config import CHOICES
from mlic_jax.errors import UsageError
from mlic_jax.names import BACKBONES, require_one_of, require_size


def check_config(config: ConfigDict) -> None:
    """Refuses values that no run could use, before anything is read or written.

    Raises:
        UsageError: names the option, its value and what it may be.
    """
    refuse_addresses(_texts(config))
    require_one_of("model.backbone", config.model.backbone, BACKBONES)
    size = config.data.image_size
    require_size(f"data.image_size is {size}", size, config.model.backbone)
    check_scales(config.eval.scales, config.model.backbone)
    positive = {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "log_every": config.log_every,
        "checkpoint_every": config.checkpoint_every,
        "keep_checkpoints": config.keep_checkpoints,
        "eval.every": config.eval.every,
        "eval.batch_size": config.eval.batch_size,
        "data.cache_gib": config.data.cache_gib,
        "data.threads": config.data.threads,
        "optim.learning_rate": config.optim.learning_rate,
        "optim.reference_batch": config.optim.reference_batch,
    }
    for option, value in positive.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{option} is {value}; it must be positive")
    check_ranges(config)
    check_kept_labels(config)
    for option in ("data.fill_parents", "eval.consistent"):
        if config[option] and not config.data.label_tree:
            raise UsageError(f"{option} needs data.label_tree, a file of rules `dog < animal`")
    if config.shard_fc1 and (config.model.name, config.model.head) != ("msrn", "dense"):
        raise UsageError("shard_fc1 is for model.name msrn with model.head dense, which has an fc1")
    for option, known in CHOICES.items():
        require_one_of(option, config[option], known)
    if not config.data.source or not config.data.name:
        raise UsageError("data.source and data.name are empty; take a recipe of configs/")
    if config.features.store:
        check_storable(config)


def check_storable(config: ConfigDict) -> None:
    """Raises UsageError where features that are computed once would not serve a whole run."""
    if config.optim.multipliers.get("features", 1.0) or not config.freeze_statistics:
        raise UsageError(
            "features.store is for a backbone that stays as it is: set "
            "optim.multipliers.features=0 and freeze_statistics=True, or leave features.store"
        )
    if not config.data.views:
        raise UsageError(
            "features.store needs a number of views, and data.views is 0, another view every "
            "epoch: set data.views, such as --config.data.views=8"
        )
    if config.shard_fc1:
        raise UsageError("features.store is not for shard_fc1: leave one of them")
    if config.model.drop_path:
        raise UsageError(
            "model.drop_path leaves out other blocks in every step, and features.store has what "
            "the whole backbone says: leave one of them"
        )


def check_kept_labels(config: ConfigDict) -> None:
    """Raises UsageError where the labels to train on could not be drawn, or would be made up."""
    data = config.data
    if not 0 < data.keep_labels <= 1:
        raise UsageError(
            f"data.keep_labels is {data.keep_labels}; it must be above 0 and at most 1"
        )
    if data.keep_labels < 1 and data.one_positive:
        raise UsageError(
            "data.keep_labels and data.one_positive are two ways to train on fewer labels: leave "
            "one of them"
        )
    drops = data.keep_labels < 1 or data.one_positive
    if drops and (data.dropped_labels, config.loss.label_policy) == ("unknown", "as_positive"):
        raise UsageError(
            "data.dropped_labels is unknown, which loss.label_policy as_positive has present: "
            "what is dropped would be trained as present; set loss.label_policy=ignore"
        )


def check_ranges(config: ConfigDict) -> None:
    """Raises UsageError for a number that is outside of its range, or that nothing would use."""
    optim = config.optim
    shares = {
        "init_prior": config.init_prior,
        "loss.label_smoothing": config.loss.label_smoothing,
        "loss.clip": config.loss.clip,
        "loss.tau": config.loss.tau,
        "model.drop_path": config.model.drop_path,
        "optim.momentum": optim.momentum,
        "optim.ema": optim.ema,
    }
    for option, value in shares.items():
        if not 0 <= value < 1:
            raise UsageError(f"{option} is {value}; it must be at least 0 and below 1")
    for option, value in (
        ("augment.jitter", config.augment.jitter),
        ("augment.cutout", config.augment.cutout),
        ("data.center_crop", config.data.center_crop),
        ("optim.floor", optim.floor),
        ("loss.alpha", config.loss.alpha),
        ("loss.delta", config.loss.delta),
    ):
        if not 0 <= value <= 1:
            raise UsageError(f"{option} is {value}; it must be 0 to 1")
    for option, seed, least in (
        ("seed", config.seed, 0),
        ("data.labels_seed", config.data.labels_seed, 0),
        ("data.views_seed", config.data.views_seed, -1),
    ):
        if not least <= seed < 2**31:
            raise UsageError(f"{option} is {seed}; it must be at least {least} and below 2^31")
    for option in ("layer_decay", "schedule_share"):
        if not 0 < optim[option] <= 1:
            raise UsageError(f"optim.{option} is {optim[option]}; it must be above 0, at most 1")
    if not 0 <= config.augment.magnitude <= 30:
        raise UsageError(f"augment.magnitude is {config.augment.magnitude}; it must be 0 to 30")
    least_zero = {
        "early_stopping": config.early_stopping,
        "augment.randaugment": config.augment.randaugment,
        "augment.mixup": config.augment.mixup,
        "data.workers": config.data.workers,
        "loss.gamma": config.loss.gamma,
        "loss.gamma_present": config.loss.gamma_present,
        "loss.gamma_absent": config.loss.gamma_absent,
        "data.views": config.data.views,
        "optim.clip_norm": optim.clip_norm,
        "optim.reference_classes": optim.reference_classes,
        "optim.weight_decay": optim.weight_decay,
        "optim.warmup_epochs": optim.warmup_epochs,
        "eval.min_positives": config.eval.min_positives,
        **{f"optim.multipliers.{name}": value for name, value in optim.multipliers.items()},
    }
    for option, value in least_zero.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{option} is {value}; it must be at least 0")
    check_rows(config)
    check_combinations(config)


def check_combinations(config: ConfigDict) -> None:
    """Raises UsageError for options that are each in its range, and not for each other."""
    optim, loss = config.optim, config.loss.name
    if optim.warmup_epochs > config.epochs:
        raise UsageError(
            f"optim.warmup_epochs is {optim.warmup_epochs:g}, of {config.epochs} epochs: the rate "
            "would never be reached"
        )
    if optim.nesterov and optim.name != "sgd":
        raise UsageError(f"optim.nesterov is for optim.name sgd, not {optim.name}")
    if optim.floor and optim.schedule != "cosine":
        raise UsageError(f"optim.floor is for optim.schedule cosine, not {optim.schedule}")
    if optim.warmup_epochs and optim.schedule == "one_cycle":
        raise UsageError(
            "optim.warmup_epochs is not for optim.schedule one_cycle, which rises by itself: set "
            "--config.optim.warmup_epochs=0"
        )
    if optim.schedule_share != 1 and optim.schedule == "step":
        raise UsageError(
            "optim.schedule_share is for optim.schedule cosine and one_cycle, not step"
        )
    if config.eval.weights == "ema" and not optim.ema:
        raise UsageError(
            "eval.weights is ema, and optim.ema is 0, of a run that keeps no average of its "
            "weights: set optim.ema in training, such as 0.9997, or leave eval.weights raw"
        )
    if config.augment.mixup and config.features.store:
        raise UsageError(
            "augment.mixup mixes other photos in every step, and features.store has what the "
            "backbone says of each alone: leave one of them"
        )
    if config.augment.mixup and loss in ("splc", "large_loss"):
        raise UsageError(
            f"augment.mixup is not for loss.name {loss}, which goes by the labels that are given "
            "as absent, and mixed ones are neither: leave one of them"
        )


def check_rows(config: ConfigDict) -> None:
    """Raises UsageError for a row of numbers that is too short, out of its range or in disorder."""
    above_zero = "above 0", lambda x: 0 < x < math.inf
    rows = {  # the numbers, how many there must be, what each must be
        "augment.mean": (config.augment.mean, 3, "finite", math.isfinite),
        "augment.std": (config.augment.std, 3, *above_zero),
        "data.crop_scale": (
            config.data.crop_scale,
            2,
            "above 0 and at most 1",
            lambda x: 0 < x <= 1,
        ),
        "data.scenes_sizes": (config.data.scenes_sizes, 3, *above_zero),
        "optim.milestones": (config.optim.milestones, None, *above_zero),
    }
    for option, (row, count, what, is_in_range) in rows.items():
        numbers = [x for x in row if isinstance(x, int | float) and is_in_range(x)]
        if len(numbers) != (count or len(row)):
            many = f"{count} numbers" if count else "numbers"
            raise UsageError(f"{option} is {tuple(row)}; it must be {many}, each {what}")
    if len(set(config.optim.milestones)) < len(config.optim.milestones):
        raise UsageError(f"optim.milestones is {config.optim.milestones}; each must be there once")
    if config.data.crop_scale[0] > config.data.crop_scale[1]:
        raise UsageError(f"data.crop_scale is {config.data.crop_scale}; it must be (least, most)")


def check_scales(scales: Sequence[object], backbone: str) -> None:
    """Raises UsageError where a size of `eval.scales` is not one that a backbone can see."""
    for size in scales:
        require_size(f"eval.scales has {size!r}", size, backbone)


def _texts(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every `option=value` that is a text."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _texts(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield f"{prefix}{name}={value}"
