"""MCAR fine-tuned on your own photos, a few hundred of them or more, in COCO's format.

    python -m mlic_jax.main --config configs/mcar_custom.py:mobilenet_v2,256 --workdir runs/mine \
        --config.data.name mine --config.data.root FOLDER --config.init_from weights/mobilenet_v2

FOLDER holds the images in `train/` and `val/` and `instances_train.json`, `instances_val.json`; see
`data.image_dir` and `data.annotations` in `mlic_jax/config.py` for another layout. Validation and
final evaluation both use `val` unless `--config.data.splits.test` names another split.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_variant, default_config


def get_config(variant: str | None = None) -> ConfigDict:
    """A short schedule for small sets; the published one would take thousands of steps."""
    config = default_config()
    config.epochs = 30
    config.init_prior = 0.03
    config.freeze_statistics = True
    config.model.backbone = "mobilenet_v2"
    config.model.pooling = "avg"
    config.model.top_n = 2
    config.data.source = "coco"
    config.data.name = "custom"
    config.data.image_size = 256
    config.data.train_crop = "random_resized_crop"
    config.data.splits = {"train": "train", "val": "val", "test": "val"}
    config.optim.learning_rate = 0.3
    config.optim.multipliers.features = 0.0  # frozen; for thousands of photos 0.01 or so
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 1.0
    config.eval.every = 5
    config.eval.min_positives = 3
    return apply_variant(config, variant)
