"""Sets that lack a split: what is divided, from what, and that the rest is left alone."""

import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.data import records, sources
from mlic_jax.data.options import DataOptions
from mlic_jax.data.sources.divided import Divided
from mlic_jax.errors import UsageError


def ids(source, split):
    return [example.image_id for example in source.examples(split)]


def test_val_is_divided_from_train_and_never_from_test(toy_source):
    source = toy_source(train=20, test=6)
    divided = Divided(source, "train", {"val": 0.25}, 0)
    assert divided.splits == ("test", "train", "val")
    assert ids(divided, "test") == ids(source, "test")
    train, val = ids(divided, "train"), ids(divided, "val")
    assert (len(train), len(val)) == (15, 5)
    assert sorted(train + val) == sorted(ids(source, "train")) and not {*train} & {*val}
    order = ids(source, "train").index
    assert train == sorted(train, key=order) and val == sorted(val, key=order)
    assert ids(Divided(source, "train", {"val": 0.25}, 1), "val") != val
    assert "fair to rare labels: 0.25 for val; 0.75 stay train" in divided.notes[-1]


def test_examples_are_those_of_the_source(toy_source):
    source = toy_source(train=12)
    divided = Divided(source, "train", {"val": 0.3, "test": 0.3}, 0)
    before = {example.image_id: example for example in source.examples("train")}
    for split in divided.splits:
        for example in divided.examples(split):
            assert example is before[example.image_id]
    assert divided.examples("val")[-1].image_id == ids(divided, "val")[-1]


@pytest.mark.parametrize(
    "shares", [{"val": 0.5, "test": 0.5}, {"val": -0.1}, {"val": float("nan")}]
)
def test_shares_must_leave_something(toy_source, shares):
    with pytest.raises(UsageError, match="must be above 0, and all together below 1"):
        Divided(toy_source(train=10), "train", shares, 0)


def test_a_split_that_there_is_is_not_divided(toy_source):
    divided = Divided(toy_source(train=10, val=4), "train", {"val": 0.2}, 0)
    with pytest.raises(UsageError, match="has a split val of its own: none is divided"):
        divided.examples("val")


def test_it_is_prepared_again_with_other_shares_alone(toy_source, tmp_path):
    source = toy_source(train=20)
    folder = records.prepare(Divided(source, "train", {"val": 0.25}, 0), tmp_path)
    assert len(records.open_split(folder, "val")) == 5
    assert records.prepare(Divided(source, "train", {"val": 0.25}, 0), tmp_path) == folder
    with pytest.raises(UsageError, match="was prepared with divided="):
        records.prepare(Divided(source, "train", {"val": 0.5}, 0), tmp_path)


def table(folder, splits, **options):
    data = default_config().data
    data.update({"source": "csv", "name": "mine", "root": str(folder), "image_dir": ""})
    data.update({"annotations": "l.csv", **options})
    with data.unlocked():
        data.splits = splits
    return sources.create(DataOptions.of(data))


def test_a_table_without_splits_in_three(plant):
    photos = [f"{i}.jpg" for i in range(20)]
    text = "image,labels\n" + "".join(
        f"{p},{'cat' if i % 2 else 'dog'}\n" for i, p in enumerate(photos)
    )
    folder = plant({"l.csv": text}, photos)
    roles = {"train": "train", "val": "val", "test": "test"}
    shares = {"val_share": 0.2, "test_share": 0.3, "train_share": 1.0}
    source = table(folder, roles, **shares)
    assert source.annotation_files == [folder / "l.csv"]
    parts = {split: ids(source, split) for split in source.splits}
    assert {split: len(part) for split, part in parts.items()} == {"train": 10, "val": 4, "test": 6}
    assert sorted(name for part in parts.values() for name in part) == sorted(photos)
    for split in source.splits:  # fair to both classes
        labels = np.array([example.labels for example in source.examples(split)])
        np.testing.assert_array_equal((labels == 1).sum(axis=0), len(labels) / 2)
    # Merged classes are divided as they are merged.
    merged = table(folder, roles, **shares, merge_classes=True)
    assert {split: ids(merged, split) for split in merged.splits} == parts


def test_shares_of_splits_that_are_not_asked_for_do_not_count(plant):
    folder = plant(
        {"l.csv": "image,labels,split\n0.jpg,cat,train\n1.jpg,cat,test\n"}, ["0.jpg", "1.jpg"]
    )
    source = table(folder, {"train": "train", "test": "test"}, val_share=0.2)
    assert source.splits == ("test", "train") and "divided" not in source.description
