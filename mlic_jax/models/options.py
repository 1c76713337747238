"""What a model is made from."""

from dataclasses import dataclass
from typing import Any

from mlic_jax.options import Options


@dataclass(frozen=True)
class ModelOptions(Options):
    """`config.model`, where every option is explained."""

    name: str
    backbone: str
    width: float
    dtype: str
    precision: str
    bn_groups: int
    remat: str
    drop_path: float
    pooling: str
    top_n: int
    threshold: float
    localizer: str
    local_size: int
    region_grid: int
    pool_ratio: float
    head: str
    head_width: int
    csra_heads: int
    csra_residual: float


# What is meant by a section that does not say it: of an earlier version, or of another model.
UNSAID: dict[str, Any] = {
    "width": 1.0,
    "dtype": "float32",
    "precision": "auto",
    "bn_groups": 1,
    "remat": "none",
    "drop_path": 0.0,
    "pooling": "gwp",
    "top_n": 4,
    "threshold": 0.5,
    "localizer": "exact",
    "local_size": 0,
    "region_grid": 1,
    "pool_ratio": 0.05,
    "head": "dense",
    "head_width": 0,
    "csra_heads": 1,
    "csra_residual": 0.1,
}
