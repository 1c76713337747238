"""Sets that TensorFlow Datasets downloads: voc/2007, voc/2012, coco/2014, others of their layout.

TFDS generates these three with TensorFlow, so preparing them needs the extra `tfds`; training and
everything after does not.
"""

import contextlib
import io
import logging
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlic_jax.data.records import Example, RandomAccess
from mlic_jax.data.sources.labels import order_classes, pixel_boxes, ternary_labels
from mlic_jax.errors import Failure, UsageError

logger = logging.getLogger(__name__)

_NEED_TENSORFLOW = ("voc/", "coco/")
_SPLIT_ALIASES = {"trainval": "train+validation", "val": "validation"}


class TfdsSet:
    """A detection set of TFDS as a multi-label set.

    Image ids and labels are as in `VocFolder` and `CocoFolder`. A split without public annotations
    (VOC 2012 test) has labels that are all unknown (0).

    Args:
        name: of the prepared set.
        splits: names of TFDS splits; "val" and "trainval" are understood.
        tfds_name: such as "voc/2007".
        data_dir: where TFDS keeps its files; "" is its default folder.
        class_order: "alphabetical" or "annotation" (the order of TFDS).
        keep_unlabelled: whether images without any annotation are kept; the originals drop them.
    """

    annotation_files: tuple[Path, ...] = ()  # a set of TFDS is of a version, and never changes
    own_splits: tuple[str, ...] = ()  # a person names them
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        splits: tuple[str, ...],
        *,
        tfds_name: str,
        data_dir: str = "",
        class_order: str = "alphabetical",
        keep_unlabelled: bool = False,
    ):
        order_classes((), class_order)
        self.name = name
        self.splits = splits
        self._data_dir = data_dir or None
        self.description: dict[str, Any] = {
            "kind": "tfds",
            "tfds_name": tfds_name,
            "class_order": class_order,
            "keep_unlabelled": bool(keep_unlabelled),
        }

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return order_classes(self._tfds_class_names, self.description["class_order"])

    def examples(self, split: str) -> RandomAccess[Example]:
        """The examples in TFDS's order, read when they are asked for.

        Raises:
            UsageError: no such set or split; TensorFlow is needed and not installed.
            Failure: the download failed.
        """
        import tensorflow_datasets as tfds

        tfds_split = _SPLIT_ALIASES.get(split, split)
        exists = self._builder.info.splits
        if missing := [part for part in tfds_split.split("+") if part not in exists]:
            set_name = self.description["tfds_name"]
            raise UsageError(f"{set_name} has no split {missing[0]!r}; it has {', '.join(exists)}")
        decoders = {"image": tfds.decode.SkipDecoding()}
        records = self._builder.as_data_source(tfds_split, decoders=decoders)
        annotated = getattr(self._builder.builder_config, "has_test_annotations", True)
        return _Examples(
            records,
            positions=np.array([self.class_names.index(name) for name in self._tfds_class_names]),
            annotated=annotated or split != "test",
            keep_unlabelled=self.description["keep_unlabelled"],
        )

    @cached_property
    def _tfds_class_names(self) -> list[str]:
        return list(self._builder.info.features["objects"]["label"].names)

    @cached_property
    def _builder(self) -> Any:
        """The TFDS builder, after it downloaded and generated its files where that was needed."""
        import tensorflow_datasets as tfds

        name = self.description["tfds_name"]
        without_tensorflow = find_spec("tensorflow") is None
        advice = UsageError(
            f"TFDS generates {name} with TensorFlow: pip install 'mlic_jax[tfds]' to prepare it "
            "(training does not need it)"
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its banners
                builder = tfds.builder(name, data_dir=self._data_dir, file_format="array_record")
            if not builder.is_prepared():
                if without_tensorflow and name.startswith(_NEED_TENSORFLOW):
                    raise advice  # before it downloads for an hour
                logger.info("TFDS downloads and prepares %s, in %s ...", name, builder.data_dir)
                with contextlib.redirect_stdout(io.StringIO()):  # its banners
                    builder.download_and_prepare()
        except UsageError:
            raise
        except tfds.core.DatasetNotFoundError:
            raise UsageError(f"TFDS has no set {name!r}") from None
        except ImportError as error:
            if without_tensorflow:
                raise advice from None
            raise Failure(f"TFDS cannot load {name}: {error}") from error
        except Exception as error:  # no network, a wrong checksum, a full disk, ...: of many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Failure(f"TFDS cannot download and generate {name}: {reason}") from error
        return builder


class _Examples(RandomAccess[Example]):
    """TFDS records as examples; nothing is decoded but the header of an image, for its size."""

    def __init__(
        self, records: Any, *, positions: np.ndarray, annotated: bool, keep_unlabelled: bool
    ):
        self._records = records
        self._positions = positions  # of TFDS's class k in our order
        self._annotated = annotated
        keep_all = keep_unlabelled or not annotated
        self._kept = [
            i for i in range(len(records)) if keep_all or len(records[i]["objects"]["label"])
        ]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, position: int, /) -> Example:
        record = self._records[self._kept[position]]
        file_name, objects = record["image/filename"].decode(), record["objects"]
        is_voc = "is_difficult" in objects
        classes = self._positions[np.array(objects["label"], int)].astype(np.int32)
        unsure = np.array(objects["is_difficult" if is_voc else "is_crowd"], bool)
        labels = ternary_labels(classes, unsure, len(self._positions))
        with_box = np.ones_like(unsure) if is_voc else ~unsure
        return Example(
            image_id=Path(file_name).stem if is_voc else file_name,
            image=record["image"],
            labels=labels if self._annotated else np.zeros_like(labels),
            boxes=_boxes(record, one_based=is_voc)[with_box],
            box_classes=classes[with_box],
        )


def _boxes(record: dict[str, Any], one_based: bool) -> np.ndarray:
    """int32 [K, 4] pixel boxes; TFDS divides the annotations by the image size and changes no more.

    So VOC's lower bounds still count from 1, and its upper bounds are inclusive.
    """
    relative = np.array(record["objects"]["bbox"], np.float64).reshape(-1, 4)
    with Image.open(io.BytesIO(record["image"])) as image:
        corners = relative * [image.height, image.width, image.height, image.width]
    return pixel_boxes(corners - ([1, 1, 0, 0] if one_based else 0))
