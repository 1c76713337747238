"""From the data part of a configuration to a source."""

from types import SimpleNamespace

import ml_collections
import pytest

from mlic_jax.data import sources
from mlic_jax.data.sources.coco import CocoFolder
from mlic_jax.data.sources.tfds import TfdsSet
from mlic_jax.data.sources.voc import VocFolder
from mlic_jax.errors import UsageError

COCO = dict(
    source="coco",
    name="mine",
    root="/data/mine",
    image_dir="{split}2014",
    annotations="annotations/instances_{split}2014.json",
    class_order="annotation",
    keep_unlabelled=True,
    splits=dict(train="train", val="val", test="val"),
)
VOC = dict(source="voc", name="voc2007", root="/data", year=2007, splits=dict(train="trainval"))
TFDS = dict(
    source="tfds",
    name="voc2007",
    tfds_name="voc/2007",
    root="",
    class_order="alphabetical",
    keep_unlabelled=False,
    splits=dict(train="trainval", val="", test="test"),
)


@pytest.mark.parametrize("wrap", [ml_collections.ConfigDict, lambda d: SimpleNamespace(**d)])
def test_coco(wrap):
    source = sources.create(wrap(COCO))
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
    source = sources.create(ml_collections.ConfigDict(VOC))
    assert isinstance(source, VocFolder)
    assert (source.name, source.splits) == ("voc2007", ("trainval",))
    assert source.description == {"kind": "voc", "root": "/data", "year": "2007"}


def test_tfds():
    source = sources.create(ml_collections.ConfigDict(TFDS))
    assert isinstance(source, TfdsSet)
    assert (source.name, source.splits) == ("voc2007", ("test", "trainval"))
    assert source.description["tfds_name"] == "voc/2007"


def test_a_relative_root_means_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = sources.create(ml_collections.ConfigDict({**VOC, "root": "data"}))
    assert source.description["root"] == str(tmp_path / "data")


@pytest.mark.parametrize(
    "config, message",
    [
        ({**VOC, "source": "imagenet"}, "unknown data source 'imagenet'; there are coco, scenes"),
        ({**VOC, "root": ""}, "`root`, the data's folder, is not set"),
        ({**COCO, "class_order": "random"}, "class_order is 'random'"),
        ({**TFDS, "class_order": "random"}, "class_order is 'random'"),
    ],
)
def test_wrong_configurations(config, message):
    with pytest.raises(UsageError, match=message):
        sources.create(ml_collections.ConfigDict(config))
