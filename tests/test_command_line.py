"""How commands end: an exit code, and one line where it is not 0."""

import errno
import os

import pytest

from mlic_jax.command_line import exit_code
from mlic_jax.errors import Failure, UsageError


def ending(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no such option"), 2, "error: no such option"),
        (Failure("the image is damaged"), 1, "error: the image is damaged"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was saved stays"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/metrics.jsonl"),
            1,
            "error: run/metrics.jsonl: No space left on device; what was saved stays",
        ),
        (OSError("no more"), 1, "error: no more; what was saved stays"),
    ],
)
def test_an_error_is_one_line(error, code, line, capsys):
    assert exit_code(ending(error)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1


def test_what_nobody_expected_keeps_its_traceback_and_ends_all_the_same(capsys):
    assert exit_code(ending(KeyError("boxes"))) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1] == "error: KeyError, which should not be: 'boxes'"


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (3, 3), ("said", 1)])
def test_an_exit_of_a_library_is_passed_on(code, expected):
    assert exit_code(ending(SystemExit(code))) == expected


def test_success_is_0_whatever_the_command_returns(capsys):
    assert exit_code(lambda: {"a": "value"}) == 0
    assert capsys.readouterr() == ("", "")
