"""The numbers of a data card against counts made one by one, and what it warns of."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlic_jax.data import records
from mlic_jax.data.card import describe, findings, strongest_pairs

ROLES = {"train": "train", "val": "val", "test": "val"}


def _encoded(seed, kind="PNG", side=(9, 7), orientation=1):
    pixels = np.random.default_rng(seed).integers(0, 256, (side[1], side[0], 3), np.uint8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.fixture
def card_of(toy_source, toy_example, tmp_path):
    """card_of(train=[(labels, image), ...], val=...) -> the card of such a set."""

    def make(on_corrupt="fail", upright=False, **contents):
        source = toy_source("toy", **{split: 0 for split in contents})
        for split, examples in contents.items():
            source.contents[split] = [
                toy_example(
                    0, image_id=f"{split}{i}", labels=np.array(labels, np.int8), image=image
                )
                for i, (labels, image) in enumerate(examples)
            ]
        folder = records.prepare(source, tmp_path, on_corrupt, workers=1, upright=upright)
        return describe({split: records.open_split(folder, split) for split in contents})

    return make


TRAIN = [
    ([1, 1, -1], _encoded(1, "JPEG", (20, 10))),
    ([1, 1, 0], _encoded(2)),
    ([1, 1, -1], _encoded(2)),
    ([-1, -1, -1], _encoded(4)),
    ([1, 0, 0], _encoded(3)),
]
VAL = [([1, -1, -1], _encoded(3)), ([1, -1, 1], _encoded(6, "JPEG", orientation=6))]


def test_what_a_card_says(card_of):
    card = card_of(train=TRAIN, val=VAL)
    assert json.loads(json.dumps(card)) == card
    assert (card["name"], card["class_names"]) == ("toy", ["ant", "bee", "cat"])
    assert card["splits"]["train"] == {
        "images": 5,
        "unlabelled": 1,
        "labels_per_image": [1, 1, 3],
        "positives": [4, 3, 0],
        "negatives": [1, 1, 3],
        "unknown": [0, 1, 2],
        "without_positives": ["cat"],
        "unreadable": [],
        "misfits": [],
    }
    assert card["splits"]["val"]["without_positives"] == ["bee"]
    assert card["co_occurrence"]["split"] == "train"
    assert card["co_occurrence"]["counts"] == [[4, 3, 0], [3, 3, 0], [0, 0, 0]]
    (pair,) = card["co_occurrence"]["pairs"]
    assert pair == {
        "classes": ["ant", "bee"],
        "together": 3,
        "by_chance": pytest.approx(4 * 3 / 5),
        "given_first": 3 / 4,
        "given_second": 1.0,
    }
    assert card["sizes"] == [[9, 7, 6], [20, 10, 1]]
    assert card["formats"] == {"PNG": 5, "JPEG": 2}
    assert (card["turned"], card["upright"], card["range"], card["unlisted"]) == (1, False, None, 0)
    assert card["duplicates"] == [
        [
            {"split": "train", "image_id": "train1", "labels": ["ant", "bee"]},
            {"split": "train", "image_id": "train2", "labels": ["ant", "bee"]},
        ],
        [
            {"split": "train", "image_id": "train4", "labels": ["ant"]},
            {"split": "val", "image_id": "val0", "labels": ["ant"]},
        ],
    ]
    assert card["look_alikes"] == []  # the same bytes are said above


def test_what_a_card_warns_of(card_of):
    said = findings(card_of(train=TRAIN, val=VAL), ROLES)
    assert [kind for kind, _ in said] == ["problem"] * 4 + ["note"] * 3
    text = "\n".join(text for _, text in said)
    assert "1 image is of the same bytes in more than one split" in text
    assert "with different labels" not in text
    assert "1 image is more than once in the same split" in text
    assert "train shows no image of cat: nothing is learned of them" in text
    assert "val shows no image of bee: they have no AP" in text
    assert "val serves as validation and as test" in text
    assert "3 of 21 labels are unknown" in text
    assert "1 image is turned by an EXIF tag, which training ignores" in text


def test_the_same_image_with_other_labels(card_of):
    examples = [([1, 1, 1], _encoded(1)), ([1, 1, -1], _encoded(1)), ([1, 1, 1], _encoded(2))]
    said = findings(card_of(train=examples, val=examples[2:]), ROLES)
    assert ("problem", "1 image is more than once, with different labels") in said


def test_unreadable_images(card_of):
    examples = [([1, 1, 1], _encoded(1)), ([1, 1, 1], b"no image")]
    card = card_of("skip", train=examples, val=[([1, 1, 1], _encoded(5))])
    assert card["splits"]["train"]["unreadable"] == ["train1"]
    roles = {"train": "train", "val": "val", "test": "test"}
    assert findings(card, roles) == [("problem", "train: 1 image is unreadable and left out")]


def test_look_alikes_in_two_splits(card_of):
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((90, 80), Image.Resampling.BICUBIC)
    twice = []
    for kind in ("PNG", "BMP"):
        buffer = io.BytesIO()
        photo.save(buffer, kind)
        twice.append(([1, 1, 1], buffer.getvalue()))
    other = ([1, 1, 1], _encoded(1, side=(90, 80)))
    card = card_of(train=[other, twice[0]], val=[twice[1]])
    (pair,) = card["look_alikes"]
    assert [copy["image_id"] for copy in pair] == ["val0", "train1"]
    said = findings(card, {"train": "train", "val": "val", "test": "test"})
    ((kind, text),) = said
    assert kind == "note"
    assert text.startswith("1 image looks like one of another split: val/val0 and train/train1. ")


def test_classes_that_hardly_any_image_lacks(card_of):
    # Of 100 images 1 is without ant, 4 without bee (of 50 it is not known), 40 without cat.
    labels = np.ones((100, 3), int)
    labels[:1, 0], labels[:4, 1], labels[50:, 1], labels[:40, 2] = -1, -1, 0, -1
    image = _encoded(1)
    card = card_of(train=[(row, image) for row in labels], val=[([1, 1, 1], _encoded(2))])
    said = [text for _, text in findings(card, ROLES) if text.startswith("train: ")]
    assert len(said) == 2
    assert said[0].startswith("train: nearly every image shows ant (99.0%): ")
    assert said[1].startswith("train: fewer than 5 images are without bee (4): ")


def test_images_that_are_turned_upright_are_a_note(card_of):
    said = findings(card_of(upright=True, train=TRAIN, val=VAL), ROLES)
    (note,) = [text for kind, text in said if "EXIF" in text and kind == "note"]
    assert note == "1 image is turned upright, as an EXIF tag says (data.upright)"


def test_deep_images_and_boxes_that_do_not_fit(card_of):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[5, 3000]], np.uint16)).save(buffer, "PNG")
    examples = [([1, 1, 1], buffer.getvalue()), ([1, 1, 1], _encoded(1, side=(20, 16)))]
    card = card_of(train=examples, val=examples[:1])
    assert card["range"] == [0.0, 4095.0]
    said = findings(card, {"train": "train", "val": "val", "test": "test"})
    assert (
        "note",
        "of pictures of more than 8 bits a value of 0 is black and 4,095 white (data.range)",
    ) in said
    card["splits"]["train"]["misfits"] = [f"p{i}" for i in range(7)]
    (problem,) = [text for _, text in findings(card, ROLES) if "boxes" in text]
    assert problem.startswith("train: 7 images have boxes that do not fit the picture")
    assert problem.endswith(": p0, p1, p2, p3, p4 and 2 more")


def test_nothing_is_amiss(card_of):
    card = card_of(train=[([1, 1, 1], _encoded(1))], val=[([1, 1, 1], _encoded(2))])
    assert findings(card, {"train": "train", "val": "val", "test": "test"}) == []
    card["unlisted"] = 1200
    (note,) = findings(card, {"train": "train", "val": "val", "test": "test"})
    assert note == ("note", "1,200 images are there without annotations, and in no split")


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 2**32), st.integers(1, 20))
def test_pairs_against_counting_one_by_one(images, classes, seed, most):
    present = np.random.default_rng(seed).random((images, classes)) < 0.4
    names = [f"c{i}" for i in range(classes)]
    counts = np.array(
        [[(present[:, i] & present[:, j]).sum() for j in range(classes)] for i in range(classes)]
    )
    found = strongest_pairs(counts, images, names, most)
    expected = {}
    for i in range(classes):
        for j in range(i):
            together = sum(row[i] and row[j] for row in present)
            chance = sum(row[i] for row in present) * sum(row[j] for row in present) / images
            if together > chance:
                expected[frozenset((names[i], names[j]))] = together - chance
    excess = [pair["together"] - pair["by_chance"] for pair in found]
    np.testing.assert_allclose(excess, sorted(expected.values(), reverse=True)[:most])
    for pair, value in zip(found, excess, strict=True):
        first, second = (present[:, names.index(name)] for name in pair["classes"])
        assert expected[frozenset(pair["classes"])] == pytest.approx(value)
        assert first.sum() >= second.sum()
        assert pair["given_first"] == pytest.approx(second[first].mean())
        assert pair["given_second"] == pytest.approx(first[second].mean())
