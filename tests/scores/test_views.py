"""Test-time augmentation: which views there are, what is averaged, and what is not."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mlic_jax.config_checks import check_config
from mlic_jax.data import pipeline, sources
from mlic_jax.data.options import DataOptions
from mlic_jax.data.scenes import render
from mlic_jax.data.transforms import INTERPOLATIONS
from mlic_jax.errors import UsageError
from mlic_jax.models import create_model
from mlic_jax.models.inputs import InputOptions, normalise
from mlic_jax.runtime import devices
from mlic_jax.scores import scoring, views
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables


@pytest.fixture(scope="module")
def photos():
    """Scenes at 96 px, uint8 [2, 96, 96, 3]."""
    images = [Image.open(io.BytesIO(render(0, "train", i).image)) for i in range(2)]
    return np.stack(
        [np.array(image.resize((96, 96), Image.Resampling.BILINEAR)) for image in images]
    )


@pytest.fixture(scope="module")
def scored(make_config, photos):
    """(flip, scales) -> the outputs of a model for `photos`; the model itself beside."""
    config = make_config()
    model = create_model(config.model, 12)  # as other tests, whose programs are kept
    variables = initial_variables(model, TrainOptions.of(config))
    apply = jax.jit(model.apply)

    def score(flip, scales):
        config.eval.flip, config.eval.scales = flip, scales
        options = ScoreOptions.of(config)
        size = views.host_size(options)
        images = views.resize(jnp.array(photos), size)
        return views.score_views(lambda view: apply(variables, view), images, options)

    def plain(images):
        return apply(variables, normalise(images, InputOptions.of(config.augment)))

    return score, plain


def test_without_augmentation_the_plain_image_is_all(scored, photos):
    score, plain = scored
    got, want = score(False, ()), plain(views.resize(jnp.array(photos), 64))
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_logits_are_the_mean_of_all_views_and_boxes_those_of_the_plain_one(scored, photos):
    score, plain = scored
    got = score(True, (96, 64))  # the size itself is no second view
    seen = []
    for size in (64, 96):
        image = views.resize(jnp.array(photos), size)
        seen += [plain(image), plain(image[:, :, ::-1])]
    for name in ("logits", "global_logits", "local_logits"):
        mean = np.mean([view[name] for view in seen], axis=0)
        np.testing.assert_allclose(got[name], mean, rtol=1e-5, atol=1e-6)
        assert not np.allclose(got[name], seen[0][name], atol=1e-4)
    for name in ("boxes", "box_classes"):
        np.testing.assert_array_equal(got[name], seen[0][name])


def test_sizes_of_the_views_and_of_what_the_host_prepares(config):
    config.data.image_size, config.eval.scales = 64, (96, 64, 32, 96)
    assert views.view_sizes(ScoreOptions.of(config)) == (64, 96, 32)
    assert views.host_size(ScoreOptions.of(config)) == 96
    config.eval.scales = (32,)
    assert views.host_size(ScoreOptions.of(config)) == 64
    config.eval.scales = ()
    assert views.view_sizes(ScoreOptions.of(config)) == (64,)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resizing_on_the_device_is_that_of_pillow(photos, size, interpolation):
    """Of hard edges too, which bicubic and Lanczos overshoot."""
    photos = np.stack([*photos, np.where(photos[0] > 127, np.uint8(255), np.uint8(0))])
    want = [
        Image.fromarray(photo).resize((size, size), Image.Resampling[interpolation.upper()])
        for photo in photos
    ]
    got = np.asarray(views.resize(jnp.array(photos), size, interpolation))
    assert got.dtype == np.uint8
    difference = np.abs(got.astype(int) - np.stack([np.asarray(image) for image in want]))
    assert difference.max() <= 2


def test_the_device_resizes_by_the_filter_that_photos_are_resized_by(config, photos):
    config.eval.scales, config.data.interpolation = (96,), "bicubic"
    options = ScoreOptions.of(config)
    seen = views.score_views(lambda view: {"view": view}, jnp.array(photos), options)["view"]
    want = views.resize(jnp.array(photos), 64, "bicubic")
    np.testing.assert_array_equal(seen, normalise(want, InputOptions.of(config.augment)))


@pytest.mark.parametrize("scales", [(100,), (0,), (-32,), (64.0,)])
def test_sizes_that_no_model_can_see(config, scales):
    config.eval.scales = scales
    with pytest.raises(UsageError, match=r"eval\.scales has"):
        check_config(config)


def test_evaluation_averages_over_views(config, scored):
    """A split is scored at every size of every view, from images as large as the largest."""
    split = sources.open_splits(DataOptions.of(config.data))["test"]
    model = create_model(config.model, len(split.class_names))
    mesh = devices.create_mesh()
    variables = jax.device_put(
        initial_variables(model, TrainOptions.of(config)), devices.replicated(mesh)
    )
    config.eval.flip, config.eval.scales = True, (96,)
    step = scoring.make_eval_step(model, ScoreOptions.of(config), mesh)
    scores = scoring.Evaluator(step, split, ScoreOptions.of(config), mesh)(variables)
    assert scores.image_size == 64
    assert scores.boxes.max() <= 64

    batch = next(pipeline.batches(split, batch_size=8, image_size=96, shuffle=False))
    seen = []
    for size in (64, 96):
        image = views.resize(jnp.array(batch["image"]), size)
        seen += [image, image[:, :, ::-1]]
    _, plain = scored  # of the same weights, compiled for two images
    logits = [
        np.concatenate([plain(view[i : i + 2])["logits"] for i in range(0, 8, 2)]) for view in seen
    ]
    np.testing.assert_allclose(scores.logits[:8], np.mean(logits, axis=0), rtol=1e-3, atol=1e-4)
