"""What tools of annotation export, as it lies in their folders."""

import json

import pytest

from mlic_jax.errors import Failure, UsageError

NAMES = [f"img{i}.jpg" for i in range(12)]
CLASSES = ("car", "cat", "dog")
OF = {name: {CLASSES[i % 3], CLASSES[(i // 3) % 3]} for i, name in enumerate(NAMES)}
SPLITS = {"train": NAMES[:6], "valid": NAMES[6:9], "test": NAMES[9:]}
IN_SPLITS = [f"{split}/{name}" for split, names in SPLITS.items() for name in names]


def coco(names, order=CLASSES, box=(("bbox", [1, 2, 3, 4]),), **changes):
    pairs = [(i, order.index(c)) for i, name in enumerate(names) for c in sorted(OF[name])]
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "categories": [
                {"id": c, "name": name, "supercategory": "none"} for c, name in enumerate(order)
            ],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "iscrowd": 0, **dict(box)}
                for n, (i, c) in enumerate(pairs)
            ],
        }
        | changes
    )


def xml(names, root="annotation", polygon=False):
    place = (
        "<polygon><pt><x>1</x><y>2</y></pt></polygon>"
        if polygon
        else ("<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>")
    )
    objects = "".join(f"<object><name>{name}</name>{place}</object>" for name in sorted(names))
    return f"<{root}><filename>x.jpg</filename>{objects}</{root}>"


def wide(names):
    rows = [", ".join([n, *(str(int(c in OF[n])) for c in CLASSES)]) for n in names]
    return "\n".join(["filename, " + ", ".join(CLASSES), *rows])


def boxes(names):
    rows = [f"{name},8,8,{c},1,1,5,5" for name in names for c in sorted(OF[name])]
    return "\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows])


@pytest.mark.parametrize(
    ("file", "content"),
    [("_classes.csv", wide), ("_annotations.csv", boxes), ("_annotations.coco.json", coco)],
)
@pytest.mark.parametrize("test", ["test", "test_data"])
def test_roboflow(plant, read_own, file, content, test):
    splits = {test if split == "test" else split: names for split, names in SPLITS.items()}
    files = {f"{split}/{file}": content(names) for split, names in splits.items()}
    photos = [f"{split}/{name}" for split, names in splits.items() for name in names]
    own = read_own(plant(files | {"README.roboflow.txt": "x"}, photos))
    assert own.own_splits == tuple(sorted(splits))
    for split, names in splits.items():
        assert own.of[split] == {f"{split}/{name}": OF[name] for name in names}


def test_roboflow_voc(plant, read_own):
    """Beside the photos; photos of test may be named like those of train."""
    names = {"train": NAMES[:8], "valid": NAMES[8:], "test": NAMES[4:8]}
    files = {f"{s}/{n[:-4]}.xml": xml(OF[n]) for s, part in names.items() for n in part}
    files["test/img4.xml"] = xml({"dog"})
    own = read_own(plant(files, [f"{s}/{n}" for s, part in names.items() for n in part]))
    expected = {f"{s}/{n}": OF[n] for s, part in names.items() for n in part}
    assert own.labels == expected | {"test/img4.jpg": {"dog"}}


def test_splits_without_labels_do_not_count(plant, read_own):
    """Lists of images to predict: COCO's test, and Kaggle's."""
    bare = coco(NAMES[9:])
    bare = json.dumps({k: v for k, v in json.loads(bare).items() if k != "annotations"})
    files = {f"instances_{s}.json": coco(SPLITS[s]) for s in ("train", "valid")}
    own = read_own(plant(files | {"instances_test.json": bare}, IN_SPLITS))
    assert own.own_splits == ("train", "valid") and len(own.labels) == 9
    assert "instances_test.json: no annotations, not read" in own.notes


def test_empty_annotations_of_test(plant, read_own):
    files = {f"{s}/_annotations.coco.json": coco(SPLITS[s]) for s in ("train", "valid")}
    files["test/_annotations.coco.json"] = coco(SPLITS["test"], annotations=[])
    own = read_own(plant(files, IN_SPLITS))
    assert own.own_splits == ("train", "valid")
    lines = {s: [{"file_name": n, "labels": sorted(OF[n])} for n in SPLITS[s]] for s in SPLITS}
    lines["test"] = [{"file_name": name} for name in SPLITS["test"]]
    files = {f"{s}/metadata.jsonl": "\n".join(map(json.dumps, lines[s])) for s in SPLITS}
    own = read_own(plant(files), None, "jsonl")
    assert own.own_splits == ("train", "valid") and len(own.labels) == 9


def test_kaggle(plant, read_own):
    files = {"train.csv": boxes(NAMES), "test.csv": "filename\nx.jpg\n"}
    files["sample_submission.csv"] = "filename,class\nx.jpg,cat\n"
    own = read_own(plant(files, [f"train_images/{n}" for n in NAMES] + ["test_images/x.jpg"]))
    assert own.labels == {f"train_images/{name}": names for name, names in OF.items()}


def test_tables_of_splits(plant, read_own):
    files = {"train.csv": wide(NAMES[:8]), "val.csv": wide(NAMES[8:])}
    own = read_own(plant(files, [f"images/{name}" for name in NAMES]))
    assert own.own_splits == ("train", "val")
    assert own.of["val"] == {f"images/{name}": OF[name] for name in NAMES[8:]}
    plant({"val.csv": wide(NAMES[8:]).replace("cat", "cow")})
    with pytest.raises(Failure, match=r"the columns of .*val.csv and .*train.csv are not the same"):
        read_own(plant())


@pytest.mark.parametrize("box", [(), (("bbox", []),), (("bbox", None),)])
def test_coco_without_boxes(plant, read_own, box):
    own = read_own(plant({"a.json": coco(NAMES, box=box)}, [f"images/{n}" for n in NAMES]))
    assert own.labels == {f"images/{name}": names for name, names in OF.items()}
    (example, *_) = own.source.examples("train")
    assert example.boxes.shape == (0, 4) and example.box_classes.shape == (0,)


def test_categories_with_other_ids(plant, read_own):
    files = {"instances_train.json": coco(NAMES[:8]), "instances_val.json": ""}
    files["instances_val.json"] = coco(NAMES[8:], order=("dog", "car", "cat"))
    photos = [f"{'train' if i < 8 else 'val'}/{name}" for i, name in enumerate(NAMES)]
    own = read_own(plant(files, photos))
    assert own.labels == {photo: OF[photo.rpartition("/")[2]] for photo in photos}


def test_a_root_category_is_no_class(plant, read_own):
    content = json.loads(coco(NAMES))
    for category in content["categories"]:
        category["supercategory"] = "things"
    content["categories"].append({"id": 9, "name": "things", "supercategory": "none"})
    own = read_own(plant({"a.json": json.dumps(content)}, NAMES))
    assert own.source.class_names == CLASSES
    assert "the category things is above all others, and no class" in own.notes
    content["annotations"].append({"id": 99, "image_id": 0, "category_id": 9})
    own = read_own(plant({"a.json": json.dumps(content)}, NAMES))
    assert own.labels["img0.jpg"] == {*OF["img0.jpg"], "things"}


CROWDS = (("iscrowd", 1), ("bbox", [1, 2, 3, 4]))


@pytest.mark.parametrize("place", ["images", "images/default"])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_cvat_says_crowd_of_masks(plant, read_own, place, share):
    content = json.loads(coco(NAMES))
    for annotation in content["annotations"][: round(share * len(content["annotations"]))]:
        annotation.update(CROWDS)
    photos = [f"{place}/{name}" for name in NAMES]
    files = {"annotations/instances_default.json": json.dumps(content)}
    own = read_own(plant(files, photos))
    assert own.labels == {photo: OF[photo.rpartition("/")[2]] for photo in photos}
    assert "objects with iscrowd are present" in own.notes


def test_many_crowds_are_asked_about(plant, read_own):
    folder = plant({"mine.json": coco(NAMES, box=CROWDS)}, NAMES)
    with pytest.raises(UsageError, match="say --crowds present if your tool says it of masks"):
        read_own(folder)
    assert read_own(folder, crowds="present").labels == OF
    unknown = {name: {f"{label}?" for label in names} for name, names in OF.items()}
    assert read_own(folder, crowds="unknown").labels == unknown
    with pytest.raises(UsageError, match="crowds is 'maybe'; it must be 'unknown' or 'present'"):
        read_own(folder, crowds="maybe")


def test_a_few_crowds_are_cocos(plant, read_own):
    content = json.loads(coco(NAMES))
    content["annotations"][0]["iscrowd"] = 1
    own = read_own(plant({"mine.json": json.dumps(content)}, NAMES))
    assert own.labels["img0.jpg"] == {"car?"}


PHOTOS = [f"JPEGImages/{name}" for name in NAMES]
ANNOTATIONS = {f"Annotations/{name[:-4]}.xml": xml(names) for name, names in OF.items()}
EXPECTED = {f"JPEGImages/{name}": names for name, names in OF.items()}
LISTS = "ImageSets/Main"


@pytest.mark.parametrize("name", ["default", "train"])
def test_one_list_is_divided(plant, read_own, name):
    """CVAT's default.txt, and a train.txt that is alone; images in no list are left out."""
    files = ANNOTATIONS | {f"{LISTS}/{name}.txt": "\n".join(n[:-4] for n in NAMES[:10])}
    own = read_own(plant(files, PHOTOS))
    assert own.own_splits == ()
    assert own.labels == {file: EXPECTED[file] for file in PHOTOS[:10]}


def test_ids_with_blanks(plant, read_own):
    files = {f"Annotations/my photo {i}.xml": xml(OF[n]) for i, n in enumerate(NAMES)}
    files[f"{LISTS}/train.txt"] = "".join(f"my photo {i}\n" for i in range(8))
    files[f"{LISTS}/val.txt"] = "".join(f"my photo {i}  1\n" for i in range(8, 12))
    own = read_own(plant(files, [f"JPEGImages/my photo {i}.jpg" for i in range(12)]))
    assert own.own_splits == ("train", "val")
    assert own.of["val"] == {f"JPEGImages/my photo {i}.jpg": OF[NAMES[i]] for i in range(8, 12)}


def test_vott(plant, read_own):
    """A list for each class and split, of names with suffixes, and no other."""
    files = dict(ANNOTATIONS)
    for c in (*CLASSES, "hot_dog"):
        for split, names in (("train", NAMES[:8]), ("val", NAMES[8:])):
            lines = (f"{name} {1 if c in OF[name] else -1}" for name in names)
            files[f"{LISTS}/{c}_{split}.txt"] = "\n".join(lines)
    own = read_own(plant(files, PHOTOS))
    assert own.own_splits == ("train", "val")
    assert own.labels == EXPECTED and len(own.of["val"]) == 4


def test_objects_without_boxes(plant, read_own):
    files = {f"Annotations/{n[:-4]}.xml": xml(OF[n], polygon=True) for n in NAMES}
    own = read_own(plant(files, PHOTOS))
    assert own.labels == EXPECTED
    assert own.source.examples("train")[0].boxes.shape == (0, 4)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "windows-1252"])
def test_xml_in_other_encodings(plant, read_own, encoding):
    name = "créé" if encoding == "windows-1252" else "狗"
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + xml({name})
    files = {f"Annotations/{n[:-4]}.xml": text.encode(encoding) for n in NAMES[:3]}
    own = read_own(plant(files, PHOTOS[:3]))
    assert set(map(tuple, own.labels.values())) == {(name,)}


def test_xml_of_something_else(plant, read_own):
    """It must not pass for images without objects."""
    folder = plant({"drawings.xml": xml({"cat"}, root="drawings")}, NAMES)
    with pytest.raises(UsageError, match="has nothing of any format"):
        read_own(folder)
    folder = plant(ANNOTATIONS | {"Annotations/z.xml": xml((), root="config")}, PHOTOS)
    with pytest.raises(Failure, match=r"z.xml is malformed: it is no <annotation> of VOC"):
        read_own(folder)


def test_yolo_of_roboflow(plant, read_own):
    """Photos of test are named like some of train."""
    names = {"train": NAMES[:8], "valid": NAMES[8:], "test": NAMES[4:8]}
    files = {"data.yaml": "train: ../train/images\nnc: 3\nnames: [car, cat, dog]\n"}
    for split, part in names.items():
        for name in part:
            numbers = sorted(CLASSES.index(c) for c in OF[name])
            lines = "".join(f"{number} 0.5 0.5 0.2 0.2\n" for number in numbers)
            files[f"{split}/labels/{name[:-4]}.txt"] = lines
    files["test/labels/img4.txt"] = ""
    own = read_own(plant(files, [f"{s}/images/{n}" for s, part in names.items() for n in part]))
    expected = {f"{s}/images/{n}": OF[n] for s, part in names.items() for n in part}
    assert own.layout.format == "yolo" and own.source.class_names == CLASSES
    assert own.labels == expected | {"test/images/img4.jpg": set()}
