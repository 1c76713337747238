"""Photos in, files out: a table, lines of JSON, annotated photos and a page to look at.

The page loads photos and activation maps from files beside it, when they come into view: one of a
thousand photos opens at once.

Whatever is wrong with a photo concerns its row alone, and whatever ends the process none that was
written: outputs grow in `.partial`, with a journal from which `resume` goes on.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import jax
from tqdm import tqdm

from mlic_jax.data.image_files import printable
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.files.atomic import (
    PARTIAL,
    finish_replacing,
    locked,
    replace_together,
    write_bytes,
)
from mlic_jax.predict.finding import find_images
from mlic_jax.predict.journal import JOURNAL, LINES, TABLE, Entry, Journal, begun, has_rows
from mlic_jax.predict.predictor import (
    THREADS,
    LookOptions,
    Predictor,
    common_batch_size,
    in_order,
    load_model,
)
from mlic_jax.predict.sidecars import write_sidecars
from mlic_jax.reports.predictions import (
    ANNOTATED,
    GALLERY,
    as_json,
    encode_pictures,
    from_json,
    page_picture,
    picture_files,
    render_page,
    summary,
)
from mlic_jax.runtime.checkpoint import digest_of_arrays
from mlic_jax.scores.options import EvalOptions
from mlic_jax.scores.predictions import Prediction

PAGE = "index.html"
PRINTED = 20  # photos whose labels the terminal shows
OUTPUTS = (TABLE, LINES, ANNOTATED, GALLERY, PAGE, JOURNAL)


@dataclass(frozen=True)
class Opened:
    """A model that was read, before it is known how many photos it is to look at.

    Attributes:
        run: what must be the same for a run to go on.
        most: photos to look at together.
        predictor: (photos that it looks at together) -> what predicts.
    """

    run: dict[str, Any]
    most: int
    predictor: Callable[[int], Predictor]


def open_checkpoint(checkpoint: str | Path, **look: Unpack[LookOptions]) -> Opened:
    """A checkpoint, as `Predictor.from_checkpoint` takes it; for what is raised see there."""
    config, variables, metadata = load_model(checkpoint, **look)
    return Opened(
        run=describe_run(EvalOptions.of(config.eval), variables, metadata),
        most=config.eval.batch_size * jax.local_device_count(),
        predictor=partial(Predictor, config, variables, metadata),
    )


def predict_files(
    checkpoint: str | Path,
    images: str,
    out: str | Path,
    resume: bool = False,
    sidecars: bool = False,
    open_model: Callable[..., Opened] = open_checkpoint,
    **look: Unpack[LookOptions],
) -> None:
    """Predicts the photos of a folder (and the folders in it), of a pattern, or a single one.

    Writes `predictions.csv`, a row a photo; `predictions.jsonl`, with the regions; `annotated/`,
    the photos with what was found in them; and the page `index.html` with its files in `gallery/`.
    They grow in `out/.partial`, a photo at a time, and take the place of earlier predictions in
    `out` once all is done. How it looks: `LookOptions`. With `sidecars` the labels are then written
    beside the photos too, see `sidecars.py`.

    With `resume`, a run that was cut short goes on, and one that was completed takes what is new:
    photos that have a row are not predicted again unless their size or modification time changed.
    With the same photos the outputs are, byte for byte, those of a run that was not cut short (on
    the same machine): photos go through the model in the same batches, for which the batch that
    was cut through is looked at once more. Photos that were added or removed shift the batches,
    and scores may then differ in the last digit.

    Args:
        checkpoint: what `open_model` opens.
        images: see above; as `--images`.
        out: the folder.
        resume, sidecars: see above.
        open_model: (checkpoint, **look) -> the model; of a bundle it is in `export.predictor`.
        look: see above.

    Raises:
        UsageError: no images, a wrong option, `out` holds something else, or what is to be resumed
            was begun with another checkpoint or other options.
        Failure: some photos could not be read or drawn, which the outputs list beside all the
            others; or `out` cannot be written, and what was done stays for `resume`; or some
            sidecars cannot.
    """
    out = Path(out)
    try:
        finish_replacing(out, OUTPUTS)
        _check_output(out)
        root, files = find_images(images, out)
        opened = open_model(checkpoint, **look)
        if resume:
            _check_same_run(out, opened.run)
        predictor = opened.predictor(common_batch_size(len(files), opened.most))
        rows = write_predictions(
            predictor, root, files, out, printable(checkpoint), opened.run, resume
        )
    except OSError as error:
        kept = ""
        with contextlib.suppress(OSError):  # perhaps it cannot even be read
            if has_rows(out / PARTIAL):
                kept = "; what was done is kept, and --resume goes on with it"
        raise Failure(f"{printable(out)}: cannot be written ({reason(error)}){kept}") from error
    table, annotated, page = (printable(out / name) for name in (TABLE, ANNOTATED, PAGE))
    for line in summary(rows):
        print(line)
    print(f"table, photos and page: {table}, {annotated}, {page}")
    problems = []
    if failed := [row["file"] for row in rows if row["error"]]:
        problems.append(
            f"{len(failed)} of {len(files)} images could not be read or drawn: {first_of(failed)}; "
            f"{table} says why, and holds all others"
        )
    if sidecars:
        found = {row["file"]: row["labels"] for row in rows if row["scores"]}  # of those it read
        names = {file: printable(file.relative_to(root)) for file in files}
        labels = {file: found[name] for file, name in names.items() if name in found}
        changed, failed = write_sidecars(labels, predictor.class_names)
        print(f"sidecars: of {len(labels)} photos, {changed} written anew")
        if failed:
            problems.append(
                f"{len(failed)} sidecars could not be written, all others are: {first_of(failed)}"
            )
    if problems:
        raise Failure("; ".join(problems))


def first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_output(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {printable(out)} is a file; it must be a folder")
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if entries - {PARTIAL} and LINES not in entries:
        raise UsageError(
            f"--out {printable(out)} holds something else than predictions; choose another"
        )


# --- a run, and going on with one


def describe_run(
    look: EvalOptions, variables: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    """What must be the same for a run to go on: the checkpoint and the options."""
    said = json.dumps(metadata, sort_keys=True).encode()
    return {
        "weights": digest_of_arrays(variables),
        "metadata": hashlib.blake2b(said, digest_size=16).hexdigest(),
        "flip": look.flip,
        "scales": list(look.scales),
        "local_size": look.local_size,
        "local_bound": look.local_bound,
        **({"consistent": True} if look.consistent else {}),  # earlier versions had no such option
    }


def _check_same_run(out: Path, run: dict[str, Any]) -> None:
    before = begun(out / PARTIAL) or begun(out) or run
    words = {
        "weights": "another checkpoint",
        "metadata": "another configuration or operating point of the checkpoint",
    }
    differ = [
        words.get(name) or f"{name}={before.get(name)} (now {value})"
        for name, value in run.items()
        if before.get(name) != value
    ]
    if differ:
        raise UsageError(
            f"--resume: {printable(out)} was begun with {', '.join(differ)}; give the same, or "
            "start over without --resume"
        )


def write_predictions(
    predictor: Predictor,
    root: Path,
    files: Sequence[Path],
    out: Path,
    checkpoint: str,
    run: dict[str, Any],
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Predicts files of the folder `root` and writes all outputs; gives the lines of JSON."""
    sources = {printable(file.relative_to(root)): file for file in files}
    thresholds = dict(zip(predictor.class_names, predictor.thresholds.tolist(), strict=True))
    with (
        _unfinished(out, resume) as folder,
        Journal(folder, run, predictor.class_names) as journal,
    ):
        valid = {entry["row"]["file"] for entry in journal if _is_valid(entry, folder, sources)}
        journal.arrange(name for name in sources if name in valid)
        if resume:
            print(f"{len(journal)} of {len(sources)} photos were done before")
        _predict_missing(predictor, folder, journal, sources)
        journal.arrange(sources)
        pictures = [page_picture(entry, thresholds) for entry in journal]
        page = render_page(pictures, describe_predictor(predictor, checkpoint))
        write_bytes(folder / PAGE, page.encode("utf-8", "backslashreplace"))
        _sweep(folder, journal)
        return [entry["row"] for entry in journal]


def describe_predictor(predictor: Predictor, checkpoint: str) -> dict[str, str]:
    """What the page says of the model and of how it looked, a line each."""
    about = {"checkpoint": checkpoint, **predictor.about}
    about |= {"classes": str(len(predictor.class_names)), "labels from": predictor.rule}
    if predictor.temperature != 1:
        about["temperature"] = f"{predictor.temperature:.3f}"
    return about


@contextlib.contextmanager
def _unfinished(out: Path, resume: bool) -> Iterator[Path]:
    """Gives the folder to write outputs in, which at the end replace those in `out`.

    If the block raises, `out` holds what it held before, and the folder stays if it has any rows.
    """
    out.mkdir(parents=True, exist_ok=True)
    partial = out / PARTIAL
    with locked(out):
        try:
            _open_partial(out, resume)
            yield partial
        except BaseException:
            if not has_rows(partial):
                shutil.rmtree(partial, ignore_errors=True)
                if not any(out.iterdir()):
                    out.rmdir()
            raise
        replace_together(out, OUTPUTS)


def _open_partial(out: Path, resume: bool) -> None:
    """Leaves in `out/.partial` what is to be gone on with, if anything is."""
    partial = out / PARTIAL
    unfinished = resume and begun(partial) is not None
    if has_rows(partial) and not resume:
        print(f"{printable(partial)}: what an unfinished run did is dropped, for want of --resume")
    if partial.exists() and not unfinished:
        shutil.rmtree(partial)
    for name in (ANNOTATED, GALLERY):
        (partial / name).mkdir(parents=True, exist_ok=True)
    if resume and not unfinished and has_rows(out):
        for name in (ANNOTATED, GALLERY):
            shutil.copytree(out / name, partial / name, copy_function=_link, dirs_exist_ok=True)
        write_bytes(partial / JOURNAL, (out / JOURNAL).read_bytes())


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        shutil.copyfile(source, target)


def identity(file: Path) -> list[int] | None:
    """Size and modification time, by which a changed file is known; None if it cannot be opened."""
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns] if os.access(file, os.R_OK) else None


def _is_valid(entry: Entry, folder: Path, sources: Mapping[str, Path]) -> bool:
    """Whether a row is of a file that is as it was, and has all its pictures."""
    row = entry["row"]
    return (
        row["file"] in sources
        and entry["identity"] == identity(sources[row["file"]])
        and all((folder / path).is_file() for path in picture_files(row))
    )


def _predict_missing(
    predictor: Predictor, folder: Path, journal: Journal, sources: Mapping[str, Path]
) -> None:
    """Adds the rows of all photos that have none."""
    names, size = list(sources), predictor.batch_size
    batches = [names[start : start + size] for start in range(0, len(names), size)]
    # Whole batches, so that a photo's neighbours are the same as in a run that is not cut short.
    missing = [
        name for batch in batches if any(name not in journal for name in batch) for name in batch
    ]
    identities: dict[str, list[int] | None] = {}

    def opened() -> Iterator[Path]:
        for name in missing:
            identities[name] = identity(sources[name])
            yield sources[name]

    def predicted() -> Iterator[Prediction]:
        for name, prediction in zip(missing, predictor.stream(opened()), strict=True):
            if name not in journal:
                yield dataclasses.replace(prediction, file=name)

    def drawn(prediction: Prediction) -> Entry:
        name = prediction.file
        return draw_pictures(predictor, folder, prediction, sources[name]) | {
            "identity": identities[name]
        }

    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(names), initial=len(journal), desc="predict", unit="image") as bar,
    ):
        new = len(names) - len(journal)
        for done, entry in enumerate(in_order(pool, drawn, predicted(), 2 * THREADS)):
            journal.add(entry)
            if done < PRINTED:
                bar.write(str(from_json(entry["row"])))  # above the bar, on stdout
            bar.update()
    if new > PRINTED:
        print(f"... and {new - PRINTED} more")


def _sweep(folder: Path, journal: Journal) -> None:
    """Removes pictures of photos that are gone or changed, and what a kill left half-written."""
    wanted = {path for entry in journal for path in picture_files(entry["row"])}
    for kind in (ANNOTATED, GALLERY):
        for parent, folders, names in os.walk(folder / kind, topdown=False):
            for path in (Path(parent, name) for name in names):
                if path.relative_to(folder).as_posix() not in wanted:
                    path.unlink()
            for path in (Path(parent, name) for name in folders):
                if not any(path.iterdir()):
                    path.rmdir()


# --- pictures


def draw_pictures(predictor: Predictor, folder: Path, prediction: Prediction, file: Path) -> Entry:
    """Writes the pictures of a photo, if it can be drawn; gives its row and its peaks.

    Raises:
        OSError: they cannot be written.
    """
    pictures: list[bytes] = []
    if not prediction.error:
        try:
            pictures = encode_pictures(predictor.read(file), prediction)
        except Exception as error:  # Pillow raises nearly anything, which concerns this photo alone
            failure = f"cannot be drawn: {reason(error)}"
            prediction = dataclasses.replace(prediction, error=failure)
    row = as_json(prediction)
    for path, content in zip(picture_files(row), pictures, strict=True):
        write_bytes(folder / path, content)
    peaks = [round(float(region.class_map.max()), 6) for region in prediction.regions]
    return {"row": row, "peaks": peaks}
