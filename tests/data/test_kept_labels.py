"""Fewer labels to train on: how many there are, which, and that nothing else knows fewer."""

import pickle

import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.config_checks import check_config
from mlic_jax.data import sources
from mlic_jax.data.kept_labels import keeps_all, kept_of, said_of
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import UsageError

LABELS = np.random.default_rng(0).choice([-1, 0, 1], (2000, 10), p=[0.6, 0.1, 0.3]).astype(np.int8)
LABELS[:50] = -1  # photos that show nothing


def options(**changed):
    config = default_config()
    config.data.update(changed)
    return DataOptions.of(config.data)


def left(**changed):
    return kept_of(LABELS, options(**changed))


def assert_share(count, total, share):
    """Within six deviations of a binomial distribution, which one seed in 10^9 is not."""
    assert abs(count - share * total) < 6 * np.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("share", [0.75, 0.4])
def test_partial_labels_are_a_share_of_the_present_and_of_the_absent(share):
    kept = left(keep_labels=share, dropped_labels="unknown")
    assert ((kept == LABELS) | (kept == 0)).all()
    for label in (1, -1):
        assert_share((kept == label).sum(), (label == LABELS).sum(), share)
    assert kept.dtype == np.int8


@pytest.mark.parametrize("share", [0.75, 0.4])
def test_missing_labels_are_present_ones_given_as_absent(share):
    kept = left(keep_labels=share, dropped_labels="absent")
    present = LABELS > 0
    np.testing.assert_array_equal(kept[~present], LABELS[~present])  # the unknown too
    assert set(np.unique(kept[present])) == {-1, 1}
    assert_share((kept == 1).sum(), present.sum(), share)


@pytest.mark.parametrize("dropped", ["absent", "unknown"])
def test_one_positive_of_every_photo_that_has_one(dropped):
    kept = left(one_positive=True, dropped_labels=dropped)
    present = LABELS > 0
    np.testing.assert_array_equal((kept > 0).sum(axis=1), present.any(axis=1))
    assert (present | (kept <= 0)).all()
    if dropped == "unknown":
        assert not (kept < 0).any()
    else:
        np.testing.assert_array_equal(kept[~present], LABELS[~present])
        assert (kept[present] != 0).all()
    # Every one of the present is as likely: of photos with two the first in half of the cases.
    two = np.flatnonzero(present.sum(axis=1) == 2)
    firsts = kept[two, present[two].argmax(axis=1)] > 0
    assert_share(firsts.sum(), len(two), 0.5)


def test_labels_are_those_of_their_seed_and_fewer_are_among_more():
    few, more, others = (
        left(keep_labels=share, labels_seed=seed) for share, seed in ((0.4, 3), (0.75, 3), (0.4, 4))
    )
    np.testing.assert_array_equal(few, left(keep_labels=0.4, labels_seed=3))
    assert (few != others).any()
    assert ((few <= 0) | (more > 0)).all()


def test_unknown_labels_that_count_as_absent_are_missing_ones():
    """The two settings drop the same labels: they are compared on what else they say of them."""
    missing = left(keep_labels=0.4, dropped_labels="absent")
    partial = left(keep_labels=0.4, dropped_labels="unknown")
    known = LABELS != 0
    np.testing.assert_array_equal(np.where(partial == 0, -1, partial)[known], missing[known])


def test_all_labels_are_kept_unless_it_is_said():
    assert keeps_all(options())
    np.testing.assert_array_equal(left(), LABELS)
    assert not keeps_all(options(keep_labels=0.99)) and not keeps_all(options(one_positive=True))


def test_what_is_said():
    labels = np.array([[1, 1, -1], [-1, -1, 0]], np.int8)
    kept = np.array([[1, 0, -1], [0, -1, 0]], np.int8)
    data = options(keep_labels=0.5, dropped_labels="unknown")
    assert said_of(labels, kept, data) == (
        "data.keep_labels=0.5 keeps 1 of 2 present and 2 of 3 absent labels to train on; the "
        "others are given as unknown"
    )
    kept = np.array([[1, -1, -1], [-1, -1, 0]], np.int8)
    said = said_of(labels, kept, options(one_positive=True))
    assert said == (
        "data.one_positive keeps 1 of 2 present labels to train on; the others are given as absent"
    )


def test_train_alone_has_fewer_labels(config, caplog):
    """In worker processes too; val and test have all, and so has train where it is not trained."""
    config.data.keep_labels = 0.4
    config.data.splits = {"train": "train", "val": "train", "test": "test"}
    data = DataOptions.of(config.data)
    everything = sources.open_splits(data)
    with caplog.at_level("INFO", "mlic_jax"):
        splits = sources.open_to_train(data)
    for role in ("val", "test"):
        np.testing.assert_array_equal(splits[role].labels(), everything[role].labels())
    train, labels = splits["train"], everything["train"].labels()
    np.testing.assert_array_equal(train.labels(), kept_of(labels, data))
    assert (train.labels() != labels).any()
    np.testing.assert_array_equal(train[3].labels, train.labels()[3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train)).labels(), train.labels())
    assert caplog.messages == [said_of(labels, train.labels(), data)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keep_labels": 0.0}, "data.keep_labels is 0.0; it must be above 0 and at most 1"),
        ({"keep_labels": 1.5}, "data.keep_labels is 1.5"),
        ({"keep_labels": float("nan")}, "data.keep_labels is nan"),
        (
            {"keep_labels": 0.5, "one_positive": True},
            "data.keep_labels and data.one_positive are two ways to train on fewer labels: leave",
        ),
        ({"keep_labels": 0.5, "dropped_labels": "gone"}, "known are absent, unknown"),
        ({"labels_seed": -1}, "data.labels_seed is -1; it must be at least 0"),
        (
            {"one_positive": True, "dropped_labels": "unknown"},
            "what is dropped would be trained as present; set loss.label_policy=ignore",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(config, changed, message):
    config.data.update(changed)
    with pytest.raises(UsageError) as error:
        check_config(config)
    assert message in str(error.value)


def test_unknown_ones_are_for_a_policy_that_does_not_make_them_up(config):
    config.data.update({"one_positive": True, "dropped_labels": "unknown"})
    for config.loss.label_policy in ("ignore", "as_negative"):
        check_config(config)
