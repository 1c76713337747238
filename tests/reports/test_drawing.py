"""Annotated photographs: text that can be read, inside the image, and nothing hidden by it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from mlic_jax.reports.drawing import (
    LEAST_SIDE,
    MOST_SIDE,
    _font,
    annotate,
    place_captions,
    shortened,
    wrapped,
)
from mlic_jax.reports.page import REGION_COLOURS


def colours(count):
    return [ImageColor.getrgb(colour) for colour in REGION_COLOURS[:count]]


def where(image, colour):
    """Bool [H, W]: which pixels have exactly this colour."""
    return np.all(np.asarray(image) == colour, axis=-1)


def grey(width, height):
    return Image.new("RGB", (width, height), (120, 120, 120))


def test_a_region_is_outlined_inside_its_box_and_named_beside_it():
    image = grey(800, 600)
    before = np.asarray(image).copy()
    drawn = annotate(image, [(200, 100, 500, 700)], ["dog 0.93"])
    assert drawn.size == image.size
    np.testing.assert_array_equal(image, before)
    (colour,) = colours(1)
    own = where(drawn, colour)
    assert own[202:498, 101].all()
    assert own[201, 102:698].all()
    assert own[498, 102:698].all()
    changed = np.any(np.asarray(drawn) != before, axis=-1)
    caption = changed[:200]
    assert caption.any()
    rows, columns = np.nonzero(caption)
    assert columns.min() == 100
    assert rows.max() == 199  # it stands on its box
    assert rows.max() + 1 - rows.min() > 0.03 * 800  # and can be read
    assert not changed[500:].any()
    assert not changed[200:500, :100].any()
    assert not changed[200:500, 700:].any()
    assert not changed[220:480, 120:680].any()  # what is inside stays visible


def test_captions_of_equal_regions_are_all_seen():
    drawn = annotate(grey(640, 480), [(0, 0, 480, 640)] * 4, ["person", "dog", "cat", "tie"])
    for colour in colours(4):
        assert where(drawn, colour).sum() > 400  # the ground of a caption


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_captions_lie_inside_and_apart(data):
    width, height = 640, 480
    boxes, sizes = [], []
    for _ in range(data.draw(st.integers(1, 7))):
        y1, x1 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        boxes.append(
            (y1, x1, data.draw(st.integers(y1 + 1, height)), data.draw(st.integers(x1 + 1, width)))
        )
        sizes.append((data.draw(st.integers(20, 300)), 25))
    taken = [(430, 0, 480, 300)]
    corners = place_captions(boxes, sizes, (width, height), taken)
    placed = [(y, x, y + h, x + w) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    for y1, x1, y2, x2 in placed:
        assert 0 <= y1 < y2 <= height
        assert 0 <= x1 < x2 <= width
    for a, b in itertools.combinations(placed + taken, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_without_room_captions_stay_inside():
    corners = place_captions([(0, 0, 20, 90)] * 5, [(80, 18)] * 5, (90, 20))
    assert all(0 <= x <= 10 and 0 <= y <= 2 for x, y in corners)


@pytest.mark.parametrize("size", [(40, 30), (2000, 20), (20, 2000), (3000, 4000), (1, 1)])
def test_any_size_of_image(size):
    width, height = size
    long_name = "a class whose name is far too long for the photo " * 10
    box = (0, 0, height, width)
    drawn = annotate(grey(*size), [box, box], ["dog 0.93", long_name], [long_name, "cat"])
    scale = max(1, LEAST_SIDE / max(size))
    assert drawn.size == (round(width * scale), round(height * scale))


def test_text_grows_with_the_image():
    heights = []
    for side in (500, 2000):
        (colour,) = colours(1)
        drawn = annotate(grey(side, side), [(side // 2, 0, side, side)], ["dog"])
        rows = np.nonzero(where(drawn, colour)[: side // 2].any(axis=1))[0]
        heights.append(rows.max() - rows.min())
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.1)


def test_notes_stand_at_the_lower_edge():
    image = grey(800, 600)
    drawn = annotate(image, [], [], ["person 0.93", "dog 0.80"])
    changed = np.any(np.asarray(drawn) != np.asarray(image), axis=-1)
    rows, columns = np.nonzero(changed)
    assert rows.max() == 599
    assert columns.min() == 0
    assert rows.min() > 540


def test_long_texts_end_in_an_ellipsis():
    font = _font(20)
    assert shortened("two\nlines", font, 500) == "two lines"
    cut = shortened("a very long name of a class", font, 120)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 120
    assert font.getlength(cut + "mm") > 120  # no more is lost than must be
    assert shortened("name", font, 3) == ""


def test_notes_that_have_no_room_are_counted():
    font = _font(20)
    notes = [f"class {k}" for k in range(20)]
    lines = wrapped(notes, font, 300, 2)
    assert len(lines) == 2
    assert all(font.getlength(line) <= 300 for line in lines)
    missing = int(lines[-1].rsplit("+", 1)[1])
    shown = [note for note in notes if note in "   ".join(lines).split("   ")]
    assert shown == notes[: 20 - missing]
    assert len(shown) >= 3
    assert wrapped(notes[:2], font, 300, 2) == ["class 0   class 1"]
    assert wrapped(["two\nlines", "a\n0.5"], font, 300, 2) == ["two lines   a 0.5"]
    assert wrapped([], font, 300, 2) == []


def test_a_photo_is_reduced_to_what_a_jpeg_file_holds():
    wide = Image.new("RGB", (2 * MOST_SIDE, 200), (120, 120, 120))
    drawn = annotate(wide, [(0, MOST_SIDE, 200, 2 * MOST_SIDE)], ["dog"], ["cat"])
    assert drawn.size == (MOST_SIDE, 100)
    columns = np.nonzero(where(drawn, colours(1)[0]))[1]
    assert MOST_SIDE // 2 <= columns.min() < MOST_SIDE // 2 + 5
    assert columns.max() > MOST_SIDE - 5
    assert annotate(grey(1, 10 * MOST_SIDE), [(5, 0, 9, 1)], ["dog"]).size == (1, MOST_SIDE)
