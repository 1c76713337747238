"""What training takes of a configuration: all but `calibration`."""

from dataclasses import dataclass

from mlic_jax.evaluate.run import MetricOptions
from mlic_jax.scores.options import EvalOptions, ScoreOptions
from mlic_jax.train.augment import AugmentOptions
from mlic_jax.train.losses import LossOptions
from mlic_jax.train.optim import OptimOptions


@dataclass(frozen=True)
class ValidateOptions(EvalOptions, MetricOptions):
    """`config.eval`, where every option is explained."""

    every: int


@dataclass(frozen=True)
class TrainOptions(ScoreOptions):
    """A configuration, where every option is explained."""

    seed: int
    recipe: str
    epochs: int
    batch_size: int
    accumulation: int
    log_every: int
    early_stopping: int
    checkpoint_every: int
    keep_checkpoints: int
    init_from: str
    init_prior: float
    freeze_statistics: bool
    augment: AugmentOptions
    loss: LossOptions
    optim: OptimOptions
    eval: ValidateOptions

    @property
    def views_seed(self) -> int:
        """What the views of photos are drawn from, where there is a number of them."""
        return self.data.views_seed if self.data.views and self.data.views_seed >= 0 else self.seed
