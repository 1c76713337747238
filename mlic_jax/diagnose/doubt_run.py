"""`--mode doubt`: which labels of a set are in doubt, by the backbone of a run; and look-alikes.

Into `<workdir>/diagnosis`:

    doubtful.csv         photo, split, class, kind (missing, wrong), quality, rank
    doubtful_photos.csv  photo, split, quality, rank: all photos, by all of their labels
    look_alikes.csv      pairs of photos across splits or with different labels, see `alike.py`
    look_alikes/         a small picture of every pair
"""

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mlic_jax.data import sources
from mlic_jax.data.records import Split
from mlic_jax.diagnose import alike
from mlic_jax.diagnose.cross_fit import cross_fit, photo_ids
from mlic_jax.diagnose.doubtful import Doubt, doubtful_labels, label_quality, photo_quality
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.runtime.checkpoint import find_checkpoint, read_metadata
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.pooled import mean_features
from mlic_jax.scores.scoring import load_model

FOLDER, DOUBTS, PHOTOS = "diagnosis", "doubtful.csv", "doubtful_photos.csv"
MOST_NAMED = 5  # classes of the summary


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Splits of a set, one below the other: what is judged of N photos and C classes.

    Attributes:
        splits: S of them.
        split_of: [N], the number of the split of a photo.
        labels: int8 [N, C].
        probabilities: float64 [N, C], see `cross_fit`.
    """

    splits: Sequence[Split]
    split_of: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def photo_ids(self) -> list[str]:
        """[N], each of its split alone."""
        return [split.image_id(i) for split in self.splits for i in range(len(split))]


def doubt_run(
    config: ConfigDict,
    workdir: Path,
    checkpoint: Path | str | None = None,
    roles: Sequence[str] = ("train", "val", "test"),
) -> list[Doubt]:
    """Judges the labels of a set by probes on the backbone of a checkpoint, and looks for pairs.

    The checkpoint is by default the best of the run in `workdir`, into which all is written. Its
    head is not asked: it was trained on these labels, and may know the wrong ones by heart.

    Args:
        roles: of the splits, as `config.data.splits` has them; those without any label are left
            out.

    Returns:
        The doubtful labels of all these photos, one split after the other.

    Raises:
        UsageError: there is no checkpoint, it is of another model, or there is no such split.
        Failure: no label is known, or see `cross_fit`.
    """
    options, path = ScoreOptions.of(config), find_checkpoint(Path(checkpoint or workdir))
    splits = labelled_splits(sources.open_splits(options.data), roles)
    judged = judge(options, path, splits)
    doubts = doubtful_labels(judged.labels, judged.probabilities)
    folder = Path(workdir) / FOLDER
    write_doubts(judged, doubts, folder)
    pairs = alike.find_pairs(splits)
    alike.write_pairs(pairs, splits, folder)
    print(summary(judged, doubts))
    print(pairs_summary(pairs))
    if has_seen(read_metadata(path), config):
        print(
            f"the backbone of {path} was trained with labels of this set and may know errors by "
            "heart: one that was frozen finds more"
        )
    print(f"written: {folder / DOUBTS}, {folder / PHOTOS}, {folder / 'look_alikes.csv'}")
    return doubts


def labelled_splits(of_roles: Mapping[str, Split], roles: Sequence[str]) -> list[Split]:
    """The splits of some roles that have labels, each once.

    Raises:
        UsageError: there is no such role.
        Failure: there is no label.
    """
    by_name = {}
    for role in roles:
        if role not in of_roles:
            raise UsageError(f"--splits: there is no {role!r}; there are {', '.join(of_roles)}")
        if of_roles[role].labels().any():
            by_name[of_roles[role].split] = of_roles[role]
    if not by_name:
        name = next(iter(of_roles.values())).name
        raise Failure(f"no label of {name} {', '.join(roles)} is known: there is none to doubt")
    return list(by_name.values())


def judge(options: ScoreOptions, path: Path, splits: Sequence[Split]) -> Labelled:
    """The probabilities of all labels of some splits by the backbone of a checkpoint.

    Raises:
        UsageError, Failure: see `load_model`, `mean_features` and `cross_fit`.
    """
    model, variables, _ = load_model(options, path, splits[0])
    features = np.concatenate([mean_features(model, variables, of, options) for of in splits])
    labels = np.concatenate([split.labels() for split in splits])
    split_of = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    return Labelled(splits, split_of, labels, cross_fit(features, labels, photo_ids(splits)))


def has_seen(metadata: Mapping[str, Any], config: ConfigDict) -> bool:
    """Whether the backbone of a checkpoint was trained with labels of the configured set."""
    saved = metadata["config"]
    data = saved.get("data", {})  # a converted model names none
    if any(data.get(name) != config.data[name] for name in ("source", "name")):
        return False
    multipliers = saved["optim"]["multipliers"]
    return bool(multipliers.get("features", multipliers.get("rest")))


def write_doubts(judged: Labelled, doubts: Sequence[Doubt], folder: Path) -> None:
    """Writes the tables of labels and of photos, the most doubtful first."""
    names, ids = judged.splits[0].class_names, judged.photo_ids
    of_photo = [(ids[i], judged.splits[split].split) for i, split in enumerate(judged.split_of)]
    rows: list[tuple[Any, ...]] = [
        (*of_photo[one.photo], names[one.class_index], one.kind, f"{one.quality:.6f}", rank)
        for rank, one in enumerate(doubts, 1)
    ]
    _write(folder / DOUBTS, ("photo", "split", "class", "kind", "quality", "rank"), rows)
    quality = photo_quality(label_quality(judged.labels, judged.probabilities))
    order = [i for i in np.argsort(quality, kind="stable").tolist() if quality[i] == quality[i]]
    rows = [(*of_photo[i], f"{quality[i]:.6f}", rank) for rank, i in enumerate(order, 1)]
    _write(folder / PHOTOS, ("photo", "split", "quality", "rank"), rows)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([columns, *rows])
    write_text(path, table.getvalue())


def summary(judged: Labelled, doubts: Sequence[Doubt]) -> str:
    """What was found, in a few lines."""
    names, known = judged.splits[0].class_names, np.count_nonzero(judged.labels)
    splits = ", ".join(split.split for split in judged.splits)
    lines = [f"{len(doubts):,} of {known:,} labels of {judged.splits[0].name} {splits} in doubt:"]
    for kind, side, given in (("missing", -1, "absent"), ("wrong", 1, "present")):
        by_class = Counter(one.class_index for one in doubts if one.kind == kind)
        most = [f"{names[c]} {count}" for c, count in by_class.most_common(MOST_NAMED)]
        total = np.count_nonzero(judged.labels == side)
        lines.append(
            f"  {by_class.total():,} of {total:,} given as {given} are probably {kind}"
            + (f": most of {', '.join(most)}" if most else "")
        )
    unjudged = np.flatnonzero(np.isnan(judged.probabilities).all(axis=0)).tolist()
    if unjudged:
        lines.append(f"  not judged, of too few photos: {', '.join(names[c] for c in unjudged)}")
    return "\n".join(lines)


def pairs_summary(pairs: Sequence[alike.Pair]) -> str:
    """How many pairs look alike, in a line."""
    across = sum(pair.photo[0] != pair.other[0] for pair in pairs)
    differing = sum(bool(pair.differing) for pair in pairs)
    return f"{across:,} pairs that look alike across splits, {differing:,} with different labels"
