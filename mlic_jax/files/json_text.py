"""JSON that a user gives, or that was written long ago: read whole or refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

from mlic_jax.errors import Failure, UsageError

# An object takes up to 240 bytes of memory, a list 90, where the text may be 7 and 3. What a text
# may take by that count is 12 times its size, and 100 MB.
_OBJECT, _LIST = 240, 90
_EXPANSION, _ALLOWANCE = 12, 100 * 2**20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of half a pair


def read(path: Path) -> Any:
    """What a JSON file holds; see `parse`.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        Failure: it is not JSON in UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return parse(content, str(path))


def parse(content: bytes | str, where: str) -> Any:
    """What a JSON text holds. NaN and infinities are numbers of it, as Python writes them.

    Every text in it can be encoded, and what it takes is in proportion to its size.

    Args:
        content: UTF-8, with or without a byte order mark, or text.
        where: how a message begins: the file, and the place in it.

    Raises:
        Failure: it is not JSON, is nested too deep, or has far more objects and lists than others.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        if _OBJECT * text.count("{") + _LIST * text.count("[") > (
            _EXPANSION * len(text) + _ALLOWANCE
        ):
            raise ValueError("it is nearly all braces and brackets")
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        raise Failure(f"{where} is not text in UTF-8: {error}; save it as UTF-8") from None
    except UnicodeEncodeError:
        raise Failure(f"{where} has an escape of half a character (\\ud800 to \\udfff)") from None
    except RecursionError:
        raise Failure(f"{where} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise Failure(f"{where} is not JSON: {error}") from None
