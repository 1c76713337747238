"""What every command shares: errors are one line on stderr, and an exit code."""

import argparse
import logging
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from mlic_jax.errors import Failure, UsageError
from mlic_jax.names import did_you_mean

LONGEST_LINE = 2000  # characters of an error
_DEFAULTS = Path(__file__).with_name("config.py")  # the recipe of options without one

T = TypeVar("T")


def called_mlic() -> bool:
    """Whether the command `mlic` was called, which sets `sys.argv`, and not a module of its own."""
    return sys.argv[0].startswith("mlic ")


def mode_command(mode: str, *words: object) -> str:
    """The command of a mode of `main`, for a shell, by `mlic` where that is what was called."""
    module = ["python", "-m", "mlic_jax.main", *(() if mode == "train" else ("--mode", mode))]
    return shlex.join([*(["mlic", mode] if called_mlic() else module), *map(str, words)])


class Parser(argparse.ArgumentParser):
    """argparse's, whose complaints are UsageErrors like all others."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("allow_abbrev", False)  # nor does absl take a part of a name
        super().__init__(*args, **kwargs)
        if called_mlic() and "prog" in kwargs:
            self.prog = sys.argv[0]

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Also of `parse_args`; raises UsageError."""
        args = sys.argv[1:] if args is None else list(args)
        refuse_addresses(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError, which names what is nearest to a wrong option or choice."""
        near = ""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            near = did_you_mean(found[1], re.findall(r"[\w.-]+", found[2]))
        elif found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            near = did_you_mean(found[1], self._option_string_actions)
        raise UsageError(f"{message}{near or ';'} see --help")


class NearEnumParser(flags.EnumParser):
    """absl's, whose complaint names the nearest value."""

    def parse(self, argument: str) -> str:
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f"{error}{did_you_mean(argument, self.enum_values)}") from None


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command, and says in one line how it ended if not well.

    Returns:
        0 where it succeeds, 2 for a wrong request, 1 for a failure, 130 for Ctrl-C. What nobody
        expected is a failure too, with its traceback for whoever is to mend it.
    """
    hush_pillow()
    try:
        run()
    except SystemExit as end:  # of absl and argparse, which have said what there is to say
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return _say("interrupted; what was saved stays, and the same command goes on from it", 130)
    except (UsageError, Failure) as error:
        return _say(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:  # a full disk, a folder that may not be written
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}; what was saved stays", 1)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # JAX's
            return _say(
                "memory is full; fewer photos at a time, or of a smaller size, need less", 1
            )
        traceback.print_exc()
        return _say(f"{type(error).__name__}, which should not be: {error}", 1)
    return 0


def _say(message: str, code: int) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr, flush=True)
    return code


def _one_line(text: str) -> str:
    """A message as it can be printed: names that files give may have any characters, and many."""
    if len(text) > LONGEST_LINE:
        text = f"{text[:LONGEST_LINE]} ... ({len(text) - LONGEST_LINE} characters more)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def hush_pillow() -> None:
    """Has Pillow not warn of odd files that it reads all the same, with lines of its source."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def hush_strays() -> None:
    """Has what libraries raise in their threads and callbacks not print tracebacks of its own.

    Whoever waits for the work of these gets the error too, and says it once. (A full disk ends in
    dozens, of every array that was being written.) They are logged for debugging. A Ctrl-C that met
    such a callback, where Python would lose it, comes again.
    """

    def log(error: BaseException | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            main = threading.main_thread().ident
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
        logging.getLogger(__name__).debug("in a thread or callback", exc_info=error)

    sys.excepthook = lambda _, error, __: log(error)
    sys.unraisablehook = lambda stray: log(stray.exc_value)
    threading.excepthook = lambda stray: log(stray.exc_value)


def show_log() -> None:
    """Has what this package logs appear on stderr, as plain lines."""
    logger = logging.getLogger("mlic_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False


def parse_flags(
    argv: list[str],
    values: flags.FlagValues = flags.FLAGS,
    config: flags.FlagHolder[ConfigDict | None] | None = None,
) -> list[str]:
    """absl's parser, with whatever a wrong option or recipe makes it raise as one line.

    Args:
        config: a flag of a recipe whose options may be given without one, see `asked_of_config`.
    """
    refuse_addresses(argv)
    argv = _last_of_each(argv)
    try:
        if config is not None and _has_options_alone(argv, config.name):
            flags.set_default(config, str(_DEFAULTS))
        return values(argv)
    except SystemExit:  # of --help, which absl takes for an error
        raise SystemExit(0) from None
    except BrokenPipeError:  # nobody reads the help
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error.__context__, UsageError):  # of a recipe, which absl wraps
            raise error.__context__ from None
        raise UsageError(" ".join(str(error.args[0] if error.args else error).split())) from None


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """Without options of a recipe that are given again: ml_collections would join their tuples."""
    last = {word.partition("=")[0]: i for i, word in enumerate(argv) if "=" in word}
    return [
        word
        for i, word in enumerate(argv)
        if not re.match(r"--?config\.[^=]*=", word) or last[word.partition("=")[0]] == i
    ]


def refuse_addresses(words: Iterable[str]) -> None:
    """Raises UsageError for an address where a path is meant: gs://runs would be a folder `gs:`.

    Args:
        words: of a command line, or `name=value`.
    """
    for word in words:
        if re.match(r"([\w.-]+=)?[a-z][a-z\d+.-]*://", str(word), re.IGNORECASE):
            raise UsageError(
                f"{word} is no path of this machine: mount it (gcsfuse does so for gs://, s3fs for "
                "s3://) and give the folder"
            )


def _has_options_alone(argv: Sequence[str], name: str) -> bool:
    return not any(re.match(rf"--?{name}(=|$)", word) for word in argv) and any(
        re.match(rf"--?(no)?{name}\.", word) for word in argv
    )


def asked_of_config(
    config: flags.FlagHolder[ConfigDict | None], values: flags.FlagValues = flags.FLAGS
) -> tuple[ConfigDict | None, dict[str, Any]]:
    """The recipe as its file has it, None where none is given; and the options set beside it."""
    if config.value is None:
        return None, {}
    flag = values[config.name]
    options = config_flags.get_override_values(flag)
    if not config.present:
        return None, options
    return flag.parser.parse(config_flags.get_config_filename(flag)), options


def required(flag: flags.FlagHolder[T | None]) -> T:
    """The value of a flag; raises UsageError where it is not given, or empty."""
    if not flag.present or flag.value is None or flag.value == "":
        raise UsageError(f"--{flag.name} is missing; see --help")
    return flag.value
