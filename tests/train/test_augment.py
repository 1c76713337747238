"""Augmentation against Pillow's operations, and that the key alone decides."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mlic_jax.config import default_config
from mlic_jax.models import inputs
from mlic_jax.train import augment
from mlic_jax.train.augment import AugmentOptions

pytestmark = pytest.mark.numerical


@pytest.fixture
def pixels():
    """Six images, one brighter than the other."""
    noise = np.random.default_rng(0).integers(0, 60, (6, 8, 10, 3), dtype=np.uint8)
    return noise + np.arange(10, 190, 30, dtype=np.uint8)[:, None, None, None]


@pytest.fixture
def settings():
    return AugmentOptions.of(default_config().augment)


def test_normalise(pixels, settings):
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(inputs.normalise(pixels, settings), expected, atol=1e-5)


def test_without_options_it_only_normalises(pixels, settings):
    settings = replace(settings, flip=False, jitter=0.0)
    out = augment.augment(jnp.array(pixels), jax.random.key(0), settings)
    # Either is a few roundings of numbers up to 1 off, divided by 0.22.
    np.testing.assert_allclose(out, inputs.normalise(pixels, settings), atol=5e-6)


def test_flip_mirrors_some_images_and_leaves_the_others(pixels, settings):
    settings = replace(settings, jitter=0.0)
    out = np.asarray(augment.augment(jnp.array(pixels), jax.random.key(3), settings))
    straight = np.asarray(inputs.normalise(pixels, settings))
    kept = [np.allclose(a, b, atol=1e-5) for a, b in zip(out, straight, strict=True)]
    mirrored = [np.allclose(a, b[:, ::-1], atol=1e-5) for a, b in zip(out, straight, strict=True)]
    assert all(np.logical_xor(kept, mirrored))
    assert any(kept) and any(mirrored)


def test_jitter_is_the_three_blends_of_pillow_in_a_drawn_order(pixels, monkeypatch):
    """With known factors and orders, Pillow's enhancers give the same up to their rounding."""
    factors = np.array([0.8, 1.2, 0.7])
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])

    def known_factors(key, shape, minval, maxval):
        # The factor of each turn: that of the operation which an image's order has there.
        return jnp.array(factors[orders.T], jnp.float32)

    draws = iter([known_factors, lambda key, shape: jnp.array(np.argsort(orders.T, axis=0))])
    monkeypatch.setattr(jax.random, "uniform", lambda *a, **k: next(draws)(*a, **k))
    got = augment.colour_jitter(jnp.array(pixels / 255, jnp.float32), jax.random.key(0), 0.3)
    for i, order in enumerate(orders):
        image = Image.fromarray(pixels[i])
        for operation in order:
            image = enhancers[operation](image).enhance(factors[operation])
        np.testing.assert_allclose(
            np.asarray(got[i]) * 255, np.asarray(image), atol=4
        )  # Pillow cuts to whole numbers


def test_jitter_stays_in_range_and_follows_the_key(pixels):
    images = jnp.array(pixels / 255, jnp.float32)
    jitter = jax.jit(augment.colour_jitter, static_argnums=2)
    first, again, other = (jitter(images, jax.random.key(k), 0.3) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert first.min() >= 0 and first.max() <= 1
    changes = np.abs(np.asarray(first) - np.asarray(images)).mean(axis=(1, 2, 3))
    assert len(set(changes.round(6))) == len(pixels)  # every image has factors of its own


def test_factors_are_uniform_around_1():
    """Brightness alone changes a grey image, and in which order the three come does not matter."""
    images = jnp.full((400, 1, 1, 3), 0.5, jnp.float32)
    factors = np.asarray(augment.colour_jitter(images, jax.random.key(0), 0.4))[:, 0, 0, 0] / 0.5
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    np.testing.assert_allclose(
        np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]), [0.6, 0.8, 1, 1.2, 1.4], atol=0.05
    )


def test_no_random_number_is_used_twice(pixels, settings):
    settings = replace(settings, cutout=0.5, randaugment=2)
    with jax.debug_key_reuse(True):
        jax.jit(lambda images, key: augment.augment(images, key, settings))(
            jnp.array(pixels), jax.random.key(0)
        )


def test_a_view_of_an_image_is_the_same_in_every_batch(pixels, settings):
    """Whatever stands beside it; another view, image or key gives another one."""
    key = jax.random.key(1)
    views, index = jnp.array([0, 1, 0, 1, 2, 2]), jnp.array([4, 4, 9, 9, 4, -1])
    images = jnp.stack([jnp.array(pixels[0])] * 6)
    all_rows = augment.augment_views(images, views, index, key, settings)
    for row in range(6):
        alone = (x[row : row + 1] for x in (images, views, index))
        again = augment.augment_views(*alone, key, settings)[0]
        np.testing.assert_allclose(again, all_rows[row], atol=1e-5)
        assert sum(np.allclose(all_rows[row], other, atol=1e-3) for other in all_rows) == 1
    other = augment.augment_views(images, views, index, jax.random.key(2), settings)
    assert not any(np.allclose(a, b, atol=1e-3) for a, b in zip(all_rows, other, strict=True))


def test_all_that_is_random_of_a_view_is_its_own(pixels, settings):
    """RandAugment and Cutout too; without them flip and jitter are as they were before."""
    key = jax.random.key(1)
    images, views, index = jnp.array(pixels[:2]), jnp.array([0, 3]), jnp.array([7, 7])
    more = replace(settings, cutout=0.5, randaugment=2)
    changed = augment.augment_views(images, views, index, key, more)
    for row in range(2):
        alone = (x[row : row + 1] for x in (images, views, index))
        again = augment.augment_views(*alone, key, more)[0]
        np.testing.assert_allclose(again, changed[row], atol=1e-5)
    plain = augment.augment_views(images, views, index, key, settings)
    assert not np.allclose(changed, plain, atol=1e-3)
    nothing = replace(settings, randaugment=1, magnitude=0.0, jitter=0.0, flip=False)
    assert np.isfinite(augment.augment_views(images, views, index, key, nothing)).all()


def test_mixup_mixes_neighbours_and_leaves_padding_and_unknown_labels():
    rng = np.random.default_rng(0)
    rows = {
        "images": jnp.array(rng.normal(size=(6, 4, 4, 3)), jnp.float32),
        "targets": jnp.array(rng.integers(0, 2, (6, 5)), jnp.float32),
        "known": jnp.array(rng.integers(0, 4, (6, 5)) > 0),
    }
    mask = jnp.array([True, True, True, True, False, False])
    mixed = augment.mixup(rows, mask, jax.random.key(0), 0.4)
    before = {name: np.asarray(values) for name, values in rows.items()}
    for row in (0, 4, 5):  # beside padding, or padding
        for name in before:
            np.testing.assert_array_equal(mixed[name][row], before[name][row])
    for row in (1, 2, 3):
        first, second = (before["images"][k].astype(float) for k in (row, row - 1))
        image = np.asarray(mixed["images"][row])
        share = np.sum((image - second) * (first - second)) / np.sum((first - second) ** 2)
        assert 0 <= share <= 1
        np.testing.assert_allclose(image, share * first + (1 - share) * second, atol=1e-5)
        targets = before["targets"]
        np.testing.assert_allclose(
            mixed["targets"][row], share * targets[row] + (1 - share) * targets[row - 1], atol=1e-5
        )
        known = before["known"][row] & before["known"][row - 1]
        np.testing.assert_array_equal(mixed["known"][row], known)


def test_shares_of_mixup_are_those_of_beta():
    rows = {
        "images": jnp.zeros((4000, 1, 1, 3)),
        "targets": (jnp.arange(4000) % 2)[:, None].astype(jnp.float32),
        "known": jnp.ones((4000, 1), bool),
    }
    mixed = augment.mixup(rows, jnp.ones(4000, bool), jax.random.key(0), 0.5)
    got = np.asarray(mixed["targets"])[1::2, 0]  # the share of each that was 1
    # Beta(1/2, 1/2) has the distribution (2 / pi) asin(sqrt(x)); of 2,000 draws the greatest
    # distance to it is above 0.05 in one of 11,000 cases, and the draws are always the same.
    ranks = (np.arange(2000) + 0.5) / 2000
    assert np.abs(2 / np.pi * np.arcsin(np.sqrt(np.sort(got))) - ranks).max() < 0.05
