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
PHOTO = "photo.jpg"
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
    from mlic_jax.data.fitting import Fit
    from mlic_jax.export import bundle, int8

    folder = bundled(subject, given, sizes)
    if of_8_bits:
        some = photos.inputs({"images": 8})
        split = photos.prepared(photos.split_bytes(some), some["labels"])
        path = folder / "model.onnx"
        in_float = path.rename(folder / "float.onnx")
        int8.quantise(in_float, path, split, Fit(), sizes["image_size"], None)
    description = json.loads((folder / "model.json").read_text())
    model = bundle.open_runtime(folder, description, runtime)
    name = PROBABILITIES[subject.recipe(sizes).model.name]
    pixels = np.asarray(given["batch"]["images"])
    return lambda: {"probabilities": model(pixels)[name]}


def theirs(subject: Subject, compiled: bool, given: dict[str, Any], sizes: Sizes) -> Run:
    run = models.torch_inference(subject, True, compiled, given, sizes)
    name = models.SCORES[subject.recipe(sizes).model.name]
    return lambda: {"probabilities": run()[name].sigmoid()}


# --- from the command to the labels of a photo


def predicted(subject: Subject, keeps: bool, given: dict[str, Any], sizes: Sizes) -> Run:
    """`--mode predict`, with the programs of an earlier run or with none."""
    folder = bundled(subject, given, sizes)

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            cache, out = folder / "cache" if keeps else empty, Path(empty, "out")
            where = [f"--images={folder / PHOTO}", f"--out={out}"]
            started(
                ["-m", "mlic_jax.main", "--mode=predict", f"--checkpoint={folder / 'run'}", *where],
                cache,
            )
            return scores_of((out / "predictions.jsonl").read_text())

    return run


def labelled(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Run:
    """`run.py` of a bundle."""
    folder = bundled(subject, given, sizes)
    return lambda: scores_of(started([folder / "run.py", folder / PHOTO], folder))


def started(command: list[str | Path], cache: str | Path) -> str:
    """What a process of Python's prints that keeps its programs in `cache`."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def scores_of(row: str) -> dict[str, np.ndarray]:
    return {"probabilities": np.array([*json.loads(row)["scores"].values()])}


# --- what is measured


def recipe(subject: Subject, sizes: Sizes) -> ConfigDict:
    config = subject.recipe(sizes)
    config.data.image_size = sizes["image_size"]
    return config


@lru_cache
def _folder() -> tempfile.TemporaryDirectory:
    """Of this process, and deleted as it ends."""
    return tempfile.TemporaryDirectory()


def bundled(subject: Subject, given: dict[str, Any], sizes: Sizes) -> Path:
    """A folder with a checkpoint, `run`, a photo, and what of a bundle labels it.

    It is not proven: of random weights a region may be another in every runtime by right.
    """
    import jax

    from mlic_jax.export import bundle, write
    from mlic_jax.export.labelling import Source, example
    from mlic_jax.runtime.checkpoint import save_weights

    folder, config = Path(_folder().name), recipe(subject, sizes)
    names = [f"label {c}" for c in range(sizes["labels"])]
    metadata = {"config": json.loads(config.to_json()), "class_names": names}
    save_weights(folder / "run", jax.tree.map(np.asarray, given["variables"]), metadata)
    source, size = Source(str(folder / "run"), "float32", None), sizes["image_size"]
    write.write_onnx(source, example(source, None), folder / "model.onnx")
    how = {"size": size, "grid": size, "interpolation": "bilinear", "center_crop": 0, "range": None}
    description = {
        "class_names": names,
        "formats": {"onnx": "model.onnx"},
        "input": {"name": "pixels", "shape": ["batch", size, size, 3]},
        "preprocessing": how,
    }
    (folder / "model.json").write_text(json.dumps(description))
    (folder / "run.py").write_bytes(bundle.run_file().read_bytes())
    (folder / PHOTO).write_bytes(photos.split_bytes(photos.inputs({"images": 1}))[0])
    return folder


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
    # Of the whole model, whose regions move; see `models.SCORES`.
    return Task(name, subject.inputs, cases, sizes, tolerance=0.1, measures_memory=False)


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
