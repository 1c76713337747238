"""What keeping features takes of a configuration."""

from dataclasses import dataclass
from typing import Literal

from mlic_jax.options import Options


@dataclass(frozen=True)
class FeatureOptions(Options):
    """`config.features`, where every option is explained."""

    store: bool
    dtype: Literal["float32", "float16"]
