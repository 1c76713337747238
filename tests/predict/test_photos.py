"""Whatever a photo is given as, its pixels are the same; and what is none is refused in a line."""

import io
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mlic_jax.errors import Failure, UsageError
from mlic_jax.predict import photos
from mlic_jax.predict.photos import each_photo, fetch, is_one, name_of, read_photo

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
GREY = RGB[..., 0]


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("array", "want"),
    [
        (RGB, RGB),
        (jnp.asarray(RGB), RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float16), RGB),
        (jnp.asarray(RGB / 255, jnp.float32), RGB),
        (RGB / 255 * 1.001, RGB),  # interpolation overshoots by a little
        (np.dstack([RGB, GREY]), RGB),  # transparency is dropped
        (GREY, GREY[..., None].repeat(3, 2)),
        (GREY[..., None], GREY[..., None].repeat(3, 2)),
        (jnp.asarray([[0, 1]], jnp.bfloat16), [[[0] * 3, [255] * 3]]),
        (GREY.astype(np.uint16) * 256, GREY[..., None].repeat(3, 2)),  # as a file of 16 bits
        (RGB[::-1, ::2], RGB[::-1, ::2]),  # not contiguous
    ],
)
def test_arrays(array, want):
    np.testing.assert_array_equal(np.asarray(read_photo(array)), want)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (RGB.transpose(2, 0, 1), r"\(3, 5, 7\) is no photo.*colours come last, as by \.transpose"),
        (RGB[..., :2], r"\(5, 7, 2\) is no photo; it must be \(height, width, 3\)"),
        (RGB[None, None], r"\(1, 1, 5, 7, 3\) is no photo"),
        (RGB[:0], r"\(0, 7, 3\) is no photo"),
        (RGB.astype(np.int32), "int32 is no photo; it must be of uint8"),
        (RGB > 9, "bool is no photo"),
        (RGB.astype(np.uint16), "uint16 is no photo"),
        (RGB.astype(np.float32), "from [0-9]+ to [0-9]+ is no photo; they must be in"),
        (RGB / 255 - 0.5, "from -0.5 to"),
        (np.full((2, 2), np.nan), "from nan to nan"),
    ],
)
def test_arrays_that_are_no_photos(array, why):
    with pytest.raises(UsageError, match=why) as refused:
        read_photo(array)
    assert "\n" not in str(refused.value)


def test_files_bytes_and_images(tmp_path):
    content = encoded(RGB)
    (tmp_path / "a.png").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.png", content)
    with (
        (tmp_path / "a.png").open("rb") as file,
        zipfile.ZipFile(tmp_path / "a.zip") as archive,
        archive.open("b.png") as packed,
        Image.open(tmp_path / "a.png") as image,
    ):
        path = tmp_path / "a.png"
        named = {str(path): [str(path), path, np.str_(path), file, image], "b.png": [packed]}
        named[""] = [content, memoryview(content), bytearray(content), io.BytesIO(content)]
        for name, source in ((name, one) for name, same in named.items() for one in same):
            assert is_one(source)
            assert name_of(source) == name
            np.testing.assert_array_equal(np.asarray(read_photo(source)), RGB)


def test_one_and_several():
    assert is_one(RGB)
    assert is_one(GREY)
    assert each_photo("a.jpg") == ["a.jpg"]
    for several in ([RGB], ("a.jpg",), np.stack([RGB]), jnp.stack([RGB]), iter([RGB])):
        assert not is_one(several)
        (only,) = each_photo(several)
        assert isinstance(only, str) or np.array_equal(only, RGB)
    assert list(each_photo(np.array(["a.jpg", "b.jpg"]))) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("wrong", [5, None, object(), np.float32(1), io.StringIO("text")])
def test_what_is_no_photo(wrong):
    with pytest.raises(UsageError, match=r"is no photo; it must be|is no photo"):
        read_photo(next(iter(each_photo(wrong))))


@pytest.fixture
def address(monkeypatch):
    """Of a server on this machine."""
    pages = {"/a.png": encoded(RGB), "/large": bytes(4000), "/text": b"no photo", "/endless": b""}

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))
            while self.path == "/endless":
                time.sleep(0.05)
                try:
                    self.wfile.write(b"x")
                except OSError:  # nobody reads any more
                    break

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_photos_at_an_address(address, monkeypatch):
    np.testing.assert_array_equal(np.asarray(read_photo(f"{address}/a.png")), RGB)
    assert name_of(f"{address}/a.png") == f"{address}/a.png"
    with pytest.raises(Failure, match=r"cannot be fetched: 404 Not Found$"):
        fetch(f"{address}/missing")
    with pytest.raises(Failure, match=r"not of a format that Pillow reads"):
        read_photo(f"{address}/text")
    monkeypatch.setattr(photos, "MOST_FETCHED", 2**11)
    with pytest.raises(Failure, match="cannot be fetched: more than"):
        fetch(f"{address}/large")
    monkeypatch.setattr(photos, "PATIENCE", 0.3)
    with pytest.raises(Failure, match=r"cannot be fetched: not complete within 0\.3 s"):
        fetch(f"{address}/endless")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("http://127.0.0.1:1/a.jpg", "cannot be fetched: Connection refused"),
        ("https://", "cannot be fetched: no host given"),
        ("http://[::1/a.jpg", "cannot be fetched: "),
        ("s3://bucket/a.jpg", "not an address of http or https"),
        ("file:///etc/hostname", "not an address of http or https"),
    ],
)
def test_addresses_that_give_nothing(where, why, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(Failure, match=why) as failure:
        read_photo(where)
    assert "\n" not in str(failure.value)
