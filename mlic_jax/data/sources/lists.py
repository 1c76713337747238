"""Own data of which each class has a text file that lists its photos, as MIRFLICKR's."""

import re
from collections.abc import Mapping
from pathlib import Path

from mlic_jax.data.image_files import is_image, visible
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.csv_table import photo_path
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.rows import Row, Rows, RowSet
from mlic_jax.data.sources.split_names import role_of
from mlic_jax.data.sources.text import read_text
from mlic_jax.errors import Failure, UsageError


class Lists(RowSet):
    """Photos in a folder, and files `<class>.txt` with the name of a photo a line.

    A line may be the number of a photo alone, as 7 is im7.jpg. A photo that is in no list shows
    none of the classes.

    Args:
        name: of the prepared set.
        root: the folder that the other two are relative to.
        splits: those that are asked for.
        annotations: the folder of lists.
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
        super().__init__(
            name,
            splits,
            root=root,
            image_dir=image_dir,
            read=lambda: read_lists(root / annotations, root / image_dir),
            files=lambda: [*_lists(root / annotations), root / image_dir],
            kind="lists",
            options={"annotations": annotations, "image_dir": image_dir},
            train_share=train_share,
            split_seed=split_seed,
        )


def read_lists(folder: Path, images: Path) -> Rows:
    """The photos of a folder, with the classes that list them.

    Raises:
        UsageError: there is no such folder, or no list in it.
        Failure: a list names a photo that is not there, or two have one number.
    """
    if not images.is_dir():
        raise UsageError(f"no image folder {images}: check `root` and `image_dir`")
    if not (lists := _lists(folder)):
        raise UsageError(f"no lists <class>.txt in {folder}: check `root` and `annotations`")
    photos = [file.name for file in visible(images) if is_image(file)]
    known = {name: {name} for name in photos}
    for name in photos:
        stem = name.rpartition(".")[0]
        number = re.search(r"\d+$", stem)
        for spelling in {stem, str(int(number[0]))} if number else {stem}:
            known.setdefault(spelling, set()).add(name)
    labels: dict[str, list[str]] = {name: [] for name in photos}
    for file in lists:
        for at, line in enumerate(read_text(file)[0].splitlines(), 1):
            if not line.strip():
                continue
            where = f"{file}, line {at}"
            name = photo_path(line.strip(), where).rpartition("/")[2]
            found = known.get(name) or known.get(name.lstrip("0")) or ()
            if len(found) != 1:
                several = " and ".join(sorted(found)[:2]) or "none"
                raise Failure(f"{where}: which photo in {images} is {name!r}? There are {several}")
            (photo,) = found
            if file.stem not in labels[photo]:
                labels[photo].append(file.stem)
    rows = [Row(str(images / name), name, names) for name, names in labels.items()]
    return Rows(sorted(file.stem for file in lists), rows)


def _lists(folder: Path) -> list[Path]:
    files = visible(folder) if folder.is_dir() else []
    return [f for f in files if f.suffix == ".txt" and "readme" not in f.name.lower()]


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    if not images.is_dir():
        return None
    folders = [annotations] if annotations else [images, *layout.folders_in(images)]
    found = layout.only(filter(_has_lists, folders), "folders of lists <class>.txt")
    if not found:
        return None
    places = [f for f in (images, *layout.folders_in(images)) if any(map(is_image, visible(f)))]
    photos = layout.only(places, "folders of photos", "--images")
    if not photos:
        return None
    seen = f"{found.name}/*.txt, a list a class"
    return Layout("lists", seen, layout.options(photos, found))


def _has_lists(folder: Path) -> bool:
    """Whether a folder has two or more lists of photos, by name or number, and none of a split."""
    files = _lists(folder)
    words = [word for file in files for word in (file.stem, file.stem.rpartition("_")[2])]
    if len(files) < 2 or any(map(role_of, words)):
        return False
    lines = [line for file in files[:20] for line in file.read_bytes()[:300].splitlines()[:3]]
    names = [line.strip().decode("utf-8", "replace") for line in lines if line.strip()]
    return bool(names) and all(name.isdecimal() or is_image(Path(name)) for name in names)


FORMAT = layout.Format(find, "text files <class>.txt, each a list of the photos of a class")
