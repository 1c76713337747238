"""CelebA's own text files, of which the attributes of faces are the labels."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from mlic_jax.data.image_files import is_image
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.csv_table import photo_path
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.partition import partition_files, with_partition
from mlic_jax.data.sources.rows import Row, Rows, RowSet
from mlic_jax.data.sources.text import read_text
from mlic_jax.errors import Failure


class CelebA(RowSet):
    """CelebA, or any set with such a text file.

    Its first line is the number of photos, the second the names of the attributes, in their order;
    each other one is a photo and for each attribute 1 (present) or -1 (absent). Splits are those of
    `list_eval_partition.txt`, if it is in the same folder or in Eval beside it: a photo and 0
    (train), 1 (val) or 2 (test) a line.

    Args:
        name: of the prepared set.
        root: the folder that the other two are relative to.
        splits: those that are asked for.
        annotations: the text file.
        image_dir: the folder of images; "" is root itself.
        train_share, split_seed: see `RowSet`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        annotations: str,
        image_dir: str = "",
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        file = root / annotations
        super().__init__(
            name,
            splits,
            root=root,
            image_dir=image_dir,
            read=lambda: read_celeba(file),
            files=lambda: [file, *partition_files(file)],
            kind="celeba",
            options={"annotations": annotations, "image_dir": image_dir},
            train_share=train_share,
            split_seed=split_seed,
        )


def read_celeba(file: Path) -> Rows:
    """The photos in the order of the file.

    Raises:
        UsageError: there is no such file.
        Failure: it is malformed or cut off, or a photo is in no split.
    """
    lines = _lines(file)
    _, (count, *_) = next(lines, ("", [""]))
    where, names = next(lines, ("", []))
    if not count.isdecimal() or not names or len({*names}) < len(names):
        raise Failure(
            f"{file}: its first line must be the number of photos, and the second the names of the "
            "attributes, each once"
        )
    rows = []
    for where, (photo, *values) in lines:
        if len(values) != len(names) or not {*values} <= {"1", "-1"}:
            raise Failure(
                f"{where}: it must be a photo, and 1 or -1 for each of {len(names)} names"
            )
        present = [name for name, value in zip(names, values, strict=True) if value == "1"]
        rows.append(Row(where, photo_path(photo, where), present))
    if len(rows) != int(count):
        raise Failure(f"{file}: by its first line it is of {count} photos, and it has {len(rows)}")
    return with_partition(Rows(names, rows), file)


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Where each line is that is not empty, and its words."""
    for number, line in enumerate(read_text(file)[0].splitlines(), 1):
        if words := line.split():
            yield f"{file}, line {number}", words


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    if annotations is None:
        if not images.is_dir():
            return None
        files = [file for level in layout.files_in(images, (".txt",))[:2] for file in level]
        annotations = layout.only(filter(_is_celeba, files), "text files of attributes")
    if annotations is None or not annotations.is_file() or not _is_celeba(annotations):
        return None
    names: dict[str, list[str]] = {}
    for row in read_celeba(annotations).rows:
        names.setdefault(row.split, []).append(row.image)
    folder, notes = layout.image_folder(images, annotations, names)
    return Layout("celeba", annotations.name, layout.options(folder, annotations), notes)


def _is_celeba(file: Path) -> bool:
    """Whether a file has the name, or a number, names, and a photo with 1 and -1 on its lines."""
    if file.name.lower().startswith("list_attr_") and file.suffix.lower() == ".txt":
        return True
    with file.open("rb") as content:
        head = content.read(2**16).decode("latin-1").splitlines()
    if len(head) < 3 or not head[0].strip().isdecimal():
        return False
    photo, *values = head[2].split() or [""]
    return is_image(Path(photo)) and bool(values) and {*values} <= {"1", "-1"}


FORMAT = layout.Format(find, "a text file of attributes, 1 or -1 for each photo, as CelebA's")
