"""Which names are those of images, how they are shown, and what is read."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlic_jax.data import image_files, transforms
from mlic_jax.data.image_files import image_suffixes, is_image, printable, read_image_file
from mlic_jax.errors import Failure


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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("über 犬.jpg", "über 犬.jpg"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        (rb"caf\xe9.jpg", r"caf\\xe9.jpg"),
        (Path("a") / "two\nlines\x1b[1m", r"a/two\x0alines\x1b[1m"),
        ("a\u2028b\x85", r"a\xe2\x80\xa8b\xc2\x85"),
        ("a\ud83d", r"a\ud83d"),
    ],
)
def test_names_as_one_line_of_text(name, shown):
    assert printable(name) == shown


@given(st.binary(min_size=1))
def test_no_two_names_are_shown_alike(name):
    """For what is shown says every byte of the name."""
    shown = printable(os.fsdecode(name))
    assert len(shown.splitlines()) == 1

    def byte(found):
        return b"\\" if found[0] == rb"\\" else bytes([int(found[0][2:], 16)])

    assert re.sub(rb"\\(?:\\|x[0-9a-f]{2})", byte, shown.encode()) == name


def test_what_might_never_end_is_not_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"photo")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "gone.jpg").symlink_to("b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert read_image_file(tmp_path / "link.jpg") == b"photo"
    for path, message in (
        (tmp_path / "gone.jpg", r"a link to b\.jpg, which is not there"),
        (tmp_path / "pipe.jpg", "a pipe"),
        (Path("/dev/zero"), "a device"),
    ):
        with pytest.raises(Failure, match=message):
            read_image_file(path)
    with pytest.raises(FileNotFoundError):
        read_image_file(tmp_path / "b.jpg")


def test_heic_is_read_or_says_what_it_needs(monkeypatch):
    assert {".heic", ".heif"} <= image_suffixes()
    header = b"\0\0\0\x18ftypheic" + bytes(40)
    monkeypatch.setattr(image_files, "READS_HEIC", False)
    needs = r"HEIC, which needs pillow-heif: pip install 'mlic_jax\[heic\]'$"
    with pytest.raises(Failure, match=needs):
        transforms.decode(header)
    with pytest.raises(Failure, match="not of a format that Pillow reads"):
        transforms.decode(b"\0\0\0\x18ftypqt  " + bytes(40))


def test_heic_is_read_with_the_extra():
    pytest.importorskip("pillow_heif", reason="needs the extra `heic`")
    left_black = np.zeros((64, 96, 3), np.uint8)
    left_black[:, 48:] = 255
    buffer = io.BytesIO()
    Image.fromarray(left_black).save(buffer, "HEIF")
    for upright in (False, True):
        seen = np.asarray(transforms.decode(buffer.getvalue(), upright=upright))
        assert seen.shape == (64, 96, 3)
        assert seen[:, :40].mean() < 10 and seen[:, -40:].mean() > 245
