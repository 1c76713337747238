"""JSON of others: read, or refused in one line that names the file."""

import json

import pytest

from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text


def test_json_is_read(tmp_path):
    value = {"a": [1, 2.5, None, "höhe \U0001f600"], "b": {}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert json_text.parse(text, "it") == value
        for encoding in ("utf-8", "utf-8-sig"):
            (tmp_path / "a.json").write_text(text, encoding)
            assert json_text.read(tmp_path / "a.json") == value


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json cannot be read: No such file"):
        json_text.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON: .* line 1"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"9" * 5000, "is not JSON: "),
        (b'["\\ud800"]', "an escape of half a character"),
        (b'{"\\udfff": 0}', "an escape of half a character"),
        (b'"\xed\xa0\x80"', "not text in UTF-8"),
        (json.dumps([1]).encode("utf-16"), "not text in UTF-8"),
        (b"caf\xe9", "not text in UTF-8"),
        (b"[" + b'{"":[]},' * 700_000 + b"0]", "nearly all braces and brackets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_json_is_one_line(content, reason, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Failure, match=rf"a\.json .*{reason}|a\.json {reason}") as failure:
        json_text.read(tmp_path / "a.json")
    assert "\n" not in str(failure.value)
