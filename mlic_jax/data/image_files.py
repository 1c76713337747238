"""Which files are images, told from their names."""

from functools import cache
from pathlib import Path

from PIL import Image


@cache
def image_suffixes() -> frozenset[str]:
    """The endings of names, `.jpg` and so on, of the image formats that Pillow reads."""
    Image.init()
    # Pillow knows a few formats by name alone, videos among them.
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and Image.MIME.get(kind, "image/").startswith("image/")
    ) | {".mpo"}


def is_image(path: Path) -> bool:
    """Whether a path has the name of an image; hidden files have none."""
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")
