"""The folder that a model leaves in: what is in it, and whether it is as it was written.

model.json       class names, input, preprocessing, outputs, operating point, origin
model.onnx       and model.stablehlo: the model, see `labelling.py`
run.py           labels photos with model.onnx, without this package
references/      photos, and in references.json what the model says of them
README.md        the model card
hashes.json      SHA-256 of every other file
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlic_jax.data.transforms import INTERPOLATIONS, opened
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.export import run_bundle
from mlic_jax.files import json_text
from mlic_jax.files.atomic import write_text

DESCRIPTION, HASHES, REFERENCES = "model.json", "hashes.json", "references/references.json"
FORMATS = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}
RUNTIMES = {"stablehlo": "stablehlo", "onnxruntime": "onnx", "openvino": "onnx"}
VERSION = 2
# It may take less than float32 where it finds that faster.
OPENVINO_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32"}

# A function from uint8 pixels [B, S, S, 3] to arrays by name.
Runtime = Callable[[np.ndarray], dict[str, np.ndarray]]


def write_hashes(folder: Path) -> None:
    """Notes what every file is, at the end."""
    hashes = {name: _sha256(path) for name, path in _files(folder).items()}
    write_text(folder / HASHES, json.dumps(hashes, indent=1))


def read(folder: Path) -> dict[str, Any]:
    """The description of a bundle, all of whose files are as they were written.

    Raises:
        UsageError: there is no bundle there.
        Failure: a file is missing, changed, foreign or none (a link, a pipe); it is of a later
            version; or its description says nothing that this package understands.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UsageError(f"{folder} is a file: unpack it, and give the folder")
    if not (folder / HASHES).is_file():
        raise UsageError(f"{folder} is no bundle: it has no {HASHES}; --mode export writes one")
    hashes, there = json_text.read(folder / HASHES), _files(folder)
    if not isinstance(hashes, dict):
        raise Failure(f"{folder / HASHES} is no table of files")
    problems = [f"{name} is missing" for name in hashes if name not in there]
    for name, path in there.items():
        if name not in hashes:
            problems.append(f"{name} is none of its files")
        elif path.is_symlink() or not path.is_file():
            problems.append(f"{name} is a link or no file")
        elif hashes[name] != _sha256(path):
            problems.append(f"{name} was changed")
    if problems:
        raise Failure(f"{folder} is not as it was written: {'; '.join(problems)}")
    description = json_text.read(folder / DESCRIPTION)
    version = description.get("version") if isinstance(description, dict) else None
    if version != VERSION:
        raise Failure(
            f"{folder} is a bundle of version {version}, and this package reads version {VERSION}: "
            "export the model again"
        )
    if not _is_understood(description, hashes):
        raise Failure(f"{folder / DESCRIPTION} is not as --mode export writes it")
    return description


def _is_understood(description: dict[str, Any], files: Collection[str]) -> bool:
    """Whether all that is used of a description is there, and names nothing but these files."""
    match description:
        case {
            "class_names": [_, *_] as names,
            "model": {"name": str(), "backbone": str()},
            "input": {"name": str(), "shape": ["batch" | int() as rows, int(), int(), 3]},
            "preprocessing": {
                "size": int(size),
                "grid": int(grid),
                "interpolation": str(interpolation),
                "center_crop": int() | float() as share,
                "range": None | [int() | float(), int() | float()],
            },
            "operating_point": {
                "temperature": int() | float(),
                "thresholds": dict(thresholds),
                "rule": str(),
            },
            "formats": dict(formats),
            "references": [_, *_] as references,
            "tolerance": {
                "scores": int() | float(),
                "labels": int() | float(),
                "boxes": int() | float(),
            },
        }:
            named = [*formats.values(), *references]
            return (
                all(isinstance(text, str) for text in (*names, *named))
                and set(thresholds) == set(names)
                and all(isinstance(of, int | float) for of in thresholds.values())
                and set(formats) <= set(FORMATS)
                and set(named) <= set(files)
                and interpolation in INTERPOLATIONS
                and (rows == "batch" or rows > 0)
                and min(size, grid) > 0
                and 0 <= share <= 1
            )
    return False


def _files(folder: Path) -> dict[str, Path]:
    """All but the hashes, by name; what Python compiles of `run.py` does not count."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: path
        for name, path in named.items()
        if name != HASHES and not name.startswith("__pycache__/")
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_runtime(folder: Path, description: dict[str, Any], runtime: str) -> Runtime:
    """What runs the model of a bundle.

    Args:
        runtime: one of `RUNTIMES`.

    Raises:
        UsageError: the bundle has not its format, or the runtime is not installed.
        Failure: the runtime does not read the model; or, later, does not run it.
    """
    path = model_file(folder, description, RUNTIMES[runtime], runtime)
    try:
        model = _OPENERS[runtime](path, description["input"]["name"])
    except ImportError as error:
        raise UsageError(f"{runtime} is not installed ({error}): pip install {runtime}") from error
    except Exception as error:  # of every runtime others
        raise Failure(f"{runtime} does not read {path}: {reason(error)}") from error

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        try:
            return model(pixels)
        except Exception as error:
            raise Failure(f"{runtime} does not run {path}: {reason(error)}") from error

    return run


def model_file(folder: Path, description: dict[str, Any], format_: str, user: str) -> Path:
    """The model in a format that `user` needs; raises UsageError if the bundle has none."""
    if format_ not in description["formats"]:
        has = ", ".join(description["formats"])
        raise UsageError(f"{folder} has no {format_}, which {user} needs; it has {has}")
    return folder / description["formats"][format_]


def _open_stablehlo(path: Path, name: str) -> Runtime:
    import jax

    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda pixels: jax.device_get(call(pixels))


def open_onnxruntime(path: Path, name: str) -> Runtime:
    """A model in onnxruntime, whose input has that name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(None, {name: pixels}), strict=True))


def import_openvino() -> Any:
    """The module, without what tells its makers of every import from a process forked for that."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _open_openvino(path: Path, name: str) -> Runtime:
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(path.read_bytes())
    compiled = core.compile_model(model, "CPU", OPENVINO_OPTIONS)

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = compiled({name: pixels})
        return {of: found[output] for output in compiled.outputs for of in output.get_names()}

    return run


_OPENERS: dict[str, Callable[[Path, str], Runtime]] = {
    "stablehlo": _open_stablehlo,
    "onnxruntime": open_onnxruntime,
    "openvino": _open_openvino,
}


def batch_of(description: dict[str, Any]) -> int | None:
    """The photos of a batch; None: any number."""
    rows = description["input"]["shape"][0]
    return rows if isinstance(rows, int) else None


def run_in_batches(
    runtime: Runtime, pixels: np.ndarray, batch: int | None
) -> dict[str, np.ndarray]:
    """The outputs of all photos; a batch of fixed size is filled up.

    Args:
        pixels: uint8 `[N, S, S, 3]`.
        batch: that the model takes; None: any.
    """
    size = batch or len(pixels)
    parts = []
    for start in range(0, len(pixels), size):
        rows = pixels[start : start + size]
        filled = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), np.uint8)])
        parts.append({name: of[: len(rows)] for name, of in runtime(filled).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def reference_pixels(folder: Path, description: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """The files of the reference photos, and what the model sees of them, uint8 `[N, S, S, 3]`.

    Raises:
        Failure: one cannot be read.
    """
    how, names = description["preprocessing"], description["references"]
    paths = [folder / name for name in names]
    photos = (decode(path.read_bytes(), str(path), how["range"]) for path in paths)
    return names, np.stack([run_bundle.square(photo, how) for photo in photos])


def decode(encoded: bytes, where: str, value_range: Sequence[float] | None) -> Image.Image:
    """A photo as `run.py` decodes it; raises Failure, which says where, if that cannot be."""
    try:
        return opened(encoded, lambda image: run_bundle.to_rgb(image, value_range))
    except Failure as error:
        raise Failure(f"{where}: {error}") from None


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be used here."""
    return runtime == "stablehlo" or importlib.util.find_spec(runtime) is not None


def require(module: str) -> None:
    """Raises UsageError where a module of the extra `export` is missing."""
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"ONNX needs the module {module}: pip install 'mlic_jax[export]'")


def run_file() -> Path:
    """The program that labels photos, which a bundle has as `run.py`."""
    return Path(run_bundle.__file__)
