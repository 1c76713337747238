"""What tools of annotation export as JSON or XML: one source, `Export`, and a module a format.

A format is a function from what a file holds to photos with the names of their labels, and a few
words by which its files are known.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from mlic_jax.data.image_files import visible
from mlic_jax.data.sources import layout
from mlic_jax.data.sources.csv_table import photo_path
from mlic_jax.data.sources.exports import (
    createml,
    cvat,
    label_studio,
    labelme,
    mmpretrain,
    names_json,
    via,
    vott,
)
from mlic_jax.data.sources.exports.photo import Malformed, Parser
from mlic_jax.data.sources.layout import Layout
from mlic_jax.data.sources.rows import Row, Rows, RowSet, split_by_path
from mlic_jax.data.sources.split_names import SPLIT, splits_of
from mlic_jax.errors import Failure, UsageError

PARSERS: dict[str, Parser] = {
    "label_studio": label_studio.PARSER,
    "labelme": labelme.PARSER,
    "via": via.PARSER,
    "createml": createml.PARSER,
    "vott": vott.PARSER,
    "cvat": cvat.PARSER,
    "mmpretrain": mmpretrain.PARSER,
    "json": names_json.PARSER,
}


class Export(RowSet):
    """Photos, and what a tool of annotation says of them.

    Args:
        name: of the prepared set.
        root: the folder that the other two are relative to.
        splits: those that are asked for.
        kind: a key of `PARSERS`.
        annotations: the file, a pattern of files with `{split}` in it, or a folder of a file an
            image.
        image_dir: the folder of images, or a pattern.
        train_share, split_seed: see `RowSet`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        splits: tuple[str, ...],
        *,
        kind: str,
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
            read=lambda: _read(kind, root, annotations),
            files=lambda: _read_files(root, annotations, PARSERS[kind]),
            kind=kind,
            options={"annotations": annotations, "image_dir": image_dir},
            train_share=train_share,
            split_seed=split_seed,
        )


def _read(kind: str, root: Path, annotations: str) -> Rows:
    files = _files(root, annotations, PARSERS[kind])
    if not files:
        raise UsageError(f"no file fits {root / annotations}: check `root` and `annotations`")
    rows = [row for split, file in files for row in _rows_of_file(kind, file, split)]
    return split_by_path(Rows((), rows))


def _rows_of_file(kind: str, file: Path, split: str) -> Iterator[Row]:
    parser = PARSERS[kind]
    try:
        for number, photo in enumerate(parser.photos(parser.read(file)), 1):
            where = f"{file}, photo {number}"
            image = photo_path(photo.image, f"{where}: its path")
            present, unknown = (
                list(dict.fromkeys(map(str.strip, part))) for part in (photo.present, photo.unknown)
            )
            if "" in (*present, *unknown):
                raise Failure(f"{where}: the name of a label is empty")
            yield Row(where, image, present, unknown, split or photo.split)
    except Malformed as error:
        raise Failure(f"{file} is not as {kind} writes it: {error}") from None
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        said = f"{type(error).__name__} {error}"
        raise Failure(f"{file} is not as {kind} writes it: {said}") from None


def _read_files(root: Path, annotations: str, parser: Parser) -> list[Path]:
    """The files, and of a folder all that may be of the format."""
    places = [place for _, place in _places(root, annotations)]
    files = [_may_be(place, parser) if place.is_dir() else [place] for place in places]
    return [file for of_place in files for file in of_place]


def _files(root: Path, annotations: str, parser: Parser) -> list[tuple[str, Path]]:
    """The files, each with its split; "" if they are of none."""
    places = _places(root, annotations)
    if not parser.file_an_image:
        return places
    return [(split, file) for split, place in places for file in _files_in(place, parser)]


def _places(root: Path, annotations: str) -> list[tuple[str, Path]]:
    """The file or folder of every split, "" if they are of none."""
    splits = splits_of(root, annotations) if SPLIT in annotations else ("",)
    return [(split, root / annotations.replace(SPLIT, split)) for split in splits]


def _files_in(folder: Path, parser: Parser) -> list[Path]:
    """The files of a format in a folder."""
    return [file for file in _may_be(folder, parser) if parser.knows(file)]


def _may_be(folder: Path, parser: Parser) -> list[Path]:
    """The files in a folder that a format may be in, by their names."""
    files = visible(folder) if folder.is_dir() else []
    return [file for file in files if file.suffix.lower() == parser.suffix]


# --- telling the format


def find(
    kind: str, images: Path, annotations: Path | None, told: Mapping[str, str]
) -> Layout | None:
    """See `layout.Format`."""
    parser = PARSERS[kind]
    if annotations is None:
        annotations = _looked_for(images, kind)
    if annotations is None:
        return None
    is_pattern = SPLIT in str(annotations)
    if not is_pattern and annotations.is_dir() != parser.file_an_image:
        return None
    root = Path(layout.fixed_part(str(annotations))) if is_pattern else annotations.parent
    pattern = annotations.relative_to(root).as_posix()
    files = [file for _, file in _files(root, pattern, parser)]
    if not files or not all(f.suffix == parser.suffix and parser.knows(f) for f in files):
        return None
    names: dict[str, list[str]] = defaultdict(list)
    for row in _read(kind, root, pattern).rows:
        names[row.split].append(row.image)
    own = annotations / "x.json" if parser.file_an_image else annotations
    folder, notes = layout.image_folder(images, own, names)
    seen = annotations.name + ("/*.json" if parser.file_an_image else "")
    return Layout(kind, seen, layout.options(folder, annotations), notes)


def _looked_for(images: Path, kind: str) -> Path | None:
    """The file, the pattern of files or the folder of files in a folder of everything."""
    if not images.is_dir():
        return None
    parser = PARSERS[kind]
    what = f"files of the format {kind}"
    if parser.file_an_image:
        folders = [f for f in (images, *layout.folders_in(images)) if _files_in(f, parser)]
        found = layout.one_or_a_split_each(images, [f / "x.json" for f in folders], what)
        return found and found[0].parent
    for level in layout.files_in(images, (parser.suffix,))[:2]:
        # Of XML there may be a file of another format for each image.
        looked_into = level[:20] if parser.suffix == ".xml" else level
        files = [file for file in looked_into if parser.knows(file)]
        if found := layout.one_or_a_split_each(images, files, what):
            return found[0]
    return None


FORMATS = {
    kind: layout.Format(partial(find, kind), parser.needs) for kind, parser in PARSERS.items()
}
