"""Datasets as the package `datasets` opens them: which column is what, and images as they were."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlic_jax.config import default_config
from mlic_jax.data import records, sources
from mlic_jax.data.detect import detect, roles_of
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import Failure, UsageError

installed = importlib.util.find_spec("datasets") is not None
needs_datasets = pytest.mark.skipif(not installed, reason="needs the extra `hub`: datasets")
LISTS = [["cat"], ["dog"], ["dog", "cat"], [], ["dog"]]
NAMES = ["dog", "cat", "salt, pepper"]
NUMBERS = [[NAMES.index(name) for name in labels] for labels in LISTS]


@pytest.fixture
def save(tmp_path, jpeg, monkeypatch):
    """save(train={column: (feature, values)}, ...) -> a folder of such splits."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `hub`")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def split(name, columns, paths=True):
        count = len(next(iter(columns.values()))[1])
        photos = [
            {"bytes": jpeg(len(name) * 100 + i), "path": f"{i}.jpg" if paths else None}
            for i in range(count)
        ]
        features = {"photo": datasets.Image(), **{k: kind for k, (kind, _) in columns.items()}}
        values = {"photo": photos, **{k: values for k, (_, values) in columns.items()}}
        return datasets.Dataset.from_dict(values, features=datasets.Features(features))

    def make(paths=True, **splits):
        parts = {name: split(name, columns, paths) for name, columns in splits.items()}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return make


@pytest.fixture
def kinds():
    """Features, by a short name."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `hub`")
    names = datasets.ClassLabel(names=NAMES)
    return {
        "name": names,
        "names": datasets.List(names),
        "texts": datasets.List(datasets.Value("string")),
        "text": datasets.Value("string"),
        "int": datasets.Value("int64"),
        "bool": datasets.Value("bool"),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"))),
        "ints": datasets.List(datasets.Value("int64")),
    }


def open_source(folder, **told):
    layout = detect(f"hf:{folder}", None, None, told)
    data = default_config().data
    data.update({"source": layout.format, "name": "mine", **layout.options})
    with data.unlocked():
        data.splits = {}
        data.splits = roles_of(sources.create(DataOptions.of(data)).own_splits)
    return sources.create(DataOptions.of(data))


def labels_of(source):
    """Image id -> the names of its labels, those that are unknown with a `?`."""
    return {
        example.image_id: {
            name if label else f"{name}?"
            for name, label in zip(source.class_names, example.labels, strict=True)
            if label >= 0
        }
        for split in source.splits
        for example in source.examples(split)
    }


def expected(split="train", lists=LISTS):
    return {f"{split}/{i}.jpg": set(labels) for i, labels in enumerate(lists)}


COLUMNS = {
    "numbers with names": {"labels": ("names", NUMBERS)},
    "texts": {"tags": ("texts", LISTS)},
    "one text": {"labels": ("text", [";".join(labels) for labels in LISTS])},
    "a column a class": {
        "dog": ("int", [int("dog" in labels) for labels in LISTS]),
        "cat": ("bool", ["cat" in labels for labels in LISTS]),
    },
    "objects": {
        "objects": (
            {"bbox": "boxes", "category": "names"},
            [{"bbox": [[0.0] * 4] * len(of), "category": of} for of in NUMBERS],
        )
    },
}


@pytest.mark.parametrize("form", COLUMNS)
def test_columns(save, kinds, form):
    columns = {
        name: ({k: kinds[v] for k, v in kind.items()} if isinstance(kind, dict) else kinds[kind], v)
        for name, (kind, v) in COLUMNS[form].items()
    }
    assert labels_of(open_source(save(train=columns))) == expected()


def test_numbers_have_the_names_and_the_order_of_the_dataset(save, kinds):
    folder = save(train={"label": (kinds["name"], [2, 0, 1, 2]), "n": (kinds["int"], [5, 6, 7, 8])})
    source = open_source(folder)
    assert source.class_names == tuple(NAMES)
    assert labels_of(source) == expected(lists=[[NAMES[i]] for i in (2, 0, 1, 2)])
    assert "labels are those of the column label" in "".join(source.notes)


def test_splits_are_those_of_the_dataset_and_one_without_labels_is_none(save, kinds):
    def labels(numbers):
        return {"labels": (kinds["names"], numbers)}

    source = open_source(save(train=labels(NUMBERS), dev=labels(NUMBERS[:2]), test=labels([None])))
    assert source.own_splits == ("dev", "train")
    assert labels_of(source) == expected() | expected("dev", LISTS[:2])
    assert "test: no labels, not read" in source.notes


def test_where_there_is_no_answer_nothing_is_known(save, kinds):
    source = open_source(save(train={"label": (kinds["name"], [1, -1, 0, 1])}))
    nothing = [f"{name}?" for name in NAMES]
    assert labels_of(source) == expected(lists=[["cat"], nothing, ["dog"], ["cat"]])


@pytest.mark.parametrize(
    "columns, error, said",
    [
        ({"label": ("int", [0, 1, 2, 3, 0])}, Failure, "its labels are numbers, such as '0'"),
        ({"labels": ("ints", NUMBERS)}, Failure, "its labels are numbers, such as '0'"),
        (
            {"fine": ("name", [0, 1, 2, 0, 1]), "coarse": ("name", [0, 0, 0, 1, 1])},
            UsageError,
            "which column has the labels: 'fine', 'coarse'",
        ),
    ],
)
def test_what_is_asked(save, kinds, columns, error, said):
    folder = save(train={name: (kinds[kind], values) for name, (kind, values) in columns.items()})
    with pytest.raises(error, match=said):
        labels_of(open_source(folder))
    (column, *_) = columns
    assert labels_of(open_source(folder, label_column=column))  # as the message says


def test_several_columns_are_attributes(save, kinds):
    colour, shape = (kinds["name"], [0, 1, 2]), (kinds["text"], ["round", "", "flat"])
    source = open_source(
        save(train={"colour": colour, "shape": shape}), label_column="colour,shape"
    )
    wanted = [["colour=dog", "shape=round"], ["colour=cat"], ["colour=salt, pepper", "shape=flat"]]
    assert labels_of(source) == expected(lists=wanted)


def test_images_are_kept_as_they_were_encoded(save, kinds, jpeg, tmp_path):
    folder = save(
        train={"labels": (kinds["names"], NUMBERS)}, val={"labels": (kinds["names"], NUMBERS)}
    )
    prepared = records.prepare(open_source(folder), tmp_path / "prepared")
    split = records.open_split(prepared, "train")
    assert [split[i].image for i in range(5)] == [jpeg(500 + i) for i in range(5)]
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    moved = folder.rename(tmp_path / "moved")
    records.prepare(open_source(moved), tmp_path / "prepared")
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_without_paths_images_have_their_numbers(save, kinds):
    source = open_source(save(paths=False, train={"label": (kinds["name"], [0, 1, 0])}))
    assert sorted(labels_of(source)) == [f"train/0000000{i}" for i in range(3)]


@needs_datasets
def test_a_folder_of_images_gives_files(tmp_path, jpeg, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    for i, place in enumerate(("train/cat/a.jpg", "train/dog/b.jpg", "test/cat/c.jpg")):
        file = tmp_path / "folder" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(i))
    source = open_source(tmp_path / "folder")
    assert labels_of(source) == {
        "train/a.jpg": {"cat"},
        "train/b.jpg": {"dog"},
        "test/c.jpg": {"cat"},
    }
    (example,) = source.examples("test")
    assert example.image == tmp_path / "folder" / "test/cat/c.jpg"


# --- in one line where it cannot be


def _dry_run(name, **environment):
    return subprocess.run(
        [sys.executable, "scripts/prepare_data.py", "--images", name, "--dry-run"],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_datasets
def test_without_a_network(tmp_path):
    run = _dry_run("hf:nobody/nothing", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    (line,) = run.stderr.splitlines()
    assert run.returncode == 1 and line.startswith("error: cannot open the dataset nobody/nothing")


@pytest.mark.parametrize("place", ["hf:no such name", "hf:a/b/c", "hf:"])
def test_what_is_neither_a_name_nor_a_folder(place):
    with pytest.raises(UsageError, match="is no folder, nor owner/name of a dataset"):
        detect(place)


def test_annotations_do_not_count():
    with pytest.raises(UsageError, match="--annotations does not count"):
        detect("hf:owner/name", __file__)


def test_the_package_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UsageError, match=r"datasets is needed to read it: pip install -e '.\[hub\]'"
    ):
        open_source(tmp_path)


def test_a_name_is_a_dataset_of_the_hub():
    assert detect("hf:owner/name:small").options == {"hub_name": "owner/name:small"}
    source = sources.HubSet("mine", ("train",), hub_name="owner/name:small")
    assert source.description["hub_name"] == "owner/name:small" and "root" not in source.description
    assert source.annotation_files == []  # so that training asks nobody for it


@needs_datasets
def test_labels_that_are_no_texts_are_not_passed_over(save, kinds):
    columns = {"labels": (kinds["boxes"], [[[1.0]]] * 4), "kind": (kinds["text"], ["a", "b"] * 2)}
    folder = save(train=columns)
    with pytest.raises(Failure, match="the column 'labels' holds neither texts nor lists"):
        _ = open_source(folder).class_names
    assert open_source(folder, label_column="kind").class_names == ("a", "b")


@needs_datasets
def test_a_dataset_that_was_saved_with_a_format(save, kinds, tmp_path):
    import datasets

    saved = datasets.load_from_disk(save(train={"labels": (kinds["names"], NUMBERS)}))
    saved.set_format("numpy", columns=["labels"])
    saved.save_to_disk(tmp_path / "formatted")
    assert labels_of(open_source(tmp_path / "formatted")) == expected()
