"""The benchmark, in real processes on tiny sizes: what it compares, when, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmark" / "run.py"
VARIANTS = {
    "jax": ["ours", "JAX, naive"],
    "torch": ["PyTorch, as released", "PyTorch, label by label"],
}

# Cases that need no framework: three ways to square, of which the last may go wrong.
OWN = """
import os, time
import numpy as np
from comparison import Case, Comparison

def inputs(sizes):
    return {"x": np.arange(1, 1 + sizes["count"], dtype=np.float64)}

def way(square, seconds=0.0, megabytes=0):
    def make(given, sizes):
        def run():
            time.sleep(seconds)
            block = np.ones((megabytes, 2**20), np.uint8)
            return {"y": square(given["x"])}
        return run
    return make

def die(x):
    os._exit(3)

COMPARISON = Comparison(
    title="Squares",
    sizes={"count": 1000},
    small={"count": 10},
    inputs=inputs,
    cases=(
        Case("square", "ours", "host", way(lambda x: x**2, 0.02, 20)),
        Case("square", "product", "host", way(lambda x: x * x, 0.2, 60)),
        Case("square", "other", "host", way(OTHER)),
    ),
)
"""


def run(*arguments):
    """The command in a process of its own, as a person runs it."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


@pytest.fixture
def squares(tmp_path):
    """(how the last case squares) -> the file of a comparison."""

    def write(other="np.square"):
        path = tmp_path / "squares.py"
        path.write_text(OWN.replace("OTHER", other))
        return path

    return write


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """The spatial attention, small: what was printed, the JSON, and the folder of all files."""
    folder = tmp_path_factory.mktemp("attention")
    files = ("--json", folder / "a.json", "--chart", folder / "a.svg")
    done = run("spatial_attention", "--small", "--rounds", 5, *files)
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "a.json").read_text()), folder


def of_task(rows):
    tasks = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return tasks


def check_consistent(rows, rounds):
    """Medians are those of the times, ratios those of the medians and peaks."""
    for group in of_task(rows).values():
        first = group[0]
        assert first["time_ratio"] == 1
        for row in group:
            assert len(row["seconds"]) == len(row["started"]) == rounds
            assert row["median_seconds"] == sorted(row["seconds"])[rounds // 2]
            ratio = row["median_seconds"] / first["median_seconds"]
            assert row["time_ratio"] == pytest.approx(ratio)
            if row["peak_ratio"] is not None:
                assert row["peak_ratio"] * first["peak_bytes"] == pytest.approx(row["peak_bytes"])


def check_turns(rows):
    """A B C, A B C: each begins after the one before has ended."""
    for group in of_task(rows).values():
        rounds = zip(*(zip(r["started"], r["seconds"], strict=True) for r in group), strict=True)
        calls = [call for one_round in rounds for call in one_round]
        for (start, seconds), (next_start, _) in pairwise(calls):
            assert start + seconds <= next_start


@pytest.mark.slow
def test_spatial_attention_holds_every_variant(attention):
    done, result, folder = attention
    missing = "torch" in result["missing"]
    variants = VARIANTS["jax"] + ([] if missing else VARIANTS["torch"])
    assert ("PyTorch is not installed" in done.stderr) == missing
    (table,) = result["devices"]
    assert table["device"] == "CPU"
    tasks = of_task(table["rows"])
    assert list(tasks) == ["forward", "forward and backward"]
    for group in tasks.values():
        assert [row["variant"] for row in group] == variants
        # Nothing is compared with itself alone, and float32 is not that good.
        assert group[0]["difference"] == 0 and all(r["difference"] < 1e-4 for r in group)
        assert all(row["difference"] > 0 for row in group[1:])
    assert result["sizes"] == {"images": 2, "positions": 30, "labels": 5, "channels": 16}
    check_consistent(table["rows"], rounds=5)
    check_turns(table["rows"])
    assert done.stdout.count("\n| ") == 1 + 2 * len(variants)  # the head, and a row a case
    chart = (folder / "a.svg").read_text()
    assert chart.startswith("<?xml") and all(variant in chart for variant in variants)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The squares, with a README to fill in."""
    folder = tmp_path_factory.mktemp("squares")
    path = folder / "squares.py"
    path.write_text(OWN.replace("OTHER", "np.square"))
    readme = folder / "README.md"
    readme.write_text(
        "before\n<!-- benchmark: squares -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    )
    files = ("--json", folder / "s.json", "--readme", readme)
    done = run(path, "--rounds", 5, *files)
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "s.json").read_text()), readme.read_text()


def test_time_and_memory_are_those_of_the_calls(measured):
    _, result, _ = measured
    (table,) = result["devices"]
    ours, product, other = table["rows"]
    # They sleep for so long; how much longer it takes depends on what else the machine does.
    assert min(ours["seconds"]) >= 0.02 and min(product["seconds"]) >= 0.2
    assert min(ours["seconds"]) < 0.2 and product["time_ratio"] > 1
    if sys.platform != "linux":
        assert ours["peak_bytes"] is None
        return
    assert ours["peak_bytes"] / 2**20 == pytest.approx(20, abs=2)
    assert product["peak_bytes"] / 2**20 == pytest.approx(60, abs=2)
    assert other["peak_bytes"] < 2**20


def test_rounds_are_taken_in_turns(measured):
    _, result, _ = measured
    rows = result["devices"][0]["rows"]
    check_consistent(rows, rounds=5)
    check_turns(rows)


def test_the_readme_gets_what_was_printed(measured):
    done, result, readme = measured
    begin, end = "before\n<!-- benchmark: squares -->\n", "<!-- end -->\nafter <!-- end -->\n"
    assert readme == begin + done.stdout + end
    # The table that people read says what the JSON says.
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line][2:]
    by_variant = {row["variant"]: row for row in result["devices"][0]["rows"]}
    ratio = float(next(row for row in rows if "product" in row)[-3])
    assert ratio == pytest.approx(by_variant["product"]["time_ratio"], rel=0.01)
    assert "count 1000" in done.stdout and "Medians of 5 rounds" in done.stdout


def test_sizes_can_be_replaced(squares, tmp_path):
    output = tmp_path / "s.json"
    assert run(squares(), "--rounds", 1, "--size", "count=7", "--json", output).returncode == 0
    assert json.loads(output.read_text())["sizes"] == {"count": 7}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("lambda x: x**2 * 1.001", r"output 'y' of other differs .* by 0.001 .* nothing was timed"),
        ("lambda x: x * np.nan", "by nan"),
        ("lambda x: (x**2)[1:]", r"other returns .*\(999,\).* nothing was timed"),
        ("lambda x: 1 / 0", "square, other: ZeroDivisionError: division by zero"),
        ("die", "square, other: its process ended with exit code 3"),
    ],
)
def test_a_variant_that_computes_something_else_is_refused(squares, tmp_path, other, message):
    output = tmp_path / "s.json"
    done = run(squares(other), "--json", output)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: square") and re.search(message, error)
    assert not done.stdout and not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "no comparison 'nothing'; known are .*spatial_attention"),
        (("nothing.py",), "no comparison 'nothing.py'"),
        ((SCRIPT.with_name("comparison.py"),), "defines no COMPARISON"),
        (("metrics", "--rounds", 0), "--rounds is 0"),
        (("metrics", "--size", "depth=3"), "no size 'depth'; known are images, labels"),
        (("metrics", "--size", "images=many"), "images=many must be NAME=N"),
        (("metrics", "--chart", "a.jpg"), "must end in .svg or .png"),
    ],
)
def test_wrong_requests(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert re.search(message, error)


@pytest.mark.parametrize("text", ["none\n", "<!-- benchmark: squares -->\n"])
def test_a_readme_without_the_place(squares, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    done = run(squares(), "--rounds", 1, "--readme", readme)
    assert done.returncode == 2 and not done.stdout  # before anything is measured
    assert "must have one line <!-- benchmark: squares -->" in done.stderr
    assert readme.read_text() == text
