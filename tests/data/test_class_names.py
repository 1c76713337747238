"""The class lists against published facts, and what a person may name instead of one."""

import json

import pytest

from mlic_jax.data.class_names import CLASS_LISTS, read_class_names
from mlic_jax.errors import Failure, UsageError


def test_sizes_and_orders():
    sizes = {name: len(names) for name, names in CLASS_LISTS.items()}
    assert sizes == {"voc": 20, "coco": 80, "coco-annotation": 80, "nuswide": 81, "apparel": 11}
    assert all(len(set(names)) == len(names) for names in CLASS_LISTS.values())
    assert list(CLASS_LISTS["voc"]) == sorted(CLASS_LISTS["voc"])
    assert list(CLASS_LISTS["coco"]) == sorted(CLASS_LISTS["coco-annotation"])
    # Places that an accidental sort would change.
    assert CLASS_LISTS["coco-annotation"][:3] == ("person", "bicycle", "car")
    assert CLASS_LISTS["coco-annotation"][-2:] == ("hair drier", "toothbrush")
    assert CLASS_LISTS["nuswide"][:2] == ("clouds", "sky")
    assert CLASS_LISTS["nuswide"][-2:] == ("earthquake", "map")
    assert CLASS_LISTS["apparel"][5:7] == ("white", "dress")
    assert all(name in CLASS_LISTS["coco"] for name in ("umbrella", "cup", "tennis racket"))


def test_annotation_order_is_that_of_the_annotation_file(shared):
    content = json.loads((shared / "coco128" / "instances_val.json").read_text())
    names = tuple(category["name"] for category in content["categories"])
    assert CLASS_LISTS["coco-annotation"] == names


def test_a_text_file_or_a_prepared_set_instead_of_a_list(tmp_path):
    assert read_class_names("apparel") == CLASS_LISTS["apparel"]
    file = tmp_path / "classes.txt"
    file.write_text("sea gull\n\n  tern  \nauk\n", encoding="utf-8")
    assert read_class_names(file) == read_class_names(str(file)) == ("sea gull", "tern", "auk")
    (tmp_path / "metadata.json").write_text(json.dumps({"class_names": ["b", "a"]}))
    assert read_class_names(tmp_path) == ("b", "a")


def test_what_names_no_classes_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"voc2007 is no text file .* none of voc, coco"):
        read_class_names("voc2007")
    with pytest.raises(UsageError, match="no prepared set"):
        read_class_names(tmp_path)  # a folder without metadata
    for name, content, words in (
        ("twice.txt", b"tern\nauk\ntern\n", r"occur more than once: tern$"),
        ("none.txt", b"\n \n", "has no class names"),
        ("zero.txt\0", None, "cannot be read"),
        ("metadata.json", b"[1]", "has no class names: prepare the set again"),
        ("metadata.json", b'{"class_names": [1]}', "has no class names: prepare the set again"),
        ("metadata.json", b"{", "metadata.json is not JSON"),
        ("picture.png", b"\x89PNG\xff", "cannot be read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(Failure, match=words):
            read_class_names(tmp_path if name == "metadata.json" else tmp_path / name)
