"""What a matrix consists of: methods, their cells on sets and seeds, and the runs of a cell.

A cell of the first seed has a run for every rate of the grid, of which the best on `val` is taken;
those of other seeds have one run, at that rate. All that a run is follows from a recipe and
arguments as on a command line, so that anyone can do it again without the matrix.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mlic_jax import recipes
from mlic_jax.checkpoint_config import folder_name
from mlic_jax.config_checks import check_config
from mlic_jax.errors import UsageError
from mlic_jax.names import LOSSES, MODELS, RECIPES, require_one_of

RIDGE = "ridge"  # no head that is trained, but the probe that every head has to beat
ALL_LABELS = "all"
AS_THE_SET = "own"  # the recipe of the set, and no other
RATE = "optim.learning_rate"
# Options that the matrix itself sets, and which argument of its says what.
AXES = {
    **{RATE: "--rates", "seed": "--seeds", "model.name": "--heads", "loss.name": "--losses"},
    **{"recipe": "--recipes", "data.keep_labels": "--labels", "data.one_positive": "--labels"},
    "data.dropped_labels": "--labels",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A place on an axis of the matrix: a name, and options beside it, as in
    `csra:model.csra_heads=4,init_prior=0`."""

    name: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Raises UsageError where an option has no value."""
        name, _, options = text.partition(":")
        parts = tuple(filter(None, re.split(r",(?=[\w.]+=)", options)))
        if wrong := [part for part in parts if not re.match(r"[\w.]+=.", part)]:
            raise UsageError(f"{text}: {wrong[0]!r} is no option=value")
        return cls(name, parts)

    @property
    def arguments(self) -> list[str]:
        """Of a command line."""
        return [f"--config.{option}" for option in self.options]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.options)})" if self.options else self.name


@dataclasses.dataclass(frozen=True)
class Method:
    """What is compared: all of a run but its set, its seed and its rate."""

    head: Setting
    loss: Setting
    labels: Setting = Setting(ALL_LABELS)
    recipe: Setting = Setting(AS_THE_SET)

    def __str__(self) -> str:
        parts = [str(self.head)]
        if self.head.name != RIDGE:
            parts.append(str(self.loss))
        parts += [f"recipe {self.recipe}"] if self.recipe != Setting(AS_THE_SET) else []
        parts += [f"labels {self.labels}"] if self.labels != Setting(ALL_LABELS) else []
        return ", ".join(parts)

    @property
    def arguments(self) -> list[str]:
        """Of a command line; of two that say the same the last counts."""
        model = "pooled" if self.head.name == RIDGE else self.head.name
        arguments = (
            [] if self.recipe.name == AS_THE_SET else [f"--config.recipe={self.recipe.name}"]
        )
        arguments += [*self.recipe.arguments, f"--config.loss.name={self.loss.name}"]
        arguments += [*self.loss.arguments, f"--config.model.name={model}", *self.head.arguments]
        if self.labels.name != ALL_LABELS:
            arguments += labels_arguments(self.labels.name)
        return [*arguments, *self.labels.arguments]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method on a set with a seed.

    Attributes:
        set_name: `data.name` of the recipe.
        recipe: of the set, as `--config` takes it.
        given: arguments that all cells have in common; those of the method go before them.
    """

    set_name: str
    recipe: str
    given: tuple[str, ...]
    method: Method
    seed: int

    def config(self, rate: float | None = None) -> ConfigDict:
        """The configuration of a run; without a rate that of the recipe. Raises UsageError."""
        config = recipes.load_with(self.recipe, self.arguments(rate))
        check_config(config)
        return config

    def arguments(self, rate: float | None = None) -> list[str]:
        """What a run has beside its recipe, as on a command line."""
        of_rate = [] if rate is None else [f"--config.{RATE}={rate!r}"]
        return [*self.given, *self.method.arguments, f"--config.seed={self.seed}", *of_rate]

    def folder(self, out: Path, rate: float | None) -> Path:
        """Where a run is."""
        name = folder_name({"": str(self.method)}).removeprefix("=")
        of_rate = "rate" if rate is None else f"rate{rate!r}"
        return out / "cells" / self.set_name / name / f"seed{self.seed}" / of_rate


def methods(
    heads: Sequence[str], losses: Sequence[str], labels: Sequence[str], named: Sequence[str]
) -> list[Method]:
    """All combinations; of the ridge probe, which has no loss, one for each labels and recipe.

    Raises:
        UsageError: an unknown name, which lists the known ones; or a setting of what the matrix
            itself sets.
    """
    axes = [[Setting.parse(text) for text in axis] for axis in (heads, losses, labels, named)]
    for head in axes[0]:
        require_one_of("--heads", head.name, (*MODELS, RIDGE))
    for loss in axes[1]:
        require_one_of("--losses", loss.name, LOSSES)
    axes[2] = [dataclasses.replace(one, name=labels_name(one.name)) for one in axes[2]]
    for recipe in axes[3]:
        require_one_of("--recipes", recipe.name, (AS_THE_SET, *RECIPES))
    for setting in itertools.chain(*axes):
        for option, axis in AXES.items():
            if any(one.startswith(f"{option}=") for one in setting.options):
                raise UsageError(f"{setting}: {option} is for {axis} to say")
    made = [
        Method(head, axes[1][0] if head.name == RIDGE else loss, of_labels, recipe)
        for of_labels in axes[2]
        for recipe in axes[3]
        for head in axes[0]
        for loss in axes[1]
    ]
    return list(dict.fromkeys(made))


def labels_name(text: str) -> str:
    """What a place on the axis of labels is called: one name for one thing.

    Raises:
        UsageError: it is neither `all`, nor a share or `one_positive` with `-absent` or `-unknown`.
    """
    if text == ALL_LABELS:
        return text
    found = re.fullmatch(r"(\d*\.?\d+|one_positive)-(absent|unknown)", text)
    if not found:
        raise UsageError(
            f"--labels {text}: it is {ALL_LABELS}, or as in 0.4-absent, 0.4-unknown, "
            "one_positive-absent, one_positive-unknown"
        )
    kept, dropped = found.groups()
    if kept == "one_positive":
        return text
    return ALL_LABELS if float(kept) == 1 else f"{float(kept)!r}-{dropped}"


def labels_arguments(name: str) -> list[str]:
    """Those of what of the labels is kept and what the rest is, of a `labels_name`."""
    kept, _, dropped = name.partition("-")
    option = "one_positive=True" if kept == "one_positive" else f"keep_labels={kept}"
    return [f"--config.data.{option}", f"--config.data.dropped_labels={dropped}"]
