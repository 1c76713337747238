"""NUS-WIDE with its 81 concepts: the CSV file that ASL (ICCV 2021) published, and the images."""

from collections.abc import Mapping
from pathlib import Path

from mlic_jax.data.class_names import NUSWIDE as CLASS_NAMES
from mlic_jax.data.sources import layout, table
from mlic_jax.data.sources.cells import python_list
from mlic_jax.data.sources.labels import check_path
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.rows import Row, Rows, RowSet
from mlic_jax.data.sources.text import csv_rows
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
        def read() -> Rows:
            rows = _read(root / annotations)
            return Rows(CLASS_NAMES, [row for row in rows if keep_unlabelled or row.present])

        super().__init__(
            name,
            splits,
            root=root,
            image_dir=image_dir,
            read=read,
            files=lambda: [root / annotations],
            kind="nuswide",
            options={
                "annotations": annotations,
                "image_dir": image_dir,
                "keep_unlabelled": bool(keep_unlabelled),
            },
        )


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


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`: a table with the columns of NUS-WIDE, and no class of another set."""
    found = table.CSV.find(images, annotations, told)
    if found is None or not (_names(found) or {""}) <= set(CLASS_NAMES):
        return None
    return Layout("nuswide", f"the columns {','.join(COLUMNS)}", found.options, found.notes)


def find_csv(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`: a table of any other set."""
    found = table.CSV.find(images, annotations, told)
    return None if found and _names(found) == set(CLASS_NAMES) else found


def _names(found: Layout) -> set[str] | None:
    """The labels in a table with the columns of NUS-WIDE; None of any other table."""
    file = Path(found.options["root"], found.options["annotations"])
    if not file.is_file() or next(csv_rows(file))[1] != COLUMNS:
        return None
    return {name for row in table.TABLES["csv"](file).rows for name in row.present}


FORMAT = layout.Format(find, f"a .csv with the columns {','.join(COLUMNS)} and its classes")
CSV = layout.Format(find_csv, table.CSV.needs, table.CSV.takes)
