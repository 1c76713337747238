"""JSON of tools of annotation: the labels of every photo, whatever else there is."""

import json

import pytest

from mlic_jax.errors import Failure

NAMES = [f"img{i}.jpg" for i in range(6)]
CLASSES = ("car", "cat", "dog")
OF = {name: {CLASSES[i % 3], CLASSES[(i // 2) % 3]} for i, name in enumerate(NAMES)} | {
    "img5.jpg": set()
}


def createml(names):
    where = {"coordinates": {"x": 1, "y": 1, "width": 2, "height": 2}}
    boxes = {n: [{"label": c, **where} for c in sorted(OF[n]) for _ in "12"] for n in names}
    return [{"image": name, "annotations": found} for name, found in boxes.items()]


def mmpretrain(names):
    labels = {name: sorted(map(CLASSES.index, OF[name])) for name in names}
    data = [{"img_path": f"images/{n}", "gt_label": found} for n, found in labels.items()]
    return {"metainfo": {"classes": CLASSES}, "data_list": data}


def vott(names):
    assets = {
        f"hash{i}": {
            "asset": {"name": name, "path": f"file:C:/photos/{name}", "state": 2},
            "regions": [{"tags": [c], "points": []} for c in sorted(OF[name])],
        }
        for i, name in enumerate(names)
    }
    unseen = {"asset": {"name": "img9.jpg", "state": 0}, "regions": []}
    return {"name": "mine", "tags": [{"name": "x"}], "assets": {**assets, "unseen": unseen}}


def via(names, project=False):
    images = {
        f"{name}123": {
            "filename": name,
            "size": 123,
            "regions": [{"region_attributes": {"class": c}} for c in sorted(OF[name])],
            "file_attributes": {},
        }
        for name in names
    }
    return {"_via_settings": {}, "_via_img_metadata": images} if project else images


def via_1(names):
    images = via(names)
    for image in images.values():
        image["regions"] = {str(i): region for i, region in enumerate(image["regions"])}
    return images


def label_studio(names, path="/data/upload/1/0a1b2c3d-{}"):
    return [
        {
            "id": i,
            "data": {"image": path.format(name)},
            "annotations": [
                {
                    "was_cancelled": False,
                    "result": [
                        {"type": "choices", "value": {"choices": [c]}} for c in sorted(OF[name])
                    ],
                }
            ],
        }
        for i, name in enumerate(names)
    ]


def label_studio_in_short(names):
    return [
        {"image": f"/data/upload/{n}", "id": 1, "annotator": 1, "choice": {"choices": [*OF[n]]}}
        for n in names
    ]


def label_studio_boxes(names):
    return [
        {"image": n, "annotator": 1, "label": [{"x": 1, "rectanglelabels": [c]} for c in OF[n]]}
        for n in names
    ]


def listed(names):
    return [{"file_name": name, "tags": sorted(OF[name])} for name in names]


def by_name(names):
    return {name: sorted(OF[name]) for name in names}


FILES = {
    "createml": [createml],
    "vott": [vott],
    "mmpretrain": [mmpretrain],
    "via": [via, via_1, lambda names: via(names, project=True)],
    "label_studio": [label_studio, label_studio_in_short, label_studio_boxes],
    "json": [listed, by_name],
}
CASES = [(kind, content) for kind, contents in FILES.items() for content in contents]


@pytest.mark.parametrize(("kind", "content"), CASES)
def test_one_file(plant, read_own, kind, content):
    files = {"export.json": json.dumps(content(NAMES)), "package.json": "{}"}
    own = read_own(plant(files, [f"images/{name}" for name in NAMES]))
    assert own.layout.format == kind
    assert own.source.class_names == CLASSES
    assert own.labels == {f"images/{name}": names for name, names in OF.items()}


@pytest.mark.parametrize(("kind", "content"), CASES)
def test_a_file_a_split(plant, read_own, kind, content):
    """Of which the photos have the same names."""
    files = {f"{split}/_annotations.{kind}.json": content(NAMES) for split in ("train", "valid")}
    photos = [f"{split}/{name}" for split in ("train", "valid") for name in NAMES]
    own = read_own(plant({name: json.dumps(text) for name, text in files.items()}, photos))
    assert own.own_splits == ("train", "valid")
    assert own.labels == {photo: OF[photo.rpartition("/")[2]] for photo in photos}


def test_what_vott_escapes_and_has_not_visited(plant, read_own):
    text = json.dumps(vott(NAMES)).replace("img0.jpg", "img%200.jpg")
    names = ["img 0.jpg", *NAMES[1:]]
    own = read_own(plant({"mine-export.json": text}, [*names, "img9.jpg"]))
    assert own.labels == dict(zip(names, OF.values(), strict=True))


def labelme(name, path="{}"):
    shapes = [{"label": c, "points": [[1, 1]]} for c in sorted(OF[name])[:1]]
    flags = {c: c in sorted(OF[name])[1:] for c in CLASSES}
    return json.dumps({"imagePath": path.format(name), "shapes": shapes, "flags": flags})


@pytest.mark.parametrize("path", ["{}", "..\\images\\{}", "../images/{}"])
def test_labelme(plant, read_own, path):
    place = "images" if path == "{}" else "labels"
    files = {f"{place}/{name[:-4]}.json": labelme(name, path) for name in NAMES}
    own = read_own(plant(files, [f"images/{name}" for name in NAMES]))
    assert own.layout.format == "labelme"
    assert own.labels == {f"images/{name}": names for name, names in OF.items()}


def test_labelme_in_splits(plant, read_own):
    files = {f"{s}/{n[:-4]}.json": labelme(n) for s in ("train", "val") for n in NAMES}
    photos = [f"{split}/{name}" for split in ("train", "val") for name in NAMES]
    own = read_own(plant(files, photos))
    assert own.own_splits == ("train", "val")
    assert own.labels == {photo: OF[photo.rpartition("/")[2]] for photo in photos}


def test_attributes_of_via(plant, read_own):
    content = via(NAMES[:2])
    for image in content.values():
        image["file_attributes"] = {"light": {"day": True, "night": False}}
    own = read_own(plant({"via.json": json.dumps(content)}, NAMES[:2]))
    assert own.labels["img1.jpg"] == {"class=car", "class=cat", "light=day"}


def test_people_who_disagree(plant, read_own):
    content = label_studio(NAMES[:1], "{}")
    other = [{"type": "choices", "value": {"choices": ["dog"]}}]
    content[0]["annotations"][0]["result"] += other
    content[0]["annotations"].append({"result": other})
    content[0]["annotations"].append({"result": [], "was_cancelled": True})
    own = read_own(plant({"tasks.json": json.dumps(content)}, NAMES[:1]))
    assert own.labels["img0.jpg"] == {"dog", "car?"}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("createml", '[{"annotations": [{"label": 3, "coordinates": 1}]}]', "label must be a name"),
        ("createml", '[7, {"annotations": [{"label": "a", "coordinates": 1}]}]', "Attr"),
        ("createml", '[{"annotations": [{"label": "a", "coordinates": 1}]}]', "must be a path"),
        ("mmpretrain", json.dumps(mmpretrain(NAMES)).replace("[0", "[9"), "9 is not the number"),
        ("via", json.dumps(via(NAMES)).replace('"cat"', "7"), "the attribute class must be a text"),
        ("labelme", labelme("img0.jpg").replace('"car"', "null", 1), "must be a name"),
        ("label_studio", json.dumps(label_studio(NAMES)).replace('"cat"', "1"), "choices must be"),
        ("json", '[{"image": "a.jpg", "labels": {"cat": 1}}]', "the labels must be a name or a"),
        ("json", '[{"image": "a.jpg", "labels": [" "]}]', "photo 1: the name of a label is empty"),
        ("json", '[{"image": "a.jpg", "labels": []', "is not JSON"),
    ],
)
def test_what_is_refused(plant, read_own, kind, content, message):
    folder = plant({"x.json": content}, NAMES)
    with pytest.raises(Failure, match=message) as failure:
        read_own(folder)
    assert "x.json" in str(failure.value) and "\n" not in str(failure.value)
    assert f"taken for {kind}" in str(failure.value)
