"""Labels photos with the model in this folder; needs numpy, pillow and onnxruntime, nothing else.

    python run.py PHOTO... [--top N] [--threads N]

prints a line of JSON a photo: its labels, the probability of every label, and the regions that the
model looked at, [y1, x1, y2, x2] in pixels of the photo. From Python: `Bundle(folder)(path)`.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image

TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
How = dict[str, Any]  # of model.json, or `preprocessing` in it


def to_rgb(image: Image.Image, value_range: Sequence[float] | None) -> Image.Image:
    """An opened photo upright, in RGB; of more than 8 bits, with black and white as in training."""
    image.load()
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1) - 2  # of `TURNS`
    except Exception:  # a damaged tag turns nothing
        turn = -1
    if image.mode == "F" or image.mode.startswith("I"):
        if value_range is None:
            raise ValueError("it has more than 8 bits, and the model was trained on none such")
        black, white = value_range
        shares = (np.asarray(image).astype(float) - black) / (white - black + (image.mode != "F"))
        levels = np.clip(np.nan_to_num(256 * shares, posinf=255), 0, 255)
        image = Image.fromarray(levels.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    return image.transpose(Image.Transpose[TURNS.split()[turn]]) if 0 <= turn < 7 else image


def frame(width: int, height: int, how: How) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) that a photo is resized to, and the corner (x, y) of what is seen of it."""
    size, share = how["size"], how["center_crop"]
    if not share:
        return (size, size), (0, 0)
    edge, shorter = math.floor(size / share), min(width, height)
    wide, tall = edge * width // shorter, edge * height // shorter
    return (wide, tall), (round((wide - size) / 2), round((tall - size) / 2))


def square(image: Image.Image, how: How) -> np.ndarray:
    """What the model sees of an RGB photo, uint8 [size, size, 3]: resized across, then down."""
    size, kind = how["size"], Image.Resampling[how["interpolation"].upper()]
    (wide, tall), (x, y) = frame(*image.size, how)
    if wide * tall > 2**24 and how["center_crop"]:
        across, down = image.width / wide, image.height / tall
        box = (x * across, y * down, (x + size) * across, (y + size) * down)
        return np.array(image.resize((size, size), kind, box))
    is_ribbon = image.height > max(100 * image.width, tall)
    halfway = image.resize((image.width, tall) if is_ribbon else (wide, image.height), kind)
    return np.array(halfway.resize((wide, tall), kind).crop((x, y, x + size, y + size)))


def box_in_photo(box: np.ndarray, width: int, height: int, how: How) -> list[int]:
    """A box [y1, x1, y2, x2] of what the model sees in pixels of the photo: all that it touches."""
    (wide, tall), (x, y) = frame(width, height, how)
    y1, x1, y2, x2 = (how["size"] * int(edge) for edge in box)
    x, y, wide, tall = (how["grid"] * length for length in (x, y, wide, tall))
    top, left = (y1 + y) * height // tall, (x1 + x) * width // wide
    return [top, left, -(-(y2 + y) * height // tall), -(-(x2 + x) * width // wide)]


def described(
    outputs: dict[str, np.ndarray], width: int, height: int, description: How, top: int | None
) -> dict[str, Any]:
    """What the model's outputs say of a photo of that size."""
    names, probabilities = description["class_names"], outputs["probabilities"]
    how = description["preprocessing"]
    ranked = np.argsort(-probabilities, kind="stable")
    present = [c for c in ranked if outputs["present"][c]] if top is None else ranked[:top]
    regions = [
        {"label": names[c], "box": box_in_photo(outputs["boxes"][k], width, height, how)}
        for k, c in enumerate(outputs.get("box_classes", ()))
        if "looked_at" not in outputs or outputs["looked_at"][k]
    ]
    return {
        "labels": [names[c] for c in present],
        "scores": {name: float(of) for name, of in zip(names, probabilities, strict=True)},
        "regions": regions,
    }


class Bundle:
    """The model of a folder, in onnxruntime."""

    def __init__(self, folder: Path = Path(__file__).parent, threads: int = 0):
        import onnxruntime

        self.description = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        model = str(Path(folder) / self.description["formats"]["onnx"])
        self.session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, path: str | Path | IO[bytes], top: int | None = None) -> dict[str, Any]:
        """What it says of a photo; of one that cannot be read, an `error`."""
        how, given = self.description["preprocessing"], self.description["input"]
        try:
            with Image.open(path) as image:
                photo = to_rgb(image, how["range"])
            pixels = square(photo, how)
        except Exception as error:  # Pillow raises nearly anything
            return {"file": str(path), "error": str(error)}
        rows = given["shape"][0]  # of a batch of fixed size all rows are this photo
        batch = np.repeat(pixels[None], 1 if rows == "batch" else rows, axis=0)
        found = self.session.run(None, {given["name"]: batch})
        outputs = {name: of[0] for name, of in zip(self.names, found, strict=True)}
        return {"file": str(path), **described(outputs, *photo.size, self.description, top)}


def print_all(bundle: Bundle, photos: Sequence[str], top: int | None) -> int:
    """Prints a line of JSON a photo; returns how many could not be read."""
    failed, is_utf8 = 0, "utf" in str(sys.stdout.encoding).lower()
    for photo in photos:
        said = bundle(photo, top)
        line = json.dumps(said, ensure_ascii=False)
        print(line if line.isprintable() and is_utf8 else json.dumps(said))
        failed += "error" in said
    return failed


def main() -> int:
    """Runs the command line; 1 where a photo could not be read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", nargs="+", metavar="PHOTO")
    parser.add_argument("--top", type=int, metavar="N", help="so many labels, the likeliest")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    given = parser.parse_args()
    if given.top is not None and given.top < 1:
        parser.error(f"--top is {given.top}; it must be positive")
    return 1 if print_all(Bundle(threads=given.threads), given.photos, given.top) else 0


if __name__ == "__main__":
    sys.exit(main())
