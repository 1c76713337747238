"""`--mode doubt` on a run of no step: what it writes, says, and refuses."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.diagnose import doubt_run as module
from mlic_jax.diagnose.doubtful import doubtful_labels
from mlic_jax.errors import Failure, UsageError
from mlic_jax.runtime.checkpoint import read_metadata, save_weights
from mlic_jax.scores.options import ScoreOptions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(make_config, fresh_run, tmp_path_factory):
    """The configuration, the checkpoint, and what the command printed with which folder."""
    config, folder = make_config(), tmp_path_factory.mktemp("doubt")
    config.data.prepared_dir = str(folder / "prepared")
    checkpoint = folder / "weights"
    save_weights(checkpoint, *fresh_run(config))
    arguments = ["--mode=doubt", f"--checkpoint={checkpoint}", f"--workdir={folder / 'run'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "mlic_jax.main", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    return config, checkpoint, folder / "run" / "diagnosis", ended.stdout


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_are_what_the_modules_say(run):
    config, checkpoint, folder, said = run
    options = ScoreOptions.of(config)
    splits = module.labelled_splits(sources.open_splits(options.data), ("train", "val", "test"))
    assert [split.split for split in splits] == ["train", "val", "test"]
    judged = module.judge(options, checkpoint, splits)
    expected = doubtful_labels(judged.labels, judged.probabilities)
    rows = rows_of(folder / "doubtful.csv")
    assert list(rows[0]) == ["photo", "split", "class", "kind", "quality", "rank"]
    assert len(rows) == len(expected) > 0
    by_name = {split.split: split for split in splits}
    for row, one, rank in zip(rows, expected, range(1, len(rows) + 1), strict=True):
        split = by_name[row["split"]]
        ids = [split.image_id(i) for i in range(len(split))]
        label = split.labels()[ids.index(row["photo"]), split.class_names.index(row["class"])]
        assert (row["kind"], int(row["rank"])) == ("wrong" if label > 0 else "missing", rank)
        assert float(row["quality"]) == pytest.approx(one.quality, abs=1e-5)
    photos = rows_of(folder / "doubtful_photos.csv")
    assert len({(row["photo"], row["split"]) for row in photos}) == 20 + 9 + 11
    assert np.all(np.diff([float(row["quality"]) for row in photos]) >= 0)
    known = np.count_nonzero(judged.labels)
    assert f"{len(rows)} of {known} labels of tiny_scenes train, val, test in doubt" in said
    assert "pairs that look alike across splits" in said
    assert f"the backbone of {checkpoint} was trained with labels of this set" in said


def test_features_are_computed_once_and_are_the_means_of_maps(run, monkeypatch):
    import jax
    import jax.numpy as jnp

    from mlic_jax.features.store import Store
    from mlic_jax.models.inputs import normalise
    from mlic_jax.scores.pooled import mean_features
    from mlic_jax.scores.scoring import load_model

    config, checkpoint, *_ = run
    options = ScoreOptions.of(config)
    split = sources.open_splits(DataOptions.of(config.data))["val"]
    model, variables, _ = load_model(options, checkpoint, split)

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(Store, "compute", fail)
    found = mean_features(model, variables, split, options)
    photo = options.data.fit.square(split.decode(split[4]), 64)
    image = normalise(jnp.asarray(photo)[None], options.augment)
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    maps = jax.jit(lambda w, x: model.apply(w, x, method="look"))(weights, image)["maps"]
    np.testing.assert_allclose(found[4], np.mean(maps[0], axis=(0, 1)), rtol=1e-3, atol=1e-4)


def test_which_backbones_have_seen_the_labels(run):
    config, checkpoint, *_ = run
    metadata = read_metadata(checkpoint)
    assert module.has_seen(metadata, config)
    frozen = config.copy_and_resolve_references()
    frozen.optim.multipliers.features = 0.0
    assert not module.has_seen({"config": frozen.to_dict()}, config)
    other = config.copy_and_resolve_references()
    other.data.name = "other"
    assert not module.has_seen(metadata, other)
    assert not module.has_seen({"config": {"model": {}}}, config)


def test_splits_and_sets_that_cannot_be_judged(run):
    opened = sources.open_splits(DataOptions.of(run[0].data))
    assert module.labelled_splits(opened, ["val"]) == [opened["val"]]
    same = opened | {"test": opened["val"]}  # as where there is no third split
    assert module.labelled_splits(same, ["val", "test"]) == [opened["val"]]
    with pytest.raises(
        UsageError, match="--splits: there is no 'vall'; there are test, train, val"
    ):
        module.labelled_splits(opened, ["vall"])
    unlabelled = {role: of.with_labels(0 * of.labels()) for role, of in opened.items()}
    assert module.labelled_splits(unlabelled | {"val": opened["val"]}, opened) == [opened["val"]]
    with pytest.raises(Failure, match="no label of tiny_scenes train, val is known: there is none"):
        module.labelled_splits(unlabelled, ["train", "val"])
