"""Labels that a loss corrects for good: steps of a linear model beside NumPy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.runtime import devices
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.step import TrainState, make_train_step

pytestmark = pytest.mark.numerical

PHOTOS, CLASSES, FEATURES, BATCH, EPOCH_STEPS, STEPS = 20, 6, 5, 16, 2, 8
RATE, DELTA = 1.0, 0.1


class Linear(nn.Module):
    """Of features that are computed: one layer."""

    @nn.compact
    def score(self, seen):
        return {"logits": nn.Dense(CLASSES, name="head")(seen["x"])}


@pytest.fixture(scope="module")
def photos():
    """Features `[N, F]`, and labels `[N, C]` of which some are unknown."""
    rng = np.random.default_rng(1)
    labels = rng.choice([-1, 0, 1], (PHOTOS, CLASSES), p=[0.7, 0.1, 0.2])
    return rng.normal(0, 1, (PHOTOS, FEATURES)).astype(np.float32), labels.astype(np.int8)


def batches(photos):
    """Of every epoch two: sixteen photos, and four with padding."""
    features, labels = photos
    for step in range(STEPS):
        order = np.random.default_rng((5, step // EPOCH_STEPS)).permutation(PHOTOS)
        index = order[step % EPOCH_STEPS * BATCH :][:BATCH].astype(np.int32)
        index = np.pad(index, (0, BATCH - len(index)), constant_values=-1)
        real = index >= 0
        seen = {"x": np.where(real[:, None], features[index], np.float32(9))}
        given = np.where(real[:, None], labels[index], np.int8(-1))
        yield {"seen": seen, "labels": given, "index": index, "mask": real}


def by_hand(photos, start, parts):
    """Of every step the kernel, the bias and the labels corrected so far, in float64."""
    kernel, bias = (np.float64(start["head"][name]) for name in ("kernel", "bias"))
    corrected = np.zeros((PHOTOS, CLASSES), bool)
    for step, batch in enumerate(batches(photos)):
        index, x = batch["index"], np.float64(batch["seen"]["x"])
        known = (batch["labels"] != 0) & batch["mask"][:, None]
        present = (batch["labels"] > 0) | corrected[index]
        logits = x @ kernel + bias
        for part in range(parts if step >= EPOCH_STEPS else 0):
            rows = np.arange(BATCH) % parts == part
            absent = known & ~present & rows[:, None]
            number = int(DELTA * absent.sum())
            costs = np.sort(np.logaddexp(0, logits[absent]))[::-1]
            if number:  # far enough from the next for float32 to know them apart
                assert costs[number - 1] - costs[number] > 1e-4
                present |= absent & (np.logaddexp(0, logits) >= costs[number - 1])
        real = batch["mask"]
        corrected[index[real]] |= (present & (batch["labels"] < 0))[real]
        slope = np.where(known, 1 / (1 + np.exp(-logits)) - present, 0) / known.sum()
        kernel, bias = kernel - RATE * x.T @ slope, bias - RATE * slope.sum(axis=0)
        yield kernel, bias, corrected.copy()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("several", [False, True], ids=["one device", "eight devices"])
def test_steps_of_permanent_correction(photos, config, parts, several):
    """Padding is corrected nowhere, what is unknown never, and devices take a share of all rows."""
    config.batch_size, config.accumulation = BATCH, parts
    config.loss.update(name="large_loss", large="correct_permanently", delta=DELTA)
    config.loss.label_policy = "ignore"
    config.optim.multipliers = {"rest": 1.0}
    config.optim.learning_rate, config.optim.momentum, config.optim.weight_decay = RATE, 0.0, 0.0
    options = TrainOptions.of(config)
    model, mesh = Linear(), devices.create_mesh() if several else None
    start = model.init(jax.random.key(0), {"x": jnp.zeros((1, FEATURES))}, method="score")["params"]
    wanted = list(by_hand(photos, start, parts))
    schedule = create_schedule(options.optim, EPOCH_STEPS, STEPS)
    optimizer = create_optimizer(options.optim, start, schedule)
    none = np.zeros((PHOTOS, CLASSES), bool)
    state = TrainState(jnp.int32(0), start, {}, optimizer.init(start), corrected=jnp.asarray(none))
    shardings = devices.lying(state, mesh) if mesh else None
    if mesh:
        state = devices.lay_out(state, shardings)
    step = make_train_step(model, optimizer, schedule, options, mesh, shardings, EPOCH_STEPS)
    key = jax.random.key(0)
    for batch, (kernel, bias, corrected) in zip(batches(photos), wanted, strict=True):
        rows = devices.to_devices(batch, mesh) if mesh else jax.tree.map(jnp.asarray, batch)
        state, metrics = step(state, rows, key)
        np.testing.assert_array_equal(state.corrected, corrected)
        assert int(metrics["corrected"]) == corrected.sum()
        np.testing.assert_allclose(state.params["head"]["kernel"], kernel, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.params["head"]["bias"], bias, rtol=1e-4, atol=1e-5)
    assert corrected.sum() > 10
    assert (photos[1][corrected] == -1).all()
