"""MSRN on Pascal VOC 2007, trainval / test, as published (2021).

The word vectors come first, with 300-dimensional GloVe as in the published system:

    python scripts/build_word_vectors.py --classes voc --glove glove.6B.300d.txt \
        --output words.npz
    python -m mlic_jax.main --config configs/msrn_voc2007.py --workdir runs/msrn_voc \
        --config.data.word_vectors words.npz --config.init_from weights/resnet101

The label graph is counted on trainval. ImageNet weights come from
`python -m weight_conversion.convert`. The devkit folder is read with `--config.data.source voc
--config.data.root FOLDER`; by default TensorFlow Datasets downloads the set (extra `tfds`).

Published mAP: 96.0, from the weights of MSRN on COCO: of those `init_from` takes all that does not
depend on the labels.
Measured here: not yet.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_msrn_recipe, default_config, use_voc2007


def get_config(variant: str | None = None) -> ConfigDict:
    """The released recipe."""
    config = default_config()
    config.model.pool_ratio = 0.2  # 4 groups
    use_voc2007(config)
    return apply_msrn_recipe(config, variant)
