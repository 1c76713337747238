"""One command for all: `mlic COMMAND ...`, which is also `python -m mlic_jax COMMAND ...`.

What works with a model is a mode of `main`; every other command is a module with a command line of
its own, imported when it is asked for.
"""

import contextlib
import importlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Sequence

from mlic_jax import __version__, completion, main, recipes
from mlic_jax.command_line import exit_code
from mlic_jax.errors import UsageError
from mlic_jax.names import did_you_mean, require_one_of

# Command -> the module whose `main` runs it, and what it does. Of those that are a mode too, see
# `is_mode` for what tells the two apart.
MODULES = {
    "prepare": (
        "mlic_jax.prepare.own_data",
        "--images DIR: make your own photos ready to train on",
    ),
    "evaluate": ("mlic_jax.evaluate.score_file", "SCORES.npz: metrics of a score file alone"),
    "calibrate": (
        "mlic_jax.evaluate.calibrate_score_file",
        "SCORES.npz: thresholds from a score file alone",
    ),
    "build-word-vectors": ("mlic_jax.prepare.word_vectors", "for MSRN: what it knows of labels"),
    "build-label-graph": ("mlic_jax.prepare.label_graph", "for MSRN: which occur together"),
    "bundle": (
        "mlic_jax.export.command",
        "verify | run | repository: a bundle proves itself, labels, serves",
    ),
    "voc-server": ("mlic_jax.evaluate.voc_server", "files for the server of Pascal VOC"),
    "convert": ("weight_conversion.convert", "checkpoints from PyTorch, and back"),
    "verify": ("weight_conversion.verify.command", "compare a checkpoint with PyTorch"),
}
LISTS = {
    "recipes": "the recipes that come with this",
    "options": "[TEXT]: the options of recipes, or those with TEXT in name or meaning",
    "completion": "bash | zsh | fish: a script for the shell to read, which completes all this",
}


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code, or ends the process with it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    command, *words = given or ["--help"]
    if command in main.MODES or command in MODULES:
        sys.argv = [f"mlic {command}", *words]
        if is_mode(command, words):
            sys.argv.insert(1, f"--mode={command}")
            main.run()  # ends the process
        return importlib.import_module(MODULES[command][0]).main()
    return exit_code(lambda: show(answer(command, words)))


def show(text: str) -> None:
    """Prints a text, of which a reader may take the first lines alone, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_mode(command: str, words: Sequence[str]) -> bool:
    """Whether a command line is for `main`, and not for a module of `MODULES`."""
    if command == "prepare":  # of a recipe's set, else of own data
        return any(re.match(r"--?config\b", word) for word in words)
    of_scores = command in MODULES and words and not words[0].startswith("-")
    return command in main.MODES and not of_scores


def answer(command: str, words: Sequence[str]) -> str:
    """What a command prints that only says what there is; raises UsageError for no command."""
    if command in ("--help", "-h"):
        return help_text()
    if command == "--version":
        return f"mlic_jax {__version__}"
    if command not in LISTS:
        near = did_you_mean(command, (*main.MODES, *MODULES, *LISTS, "--help", "--version"))
        raise UsageError(f"mlic has no command {command!r}, see mlic --help{near}")
    if {"--help", "-h"} & set(words):
        return f"mlic {command}  {LISTS[command]}"
    if command == "recipes":
        return recipes_text()
    if command == "options":
        return options_text(" ".join(words))
    shell = words[0] if words else ""
    require_one_of("the shell", shell, completion.SCRIPTS)
    return completion.SCRIPTS[shell](flags_of_commands())


def help_text() -> str:
    """What `mlic --help` says."""
    said = {command: [meaning] for command, meaning in (main.MODES | LISTS).items()}
    for command, (_, meaning) in MODULES.items():
        said.setdefault(command, []).append(meaning)
    lines = [f"  {command:18} {meaning}" for command in said for meaning in said[command]]
    usage = "usage: mlic COMMAND --OPTION=VALUE ...; mlic COMMAND --help says more"
    return "\n".join((usage, "", *lines))


def recipes_text() -> str:
    """The recipes, a line each."""
    lines = [f"  {name:14} {meaning}" for name, meaning in recipes.known().items()]
    how = "--config NAME, or NAME:VARIANTS with a backbone, a size and a pooling, as in"
    return "\n".join((*lines, "", f"{how} --config mcar_coco:resnet50,448"))


def options_text(text: str) -> str:
    """The options with a text in name or meaning; raises UsageError where there is none."""
    known = recipes.options()
    found = {
        name: option
        for name, option in known.items()
        if text.lower() in f"{name} {option.meaning}".lower()
    }
    if not found:
        raise UsageError(f"no option has {text!r} in name or meaning{did_you_mean(text, known)}")
    wrapped = textwrap.TextWrapper(96, initial_indent="    ", subsequent_indent="    ")
    lines = [
        f"--config.{name}={option.default!r}\n{wrapped.fill(option.meaning)}"
        for name, option in found.items()
    ]
    return "\n".join(lines)


def flags_of_commands() -> dict[str, list[str]]:
    """Every command, with the flags of each."""
    return {name: flags_of(name) for name in (*main.MODES, *MODULES)} | {name: [] for name in LISTS}


def flags_of(command: str) -> list[str]:
    """The flags that the help of a command names, in both of its forms."""
    text = main.help_text([f"mlic {command}", f"--mode={command}"]) * (command in main.MODES)
    if command in MODULES:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            importlib.import_module(MODULES[command][0]).main(["--help"])
        text += said.getvalue()
    return sorted(set(re.findall(r"(?<![\w.-])--[a-z][\w-]*", text)))


if __name__ == "__main__":
    sys.exit(run())
