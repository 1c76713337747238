"""MSRN on Apparel, half of the images to train on and half to test, as published (2021).

The word vectors come first, with 300-dimensional GloVe as in the published system:

    python scripts/build_word_vectors.py --classes apparel --glove glove.6B.300d.txt \
        --output words.npz
    python -m mlic_jax.main --config configs/msrn_apparel.py --workdir runs/msrn_apparel \
        --config.data.word_vectors words.npz --config.init_from weights/resnet101 \
        --config.data.root FOLDER

FOLDER holds the folders `<colour>_<garment>/` of images. The split is drawn by
`data.split_seed`. ImageNet weights come from `python -m weight_conversion.convert`.

Published figures cannot be compared with: nobody said which half is which.
Measured here: not yet.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_msrn_recipe, default_config


def get_config(variant: str | None = None) -> ConfigDict:
    """The released recipe."""
    config = default_config()
    config.model.pool_ratio = 0.2  # 2 groups
    config.data.source = "apparel"
    config.data.name = "apparel"
    config.data.train_share = 0.5
    config.data.splits = {"train": "train", "val": "test", "test": "test"}
    return apply_msrn_recipe(config, variant)
