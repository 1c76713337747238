"""A matrix of heads and losses: what is chosen, what is never done again, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlic_jax import recipes
from mlic_jax.errors import Failure, UsageError
from mlic_jax.scores.files import Scores
from mlic_jax.train.loop import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix_modules():
    """The modules of the script."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from matrix import cells, page, results, runs

    yield {"cells": cells, "page": page, "results": results, "runs": runs}
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def recipe(make_config, tmp_path_factory):
    """A recipe of two epochs on a frozen backbone, whose features are stored."""
    folder = tmp_path_factory.mktemp("compare")
    config = make_config()
    config.data.views, config.data.prepared_dir = 2, str(folder / "prepared")
    config.freeze_statistics, config.optim.multipliers.features = True, 0.0
    config.features.store, config.eval.every, config.data.views_seed = True, 2, 0
    text = (
        "import json\nfrom mlic_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        f"    config.update(json.loads({config.to_json()!r}))\n    return config\n"
    )
    (folder / "recipe.py").write_text(text)
    return folder / "recipe.py"


def compare(recipe, out, *arguments):
    command = [sys.executable, ROOT / "scripts" / "compare.py", "--sets", recipe, "--out", out]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*map(str, command), *map(str, arguments)], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def refusal(load_script, matrix_modules, capsys):
    """(recipe, out, arguments) -> what is said of a wrong request; in this process, for speed."""
    script = load_script(ROOT / "scripts" / "compare.py")

    def run(recipe, out, *arguments):
        assert script("--sets", recipe, "--out", out, *arguments) == 2
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def matrix(recipe):
    """A matrix that was run: its folder, the arguments, what was printed."""
    out = recipe.parent / "matrix"
    arguments = [
        *("--heads", "ridge", "pooled", "csra:model.csra_heads=2"),
        *("--losses", "bce", "--seeds", "3", "4", "--rates", "0.02", "0.3", "1e38"),
        *("--baseline", "pooled, bce"),
    ]
    ended = compare(recipe, out, *arguments)
    assert ended.returncode == 0, ended.stderr
    return out, arguments, ended.stdout


def methods_of(out):
    (of_set,) = json.loads((out / "comparison.json").read_text())["sets"]
    return of_set


def test_each_rate_is_chosen_on_val_and_test_is_scored_once(matrix):
    out, _, said = matrix
    of_set = methods_of(out)
    csra = "csra (model.csra_heads=2)"
    assert sorted(of_set["methods"]) == sorted(["ridge", "pooled, bce", f"{csra}, bce"])
    assert (of_set["set"], of_set["split"], of_set["baseline"]) == (
        "tiny_scenes",
        "test",
        "pooled, bce",
    )
    for method, values in of_set["methods"].items():
        assert f"{method}: mAP {values['mAP']:.1f}" in said
        assert ("holm" in values) == (method != "pooled, bce")
        if method == "ridge":
            assert [cell["seed"] for cell in values["cells"]] == [3]
            continue
        first, second = values["cells"]
        tries = first["tries"]
        assert tries.pop("1e+38") is None  # it diverged
        assert first["rate"] == float(max(tries, key=tries.get))
        assert first["val_mAP"] == max(tries.values())
        assert (second["seed"], second["rate"], len(second["tries"])) == (4, first["rate"], 1)
        assert first["seconds"] > 0
    assert "localisation" not in of_set["methods"]["ridge"]  # it has no regions
    for method in (csra + ", bce", "pooled, bce"):
        of_method = of_set["methods"][method]
        for measure in ("pointing", "iou", "energy"):
            of_runs = [
                json.loads((Path(cell["folder"]) / "metrics_test.json").read_text())["localisation"]
                for cell in of_method["cells"]
            ]
            for who in ("model", "random", "central"):
                mean = sum(run[measure][who] for run in of_runs) / 2
                assert of_method["localisation"][measure][who] == pytest.approx(mean)
    scored = [path.parent for path in out.rglob("scores_test.npz")]
    assert len(scored) == 1 + 2 * 2
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 1  # ranks are of several sets
    assert f"{csra}, bce" in page


def test_a_cell_is_a_run_that_anyone_can_do_again(matrix, recipe, tmp_path):
    cell = methods_of(matrix[0])["methods"]["csra (model.csra_heads=2), bce"]["cells"][1]
    config = recipes.load_with(str(recipe), cell["arguments"])
    train(config, tmp_path / "run")
    runs = (tmp_path / "run", Path(cell["folder"]))
    again, scores = (Scores.load(folder / "scores_test.npz") for folder in runs)
    assert abs(again.logits - scores.logits).max() < 1e-4
    assert (config.model.name, config.model.csra_heads) == ("csra", 2)


def test_what_is_done_is_not_done_again(matrix, recipe, refusal):
    """Nor is what failed; a head more is added to it."""
    out, arguments, _ = matrix
    document = recipe.parent / "comparison.md"
    document.write_text("before\n<!-- comparison: matrix -->\nold\n<!-- end -->\nafter\n")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("outcome.json")}
    table = (out / "comparison.json").read_text()
    assert compare(recipe, out, *arguments, "--page", document).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("outcome.json")} == before
    assert (out / "comparison.json").read_text() == table
    values = json.loads(table)["sets"][0]["methods"]["ridge"]
    low, high = values["interval"]
    row = f"| ridge | {values['mAP']:.1f} ({low:.1f} to {high:.1f}), {values['difference']:+.1f}"
    assert row in document.read_text()
    assert "old" not in document.read_text()
    found = json.loads(table)["sets"][0]["methods"]["pooled, bce"]["localisation"]["pointing"]
    pointing = f"{found['model']:.1f} ({found['random']:.1f}, {found['central']:.1f})"
    assert f"| pooled, bce | {pointing} |" in document.read_text()
    assert f"<tr><td>pooled, bce</td><td>{pointing}</td>" in (out / "index.html").read_text()
    kept = (recipe.parent / "comparison" / "matrix.json").read_text()
    assert str(recipe.parent) not in kept
    assert json.loads(kept)["sets"][0]["methods"]["ridge"]["mAP"] == values["mAP"]
    other = recipe.with_name("other.py")  # the recipe, edited
    other.write_text(recipe.read_text().replace("    return", "    config.epochs = 1\n    return"))
    for of in ([recipe, out, *arguments, "--config.batch_size=16"], [other, out, *arguments]):
        said = refusal(*of)
        assert "is a run of other options: " in said
    assert "epochs 2 (now 1); give another --out" in said


def test_what_differs_in_its_protocol_is_not_compared(recipe, refusal, tmp_path):
    heads = ["--heads", "pooled", "pooled:eval.protocol=asl", "--rates", "0.3", "--seeds", "3"]
    said = refusal(recipe, tmp_path / "out", *heads)
    assert "pooled (eval.protocol=asl), bce differs in eval.protocol, 'asl' and" in said


def test_a_cell_that_fails_is_red_and_the_others_are_done(matrix, recipe):
    out, _, _ = matrix
    heads = ["mcar:model.local_size=33", "pooled"]
    ended = compare(recipe, out, "--heads", *heads, "--rates", "0.3", "--seeds", "3")
    assert ended.returncode == 1
    assert "1 of 2 cells failed" in ended.stderr
    methods = methods_of(out)["methods"]
    (cell,) = methods["mcar (model.local_size=33), bce"]["cells"]
    assert "local_size" in cell["error"]
    said = f"failed: tiny_scenes: mcar (model.local_size=33), bce, seed 3: {cell['error']}"
    assert said in ended.stdout
    assert f"failed: {cell['error'][:20]}" in (out / "index.html").read_text()
    assert methods["pooled, bce"]["mAP"] is not None
    failed = next(out.glob("cells/*/mcar*/seed3/rate0.3/outcome.json"))
    before = failed.stat().st_mtime_ns
    compare(recipe, out, "--heads", *heads, "--rates", "0.3", "--seeds", "3", "--retry")
    assert failed.stat().st_mtime_ns > before


def made_up_set(name, runs, baseline="a"):
    """What `results.of_set` gives of methods {name: {seed: mAP}}; None: that run failed."""
    methods = {}
    for method, of_seeds in runs.items():
        good = [value for value in of_seeds.values() if value is not None]
        cells = [{"seed": s, "error": "" if v is not None else "it"} for s, v in of_seeds.items()]
        methods[method] = {"mAP": sum(good) / len(good), "runs": good, "cells": cells}
    return {"set": name, "baseline": baseline, "methods": methods}


def test_ranks_are_of_seeds_that_all_methods_have(matrix_modules):
    one = made_up_set("one", {"ridge": {0: 50}, "a": {0: 40, 1: 60}, "b": {0: None, 1: 70}})
    runs = {"ridge": {0: 10}, "a": {0: 20, 1: 5}, "b": {0: 30, 1: 4}, "c": {0: 1}}
    two = made_up_set("two", runs)
    found = matrix_modules["results"].over_sets([one, two])
    # Blocks: seed 1 of the first set, seeds 0 and 1 of the second.
    assert found["blocks"] == 3
    ranks = {"ridge": (3 + 3 + 1) / 3, "a": (2 + 2 + 2) / 3, "b": (1 + 1 + 3) / 3}
    assert found["ranks"] == pytest.approx(ranks)
    assert found["wins_and_losses"] == {"ridge": [1, 2], "b": [2, 1]}
    assert found["left_out"] == ["c"]
    assert matrix_modules["results"].over_sets([one]) is None


def test_a_process_that_dies_fails_its_cell_alone(matrix_modules):
    with matrix_modules["runs"].Worker() as worker:
        with pytest.raises(Failure, match="was killed, perhaps for want of memory"):
            worker.do(os.abort)
        assert worker.do(abs, -3) == 3
        with pytest.raises(Failure, match="ZeroDivisionError: "):
            worker.do(divmod, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            worker.do(signal.default_int_handler, signal.SIGINT, None)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the processes in /proc")
def test_a_matrix_that_is_killed_goes_on_where_it_was(recipe, tmp_path):
    """Its process ends with it, so that no two train in one folder."""
    arguments = ["--heads", "pooled", "--losses", "bce", "focal", "--rates", "0.3", "0.1"]
    command = [sys.executable, ROOT / "scripts" / "compare.py", "--sets", recipe, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--out", tmp_path], env=environment)
    while not (first := list(tmp_path.rglob("outcome.json"))):
        assert process.poll() is None
        time.sleep(0.05)
    (worker,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if is_worker_of(process.pid, path)
    )
    process.kill()
    process.wait()
    while Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    before = first[0].stat().st_mtime_ns
    assert compare(recipe, tmp_path, *arguments).returncode == 0
    assert first[0].stat().st_mtime_ns == before
    assert len(list(tmp_path.rglob("outcome.json"))) == 4


def is_worker_of(parent, stat):
    """Whether a file of /proc is of a process that the parent spawned."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        command = stat.with_name("cmdline").read_bytes()
    except OSError:  # it has just ended
        return False
    return int(fields[1]) == parent and b"spawn_main" in command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heads", "poold"], "did you mean 'pooled'"),
        (["--heads", "pooled", "--losses", "ase"], "--losses is 'ase'; known are bce"),
        (["--heads", "pooled", "--losses", "asl:loss.clip=2"], "loss.clip is 2"),
        (["--heads", "pooled", "--recipes", "asll"], "did you mean 'asl'"),
        (["--heads", "pooled", "--labels", "0.4"], "0.4-absent"),
        (["--heads", "pooled:loss.clip"], "'loss.clip' is no option=value"),
        (["--heads", "pooled:seed=3"], "seed is for --rates and --seeds to say"),
        (["--heads", "pooled", "--baseline", "csra, bce"], "these are: pooled, bce"),
        (["--heads", "pooled", "--config.epocs=1"], "did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(recipe, refusal, tmp_path, arguments, said):
    assert said in refusal(recipe, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_method_says_what_it_is(matrix_modules):
    cells = matrix_modules["cells"]
    losses = ["bce", "asl:loss.clip=0,loss.gamma_absent=2"]
    made = cells.methods(["ridge", "pooled"], losses, ["all", "0.4-absent"], ["own"])
    assert [str(method) for method in made] == [
        "ridge",
        "pooled, bce",
        "pooled, asl (loss.clip=0, loss.gamma_absent=2)",
        "ridge, labels 0.4-absent",
        "pooled, bce, labels 0.4-absent",
        "pooled, asl (loss.clip=0, loss.gamma_absent=2), labels 0.4-absent",
    ]
    (plain, other) = cells.methods(["pooled"], ["bce"], ["all"], ["own", "own:optim.ema=0.9"])
    assert str(other) == "pooled, bce, recipe own (optim.ema=0.9)"
    folders = [cells.Cell("set", "", (), one, 0).folder(Path("x"), 0.1) for one in (plain, other)]
    assert folders[0] != folders[1]
    with pytest.raises(UsageError, match="one_positive-unknown"):
        cells.labels_arguments("one_positive")
