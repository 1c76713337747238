"""Sets in the layout of TFDS's own voc and coco, built on the spot by builders of that layout."""

import functools
import http.server
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mlic_jax.data import records
from mlic_jax.data.sources.tfds import TfdsSet
from mlic_jax.data.sources.voc import CLASS_NAMES
from mlic_jax.errors import Failure, UsageError

W, H = 24, 18

# For a builder of a package TFDS 4.9.10 imports importlib_resources, which it does not depend on.
__name__ = "__main__"


_jpegs: dict[str, bytes] = {}  # filled by a fixture: builders that TFDS makes take no arguments


def _box(y1, x1, y2, x2):
    return tfds.features.BBox(y1 / H, x1 / W, y2 / H, x2 / W)


class _TinyConfig(tfds.core.BuilderConfig):
    def __init__(self, year, has_test_annotations):
        super().__init__(name=year, version=tfds.core.Version("5.0.0"))
        self.has_test_annotations = has_test_annotations


class TinyVoc(tfds.core.GeneratorBasedBuilder):
    """The features and the box convention of TFDS's Voc."""

    BUILDER_CONFIGS = (_TinyConfig("2007", True), _TinyConfig("2012", False))

    def _info(self):
        label = tfds.features.ClassLabel(names=CLASS_NAMES)
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "label": label,
                    "bbox": tfds.features.BBoxFeature(),
                    "pose": tfds.features.ClassLabel(names=["frontal", "rear"]),
                    "is_truncated": np.bool_,
                    "is_difficult": np.bool_,
                }
            ),
            "labels": tfds.features.Sequence(label),
            "labels_no_difficult": tfds.features.Sequence(label),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        annotated = self.builder_config.has_test_annotations
        return {
            "train": self._examples(
                [("000005", [("dog", 0, (1, 1, H, W)), ("dog", 1, (2, 3, 4, 5))])]
            ),
            "validation": self._examples([("000009", [("person", 1, (7, 5, 12, 10))])]),
            "test": self._examples([("000001", [("cat", 0, (1, 1, 2, 2))] if annotated else [])]),
        }

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, rows):
        for image_id, objects in rows:
            names = sorted({name for name, _, _ in objects})
            yield (
                image_id,
                {
                    "image": _jpegs[image_id],
                    "image/filename": image_id + ".jpg",
                    "objects": [
                        {
                            "label": name,
                            "bbox": _box(*box),
                            "pose": "rear",
                            "is_truncated": False,
                            "is_difficult": bool(difficult),
                        }
                        for name, difficult, box in objects
                    ],
                    "labels": names,
                    "labels_no_difficult": names,
                },
            )


class TinyCoco(tfds.core.GeneratorBasedBuilder):
    """The features of TFDS's Coco."""

    VERSION = tfds.core.Version("1.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(num_classes=3),
                    "is_crowd": np.bool_,
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        self.info.features["objects"]["label"].names = ["person", "dog", "bottle"]
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        crowd, dog = (True, "person", (0, 0, 18, 24)), (False, "dog", (2.5, 1.08, 6.75, 11.1))
        for i, objects in enumerate([[crowd, dog], [], [crowd]]):
            yield (
                i,
                {
                    "image": _jpegs["000001"],
                    "image/filename": f"COCO_{i}.jpg",
                    "image/id": i,
                    "objects": [
                        {
                            "id": 1,
                            "area": 2,
                            "bbox": _box(*box),
                            "label": name,
                            "is_crowd": is_crowd,
                        }
                        for is_crowd, name, box in objects
                    ],
                },
            )


class Unreachable(tfds.core.GeneratorBasedBuilder):
    """Downloads from a server that does not have the file."""

    VERSION = tfds.core.Version("1.0.0")
    url = ""

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        dl_manager.download(self.url)

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def data_dir(jpeg, tmp_path_factory):
    """A TFDS data folder; what is in it was prepared as ArrayRecord."""
    _jpegs.update({f"00000{i}": jpeg(i, W, H) for i in (1, 5, 9)})
    folder = str(tmp_path_factory.mktemp("tfds"))
    for name in ("tiny_voc/2007", "tiny_voc/2012", "tiny_coco"):
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return folder


def _labels(**values):
    return [values.get(name, -1) for name in CLASS_NAMES]


def _voc(data_dir, year="2007", splits=("trainval", "test")):
    return TfdsSet("voc", splits, tfds_name=f"tiny_voc/{year}", data_dir=data_dir)


def test_voc(data_dir):
    source = _voc(data_dir)
    assert source.class_names == CLASS_NAMES
    five, nine = source.examples("trainval")
    assert (five.image_id, nine.image_id) == ("000005", "000009")
    assert five.image == _jpegs["000005"]
    np.testing.assert_array_equal(five.labels, _labels(dog=1))
    np.testing.assert_array_equal(nine.labels, _labels(person=0))  # only a difficult one
    np.testing.assert_array_equal(five.boxes, [[0, 0, H, W], [1, 2, 4, 5]])
    np.testing.assert_array_equal(nine.boxes, [[6, 4, 12, 10]])
    assert five.labels.dtype == np.int8 and five.boxes.dtype == five.box_classes.dtype == np.int32
    (one,) = source.examples("val")
    assert one.image_id == "000009"


def test_a_test_split_without_annotations_is_all_unknown(data_dir):
    (example,) = _voc(data_dir, "2012").examples("test")
    np.testing.assert_array_equal(example.labels, np.zeros(20))
    (example,) = _voc(data_dir, "2007").examples("test")
    np.testing.assert_array_equal(example.labels, _labels(cat=1))


def test_coco(data_dir):
    source = TfdsSet("coco", ("train",), tfds_name="tiny_coco", data_dir=data_dir)
    assert source.class_names == ("bottle", "dog", "person")
    first, third = source.examples("train")  # the second has no annotation
    assert (first.image_id, third.image_id) == ("COCO_0.jpg", "COCO_2.jpg")
    np.testing.assert_array_equal(first.labels, [-1, 1, 0])
    np.testing.assert_array_equal(first.boxes, [[2, 1, 7, 12]])
    np.testing.assert_array_equal(first.box_classes, [1])
    np.testing.assert_array_equal(third.labels, [-1, -1, 0])


def test_coco_in_annotation_order_with_unlabelled(data_dir):
    source = TfdsSet(
        "coco",
        ("train",),
        tfds_name="tiny_coco",
        data_dir=data_dir,
        class_order="annotation",
        keep_unlabelled=True,
    )
    assert source.class_names == ("person", "dog", "bottle")
    labels = [example.labels.tolist() for example in source.examples("train")]
    assert labels == [[0, 1, -1], [-1, -1, -1], [0, -1, -1]]


def test_tfds_says_nothing_of_its_own(data_dir, tmp_path, capsys):
    """Its banners are two bold lines on stdout."""
    source = TfdsSet("coco", ("train",), tfds_name="tiny_coco", data_dir=str(tmp_path))
    assert len(source.examples("train")) == 2
    assert capsys.readouterr().out == ""


def test_prepared_and_read_back(data_dir, tmp_path):
    split = records.open_split(records.prepare(_voc(data_dir), tmp_path), "trainval")
    assert [record.image for record in split] == [_jpegs["000005"], _jpegs["000009"]]
    np.testing.assert_array_equal(split[0].boxes, [[0, 0, H, W], [1, 2, 4, 5]])


def test_unknown_names(data_dir):
    with pytest.raises(UsageError, match=r"tiny_voc/2007 has no split 'minival'; it has .*train"):
        _voc(data_dir).examples("minival")
    source = TfdsSet("x", ("train",), tfds_name="no_such_set", data_dir=data_dir)
    with pytest.raises(UsageError, match="TFDS has no set 'no_such_set'"):
        source.examples("train")


@pytest.fixture
def empty_server(tmp_path):
    """The address of an HTTP server that has nothing."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_failed_download_is_one_line(empty_server, tmp_path, monkeypatch):
    # TFDS retries a refused connection for minutes, but takes "not found" for an answer.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Unreachable, "url", f"{empty_server}/data.zip")
    source = TfdsSet("x", ("train",), tfds_name="unreachable", data_dir=str(tmp_path))
    with pytest.raises(Failure, match="TFDS cannot download and generate unreachable") as failure:
        source.examples("train")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["voc/2007", "voc/2012", "coco/2014"])
def test_without_tensorflow_the_extra_is_named_before_any_download(name, tmp_path, capsys):
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("needs an environment without TensorFlow")
    source = TfdsSet("x", ("train",), tfds_name=name, data_dir=str(tmp_path))
    with pytest.raises(UsageError, match=r"TensorFlow: pip install 'mlic_jax\[tfds\]'"):
        source.class_names  # noqa: B018
    assert not list(tmp_path.rglob("*.tar"))
    assert capsys.readouterr() == ("", "")
