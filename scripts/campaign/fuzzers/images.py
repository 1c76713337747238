"""Damaged and hostile photos: decoded or refused, predicted and drawn."""

import csv
import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from fuzzer import Broken, Fuzzer, answer, bounded
from mutations import damaged
from PIL import Image

from mlic_jax.config import default_config
from mlic_jax.data.transforms import opened, range_of, to_rgb
from mlic_jax.models import create_model
from mlic_jax.predict.files import predict_files
from mlic_jax.runtime.checkpoint import save_weights

PHOTOS = 50  # of a case, which are predicted together
CLASSES = ("ant", "bee", "cat")
COULD_NOT_BE_READ = "images could not be read"  # in the line that ends a prediction


class Images(Fuzzer):
    title = "Hostile photos"
    units = "photos"
    holds = (
        "decoding gives pixels of the size that the file names, or one line why not, in 5 s of the "
        "processor and 20 times the file's size plus 200 MB (and what its pixels need); "
        "`--mode=predict` on a folder of them has a row for each, with its reason or with labels, "
        "and a drawing of every one with labels"
    )
    share = 5
    seconds = 300

    def __init__(self, shared: Path):
        self._model = shared / "tiny_model"
        if not self._model.is_dir():
            _save_model(self._model)
        self._originals = dict(_originals())
        # A first one pays for what is loaded once.
        folder = shared / "first_photos"
        shutil.rmtree(folder, ignore_errors=True)
        self._predict(folder, {"a.jpg": self._originals["baseline.jpg"]})

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        photos = {}
        for k in range(PHOTOS):
            name = list(self._originals)[rng.integers(len(self._originals))]
            photos[f"{k:02d}-{name}"] = hostile(rng, name, self._originals[name])
        yield from self._predict(folder, photos)

    def _predict(self, folder: Path, photos: dict[str, bytes]) -> Iterator[str]:
        images, out = folder / "images", folder / "out"
        images.mkdir(parents=True)
        for name, content in photos.items():
            (images / name).write_bytes(content)
        refusals = {}
        for name, content in photos.items():
            try:
                refusals[name] = _decode(content)
            except Broken as broken:
                raise Broken(f"{name}: {broken}") from None
        _, line = answer(lambda: predict_files(self._model, str(images), out))
        if line is not None and COULD_NOT_BE_READ not in line:
            raise Broken(f"prediction stops: {line}")
        rows = _rows(out)
        if rows.keys() != photos.keys():
            raise Broken(f"predictions.csv lacks {sorted(photos.keys() - rows.keys())}")
        for name, row in rows.items():
            if refusals[name] and not row["error"]:
                raise Broken(f"{name} cannot be decoded ({refusals[name]}), and has labels")
            if not row["error"]:
                _check_drawn(out, name)
        if not (out / "index.html").is_file():
            raise Broken("there is no index.html")
        shutil.rmtree(folder)
        return [
            f"{name.rpartition('.')[2]} {'refused' if row['error'] else 'read'}"
            for name, row in rows.items()
        ]


def _save_model(path: Path) -> None:
    config = default_config()
    config.model.backbone, config.model.width, config.model.top_n = "resnet10", 0.125, 2
    config.data.image_size, config.eval.batch_size = 64, 8
    model = create_model(config.model, len(CLASSES))
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    metadata = {
        "config": json.loads(config.to_json()),
        "class_names": list(CLASSES),
        "preprocessing": {
            "image_size": 64,
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
        },
    }
    save_weights(path, dict(variables), metadata)


def _decode(content: bytes) -> str | None:
    """Why a photo cannot be decoded as prediction does; None where it can."""
    size = (0, 0)
    try:
        with Image.open(io.BytesIO(content)) as photo:
            size = photo.size
    except Exception:  # whatever Pillow makes of it
        pass
    pixels = min(size[0] * size[1], Image.MAX_IMAGE_PIXELS)
    with bounded(len(content), pixels):
        image, line = answer(
            lambda: opened(content, lambda image: to_rgb(image, True, range_of(image)))
        )
    if image is not None and (image.mode != "RGB" or sorted(image.size) != sorted(size)):
        raise Broken(f"decoded as {image.mode} of {image.size}, the file says {size}")
    return line


def _rows(out: Path) -> dict[str, dict[str, str]]:
    """The rows of predictions.csv by file; those of predictions.jsonl must be the same files."""
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as table:
        rows = {row["file"]: row for row in csv.DictReader(table)}
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    if [json.loads(line)["file"] for line in lines] != list(rows):
        raise Broken("predictions.csv and predictions.jsonl are not of the same photos")
    return rows


def _check_drawn(out: Path, name: str) -> None:
    drawn = list((out / "annotated").glob(f"{name}*"))
    if len(drawn) != 1:
        raise Broken(f"{name} has labels and no drawing")
    with Image.open(drawn[0]) as image:
        image.load()


# --- photos


def _originals() -> Iterator[tuple[str, bytes]]:
    """Small photos of every usual format, and of its variants."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 40)[:, None, None] + rng.integers(0, 50, (40, 56, 3))
    photo = Image.fromarray(ramp.astype(np.uint8))
    grey, palette, clear = photo.convert("L"), photo.quantize(32), photo.convert("RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray((ramp[..., 0] * 200).astype(np.uint16))
    for name, image, options in (
        ("baseline.jpg", photo, {"quality": 90}),
        ("progressive.jpg", photo, {"progressive": True}),
        ("turned.jpg", photo, {"exif": turned}),
        ("grey.jpg", grey, {}),
        ("cmyk.jpg", photo.convert("CMYK"), {}),
        ("colour.png", photo, {}),
        ("palette.png", palette, {"transparency": 3}),
        ("clear.png", clear, {"exif": turned}),
        ("wide.png", wide, {}),
        ("bits.png", photo.convert("1"), {}),
        ("still.gif", palette, {}),
        ("moving.gif", palette, {"save_all": True, "append_images": [palette] * 2}),
        ("colour.bmp", photo, {}),
        ("palette.bmp", palette, {}),
        ("raw.tiff", photo, {}),
        ("lzw.tiff", photo, {"compression": "tiff_lzw"}),
        ("deflate.tiff", photo, {"compression": "tiff_adobe_deflate", "exif": turned}),
        ("float.tiff", photo.convert("F"), {}),
        ("lossy.webp", photo, {"exif": turned}),
        ("lossless.webp", clear, {"lossless": True}),
        ("moving.webp", photo, {"save_all": True, "append_images": [photo.rotate(90)]}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if name.endswith("jpg") else name.rpartition(".")[2], **options)
        yield name, buffer.getvalue()


def hostile(rng: np.random.Generator, name: str, content: bytes) -> bytes:
    """A damaged photo; of some PNGs the checksums are right again, so that it is read at all."""
    if name.endswith(".png") and rng.random() < 0.5:
        chunks = [
            [kind, damaged(rng, data)] if rng.random() < 0.3 and data else [kind, data]
            for kind, data in _chunks(content)
        ]
        if rng.random() < 0.3:  # a small file of very many pixels
            side = int(rng.choice([1, 3000, 9000, 70_000, 2**31 - 1]))
            other = int(rng.choice([1, 1000, 2**31 - 1]))
            chunks[0][1] = struct.pack(">II", side, other) + chunks[0][1][8:]
        return content[:8] + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    return damaged(rng, content)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG: kind and data of each."""
    place = 8
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        place += 12 + size


FUZZER = Images
