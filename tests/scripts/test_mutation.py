"""Faults put into copies of the code: all of them still fit it, and what is made of each."""

import collections
import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ROOT / "scripts" / "mutation_faults"

# The policy of unknown labels has few and fast tests.
TOY = """
path = "mlic_jax/data/label_policy.py"
tests = ["tests/data/test_label_policy.py"]

[[faults]]
what = "unknown labels are all absent"
before = '"as_positive": 1, '
after = '"as_positive": -1, '

[[faults]]
what = "a comment has another word"
before = "NumPy's or JAX's"
after = "JAX's or NumPy's"

[[faults]]
what = "something that was rewritten"
before = "no line of the module"
after = ""
"""


@pytest.fixture
def mutation(load_script):
    return load_script(ROOT / "scripts" / "mutation.py")


@pytest.fixture
def toys(tmp_path):
    """A folder of faults; `out.json` is where it has earlier outcomes."""
    folder = tmp_path / "faults"
    folder.mkdir()
    (folder / "label_policy.toml").write_text(TOY)
    earlier = [
        {"module": name, "what": "old", "result": "noticed", "seconds": 1.0, "by": "it"}
        for name in ("label_policy", "zebra")
    ]
    (tmp_path / "out.json").write_text(json.dumps({"faults": earlier}))
    return folder


def test_every_fault_fits_the_code_and_has_tests():
    """Exactly once, so that it is put where it was meant to be."""
    modules = collections.Counter()
    for file in FAULTS.glob("*.toml"):
        table = tomllib.loads(file.read_text())
        for fault in table["faults"]:
            fault = {"path": table["path"], "tests": table["tests"], **fault}
            name = f"{file.name}: {fault['what']}"
            assert (ROOT / fault["path"]).read_text().count(fault["before"]) == 1, name
            assert fault["before"] != fault["after"], name
            assert all((ROOT / test.split("::")[0]).is_file() for test in fault["tests"]), name
            modules[file.stem] += 1
    assert len(modules) >= 20 and min(modules.values()) >= 3


def test_a_fault_is_noticed_or_not_or_stale(mutation, toys, capsys):
    out = toys.with_name("out.json")
    module = ROOT / "mlic_jax" / "data" / "label_policy.py"
    before = module.read_text()
    assert mutation("--faults", toys, "--out", out) == 1
    assert module.read_text() == before
    printed = capsys.readouterr()
    assert "1 faults are stale" in printed.err
    found = json.loads(out.read_text())
    assert (found["tried"], found["noticed"]) == (4, 2)
    *ours, other = found["faults"]
    assert [fault["result"] for fault in ours] == ["noticed", "not noticed", "stale"]
    assert ours[0]["by"].startswith("tests/data/test_label_policy.py::test_policies[")
    assert ours[0]["seconds"] > 0
    assert (other["module"], other["what"]) == ("zebra", "old")  # which was not tried now
    for fault in ours:
        assert f"label_policy: {fault['what']}" in printed.out + printed.err


def test_tests_that_fail_without_a_fault_say_nothing(mutation, toys, capsys):
    file = toys / "label_policy.toml"
    file.write_text(file.read_text().replace("test_label_policy.py", "test_nowhere.py"))
    assert mutation("--faults", toys, "--out", toys.with_name("out.json")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: without any fault, pytest tests/data/test_nowhere.py exits")


def test_wrong_requests(mutation, toys, capsys):
    assert mutation("--faults", toys, "--only", "zebra") == 2
    assert "no faults of zebra; there are label_policy" in capsys.readouterr().err
    assert mutation("--faults", toys.with_name("none")) == 2
    assert mutation("--faults", toys, "--jobs", 0) == 2
    capsys.readouterr()
    for text in (TOY.replace("after", "behind"), TOY + "[[faults]]\nwhat = 1\n", "path = ["):
        (toys / "label_policy.toml").write_text(text)
        assert mutation("--faults", toys) == 1
        assert "label_policy.toml is no table of faults" in capsys.readouterr().err
    twice = TOY.replace("something that was rewritten", "a comment has another word")
    (toys / "label_policy.toml").write_text(twice)
    assert mutation("--faults", toys) == 1
    assert "two faults have the same name" in capsys.readouterr().err
