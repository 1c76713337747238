"""What scoring takes of a configuration."""

from dataclasses import dataclass

from mlic_jax.data.options import DataOptions
from mlic_jax.features.options import FeatureOptions
from mlic_jax.models.inputs import InputOptions
from mlic_jax.models.options import ModelOptions
from mlic_jax.options import Options


@dataclass(frozen=True)
class EvalOptions(Options):
    """Of `config.eval`, how a model looks at images."""

    batch_size: int
    weights: str
    top_n: int
    local_size: int
    local_bound: float
    global_scores: str
    flip: bool
    scales: tuple[int, ...]
    consistent: bool


@dataclass(frozen=True)
class ScoreOptions(Options):
    """Of a configuration, what decides the scores of a split, and how they are computed."""

    shard_fc1: bool
    model: ModelOptions
    data: DataOptions
    features: FeatureOptions
    augment: InputOptions
    eval: EvalOptions
