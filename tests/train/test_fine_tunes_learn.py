"""Backbones without batch statistics learn, with all that their fine-tunes are trained with."""

import json

import jax
import pytest

from mlic_jax.models.backbones import convnext, vit
from mlic_jax.train.loop import train


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "epochs"), [("vit_tiny_patch16", 6), ("convnextv2_atto", 16)])
def test_small_backbones_learn_scenes(make_config, tmp_path, monkeypatch, backbone, epochs):
    """In bfloat16, with layer decay and stochastic depth, to far more than chance."""
    monkeypatch.setitem(vit.SIZES, "vit_tiny_patch16", vit.Size(4, 64, 2, 16, vit.VIT))
    small = convnext.Size((1, 1, 1, 1), (32, 64, 128, 256), 2)
    monkeypatch.setitem(convnext.SIZES, "convnextv2_atto", small)
    config = make_config()
    config.epochs, config.batch_size = epochs, 16
    config.model.name, config.model.backbone, config.model.width = "pooled", backbone, 1.0
    config.model.dtype, config.model.drop_path = "bfloat16", 0.1
    config.data.name, config.data.scenes_sizes = "more_scenes", (1000, 16, 200)
    config.loss.label_policy = "ignore"
    config.optim.name, config.optim.learning_rate = "adamw", 2e-3
    config.optim.weight_decay, config.optim.layer_decay = 0.05, 0.9
    config.optim.schedule, config.optim.multipliers.features = "cosine", 1.0
    config.eval.batch_size = 40
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam takes a float to an integer power
        train(config, tmp_path)
    metrics = json.loads((tmp_path / "metrics_test.json").read_text())
    assert metrics["mAP"] > 2 * metrics["chance"]
