"""Writes a bundle: a model in forms that run without this package, proven before it is there."""

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import PIL
from PIL import Image

from mlic_jax import __version__
from mlic_jax.data import sources
from mlic_jax.data.image_files import printable, read_image_file
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.errors import Failure, UsageError
from mlic_jax.export import bundle, int8, labelling, verify, web_page
from mlic_jax.export.labelling import OUTPUTS, Source
from mlic_jax.files import json_text
from mlic_jax.files.atomic import locked, write_bytes, write_text
from mlic_jax.names import require_one_of
from mlic_jax.predict.finding import find_images
from mlic_jax.reports.page import page_template
from mlic_jax.runtime.checkpoint_paths import run_of

PLATFORMS = ("cpu", "cuda", "tpu")
PRECISIONS = ("float32", "bfloat16", "int8")
LARGEST = 2**31 - 2**20  # bytes of parameters: both formats are of buffers that end at 2 GB
WEB = "web"  # a page around the ONNX model
MOST_LOSS = 1.0  # of mAP, that int8 may cost unless it is allowed
REFERENCES = 8
# How far a runtime may be from ours: in probabilities, and in photos with other labels or boxes.
TOLERANCE = {"scores": 1e-3, "labels": 0, "boxes": 0}
COARSE = {"scores": 0.05, "labels": REFERENCES, "boxes": REFERENCES}  # of fewer bits


def export(
    checkpoint: str,
    out: Path,
    formats: Sequence[str] = ("stablehlo", "onnx"),
    size: int | None = None,
    batch: int | None = None,
    precision: str = "float32",
    images: str | None = None,
    licence: str = "",
    allow: bool = False,
    **look: Any,
) -> Path:
    """Writes the folder `out` and `out`.zip.

    Args:
        checkpoint: a run (its best checkpoint), one of its checkpoints or a converted whole model.
        formats: of `bundle.FORMATS`; and `WEB`, a page for a browser.
        size: pixels of a side, in the place of the checkpoint's.
        batch: photos that the model takes at a time; None: any number.
        precision: one of `PRECISIONS`, of products; of int8 those of the backbone alone are, see
            `int8.py`.
        images: reference photos, as `--images`; None: of the checkpoint's validation split.
        licence: of the weights, a line for the model card.
        allow: int8 to cost more than `MOST_LOSS` points of mAP.
        look: as of `Predictor.from_checkpoint`.

    Raises:
        UsageError: an option is unknown or out of its range, something is in the way of `out`,
            another process writes there, or there are no reference photos.
        Failure: the checkpoint or a photo cannot be read; the model is too large; int8 costs too
            much; or a runtime does not agree with ours. Then nothing is left.
    """
    out, formats = Path(out), tuple(dict.fromkeys(formats))
    _check(out, formats, precision)
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    source = Source(checkpoint, dtype, size, **look)
    _check_size(source)
    photos = list(_reference_photos(source, images, out))
    with _beside(out) as folder:
        partial = folder / out.name
        partial.mkdir()
        description = _description(source, formats, batch, precision, photos, licence)
        for name, content in zip(description["references"], photos, strict=True):
            write_bytes(partial / name, content)
        write_text(partial / bundle.DESCRIPTION, json.dumps(description, indent=1))
        for name in (name for name in formats if name != WEB):
            print(f"writing {name} ...")
            _WRITERS[name](source, labelling.example(source, batch), partial / bundle.FORMATS[name])
        if precision == "int8":
            verify.write_references(
                partial, description, _make_int8(source, description, partial, batch, allow)
            )
        else:
            verify.write_references(partial, description, source.run)
        if "onnx" in formats:
            write_bytes(partial / "run.py", bundle.run_file().read_bytes())
        if WEB in formats:
            web_page.write_page(partial)
        write_text(partial / "README.md", _card(source, description, checkpoint))
        for runtime, needed in bundle.RUNTIMES.items():
            is_meant = needed in formats and runtime in description["runtimes"]
            if is_meant and bundle.is_installed(runtime):
                agreement = verify.verify(partial, description, runtime)
                if problem := agreement.problem(description["tolerance"]):
                    raise Failure(f"{problem}: nothing was written")
                print(agreement)
        bundle.write_hashes(partial)
        packed = Path(shutil.make_archive(str(partial), "zip", folder, out.name))
        archive = out.with_name(packed.name)
        _check_is_free(out)  # while this took its time
        partial.rename(out)
        packed.rename(archive)
    print(f"bundle: {out}, {archive}; python -m mlic_jax.bundle verify {out} proves it anywhere")
    return out


def _check(out: Path, formats: Sequence[str], precision: str) -> None:
    if not formats:
        raise UsageError(f"--formats names none; known are {', '.join(bundle.FORMATS)}, {WEB}")
    for name in formats:
        require_one_of("--formats", name, (*bundle.FORMATS, WEB))
    if WEB in formats:
        if "onnx" not in formats:
            raise UsageError("--formats web is a page around onnx: give onnx,web")
        web_page.require_npm()
    require_one_of("--precision", precision, PRECISIONS)
    if precision == "int8" and set(formats) - {WEB} != {"onnx"}:
        raise UsageError("--precision int8 is for onnx alone: give --formats onnx")
    if precision == "bfloat16" and "onnx" in formats:
        raise UsageError(
            "--precision bfloat16 is for stablehlo: the runtimes of ONNX compute in float32 on a "
            "CPU; give --formats stablehlo"
        )
    for module in ("onnx", *(("onnxruntime",) if precision == "int8" else ())):
        if "onnx" in formats:
            bundle.require(module)
    _check_is_free(out)


def _check_is_free(out: Path) -> None:
    if out.name in ("", ".."):
        raise UsageError(f"--out is {str(out)!r}; it must name a folder that is not there")
    for path in (out, out.with_name(f"{out.name}.zip")):
        if os.path.lexists(path):
            raise UsageError(f"{path} is in the way: give another --out, or remove it")


def _check_size(source: Source) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(source.variables))
    if size > LARGEST:
        raise Failure(
            f"the model has {size / 2**30:.2f} GB of parameters, and a file of StableHLO or "
            "ONNX holds 2 GB: train a smaller one"
        )


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what is not whole yet, without what a killed process left in it.

    Raises:
        UsageError: another process is there.
    """
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        try:
            shutil.rmtree(folder / out.name, ignore_errors=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _reference_photos(source: Source, images: str | None, out: Path) -> Iterator[bytes]:
    """The encoded bytes of the photos that the bundle is proven with; all can be decoded.

    Raises:
        Failure: one cannot.
    """
    for where, encoded in _named_photos(source, images, out):
        bundle.decode(encoded, where, source.value_range)
        yield encoded


def _named_photos(source: Source, images: str | None, out: Path) -> Iterator[tuple[str, bytes]]:
    if images is not None:
        for path in find_images(images, out)[1][:REFERENCES]:
            yield printable(path), read_image_file(path)
        return
    split = _splits_of(source)["val"]
    step = max(1, len(split) // REFERENCES)
    for index in list(range(0, len(split), step))[:REFERENCES]:
        yield split.where(index), split[index].image


def _make_int8(
    source: Source, description: dict[str, Any], folder: Path, batch: int | None, allow: bool
) -> bundle.Runtime:
    """Puts a model of 8 bits in the place of the one in `folder`; returns what runs it.

    Raises:
        UsageError: the checkpoint names no data.
        Failure: it costs too much.
    """
    splits, fit, size = _splits_of(source), source.options.data.fit, source.size
    path, in_float = folder / bundle.FORMATS["onnx"], folder / "float.onnx"
    path.rename(in_float)
    int8.quantise(in_float, path, splits["train"], fit, size, batch)
    worth = []
    for model in (in_float, path):
        run = bundle.open_onnxruntime(model, description["input"]["name"])
        worth.append(int8.mean_ap(run, splits["val"], fit, size, batch))
    before, after = worth
    in_float.unlink()
    description["int8"] = {"split": splits["val"].split, "mAP_float32": before, "mAP_int8": after}
    write_text(folder / bundle.DESCRIPTION, json.dumps(description, indent=1))
    print(f"int8: mAP {after:.2f} on {splits['val'].split}, in float32 {before:.2f}")
    if before - after > MOST_LOSS and not allow:
        raise Failure(
            f"int8 costs {before - after:.2f} points of mAP on {splits['val'].split}, more than "
            f"{MOST_LOSS:g}: give --allow to have it all the same; nothing was written"
        )
    return run


def _splits_of(source: Source) -> dict[str, Split]:
    """By role.

    Raises:
        UsageError: the checkpoint names no data.
    """
    if not source.config.data.source:
        raise UsageError(
            "the checkpoint names no data: of a converted model give reference photos with "
            "--images; and int8 needs photos that it was trained with"
        )
    return sources.open_splits(DataOptions.of(source.config.data))


def _description(
    source: Source,
    formats: Sequence[str],
    batch: int | None,
    precision: str,
    photos: Sequence[bytes],
    licence: str,
) -> dict[str, Any]:
    fit, metadata = source.options.data.fit, source.metadata
    shapes = jax.eval_shape(source.labelling, labelling.example(source, batch))
    model = source.options.model
    return {
        "version": bundle.VERSION,
        "written_by": f"mlic_jax {__version__}",
        "model": {"name": model.name, "backbone": model.backbone, "width": model.width},
        "class_names": list(source.class_names),
        "input": {
            "name": "pixels",
            "shape": [batch or "batch", source.size, source.size, 3],
            "dtype": "uint8",
            "colours": "red, green, blue",
        },
        "preprocessing": {
            "upright": True,
            "range": source.value_range,
            "size": source.size,
            "grid": source.options.data.image_size,
            "interpolation": fit.interpolation,
            "center_crop": fit.center_crop,
            "pillow": PIL.__version__,
        },
        "outputs": {name: OUTPUTS[name] for name in shapes},
        "operating_point": {
            "temperature": source.temperature,
            "thresholds": dict(zip(source.class_names, map(float, source.thresholds), strict=True)),
            "rule": source.rule,
        },
        "precision": precision,
        # OpenVINO 2026.4 has other scores of a model that onnxruntime quantised.
        "runtimes": ["onnxruntime"] if precision == "int8" else list(bundle.RUNTIMES),
        "formats": {name: bundle.FORMATS[name] for name in formats if name != WEB},
        "licence": licence or "not said",
        "data": source.config.data.name,
        "steps": metadata.get("step"),
        "references": [f"references/{k}{_suffix(photo)}" for k, photo in enumerate(photos)],
        "tolerance": TOLERANCE if precision == "float32" else COARSE,
    }


def _suffix(photo: bytes) -> str:
    with Image.open(io.BytesIO(photo)) as image:
        return f".{(image.format or 'photo').lower()}"


def _write_stablehlo(source: Source, example: jax.ShapeDtypeStruct, path: Path) -> None:
    """For all platforms from this one: what depends on the platform is chosen where it is run."""
    exported = jax.export.export(jax.jit(source.labelling), platforms=PLATFORMS)(example)
    write_bytes(path, bytes(exported.serialize()))


def write_onnx(source: Source, example: jax.ShapeDtypeStruct, path: Path) -> None:
    """The model alone."""
    from mlic_jax.export.onnx_graph import to_onnx

    model = to_onnx(source.labelling, example, description=f"{source.config.model.name}, mlic_jax")
    write_bytes(path, model.SerializeToString())


_WRITERS = {"stablehlo": _write_stablehlo, "onnx": write_onnx}


def _card(source: Source, description: dict[str, Any], checkpoint: str) -> str:
    """The model card, in Markdown."""
    run = run_of(Path(checkpoint)) or Path(checkpoint)
    metrics = {}
    for path in sorted(run.glob("metrics_*.json")):
        values = json_text.read(path)
        point, at = values.get("operating_point", {}), "at these thresholds"
        if point.get("thresholds") != source.thresholds.tolist():  # calibrated since, or never
            point, at = {"figures": values}, f"at a probability of {values['threshold']:g}"
        metrics[path.stem.removeprefix("metrics_")] = {
            "mAP": values["mAP"],
            "at": at,
            **{name: point["figures"][name] for name in ("OF1", "CF1") if name in point["figures"]},
        }
    template = page_template(Path(__file__).with_name("card.md.jinja"), {"plain": _plain})
    return template.render(description=description, metrics=metrics)


def _plain(text: str) -> str:
    """A text of others as Markdown that shows it, on one line."""
    return re.sub(r"([\\`*_\[\]<>&|#~])", r"\\\1", " ".join(text.split()))
