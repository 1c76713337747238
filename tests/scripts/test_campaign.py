"""The campaign: a slice of every fuzzer, and what the campaign itself does with what they find."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "campaign"
SCRIPT = FOLDER / "run.py"

# Fuzzers that need nothing, in a tool of their own.
OWN = """
import os, time
from fuzzer import Broken, Fuzzer

class Own(Fuzzer):
    title, units, holds, share, seconds = "Own", "things", "nothing", 1, 2

    def run(self, rng, folder):
        (folder / "input.txt").write_text(str(rng.integers(1000)))
        BODY

FUZZER = Own
"""
BODIES = {
    "holds": "yield 'even' if rng.random() < 0.5 else 'odd'; yield 'second'",
    "breaks": "yield 'first'; raise Broken('the second does not hold')",
    "hangs": "time.sleep(60); yield",
    "dies": "os._exit(3); yield",
    "fails": "yield 1 / 0",
}


def run(*arguments, script=SCRIPT, cwd=None):
    """The command in a process of its own, as a person runs it."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags}
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=600
    )


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    """The tool with other fuzzers: run(arguments), and the folder that it works in."""
    folder = tmp_path_factory.mktemp("campaign")
    shutil.copytree(FOLDER, folder / "tool", ignore=shutil.ignore_patterns("fuzzers", "__*"))
    (folder / "tool" / "fuzzers").mkdir()
    for name, body in BODIES.items():
        (folder / "tool" / "fuzzers" / f"{name}.py").write_text(OWN.replace("BODY", body))
    return lambda *arguments: run(*arguments, script=folder / "tool" / "run.py", cwd=folder), folder


def mutations():
    spec = importlib.util.spec_from_file_location("mutations", FOLDER / "mutations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- slices: of those that harm runs all at once, for they share the run that is left alone. Of
# their seed the first cases are short: one kill, few copies, a full disk while preparing, a signal
# while evaluating


@pytest.mark.parametrize(
    ("fuzzers", "minutes", "seed"),
    [
        (("tables", "images", "checkpoint_files"), 0.1, 0),
        (("bit_rot", "kill", "crash_state", "disk_full", "signals"), 0, 251051),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_slice(fuzzers, minutes, seed, tmp_path):
    files = ("--out", tmp_path / "out", "--keep", tmp_path / "kept")
    done = run(*fuzzers, "--minutes", minutes, "--seed", seed, *files)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in fuzzers:
        if f"{name} is left out" in done.stderr:
            continue
        tally = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert sum(tally["held"].values()) >= 1 and not tally["faults"]
    assert not (tmp_path / "kept").exists()


# --- the campaign


def test_what_does_not_hold_is_said_kept_and_can_be_run_again(tool):
    run_tool, folder = tool
    (folder / "page.md").write_text("before\n<!-- campaign -->\nold\n<!-- end -->\nafter\n")
    files = ("--out", "out", "--page", "page.md", "--keep", "kept")
    done = run_tool("all", "--minutes", 0, "--seed", 7, *files)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: 4 cases did not hold")
    for name, message in {
        "breaks": "the second does not hold",
        "hangs": "it had not ended after 2 s",
        "dies": "its process ended with exit code 3",
        "fails": "ZeroDivisionError: division by zero",
    }.items():
        assert f"run.py {name} --seed 7 --only 0`: {message}" in done.stdout
        assert (folder / "kept" / f"{name}-7-0" / "input.txt").is_file()
    page = (folder / "page.md").read_text()
    assert page == f"before\n<!-- campaign -->\n{done.stdout}<!-- end -->\nafter\n"

    # What is mended counts as it ends now.
    mended = folder / "tool" / "fuzzers" / "breaks.py"
    mended.write_text(OWN.replace("BODY", "yield 'first'; yield 'second'"))
    again = run_tool("breaks", "--seed", 7, "--retry", "--out", "out")
    mended.write_text(OWN.replace("BODY", BODIES["breaks"]))
    assert again.returncode == 0 and "| 2 things | 2 | 0 |" in again.stdout
    (row,) = [line for line in page.splitlines() if line.startswith("| [breaks]")]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["2 things", "1", "**1**"]

    kept = (folder / "kept" / "breaks-7-0" / "input.txt").read_text()
    assert run_tool("breaks", "--seed", 7, "--only", 0, "--keep", "again").returncode == 1
    assert (folder / "again" / "breaks-7-0" / "input.txt").read_text() == kept


def test_results_are_added_to(tool):
    run_tool, folder = tool

    def tally(*arguments):
        done = run_tool("holds", "--minutes", 0, "--out", "added", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "added" / "holds.json").read_text())

    first = tally("--at-least", 5)
    assert (first["cases"], sum(first["held"].values()), first["held"]["second"]) == (3, 6, 3)
    both = tally("--at-least", 9, "--resume")
    assert (both["cases"], both["held"]["second"]) == (5, 5)
    assert both["held"] == tally("--at-least", 9)["held"]
    refused = run_tool("holds", "--out", "added", "--resume", "--seed", 1)
    assert refused.returncode == 2 and "is of seed 0" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "there is no fuzzer 'nothing'; known are all, breaks"),
        (("holds", "--page", "page.md"), "--page, --resume and --retry need --out"),
        (("holds", "--out", "o", "--resume", "--only", 3), "--only is for cases by themselves"),
        (("holds", "--out", "o", "--page", "nowhere.md"), "nowhere.md cannot be read"),
    ],
)
def test_usage_errors(tool, arguments, words):
    done = tool[0](*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and words in done.stderr


# --- damage


def test_damage_is_seeded_and_never_none():
    module, content = mutations(), bytes(range(200))
    results = [module.damaged(np.random.default_rng(seed), content) for seed in range(200)]
    assert results == [module.damaged(np.random.default_rng(seed), content) for seed in range(200)]
    assert content not in results
    assert len(set(results)) > 190
    assert module.damaged(np.random.default_rng(0), b"") != b""


def test_altered_values_are_other_values_in_one_place():
    module = mutations()
    value = {"images": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], "count": 2}
    texts = {
        module.to_json(module.altered(np.random.default_rng(seed), value)) for seed in range(99)
    }
    assert len(texts) > 50
    assert value == {"images": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], "count": 2}
    assert module.to_json({"a": module.Raw("[[1"), "b": ["x"]}) == '{"a": [[1, "b": ["x"]}'
