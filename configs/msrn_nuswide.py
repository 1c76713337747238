"""MSRN on NUS-WIDE, as published (2021).

The word vectors come first, with 300-dimensional GloVe as in the published system:

    python scripts/build_word_vectors.py --classes nuswide --glove glove.6B.300d.txt \
        --output words.npz
    python -m mlic_jax.main --config configs/msrn_nuswide.py --workdir runs/msrn_nuswide \
        --config.data.word_vectors words.npz --config.init_from weights/resnet101 \
        --config.data.root FOLDER

FOLDER holds the csv of the ASL authors, `filepath,label,split_name`, as `nus_wid_data.csv`, and the
images at its file paths. The label graph is counted on train; the published one is faulty, see
`scripts/build_label_graph.py --lint`. ImageNet weights come from
`python -m weight_conversion.convert`.

Published mAP: 61.5.
Measured here: not yet.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_msrn_recipe, default_config


def get_config(variant: str | None = None) -> ConfigDict:
    """The released recipe."""
    config = default_config()
    config.model.pool_ratio = 0.05  # 4 groups
    config.data.source = "nuswide"
    config.data.name = "nuswide"
    config.data.image_dir = "."
    config.data.annotations = "nus_wid_data.csv"
    config.data.splits = {"train": "train", "val": "val", "test": "val"}
    return apply_msrn_recipe(config, variant)
