"""The benchmark, in real processes on tiny sizes: what it compares, when, and what it refuses."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "benchmark"
SCRIPT = FOLDER / "run.py"
COMPARISONS = sorted(path.stem for path in (FOLDER / "comparisons").glob("*.py"))

# Tasks that need no framework: ways to square. `DEFINITIONS` and `TASKS` differ from test to test.
OWN = """
import os, time
import numpy as np
from comparison import Case, Comparison, Task

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

def against(name, other, **options):
    ours = Case("ours", "host", way(lambda x: x**2))
    return Task(name, inputs, (ours, Case("other", "host", way(other))), **options)

COMPARISON = Comparison(
    title="Squares", sizes={"count": 1000}, small={"count": 10}, tasks=(TASKS,)
)
"""
SQUARES = """
    Task(
        "{count} squares",
        inputs,
        (
            Case("ours", "host", way(lambda x: x**2, 0.02, 20)),
            Case("product", "host", way(lambda x: x * x, 0.2, 60), time_target=2, peak_target=9),
            Case("other", "host", way(np.square), time_target=3),
        ),
    ),
    against("rates", np.square, sizes={"images": 100}, shows_rate=True, measures_memory=False),
    against("limit", lambda x: x[:1], tolerance=None, measures_memory=False),
    against("ends", die)
"""
# What goes wrong, and what is said of it.
WRONG = {
    "off": ("lambda x: x**2 * 1.001", r"output 'y' of other differs .* by 0.001 .* was timed"),
    "no number": ("lambda x: x * np.nan", "by nan"),
    "shape": ("lambda x: (x**2)[1:]", r"other returns .*\(999,\).* nothing was timed"),
    "raises": ("lambda x: 1 / 0", "ZeroDivisionError: division by zero"),
}
ENDS = "ends, other: its process ended with exit code 3"


def run(*arguments, script=SCRIPT):
    """The command in a process of its own, as a person runs it."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """`all`, of two comparisons: what was printed, the folder of files, and the page."""
    folder = tmp_path_factory.mktemp("benchmark")
    shutil.copytree(FOLDER, folder / "tool", ignore=shutil.ignore_patterns("comparisons", "__*"))
    comparisons = folder / "tool" / "comparisons"
    comparisons.mkdir()
    wrong = ", ".join(f"against({name!r}, {other})" for name, (other, _) in WRONG.items())
    (comparisons / "squares.py").write_text(OWN.replace("TASKS", SQUARES))
    (comparisons / "wrong.py").write_text(OWN.replace("TASKS", wrong))
    page = folder / "page.md"
    page.write_text(
        "before\n<!-- benchmark: squares -->\nold\n<!-- end -->\nafter <!-- end -->\n"
        "<!-- benchmark: wrong -->\nold\n<!-- end -->\n"
    )
    files = ("--out", folder / "docs", "--page", page)
    done = run("all", "--rounds", 5, *files, script=folder / "tool" / "run.py")
    return done, folder / "docs", page.read_text()


@pytest.fixture(scope="module")
def measured(everything):
    """The JSON of the comparison that went right but for a task."""
    _, folder, _ = everything
    return json.loads((folder / "squares.json").read_text())


def rows_of(measured, title):
    (device,) = measured["devices"]
    (task,) = [task for task in device["tasks"] if task["task"] == title]
    return task["rows"]


def test_time_and_memory_are_those_of_the_calls(measured):
    ours, product, other = rows_of(measured, "1000 squares")
    # They sleep for so long; how much longer it takes depends on what else the machine does.
    assert min(ours["seconds"]) >= 0.02 and min(product["seconds"]) >= 0.2
    assert min(ours["seconds"]) < 0.2 and product["time_ratio"] > 1
    if sys.platform != "linux":
        assert ours["peak_bytes"] is None
        return
    assert ours["peak_bytes"] / 2**20 == pytest.approx(20, abs=2)
    assert product["peak_bytes"] / 2**20 == pytest.approx(60, abs=2)
    assert other["peak_bytes"] < 2**20
    assert {row["peak_bytes"] for row in rows_of(measured, "rates")} == {None}


def test_medians_and_ratios(measured):
    for task in measured["devices"][0]["tasks"]:
        first = task["rows"][0]
        assert first["time_ratio"] == 1
        for row in task["rows"]:
            assert len(row["seconds"]) == len(row["started"]) == 5
            assert row["median_seconds"] == sorted(row["seconds"])[2]
            ratio = row["median_seconds"] / first["median_seconds"]
            assert row["time_ratio"] == pytest.approx(ratio)
            if row["peak_ratio"] is not None:
                assert row["peak_ratio"] * first["peak_bytes"] == pytest.approx(row["peak_bytes"])
    _, other = rows_of(measured, "rates")
    assert other["images_per_second"] * other["median_seconds"] == pytest.approx(100)


def test_rounds_are_taken_in_turns(measured):
    """A B C, A B C: each begins after the one before has ended."""
    rows = rows_of(measured, "1000 squares")
    rounds = zip(*(zip(r["started"], r["seconds"], strict=True) for r in rows), strict=True)
    calls = [call for one_round in rounds for call in one_round]
    for (start, seconds), (next_start, _) in pairwise(calls):
        assert start + seconds <= next_start


def test_targets_are_held_against_the_ratios(everything, measured):
    done, _, _ = everything
    _, product, other = rows_of(measured, "1000 squares")
    assert (product["time_target"], product["time_target_met"]) == (2, True)
    assert (product["peak_target"], other["peak_target_met"]) == (9, None)
    assert (other["time_target"], other["time_target_met"]) == (3, False)
    assert re.search(
        r"1000 squares: time of other is 0\.\d+ times ours, to be 3$", done.stderr, re.M
    )
    if sys.platform == "linux":
        assert product["peak_target_met"] is False
        assert "1 of 3 targets are met" in done.stderr


def test_a_limit_need_not_compute_the_same(measured):
    ours, limit = rows_of(measured, "limit")
    assert ours["difference"] is None and limit["difference"] is None
    assert limit["time_ratio"] > 0


def test_the_page_gets_what_was_printed(everything, measured):
    done, folder, page = everything
    chart = "\n![squares](docs/squares.svg)\n<!-- end -->\nafter <!-- end -->\n"
    assert page.startswith(f"before\n<!-- benchmark: squares -->\n{done.stdout.strip()}\n{chart}")
    # The table that people read says what the JSON says.
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line]
    cells = dict(zip(lines[0], next(line for line in lines if "1000 squares" in line), strict=True))
    ours, product, _ = rows_of(measured, "1000 squares")
    value, ratio = re.match(r"([\d.]+) \(([\d.]+)x; target 2 met\)", cells["product"]).groups()
    assert float(value) == pytest.approx(1000 * product["median_seconds"], rel=0.01)
    assert float(ratio) == pytest.approx(product["time_ratio"], rel=0.01)
    assert float(cells["ours"]) == pytest.approx(1000 * ours["median_seconds"], rel=0.01)
    assert "target 3 **missed**" in cells["other"]
    rates = dict(zip(lines[0], next(line for line in lines if "images/s" in line), strict=True))
    images = rows_of(measured, "rates")[0]["images_per_second"]
    assert float(rates["ours"]) == pytest.approx(images, rel=0.01)
    assert "count 1000" in done.stdout and "Medians of 5 rounds" in done.stdout
    drawn = (folder / "squares.svg").read_text()
    assert all(name in drawn for name in ("1000 squares", "product", "other", "rates"))


@pytest.mark.parametrize(
    "message", [*(f"{name}[:,].*{said}" for name, (_, said) in WRONG.items()), ENDS]
)
def test_what_fails_is_said_and_refused(everything, message):
    done, _, _ = everything
    assert done.returncode == 1
    assert re.search(f"^not measured: {message}", done.stderr, re.M)
    assert re.match("error: .*" + message, done.stderr.splitlines()[-1])


def test_what_fails_stops_nothing_else(everything, measured):
    done, folder, page = everything
    assert measured["failures"][0].startswith(ENDS)
    assert f"Not measured: {ENDS}" in done.stdout
    # Nothing was measured of the other comparison: what stood there stays.
    assert page.endswith("<!-- benchmark: wrong -->\nold\n<!-- end -->\n")
    assert sorted(path.name for path in folder.iterdir()) == ["squares.json", "squares.svg"]
    progress = re.findall(r"^\[(\d)/8, \d+:\d\d\] Squares: ", done.stderr, re.M)
    assert progress == list("12345678")


def test_sizes_tasks_and_time_can_be_chosen(tmp_path):
    path = tmp_path / "squares.py"
    path.write_text(OWN.replace("TASKS", SQUARES))
    choice = ("--only", "squares", "7", "--size", "count=7", "--seconds", 0.01)
    done = run(path, "--rounds", 2, *choice, "--out", tmp_path)
    assert done.returncode == 0 and "7 squares (1 round)" in done.stdout
    measured = json.loads((tmp_path / "squares.json").read_text())
    assert measured["sizes"] == {"count": 7}
    rows = rows_of(measured, "7 squares")
    assert [len(row["seconds"]) for row in rows] == [1, 1, 1]
    # The targets are of the sizes as they stand.
    assert {row["time_target"] for row in rows} == {None} and "target" not in done.stderr


def test_a_part_measured_again_leaves_the_others(tmp_path):
    path, file = tmp_path / "squares.py", tmp_path / "squares.json"
    path.write_text(OWN.replace("TASKS", SQUARES))

    def times(*options):
        done = run(path, "--out", tmp_path, *options)
        assert done.returncode == 0
        tasks = json.loads(file.read_text())["devices"][0]["tasks"]
        assert all(f"| {task['task']} |" in done.stdout for task in tasks)
        return {task["task"]: [row["seconds"] for row in task["rows"]] for task in tasks}

    first = times("--rounds", 1, "--only", "rates")
    both = times("--rounds", 1, "--only", "squares")
    assert list(both) == ["1000 squares", "rates"] and both["rates"] == first["rates"]
    again = times("--rounds", 1, "--only", "rates")
    assert again["1000 squares"] == both["1000 squares"] and again["rates"] != both["rates"]
    assert list(times("--rounds", 2, "--only", "limit")) == ["limit"]  # not to be mixed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "no comparison 'nothing'; known are all, .*spatial_attention"),
        (("nothing.py",), "no comparison 'nothing.py'"),
        ((FOLDER / "comparison.py",), "defines no COMPARISON"),
        (("metrics", "--rounds", 0), "--rounds is 0"),
        (("metrics", "--size", "depth=3"), "no size 'depth'; known are images, labels"),
        (("metrics", "--size", "images=many"), "images=many must be NAME=N"),
        (("metrics", "--only", "split", "depth"), "no task has split and depth .* metrics of a"),
        (("all", "--only", "forward"), "--only are for one comparison"),
    ],
)
def test_wrong_requests(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert re.search(message, error)


@pytest.mark.parametrize("text", ["none\n", "<!-- benchmark: metrics -->\n"])
def test_a_page_without_the_place(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    done = run("metrics", "--page", page)
    assert done.returncode == 2 and not done.stdout  # before anything is measured
    assert "must have one line <!-- benchmark: metrics -->" in done.stderr
    assert page.read_text() == text


def test_the_page_has_a_place_for_every_comparison():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in COMPARISONS:
        assert page.count(f"<!-- benchmark: {name} -->\n") == 1


@pytest.fixture(scope="module")
def torch_tuned():
    """The module of the tuned references."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location("torch_tuned", FOLDER / "torch_tuned.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_tuned_mcar_is_the_reference(torch_tuned, backbone):
    import torch

    from weight_conversion.torch_reference.mcar import MCAR

    options = {"top_n": 2, "width": 0.25}
    reference = MCAR(backbone, 5, **options).eval()
    for name, tensor in reference.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    tuned = torch_tuned.TunedMCAR(backbone, 5, **options).eval()
    tuned.load_state_dict(reference.state_dict())
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected, got = reference(images), tuned(images)
        assert torch.equal(got["boxes"], expected["boxes"])
        assert torch.equal(got["box_classes"].int(), expected["box_classes"])
        torch.testing.assert_close(got["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
        maps = reference.features(images)[-1]
        folded = torch_tuned.fold_batch_norm(tuned)
        assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        torch.testing.assert_close(folded.features(images)[-1], maps, rtol=1e-3, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("backbone", ["swin_tiny", "swinv2_tiny", "vit_tiny_patch16"])
def test_tuned_transformers_are_the_reference(torch_tuned, backbone):
    """At a size of which windows do not divide the maps."""
    import torch

    from weight_conversion.torch_reference.mcar import MCAR

    reference = MCAR(backbone, 5, "gwp", width=0.34).eval()
    for name, tensor in reference.named_parameters():
        if "position" in name or "pos_embed" in name:
            torch.nn.init.normal_(tensor)
    plain = torch_tuned.Pooled(backbone, 5, "gwp", width=0.34).eval()
    plain.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 144, 144)
    with torch.no_grad():
        expected = reference.classify(reference.features(images)[-1])
        for module in (plain, torch_tuned.fuse_attention(plain)):
            got = module(images)["logits"]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "tresnet_m", "resnet50d"])
def test_every_batch_normalisation_is_folded(torch_tuned, backbone):
    import torch

    module = torch_tuned.Pooled(backbone, 5, "gwp", width=0.25).eval()
    for name, tensor in (*module.named_buffers(), *module.named_parameters()):
        if "running" in name or ("bn" in name and name.endswith("weight")):
            tensor.data.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = module(images)["logits"]
        names = {type(part).__name__ for part in torch_tuned.fold_batch_norm(module).modules()}
        assert not names & {"BatchNorm2d", "InPlaceABN"}
        torch.testing.assert_close(module(images)["logits"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.torch
def test_attention_by_label_is_the_reference(torch_tuned):
    import torch

    from weight_conversion.torch_reference.msrn import spatial_attention

    arguments = torch.randn(2, 7, 3, 4), torch.randn(5, 7)
    expected = spatial_attention(*arguments)
    torch.testing.assert_close(torch_tuned.attend_by_label(*arguments), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "only", "tasks"),
    [
        ("spatial_attention", (), 2),
        ("localise_crop", (), 1),
        ("metrics", (), 1),
        ("pipeline", (), 2),
        ("mcar", ("MobileNetV2", "inference"), 1),
        ("msrn", ("inference",), 1),
        ("backbones", ("swin",), 2),
        ("backbones", ("vit", "inference"), 1),
        ("limits", ("pipeline",), 2),
        ("bundles", ("ResNet", "MCAR", "1 photo"), 1),
    ],
)
def test_all_variants_compute_the_same(tmp_path, name, only, tasks):
    """Of the comparisons that there are, at their small sizes."""
    words = ("--only", *only) if only else ()
    done = run(name, "--small", "--rounds", 1, "--out", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / f"{name}.json").read_text())
    (device,) = measured["devices"]
    assert len(device["tasks"]) == tasks
    for task in device["tasks"]:
        variants = [row["variant"] for row in task["rows"]]
        assert variants[0] == "ours" and len(set(variants)) == len(variants)
        if "PyTorch" not in measured["missing"]:
            assert len(variants) > 1
