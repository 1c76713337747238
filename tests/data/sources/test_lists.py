"""Lists by class."""

import pytest

from mlic_jax.errors import Failure, UsageError

PHOTOS = [f"im{i}.jpg" for i in range(1, 7)]
EXPECTED = {"im1.jpg": {"baby"}, "im2.jpg": {"baby", "sea"}, "im6.jpg": {"sea"}}
EXPECTED = {name: EXPECTED.get(name, set()) for name in PHOTOS}


@pytest.mark.parametrize("place", ["annotations/", "mirflickr25k_annotations_v080/"])
@pytest.mark.parametrize("line", ["{}", "im{}.jpg", "images/im{}.jpg"])
def test_mirflickr(plant, read_own, place, line):
    lists = {"baby": [1, 2], "sea": [2, 6, 6]}
    files = {f"{place}{c}.txt": "\n".join(map(line.format, n)) for c, n in lists.items()}
    files[f"{place}README.txt"] = "these are lists"
    own = read_own(plant(files, [f"images/{name}" for name in PHOTOS]))
    assert own.layout.format == "lists" and own.source.class_names == ("baby", "sea")
    assert own.labels == {f"images/{name}": names for name, names in EXPECTED.items()}


def test_numbers_with_zeros(plant, read_own):
    files = {"lists/a.txt": "0001\n2\n", "lists/b.txt": "0010\n"}
    own = read_own(plant(files, ["x/im001.jpg", "x/im002.jpg", "x/im010.jpg"]))
    assert own.labels == {"x/im001.jpg": {"a"}, "x/im002.jpg": {"a"}, "x/im010.jpg": {"b"}}


def test_what_is_refused(plant, read_own):
    folder = plant({"lists/a.txt": "1\n", "lists/b.txt": "7\n"}, ["x/a1.jpg", "x/b1.jpg"])
    with pytest.raises(Failure, match=r"a.txt, line 1: which photo in .* is '1'\? .*a1.jpg and b1"):
        read_own(folder)
    folder = plant({"lists/a.txt": "2\n"}, ["x/b2.jpg"])
    with pytest.raises(Failure, match=r"b.txt, line 1: which photo in .* is '7'\? There are none"):
        read_own(folder)
    plant({}, ["y/a1.jpg"])
    with pytest.raises(
        UsageError, match="several folders of photos: x, y; say which with --images"
    ):
        read_own(folder)
