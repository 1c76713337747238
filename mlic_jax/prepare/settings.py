"""What the recipe of own data says, as option -> value of what differs from the default."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mlic_jax.config import default_config
from mlic_jax.data import sources
from mlic_jax.data.detect import own_roles, roles_of
from mlic_jax.data.label_policy import LabelPolicy
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.data.sources.layout import Layout
from mlic_jax.errors import UsageError

LABEL_POLICY: LabelPolicy = "ignore"  # what is unknown of own data is neither learned nor measured
VAL_SHARE = 0.15  # of the images to train on, for a set with a test and nothing to choose on
FINE_TUNED_FROM = 2000  # images to train on; with fewer a pretrained backbone stays as it is


def configured(settings: Mapping[str, Any]) -> ConfigDict:
    """The default configuration with other values."""
    config = default_config()
    for option, value in settings.items():
        *parents, last = option.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = value
    return config


def data_settings(options: argparse.Namespace, layout: Layout) -> dict[str, Any]:
    """Where the data lie and how they are divided.

    Raises:
        UsageError: a value is out of range, or the splits of the set have no roles.
        Failure: the annotations are malformed.
    """
    settings: dict[str, Any] = {
        "data.source": layout.format,
        "data.name": options.name,
        "data.prepared_dir": os.path.abspath(options.prepared_dir),
        "data.on_corrupt": options.on_corrupt,
        "data.upright": True,
        "loss.label_policy": LABEL_POLICY,
        "eval.label_policy": LABEL_POLICY,
    }
    settings |= {f"data.{option}": value for option, value in layout.options.items()}
    if options.keep_unlabelled:
        settings["data.keep_unlabelled"] = True
    if options.merge_classes:
        settings["data.merge_classes"] = True
    for option in ("keep_labels", "one_positive", "dropped_labels"):
        if (value := getattr(options, option)) is not None:
            settings[f"data.{option}"] = value
    if options.label_tree:
        settings["data.label_tree"] = os.path.abspath(options.label_tree)
        settings |= {"data.fill_parents": True, "eval.consistent": True}
    source = sources.create(DataOptions.of(configured(settings | {"data.splits": {}}).data))
    return settings | division_settings(options, source.own_splits)


def division_settings(options: argparse.Namespace, own_splits: Sequence[str]) -> dict[str, Any]:
    """The splits of a set, by role; what is divided, and how.

    A set without splits is divided into train and val, or where a share of val or test is asked
    for, into these and train. Of one with splits, those that it lacks are divided from its train:
    a val always, where there is a test, and else what is asked for.

    Raises:
        UsageError: a share is out of range, or does not count; the splits have no roles.
    """
    if options.split is not None and not 0 < options.split < 1:
        raise UsageError(f"--split is {options.split:g}; it must be between 0 and 1")
    own, shares = own_roles(own_splits), {"val": options.val_share, "test": options.test_share}
    for role, share in shares.items():
        if share is not None and not 0 <= share < 1:
            raise UsageError(f"--{role}-share is {share:g}; it must be 0, or between 0 and 1")
        if share and role in own:
            raise UsageError(f"--{role}-share does not count: the set has {own[role]} for {role}")
    by_shares = any(share is not None for share in shares.values())
    if own_splits and options.split is not None:
        print(f"--split does not count: the set has the splits {', '.join(own_splits)}")
    elif options.split is not None and by_shares:
        raise UsageError(
            "--split is for two splits; beside --val-share or --test-share leave it out"
        )
    seed = {"data.split_seed": options.seed}
    if not (own_splits or by_shares):
        share = 0.8 if options.split is None else options.split
        return {"data.train_share": share, **seed, "data.splits": roles_of(())}
    if shares["val"] is None and "val" not in own and ("test" in own or shares["test"]):
        shares["val"] = VAL_SHARE
    settings = {f"data.{role}_share": share for role, share in shares.items() if share}
    if settings:
        settings |= seed
    if not own_splits:
        settings["data.train_share"] = 1.0  # of which the others are divided
    divided = [role for role, share in shares.items() if share]
    return settings | {"data.splits": roles_of(own_splits or ("train",), divided)}


def origin(settings: Mapping[str, Any]) -> str:
    """Where the splits come from, in words."""
    divided = [role for role in ("val", "test") if f"data.{role}_share" in settings]
    if "data.train_share" in settings:
        return "none of its own, it is divided"
    return "the set's own" + "".join(f", and {role} divided from train" for role in divided)


def start_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What training starts from, as far as it is known before the data are.

    Raises:
        UsageError: there are no such weights.
    """
    usual_size = 256 if options.init_from else 96
    size = usual_size if options.image_size is None else options.image_size
    settings: dict[str, Any] = {"data.image_size": size}
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    if not options.init_from:
        return settings
    from mlic_jax.checkpoint_config import other_preprocessing  # takes seconds
    from mlic_jax.runtime.checkpoint import find_checkpoint, read_metadata

    metadata = read_metadata(find_checkpoint(options.init_from))
    model = metadata["config"]["model"] if "config" in metadata else {"backbone": metadata["arch"]}
    settings |= {
        "init_from": os.path.abspath(options.init_from),
        "model.backbone": model["backbone"],
        "model.width": float(model.get("width", 1.0)),
    }
    taken_over = other_preprocessing(metadata, default_config())
    return settings | {option: theirs for option, (theirs, _) in taken_over.items()}


def train_settings(train: Split, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe for a training split: that of configs/mcar_custom.py, or of mcar_scenes.py."""
    labels, classes = train.labels(), len(train.class_names)
    few = len(train) < FINE_TUNED_FROM
    pretrained = "init_from" in settings
    prior = np.mean(labels[labels != 0] > 0) if (labels != 0).any() else 0.5
    epochs = settings.get("epochs", (30 if few else 15) * (1 if pretrained else 2))
    result: dict[str, Any] = {
        "epochs": epochs,
        "init_prior": round(float(np.clip(prior, 0.01, 0.99)), 3),
        "model.top_n": min(2, classes),
        "model.threshold": 0.3,
        "optim.schedule": "cosine",
        "optim.warmup_epochs": min(1.0, epochs / 2),
        "eval.top_n": min(4, classes),
        "eval.every": max(1, epochs // 6),
    }
    if classes < 20:
        result["model.pool_ratio"] = math.ceil(100 / classes) / 100  # one group, for MSRN
    if pretrained:
        return result | {
            "model.pooling": "avg",
            "data.train_crop": "random_resized_crop",
            "freeze_statistics": few,
            "optim.learning_rate": 0.3,
            "optim.reference_classes": 80,
            # A backbone serves all classes: its rate is 0.003, however many there are.
            "optim.multipliers.features": 0.0 if few else round(0.8 / classes, 6),
        }
    return result | {
        "model.backbone": "resnet10",
        "model.width": 0.25,
        "augment.jitter": 0.1,
        "optim.name": "adamw",
        "optim.learning_rate": 5e-3,
        "optim.weight_decay": 1e-2,
        "optim.multipliers.features": 1.0,
    }
