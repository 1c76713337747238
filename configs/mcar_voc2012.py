"""MCAR on Pascal VOC 2012, train / val.

    python -m mlic_jax.main --config configs/mcar_voc2012.py:resnet101,448 \
        --workdir runs/voc2012 --config.init_from weights/resnet101

Variants and sources as in `mcar_voc2007.py`. The labels of the 2012 test split are not public: the
published models were trained on trainval and scored by the challenge's server. For that, set
`--config.data.splits.train trainval`.

Published mAP (trained on trainval, test split):  448 px
    mobilenet_v2                                   91.0
    resnet50                                       93.5
    resnet101                                      94.3
Measured here: not yet.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_mcar_recipe, default_config


def get_config(variant: str | None = None) -> ConfigDict:
    """The released recipe."""
    config = default_config()
    config.data.source = "tfds"
    config.data.tfds_name = "voc/2012"
    config.data.year = "2012"
    config.data.name = "voc2012"
    config.data.splits = {"train": "train", "val": "val", "test": "val"}
    return apply_mcar_recipe(config, variant)
