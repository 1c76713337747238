"""A matrix of heads and losses: what is chosen, what is never done again, what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlic_jax import recipes
from mlic_jax.data import sources
from mlic_jax.data.corrections import Answer, append, now
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import locked
from mlic_jax.scores.files import Scores
from mlic_jax.train.loop import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix_modules():
    """The modules of the script."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import compare
    from matrix import cells, data, page, results, runs

    modules = {"cells": cells, "data": data, "page": page, "results": results, "runs": runs}
    yield modules | {"compare": compare}
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


@pytest.fixture
def copied(matrix, tmp_path):
    """A copy of the matrix to tamper with."""
    return Path(shutil.copytree(matrix[0], tmp_path / "matrix"))


def test_a_cell_that_fails_is_red_and_the_others_are_done(copied, recipe):
    out = copied
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


def plan_of(modules, recipe, out, arguments):
    """The plan of the command with these arguments."""
    cells, compare = modules["cells"], modules["compare"]
    heads = arguments[1:4]
    made = cells.methods(heads, ["bce"], ["all"], ["own"])
    all_cells = compare.matrix({str(recipe): "tiny_scenes"}, (), made, [3, 4])
    digests = modules["data"].Digests()
    data = {cell: digests(cell.config()) for cell in all_cells}
    return compare.Plan(all_cells, [0.02, 0.3, 1e38], out, data, False)


def test_what_is_stopped_leaves_the_results_of_all_that_ended(
    matrix, matrix_modules, recipe, copied, monkeypatch, capsys
):
    def stopped(*_):
        raise KeyboardInterrupt
        yield

    before = methods_of(copied)
    script = matrix_modules["compare"]
    monkeypatch.setattr(script, "run_all", stopped)
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    plan = plan_of(matrix_modules, recipe, copied, matrix[1])
    with pytest.raises(KeyboardInterrupt):
        script.do_all(plan, 0, "pooled, bce")
    after = methods_of(copied)
    worth = [
        {name: of["mAP"] for name, of in found["methods"].items()} for found in (before, after)
    ]
    assert worth[0] == worth[1] and len(worth[0]) == 3


def test_what_is_done_of_other_data_is_refused(matrix, recipe, refusal, copied):
    path = next(copied.glob("cells/*/pooled*/seed3/rate0.3/outcome.json"))
    kept = json.loads(path.read_text())
    assert set(kept["data"]) == {"train", "val", "test"}
    for said in ("val", "init_from"):
        path.write_text(json.dumps(kept | {"data": kept["data"] | {said: "other"}}))
        told = refusal(recipe, copied, *matrix[1])
        assert f"is a run of other data: {said} changed since; give another --out" in told
    del kept["data"]  # as an earlier version kept it
    path.write_text(json.dumps(kept))
    assert "other options" in refusal(recipe, copied, *matrix[1], "--config.eval.every=1")


def test_digests_tell_of_labels_and_of_files(make_config, matrix_modules, tmp_path):
    config = make_config()
    config.data.corrections = str(tmp_path / "corrections.csv")
    config.init_from = str(tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "array").write_text("1")

    def digests():
        return matrix_modules["data"].Digests()(config)

    before = digests()
    assert set(before) == {"train", "val", "test", "init_from"} and digests() == before
    train = sources.open_splits(DataOptions.of(config.data))["train"]
    answer = [train.image_id(0), train.split, train.class_names[0], "unknown", "anna", now()]
    append(config.data.corrections, [Answer(*answer)])
    (tmp_path / "weights" / "array").write_text("2")
    assert [name for name in before if digests()[name] != before[name]] == ["train", "init_from"]


def test_one_command_at_a_time_and_a_begun_run_is_of_its_options(matrix, recipe, refusal, copied):
    with locked(copied):
        assert f"another process is writing to {copied}" in refusal(recipe, copied, *matrix[1])
    for path in copied.rglob("outcome.json"):
        path.unlink()  # as if it had been killed
    told = refusal(recipe, copied, *matrix[1], "--config.epochs=7")
    assert "is a run of other options: epochs 2 (now 7)" in told
    assert not list(copied.rglob("outcome.json"))


def test_what_was_killed_or_cannot_be_read_is_told_and_done_again(
    matrix, matrix_modules, recipe, copied
):
    killed = matrix_modules["runs"].KILLED
    path = next(copied.glob("cells/*/pooled*/seed3/rate0.02/outcome.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean_ap": None, "error": killed}))
    (scores,) = copied.glob("cells/*/csra*/seed4/rate*/scores_test.npz")
    scores.write_bytes(scores.read_bytes()[:100])
    ended = compare(recipe, copied, *matrix[1])
    assert ended.returncode == 1 and "2 of 5 cells failed" in ended.stderr
    assert f"pooled, bce, seed 3, rate 0.02: {killed}" in ended.stdout
    assert f"rate 0.02: failed: {killed}" in (copied / "index.html").read_text()
    assert "of 1 of 2 runs" in ended.stdout
    before = path.stat().st_mtime_ns
    ended = compare(recipe, copied, *matrix[1], "--retry")
    assert ended.returncode == 0, ended.stderr
    assert path.stat().st_mtime_ns > before
    of = methods_of(copied)["methods"]
    assert of["pooled, bce"]["mAP"] == methods_of(matrix[0])["methods"]["pooled, bce"]["mAP"]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"mean_ap": 1.0}', "NaN", "high", "config null"]
)
def test_an_outcome_that_is_none_is_told(matrix, matrix_modules, tmp_path, content):
    sound = next(matrix[0].rglob("outcome.json"))
    tampered = {
        "NaN": {"mean_ap": float("nan")},
        "high": {"mean_ap": "high"},
        "config null": {"config": None},
    }
    if content in tampered:
        content = json.dumps(json.loads(sound.read_text()) | tampered[content])
    path = tmp_path / "outcome.json"
    path.write_text(content)
    with pytest.raises(Failure, match=r"outcome\.json is no outcome .* remove it to run it again"):
        matrix_modules["runs"].Outcome.load(path)


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
    one["methods"]["c"] = {"mAP": 9.0, "runs": [9.0], "cells": [{"seed": 0, "error": ""}]}
    # Of the one block that all have: an only run is no run of the other seeds.
    assert matrix_modules["results"].over_sets([one, two]) is None
    assert matrix_modules["results"].over_sets([one]) is None


def test_a_process_that_dies_fails_its_cell_alone(matrix_modules):
    with matrix_modules["runs"].Worker() as worker:
        with pytest.raises(Failure, match="was killed, perhaps for want of memory"):
            worker.do(os.abort)
        assert worker.do(abs, -3) == 3
        with pytest.raises(Failure, match="ZeroDivisionError: "):
            worker.do(divmod, 1, 0)
        os.kill(worker._process.pid, signal.SIGKILL)  # while it waits
        worker._process.join()
        assert worker.do(abs, -3) == 3
        with pytest.raises(matrix_modules["runs"].Stopped, match="No space left"):
            worker.do(Path("/dev/full").write_text, "more than there is")
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
        (["--heads", "pooled:seed=3"], "seed is for --seeds to say"),
        (["--heads", "pooled:loss.name=asl"], "loss.name is for --losses to say"),
        (["--heads", "pooled", "--losses", "bce:model.name=msrn"], "is for --heads to say"),
        (["--heads", "pooled", "--recipes", "asl:recipe=q2l"], "recipe is for --recipes to say"),
        (["--heads", "pooled", "--config.model.name=csra"], "model.name is for --heads to say"),
        (["--heads", "pooled", "--seeds", "3", "--config.seed=4"], "seed is for --seeds to say"),
        (
            [*("--heads", "pooled", "--recipes", "asl"), "--config.recipe=q2l"],
            "--config.recipe is for --recipes to say",
        ),
        (["--heads", "pooled", "--labels", "1.5.2-absent"], "--labels 1.5.2-absent: it is all"),
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
        cells.labels_name("one_positive")
    assert cells.labels_name("0.1234567-absent") == "0.1234567-absent"
    names = ["0.40-absent", ".4-absent", "1.0-unknown", "one_positive-absent"]
    assert [cells.labels_name(name) for name in names] == [
        *("0.4-absent", "0.4-absent", "all", "one_positive-absent")
    ]
