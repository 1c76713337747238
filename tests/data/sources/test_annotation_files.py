"""Every source says what it reads: a set of it asks for nothing else, and follows every change."""

import io
import json
import os

import numpy as np
import openpyxl
import pyarrow.parquet
import pytest

from mlic_jax.config import default_config
from mlic_jax.data import sources
from mlic_jax.data.detect import roles_of
from mlic_jax.data.options import DataOptions

NAMES = ("a", "b", "c", "d")
PHOTOS = [f"{name}.jpg" for name in NAMES]
LABELS = {"a": "dog", "b": "cat", "c": "dog", "d": "cat"}
AFTER = LABELS | {"a": "cat"}


def xml(name):
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
    return f"<annotation><object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"


def coco(labels):
    return {
        "images": [{"id": i, "file_name": photo} for i, photo in enumerate(PHOTOS)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": ["cat", "dog"].index(label)}
            for i, label in enumerate(labels.values())
        ],
    }


def label_studio(labels):
    results = {n: [{"result": [{"value": {"choices": [label]}}]}] for n, label in labels.items()}
    return [{"data": {"image": f"{n}.jpg"}, "annotations": results[n]} for n in labels]


def via(labels):
    regions = {n: [{"region_attributes": {"kind": label}}] for n, label in labels.items()}
    return {n: {"filename": f"{n}.jpg", "regions": regions[n]} for n in labels}


def createml(labels):
    return [{"image": f"{n}.jpg", "annotations": [{"label": label}]} for n, label in labels.items()]


def mmpretrain(labels):
    numbers = {n: ["cat", "dog"].index(label) for n, label in labels.items()}
    listed = [{"img_path": f"{n}.jpg", "gt_label": number} for n, number in numbers.items()]
    return {"metainfo": {"classes": ["cat", "dog"]}, "data_list": listed}


def vott(labels):
    return {
        "assets": {
            n: {"asset": {"name": f"{n}.jpg", "state": 2}, "regions": [{"tags": [label]}]}
            for n, label in labels.items()
        }
    }


def table(labels):
    return "image,labels\n" + "".join(f"{n}.jpg,{label}\n" for n, label in labels.items())


def celeba(labels):
    rows = (f"{n}.jpg {'1 -1' if label == 'cat' else '-1 1'}\n" for n, label in labels.items())
    return f"{len(labels)}\ncat dog\n" + "".join(rows)


def cvat(labels):
    photos = (f'<image name="{n}.jpg"><tag label="{v}"/></image>' for n, v in labels.items())
    return f"<annotations><version>1.1</version>{''.join(photos)}</annotations>"


def sheet(write):
    """A file of pandas' kind, of bytes."""

    def files(labels):
        content = io.BytesIO()
        write(PHOTOS, list(labels.values()), content)
        return content.getvalue()

    return files


def parquet(photos, labels, file):
    pyarrow.parquet.write_table(pyarrow.table({"image": photos, "labels": labels}), file)


def xlsx(photos, labels, file):
    book = openpyxl.Workbook()
    for row in (("image", "labels"), *zip(photos, labels, strict=True)):
        book.active.append(row)
    book.save(file)


def nuswide(labels):
    splits = dict(zip(labels, ("train", "train", "test", "test"), strict=True))
    rows = (f"{n}.jpg,\"['{label}']\",{splits[n]}\n" for n, label in labels.items())
    return "filepath,label,split_name\n" + "".join(rows)


def files_by_image(folder, suffix, write):
    return lambda labels: {f"{folder}/{n}.{suffix}": write(n, label) for n, label in labels.items()}


def export(write):
    """A file of all; other options than annotations and image_dir are the default's."""
    return lambda labels: {"export.json": json.dumps(write(labels))}


def yolo(labels):
    numbers = {n: ["cat", "dog"].index(label) for n, label in labels.items()}
    texts = {f"labels/{n}.txt": f"{number} .5 .5 .1 .1\n" for n, number in numbers.items()}
    return texts | {"data.yaml": "names: [cat, dog]\n"}


def lists(labels):
    return {
        f"lists/{name}.txt": "".join(f"{n}.jpg\n" for n, label in labels.items() if label == name)
        for name in ("cat", "dog")
    }


LISTS = {"VOC2007/ImageSets/Main/train.txt": "a\nb\n", "VOC2007/ImageSets/Main/test.txt": "c\nd\n"}
devkit = files_by_image("VOC2007/Annotations", "xml", lambda n, label: xml(label))
labelme = files_by_image(
    "labels",
    "json",
    lambda n, label: json.dumps({"imagePath": f"{n}.jpg", "shapes": [{"label": label}]}),
)
# Kind -> what writes the annotations, where they are, the folder of the photos.
KINDS = {
    "coco": (export(coco), "export.json", "photos"),
    "voc": (files_by_image("xml", "xml", lambda n, label: xml(label)), "xml", "photos"),
    "voc 2007": (lambda labels: devkit(labels) | LISTS, "", "VOC2007/JPEGImages"),
    "yolo": (yolo, "labels", "photos"),
    "yolo beside": (
        lambda labels: {f.removeprefix("labels/"): text for f, text in yolo(labels).items()},
        "",
        "",
    ),
    "yolo lists": (
        lambda labels: (
            {f.removeprefix("labels/"): text for f, text in yolo(labels).items()}
            | {"train.txt": "a.jpg\nb.jpg\n", "val.txt": "c.jpg\nd.jpg\n"}
        ),
        "{split}.txt",
        "",
    ),
    "lists": (lists, "lists", "photos"),
    "celeba": (lambda labels: {"t.txt": celeba(labels)}, "t.txt", "photos"),
    "cvat": (lambda labels: {"t.xml": cvat(labels)}, "t.xml", "photos"),
    "parquet": (lambda labels: {"t.parquet": sheet(parquet)(labels)}, "t.parquet", "photos"),
    "xlsx": (lambda labels: {"t.xlsx": sheet(xlsx)(labels)}, "t.xlsx", "photos"),
    "csv": (lambda labels: {"t.csv": table(labels)}, "t.csv", "photos"),
    "jsonl": (
        lambda labels: {
            "t.jsonl": "\n".join(
                json.dumps({"image": f"{n}.jpg", "labels": label}) for n, label in labels.items()
            )
        },
        "t.jsonl",
        "photos",
    ),
    "nuswide": (lambda labels: {"t.csv": nuswide(labels)}, "t.csv", "photos"),
    "label_studio": (export(label_studio), "export.json", "photos"),
    "labelme": (labelme, "labels", "photos"),
    "via": (export(via), "export.json", "photos"),
    "createml": (export(createml), "export.json", "photos"),
    "mmpretrain": (export(mmpretrain), "export.json", "photos"),
    "json": (
        export(lambda labels: {f"{n}.jpg": [label] for n, label in labels.items()}),
        "export.json",
        "photos",
    ),
    "vott": (export(vott), "export.json", "photos"),
    "folders": (lambda labels: {}, "", ""),
    "apparel": (lambda labels: {}, "", ""),
}


def test_no_kind_of_files_is_left_out():
    others = {"scenes", "tfds", "hub"}  # made here, of a version, and in test_hub.py
    assert {kind.split()[0] for kind in KINDS} == sources.SOURCES.keys() - others


@pytest.fixture(params=[(kind, False) for kind in KINDS] + [("csv", True)], ids=str)
def own(request, plant):
    """The configuration of a set, and what labels it anew."""
    kind, merged = request.param
    write, annotations, image_dir = KINDS[kind]
    if kind in ("folders", "apparel"):
        names = dict(zip(("cat", "dog"), ("black_dress", "red_shirt"), strict=True))
        folders = names if kind == "apparel" else dict(zip(names, names, strict=True))
        folder = plant({}, [f"{folders[label]}/{n}.jpg" for n, label in LABELS.items()])

        def label_anew():
            (folder / folders["dog"] / "a.jpg").rename(folder / folders["cat"] / "a.jpg")
    else:
        folder = plant(write(LABELS), [os.path.join(image_dir, photo) for photo in PHOTOS])

        def label_anew():
            plant(write(AFTER))

    data = default_config().data
    data.source, data.name, data.root = kind.split()[0], "own", str(folder)
    data.prepared_dir, data.train_share = str(folder.parent / "prepared"), 0.5
    data.annotations, data.image_dir, data.merge_classes = annotations, image_dir, merged
    data.year = "2007" if kind == "voc 2007" else "own"
    splits = {"train": "train", "val": "test", "test": "test"}
    data.splits = splits if kind in ("nuswide", "voc 2007", "apparel") else roles_of(())
    return DataOptions.of(data), label_anew


def shown(splits):
    """Photo -> the names of its labels."""
    return {
        split.image_id(i).rpartition("/")[2].removesuffix(".jpg"): {
            split.class_names[c] for c in np.flatnonzero(labels > 0)
        }
        for split in splits.values()
        for i, labels in enumerate(split.labels())
    }


def named(labels, kind):
    garments = {"cat": {"black", "dress"}, "dog": {"red", "shirt"}}
    return {n: garments[label] if kind == "apparel" else {label} for n, label in labels.items()}


def test_a_set_asks_for_nothing_until_the_annotations_change(own, monkeypatch, capsys):
    data, label_anew = own
    splits = sources.open_splits(data)
    assert shown(splits) == named(LABELS, data.source)
    assert data.root not in (splits["train"].directory / "annotations.json").read_text()
    capsys.readouterr()
    with monkeypatch.context() as unread:
        for part in ("examples", "class_names"):
            unread.setattr(type(sources.create(data)), part, None)
        sources.open_splits(data)
    assert capsys.readouterr().out == ""
    label_anew()
    assert shown(sources.open_splits(data)) == named(AFTER, data.source)
    assert "own is prepared again: " in capsys.readouterr().out
    sources.open_splits(data)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("own", [("yolo", False), ("lists", False)], indirect=True, ids=str)
def test_a_photo_without_a_label_is_one_more(own, jpeg):
    data, _ = own
    assert len(shown(sources.open_splits(data))) == 4
    with open(f"{data.root}/photos/e.jpg", "wb") as file:
        file.write(jpeg(9))
    assert shown(sources.open_splits(data))["e"] == set()


@pytest.mark.parametrize("own", [("yolo", False)], indirect=True, ids=str)
def test_names_of_classes_that_change(own):
    data, _ = own
    sources.open_splits(data)
    with open(f"{data.root}/data.yaml", "w") as file:
        file.write("names: [cat, wolf]\n")
    assert sources.open_splits(data)["train"].class_names == ("cat", "wolf")
