"""Whole models into checkpoints of ours, in any order of their classes, and back into torch's."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from mlic_jax.config import default_config
from mlic_jax.data.class_names import CLASS_LISTS
from mlic_jax.data.co_occurrence import CoOccurrence
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_model
from mlic_jax.runtime.checkpoint import load_weights, save_weights
from weight_conversion.convert import load_checkpoint, main, save_torch_checkpoint

TWO = ("auk", "bee")


def assert_same_tensors(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert set(left) == set(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        np.testing.assert_array_equal(array, right[name], err_msg=name)


def assert_one_line(capsys, code: int, arguments: list, *words: str) -> None:
    """The command fails with `code` and one line that has all of `words`."""
    assert main([*map(str, arguments)]) == code
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def mcar_voc(source_tensors) -> dict[str, np.ndarray]:
    return source_tensors("mobilenet_v2", "mcar", classes=20)


@pytest.fixture(scope="module")
def mcar_file(mcar_voc, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mcar") / "model.safetensors"
    save_file(mcar_voc, path)
    return path


@pytest.fixture(scope="module")
def msrn_small(source_tensors) -> dict[str, np.ndarray]:
    return source_tensors("resnet18", "msrn")


@pytest.fixture(scope="module")
def msrn_folder(msrn_small, tmp_path_factory) -> Path:
    """MSRN of two classes with what it knows of them, which lies in the other order."""
    folder = tmp_path_factory.mktemp("msrn")
    save_file(msrn_small, folder / "model.safetensors")
    (folder / "classes.txt").write_text("\n".join(TWO))
    (folder / "other.txt").write_text("\n".join(TWO[::-1]))
    counts, class_counts = np.array([[0, 4], [4, 0]], np.float32), np.array([9, 5], np.float32)
    CoOccurrence(counts, class_counts, TWO[::-1], "birds", "train", "ignore").save(
        folder / "graph.npz"
    )
    vectors = np.arange(600, dtype=np.float32).reshape(2, 300)
    WordVectors(vectors, TWO[::-1], "glove").save(folder / "vectors.npz")
    return folder


def test_mcar_becomes_a_checkpoint_that_says_all_of_itself(mcar_file, mcar_voc, tmp_path, capsys):
    arguments = ["--classes", "voc", "--pooling", "avg", "--image-size", "256"]
    assert main([str(mcar_file), "--output", str(tmp_path / "ours"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert (
        "model.safetensors: mobilenet_v2 under mcar names, 20 classes, 256 pixels, pooling avg"
        in printed
    )
    assert "314 tensors: 262 converted, 52 unused and kept" in printed

    variables, metadata = load_weights(tmp_path / "ours")
    assert metadata["class_names"] == list(CLASS_LISTS["voc"])
    assert metadata["preprocessing"] == {
        "image_size": 256,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    config = default_config()
    config.model.update(name="mcar", backbone="mobilenet_v2", pooling="avg")
    config.data.image_size = 256
    assert metadata["config"] == json.loads(config.to_json())
    assert (metadata["arch"], metadata["layout"]) == ("mobilenet_v2", "mcar")

    model = create_model(ConfigDict(metadata["config"]["model"]), 20)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), images)
    given = {name: variables[name] for name in wanted}
    assert jax.tree.map(np.shape, given) == jax.tree.map(np.shape, dict(wanted))

    back = tmp_path / "back.safetensors"
    assert main([str(tmp_path / "ours"), "--to", "torch", "--output", str(back)]) == 0
    assert_same_tensors(load_file(back), mcar_voc)


def test_coco_can_change_its_order_and_back(source_tensors, tmp_path):
    tensors = source_tensors("mobilenet_v2", "mcar", classes=80)
    save_file(tensors, tmp_path / "model.safetensors")
    source, ours, back = (tmp_path / name for name in ("model.safetensors", "o", "b.safetensors"))
    order = ["--classes", "coco", "--order", "coco-annotation"]
    assert main([str(source), "--output", str(ours), *order]) == 0
    variables, metadata = load_weights(ours)
    assert metadata["class_names"] == list(CLASS_LISTS["coco-annotation"])
    bias = variables["params"]["convclass"]["bias"]
    for name in ("person", "toothbrush", "umbrella"):
        place = metadata["class_names"].index(name)
        assert bias[place] == tensors["convclass.bias"][CLASS_LISTS["coco"].index(name)]
    assert metadata["class_names"][0] == "person"

    again = [str(ours), "--to", "torch", "--output", str(back), "--order", "coco"]
    assert main(again) == 0
    assert_same_tensors(load_file(back), tensors)


def test_msrn_takes_its_label_inputs_along(msrn_folder, msrn_small, tmp_path):
    arguments = [msrn_folder / "model.safetensors", "--output", tmp_path / "ours"]
    arguments += ["--classes", msrn_folder / "classes.txt", "--order", msrn_folder / "other.txt"]
    arguments += ["--graph", msrn_folder / "graph.npz", "--vectors", msrn_folder / "vectors.npz"]
    assert main([*map(str, arguments)]) == 0
    variables, metadata = load_weights(tmp_path / "ours")
    assert metadata["class_names"] == ["bee", "auk"]
    inputs = variables["label_inputs"]
    np.testing.assert_array_equal(inputs["class_counts"], [9, 5])  # as in the file: bee, auk
    np.testing.assert_array_equal(inputs["word_vectors"][0], np.arange(300))
    np.testing.assert_array_equal(variables["params"]["fc2"]["bias"], msrn_small["fc2.bias"][::-1])
    np.testing.assert_array_equal(variables["unused"]["W"], msrn_small["W"][::-1])
    mask = inputs["counts"] >= 0
    config = ConfigDict(metadata["config"]["model"])
    create_model(config, 2, word_vectors=inputs["word_vectors"], attention_mask=mask)
    assert int(config.pool_ratio * 2) == 1

    back = tmp_path / "back.safetensors"
    order = ["--order", str(msrn_folder / "classes.txt")]
    assert main([str(tmp_path / "ours"), "--to", "torch", "--output", str(back), *order]) == 0
    assert_same_tensors(load_file(back), msrn_small)


@pytest.mark.parametrize(
    ("classes", "groups", "ratio"),
    [(20, 4, 0.2), (80, 4, 0.05), (81, 4, 0.05), (11, 2, 0.2), (11, 1, None), (7, 7, None)],
)
def test_any_number_of_groups_has_a_ratio(source_shapes, classes, groups, ratio):
    from weight_conversion.convert import _config
    from weight_conversion.matching import detect

    found = _config(detect(source_shapes("resnet18", "msrn", classes, groups)))["model"]
    assert int(found["pool_ratio"] * classes) == groups
    assert ratio in (None, found["pool_ratio"])


def test_classes_that_do_not_fit_are_refused_in_one_line(mcar_file, tmp_path, capsys):
    output = tmp_path / "out"

    def refused(*words: str, options: tuple[str, ...]) -> None:
        arguments = [mcar_file, "--output", output, *options]
        assert_one_line(capsys, 2, arguments, *words)
        assert not list(tmp_path.glob("out*"))

    refused("it has 20 classes; name them", "--classes: voc, coco", options=())
    refused("has 20 classes and --classes coco has 80", options=("--classes", "coco"))
    refused("apparel has 11", options=("--classes", "apparel"))
    refused("no text file of class names", options=("--classes", "pascal"))
    refused("the checkpoint", options=("--classes", "voc", "--order", "apparel"))
    refused("invalid choice: 'sum'", options=("--classes", "voc", "--pooling", "sum"))
    refused(
        "--graph is not for a checkpoint of MCAR",
        options=("--classes", "voc", "--graph", "g", "--vectors", "v"),
    )
    refused("a positive multiple of 32", options=("--classes", "voc", "--image-size", "100"))


def test_options_without_a_use_are_refused_in_one_line(
    source_tensors, msrn_folder, tmp_path, capsys
):
    save_file(source_tensors("mobilenet_v2"), tmp_path / "trunk.safetensors")
    trunk = [tmp_path / "trunk.safetensors", "--output", tmp_path / "out"]
    assert_one_line(capsys, 2, [*trunk, "--classes", "voc"], "--classes is not for mobilenet_v2")
    msrn = [msrn_folder / "model.safetensors", "--output", tmp_path / "out"]
    msrn += ["--classes", msrn_folder / "classes.txt"]
    assert_one_line(
        capsys, 2, [*msrn, "--pooling", "avg"], "--pooling is not for a checkpoint of MSRN"
    )
    assert_one_line(capsys, 2, [*msrn, "--graph", "g.npz"], "--graph and --vectors go together")
    short = tmp_path / "short.npz"
    WordVectors(np.zeros((2, 50), np.float32), None, "glove").save(short)
    graph = ["--graph", msrn_folder / "graph.npz", "--vectors", short]
    assert_one_line(capsys, 2, [*msrn, *graph], "short.npz: its vectors", "length 300")
    assert not (tmp_path / "out").exists()

    assert main([str(trunk[0]), "--output", str(tmp_path / "ours")]) == 0
    back = [tmp_path / "ours", "--to", "torch", "--output", tmp_path / "b.pt", "--order", "voc"]
    assert_one_line(capsys, 2, back, "--order is not for a backbone alone")


@pytest.fixture(scope="module")
def run(mcar_voc, tmp_path_factory) -> Path:
    """A checkpoint as training leaves it: nothing in it comes from torch."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "7"
    source = tmp_path_factory.mktemp("source") / "model.safetensors"
    save_file(mcar_voc, source)
    variables, info = load_checkpoint(source)
    del variables["unused"]
    metadata = {
        "config": info["config"],
        "class_names": list(CLASS_LISTS["voc"]),
        "step": 7,
        "validation": {"mAP": 71.5},
    }
    save_weights(folder, variables, metadata)
    return folder.parents[1]


def test_a_run_becomes_a_checkpoint_of_torch(run, mcar_voc, tmp_path, capsys):
    output = tmp_path / "deep" / "model.safetensors"
    assert main([str(run), "--to", "torch", "--output", str(output)]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    zeros = {
        name: np.zeros_like(tensor) if name.endswith("num_batches_tracked") else tensor
        for name, tensor in mcar_voc.items()
    }
    assert_same_tensors(load_file(output), zeros)


def test_what_cannot_be_written_is_refused_in_one_line(run, tmp_path, capsys):
    (tmp_path / "old.pth").write_text("precious")

    def refused(code: int, output: Path, *words: str, options: tuple[str, ...] = ()) -> None:
        arguments = [run, "--to", "torch", "--output", output, *options]
        assert_one_line(capsys, code, arguments, *words)

    refused(2, tmp_path / "old.pth", "exists already")
    assert (tmp_path / "old.pth").read_text() == "precious"
    refused(2, tmp_path / "new.onnx", "must end in .safetensors, .pth, .pt, .pth.tar")
    refused(1, tmp_path / "old.pth" / "new.pth", "cannot be written")
    refused(2, tmp_path / "new.pth", "--classes is not for", options=("--classes", "voc"))
    assert_one_line(
        capsys, 2, [tmp_path / "no", "--to", "torch", "--output", tmp_path / "new.pth"], "no check"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["old.pth"]


def test_models_without_torch_names_are_refused(mcar_voc, tmp_path, monkeypatch):
    save_file(mcar_voc, tmp_path / "model.safetensors")
    variables, info = load_checkpoint(tmp_path / "model.safetensors")
    output = tmp_path / "new.safetensors"
    for model in ({"name": "mcar", "backbone": "resnet10"}, {"name": "x", "backbone": "resnet18"}):
        with pytest.raises(UsageError, match=rf"no {model['name']} names of {model['backbone']}"):
            save_torch_checkpoint(variables, output, {"config": {"model": model}})
    variables["params"]["features"]["stem"]["scale"] = np.ones(16, np.float32)  # half as wide
    with pytest.raises(Failure, match=r"0\.0\.1\.weight' is \[16\] and must be \[32\]"):
        save_torch_checkpoint(variables, output, info)
    assert not output.exists()
    monkeypatch.setitem(sys.modules, "torch", None)
    variables, info = load_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="need PyTorch: pip install"):
        save_torch_checkpoint(variables, tmp_path / "new.pth", info)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# --- the released formats, as torch writes them ---


def check_released_format(
    torch, tensors, classes: str, tmp_path, zipped: bool, prefix: str
) -> None:
    """From a training script's `.pth.tar` to a checkpoint of ours and back to an equal file."""
    state = {prefix + name: torch.from_numpy(array) for name, array in tensors.items()}
    beside = {"epoch": 48, "arch": "resnet101", "best_score": np.float64(94.75)}
    source, ours, back = (tmp_path / name for name in ("model.pth.tar", "ours", "back.pth.tar"))
    content = {**beside, "state_dict": state}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    assert main([str(source), "--output", str(ours), "--classes", classes]) == 0
    assert main([str(ours), "--to", "torch", "--output", str(back)]) == 0

    written = torch.load(back, weights_only=True)
    assert {name: written[name] for name in beside} == beside
    assert_same_tensors(
        {name: tensor.numpy() for name, tensor in written["state_dict"].items()},
        {name: tensor.numpy() for name, tensor in state.items()},
    )


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_released_mcar_mobilenet(torch, mcar_voc, tmp_path, zipped):
    check_released_format(torch, mcar_voc, "voc", tmp_path, zipped, "module.")


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(("arch", "prefix"), [("resnet50", ""), ("resnet101", "module.")])
def test_the_released_mcar_resnets(torch, source_tensors, tmp_path, arch, prefix):
    tensors = source_tensors(arch, "mcar", classes=80)
    check_released_format(torch, tensors, "coco", tmp_path, True, prefix)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "groups", "zipped"), [("voc", 4, True), ("apparel", 2, False)], ids=["voc", "apparel"]
)
def test_the_released_msrn(torch, source_tensors, tmp_path, name, groups, zipped):
    """Those of COCO and NUS-WIDE have 1 GB in one tensor; test_layouts.py has their shapes."""
    classes = len(CLASS_LISTS[name])
    tensors = source_tensors("resnet101", "msrn", classes=classes, groups=groups)
    check_released_format(torch, tensors, name, tmp_path, zipped, "")
    shutil.rmtree(tmp_path)  # a gigabyte


@pytest.mark.torch
def test_a_trunk_goes_back_as_a_plain_state_dict(torch, source_tensors, tmp_path):
    tensors = source_tensors("resnet18")
    save_file(tensors, tmp_path / "trunk.safetensors")
    variables, info = load_checkpoint(tmp_path / "trunk.safetensors")
    save_torch_checkpoint(variables, tmp_path / "trunk.pth", info)
    written = torch.load(tmp_path / "trunk.pth", weights_only=True)
    assert_same_tensors({name: tensor.numpy() for name, tensor in written.items()}, tensors)


@pytest.mark.torch
def test_a_run_says_its_best_score(torch, run, tmp_path):
    assert main([str(run), "--to", "torch", "--output", str(tmp_path / "run.pth")]) == 0
    written = torch.load(tmp_path / "run.pth", weights_only=True)
    del written["state_dict"]
    assert written == {"epoch": 0, "arch": "mobilenet_v2", "best_score": 71.5}
