"""Annotation files with something wrong in them: one line that says so, or a set, and no crash."""

import io
import json
import random

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from mlic_jax.errors import Failure, UsageError


def parquet():
    content = io.BytesIO()
    table = pyarrow.table({"image": NAMES, "labels": [["cat", "dog"], []] * 3})
    pyarrow.parquet.write_table(table, content)
    return content.getvalue()


def xlsx():
    content, book = io.BytesIO(), openpyxl.Workbook()
    for row in (("image", "cat", "dog"), *((name, 1, False) for name in NAMES)):
        book.active.append(row)
    book.save(content)
    return content.getvalue()


NAMES = [f"img{i}.jpg" for i in range(6)]
COCO = {
    "images": [
        {"id": i, "file_name": name, "width": 8, "height": 8} for i, name in enumerate(NAMES)
    ],
    "annotations": [
        {"id": i, "image_id": i, "category_id": i % 2, "bbox": [0, 0, 4, 4]} for i in range(6)
    ],
    "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
}
STUDIO = [
    {"data": {"image": name}, "annotations": [{"result": [{"value": {"choices": ["cat"]}}]}]}
    for name in NAMES
]
XML = (
    '<?xml version="1.0"?><annotation><filename>a</filename><object><name>cat</name><bndbox>'
    "<xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object></annotation>"
)
CVAT = "".join(f'<image id="1" name="{name}"><tag label="cat"/></image>' for name in NAMES)
FILES = {
    "list": ("labels.csv", "image,labels\n" + "".join(f"{n},\"['cat' 'dog']\"\n" for n in NAMES)),
    "wide": ("labels.csv", "image,cat,dog\n" + "".join(f"{n},1.0,-1\n" for n in NAMES)),
    "parquet": ("labels.parquet", parquet()),
    "xlsx": ("labels.xlsx", xlsx()),
    "jsonl": ("l.jsonl", "\n".join(json.dumps({"image": n, "labels": ["cat"]}) for n in NAMES)),
    "coco": ("instances.json", json.dumps(COCO)),
    "label studio": ("tasks.json", json.dumps(STUDIO)),
    "voc": ("img0.xml", XML),
    "cvat": ("annotations.xml", f"<annotations>{CVAT}</annotations>"),
    "celeba": ("list_attr_celeba.txt", "6\ncat dog\n" + "".join(f"{n} -1 1\n" for n in NAMES)),
    "yolo list": ("train.txt", "img0.jpg\nimg2.jpg\n"),
    "yolo yaml": ("data.yaml", "train: [train.txt]\nval: val.txt\nnames: {0: cat, 1: dog}\n"),
    "yolo": ("labels/img0.txt", "0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n"),
}
NAMED = {"classes.txt": "cat\ndog\n"}
LISTED = NAMED | {
    "img0.txt": "0 0.5 0.5 0.1 0.1\n",
    "train.txt": "img0.jpg\n",
    "val.txt": "img1.jpg\nimg3.jpg\n",
}
BESIDE = {"yolo": NAMED, "yolo list": LISTED, "yolo yaml": LISTED}
PIECES = [b",", b";", b'"', b"'", b"[", b"]", b"{", b"\n", b"\0", b"\\", b"?", b"|", b"\t", b"<"]
PIECES += [b"null", b"1e999", b"-1", b"NaN", b"true", b"[]", b"{}", b"\xff", b"\xe9"]


def mutated(content, chance):
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.randrange(1, 20))
    before, part, after = content[:start], content[start:end], content[end:]
    lines = content.split(b"\n")
    return chance.choice(
        [
            before,
            before + after,
            before + 2 * part + after,
            before + part[::-1] + after,
            before + chance.choice(PIECES) + after,
            before + chance.choice(PIECES) + part + after,
            b"\n".join(chance.sample(lines, len(lines))),
            b"\n".join(lines[1:]),
            content.decode("utf-8", "replace").encode(
                chance.choice(["utf-16", "utf-8-sig", "utf-16-le", "cp037"]), "replace"
            ),
            content.replace(part, b""),
            content.replace(*chance.sample([b",", b"1", b"image", b'"', b"cat", b":"], 2)),
        ]
    )


@pytest.mark.parametrize("kind", FILES)
def test_one_line_or_a_set(plant, read_own, kind):
    chance = random.Random(kind)
    file, content = FILES[kind]
    folder = plant(BESIDE.get(kind, {}), NAMES)
    content = content if isinstance(content, bytes) else content.encode()
    for _ in range(45):
        plant({file: mutated(content, chance)})
        try:
            read_own(folder)
        except (Failure, UsageError) as error:
            assert "\n" not in str(error)
        except (
            AssertionError
        ) as error:  # of `read_own`: a photo that is not there, as `prepare` says
            assert str(folder) in str(error)
