"""Own data in class folders, whose names are the labels of the images in them."""

import os
from collections.abc import Mapping
from pathlib import Path

from mlic_jax.data.image_files import is_image, printable, visible
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.rows import Row, Rows, RowSet
from mlic_jax.data.sources.split_names import role_of
from mlic_jax.errors import Failure, UsageError


class FolderSet(RowSet):
    """Images in `<class>/<image>`, or in `<split>/<class>/<image>` if there are splits.

    Every file of a class folder is an image, and its path is its id. The classes are sorted. Hidden
    files and folders do not count, nor those that operating systems leave everywhere, nor any file
    beside the outermost folders. See `RowSet`
    about sets without splits of their own.

    Args:
        name: of the prepared set.
        root: the folder of class folders, or of split folders.
        splits: those that are asked for.
        label_separator: what is between the labels in the name of a folder, such as "_" in
            red_shirt; "": the name is one label.
        train_share, split_seed: see `RowSet`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        label_separator: str = "",
        train_share: float = 0.8,
        split_seed: int = 0,
    ):
        super().__init__(
            name,
            splits,
            root=root,
            read=lambda: Rows((), read_folders(root, label_separator)),
            files=lambda: layout.folders_in(root),
            kind="folders",
            options={"label_separator": label_separator},
            train_share=train_share,
            split_seed=split_seed,
        )


def read_folders(root: Path, label_separator: str = "") -> list[Row]:
    """The images of all class folders, by folder and name; `where` of a row is its folder.

    Raises:
        UsageError: there is no such folder, or there are no folders in it.
        Failure: images and folders are mixed, or a folder's name has an empty label.
    """
    folders, _ = _listing(root)
    if not folders:
        raise UsageError(f"no class folders in {root}: check `root`")
    classes = [(split, folder) for split in folders for folder in _listing(split)[0]]
    if not classes:
        return [row for folder in folders for row in _class_rows(root, folder, label_separator, "")]
    for split in folders:
        _, files = _listing(split)
        if files:
            raise Failure(
                f"{files[0]} is neither in <class>/<image> nor in <split>/<class>/<image>: there "
                f"are folders in {classes[0][0]}"
            )
    return [
        row
        for split, folder in classes
        for row in _class_rows(root, folder, label_separator, split.name)
    ]


def _class_rows(root: Path, folder: Path, label_separator: str, split: str) -> list[Row]:
    folders, files = _listing(folder)
    if folders:
        raise Failure(f"{folders[0]}: a class folder must have no folders in it")
    names = folder.name.split(label_separator) if label_separator else [folder.name]
    labels = [printable(name).strip() for name in names]
    if "" in labels:
        raise Failure(f"{folder}: a label in its name, split at {label_separator!r}, is empty")
    return [
        Row(str(folder), file.relative_to(root).as_posix(), labels, split=split) for file in files
    ]


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, sorted, without junk."""
    try:
        entries = visible(folder)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}: check `root`") from error
    folders = [path for path in entries if path.is_dir()]
    return folders, [path for path in entries if not path.is_dir()]


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    folders = class_folders(images, annotations)
    if len(folders) < 2:
        return None
    names = sorted({folder.name for folder in folders})
    seen = f"folders of images: {layout.listing(names)}"
    splits = [name for name in names if role_of(name)]
    notes: tuple[str, ...] = ()
    if splits and len({folder.parent for folder in folders}) == 1:
        seen = f"{seen}, of which {layout.listing(splits)} may be no class"
        notes = (f"{layout.listing(splits)} is taken as a class",)
    return Layout("folders", seen, {"root": os.path.abspath(images)}, notes)


def class_folders(images: Path, annotations: Path | None) -> list[Path]:
    """The folders, one or two levels deep, of images, if they may be named for classes."""
    if annotations is not None or not images.is_dir():
        return []
    folders = [
        folder for folder in layout.folders_in(images) if any(map(is_image, visible(folder)))
    ]
    named = [f for f in folders if not (role_of(f.name) or f.name.lower() in layout.OF_PHOTOS)]
    return sorted(folders) if named else []


FORMAT = layout.Format(
    find, "two or more folders of images, and no annotations", ("label_separator",)
)
