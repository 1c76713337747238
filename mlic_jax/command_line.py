"""What every command shares: errors are one line on stderr, and an exit code."""

import argparse
import logging
import re
import sys
from collections.abc import Callable

from absl import flags

from mlic_jax.errors import Failure, UsageError


class Parser(argparse.ArgumentParser):
    """argparse's, whose complaints are UsageErrors like all others."""

    def error(self, message: str) -> None:
        """Raises UsageError."""
        raise UsageError(f"{message}; see --help")


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command: 0 where it succeeds, 2 for a wrong request, 1 for a failure."""
    try:
        run()
    except (UsageError, Failure) as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _one_line(text: str) -> str:
    """A message as it can be printed: names that files give may have any characters in them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show_log() -> None:
    """Has what this package logs appear on stderr, as plain lines."""
    logger = logging.getLogger("mlic_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """absl's parser, with whatever a wrong option or recipe makes it raise as one line."""
    try:
        return values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        cause = error.args[0] if error.args else error
        text = str(cause)
        if isinstance(cause, KeyError) and (names := re.findall(r"\w+", text)):
            text = f"the configuration has no option {names[0]!r}; mlic_jax/config.py lists all"
        # absl quotes the whole traceback of what went wrong in a recipe; its last line says it.
        message = text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())
        raise UsageError(message.removeprefix(f"{UsageError.__module__}.UsageError: ")) from None


def required(*wanted: flags.FlagHolder) -> list:
    """The values of flags; raises UsageError for the first that is not given."""
    for flag in wanted:
        if flag.value is None:
            raise UsageError(f"--{flag.name} is missing; see --help")
    return [flag.value for flag in wanted]
