"""The curve of accuracy and speed, of a tiny run: what is measured, marked, drawn and refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.runtime.checkpoint import save_weights

ROOT = Path(__file__).resolve().parents[2]

# How ml_collections loads a recipe.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def curve(load_script):
    return load_script(ROOT / "scripts" / "adaptive_curve.py")


@pytest.fixture(scope="module")
def run_options(make_config, fresh_run, tmp_path_factory):
    """The options that name a run of no step, and its folder."""
    config = make_config()
    folder = tmp_path_factory.mktemp("run")
    save_weights(folder / "weights", *fresh_run(config))
    return ["--workdir", folder / "weights"], folder


def test_the_curve(curve, run_options, capsys):
    options, folder = run_options
    grid = ["--bounds", 0.5, "--local-sizes", 32, "--top-n", 1, "--images", 9, "--rounds", 3]
    files = ["--json", folder / "curve.json", "--picture", folder / "curve.svg"]
    assert curve(*options, *grid, *files, "--config.eval.batch_size=2") == 0
    result = json.loads((folder / "curve.json").read_text())
    assert (result["set"], result["split"], result["images"]) == ("tiny_scenes", "test", 9)
    assert result["batch_size"] == 2
    points = result["points"]
    settings = [(p["top_n"], p["local_size"], p["local_bound"]) for p in points]
    assert settings == [(2, 64, 0), (0, 0, 0), (1, 32, 0.5)]
    assert [p["plain"] for p in points] == [True, False, False]
    plain, alone, adaptive = (p["regions_per_image"] for p in points)
    assert (plain, alone) == (2, 0) and adaptive <= 1 and (9 * adaptive) % 1 == 0
    for p in points:
        assert len(p["seconds"]) == 3 and 0 <= p["mAP"] <= 100
        assert p["images_per_second"] == pytest.approx(9 / sorted(p["seconds"])[1])
        better = [
            q
            for q in points
            if q["mAP"] >= p["mAP"] and q["images_per_second"] > p["images_per_second"]
        ]
        assert p["on_front"] == (not better)

    printed = capsys.readouterr().out
    starred = re.findall(r"^\* (.*?)  ", printed, re.MULTILINE)
    assert len(starred) == sum(p["on_front"] for p in points)
    assert "top 2, 64 px, bound 0 (plain)" in printed and "top 1, 32 px, bound 0.5" in printed
    picture = (folder / "curve.svg").read_text()
    for text in ("Pareto front", "plain", "global stream alone", "0.5", "crops of 32 px"):
        assert f">{text}<" in picture


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--picture", "curve.gif"], "must end in .svg or .png"),
        (["--rounds", 0], "--rounds is 0"),
        (["--images", 0], "--images is 0"),
        (["--config.model.name=pooled"], "--config.model.name: the arrays of"),
        (["--checkpoint", "pooled"], "model.name is 'pooled'; only mcar looks twice"),
        (["--config", "nowhere.py"], "nowhere.py"),
        (["--config.model.colour=red"], "has no option 'model.colour'"),
        (["--local-sizes", 40], "model.local_size is 40"),
        (["--bounds", 1.5], "eval.local_bound is 1.5"),
        (["--top-n", 99], "model.top_n is 99"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_requests(
    curve, run_options, make_config, capsys, tmp_path, monkeypatch, wrong, message
):
    monkeypatch.chdir(tmp_path)
    config = make_config()
    config.model.name = "pooled"
    save_weights(
        tmp_path / "pooled", {"params": {"a": np.ones(1)}}, {"config": json.loads(config.to_json())}
    )
    assert curve(*run_options[0], *wrong) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
