"""From the data part of a configuration to a source."""

import pytest

from mlic_jax.config import default_config
from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.data.sources.apparel import Apparel
from mlic_jax.data.sources.coco import CocoFolder
from mlic_jax.data.sources.folders import FolderSet
from mlic_jax.data.sources.nuswide import NusWide
from mlic_jax.data.sources.table import Table
from mlic_jax.data.sources.tfds import TfdsSet
from mlic_jax.data.sources.voc import VocFolder
from mlic_jax.data.sources.voc_layout import VocLayout
from mlic_jax.errors import UsageError

COCO = dict(
    source="coco",
    name="mine",
    root="/data/mine",
    image_dir="{split}2014",
    annotations="annotations/instances_{split}2014.json",
    class_order="annotation",
    keep_unlabelled=True,
    train_share=0.7,
    split_seed=3,
    splits=dict(train="train", val="val", test="val"),
)
VOC = dict(source="voc", name="voc2007", root="/data", year="2007", splits=dict(train="trainval"))
TFDS = dict(
    source="tfds",
    name="voc2007",
    tfds_name="voc/2007",
    root="",
    class_order="alphabetical",
    keep_unlabelled=False,
    splits=dict(train="trainval", val="", test="test"),
)
OWN = dict(
    name="mine",
    root="/data/mine",
    splits=dict(train="train", val="val", test="val"),
    annotations="labels.txt",
    image_dir="photos",
    keep_unlabelled=True,
    label_separator="+",
    train_share=0.7,
    split_seed=3,
)


def chosen(**given):
    return DataOptions.of({**default_config().data, **given})


def test_coco():
    source = sources.create(chosen(**COCO))
    assert isinstance(source, CocoFolder)
    assert (source.name, source.splits) == ("mine", ("train", "val"))
    assert source.description == {
        "kind": "coco",
        "root": "/data/mine",
        "image_dir": "{split}2014",
        "annotations": "annotations/instances_{split}2014.json",
        "class_order": "annotation",
        "keep_unlabelled": True,
    }


def test_voc():
    source = sources.create(chosen(**VOC))
    assert isinstance(source, VocFolder)
    assert (source.name, source.splits) == ("voc2007", ("trainval",))
    assert source.description == {"kind": "voc", "root": "/data", "year": "2007"}


def test_own_data_in_the_layout_of_voc():
    source = sources.create(chosen(**{**OWN, "source": "voc", "year": "own"}))
    assert isinstance(source, VocLayout)
    options = ("annotations", "image_dir", "train_share", "split_seed")
    assert source.description == {
        "kind": "voc",
        "root": "/data/mine",
        "year": "own",
        **{option: OWN[option] for option in options},
    }


def test_one_file_of_coco_is_divided():
    data = {**COCO, "image_dir": "photos", "annotations": "all.json"}
    description = sources.create(chosen(**data)).description
    assert (description["train_share"], description["split_seed"]) == (0.7, 3)


def test_tfds():
    source = sources.create(chosen(**TFDS))
    assert isinstance(source, TfdsSet)
    assert (source.name, source.splits) == ("voc2007", ("test", "trainval"))
    assert source.description["tfds_name"] == "voc/2007"


@pytest.mark.parametrize(
    "kind, constructor, options",
    [
        ("csv", Table, ("annotations", "image_dir", "train_share", "split_seed")),
        ("jsonl", Table, ("annotations", "image_dir", "train_share", "split_seed")),
        ("folders", FolderSet, ("label_separator", "train_share", "split_seed")),
        ("apparel", Apparel, ("train_share", "split_seed")),
        ("nuswide", NusWide, ("annotations", "image_dir", "keep_unlabelled")),
    ],
)
def test_sets_of_image_files(kind, constructor, options):
    source = sources.create(chosen(**{**OWN, "source": kind}))
    assert type(source) is constructor
    assert (source.name, source.splits) == ("mine", ("train", "val"))
    wanted = {"kind": kind, "root": "/data/mine", **{option: OWN[option] for option in options}}
    assert source.description == wanted


def test_every_source_finds_its_options_in_the_default_configuration():
    for kind in sources.SOURCES:
        data = default_config().data
        data.source, data.name, data.root = kind, "mine", "/data/mine"
        assert sources.create(DataOptions.of(data)).name == "mine"


def test_a_relative_root_means_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = sources.create(chosen(**{**VOC, "root": "data"}))
    assert source.description["root"] == str(tmp_path / "data")


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {**VOC, "source": "imagenet"},
            "unknown data source 'imagenet'; there are apparel, celeba, coco, createml, csv, cvat, "
            "folders, hub, json, jsonl, label_studio, labelme, lists, mmpretrain, nuswide, "
            "parquet, scenes, tfds, via, voc, vott, xlsx, yolo$",
        ),
        ({**OWN, "source": "csv", "root": ""}, "data source csv: `root`, .* is not set"),
        ({**VOC, "root": ""}, "`root`, the data's folder, is not set"),
        ({**COCO, "class_order": "random"}, "class_order is 'random'"),
        ({**TFDS, "class_order": "random"}, "class_order is 'random'"),
    ],
)
def test_wrong_configurations(config, message):
    with pytest.raises(UsageError, match=message):
        sources.create(chosen(**config))
