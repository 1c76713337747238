"""Annotated photographs: outlined regions, and captions on filled ground that lie inside the image.

The size of the text follows that of the image. Captions move until none hides another, as long as
there is room.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from mlic_jax.reports.page import REGION_COLOURS
from mlic_jax.scores.predictions import Box

LEAST_SIDE = 480  # of the longer side, pixels: in a smaller image text would hide everything
MOST_SIDE = 65_500  # of a side, pixels: a JPEG file holds no more
NOTES_SHARE = 0.4  # of the height, that the notes may take
_DARK = "#14181f"
_GAP = "   "  # between notes


def annotate(
    image: Image.Image,
    boxes: Sequence[Box],
    captions: Sequence[str],
    notes: Sequence[str] = (),
) -> Image.Image:
    """Draws regions with their captions, and notes at the lower edge.

    Args:
        image: RGB; it stays as it is.
        boxes: in pixels of `image`, the most important first; region k has the k-th colour of
            `REGION_COLOURS`.
        captions: of the boxes.
        notes: what belongs to no box; as many as have room, and the number of the others.

    Returns:
        An RGB image of the size of `image`, or, where that is small, enlarged to `LEAST_SIDE`, and
        where it is too large for a JPEG file reduced to `MOST_SIDE`.
    """
    scale = min(max(1.0, LEAST_SIDE / max(image.size)), MOST_SIDE / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = image.resize((width, height)) if scale != 1 else image.copy()
    boxes = [
        (round(y1 * scale), round(x1 * scale), round(y2 * scale), round(x2 * scale))
        for y1, x1, y2, x2 in boxes
    ]
    draw = ImageDraw.Draw(canvas)
    size = max(6, min(round(0.03 * max(width, height)), height // 2))
    font, padding = _font(size), size // 4

    colours = [REGION_COLOURS[k % len(REGION_COLOURS)] for k in range(len(boxes))]
    for box, colour in reversed(list(zip(boxes, colours, strict=True))):
        _outline(draw, box, colour, thickness=max(2, size // 7))
    taken = _draw_notes(draw, notes, canvas.size, font, padding)
    captions = [shortened(caption, font, width - 2 * padding) for caption in captions]
    sizes = [(caption_width(text, font, padding), _height(font, padding)) for text in captions]
    corners = place_captions(boxes, sizes, canvas.size, taken)
    for (x, y), (w, h), text, colour in zip(corners, sizes, captions, colours, strict=True):
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
        draw.text((x + padding, y + padding), text, fill="black", font=font)
    return canvas


def place_captions(
    boxes: Sequence[Box],
    sizes: Sequence[tuple[int, int]],
    canvas: tuple[int, int],
    taken: Sequence[Box] = (),
) -> list[tuple[int, int]]:
    """Chooses the upper left corner (x, y) of the caption of every box.

    At an edge of its box, else as near to it as there is room; always inside the canvas. Captions
    overlap only where there is no room left.

    Args:
        boxes: what the captions belong to.
        sizes: (width, height) of the captions, at most those of the canvas.
        canvas: (width, height).
        taken: where no caption may lie.
    """
    taken, corners = list(taken), []
    for (y1, x1, y2, x2), (w, h) in zip(boxes, sizes, strict=True):
        edges = [(x, y) for y in (y1 - h, y1, y2 - h, y2) for x in (x1, x2 - w)]
        grid = [(x, y) for y in range(0, canvas[1], max(1, h // 2)) for x in (x1, x2 - w, 0)]
        grid.sort(key=lambda corner: abs(corner[1] - y1))
        inside = [
            (min(max(0, x), canvas[0] - w), min(max(0, y), canvas[1] - h)) for x, y in edges + grid
        ]
        free = (at for at in inside if not any(_overlap(at, (w, h), box) for box in taken))
        x, y = next(free, inside[0])
        taken.append((y, x, y + h, x + w))
        corners.append((x, y))
    return corners


def _overlap(corner: tuple[int, int], size: tuple[int, int], box: Box) -> bool:
    (x, y), (w, h), (y1, x1, y2, x2) = corner, size, box
    return x < x2 and x1 < x + w and y < y2 and y1 < y + h


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text in one line, its end cut off where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


def wrapped(notes: Sequence[str], font: ImageFont.FreeTypeFont, width: int, room: int) -> list[str]:
    """Notes in up to `room` lines of `width` pixels; the last counts those that had no place."""
    lines: list[list[str]] = []
    for k, note in enumerate(" ".join(note.split()) for note in notes):  # of one line each
        if lines and font.getlength(_GAP.join([*lines[-1], note])) <= width:
            lines[-1].append(note)
        elif len(lines) < room:
            lines.append([shortened(note, font, width)])
        else:
            last, missing = lines[-1], len(notes) - k
            while last and font.getlength(_GAP.join([*last, f"+{missing}"])) > width:
                last.pop()
                missing += 1
            last.append(f"+{missing}")
            break
    return [_GAP.join(line) for line in lines]


def caption_width(text: str, font: ImageFont.FreeTypeFont, padding: int) -> int:
    """Of the ground of a line of text, pixels."""
    return int(font.getlength(text)) + 1 + 2 * padding


def _height(font: ImageFont.FreeTypeFont, padding: int) -> int:
    return sum(font.getmetrics()) + 2 * padding


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: str, thickness: int) -> None:
    """A coloured line between two dark ones, all of it inside the box."""
    y1, x1, y2, x2 = box
    for inset, width, fill in ((0, thickness + 2, _DARK), (1, thickness, colour)):
        corners = (x1 + inset, y1 + inset, x2 - 1 - inset, y2 - 1 - inset)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline=fill, width=width)


def _draw_notes(
    draw: ImageDraw.ImageDraw,
    notes: Sequence[str],
    canvas: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    padding: int,
) -> list[Box]:
    """Draws notes in lines at the lower left corner; gives the boxes that they lie in."""
    width, height = canvas
    line_height = _height(font, padding)
    room = max(1, int(NOTES_SHARE * height) // line_height)
    lines = wrapped(notes, font, width - 2 * padding, room)
    boxes = []
    for row, line in enumerate(lines):
        y = height - (len(lines) - row) * line_height
        box = (y, 0, y + line_height, min(width, caption_width(line, font, padding)))
        draw.rectangle((box[1], box[0], box[3] - 1, box[2] - 1), fill=_DARK)
        draw.text((padding, y + padding), line, fill="white", font=font)
        boxes.append(box)
    return boxes


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more, but no CJK."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(path, size)
