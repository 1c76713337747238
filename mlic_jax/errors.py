"""The two ways a command ends badly, each one line and an exit code; and others' errors in a line.

`main` turns the two into lines.
"""

import os
import re

LONGEST_REASON = 200  # characters


class UsageError(ValueError):
    """The request is wrong: an unknown option, a missing path, a wrong value. Exit code 2."""


class Failure(RuntimeError):
    """The request is fine but cannot be carried out: bad data, a diverged run. Exit code 1."""


def reason(error: BaseException) -> str:
    """What went wrong, in a few words: of the many lines that an error may have the first.

    What the operating system says comes without the path, which is said elsewhere.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if found := re.search(r"os_error_code='(\d+)'", text):  # as tensorstore says it
        return os.strerror(int(found[1]))
    lines = (" ".join(line.split()) for line in text.splitlines())
    line = next(filter(None, lines), type(error).__name__)
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + " ..."
