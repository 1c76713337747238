"""How state and batches lie on the devices: whole, in rows, and fc1 of MSRN in slices."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.config_checks import check_config
from mlic_jax.data import pipeline, sources
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import UsageError
from mlic_jax.models import msrn
from mlic_jax.runtime import devices
from mlic_jax.runtime.checkpoint import load_weights, restore
from mlic_jax.runtime.run_checkpoints import RunCheckpoints
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState, make_train_step

CLASSES, GROUPS, HIDDEN = 12, 4, 64
INPUTS = (CLASSES + GROUPS) * 3 * msrn.CHANNELS


class OneMap(nn.Module):
    """A backbone whose last three maps are the same one, of 2 x 2 positions in images of 16 px."""

    @nn.compact
    def __call__(self, images, train=False, mask=None):
        self.variable("batch_stats", "none", jnp.zeros, ())  # every backbone has some
        return (nn.Conv(8, (8, 8), strides=8)(images),) * 3


class HeadOfMSRN(msrn.MSRN):
    """MSRN without label graph and attention, which compile for long and know nothing of fc1."""

    def embed_labels(self):
        assignment = jnp.full((CLASSES, GROUPS), 1 / GROUPS)
        return jnp.eye(CLASSES, msrn.CHANNELS), jnp.eye(GROUPS, msrn.CHANNELS), assignment

    def attend(self, maps, embeddings):
        x = nn.Dense(3 * msrn.CHANNELS, name="project")(maps[-1].reshape(len(maps[-1]), -1))
        scale = self.param("scale", nn.initializers.normal(1.0), (len(embeddings), 1))
        return jnp.tanh(x[:, None] * scale[None])


@pytest.fixture(scope="module")
def problem():
    """(configuration, model, optimiser, schedule, state, batch) of an MSRN with the dense head."""
    config = default_config()
    config.model.name, config.shard_fc1 = "msrn", True
    config.augment.flip, config.augment.jitter = False, 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msrn, "HIDDEN", HIDDEN)
        rng = np.random.default_rng(0)
        model = HeadOfMSRN(
            features=OneMap(),
            word_vectors=rng.normal(0, 1, (CLASSES, 10)).astype(np.float32),
            attention_mask=np.ones((CLASSES, CLASSES), bool),
            num_groups=GROUPS,
            head="dense",
        )
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        options = TrainOptions.of(config)
        schedule = create_schedule(options.optim, 3, 2)
        optimizer = create_optimizer(options.optim, variables["params"], schedule)
        state = TrainState(jnp.int32(0), **variables, opt_state=optimizer.init(variables["params"]))
        batch = {
            "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
            "labels": np.where(rng.random((16, CLASSES)) < 0.3, 1, -1).astype(np.int8),
            "index": np.arange(16, dtype=np.int32),
            "mask": np.arange(16) < 13,
        }
        yield config, model, optimizer, schedule, jax.device_get(state), batch


@pytest.fixture(scope="module")
def sharded(problem):
    """(compiled step, state after two steps, metrics of the second) on eight devices."""
    config, model, optimizer, schedule, state, batch = problem
    mesh = devices.create_mesh()
    shardings = devices.lying(state, mesh, config.shard_fc1)
    state = devices.lay_out(state, shardings)
    model = model.clone(fc1_axis=devices.ROWS)
    step = make_train_step(model, optimizer, schedule, TrainOptions.of(config), mesh, shardings)
    on_devices = devices.to_devices(batch, mesh)
    step = step.lower(state, on_devices, jax.random.key(0)).compile()
    for _ in range(2):
        state, metrics = step(state, on_devices, jax.random.key(0))
    return step, state, metrics


@pytest.fixture(scope="module")
def alone(problem):
    """(state after two steps, metrics of the second) on one device."""
    config, model, optimizer, schedule, state, batch = problem
    step = make_train_step(model, optimizer, schedule, TrainOptions.of(config))
    for _ in range(2):
        state, metrics = step(state, batch, jax.random.key(0))
    return state, metrics


def test_neither_the_kernel_of_fc1_nor_its_gradient_is_ever_exchanged(sharded):
    """Collectives carry activations alone, and nothing as large as one slice of the kernel."""
    operation = r"= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
    found = re.findall(operation + r"(?:-start)?\(", sharded[0].as_text())
    shapes = [
        tuple(int(n) for n in shape.split(",") if n)
        for result in found
        for shape in re.findall(r"\w+\[([\d,]*)\]", result)
    ]
    assert (16, HIDDEN) in shapes, "the activations of the layer are summed over the slices"
    assert max(map(np.prod, shapes)) < INPUTS * HIDDEN / 8


def test_every_device_holds_a_slice_of_fc1_and_of_its_momentum_alone(sharded):
    slices = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharded[1]):
        shape = leaf.addressable_shards[0].data.shape
        if "fc1" in jax.tree_util.keystr(path) and leaf.ndim == 2:
            assert (leaf.shape, shape) == ((INPUTS, HIDDEN), (INPUTS // 8, HIDDEN))
            slices += 1
        else:
            assert leaf.shape == shape
    assert slices == 2  # the kernel and its momentum


def test_a_sharded_fc1_learns_as_a_whole_one(problem, sharded, alone):
    _, state, metrics = sharded
    expected, expected_metrics = alone
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    before = problem[4].params
    # Each of two steps rounds a parameter by half an epsilon of it, here and there.
    epsilons = 2 * np.finfo(np.float32).eps
    for name in before:
        moves = [
            jax.tree.map(lambda a, b: a - b, s.params[name], before[name])
            for s in (state, expected)
        ]
        moved, size = (
            max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
            for tree in (moves[1], before[name])
        )
        bound = epsilons * size + 1e-4 * moved
        jax.tree.map(
            lambda a, b, bound=bound: np.testing.assert_allclose(a, b, rtol=0, atol=bound), *moves
        )


def test_checkpoints_of_a_sharded_fc1_restore_whole_and_the_other_way_round(
    sharded, alone, problem, tmp_path
):
    mesh = devices.create_mesh()
    states = {"sharded": sharded[1], "whole": alone[0]}
    for name, other in (("sharded", "whole"), ("whole", "sharded")):
        saved = states[name]
        checkpoints = RunCheckpoints(tmp_path / name)
        variables = {"params": saved.params, "batch_stats": saved.batch_stats}
        checkpoints.save(2, variables, {"opt_state": saved.opt_state}, {})
        path = checkpoints.latest_path()
        target = devices.lay_out(problem[4], devices.lying(problem[4], mesh, other == "sharded"))
        variables, training = restore(
            path,
            {"params": target.params, "batch_stats": target.batch_stats},
            {"opt_state": target.opt_state},
        )
        checkpoints.close()
        restored = variables["params"], training["opt_state"]
        jax.tree.map(np.testing.assert_array_equal, restored, (saved.params, saved.opt_state))
        kernel = variables["params"]["fc1"]["kernel"]
        assert kernel.sharding.is_fully_replicated == (other == "whole")
        loaded = load_weights(tmp_path / name)[0]["params"]["fc1"]["kernel"]
        np.testing.assert_array_equal(loaded, kernel)


def test_fc1_that_cannot_be_divided_is_refused():
    state = {"params": {"fc1": {"kernel": np.zeros((12, 3))}}}
    with pytest.raises(UsageError, match="the 12 inputs of fc1 are no multiple of the 8 devices"):
        devices.lying(state, devices.create_mesh(), shard_fc1=True)
    config = default_config()
    config.data.source, config.data.name, config.shard_fc1 = "scenes", "scenes", True
    with pytest.raises(UsageError, match=r"shard_fc1 is for model\.name msrn"):
        check_config(config)


def test_batches_are_on_the_devices_ahead_of_their_steps():
    mesh, made = devices.create_mesh(), []

    def batches():
        for k in range(5):
            made.append(k)
            yield {"index": np.full(8, k, np.int32), "mask": np.ones(8, bool)}

    seen = []
    for index, batch in devices.on_devices(batches(), mesh):
        assert isinstance(index, np.ndarray) and batch["index"].sharding.num_devices == 8
        np.testing.assert_array_equal(batch["index"], index)
        seen.append((int(index[0]), len(made)))
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]


def test_an_abstract_batch_is_what_the_pipeline_gives(config):
    mesh = devices.create_mesh()
    split = sources.open_splits(DataOptions.of(config.data))["train"]
    batches = pipeline.batches(split, batch_size=8, image_size=64, shuffle=False)
    batch = devices.to_devices(next(batches), mesh)
    batches.close()
    expected = devices.abstract_batch(mesh, 8, 64, len(split.class_names))
    assert batch.keys() == expected.keys()
    for name, rows in batch.items():
        assert (rows.shape, rows.dtype, rows.sharding) == (
            expected[name].shape,
            expected[name].dtype,
            expected[name].sharding,
        )


def test_an_average_lies_as_what_it_is_of(problem):
    state = problem[4]
    state = state.replace(average=state.variables())
    shardings = devices.lying(state, devices.create_mesh(), shard_fc1=True)
    specs = devices.specs_of(shardings)
    assert specs.average == {"params": specs.params, "batch_stats": specs.batch_stats}
    assert specs.average["params"]["fc1"]["kernel"] == devices.BY_ROWS
