"""Planted errors: which labels change, what is measured of them, and the table in a page."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mlic_jax.diagnose.doubtful import label_quality

ROOT = Path(__file__).resolve().parents[2]

# How ml_collections loads a recipe.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def script():
    """The module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import plant_errors

    yield plant_errors
    sys.path.remove(str(ROOT / "scripts"))


def random_labels(seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([-1, -1, -1, 0, 1], np.int8), (80, 6))


def test_a_share_of_the_present_and_as_many_absent_are_exchanged(script):
    labels = random_labels()
    planted = script.plant(labels, 0.2, seed=3)
    count = round(0.2 * np.count_nonzero(labels == 1))
    assert np.count_nonzero((labels == 1) & (planted == -1)) == count
    assert np.count_nonzero((labels == -1) & (planted == 1)) == count
    assert np.count_nonzero(labels != planted) == 2 * count
    assert np.array_equal(script.plant(labels, 0.2, seed=3), planted)
    assert not np.array_equal(script.plant(labels, 0.2, seed=4), planted)


def test_figures_are_those_of_scikit_learn(script):
    truth = random_labels()
    rng = np.random.default_rng(1)
    tries = []
    for seed in (1, 2):
        given = script.plant(truth, 0.1, seed)
        tries.append((given, np.clip(0.5 + 0.25 * truth + rng.normal(0, 0.2, truth.shape), 0, 1)))
        tries[-1][1][:, 5] = np.nan
    found = script.measure(truth, tries)
    for kind, side in (("missing", -1), ("wrong", 1)):
        roc, pr, top, chance = [], [], [], []
        for given, probabilities in tries:
            mask = (given == side) & (np.arange(6) < 5)
            error = (given != truth)[mask]
            doubt = 1 - label_quality(given, probabilities)[mask]
            # What is clipped to 0 or 1 is as doubtful as others that are.
            doubt = -np.argsort(np.argsort(-doubt, kind="stable"), kind="stable")
            roc.append(roc_auc_score(error, doubt))
            pr.append(average_precision_score(error, doubt))
            most = max(1, round(0.01 * len(error)))
            top.append(error[np.argsort(-doubt)[:most]].mean())
            chance.append(error.mean())
        for name, values in (("roc", roc), ("pr", pr), ("top", top)):
            value, low, high = found[kind][name]
            assert value == pytest.approx(np.mean(values), abs=1e-12), (kind, name)
            assert low <= value <= high
        assert found[kind]["chance"] == pytest.approx(np.mean(chance))
        assert 0 < found[kind]["precision"] <= 1 and 0 < found[kind]["recall"] <= 1


def test_a_table_in_a_page(script, make_config, tmp_path, capsys):
    config = make_config()
    config.data.prepared_dir = str(tmp_path / "prepared")
    (tmp_path / "recipe.py").write_text(
        "import json\nfrom mlic_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        f"    config.update(json.loads({config.to_json()!r}))\n    return config\n"
    )
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- planted errors -->\nold\n<!-- end -->\nafter\n")
    arguments = ["--sets", f"{tmp_path}/recipe.py", "--page", str(page), "--seeds", "0", "1"]
    assert script.main([*arguments, "--shares", "0.2"]) == 0
    text = page.read_text()
    rows = re.findall(r"^\| tiny_scenes \| 20% \| (missing|wrong) \|", text, re.MULTILINE)
    assert rows == ["missing", "wrong"]
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    (figures,) = json.loads((tmp_path / "page" / "planted.json").read_text())
    assert (figures["set"], figures["images"], figures["seeds"]) == ("tiny_scenes", 20, [0, 1])
    printed = capsys.readouterr().out
    for value in (figures["wrong"]["roc"], figures["photos"]["softmin"]):
        assert " ({1:.1f} to {2:.1f})".format(*(100 * x for x in value)) in printed
    assert script.main([*arguments, "--shares", "1.5"]) == 2
    assert "--shares 1.5: it must be between 0 and 1" in capsys.readouterr().err
