"""MCAR on COCO 2014, train / val, as published (TIP 2021).

    python -m mlic_jax.main --config configs/mcar_coco.py:resnet101,448 \
        --workdir runs/coco --config.init_from weights/resnet101

Variants: backbone, size and pooling, in any order. ImageNet weights come from
`python -m weight_conversion.convert`. The published folders (images in `train2014/` and `val2014/`,
annotations in `annotations/`) are read with `--config.data.source coco --config.data.root FOLDER`;
by default TensorFlow Datasets downloads the set (extra `tfds`). Classes are in alphabetical order
and images without any label are left out, as in the published system.

Published mAP:       256 px  448 px
    mobilenet_v2      69.8    75.0
    resnet50          78.0    82.1
    resnet101         79.4    83.8
Measured here: not yet.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_mcar_recipe, default_config, use_coco2014


def get_config(variant: str | None = None) -> ConfigDict:
    """The released recipe."""
    config = default_config()
    use_coco2014(config)
    return apply_mcar_recipe(config, variant)
