"""What others raise, in a line."""

import pytest

from mlic_jax.errors import LONGEST_REASON, reason


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/b.jpg"), "No such file or directory"),
        (OSError("image file is truncated"), "image file is truncated"),
        (ValueError("DATA_LOSS\n  [source locations='a'] os_error_code='28'"), "No space left on"),
        (ValueError("\n  of  many\tlines\nthe first"), "of many lines"),
        (KeyError(), "KeyError"),
        (ValueError("x" * (LONGEST_REASON + 1)), "x" * LONGEST_REASON + " ..."),
    ],
)
def test_an_error_in_a_line(error, want):
    assert reason(error).startswith(want)
    assert "\n" not in reason(error)
