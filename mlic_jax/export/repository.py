"""A bundle as NVIDIA Triton and OpenVINO Model Server (`ovms`) want models: a repository of them.

NAME/1/model.onnx   the first version of a model
NAME/config.pbtxt   Triton's: names, types and shapes, as the graph has them
config.json         OpenVINO's: which models there are
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from mlic_jax.errors import UsageError
from mlic_jax.export import bundle
from mlic_jax.files.atomic import write_text
from mlic_jax.names import require_one_of

SERVERS = ("triton", "ovms")
MOST = 8  # photos, of several requests, that Triton gives to a model together
TYPES = {"FLOAT": "FP32", "INT32": "INT32", "UINT8": "UINT8", "BOOL": "BOOL"}  # ONNX's -> Triton's


def write(folder: Path, description: dict[str, Any], server: str, out: Path, name: str) -> None:
    """Writes the repository `out`, with the model of a bundle in it.

    Args:
        description: of the bundle in `folder`, see `bundle.read`.
        server: one of `SERVERS`.
        name: of the model, for clients.

    Raises:
        UsageError: the server is unknown or does not run the model, the name is none for a folder
            and an address, something is in the way of `out`, or the bundle has no ONNX.
    """
    require_one_of("--server", server, SERVERS)
    model = bundle.model_file(folder, description, "onnx", server)
    if server == "ovms" and "openvino" not in description.get("runtimes", ["openvino"]):
        raise UsageError(f"{folder} is not for OpenVINO, which has other scores of it: use triton")
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
        raise UsageError(f"--name is {name!r}; it must be of letters, digits, _ and - alone")
    if folder.resolve() in out.resolve().parents:
        raise UsageError(f"--out {out} lies in the bundle, which would be no bundle any more")
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} is in the way: give another --out, or remove it")
    try:
        (out / name / "1").mkdir(parents=True)
        shutil.copyfile(model, out / name / "1" / "model.onnx")
        if server == "triton":
            write_text(out / name / "config.pbtxt", triton_config(model, name))
        else:
            write_text(out / "config.json", json.dumps(ovms_config(name), indent=1))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def triton_config(model: Path, name: str) -> str:
    """Triton's `ModelConfig` of an ONNX file in its text form; batches of any size are shared."""
    import onnx

    graph = onnx.load(model).graph
    is_fixed = bool(graph.input[0].type.tensor_type.shape.dim[0].dim_value)
    lines = [f'name: "{name}"', 'backend: "onnxruntime"']
    lines += ["max_batch_size: 0"] if is_fixed else [f"max_batch_size: {MOST}"]
    for kind, tensors in (("input", graph.input), ("output", graph.output)):
        for tensor in tensors:
            of = tensor.type.tensor_type
            dims = [dim.dim_value for dim in of.shape.dim][0 if is_fixed else 1 :]
            type_ = f"TYPE_{TYPES[onnx.TensorProto.DataType.Name(of.elem_type)]}"
            lines.append(f'{kind} {{ name: "{tensor.name}" data_type: {type_} dims: {dims} }}')
    return "\n".join([*lines, *([] if is_fixed else ["dynamic_batching { }"]), ""])


def ovms_config(name: str) -> dict[str, Any]:
    """OpenVINO Model Server's configuration; names and shapes it reads from the model."""
    config = {
        "name": name,
        "base_path": name,  # beside the configuration
        "plugin_config": bundle.OPENVINO_OPTIONS,
    }
    return {"model_config_list": [{"config": config}]}
