"""MSRN on COCO 2014, train / val, as published (2021).

The word vectors come first, with 300-dimensional GloVe as in the published system:

    python scripts/build_word_vectors.py --classes coco --glove glove.6B.300d.txt \
        --output words.npz
    python -m mlic_jax.main --config configs/msrn_coco.py --workdir runs/msrn_coco \
        --config.data.word_vectors words.npz --config.init_from weights/resnet101

The label graph is counted on train. ImageNet weights come from
`python -m weight_conversion.convert`. Published folders are read as in `mcar_coco.py`.

Published mAP: 83.4 (ResNet-101 with global average pooling 77.3, ML-GCN 83.0).
Measured here: not yet.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_msrn_recipe, default_config, use_coco2014


def get_config(variant: str | None = None) -> ConfigDict:
    """The released recipe."""
    config = default_config()
    config.model.pool_ratio = 0.05  # 4 groups
    use_coco2014(config)
    return apply_msrn_recipe(config, variant)
