"""What sources, splits and batches are made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlic_jax.data.fitting import Fit
from mlic_jax.data.pipeline import Cache, TrainCrop
from mlic_jax.data.transforms import Interpolation
from mlic_jax.options import Options


@dataclass(frozen=True)
class DataOptions(Options):
    """`config.data`, where every option is explained."""

    source: str
    name: str
    prepared_dir: str
    root: str
    image_dir: str
    annotations: str
    class_order: str
    keep_unlabelled: bool
    crowds: str
    label_separator: str
    cell_separator: str
    image_column: str
    label_column: str
    sheet: str
    merge_classes: bool
    train_share: float
    val_share: float
    test_share: float
    split_seed: int
    year: str
    tfds_name: str
    hub_name: str
    word_vectors: str
    label_graph: str
    label_tree: str
    fill_parents: bool
    scenes_seed: int
    scenes_sizes: tuple[int, ...]
    keep_labels: float
    one_positive: bool
    dropped_labels: Literal["absent", "unknown"]
    labels_seed: int
    splits: Mapping[str, str]  # role -> the source's name of the split; "": there is none
    on_corrupt: Literal["fail", "skip"]
    upright: bool
    range: tuple[float, float] | tuple[()]
    cache: Cache
    cache_gib: float
    workers: int
    threads: int
    image_size: int
    interpolation: Interpolation
    center_crop: float
    train_crop: TrainCrop
    crop_scale: tuple[float, float]
    views: int
    views_seed: int

    @property
    def fit(self) -> Fit:
        """How photos become squares wherever they are not cropped at random."""
        return Fit(self.interpolation, self.center_crop)

    @property
    def train_fit(self) -> Fit:
        """How they do in training, of whose random crops the interpolation alone counts."""
        return self.fit if self.train_crop == "squash" else Fit(self.interpolation)
