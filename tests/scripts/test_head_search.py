"""Heads tried on stored features: each is worth what a run with its options is."""

import json
import re
from pathlib import Path

import pytest

from mlic_jax.train.loop import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def search(load_script):
    return load_script(ROOT / "scripts" / "head_search.py")


@pytest.fixture
def recipe(config, tmp_path):
    """A recipe of a pooled model on a frozen backbone, and its configuration."""
    config.model.name, config.eval.every = "pooled", 2
    config.data.views, config.data.prepared_dir = 2, str(tmp_path / "prepared")
    config.freeze_statistics, config.optim.multipliers.features = True, 0.0
    config.features.store = True
    config.loss.name, config.loss.tau, config.loss.class_weights = "splc", 0.4, "inverse"
    text = (
        "import json\nfrom mlic_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        f"    config.update(json.loads({config.to_json()!r}))\n    return config\n"
    )
    (tmp_path / "recipe.py").write_text(text)
    return tmp_path / "recipe.py", config


def test_each_try_is_worth_what_a_run_is(search, recipe, tmp_path, capsys):
    file, config = recipe
    grid = ["--rates", 0.05, 1e38, 0.5, "--decays", 0.01, "--poolings", "avg"]
    assert search("--config", file, "--output", tmp_path / "out.json", *grid) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["set"], found["split"]) == ("tiny_scenes", "val")
    assert sorted(one["learning_rate"] for one in found["tries"][:2]) == [0.05, 0.5]
    assert (found["tries"][2]["learning_rate"], found["tries"][2]["mean_ap"]) == (1e38, None)
    assert found["tries"][0]["mean_ap"] >= found["tries"][1]["mean_ap"]
    folder = Path(config.data.prepared_dir) / "tiny_scenes.features"
    assert sorted(store.name.split("-")[0] for store in folder.iterdir()) == ["train", "val"]

    best = re.search(r"the best on val: (.*)", capsys.readouterr().out)[1]
    options = dict(re.findall(r"--config\.([\w.]+)=(\S+)", best))
    config.optim.learning_rate = float(options["optim.learning_rate"])
    config.optim.weight_decay = float(options["optim.weight_decay"])
    config.model.pooling = options["model.pooling"]
    train(config, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    last = [line["val/mAP"] for line in lines if "val/mAP" in line][-1]
    assert found["tries"][0]["mean_ap"] == pytest.approx(last, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.features.store=False"], "features.store is False"),
        (["--config.data.views=0"], "data.views is 0"),
        (["--poolings", "min"], "invalid choice: 'min'"),
        (["extra"], "unexpected argument 'extra'"),
        (["--rates", 0.1, "nan"], "optim.learning_rate is nan"),
        (["--decays", -1], "optim.weight_decay is -1"),
        (["--poolings", "max", "--config.model.name=csra"], "csra does not pool"),
        (["--output", "."], "is a folder"),
    ],
)
def test_what_cannot_be_searched_is_refused(search, recipe, capsys, arguments, said):
    assert search("--config", recipe[0], *arguments) == 2
    assert said in capsys.readouterr().err


def test_help_says_how_much_is_tried(search, capsys):
    assert search("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "by default 9." in said
    assert "default: 0 0.0001 0.001" in said
