"""The Apparel images of Kaggle: folders named `<colour>_<garment>`, so two labels an image."""

import os
from collections.abc import Mapping
from pathlib import Path

from mlic_jax.data.class_names import APPAREL as CLASS_NAMES
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.folders import class_folders, read_folders
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.rows import Row, Rows, RowSet
from mlic_jax.errors import Failure

COLOURS, GARMENTS = CLASS_NAMES[:6], CLASS_NAMES[6:]


class Apparel(RowSet):
    """The set in its class folders, which has no splits of its own: MSRN halved it at random.

    The path below root is the image's id.

    Args:
        name: of the prepared set.
        root: the folder of the class folders.
        splits: "train" and "test"; see `RowSet`.
        train_share: of the images.
        split_seed: another seed gives other halves.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        train_share: float = 0.5,
        split_seed: int = 0,
    ):
        super().__init__(
            name,
            splits,
            root=root,
            read=lambda: Rows(CLASS_NAMES, _read(root)),
            files=lambda: layout.folders_in(root),
            kind="apparel",
            options={},
            train_share=train_share,
            split_seed=split_seed,
        )


def _read(root: Path) -> list[Row]:
    rows = read_folders(root, "_")
    pairs = {(colour, garment) for colour in COLOURS for garment in GARMENTS}
    for row in rows:
        if tuple(row.present) not in pairs:
            raise Failure(
                f"folder {row.where} is not named <colour>_<garment> with one of "
                f"{', '.join(COLOURS)} and one of {', '.join(GARMENTS)}"
            )
    return rows


# --- telling the format


def find(images: Path, annotations: Path | None, told: Mapping[str, str]) -> Layout | None:
    """See `layout.Format`."""
    names = {f"{colour}_{garment}" for colour in COLOURS for garment in GARMENTS}
    folders = class_folders(images, annotations)
    if not folders or not {folder.name for folder in folders} <= names:
        return None
    seen = f"{len(folders)} folders <colour>_<garment>"
    return Layout("apparel", seen, {"root": os.path.abspath(images)})


FORMAT = layout.Format(find, "folders of images named <colour>_<garment>")
