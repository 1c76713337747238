"""Features that are kept: what the model would say, of nothing else, whole again after any harm."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config_checks import check_config
from mlic_jax.data import pipeline, sources
from mlic_jax.errors import Failure, UsageError
from mlic_jax.features.regions import Regions
from mlic_jax.features.store import PIXELS
from mlic_jax.files.rows import Rows
from mlic_jax.models import create_model
from mlic_jax.runtime import devices
from mlic_jax.train.augment import augment_views
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables
from mlic_jax.train.stored import open_training_store

PHOTOS, VIEWS = 20, 2
BOXES = np.array([[[0, 0, 64, 64], [8, 4, 40, 50]], [[8, 4, 40, 50], [8, 4, 40, 50]]], np.int32)


@pytest.fixture
def frozen(config, tmp_path):
    """A configuration of two views on a frozen backbone, in a set of its own."""
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.data.views, config.data.train_crop = VIEWS, "random_resized_crop"
    config.freeze_statistics, config.optim.multipliers.features = True, 0.0
    config.features.store = True
    return config


@pytest.fixture
def open_store():
    """(configuration) -> the store of its training split, and the weights."""
    variables_of = {}

    def make(config):
        options = TrainOptions.of(config)
        split = sources.open_splits(options.data)["train"]
        model = create_model(options.model, len(split.class_names))
        if config.seed not in variables_of:
            variables_of[config.seed] = initial_variables(model, options)
        variables = variables_of[config.seed]
        mesh = devices.create_mesh()
        return open_training_store(model, variables, split, options, mesh), variables

    return make


def everything(store):
    """All features of all views."""
    view, index = np.divmod(np.arange(VIEWS * PHOTOS, dtype=np.int32), np.int32(PHOTOS))
    return store.read((*store.shapes, PIXELS), view, index)


def views_computed(caplog):
    """Of each store that was opened meanwhile, and computed something."""
    lines = [record.getMessage() for record in caplog.records]
    return [int(line.split(": ")[1].split()[0]) for line in lines if line.startswith("Computed")]


def test_features_are_those_of_the_model_on_the_same_views(frozen, open_store):
    """Of the second view, which a run sees in its second epoch, and of regions in it."""
    store, variables = open_store(frozen)
    options = TrainOptions.of(frozen)
    epochs = pipeline.batches(
        store.split,
        batch_size=PHOTOS,
        image_size=64,
        seed=frozen.seed,
        shuffle=False,
        epochs=2,
        first_step=1,
        train_crop="random_resized_crop",
        views=VIEWS,
    )
    (batch,) = epochs
    given = batch["image"], batch["view"], batch["index"]
    images = augment_views(*given, jax.random.key(frozen.seed), options.augment)
    model = store.backbone.model
    expected = model.apply(variables, images, method="look")["maps"]
    seen = store.read(("maps",), batch["view"], batch["index"])["maps"]
    assert batch["view"].tolist() == [1] * PHOTOS
    np.testing.assert_allclose(seen, expected, atol=1e-5 * np.abs(expected).max())

    regions = Regions(store, 0)
    some = regions.read(batch["view"][:2], batch["index"][:2], BOXES)
    of_regions = model.apply(variables, images[:2], jnp.asarray(BOXES), method="look_at_regions")
    for name, expected in of_regions.items():
        assert some[name].shape == expected.shape
        np.testing.assert_allclose(some[name], expected, atol=1e-5 * np.abs(expected).max())


def test_a_region_that_was_looked_at_before_costs_nothing(frozen, open_store):
    store, _ = open_store(frozen)
    regions = Regions(store, 0)
    view, index = np.array([0, 1]), np.array([3, -1])  # the second is padding
    first = regions.read(view, index, BOXES)
    assert (regions.asked, regions.known) == (2, 0)
    assert all(np.all(values[1] == 0) for values in first.values())
    index[1] = 3  # in another view: one box, asked for twice
    second = regions.read(view, index, BOXES)
    assert (regions.asked, regions.known) == (6, 3)
    again = Regions(store, 0)
    third = again.read(view, index, BOXES)
    assert (again.asked, again.known) == (4, 4)
    for name, values in third.items():
        np.testing.assert_array_equal(values, second[name])
        np.testing.assert_array_equal(values[0], first[name][0])
        assert np.any(values[0, 1] != values[1, 1])  # the same box of another view
        np.testing.assert_array_equal(values[1, 0], values[1, 1])
    assert Regions(store, 32).read(view, index, BOXES)
    assert len(list(store.folder.glob("regions*"))) == 2


def test_a_store_is_of_one_backbone_and_of_what_it_sees(frozen, open_store, caplog):
    """Whatever the features follow from has a store of its own; the rest shares one."""
    caplog.set_level(logging.INFO)
    first, _ = open_store(frozen)
    assert views_computed(caplog) == [VIEWS * PHOTOS]
    frozen.optim.learning_rate, frozen.batch_size = 0.5, 16
    frozen.model.pooling, frozen.model.top_n = "avg", 1
    assert open_store(frozen)[0].folder == first.folder
    frozen.data.views = VIEWS + 1  # of which one is new
    assert open_store(frozen)[0].folder == first.folder
    assert views_computed(caplog) == [VIEWS * PHOTOS, PHOTOS]
    folders = {first.folder}
    for option, value in {
        "seed": 1,  # of the weights too
        "augment.jitter": 0.1,
        "data.crop_scale": (0.5, 1.0),
        "features.dtype": "float16",
    }.items():
        frozen.update_from_flattened_dict({option: value})
        folders.add(open_store(frozen)[0].folder)
    assert len(folders) == 5


def test_a_damaged_row_is_noticed_and_computed_again(frozen, open_store, caplog):
    store, _ = open_store(frozen)
    before = everything(store)
    path = store.folder / "view1.maps"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    caplog.clear()
    caplog.set_level(logging.INFO)
    repaired, _ = open_store(frozen)
    assert "1 rows of the features of 20 photos" in caplog.text
    assert views_computed(caplog) == [1]
    jax.tree.map(np.testing.assert_array_equal, before, everything(repaired))


def test_a_row_that_goes_while_a_run_reads_stops_it(frozen, open_store):
    store, _ = open_store(frozen)
    (store.folder / "view0.maps").write_bytes(b"")
    with pytest.raises(Failure, match=r"view0.maps was changed meanwhile"):
        store.read(("maps",), np.zeros(1, int), np.zeros(1, int))


def test_a_pass_that_was_killed_goes_on_where_it_was(frozen, open_store, caplog, monkeypatch):
    whole = everything(open_store(frozen)[0])
    folder = open_store(frozen)[0].folder
    folder.rename(folder.with_name("aside"))
    write, done = Rows.write, []

    def killed(*arguments):
        if len(done) == 2 * 25:  # of the pixels and the maps of 25 views
            raise KeyboardInterrupt
        done.append(write(*arguments))

    monkeypatch.setattr(Rows, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        open_store(frozen)
    monkeypatch.undo()
    caplog.clear()
    caplog.set_level(logging.INFO)
    resumed, _ = open_store(frozen)
    assert views_computed(caplog) == [VIEWS * PHOTOS - 25]
    assert "damaged" not in caplog.text
    jax.tree.map(np.testing.assert_array_equal, whole, everything(resumed))


def test_how_many_views_are_made_at_once_changes_nothing(frozen, open_store, monkeypatch):
    """But how often a photo is decoded."""
    together = everything(open_store(frozen)[0])
    folder = open_store(frozen)[0].folder
    folder.rename(folder.with_name("aside"))
    monkeypatch.setattr("mlic_jax.features.store.MOST_PIXELS", 1)
    groups, chosen = [], pipeline.chosen

    def recorded(split, wanted, **options):
        groups.extend(views.tolist() for _, views in wanted)
        return chosen(split, wanted, **options)

    monkeypatch.setattr(pipeline, "chosen", recorded)
    jax.tree.map(np.testing.assert_array_equal, together, everything(open_store(frozen)[0]))
    assert groups == [[0], [1]]


def test_half_floats_are_half_as_large(frozen, open_store):
    exact = everything(open_store(frozen)[0])["maps"]
    frozen.features.dtype = "float16"
    store, _ = open_store(frozen)
    half = everything(store)["maps"]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, exact.astype(np.float16))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("optim.multipliers.features", 0.1, "a backbone that stays as it is: set optim.mul"),
        ("freeze_statistics", False, "and freeze_statistics=True"),
        ("data.views", 0, "such as --config.data.views=8"),
        ("shard_fc1", True, "shard_fc1"),
        ("features.dtype", "int8", "features.dtype"),
    ],
)
def test_what_cannot_be_kept_is_refused(frozen, option, value, said):
    check_config(frozen)
    frozen.update_from_flattened_dict({option: value})
    with pytest.raises(UsageError, match=said):
        check_config(frozen)


def test_several_processes_are_refused(frozen, open_store, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match=r"features.store is for one process"):
        open_store(frozen)
