"""What all pages share: colours of regions, which of them are shown, photos and templates."""

import base64
import io
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jinja2
from PIL import Image

# Told apart in every common form of colour blindness, and all light enough for black digits.
REGION_COLOURS = ("#ffb000", "#56b4e9", "#3ddc97", "#ff8fc7", "#f0e442", "#ff7a45", "#b9a5ff")


# A region is drawn where the probability of its class in the whole image is higher, as in the demo
# that MCAR was released with.
LEAST_GLOBAL = 0.1


def is_drawn(global_probability: float) -> bool:
    """Whether pictures and pages show a region, by the probability of its class in the whole image.

    Of that the six digits count that files hold, so that all that is made of them agrees.
    """
    return round(float(global_probability), 6) > LEAST_GLOBAL


def class_colours(classes: Iterable[int]) -> dict[int, str]:
    """The colour of each class of a photo, by the order in which they first come."""
    distinct = dict.fromkeys(classes)
    return {c: REGION_COLOURS[k % len(REGION_COLOURS)] for k, c in enumerate(distinct)}


def text_width(text: str) -> float:
    """At least the width of a text in the fonts of the pages, in sizes of the font."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    capital = sum(letter.isupper() for letter in text)
    return 0.7 * len(text) + 0.2 * capital + 0.5 * wide


def data_uri(image: Image.Image) -> str:
    """An RGB image as a JPEG for `<img src>`."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def page_template(path: Path, filters: Mapping[str, Callable[..., str]]) -> jinja2.Template:
    """The template of a page, with filters of its own; a name that it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name)
