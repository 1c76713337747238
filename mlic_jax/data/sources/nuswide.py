"""NUS-WIDE with its 81 concepts: the CSV file that ASL (ICCV 2021) published, and the images."""

from pathlib import Path
from typing import Any

from mlic_jax.data.class_names import NUSWIDE as CLASS_NAMES
from mlic_jax.data.sources.labels import check_path
from mlic_jax.data.sources.table import Row, RowSet, csv_rows, python_list
from mlic_jax.errors import Failure

COLUMNS = ["filepath", "label", "split_name"]


class NusWide(RowSet):
    """NUS-WIDE, or any set of the same 81 classes in that layout.

    The columns are filepath, label (a Python list of names) and split_name (train or val). The path
    is the image's id.

    Args:
        name: of the prepared set.
        root: the folder that the other two are relative to.
        splits: values of split_name.
        annotations: the CSV file.
        image_dir: the folder that filepath is relative to; "" is root itself.
        keep_unlabelled: whether images with an empty list are kept; by default they are dropped, as
            those of COCO are.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        annotations: str,
        image_dir: str,
        keep_unlabelled: bool = False,
    ):
        description: dict[str, Any] = {
            "kind": "nuswide",
            "root": str(root),
            "annotations": annotations,
            "image_dir": image_dir,
            "keep_unlabelled": bool(keep_unlabelled),
        }

        def read() -> tuple[tuple[str, ...], list[Row]]:
            rows = _read(root / annotations)
            return CLASS_NAMES, [row for row in rows if keep_unlabelled or row.present]

        self.annotation_files = (root / annotations,)
        super().__init__(name, splits, images=root / image_dir, read=read, description=description)


def _read(file: Path) -> list[Row]:
    lines = csv_rows(file)
    where, header = next(lines)
    if header != COLUMNS:
        raise Failure(f"{where}: the columns must be {', '.join(COLUMNS)}; got {', '.join(header)}")
    rows = []
    for where, (path, labels, split) in lines:
        if not split:
            raise Failure(f"{where}: split_name is empty")
        check_path(path, f"{where}: filepath")
        try:
            rows.append(Row(where, path, python_list(labels), split=split))
        except ValueError as error:
            raise Failure(f"{where}: {error}") from None
    return rows
