"""Model repositories of servers: what is written is of their schema, and of the graph."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.export import bundle, repository, write
from mlic_jax.export import command as door
from mlic_jax.runtime.checkpoint import save_weights

TRITON = {
    "TYPE_UINT8": np.uint8,
    "TYPE_INT32": np.int32,
    "TYPE_BOOL": bool,
    "TYPE_FP32": np.float32,
}


@pytest.fixture(scope="module")
def folder(make_config, fresh_run, tmp_path_factory):
    """A bundle that takes any number of photos."""
    folder = tmp_path_factory.mktemp("bundles")
    variables, metadata = fresh_run(make_config())
    save_weights(folder / "model", variables, metadata)
    return write.export(str(folder / "model"), folder / "any.bundle", ("onnx",))


@pytest.fixture(scope="module")
def of_two(folder, tmp_path_factory):
    """Its model as one of two photos at a time."""
    model = onnx.load(folder / "model.onnx")
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 2
    path = tmp_path_factory.mktemp("fixed") / "model.onnx"
    onnx.save(model, path)
    return path


def triton_schema():
    """Triton's own `ModelConfig`, without its client, which wants an older protobuf."""
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("needs Triton's schema: pip install --no-deps tritonclient")
    (place,) = found.submodule_search_locations
    spec = importlib.util.spec_from_file_location(
        "model_config_pb2", Path(place) / "grpc" / "model_config_pb2.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("most", "rows"), [(repository.MOST, 5), (0, 2)])
def test_triton_is_told_the_names_types_and_shapes_of_the_graph(folder, of_two, most, rows):
    from google.protobuf import text_format

    schema = triton_schema()
    path = folder / "model.onnx" if most else of_two
    config = text_format.Parse(repository.triton_config(path, "x"), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("x", "onnxruntime", most)
    assert config.HasField("dynamic_batching") == (most > 0)
    session = onnxruntime.InferenceSession(path)
    arrays = {"pixels": np.zeros((rows, 64, 64, 3), np.uint8)}
    names = [output.name for output in session.get_outputs()]
    arrays |= dict(zip(names, session.run(None, dict(arrays)), strict=True))
    assert [of.name for of in (*config.input, *config.output)] == list(arrays)
    for of in (*config.input, *config.output):
        array = arrays[of.name]
        assert array.dtype == TRITON[schema.DataType.Name(of.data_type)], of.name
        assert array.shape[most > 0 :] == tuple(of.dims), of.name


def test_a_repository_for_triton(folder, tmp_path):
    said = ["repository", str(folder), "--server", "triton", "--out", str(tmp_path / "models")]
    assert door.main([*said, "--name", "scenes"]) == 0
    model = tmp_path / "models" / "scenes"
    assert (model / "1" / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    lines = (model / "config.pbtxt").read_text().splitlines()
    assert lines[:3] == ['name: "scenes"', 'backend: "onnxruntime"', "max_batch_size: 8"]
    assert lines[3] == 'input { name: "pixels" data_type: TYPE_UINT8 dims: [64, 64, 3] }'
    assert lines[-1] == "dynamic_batching { }"
    outputs = bundle.read(folder)["outputs"]
    assert [line.split('"')[1] for line in lines if line.startswith("output")] == list(outputs)


def test_a_repository_for_openvino(folder, tmp_path):
    said = ["repository", str(folder), "--server", "ovms", "--out", str(tmp_path / "models")]
    assert door.main(said) == 0
    written = json.loads((tmp_path / "models" / "config.json").read_text())
    assert set(written) == {"model_config_list"}
    ((config,),) = (of.values() for of in written["model_config_list"])
    assert set(config) == {"name", "base_path", "plugin_config"}  # of its schema, which is closed
    assert config["name"] == config["base_path"] == "any"  # of any.bundle
    assert config["plugin_config"] == bundle.OPENVINO_OPTIONS  # which `verify` compiles it with
    model = tmp_path / "models" / config["base_path"] / "1" / "model.onnx"
    assert model.read_bytes() == (folder / "model.onnx").read_bytes()


def test_the_batch_of_a_graph_has_one_name(folder):
    graph = onnx.load(folder / "model.onnx").graph
    tensors = [*graph.input, *graph.output]
    assert {of.type.tensor_type.shape.dim[0].dim_param for of in tensors} == {"batch"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"server": "tryton"}, "--server is 'tryton'; known are triton, ovms; did you mean"),
        ({"name": "my model"}, "--name is 'my model'; it must be of letters, digits, _ and -"),
        ({"name": "../x"}, "--name is"),
        ({"out": "."}, "is in the way: give another --out"),
    ],
)
def test_what_cannot_be_served(folder, tmp_path, given, message):
    options = {"server": "triton", "out": "models", "name": "scenes"} | given
    with pytest.raises(UsageError, match=message):
        repository.write(
            folder,
            bundle.read(folder),
            options["server"],
            tmp_path / options["out"],
            options["name"],
        )
    assert not list(tmp_path.iterdir())


def test_a_bundle_stays_a_bundle(folder):
    with pytest.raises(UsageError, match="lies in the bundle"):
        repository.write(folder, bundle.read(folder), "triton", folder / "models", "scenes")
    bundle.read(folder)


def test_openvino_is_not_given_what_it_has_other_scores_of(folder, tmp_path):
    description = bundle.read(folder) | {"runtimes": ["onnxruntime"]}
    with pytest.raises(UsageError, match="is not for OpenVINO, which has other scores of it"):
        repository.write(folder, description, "ovms", tmp_path / "models", "scenes")


def test_a_full_disk_leaves_no_half_repository(folder, tmp_path, files_of_at_most):
    with files_of_at_most(1000), pytest.raises(OSError, match="too large"):
        repository.write(folder, bundle.read(folder), "triton", tmp_path / "models", "scenes")
    assert not list(tmp_path.iterdir())
