"""Training on features that are computed once, against a run that computes the same views."""

import json

import numpy as np
import pytest

from mlic_jax.train.loop import train


@pytest.fixture
def frozen(make_config, tmp_path):
    """A run of four epochs in two views, on a backbone that stays as it is."""

    def make(name, store, **model):
        config = make_config()
        config.epochs, config.data.views = 4, 2
        config.data.train_crop = "random_resized_crop"
        config.freeze_statistics, config.optim.multipliers.features = True, 0.0
        config.model.name = name
        # At 0.5 a straight ramp of a map crosses on a pixel, and rounding decides where.
        config.model.threshold = 0.47
        if name == "msrn":
            config.data.word_vectors, config.model.pool_ratio = "one_hot", 0.4
        config.eval.every = 2
        config.features.store = store
        config.model.update(model)
        return config

    return make


def curves(workdir):
    """The figures of all steps and validations, without what depends on the clock or the store."""
    found = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        for name in ("images_per_second", "known_regions"):
            values.pop(name, None)
        found.append(values)
    return found


@pytest.mark.parametrize("name", ["pooled", "mcar", "msrn"])
def test_a_run_is_that_which_computes_the_same_views(frozen, tmp_path, name):
    for store in (False, True):
        train(frozen(name, store), tmp_path / str(store))
    plain, stored = (curves(tmp_path / str(store)) for store in (False, True))
    assert [set(values) for values in plain] == [set(values) for values in stored]
    for values, others in zip(plain, stored, strict=True):
        for figure, value in values.items():
            np.testing.assert_allclose(others[figure], value, rtol=1e-4, err_msg=figure)
