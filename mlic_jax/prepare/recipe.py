"""The recipe of own data as a Python file, and the commands that come next."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlic_jax.command_line import mode_command
from mlic_jax.config_paths import beside, is_path, seen_from
from mlic_jax.data.records import Split
from mlic_jax.files import json_text

_COMMENTS = {
    "init_prior": "the share of the labels that are present",
    "freeze_statistics": "with few images the backbone stays as it is",
    "model.threshold": "coarse maps: regions with some margin",
    "data.corrections": "of mlic review, once there are any",
    "optim.multipliers.features": "0 freezes",
    "optim.reference_classes": "the rate goes with the number of classes, see optim.rate_scale",
    "eval.top_n": "more regions than in training",
}


RECIPE = "recipe"  # in data_card.json: the digest of the recipe that was written beside it


def place_of_recipe(output: Path, name: str) -> Path:
    """Where the recipe is written: beside earlier ones that a person has changed, which is told.

    One whose digest is not known, of an earlier version, counts as changed.
    """
    card = output / "data_card.json"
    known = json_text.read(card).get(RECIPE) if card.is_file() else None
    recipe, numbers = output / f"{name}.py", itertools.count(1)

    def is_changed() -> bool:
        return digest_of(recipe.read_text(encoding="utf-8", errors="replace")) != known

    while recipe.is_file() and is_changed():
        print(f"{recipe} has been changed and stays as it is; the recipe of now is beside it")
        number = next(numbers)
        recipe = output / f"{name}_new{number if number > 1 else ''}.py"
    return recipe


def digest_of(text: str) -> str:
    """By which a recipe is known for the one that was written."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def command_lines(
    recipe: Path, name: str, roles: Mapping[str, str], images: Path
) -> dict[str, str]:
    """What each command is for -> the command, for a shell."""
    run = ("--workdir", f"runs/{name}")
    # Where there is no split to spare, it has to be said that the operating point is of test.
    allowed = ("--config.calibration.allow_test=True",) if roles["val"] == roles["test"] else ()
    return {
        "train": mode_command("train", "--config", recipe, *run),
        "evaluate": mode_command("evaluate", *run),
        "calibrate": mode_command("calibrate", *run, *allowed),
        "predict": mode_command(
            *("predict", "--checkpoint", f"runs/{name}"),
            *("--images", images, "--out", f"runs/{name}/predictions"),
        ),
    }


def recipe_text(
    recipe: Path,
    settings: Mapping[str, Any],
    train: Split,
    roles: Mapping[str, str],
    commands: Mapping[str, str],
) -> str:
    """The recipe, a Python file as those in configs/, with paths relative to itself."""
    held_out = roles["val"] if roles["val"] == roles["test"] else f"{roles['val']}, {roles['test']}"
    start, msrn = "from random initialisation", "--config.model.name=msrn"
    if "init_from" in settings:  # at a rate that MSRN's dense layers do not bear
        start = "from pretrained weights"
        msrn += " --config.optim.name=adamw --config.optim.learning_rate=0.001"
    said = "\n\n".join(f"    {command}" for command in commands.values())
    docstring = (
        f"MCAR on {train.name}, {start}: {len(train.class_names)} classes, {len(train)} images to "
        f"train on.\n\n{said}\n\nValidated and evaluated on {held_out}. MSRN, with the label graph "
        f"beside this file: {msrn} and\nanother --workdir. Paths are relative to this file. "
        "Written by `mlic prepare`;\n`mlic options` lists every option."
    )
    docstring = docstring.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    lines = []
    for option in sorted(settings, key=_section):
        comment = f"  # {_COMMENTS[option]}" if option in _COMMENTS else ""
        value = _literal(settings[option])
        if is_path(option, settings[option]):
            value = f"beside(__file__, {_literal(seen_from(recipe.parent, settings[option]))})"
        lines.append(f"    config.{option} = {value}{comment}\n")
    return (
        f'"""{docstring}\n"""\n\n'
        "from ml_collections import ConfigDict\n\n"
        "from mlic_jax.config import apply_variant, default_config\n"
        f"from {beside.__module__} import beside\n\n\n"
        "def get_config(variant: str | None = None) -> ConfigDict:\n"
        f'    """The recipe that was chosen for {len(train)} images."""\n'
        "    config = default_config()\n"
        f"{''.join(lines)}"
        "    return apply_variant(config, variant)\n"
    )


def _section(option: str) -> int:
    """Where the recipe has an option: those of no section first."""
    section = option.split(".")[0] if "." in option else ""
    return ("", "model", "data", "augment", "loss", "optim", "eval").index(section)


def _literal(value: Any) -> str:
    """A value as Python code."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        items = (f"{_literal(key)}: {_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    return repr(value)
