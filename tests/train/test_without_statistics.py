"""A backbone without batch statistics goes through all that there is as the others do."""

import json

import jax
import numpy as np
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.models import create_model
from mlic_jax.models.backbones import convnext, vit
from mlic_jax.predict import Predictor
from mlic_jax.runtime.checkpoint import latest_checkpoint, load_weights, read_metadata
from mlic_jax.train.loop import train
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables, start_weights


@pytest.fixture
def config(make_config, monkeypatch):
    """A ConvNeXt of a block a stage; a ViT as small is called `vit_tiny_patch16`."""
    tiny = convnext.Size((1, 1, 1, 1), (4, 4, 4, 8), 2)
    monkeypatch.setitem(convnext.SIZES, "convnextv2_atto", tiny)
    tiny = vit.Size(4, 8, 2, 16, vit.VIT._replace(layer_scale=0.1, registers=2))
    monkeypatch.setitem(vit.SIZES, "vit_tiny_patch16", tiny)
    config = make_config()
    config.model.name = "pooled"
    config.model.backbone, config.model.width = "convnextv2_atto", 1.0
    return config


def curves(workdir):
    """The figures of all steps and validations, without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines
    ]


def test_a_run_is_saved_resumed_evaluated_and_used(config, tmp_path, asked_to_stop):
    """On eight devices, in parts, with blocks that are dropped and an average of all weights."""
    config.model.backbone, config.model.remat = "vit_tiny_patch16", "block"
    config.batch_size, config.accumulation, config.model.drop_path = 16, 2, 0.5
    config.optim.layer_decay, config.optim.ema = 0.5, 0.9
    config.freeze_statistics = True  # of which there are none
    train(config, tmp_path / "alone")

    with asked_to_stop():
        train(config, tmp_path / "broken", evaluate=False)
    assert latest_checkpoint(tmp_path / "broken").name == "3"
    train(config, tmp_path / "broken", evaluate=False)
    assert curves(tmp_path / "alone") == curves(tmp_path / "broken")
    last = [latest_checkpoint(tmp_path / run) for run in ("alone", "broken")]
    for weights in ("raw", "ema"):
        saved = [load_weights(path, weights)[0] for path in last]
        assert set(saved[0]) == {"params", "batch_stats"} and not saved[0]["batch_stats"]
        jax.tree.map(np.testing.assert_array_equal, *saved)

    assert (tmp_path / "alone" / "metrics_test.json").is_file()
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    scores = Predictor.from_checkpoint(tmp_path / "alone")(photo).scores
    assert len(scores) == 12 and all(0 < score < 1 for score in scores.values())
    config.init_from, config.seed = str(last[0]), 1
    fresh = initial_variables(create_model(config.model, 12), TrainOptions.of(config))
    names = read_metadata(last[0])["class_names"]
    started = start_weights(fresh, TrainOptions.of(config), names)
    jax.tree.map(np.testing.assert_array_equal, started, load_weights(last[0], "raw")[0])


def test_what_it_says_of_views_is_kept_as_of_others(config, tmp_path):
    config.data.views = 2
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.freeze_statistics, config.optim.multipliers.features = True, 0.0
    train(config, tmp_path / "plain", evaluate=False)
    config.features.store = True
    train(config, tmp_path / "stored", evaluate=False)
    plain, stored = (curves(tmp_path / run) for run in ("plain", "stored"))
    for values, others in zip(plain, stored, strict=True):
        for figure, value in values.items():
            np.testing.assert_allclose(others[figure], value, rtol=1e-4, err_msg=figure)
    config.model.drop_path = 0.1
    with pytest.raises(UsageError, match=r"model\.drop_path leaves out other blocks"):
        train(config, tmp_path / "dropped")
