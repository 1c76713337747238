"""The folder that a model leaves in: what is in it, and whether it is as it was written.

model.json       class names, input, preprocessing, outputs, operating point, origin
model.onnx       and model.stablehlo: the model, see `labelling.py`
run.py           labels photos, without this package
references/      photos, and in references.json what the model says of them
README.md        the model card
hashes.json      SHA-256 of every other file
"""

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.errors import Failure, UsageError
from mlic_jax.export import run_bundle
from mlic_jax.files import json_text
from mlic_jax.files.atomic import write_text

DESCRIPTION, HASHES, REFERENCES = "model.json", "hashes.json", "references/references.json"
FORMATS = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}
RUNTIMES = {"stablehlo": "stablehlo", "onnxruntime": "onnx", "openvino": "onnx"}
VERSION = 1

# A function from uint8 pixels [B, S, S, 3] to arrays by name.
Runtime = Callable[[np.ndarray], dict[str, np.ndarray]]


def write_hashes(folder: Path) -> None:
    """Notes what every file is, at the end."""
    hashes = {name: _sha256(folder / name) for name in _files(folder)}
    write_text(folder / HASHES, json.dumps(hashes, indent=1))


def read(folder: Path) -> dict[str, Any]:
    """The description of a bundle, all of whose files are as they were written.

    Raises:
        UsageError: there is no bundle there.
        Failure: a file is missing, changed or foreign, or it is of a later version.
    """
    folder = Path(folder)
    if not (folder / HASHES).is_file():
        raise UsageError(f"{folder} is no bundle: it has no {HASHES}; --mode export writes one")
    hashes, there = json_text.read(folder / HASHES), _files(folder)
    problems = [f"{name} is missing" for name in hashes if name not in there]
    problems += [f"{name} is none of its files" for name in there if name not in hashes]
    problems += [
        f"{name} was changed"
        for name in there
        if hashes.get(name, "") not in ("", _sha256(folder / name))
    ]
    if problems:
        raise Failure(f"{folder} is not as it was written: {'; '.join(problems)}")
    description = json_text.read(folder / DESCRIPTION)
    if description.get("version") != VERSION:
        raise Failure(
            f"{folder} is a bundle of version {description.get('version')}, and this package reads "
            f"version {VERSION}: export the model again"
        )
    return description


def _files(folder: Path) -> list[str]:
    """All but the hashes; what Python compiles beside `run.py` does not count."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return [name for name in names if name != HASHES and "__pycache__" not in name]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_runtime(folder: Path, description: dict[str, Any], runtime: str) -> Runtime:
    """What runs the model of a bundle.

    Args:
        runtime: one of `RUNTIMES` but `jax`.

    Raises:
        UsageError: the bundle has not its format, or the runtime is not installed.
    """
    format_ = RUNTIMES[runtime]
    assert format_ is not None
    if format_ not in description["formats"]:
        has = ", ".join(description["formats"])
        raise UsageError(f"{folder} has no {format_}, which {runtime} needs; it has {has}")
    path = folder / description["formats"][format_]
    name = description["input"]["name"]
    try:
        return _OPENERS[runtime](path, name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{runtime} needs the module {error.name}: pip install {runtime}"
        ) from error


def _open_stablehlo(path: Path, name: str) -> Runtime:
    import jax

    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda pixels: jax.device_get(call(pixels))


def _open_onnxruntime(path: Path, name: str) -> Runtime:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(None, {name: pixels}), strict=True))


def _open_openvino(path: Path, name: str) -> Runtime:
    with warnings.catch_warnings():  # it forks where it is imported, to tell its makers
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        import openvino

    # It may take less than float32 where it finds that faster.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(path.read_bytes())
    compiled = core.compile_model(model, "CPU", options)

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = compiled({name: pixels})
        return {of: found[output] for output in compiled.outputs for of in output.get_names()}

    return run


_OPENERS: dict[str, Callable[[Path, str], Runtime]] = {
    "stablehlo": _open_stablehlo,
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}


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
    """The files of the reference photos, and what the model sees of them, uint8 `[N, S, S, 3]`."""
    from PIL import Image

    how, names = description["preprocessing"], description["references"]
    seen = []
    for name in names:
        with Image.open(folder / name) as image:
            photo = run_bundle.to_rgb(image, how["range"])
            seen.append(run_bundle.square(photo, how))
    return names, np.stack(seen)


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
