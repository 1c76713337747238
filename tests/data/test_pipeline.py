"""Batches: complete, padded, in a reproducible order however they are made."""

import io
import itertools
import multiprocessing
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from mlic_jax.command_line import exit_code, hush_pillow
from mlic_jax.data import pipeline, records, transforms
from mlic_jax.data.fitting import Fit
from mlic_jax.data.records import writing
from mlic_jax.errors import Failure, UsageError

CROP = dict(train_crop="random_resized_crop", crop_scale=(0.3, 0.9))


def _run(split, **options):
    defaults = dict(batch_size=4, image_size=8, shuffle=True, threads=2)
    return list(pipeline.batches(split, **{**defaults, **options}))


def _assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_once_an_epoch_and_the_rest_is_padding(toy_split, batch_size, shuffle):
    steps = pipeline.steps_per_epoch(10, batch_size)
    run = _run(toy_split, batch_size=batch_size, shuffle=shuffle, epochs=2)
    assert len(run) == 2 * steps
    for epoch in (run[:steps], run[steps:]):
        index = np.concatenate([batch["index"] for batch in epoch])
        assert sorted(index[index >= 0]) == list(range(10))
        assert (index[10:] == -1).all()  # padding is last
        if not shuffle:
            np.testing.assert_array_equal(index[:10], np.arange(10))
        for batch in epoch:
            np.testing.assert_array_equal(batch["mask"], batch["index"] >= 0)
            assert (batch["image"][~batch["mask"]] == 0).all()
            assert (batch["labels"][~batch["mask"]] == -1).all()
            for row in np.flatnonzero(batch["mask"]):
                record = toy_split[int(batch["index"][row])]
                image = transforms.resize(transforms.decode(record.image), 8)
                np.testing.assert_array_equal(batch["image"][row], image)
                np.testing.assert_array_equal(batch["labels"][row], record.labels)


def test_shapes_and_dtypes(toy_split):
    batch = _run(toy_split)[0]
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {
        "image": ((4, 8, 8, 3), np.uint8),
        "labels": ((4, 3), np.int8),
        "index": ((4,), np.int32),
        "mask": ((4,), np.bool_),
    }


@pytest.mark.parametrize("n, batch_size, steps", [(10, 5, 2), (11, 5, 3), (1, 5, 1), (0, 5, 0)])
def test_steps_per_epoch(n, batch_size, steps):
    assert pipeline.steps_per_epoch(n, batch_size) == steps


def _order(split, **options):
    return [tuple(batch["index"]) for batch in _run(split, **options)]


def test_the_order_depends_on_seed_and_epoch_alone(toy_split):
    order = _order(toy_split, batch_size=10, epochs=3, seed=1)
    assert len(set(order)) == 3
    assert order == _order(toy_split, batch_size=10, epochs=3, seed=1, image_size=4, **CROP)
    assert not set(order) & set(_order(toy_split, batch_size=10, epochs=3, seed=2))


def test_crops_depend_on_seed_epoch_and_image_alone(toy_split):
    def crops(seed):
        run = _run(toy_split, batch_size=10, epochs=2, seed=seed, shuffle=False, **CROP)
        return [image for batch in run for image in batch["image"]]

    first, other = crops(1), crops(2)
    for a, b in itertools.combinations([first[0], first[10], other[0], other[10]], 2):
        assert (a != b).any()
    shuffled = _run(toy_split, batch_size=3, epochs=2, seed=1, **CROP)
    for step, batch in enumerate(shuffled):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            if index >= 0:
                np.testing.assert_array_equal(image, first[10 * (step // 4) + index])


def test_views_take_turns(toy_split):
    """The first are those of the first epochs, and the third epoch sees the first view again."""
    options = dict(batch_size=10, seed=1, shuffle=False, **CROP)
    ever_new = _run(toy_split, epochs=2, **options)
    first, second, third = _run(toy_split, epochs=3, views=2, **options)
    for batch, view in ((first, 0), (second, 1), (third, 0)):
        np.testing.assert_array_equal(batch.pop("view"), np.full(10, view, np.int32))
    _assert_same([first, second], ever_new)
    _assert_same([first], [third])


def test_crops_may_have_a_seed_of_their_own(toy_split):
    options = dict(batch_size=10, shuffle=True, views=2, **CROP)
    (of_one,) = _run(toy_split, seed=1, crop_seed=1, **options)
    _assert_same([of_one], _run(toy_split, seed=1, **options))
    (of_other,) = _run(toy_split, seed=2, crop_seed=1, **options)
    rows = np.argsort(of_other["index"])[of_one["index"]]
    assert (of_one["index"] != of_other["index"]).any()
    np.testing.assert_array_equal(of_one["image"], of_other["image"][rows])


def test_the_order_alone_is_that_of_the_batches(toy_split):
    options = dict(batch_size=4, seed=1, epochs=3, shuffle=True, views=2, first_step=2)
    batches = _run(toy_split, **options)
    for batch in batches:
        del batch["image"]
    _assert_same(batches, list(pipeline.order(toy_split, **options)))


@pytest.mark.parametrize(("crop", "workers"), [(CROP, 0), (CROP, 1), ({}, 0)])
def test_chosen_views_are_those_of_the_epochs(toy_split, crop, workers):
    options = dict(seed=1, image_size=8, **crop)
    epochs = _run(toy_split, batch_size=10, epochs=3, shuffle=False, views=3, **options)
    groups = [(np.array([7, 8, 0]), np.array([0, 2])), (np.array([3]), np.array([1]))]
    chosen = pipeline.chosen(toy_split, groups, batch_size=3, workers=workers, **options)
    expected = [(0, [7, 8, 0]), (2, [7, 8, 0]), (1, [3, -1, -1])]
    for batch, (view, index) in zip(chosen, expected, strict=True):
        assert batch["index"].tolist() == index and batch["view"].tolist() == [view] * 3
        assert batch["index"].dtype == batch["view"].dtype == np.int32
        images = [epochs[view]["image"][i] if i >= 0 else np.zeros((8, 8, 3)) for i in index]
        np.testing.assert_array_equal(batch["image"], images)
    assert not multiprocessing.active_children()


def test_a_photo_is_decoded_once_for_all_its_views(toy_split, monkeypatch):
    decode, decoded = records.Split.decode, []

    def counted(split, record):
        decoded.append(record.image_id)
        return decode(split, record)

    monkeypatch.setattr(records.Split, "decode", counted)
    groups = [(np.array([4, 2]), np.arange(5)), (np.array([9]), np.arange(2))]
    options = dict(batch_size=2, image_size=8, **CROP)
    assert len(list(pipeline.chosen(toy_split, groups, **options))) == 7
    assert sorted(decoded) == ["photo2", "photo4", "photo9"]


def test_random_resized_crops_are_what_the_transform_makes_of_the_scale(toy_split):
    options = dict(train_crop="random_resized_crop", crop_scale=(0.3, 0.4))
    (batch,) = _run(toy_split, batch_size=10, seed=3, shuffle=False, **options)
    for i, image in enumerate(batch["image"]):
        whole = transforms.decode(toy_split[i].image)
        rng = np.random.default_rng((pipeline._CROP, 3, 0, i))
        want = transforms.random_resized_crop(whole, image.shape[0], rng, (0.3, 0.4))
        np.testing.assert_array_equal(image, want)


@pytest.mark.parametrize("crop", ["random_resized_crop", "multi_scale", "squash"])
def test_crops_are_resized_by_the_filter_of_the_fit(toy_split, crop):
    """And no random crop is cut a second time."""
    fit, options = Fit("bicubic", 0.5), dict(batch_size=10, seed=3, shuffle=False, train_crop=crop)
    (batch,) = _run(toy_split, fit=fit, **options)
    (bilinear,) = _run(toy_split, **options)
    assert (batch["image"] != bilinear["image"]).any()
    for i, image in enumerate(batch["image"]):
        whole = transforms.decode(toy_split[i].image)
        rng = np.random.default_rng((pipeline._CROP, 3, 0, i))
        size = image.shape[0]
        want = {
            "random_resized_crop": lambda whole=whole, rng=rng, size=size: (
                transforms.random_resized_crop(whole, size, rng, interpolation="bicubic")
            ),
            "multi_scale": lambda whole=whole, rng=rng, size=size: transforms.multi_scale_crop(
                whole, size, rng, "bicubic"
            ),
            "squash": lambda whole=whole, size=size: fit.square(whole, size),
        }[crop]()
        np.testing.assert_array_equal(image, want)


def test_no_two_random_streams_are_the_same(toy_split, monkeypatch):
    """Neither the orders of two epochs, nor two crops, nor an order and a crop."""
    starts, make = {}, np.random.default_rng

    def recorded(key):
        starts[key] = tuple(make(key).random(2))
        return make(key)

    monkeypatch.setattr(np.random, "default_rng", recorded)
    pipeline._epoch_order.cache_clear()
    _run(toy_split, batch_size=10, epochs=3, **CROP)
    assert len(starts) == len(set(starts.values())) == 3 + 3 * 10


def test_multi_scale_crops_are_what_the_transform_makes(toy_split):
    (batch,) = _run(toy_split, batch_size=10, seed=3, shuffle=False, train_crop="multi_scale")
    for i, image in enumerate(batch["image"]):
        whole = transforms.decode(toy_split[i].image)
        rng = np.random.default_rng((pipeline._CROP, 3, 0, i))
        want = transforms.multi_scale_crop(whole, image.shape[0], rng)
        np.testing.assert_array_equal(image, want)


def test_a_run_starts_at_any_step(toy_split):
    options = dict(epochs=3, seed=5, **CROP)
    whole = _run(toy_split, **options)
    for step in range(len(whole) + 1):
        _assert_same(_run(toy_split, first_step=step, **options), whole[step:])


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_every_global_batch(toy_split, processes):
    options = dict(batch_size=6, epochs=2, seed=3, **CROP)
    parts = [
        _run(toy_split, process_index=i, process_count=processes, **options)
        for i in range(processes)
    ]
    assert all(batch["index"].shape == (6 // processes,) for part in parts for batch in part)
    joined = [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    _assert_same(joined, _run(toy_split, **options))


def test_threads_change_nothing(toy_split):
    _assert_same(
        _run(toy_split, epochs=2, threads=1, **CROP), _run(toy_split, epochs=2, threads=4, **CROP)
    )


def test_worker_processes_change_nothing(toy_split):
    options = dict(epochs=2, first_step=1, **CROP)
    _assert_same(_run(toy_split, workers=2, **options), _run(toy_split, **options))
    assert not multiprocessing.active_children()


def _decoding_threads():
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def test_closing_stops_the_threads(toy_split):
    run = pipeline.batches(toy_split, batch_size=1, image_size=8, shuffle=True, epochs=1000)
    next(run)
    assert _decoding_threads()
    run.close()
    deadline = time.time() + 10
    while _decoding_threads() and time.time() < deadline:
        time.sleep(0.01)
    assert not _decoding_threads()


def test_closing_stops_the_worker_processes(toy_split):
    run = pipeline.batches(
        toy_split, batch_size=1, image_size=8, shuffle=True, epochs=1000, workers=1
    )
    next(run)
    assert multiprocessing.active_children()
    run.close()
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def rotten_split(toy_source, tmp_path_factory):
    """A split of which image 6 was readable when it was checked, and is not as it was written."""

    def written(example, *rest):
        return b"rot" if example.image_id == "photo6" else example.image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_encoded", written)
        folder = records.prepare(toy_source("rotten"), tmp_path_factory.mktemp("prepared"))
    return records.open_split(folder, "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_the_run_and_is_named(rotten_split, workers):
    with pytest.raises(Failure, match=r"^set rotten, split train, image photo6: cannot decode"):
        _run(rotten_split, workers=workers, shuffle=False)
    assert not multiprocessing.active_children()


@pytest.fixture
def odd_split(toy_source, toy_example, tmp_path):
    """A split of a photo whose EXIF data is cut short, of which Pillow warns."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera of a long name"
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif.tobytes()[:-6])
    source = toy_source("odd", train=1)
    source.contents["train"] = [toy_example(0, image=file.getvalue())]
    with warnings.catch_warnings():
        hush_pillow()
        return records.open_split(records.prepare(source, tmp_path, upright=True), "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_command_shows_no_warning_of_an_odd_photo(odd_split, workers, capfd):
    def run():
        assert len(_run(odd_split, workers=workers, shuffle=False)) == 1

    assert exit_code(run) == 0  # here a warning would be an error
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_is_a_failure(toy_split):
    run = pipeline.batches(
        toy_split, batch_size=1, image_size=8, shuffle=True, epochs=10000, workers=1
    )
    next(run)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(Failure, match="reading set toy stopped"):
        list(run)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(batch_size=0), "batch_size is 0"),
        (dict(seed=-1), "seed is -1"),
        (dict(threads=0), "threads is 0"),
        (dict(workers=-1), "workers is -1"),
        (dict(views=-1), "views is -1"),
        (dict(process_count=3), "batch_size 4 is not divisible by the number of processes, 3"),
        (dict(train_crop="centre"), "train_crop is 'centre'"),
        (dict(first_step=4), "first_step is 4 and the run has 3 steps"),
        (dict(first_step=-1), "first_step is -1"),
    ],
)
def test_wrong_options(toy_split, options, message):
    with pytest.raises(UsageError, match=message):
        pipeline.batches(
            toy_split, **{"batch_size": 4, "image_size": 8, "shuffle": True, **options}
        )
