"""Every recipe loads, is sound, takes variants, and tells its command."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config_checks import check_config
from mlic_jax.errors import UsageError
from mlic_jax.evaluate.run import MetricOptions, compute_metrics
from mlic_jax.models import create_model
from mlic_jax.scores.files import Scores
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables
from mlic_jax.train.step import TrainState, make_train_step

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    module = load(path)
    assert f"python -m mlic_jax.main --config configs/{path.name}" in module.__doc__
    config = module.get_config()
    check_config(config)
    assert set(config.data.splits) == {"train", "val", "test"}
    varied = module.get_config("mobilenet_v2,256,avg")
    assert (varied.model.backbone, varied.data.image_size, varied.model.pooling) == (
        "mobilenet_v2",
        256,
        "avg",
    )
    with pytest.raises(UsageError, match="variant 'resnet9'"):
        module.get_config("resnet9")
    with pytest.raises(AttributeError):
        config.epoch = 3  # locked: a misspelt option does not pass


@pytest.mark.slow
def test_the_demo_reaches_what_the_readme_promises(tmp_path):
    """On any processor and with a curve to look at: no figure of one machine, but the promise."""
    command = ("-m", "mlic_jax.main", "--config", "configs/mcar_scenes.py")
    folders = ("--workdir", tmp_path, "--config.data.prepared_dir", tmp_path / "prepared")
    answer = subprocess.run(
        [sys.executable, *command, *folders],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},  # one device
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics_test.json").read_text())
    assert metrics["mAP"] >= 90.0
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    curve = [line["val/mAP"] for line in lines if "val/mAP" in line]
    assert len(curve) >= 5 and curve[-1] > curve[0]


def test_the_one_variant_with_rates_of_its_own():
    recipe = load(next(path for path in RECIPES if path.stem == "mcar_voc2007"))
    usual, other = (
        recipe.get_config("mobilenet_v2,448,gwp"),
        recipe.get_config("mobilenet_v2,448,avg"),
    )
    assert (usual.optim.learning_rate, usual.optim.milestones) == (0.01, (30, 50))
    assert (other.optim.learning_rate, other.optim.milestones) == (0.1, (10, 30, 50))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("data.image_size", 250, "data.image_size is 250; it must be a positive multiple of 32"),
        ("optim.schedule", "linear", "optim.schedule is 'linear'; known are step, cosine"),
        ("optim.name", "lion", "optim.name is 'lion'"),
        ("loss.label_policy", "maybe", "loss.label_policy is 'maybe'"),
        ("eval.protocol", "coco", "eval.protocol is 'coco'; known are mcar, msrn"),
        ("eval.every", 0, "eval.every is 0; it must be positive"),
        ("data.source", "", "data.source and data.name are empty"),
        ("data.word_vectors", "gs://words", "data.word_vectors=gs://words is no path of this"),
        ("augment.jitter", 1.5, "augment.jitter is 1.5; it must be 0 to 1"),
        ("optim.clip_norm", -1.0, "optim.clip_norm is -1.0; it must be at least 0"),
        ("optim.clip_norm", float("nan"), "optim.clip_norm is nan; it must be at least 0"),
        ("optim.learning_rate", float("inf"), "optim.learning_rate is inf; it must be positive"),
        ("optim.warmup_epochs", -1.0, "optim.warmup_epochs is -1.0; it must be at least 0"),
        ("optim.warmup_epochs", 3.0, "optim.warmup_epochs is 3, of 2 epochs"),
        ("optim.scaling", "cubic", "optim.scaling is 'cubic'; known are none, linear, sqrt"),
        ("optim.reference_classes", -80, "optim.reference_classes is -80; it must be at least 0"),
        ("optim.floor", 0.1, "optim.floor is for optim.schedule cosine, not step"),
        ("loss.label_smoothing", 1.0, "loss.label_smoothing is 1.0; it must be at least 0 and"),
        ("seed", 2**31, "seed is 2147483648; it must be at least 0 and below 2^31"),
        ("optim.milestones", (2, -1), "milestones is (2, -1); it must be numbers, each above 0"),
        ("optim.milestones", ("a",), "milestones is ('a',); it must be numbers, each above 0"),
        ("optim.milestones", (2, 2), "each must be there once"),
        (
            "data.scenes_sizes",
            (6,),
            "data.scenes_sizes is (6,); it must be 3 numbers, each above 0",
        ),
        ("augment.std", (1.0, 0.0, 1.0), "it must be 3 numbers, each above 0"),
        ("augment.mean", (1.0,), "augment.mean is (1.0,); it must be 3 numbers, each finite"),
        (
            "data.crop_scale",
            (0.5, 0.25),
            "data.crop_scale is (0.5, 0.25); it must be (least, most)",
        ),
        ("optim.multipliers.features", -1.0, "optim.multipliers.features is -1.0; it must be at l"),
        ("eval.min_positives", -3, "eval.min_positives is -3; it must be at least 0"),
        ("optim.ema", 1.0, "optim.ema is 1.0; it must be at least 0 and below 1"),
        ("optim.layer_decay", 0.0, "optim.layer_decay is 0.0; it must be above 0, at most 1"),
        ("optim.schedule_share", 1.5, "optim.schedule_share is 1.5; it must be above 0, at most 1"),
        ("optim.schedule_share", 0.5, "for optim.schedule cosine and one_cycle, not step"),
        ("eval.weights", "ema", "eval.weights is ema, and optim.ema is 0"),
        ("eval.weights", "best", "eval.weights is 'best'; known are raw, ema"),
        ("early_stopping", -1, "early_stopping is -1; it must be at least 0"),
        ("augment.cutout", 1.5, "augment.cutout is 1.5; it must be 0 to 1"),
        ("data.center_crop", 1.2, "data.center_crop is 1.2; it must be 0 to 1"),
        ("data.interpolation", "cubic", "data.interpolation is 'cubic'; known are bilinear, bic"),
        ("augment.randaugment", -1, "augment.randaugment is -1; it must be at least 0"),
        ("augment.magnitude", 31.0, "augment.magnitude is 31.0; it must be 0 to 30"),
        ("augment.mixup", float("inf"), "augment.mixup is inf; it must be at least 0"),
        ("recipe", "asp", "recipe is 'asp'; known are '', released, asl, csra, q2l; did you mean"),
        ("init_prior", -0.1, "init_prior is -0.1; it must be at least 0 and below 1"),
    ],
)
def test_values_that_no_run_could_use(config, option, value, message):
    config.update_from_flattened_dict({option: value})
    with pytest.raises(UsageError) as error:
        check_config(config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optim.schedule": "one_cycle", "optim.warmup_epochs": 1.0},
            "which rises by itself: set --config.optim.warmup_epochs=0",
        ),
        (
            {"augment.mixup": 0.2, "loss.name": "splc"},
            "augment.mixup is not for loss.name splc, which goes by the labels",
        ),
        ({"augment.mixup": 0.2, "loss.name": "large_loss"}, "is not for loss.name large_loss"),
        (
            {"augment.mixup": 0.2, "features.store": True},
            "augment.mixup mixes other photos in every step, and features.store has",
        ),
    ],
)
def test_options_that_do_not_go_together(config, options, message):
    config.update_from_flattened_dict(options)
    with pytest.raises(UsageError) as error:
        check_config(config)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["mcar_custom", "msrn_custom"])
def test_recipes_for_own_data_ignore_what_is_unknown(name):
    """A `?` or a crowd moves neither a weight nor a metric."""
    config = load(ROOT / "configs" / f"{name}.py").get_config("64,avg")
    config.model.update(name="pooled", backbone="resnet10", width=0.125)  # which compiles sooner
    config.optim.name, config.optim.weight_decay, config.optim.warmup_epochs = "sgd", 0.0, 0.0
    rng = np.random.default_rng(0)
    labels = rng.choice(np.int8([-1, 1]), (8, 4))
    labels[:, 0], labels[2:6, 1] = 0, 0
    model = create_model(config.model, 4)
    options = TrainOptions.of(config)
    variables = initial_variables(model, options)
    schedule = create_schedule(options.optim, 3, 2)
    optimizer = create_optimizer(options.optim, variables["params"], schedule)
    before = jax.device_get(variables["params"]["convclass"])
    state = TrainState(jnp.int32(0), **variables, opt_state=optimizer.init(variables["params"]))
    batch = {
        "image": rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8),
        "labels": labels,
        "index": np.arange(8, dtype=np.int32),
        "mask": np.ones(8, bool),
    }
    step = make_train_step(model, optimizer, schedule, options)
    state, _ = step(state, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    after = jax.device_get(state.params["convclass"])
    moved = [np.any(after["bias"][c] != before["bias"][c]) for c in range(4)]
    assert moved == [False, True, True, True]
    np.testing.assert_array_equal(after["kernel"][..., 0], before["kernel"][..., 0])

    def metrics_of(logits):
        scores = Scores(
            logits=logits,
            labels=labels,
            image_ids=np.array(list("abcdefgh")),
            class_names=np.array(list("wxyz")),
            set_name="toy",
            split="val",
            image_size=64,
        )
        return compute_metrics(scores, MetricOptions.of(config.eval))

    logits = rng.normal(size=(8, 4)).astype(np.float32)
    wild = np.where(labels == 0, np.float32(9), logits)
    assert metrics_of(logits) == metrics_of(wild) != metrics_of(-logits)


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("dinov2_small", 450, "it must be a positive multiple of 14, .* such as 448 or 462"),
        ("vit_base_patch16", 8, "it must be a positive multiple of 16, .* such as 16 or 32"),
        ("vit_base_patch32", 336, "it must be a positive multiple of 32, .* such as 320 or 352"),
    ],
)
def test_sizes_that_patches_do_not_divide_are_told_with_those_that_they_do(
    config, backbone, size, message
):
    config.model.backbone, config.data.image_size = backbone, size
    with pytest.raises(UsageError, match=f"data.image_size is {size}; {message}"):
        check_config(config)
    config.data.image_size, config.eval.scales = 448, (size,)
    with pytest.raises(UsageError, match=rf"eval.scales has {size}; {message}"):
        check_config(config)
    config.eval.scales = ()
    check_config(config)


def test_sizes_that_no_memory_holds(config):
    config.data.image_size = 8192
    check_config(config)
    config.data.image_size = 1_000_000
    with pytest.raises(UsageError, match="size is 1000000; it must be at most 8192 pixels"):
        check_config(config)
    config.data.image_size, config.eval.scales = 448, (64_000,)
    with pytest.raises(UsageError, match="scales has 64000; it must be at most 8192 pixels"):
        check_config(config)


def test_options_that_nothing_would_use_are_refused(config):
    config.optim.nesterov = True
    check_config(config)
    config.optim.name = "adamw"
    with pytest.raises(UsageError, match=r"nesterov is for optim\.name sgd"):
        check_config(config)
