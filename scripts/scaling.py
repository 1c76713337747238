"""What a step costs on other machines, on paper: FLOPs, bytes, memory, network and input.

    python scripts/scaling.py costs steps memory      (prints tables of the recipes)
    python scripts/scaling.py check --write           (against XLA and this machine, into the docs)
    python scripts/scaling.py decode --photos FOLDER  (images/s of one core)

Nothing of a recipe is run: its train step is traced by shapes alone, and `traced_cost.py` reads the
trace in the formulation that accelerators get. What the figures are good for, and how far
they are off, is in docs/scaling.md.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict
from traced_cost import Cost, cost_of

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import transforms
from mlic_jax.data.class_names import CLASS_LISTS
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.models import create_backbone, create_model
from mlic_jax.train import start, step
from mlic_jax.train.optim import create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"
SIZE, BATCH = 448, 64  # of all traces; what follows pixels is scaled from there
ACCELERATOR = "cuda"  # whose formulation all of them have
USABLE = 0.9  # of a device's memory; the rest is for its runtime, libraries and fragments
BACKBONES = ("mobilenet_v2", "resnet50", "resnet101")
WORKLOADS = (*(("mcar_coco", backbone) for backbone in BACKBONES), ("msrn_coco", "resnet101"))
MSRN = ("msrn_coco", "msrn_nuswide", "msrn_voc2007", "msrn_apparel")
# Recipe, backbone, px, images and whether in the formulation of accelerators or that of CPUs.
CHECKS = (
    ("mcar_coco", "resnet50", 128, 8, True),
    ("mcar_coco", "resnet18", 256, 4, True),
    ("mcar_coco", "mobilenet_v2", 128, 8, True),
    ("msrn_voc2007", "resnet18", 256, 16, True),
    ("mcar_coco", "resnet18", 128, 8, False),
)
DECODED = {256: 161.0, 448: 132.0, 576: 90.0}  # images/s of one core, measured by `decode`


def nccl_latency(hosts: int, devices: int = 8) -> float:
    """Of an all-reduce of a few kB by hosts of so many GPUs, seconds, as NCCL itself reckons.

    By its model of a tree with its protocol LL (`ncclTopoTuneModel` in NCCL's src/graph/tuning.cc),
    of which it is a base and the latencies of NVLink and of the network.
    """
    return 6.8e-6 + 2 * ((devices - 1) * 0.6e-6 + math.log2(hosts) * 5.0e-6)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A host and its devices, in FLOP/s and bytes/s; networks are those of a device, one way."""

    name: str
    devices: int
    cores: int
    bandwidth: float  # of its memory
    link: float  # to devices of the same host
    network: float  # to devices of other hosts
    flops: dict[str, float]
    # Seconds of a small all-reduce, of a host's devices and of 64; by default of hosts of 8 GPUs.
    latency: tuple[float, float] = (nccl_latency(1), nccl_latency(8))


# Of the vendors' data sheets, named in docs/scaling.md. float32 on A100 and later is TF32: what XLA
# takes by default. The V100 has no bfloat16. Of the TPU the latency is assumed: 1e-6 a hop, along
# both axes of a grid of 2 x 2 and of 8 x 8 chips, once to sum and once to spread.
MACHINES = (
    Machine("DGX-1 V100", 8, 40, 0.9e12, 150e9, 6.25e9, {"float32": 15.7e12}),
    Machine("DGX A100", 8, 128, 1.555e12, 300e9, 25e9, {"float32": 156e12, "bfloat16": 312e12}),
    Machine("DGX H100", 8, 112, 3.35e12, 450e9, 50e9, {"float32": 494e12, "bfloat16": 989e12}),
    Machine("DGX H200", 8, 112, 4.8e12, 450e9, 50e9, {"float32": 494e12, "bfloat16": 989e12}),
    Machine("TPU v5e-64", 4, 56, 0.819e12, 200e9, 200e9, {"bfloat16": 197e12}, (4e-6, 28e-6)),
)


@contextmanager
def as_on_accelerators() -> Iterator[None]:
    """Inside, what is traced has the formulation of accelerators alone, and runs here as well."""
    jax.clear_caches()  # of what was traced outside, and in the end of what was traced here
    with mock.patch.object(lax, "platform_dependent", lambda *given, default, **_: default(*given)):
        yield
    jax.clear_caches()


def recipe(name: str, *variants: str, **options: Any) -> ConfigDict:
    """`configs/NAME.py:VARIANTS` with options of `config.model` changed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(",".join(variants))
    config.model.update(options)
    return config


def model_of(config: ConfigDict) -> Any:
    """The model of a recipe for a published set, for MSRN with a graph and vectors of zeros."""
    classes = len(CLASS_LISTS[config.data.name.rstrip("0123456789")])
    vectors, graph = np.zeros((classes, 300), np.float32), np.eye(classes, dtype=bool)
    labels = {"word_vectors": vectors, "attention_mask": graph}
    return create_model(config.model, classes, **labels if config.model.name == "msrn" else {})


def train_step_of(config: ConfigDict, batch: int) -> tuple[Callable, tuple]:
    """The train step of a recipe and the shapes of its arguments, as `train/loop.py` has them."""
    model, size = model_of(config), config.data.image_size
    options = TrainOptions.of(config)
    variables = jax.eval_shape(lambda: start.initial_variables(model, options))
    schedule = create_schedule(options.optim, 1000, options.epochs)
    optimizer = create_optimizer(options.optim, variables["params"], schedule)
    opt_state = jax.eval_shape(optimizer.init, variables["params"])
    shape = jax.ShapeDtypeStruct
    state = step.TrainState(step=shape((), jnp.int32), opt_state=opt_state, **variables)
    classes = len(CLASS_LISTS[config.data.name.rstrip("0123456789")])
    images = {
        "image": shape((batch, size, size, 3), jnp.uint8),
        "labels": shape((batch, classes), jnp.int8),
        "index": shape((batch,), jnp.int32),
        "mask": shape((batch,), bool),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.make_train_step(model, optimizer, schedule, options), (state, images, key)


@functools.cache
def step_cost(name: str, backbone: str, dtype: str = "float32", remat: str = "none") -> Cost:
    """Of a train step of `BATCH` images of `SIZE` px."""
    config = recipe(name, backbone, str(SIZE), dtype=dtype, remat=remat)
    step, arguments = train_step_of(config, BATCH)
    return cost_of(step, *arguments, platform=ACCELERATOR)


@functools.cache
def variables_of(name: str, backbone: str) -> dict[str, Any]:
    """The shapes of the variables of a recipe's model."""
    config = recipe(name, backbone, "64")
    model, options = model_of(config), TrainOptions.of(config)
    return jax.eval_shape(lambda: start.initial_variables(model, options))


def parameters(name: str, backbone: str) -> dict[str, int]:
    """How many every top-level module has."""
    params = variables_of(name, backbone)["params"]
    return {module: sum(x.size for x in jax.tree.leaves(params[module])) for module in params}


def small_exchanges(name: str, backbone: str) -> int:
    """All-reduces of a step that batch normalisation waits for, one after the other.

    One of a layer's statistics and one of their gradients, each time that it is looked through.
    """
    statistics = jax.tree_util.tree_leaves_with_path(variables_of(name, backbone)["batch_stats"])
    layers = sum(path[-1].key == "mean" for path, _ in statistics)
    looks = 2 if recipe(name).model.name == "mcar" else 1
    return 2 * layers * looks


def inference_cost(module: Any) -> Cost:
    """Of a backbone or a model that is shown one image."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return cost_of(module.apply, variables, images, platform=ACCELERATOR)


def activations(name: str, backbone: str, dtype: str, remat: str, size: int) -> float:
    """Bytes an image that a step needs beside its state: proportional to the pixels."""
    cost = step_cost(name, backbone, dtype, remat)
    return (cost.peak - cost.inputs) / BATCH * (size / SIZE) ** 2


def largest_batch(memory: float, fixed: float, of_image: float) -> int:
    """How many images a device holds beside what is there for any batch."""
    return max(0, int((USABLE * memory - fixed) / of_image))


def ring(gradient: float, devices: int, bandwidth: float) -> float:
    """Seconds of an all-reduce: each of n devices sends 2 (n - 1) / n of the gradient on."""
    return 2 * (devices - 1) / devices * gradient / bandwidth


def costs() -> Iterator[Sequence[str]]:
    """FLOPs and bytes of an image at 448 px, and of what all devices exchange."""
    yield (
        *("model", "parameters, M", "all-reduce, MB", "backbone, GFLOP", "inference, GFLOP"),
        *("train, GFLOP", "elementwise in training, GFLOP", "moved in training, GB"),
    )
    for name, backbone in WORKLOADS:
        bare = inference_cost(create_backbone(backbone)).matrix
        whole = inference_cost(model_of(recipe(name, backbone))).matrix
        step, count = step_cost(name, backbone), sum(parameters(name, backbone).values())
        yield (
            *(f"{name}, {backbone}", f"{count / 1e6:.1f}", f"{4 * count / 1e6:.0f}"),
            *(f"{bare / 1e9:.1f}", f"{whole / 1e9:.1f} ({whole / bare:.2f} x)"),
            f"{step.matrix / BATCH / 1e9:.1f} ({step.matrix / BATCH / whole:.2f} x)",
            *(f"{step.vector / BATCH / 1e9:.1f}", f"{step.moved / BATCH / 1e9:.2f}"),
        )


def steps() -> Iterator[Sequence[str]]:
    """Least times of a step of 16 images of 448 px a device, ms, and where the input is behind."""
    yield (
        *("model", "on", "compute", "memory", "all-reduce, host", "all-reduce, 64"),
        *("latency, host", "latency, 64", "input"),
        *("images/s a device", "cores for 448 px", "for 256 px", "input limits"),
    )
    for (name, backbone), machine in itertools.product(WORKLOADS, MACHINES):
        dtype = "bfloat16" if "bfloat16" in machine.flops else "float32"
        cost = step_cost(name, backbone, dtype)
        gradient = 4 * sum(parameters(name, backbone).values())
        compute = cost.matrix / BATCH / machine.flops[dtype]
        memory = cost.moved / BATCH / machine.bandwidth
        network = ring(gradient, 64, machine.network)
        fed = {size: machine.devices / machine.cores / DECODED[size] for size in (448, 256)}
        best = {size: max(compute, memory) * (size / SIZE) ** 2 for size in fed}  # an image
        within = ring(gradient, machine.devices, machine.link)
        waits = [small_exchanges(name, backbone) * latency for latency in machine.latency]
        times = (16 * compute, 16 * memory, within, network, *waits, 16 * fed[448])
        late = [size for size in fed if fed[size] > best[size]]
        limits = (f"{size} px, from {math.ceil(network / fed[size])}" for size in late)
        yield (
            *(f"{name}, {backbone}", f"{machine.name}, {dtype}"),
            *(f"{1000 * seconds:.1f}" for seconds in times),
            f"{1 / best[448]:.0f}",
            *(f"{1 / best[size] / DECODED[size]:.1f}" for size in fed),
            "; ".join(limits) or "never",
        )


def memory() -> Iterator[Sequence[str]]:
    """The largest batch of a device of 16, 40 and 80 GB."""
    options = [("float32", remat) for remat in ("none", "block")]
    options += [("bfloat16", remat) for remat in ("none", "stage", "block")]
    titles = (f"{dtype}, {remat}" for dtype, remat in options)
    yield "recipe", "px", "fixed, GB", *titles, "bfloat16, block, fc1 on 8"
    models = [("mcar_coco", backbone) for backbone in BACKBONES]
    for name, backbone in [*models, *((name, "resnet101") for name in MSRN)]:
        count = parameters(name, backbone)
        fixed = 12 * sum(count.values())  # float32 parameters, momentum and gradient
        sharded = fixed - 12 * count.get("fc1", 0) * 7 / 8
        # Label sets differ by little in what an image needs, and by much in what is fixed.
        traced = MSRN[0] if name in MSRN else name
        for size in DECODED:
            of_image = [activations(traced, backbone, *option, size) for option in options]
            cells = [(fixed, x) for x in of_image] + [(sharded, of_image[-1])] * ("fc1" in count)
            batches = [
                " / ".join(str(largest_batch(gigabytes * 1e9, *cell)) for gigabytes in (16, 40, 80))
                for cell in cells
            ]
            batches += [""] * ("fc1" not in count)
            yield f"{name}, {backbone}", str(size), f"{fixed / 1e9:.2f}", *batches


def check() -> Iterator[Sequence[str]]:
    """Predictions of train steps by what XLA says of them and by the memory that one takes."""
    yield (
        *("step", "FLOPs / XLA's", "bytes / XLA's", "memory above the state, MB"),
        *("by XLA's", "by measured"),
    )
    for name, backbone, size, batch, plain in CHECKS:
        config = recipe(name, backbone, str(size))
        with as_on_accelerators() if plain else nullcontext():
            step, arguments = train_step_of(config, batch)
            cost = cost_of(step, *arguments)
            lowered = step.lower(*arguments)
            compiled = lowered.compile()
        predicted, allocated = cost.peak - cost.inputs, compiled.memory_analysis()
        flops = (cost.matrix + cost.vector) / lowered.cost_analysis()["flops"]
        measured = peak_growth(compiled, arguments)
        yield (
            f"{name}, {backbone}, {size} px, {batch} images, {'plain' if plain else 'CPU'}",
            *(f"{flops:.3f}", f"{cost.moved / compiled.cost_analysis()['bytes accessed']:.2f}"),
            *(f"{predicted / 1e6:.0f}", f"{predicted / allocated.temp_size_in_bytes:.2f}"),
            f"{predicted / measured:.2f}",
        )


def peak_growth(compiled: Callable, shapes: Any) -> float:
    """Bytes that a step of zeros adds to this process at most."""
    if not Path("/proc/self/clear_refs").exists():
        raise Failure("check reads the memory of its process from /proc, which needs Linux")
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is freed goes back, and is seen as such

    def step() -> float:
        key = shapes[-1].dtype
        arguments = jax.tree.map(
            lambda x: jax.random.key(0) if x.dtype == key else jnp.zeros(x.shape, x.dtype), shapes
        )
        jax.block_until_ready(arguments)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        jax.block_until_ready(compiled(*arguments))
        return resident("VmHWM") - before

    def resident(field: str) -> float:
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    step()
    return step()


def decode(folder: Path | None) -> Iterator[Sequence[str]]:
    """Images/s of one core, from bytes to a square; the least disturbed of five rounds."""
    if folder is None or not (photos := sorted(folder.glob("*.jpg"))[:100]):
        raise UsageError(f"--photos is {folder}; decode needs a folder with .jpg files")
    yield "px", "images/s of one core"
    encoded = [photo.read_bytes() for photo in photos]
    for size in DECODED:
        rates = []
        for _ in range(5):
            start = time.process_time()
            for image in encoded:
                transforms.resize(transforms.decode(image), size)
            rates.append(len(encoded) / (time.process_time() - start))
        yield str(size), f"{max(rates):.0f}"


def to_markdown(rows: Iterator[Sequence[str]]) -> str:
    """A table whose first row is its head, printed row by row as they come."""
    lines = []
    for row in rows:
        new = [f"| {' | '.join(row)} |"] + [f"|{'---|' * len(row)}"] * (not lines)
        print(*new, sep="\n", flush=True)
        lines += new
    return "\n".join(lines) + "\n"


def put(text: str, name: str, table: str) -> str:
    """`text` with the table between `<!-- scaling: NAME -->` and `<!-- end -->`."""
    place = rf"(<!-- scaling: {name} -->\n).*?(<!-- end -->)"
    replaced, count = re.subn(place, lambda m: m[1] + table + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise UsageError(f"{DOCUMENT} must have one <!-- scaling: {name} --> ... <!-- end -->")
    return replaced


TABLES = {"costs": costs, "steps": steps, "memory": memory, "check": check, "decode": decode}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="scaling.py", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=TABLES, metavar="TABLE")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="decode: with .jpg files")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")

    def run() -> None:
        options = parser.parse_args(arguments)
        for name in options.tables * options.write:  # before minutes of work, not after
            put(DOCUMENT.read_text(encoding="utf-8"), name, "")
        for name in options.tables:
            photos = (options.photos,) if name == "decode" else ()
            table = to_markdown(TABLES[name](*photos))
            if options.write:
                write_text(DOCUMENT, put(DOCUMENT.read_text(encoding="utf-8"), name, table))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
