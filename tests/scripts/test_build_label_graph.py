"""The command line that counts, imports and lints label graphs."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.data import co_occurrence, records
from mlic_jax.data.scenes import CLASS_NAMES, Scenes

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_label_graph.py"


@pytest.fixture(scope="module")
def run(load_script):
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A prepared set of scenes, in which some labels are unknown."""
    source = Scenes(name="few_scenes", sizes={"train": 60, "val": 20})
    return records.prepare(source, tmp_path_factory.mktemp("prepared"), workers=1)


@pytest.mark.parametrize("policy", ["as_positive", "as_negative"])
def test_counting_a_prepared_set(run, scenes, policy, tmp_path, capsys):
    output = tmp_path / "graphs" / "scenes.npz"
    arguments = ("--prepared", scenes, "--split", "train", "--policy", policy, "--output", output)
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert f"few_scenes, train: 60 images; unknown labels {policy}" in printed
    assert "12 classes, " in printed and f"wrote {output}" in printed

    graph = co_occurrence.load(output)
    assert graph.class_names == CLASS_NAMES
    assert (graph.set_name, graph.split, graph.difficult_policy) == ("few_scenes", "train", policy)
    labels = records.open_split(scenes, "train").labels()
    assert (labels == 0).any()
    present = (labels >= 0) if policy == "as_positive" else (labels > 0)
    np.testing.assert_array_equal(graph.class_counts, present.sum(axis=0))
    for i in range(12):
        for j in range(12):
            both = (present[:, i] & present[:, j]).sum() if i != j else 0
            assert graph.counts[i, j] == both

    assert run("--lint", output, "--prepared", scenes, "--split", "train") == 0
    assert "nothing is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "code"), [("voc", 0), ("coco", 0), ("nuswide", 1), ("apparel", 1)]
)
def test_published_graphs(run, name, code, shared, tmp_path, capsys):
    published = shared / "msrn_data" / f"{name}_adj.pkl"
    output = tmp_path / "graph.npz"
    assert run("--import", published, "--classes", name, "--output", output) == 0
    for path in (published, output):
        assert run("--lint", path, "--classes", name) == code
    printed = capsys.readouterr()
    assert ("class counts are the column sums" in printed.out) == (code == 1)
    assert printed.err.count("is faulty") == (2 if code else 0)
    graph, expected = co_occurrence.load(output), co_occurrence.load(published)
    np.testing.assert_array_equal(graph.counts, expected.counts)
    np.testing.assert_array_equal(graph.class_counts, expected.class_counts)
    assert (
        graph.class_names[:2]
        == {
            "voc": ("aeroplane", "bicycle"),
            "coco": ("airplane", "apple"),
            "nuswide": ("clouds", "sky"),
            "apparel": ("black", "blue"),
        }[name]
    )


def test_a_graph_in_another_order_is_found_out(run, scenes, tmp_path, capsys):
    split = records.open_split(scenes, "train")
    graph = co_occurrence.from_split(split, "as_positive").permute(range(11, -1, -1))
    graph.save(tmp_path / "graph.npz")
    assert run("--lint", tmp_path / "graph.npz") == 0
    assert run("--lint", tmp_path / "graph.npz", "--prepared", scenes, "--split", "train") == 1
    printed = capsys.readouterr()
    assert "class order does not fit the set: 12 of 12 differ" in printed.out
    assert printed.err.endswith("findings, printed above\n")


def test_isolated_classes_are_listed(run, tmp_path, capsys):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"adj": np.zeros((30, 30)), "nums": np.arange(30)}))
    assert run("--lint", path) == 0
    printed = capsys.readouterr().out
    assert "30 classes, 0 edges" in printed
    assert "30 classes without an edge: class 0, class 1," in printed
    assert "class 19 and 10 more\n" in printed
    assert "note: rows without edges" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--output is missing"),
        ("--output g.npz", "one of --prepared, --import and --lint is needed"),
        ("--output g.npz --import a --prepared b --split train", "and only one"),
        ("--lint a --import b", "exclude each other"),
        ("--lint a --output g.npz", "--lint writes nothing"),
        ("--lint nothing.npz", "nothing.npz cannot be read"),
        ("--prepared a --output g.npz", "--prepared and --split"),
        ("--lint a --split train", "--prepared and --split"),
        ("--prepared a --split train --output g.npz", "no prepared set at a"),
        ("--prepared a --split test --output g.npz", "test is no training split"),
        ("--prepared a --split val2014 --output g.npz", "val2014 is no training split"),
        ("--prepared a --split train --classes voc --output g.npz", "has its own"),
        ("--prepared a --split train --policy maybe --output g.npz", "maybe"),
        ("--import nothing.pkl --output g.npz", "nothing.pkl cannot be read"),
        ("--nonsense", "nonsense"),
    ],
)
def test_wrong_requests(run, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_fit(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("three.pkl").write_bytes(pickle.dumps({"adj": np.zeros((3, 3)), "nums": np.ones(3)}))
    assert run("--import", "three.pkl", "--classes", "voc", "--output", "g.npz") == 1
    assert capsys.readouterr().err == "error: three.pkl has 3 classes, and voc names 20\n"
    Path("code.pkl").write_bytes(pickle.dumps({"adj": print, "nums": np.ones(3)}))
    assert run("--import", "code.pkl", "--output", "g.npz") == 1
    assert "names builtins.print" in capsys.readouterr().err
    assert not Path("g.npz").exists()


def test_as_a_program(tmp_path):
    answer = subprocess.run(
        [sys.executable, SCRIPT, "--lint", "nothing"], cwd=tmp_path, capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert answer.stderr == "error: nothing cannot be read: No such file or directory\n"
