"""Damaged and hostile annotations: CSV, JSON Lines, COCO's JSON, VOC's XML, class folders."""

import csv
import importlib.util
import io
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzzer import Broken, Fuzzer, bounded, refusal
from mutations import altered, damaged, hostile_text, to_json
from PIL import Image

from mlic_jax.data.image_files import printable
from mlic_jax.data.records import open_split
from mlic_jax.data.transforms import decode

SCRIPT = Path(__file__).resolve().parents[2] / "prepare_data.py"
CLASSES = ("ant", "bee", "cat")
IMAGES = 8

# What annotations say: of each image the labels that are present.
Labels = dict[str, set[str]]


class Tables(Fuzzer):
    title = "Hostile tables and annotations"
    units = "sets"
    holds = (
        "`scripts/prepare_data.py` refuses in one line, or prepares the very images and labels "
        "that a plain reader finds in the file; in 5 s of the processor and 20 times the file's "
        "size plus 200 MB"
    )
    share = 5
    seconds = 60

    def __init__(self, shared: Path):
        spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
        self._script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._script)
        self._images = shared / "table_images"
        if not self._images.is_dir():
            self._images.mkdir()
            for k in range(IMAGES):
                colour = tuple(int(c) for c in np.random.default_rng(k).integers(0, 256, 3))
                Image.new("RGB", (12, 10), colour).save(self._images / f"{k}.png")
        # A first one pays for what is loaded once.
        first = shared / "first"
        plant_csv(np.random.default_rng(0), first / "data", self._images, lambda rng, text: text)
        if line := self._prepare(first, "csv"):
            raise Broken(f"a sound set is refused: {line}")

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        kind = KINDS[rng.integers(len(KINDS))]
        data = folder / "data"
        data.mkdir()
        PLANT[kind](rng, data, self._images, HARM[kind])
        on_corrupt = ("fail", "skip")[rng.integers(2)]
        size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
        with bounded(size):
            line = self._prepare(folder, kind, on_corrupt)
        if line is None:
            self._check_set(folder, READ[kind](data))
        yield f"{kind}: {'prepared' if line is None else 'refused'}"

    def _prepare(self, folder: Path, kind: str, on_corrupt: str = "fail") -> str | None:
        """Runs the script on the set in `<folder>/data`; gives the line with which it refuses."""
        arguments = (
            *("--images", folder / "data", "--format", kind, "--name", "hostile"),
            *("--prepared-dir", folder / "prepared", "--output", folder / "own"),
            *("--word-vectors", "none", "--on-corrupt", on_corrupt),
        )
        return refusal(lambda: self._script.main(list(map(str, arguments))))

    def _check_set(self, folder: Path, expected: Labels | None) -> None:
        roles = json.loads((folder / "own" / "data_card.json").read_text())["roles"]
        found, skipped = {}, 0
        for name in set(roles.values()):
            split = open_split(folder / "prepared" / "hostile", name)
            labels = split.labels()
            if not np.isin(labels, (-1, 0, 1)).all():
                raise Broken(f"labels of {name} are neither -1, 0 nor 1")
            for i, row in enumerate(labels):
                decode(split[i].image)
                found[split.image_id(i)] = {split.class_names[c] for c in np.flatnonzero(row > 0)}
            skipped += len(split.skipped)
        if expected is None:
            return
        found, expected = (  # blanks make no other name
            {image: {" ".join(name.split()) for name in names} for image, names in labels.items()}
            for labels in (found, expected)
        )
        wanted = {image: names for image, names in expected.items() if image in found}
        if wanted != found or len(expected) != len(found) + skipped:
            raise Broken(f"the file says {expected}; prepared are {found} and {skipped} left out")


def random_labels(rng: np.random.Generator) -> dict[str, list[str]]:
    """The labels of each image; of every class there are some."""
    return {
        f"{k}.png": [name for c, name in enumerate(CLASSES) if c == k % 3 or rng.random() < 0.3]
        for k in range(IMAGES)
    }


# --- of each format: a set with its annotations harmed


def plant_csv(rng: np.random.Generator, data: Path, images: Path, harm: Callable) -> None:
    shutil.copytree(images, data, dirs_exist_ok=True)
    rows = [["image", "labels"]]
    rows += [[image, ";".join(names)] for image, names in random_labels(rng).items()]
    if rng.random() < 0.5:
        for k, row in enumerate(rows):
            row.append("split" if k == 0 else ("train", "val")[k % 4 == 0])
    (data / "labels.csv").write_bytes(harm(rng, rows if harm is harm_csv else _csv(rows)))


def plant_jsonl(rng: np.random.Generator, data: Path, images: Path, harm: Callable) -> None:
    shutil.copytree(images, data, dirs_exist_ok=True)
    rows = [{"image": image, "labels": names} for image, names in random_labels(rng).items()]
    (data / "labels.jsonl").write_bytes(harm(rng, rows))


def plant_coco(rng: np.random.Generator, data: Path, images: Path, harm: Callable) -> None:
    shutil.copytree(images, data, dirs_exist_ok=True)
    labels = random_labels(rng)
    content = {
        "images": [{"id": k, "file_name": image} for k, image in enumerate(labels)],
        "annotations": [
            {"id": 10 * k + c, "image_id": k, "category_id": c, "bbox": [1, 1, 4, 5], "iscrowd": 0}
            for k, names in enumerate(labels.values())
            for c in map(CLASSES.index, names)
        ],
        "categories": [{"id": c, "name": name} for c, name in enumerate(CLASSES)],
    }
    (data / "annotations.json").write_bytes(harm(rng, content))


def plant_voc(rng: np.random.Generator, data: Path, images: Path, harm: Callable) -> None:
    shutil.copytree(images, data / "JPEGImages")
    (data / "Annotations").mkdir()
    chosen = rng.integers(IMAGES)
    for k, (image, names) in enumerate(random_labels(rng).items()):
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>1</xmin>"
            "<ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object>"
            for name in names
        )
        content = f"<annotation><filename>{image}</filename>{objects}</annotation>".encode()
        file = data / "Annotations" / f"{Path(image).stem}.xml"
        file.write_bytes(harm(rng, content) if k == chosen else content)


def plant_folders(rng: np.random.Generator, data: Path, images: Path, harm: Callable) -> None:
    for k in range(IMAGES):
        folder = data / CLASSES[k % 3]
        folder.mkdir(exist_ok=True)
        shutil.copy(images / f"{k}.png", folder)
    harm(rng, data)


# --- how


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def harm_csv(rng: np.random.Generator, rows: list[list[str]]) -> bytes:
    match rng.integers(6):
        case 0:
            return damaged(rng, _csv(rows))
        case 1:  # a cell, a row or a column too much
            row = rows[rng.integers(len(rows))]
            row.insert(int(rng.integers(len(row) + 1)), hostile_text(rng))
        case 2:  # columns in another order
            order = rng.permutation(len(rows[0]))
            rows = [[row[i] for i in order] for row in rows]
        case 3:
            names = ("utf-16", "utf-32", "utf-8-sig", "cp037")
            return _csv(rows).decode().encode(names[rng.integers(len(names))])
        case 4:
            separators = (b";", b"\t", b'","', b"\r", b"\0", b",,")
            return _csv(rows).replace(b",", separators[rng.integers(len(separators))])
        case _:
            row = rows[rng.integers(len(rows))]
            row[rng.integers(len(row))] = hostile_text(rng)
    return _csv(rows)


def harm_jsonl(rng: np.random.Generator, rows: list[dict[str, Any]]) -> bytes:
    if rng.random() < 0.3:
        return damaged(rng, "\n".join(map(json.dumps, rows)).encode())
    lines = [to_json(row) for row in rows]
    k = rng.integers(len(rows))
    lines[k] = to_json(altered(rng, rows[k]))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def harm_coco(rng: np.random.Generator, content: dict[str, Any]) -> bytes:
    if rng.random() < 0.3:
        return damaged(rng, json.dumps(content).encode())
    return to_json(altered(rng, content)).encode("utf-8", "surrogatepass")


def harm_voc(rng: np.random.Generator, content: bytes) -> bytes:
    text = hostile_text(rng).encode("utf-8", "surrogatepass")
    tags = (b"name", b"difficult", b"bndbox", b"xmin", b"ymax", b"object", b"annotation")
    tag = tags[rng.integers(len(tags))]
    match rng.integers(7):
        case 0:
            return content.replace(b"<" + tag + b">", b"<" + tag + b">" + text, 1)
        case 1:  # another tag, or none
            return content.replace(tag, text or b"x", int(rng.integers(1, 3)))
        case 2:  # entities that grow
            entities = b"".join(
                b'<!ENTITY e%d "%s">' % (k, b"&e%d;" % (k - 1) * 10 if k else b"ha" * 10)
                for k in range(int(rng.integers(2, 10)))
            )
            last = entities.count(b"<!ENTITY") - 1
            start = b"<!DOCTYPE annotation [" + entities + b"]>"
            return start + content.replace(b"<name>", b"<name>&e%d;" % last, 1)
        case 3:  # a file from elsewhere
            start = b'<!DOCTYPE annotation [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
            return start + content.replace(b"<name>", b"<name>&f;", 1)
        case 4:
            depth = int(10 ** rng.uniform(1, 5))
            return content.replace(b"<object>", b"<a>" * depth + b"</a>" * depth + b"<object>", 1)
        case 5:
            names = ("utf-16", "utf-7", "idna", "no-such")
            start = f'<?xml version="1.0" encoding="{names[rng.integers(len(names))]}"?>'
            return start.encode() + content
        case _:
            return damaged(rng, content)


def harm_folders(rng: np.random.Generator, data: Path) -> None:
    folder = data / CLASSES[rng.integers(len(CLASSES))]
    image = next(folder.iterdir())
    text = hostile_text(rng).replace("\0", "").replace("/", "")[:200] or "x"
    text = text.encode("utf-8", "surrogatepass")
    name = Path(os.fsdecode(text if text not in (b".", b"..") else b"x"))
    match rng.integers(8):
        case 0:
            folder.rename(data / name)
        case 1:
            image.rename(folder / name)
        case 2:
            (folder / name).mkdir(exist_ok=True)
        case 3:
            targets = (image.name, "nowhere", "..", "/dev/zero", "/dev/stdin", "loop.png")
            (folder / "loop.png").symlink_to(targets[rng.integers(len(targets))])
        case 4:
            os.mkfifo(folder / "pipe.png")  # whoever opens it waits for ever
        case 5:
            image.write_bytes(damaged(rng, image.read_bytes()))
        case 6:
            folder.rename(data / os.fsdecode(b"\xff\xfe" + text[:20]))
        case _:
            (data / name).write_bytes(rng.bytes(20))


# --- what a plain reader finds; None where that is not plain to say


def read_csv(data: Path) -> Labels | None:
    try:
        text = (data / "labels.csv").read_bytes().decode("utf-8-sig")
        header, *rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row
        ]
        if header not in (["image", "labels"], ["image", "labels", "split"]):
            return None
        if any("".join(row[len(header) :]).strip() for row in rows):
            return None
        rows = [row[: len(header)] for row in rows]
        # A split without a role, such as one that the damage has named, is not prepared.
        rows = [row for row in rows if row[2:] == [] or row[2].strip() in ("train", "val")]
        return {Path(row[0].strip()).as_posix(): _listed(row[1]) for row in rows if len(row) >= 2}
    except (ValueError, csv.Error):
        return None


def _listed(cell: str) -> set[str]:
    if cell.strip().startswith("[") or cell.strip().lower() in ("nan", "none", "null", "na"):
        raise ValueError("a list of Python's, or a word for nothing")
    names = cell.replace("|", ";").replace(",", ";").split(";") if cell.strip() else []
    return {name.strip() for name in names if not name.strip().endswith("?")}


def read_jsonl(data: Path) -> Labels | None:
    try:
        text = (data / "labels.jsonl").read_bytes().decode("utf-8-sig")
        rows = [json.loads(line) for line in io.StringIO(text, newline="") if line.strip()]
        if any(isinstance(row["labels"], str) for row in rows):
            return None
        return {Path(row["image"]).as_posix(): set(row["labels"]) for row in rows}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def read_coco(data: Path) -> Labels | None:
    try:
        content = json.loads((data / "annotations.json").read_bytes())
        names = {c["id"]: c["name"] for c in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        found: Labels = {}
        for one in content["annotations"]:
            labels = found.setdefault(files[one["image_id"]], set())
            if not one.get("iscrowd", 0):
                labels.add(names[one["category_id"]])
        return found
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return None


def read_voc(data: Path) -> Labels | None:
    try:
        return {
            file.stem: {
                one.findtext("name").strip()
                for one in ElementTree.parse(file).getroot().findall("object")
                if one.findtext("difficult", "0").strip() != "1"
            }
            for file in (data / "Annotations").iterdir()
        }
    except (ElementTree.ParseError, AttributeError, ValueError, LookupError, RecursionError):
        return None


def read_folders(data: Path) -> Labels | None:
    folders = [path for path in data.iterdir() if path.is_dir() and path.name[0] != "."]
    return {
        printable(image.relative_to(data)): {printable(folder.name)}
        for folder in folders
        for image in folder.iterdir()
        if image.name[0] != "."
    }


KINDS = ("csv", "jsonl", "coco", "voc", "folders")
PLANT = dict(
    zip(KINDS, (plant_csv, plant_jsonl, plant_coco, plant_voc, plant_folders), strict=True)
)
HARM = dict(zip(KINDS, (harm_csv, harm_jsonl, harm_coco, harm_voc, harm_folders), strict=True))
READ = dict(zip(KINDS, (read_csv, read_jsonl, read_coco, read_voc, read_folders), strict=True))

FUZZER = Tables
