"""Recipes: those of `configs/` by name, anyone's own by file; and the options that they set.

A recipe is a Python file with a function `get_config(variant)` that returns a configuration. What
is wrong in one is said in a line, with its file and line.
"""

import ast
import inspect
import itertools
import linecache
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from mlic_jax.command_line import parse_flags
from mlic_jax.config import default_config
from mlic_jax.errors import UsageError
from mlic_jax.names import did_you_mean
from mlic_jax.training_recipes import with_recipe

_PACKAGE = Path(__file__).parent
# In a checkout beside the package, in an installed wheel within it.
FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")


def known() -> dict[str, str]:
    """The recipes that come with the package, each with the first line of its docstring."""
    paths = sorted(path for folder in FOLDERS for path in folder.glob("*.py"))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    said = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return {name: text.partition("\n")[0] for name, text in said.items()}


def find(name: str) -> Path:
    """The file of a recipe that is given by file or by name; raises UsageError if there is none."""
    for path in (Path(name), *(folder / f"{name}.py" for folder in FOLDERS)):
        if path.is_file():
            return path
    if (inside := Path(name) / f"{Path(name).name}.py").is_file():  # of mlic prepare
        raise UsageError(f"--config {name}: it is a folder; its recipe is {inside}")
    near = did_you_mean(Path(name).stem, known())
    raise UsageError(f"--config {name}: no such file, nor a recipe of `mlic recipes`{near}")


def load(recipe: str) -> ConfigDict:
    """The configuration of a recipe, locked: a misspelt option is refused.

    Args:
        recipe: a name of `known()` or a file; after a colon its variants, as in
            `mcar_coco:resnet50,448`.

    Raises:
        UsageError: there is no such recipe or variant, or it is no sound Python; says where.
    """
    name, *variant = recipe.split(":", 1)
    path = find(name)
    module: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        # Always the file as it is: Python's cache of modules tells times to the second alone.
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module)
        if "get_config" not in module:
            raise UsageError(f"{path}: a recipe has a function get_config, and this file has none")
        config = module["get_config"](*variant)
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        raise UsageError(_what_is_wrong(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: get_config returns no ConfigDict but {type(config).__name__}")
    return config.lock()


def load_with(recipe: str, arguments: Sequence[str]) -> ConfigDict:
    """The configuration of a recipe with options as on a command line, `--config.option=value`.

    Of an option that is given twice the last counts.

    Raises:
        UsageError: as of `load`; an argument is no option, or has no value that the option takes.
    """
    values = flags.FlagValues()
    argv = ["", f"--config={recipe}", *arguments]
    flag = define_flag("config", "the recipe", values, argv)
    if extra := parse_flags(argv, values, flag)[1:]:
        raise UsageError(f"unexpected argument {extra[0]!r}; see --help")
    return flag.value


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Where in a recipe, and in a line what, an exception is about."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno or 0 for frame in frames if frame.filename == str(path)]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    inner = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    text = str(inner.args[0]) if inner.args else ""
    if isinstance(inner, KeyError) and (found := re.match(r"""(?:Key )?["'](\w+)["']""", text)):
        # ml_collections names the last part alone; the line has all.
        line = linecache.getline(str(path), lines[-1]) if lines else ""
        dotted = re.search(rf"\w\.((?:\w+\.)*{found[1]})\b", line)
        return f"{place}: {no_option(dotted[1] if dotted else found[1])}"
    return f"{place}: {type(error).__name__}: {' '.join(text.split())}"


# --- options


class Option(NamedTuple):
    """An option of the configuration."""

    default: Any
    meaning: str


def options() -> dict[str, Option]:
    """Every option by its dotted name: `config.py` says beside or above each what it means."""
    config = default_config()
    result: dict[str, Option] = {}
    above: list[str] = []
    for line in inspect.getsource(default_config).splitlines():
        if comment := re.fullmatch(r" +# (.*)", line):
            above.append(comment[1])
            continue
        if found := re.fullmatch(r" +config\.([\w.]+) = (.+?)(?:  # (.*))?", line):
            name, value, beside = found.groups()
            if value != "ConfigDict()":
                default = config[name]
                default = default.to_dict() if isinstance(default, ConfigDict) else default
                result[name] = Option(default, beside or " ".join(above))
        above = []
    return result


def no_option(name: str) -> str:
    """What is said of an option that there is not."""
    near = did_you_mean(name, options())
    return f"the configuration has no option {name!r}, see `mlic options`{near}"


# --- the flag


class _RecipeParser(flags.ArgumentParser[ConfigDict]):
    """Of `--config RECIPE`: refuses options of it, in `argv`, that the recipe has not.

    And trains as `--config.recipe=NAME` there says, before any other option is set.
    """

    def __init__(self, name: str, argv: Sequence[str] | None):
        self._name, self._argv = name, argv

    def parse(self, recipe: str) -> ConfigDict:
        config = load(recipe)
        words = list(sys.argv if self._argv is None else self._argv)
        if name := _last_value(words, f"{self._name}.recipe"):
            config = with_recipe(config, name)
        for word in words:
            found = re.match(rf"--?(?:no)?{self._name}\.([\w.]+)(?:=|$)", word)
            if found and not _has(config, found[1]):
                raise UsageError(no_option(found[1]))
        return config


def _last_value(words: Sequence[str], option: str) -> str:
    """What a command line says an option is, as `--option=value` or in two words; else ""."""
    value = ""
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if found := re.fullmatch(rf"--?{re.escape(option)}(=(.*))?", word):
            value = found[2] if found[1] else following
    return value


def _has(config: ConfigDict, name: str) -> bool:
    try:
        config[name]
    except (KeyError, TypeError, AttributeError):
        return False
    return True


def define_flag(
    name: str,
    help_string: str,
    values: flags.FlagValues = flags.FLAGS,
    argv: Sequence[str] | None = None,
) -> flags.FlagHolder[ConfigDict | None]:
    """The flag of a recipe, `--NAME`, and with it those of its options, `--NAME.option`."""
    holder = config_flags.DEFINE_config_file(
        name, help_string=help_string, flag_values=values, sys_argv=argv
    )
    values[name].parser = _RecipeParser(name, argv)
    return holder
