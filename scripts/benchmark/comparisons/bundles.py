"""A bundle in other runtimes: ours under XLA, onnxruntime, OpenVINO, and PyTorch tuned.

Ours is the compiled step of `--mode predict`. It and a bundle take uint8 pixels; PyTorch's are
normalised beforehand. The bundle of 8 bits is for onnxruntime alone. The last tasks begin anew
every time: from a command to the labels of a photo, as a person sees it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import models
import numpy as np
import photos
from comparison import Case, Comparison, Sizes, Task
from ml_collections import ConfigDict
from models import Subject

Run = Callable[[], dict[str, Any]]

# What is compared, for which see `models.SCORES`.
PROBABILITIES = {"mcar": "global_probabilities", "pooled": "probabilities"}
OF_8_BITS = 0.1  # how far its probabilities may be apart; random weights forgive less than others


def ours(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    import jax

    from mlic_jax.runtime import devices
    from mlic_jax.scores.options import ScoreOptions
    from mlic_jax.scores.scoring import create_eval_model, make_eval_step

    config = recipe(subject, sizes)
    options, mesh = ScoreOptions.of(config), devices.create_mesh()
    model = create_eval_model(options, sizes["labels"], {})
    step = make_eval_step(model, options, mesh, class_maps=True)
    pixels = np.asarray(given["batch"]["images"])

    def run() -> dict[str, Any]:
        said = step(given["variables"], devices.to_devices({"image": pixels}, mesh))
        return {"probabilities": jax.nn.sigmoid(said[models.SCORES[config.model.name]])}

    return run


def exported(
    subject: Subject, runtime: str, of_8_bits: bool, given: dict[str, Any], sizes: Sizes
) -> Run:
    """The model of a bundle, in a runtime."""
    from mlic_jax.export import bundle, int8, write
    from mlic_jax.export.labelling import Source, example

    checkpoint = written(recipe(subject, sizes), given["variables"], sizes)
    source, path = Source(str(checkpoint), "float32", None), checkpoint.with_name("model.onnx")
    write.write_onnx(source, example(source, None), path)
    if of_8_bits:
        some = photos.inputs({"images": 8})
        split = photos.prepared(photos.split_bytes(some), some["labels"])
        in_float = path.rename(checkpoint.with_name("float.onnx"))
        int8.quantise(in_float, path, split, source.options.data.fit, source.size, None)
    description = {"formats": {"onnx": path.name}, "input": {"name": "pixels"}}
    model = bundle.open_runtime(path.parent, description, runtime)
    name = PROBABILITIES[source.config.model.name]
    pixels = np.asarray(given["batch"]["images"])
    return lambda: {"probabilities": model(pixels)[name]}


def theirs(subject: Subject, compiled: bool, given: dict[str, Any], sizes: Sizes) -> Run:
    run = models.torch_inference(subject, True, compiled, given, sizes)
    name = models.SCORES[subject.recipe(sizes).model.name]
    return lambda: {"probabilities": run()[name].sigmoid()}


# --- from the command to the labels of a photo


def predicted(subject: Subject, keeps: bool, given: dict[str, Any], sizes: Sizes) -> Run:
    """`--mode predict`, with the programs of an earlier run or with none."""
    checkpoint, folder = proven(subject, given, sizes)
    kept = tempfile.TemporaryDirectory(dir=folder.parent)

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder.parent) as empty:
            cache, out = kept.name if keeps else empty, Path(empty, "out")
            command = ["-m", "mlic_jax.main", "--mode=predict", f"--checkpoint={checkpoint}"]
            started([*command, f"--images={photo_of(folder)}", f"--out={out}"], cache)
            return scores_of(json.loads((out / "predictions.jsonl").read_text()))

    return run


def labelled(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    """`run.py` of a bundle."""
    _, folder = proven(subject, given, sizes)
    command = [str(folder / "run.py"), str(photo_of(folder))]
    return lambda: scores_of(json.loads(started(command, os.environ.get("XDG_CACHE_HOME", ""))))


def started(command: list[str], cache: str) -> str:
    """What a process of Python's prints that keeps its programs there."""
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    done = subprocess.run(
        [sys.executable, *command], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def photo_of(folder: Path) -> Path:
    return next(path for path in (folder / "references").iterdir() if path.suffix != ".json")


def scores_of(row: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"probabilities": np.array([*row["scores"].values()])}


# --- what is measured


def recipe(subject: Subject, sizes: Sizes) -> ConfigDict:
    config = subject.recipe(sizes)
    config.data.image_size = sizes["image_size"]
    return config


@lru_cache
def _folder() -> tempfile.TemporaryDirectory:
    """Of this process, and deleted as it ends."""
    return tempfile.TemporaryDirectory()


def written(config: ConfigDict, variables: dict[str, Any], sizes: Sizes) -> Path:
    """A checkpoint with these weights."""
    import jax

    from mlic_jax.runtime.checkpoint import save_weights

    metadata = {
        "config": json.loads(config.to_json()),
        "class_names": [f"label {c}" for c in range(sizes["labels"])],
    }
    path = Path(_folder().name, "checkpoint")
    save_weights(path, jax.tree.map(np.asarray, variables), metadata)
    return path


def proven(subject: Subject, given: dict[str, Any], sizes: Sizes) -> tuple[Path, Path]:
    """A checkpoint, and the bundle of it, with a photo."""
    from mlic_jax.export import write

    checkpoint = written(recipe(subject, sizes), given["variables"], sizes)
    images, out = (checkpoint.with_name(name) for name in ("images", "bundle"))
    images.mkdir()
    (images / "photo.jpg").write_bytes(photos.split_bytes(photos.inputs({"images": 1}))[0])
    write.export(str(checkpoint), out, ("onnx",), images=str(images))
    return checkpoint, out


def task(title: str, subject: Subject, **sizes: int) -> Task:
    cases = [
        Case("ours", "jax", partial(ours, subject)),
        Case("onnxruntime", "onnxruntime", partial(exported, subject, "onnxruntime", False)),
        Case(
            "onnxruntime, int8",
            "onnxruntime",
            partial(exported, subject, "onnxruntime", True),
            tolerance=OF_8_BITS,
        ),
        Case("OpenVINO", "openvino", partial(exported, subject, "openvino", False)),
        Case("PyTorch, tuned", "torch", partial(theirs, subject, False)),
    ]
    if title.startswith("pooled"):  # MCAR's regions are found outside of what it compiles
        compiled = partial(theirs, subject, True)
        cases.append(Case("PyTorch, compiled", "torch", compiled))
    name = f"{title}, {{image_size}} px, {{images}} photo{'s' if sizes['images'] > 1 else ''}"
    return Task(name, subject.inputs, tuple(cases), sizes, tolerance=1e-3, measures_memory=False)


def first_label(title: str, subject: Subject, **sizes: int) -> Task:
    cases = (
        Case("ours", "host", partial(predicted, subject, True)),
        Case("ours, no programs kept", "host", partial(predicted, subject, False)),
        Case("onnxruntime", "host", partial(labelled, subject)),
    )
    name = f"first label: {title}, {{image_size}} px"
    return Task(name, subject.inputs, cases, sizes, tolerance=1e-3, measures_memory=False)


MOBILENET = {"backbone": "mobilenet_v2", "image_size": 256}
RESNET = {"backbone": "resnet{depth}", "image_size": 448, "depth": 50}
SUBJECTS = [
    (f"{name} on {backbone}", make(options["backbone"]), options)
    for name, make in (("MCAR", models.mcar), ("pooled", models.pooled))
    for backbone, options in (("MobileNetV2", MOBILENET), ("ResNet-{depth}", RESNET))
]


def sizes_of(options: dict[str, Any], **more: int) -> dict[str, int]:
    return {name: of for name, of in options.items() if name != "backbone"} | more


COMPARISON = Comparison(
    title="Bundles",
    sizes={"labels": 20, "regions": 4},
    small={"labels": 5, "regions": 2, "image_size": 64, "depth": 18},
    tasks=(
        *(
            task(title, subject, **sizes_of(options, images=images))
            for title, subject, options in SUBJECTS
            for images in (1, 8)
        ),
        *(
            first_label(title, subject, **sizes_of(options, images=1))
            for title, subject, options in SUBJECTS[:2]
        ),
    ),
)
