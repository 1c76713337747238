"""MCAR on Pascal VOC 2007, trainval / test, as published (TIP 2021).

    python -m mlic_jax.main --config configs/mcar_voc2007.py:resnet101,448 \
        --workdir runs/voc2007 --config.init_from weights/resnet101

Variants: backbone, size and pooling, in any order. ImageNet weights come from
`python -m weight_conversion.convert`. The devkit folder is read with `--config.data.source voc
--config.data.root FOLDER`; by default TensorFlow Datasets downloads the set (extra `tfds`).

Published mAP:       256 px  448 px
    mobilenet_v2      88.1    91.3
    resnet50          92.3    94.1
    resnet101         93.0    94.8
Measured here: not yet.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_mcar_recipe, default_config, use_voc2007


def get_config(variant: str | None = None) -> ConfigDict:
    """The released recipe."""
    config = default_config()
    use_voc2007(config)
    return apply_mcar_recipe(config, variant)
