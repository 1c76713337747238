"""Which names are those of images."""

from pathlib import Path

import pytest

from mlic_jax.data.image_files import is_image


@pytest.mark.parametrize(
    "name", ["a.jpg", "b/A.JPEG", "c.png", "d.webp", "e.tif", "f.mpo", "g.gif", "h.bmp", "i.avif"]
)
def test_images(name):
    assert is_image(Path(name))


@pytest.mark.parametrize(
    "name", ["a.xml", "b.csv", "jpg", ".hidden.jpg", "c.mpg", "d.jpg.txt", "e.pdf"]
)
def test_others(name):
    assert not is_image(Path(name))
