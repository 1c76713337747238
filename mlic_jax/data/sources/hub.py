"""Datasets of the Hub of Hugging Face, by name, or a folder of such files; with the extra `hub`."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mlic_jax.data.image_files import printable
from mlic_jax.data.records import Example, RandomAccess
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.columns import LABELS, check_left_out, plain
from mlic_jax.data.sources.csv_table import read_cells
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.on_demand import OnDemand
from mlic_jax.data.sources.rows import Row, Rows, RowSet
from mlic_jax.errors import Failure, UsageError

PREFIX = "hf:"  # of --images, before a name or a folder
_NAME = re.compile(r"([\w.-]+/)?[\w.-]+(:[\w.-]+)?")  # owner/name:config
_SECONDS = 10  # in which the Hub must answer


class HubSet(RowSet):
    """A dataset as the package `datasets` opens it: of the Hub, or a folder.

    One column has the images, which are taken as they were encoded; the id of one is its split and
    the path that the dataset has for it, or its number. The labels are in a column of numbers that
    have names, one or a list of them, or else are told as those of a table: a list of texts, a
    text, or a column a class; see `table.Table`. A number of -1, or none, is of an image of which
    nothing is known; a split of these alone is left out. See `RowSet` about sets of one split.

    Args:
        name: of the prepared set.
        splits: those that are asked for.
        hub_name: owner/name, or owner/name:configuration; "": it is in a folder.
        root: the folder, with what `Dataset.save_to_disk` wrote, Parquet files or images.
        image_column, label_column, cell_separator, train_share, split_seed: see `table.Table`.
    """

    def __init__(
        self,
        name: str,
        splits: tuple[str, ...],
        *,
        hub_name: str = "",
        root: Path | None = None,
        image_column: str = "",
        label_column: str = "",
        cell_separator: str = "",
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        if not (hub_name or root):
            raise UsageError("data source hub: neither `hub_name` nor `root` is set")
        self._hub_name, self._folder = hub_name, None if hub_name else root
        self._image_column = image_column
        told = {"label_column": label_column, "cell_separator": cell_separator}
        options = {"image_column": image_column, **told}
        super().__init__(
            name,
            splits,
            root=root or Path(),
            read=lambda: read_tables(self._tables, **told),
            files=self._files_read,
            kind="hub",
            options={option: value for option, value in options.items() if value},
            train_share=train_share,
            split_seed=split_seed,
        )
        if hub_name:
            del self.description["root"]
            self.description["hub_name"] = hub_name

    def _files_read(self) -> list[Path]:
        """Every file of the folder; none of a set of the Hub, which is kept as it was prepared."""
        if self._folder is None:
            return []
        return sorted(path for path in self._folder.rglob("*") if path.is_file())

    def examples(self, split: str) -> RandomAccess[Example]:
        """The examples in the order of the dataset, read when they are asked for.

        Raises:
            UsageError: there is no such dataset, split or column; `datasets` is not installed.
            Failure: the Hub cannot be reached; what the columns mean cannot be told.
        """
        _, rows, labels = self._contents
        members = np.flatnonzero(self._members(split)).tolist()

        def example(position: int) -> Example:
            row = members[position]
            return Example(
                image_id=printable(rows[row].image),
                image=self._image(rows[row].where),
                labels=labels[row],
                boxes=np.zeros((0, 4), np.int32),
                box_classes=np.zeros(0, np.int32),
            )

        return OnDemand(len(members), example)

    def _image(self, where: str) -> bytes | Path:
        table, position = self._places[where]
        return table.image(position)

    @cached_property
    def _places(self) -> dict[str, tuple["_Table", int]]:
        """`where` of every row -> the split it is of, and its position there."""
        return {
            table.where(position): (table, position)
            for table in self._tables
            for position in range(len(table.image_ids))
        }

    @cached_property
    def _tables(self) -> list["_Table"]:
        folder = self._folder
        opened = _open_named(self._hub_name) if folder is None else _open_folder(folder)
        splits = opened if isinstance(opened, dict) else {str(opened.split or "train"): opened}
        features = next(iter(splits.values())).features
        image_column = _image_column(features, self._image_column)
        return [_Table(split, dataset, image_column) for split, dataset in splits.items()]


class _Table:
    """A split of a dataset: its images, and the columns beside them."""

    def __init__(self, split: str, dataset: Any, image_column: str):
        from datasets import Image

        self.split = split
        self.image_column = image_column
        dataset = dataset.with_format(None)  # some are saved with one, of tensors or fewer columns
        images = dataset.select_columns([image_column])
        self._images = images.cast_column(image_column, Image(decode=False))
        paths = list(self._images.flatten()[f"{image_column}.path"])
        names = [PurePosixPath(path or "").name for path in paths]
        if "" in names or len({*names}) < len(names):
            names = [f"{position:08}" for position in range(len(paths))]
        self.image_ids = [f"{split}/{name}" for name in names]
        self._others = dataset.remove_columns([image_column]).flatten()
        self.features = self._others.features

    def where(self, position: int) -> str:
        """How a message names a row."""
        return f"{self.split}, row {position + 1}"

    def image(self, position: int) -> bytes | Path:
        """What is encoded, or the file that holds it."""
        image = self._images[position][self.image_column] or {}
        content, path = image.get("bytes"), image.get("path")
        return Path(path) if content is None and path else content or b""

    def values(self, column: str) -> list[Any]:
        """What a column has in every row; the names of what has names, None where there is none."""
        names = names_of(self.features[column])
        values = list(self._others[column])
        if not names:
            return values
        return [
            _named(value, names, f"{self.where(i)}, {column}") for i, value in enumerate(values)
        ]

    def cells(self, columns: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Where each row is, and its cells as a CSV file has them, the id of the image first."""
        of_columns = [map(_cell, self.values(column)) for column in columns]
        rows = zip(self.image_ids, *of_columns, strict=True)
        return [(self.where(i), list(row)) for i, row in enumerate(rows)]


def read_tables(tables: Sequence[_Table], label_column: str = "", cell_separator: str = "") -> Rows:
    """What the columns beside the images say.

    Raises:
        UsageError: there is no such column.
        Failure: it cannot be told which has the labels, or what they are.
    """
    first = tables[0]
    header = [name for name, feature in first.features.items() if _has_cells(feature)]
    if any(table.features != first.features for table in tables):
        raise Failure(f"the columns of {first.split} are not those of every other split")
    column = label_column or _column_of_names(first.features)
    if not column:
        others = [name for name in first.features if name not in header]
        check_left_out("the dataset", header, others)
    if names := names_of(first.features.get(column)):
        names = [" ".join(name.split()) for name in names]
        rows = [
            # Of an image without an answer nothing is known.
            Row(table.where(i), image, present or (), names if present is None else ())
            for table in tables
            for i, (image, present) in enumerate(
                zip(table.image_ids, table.values(column), strict=True)
            )
        ]
        notes: Sequence[str] = [f"labels are those of the column {column}, which names them"]
    else:
        lines = [line for table in tables for line in table.cells(header)]
        table = [("the dataset", [first.image_column, *header]), *lines]
        told = first.image_column, label_column, cell_separator
        _, rows, notes = read_cells(table, *told)
    if left_out := [name for name in first.features if name not in header]:
        notes = [*notes, f"columns that are neither values nor lists: {', '.join(left_out)}"]
    return _with_splits(tables, Rows(names, rows, notes))


def _with_splits(tables: Sequence[_Table], read: Rows) -> Rows:
    """The rows with the splits of the dataset, without splits that have no label at all."""
    splits = [table.split for table in tables for _ in table.image_ids]
    if len(tables) > 1:
        rows = [row._replace(split=of) for row, of in zip(read.rows, splits, strict=True)]
    else:  # a column may name them
        rows = [row._replace(split=row.split or splits[0]) for row in read.rows]
    labelled = {row.split for row in rows if row.present}
    without = [table.split for table in tables if len(tables) > 1 and table.split not in labelled]
    if not labelled or not without:
        return read._replace(rows=rows)
    note = f"{', '.join(without)}: no labels, not read"
    return Rows(read.class_names, [r for r in rows if r.split in labelled], [*read.notes, note])


# --- columns


def names_of(feature: Any) -> list[str]:
    """The names of the numbers in a column, each one or a list of them; none where it has none."""
    feature = getattr(feature, "feature", feature)  # of a list
    return list(getattr(feature, "names", ()))


def _image_column(features: Mapping[str, Any], said: str) -> str:
    """The column of encoded images.

    Raises:
        UsageError: there is none, or not the one that is said, or several.
    """
    from datasets import Image

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if said:
        if said not in images:
            raise UsageError(f"--image-column {said}: the columns of images are {_listed(images)}")
        return said
    column = layout.only(map(Path, images), "columns of images", "--image-column")
    if column is None:
        raise UsageError(f"no column holds images: there are {_listed(features)}")
    return column.name


def _column_of_names(features: Mapping[str, Any]) -> str:
    """The column of numbers with names; "" if there is none.

    Raises:
        UsageError: there are several, of which none is called labels, label, or the like.
    """
    columns = [name for name, feature in features.items() if names_of(feature)]
    usual = [name for word in LABELS for name in columns if plain(name) == word]
    if len(columns) > 1 and not usual:
        raise UsageError(
            f"which column has the labels: {_listed(columns)}? Say --label-column NAME, or several "
            "with commas between for labels such as colour=red"
        )
    return (usual or columns or [""])[0]


def _has_cells(feature: Any) -> bool:
    """Whether a column is of single values or of lists of them."""
    feature = getattr(feature, "feature", feature)
    dtype = getattr(feature, "dtype", None)
    return isinstance(dtype, str) and dtype.startswith(
        ("string", "large_string", "int", "uint", "float", "bool")
    )


def _named(value: Any, names: Sequence[str], where: str) -> list[str] | None:
    """The names of a number, or of those in a list; None where there is no answer."""
    numbers = value if isinstance(value, list) else [value]
    if value is None or numbers == [-1]:
        return None
    for number in numbers:
        if number is None or not 0 <= number < len(names):
            raise Failure(f"{where}: {number} is none of its {len(names)} classes")
    return list(dict.fromkeys(" ".join(names[number].split()) for number in numbers))


def _cell(value: Any) -> str:
    """A value as it stands in a CSV file; of lists as Python writes them, of texts."""
    if isinstance(value, list):
        return repr([str(part) for part in value])
    return "" if value is None else str(value).strip()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


# --- opening


def _open_named(hub_name: str) -> Any:
    """The dataset of this name, of the Hub or, without a network, as it was fetched before.

    Raises:
        UsageError: `datasets` is not installed.
        Failure: there is no such dataset, or no network; it has several configurations.
    """
    datasets = _package(hub_name)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name, _, configuration = hub_name.partition(":")
    silent = ""
    try:  # `datasets` itself tries again for half a minute
        HfApi().dataset_info(name, timeout=_SECONDS)
    except HfHubHTTPError as error:
        raise Failure(f"the Hub has no dataset {name}, or not for you: {_line(error)}") from None
    except Exception as error:  # without a network, of many types
        silent = f"the Hub does not answer ({_line(error)}), and of what was fetched before: "
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # whatever is in a repository, on a disk or in a network
        raise Failure(f"cannot open the dataset {hub_name}: {silent}{_line(error)}") from None


def _open_folder(folder: Path) -> Any:
    datasets = _package(str(folder))
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        return datasets.load_from_disk(folder) if saved else datasets.load_dataset(str(folder))
    except Exception as error:  # whatever is in a folder
        raise Failure(f"{folder} is no folder of a dataset: {_line(error)}") from None


def _package(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{what}: the package datasets is needed to read it: pip install -e '.[hub]'"
        ) from None
    return datasets


def _line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 300 else said[:297] + "..."


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    name = str(images)
    if not name.startswith(PREFIX):
        return None
    if annotations is not None:
        raise UsageError(f"--annotations does not count: {name} has the labels")
    place = name.removeprefix(PREFIX)
    if place and Path(place).expanduser().is_dir():
        return Layout("hub", name, {"root": os.path.abspath(Path(place).expanduser())})
    if not _NAME.fullmatch(place):
        raise UsageError(f"--images {name}: {place} is no folder, nor owner/name of a dataset")
    return Layout("hub", name, {"hub_name": place})


FORMAT = layout.Format(
    find,
    f"a dataset of the Hub or in a folder: --images {PREFIX}owner/name or {PREFIX}FOLDER",
    ("image_column", "label_column", "cell_separator"),
)
