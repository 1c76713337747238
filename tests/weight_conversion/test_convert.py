"""Files in every format into checkpoints, and every bad file refused in one line."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlic_jax.errors import Failure, UsageError
from mlic_jax.runtime.checkpoint import load_weights
from weight_conversion.convert import load_checkpoint, main
from weight_conversion.layouts.efficientnet import named_in


@pytest.fixture(scope="module")
def mobilenet(source_tensors) -> dict[str, np.ndarray]:
    """A trunk in the layout of the wheel in the README, without a classifier."""
    tensors = source_tensors("mobilenet_v2", "tonylins")
    return {name: t for name, t in tensors.items() if not name.startswith("classifier")}


@pytest.fixture(scope="module")
def safetensors_file(mobilenet, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "trunk.safetensors"
    save_file(mobilenet, path)
    return path


def assert_is_trunk(variables: dict, tensors: dict[str, np.ndarray]) -> None:
    """Two leaves far apart; that every leaf is right is shown in test_layouts.py."""
    features, statistics = variables["params"]["features"], variables["batch_stats"]["features"]
    stem, head = tensors["features.0.0.weight"], tensors["features.18.1.running_var"]
    np.testing.assert_array_equal(features["stem"]["kernel"], stem.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(statistics["head"]["var"], head)


def assert_refused(capsys, arguments: list, code: int, *words: str) -> None:
    """One line on stderr with all `words`, the exit code, and no output folder."""
    output = Path(arguments[0]).parent / "refused"
    assert main([*map(str, arguments), "--output", str(output)]) == code
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err
    assert not output.exists()
    assert not list(output.parent.glob("refused*"))


def test_safetensors_become_a_checkpoint_without_torch(
    safetensors_file, mobilenet, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now raises ImportError
    output = tmp_path / "weights"
    assert main([str(safetensors_file), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "trunk.safetensors: mobilenet_v2 under tonylins names, without classifier" in printed
    assert "312 tensors: 260 converted, 52 unused and kept" in printed
    assert "2,223,872 parameters" in printed  # the published 3,504,872 less the classifier

    variables, info = load_weights(output)
    assert_is_trunk(variables, mobilenet)
    assert info == {
        "arch": "mobilenet_v2",
        "layout": "tonylins",
        "source": "trunk.safetensors",
        "sha256": hashlib.sha256(safetensors_file.read_bytes()).hexdigest(),
        "num_tensors": 312,
        "preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }


def test_the_classifier_comes_along_where_there_is_one(source_tensors, tmp_path):
    tensors = source_tensors("mobilenet_v2", "d-li14")
    save_file(tensors, tmp_path / "full.safetensors")
    variables, info = load_checkpoint(tmp_path / "full.safetensors")
    assert info["layout"] == "d-li14"
    classifier = variables["params"]["classifier"]
    np.testing.assert_array_equal(classifier["kernel"], tensors["classifier.weight"].T)
    np.testing.assert_array_equal(classifier["bias"], tensors["classifier.bias"])
    json.dumps(info)


def test_half_precision_becomes_float32(mobilenet, tmp_path):
    halved = {name: t.astype(np.float16) for name, t in mobilenet.items() if t.ndim}
    save_file(halved, tmp_path / "half.safetensors")
    variables, _ = load_checkpoint(tmp_path / "half.safetensors")
    kernel = variables["params"]["features"]["stem"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(
        kernel, halved["features.0.0.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    )


def test_a_missing_file_is_a_usage_error(tmp_path, capsys):
    assert_refused(capsys, [tmp_path / "none.pth"], 2, "none.pth: no such file")


def test_a_truncated_safetensors_file_is_refused(safetensors_file, tmp_path, capsys):
    path = tmp_path / "short.safetensors"
    path.write_bytes(safetensors_file.read_bytes()[:100_000])
    assert_refused(capsys, [path], 1, "short.safetensors: damaged, or not a safetensors file")


def test_a_wrong_or_unknown_architecture_is_a_usage_error(safetensors_file, tmp_path, capsys):
    assert_refused(
        capsys, [safetensors_file, "--arch", "resnet50"], 2, "of mobilenet_v2, not of resnet50"
    )
    assert_refused(capsys, [safetensors_file, "--arch", "vgg"], 2, "unknown architecture 'vgg'")


def test_every_wrong_tensor_is_named_in_one_line(mobilenet, tmp_path, capsys):
    tensors = dict(mobilenet)
    tensors["features.2.conv.9.weight"] = tensors.pop("features.2.conv.0.weight")
    tensors["features.0.0.weight"] = np.zeros((32, 1, 3, 3), np.float32)
    path = tmp_path / "wrong.safetensors"
    save_file(tensors, path)
    title = "wrong.safetensors: does not fit mobilenet_v2 under tonylins names: "
    names = ("0.0.weight' is [32, 1, 3, 3] and must be [32, 3, 3, 3]", "2.conv.0", "2.conv.9")
    assert_refused(capsys, [path], 1, title, *(f"'features.{name}" for name in names))


def test_an_existing_checkpoint_is_not_overwritten(safetensors_file, tmp_path, capsys):
    (tmp_path / "precious").write_text("kept")
    assert main([str(safetensors_file), "--output", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious"]
    assert main([str(safetensors_file), "--output", str(tmp_path / "precious")]) == 2
    assert (tmp_path / "precious").read_text() == "kept"


def test_an_unwritable_output_is_one_line(safetensors_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(safetensors_file), "--output", str(tmp_path / "file" / "weights")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "cannot be written" in printed


def test_a_wrong_option_is_one_line(capsys):
    assert main(["weights.pth", "--colour", "red"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_torch_files_without_torch_say_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"any")
    assert_refused(capsys, [tmp_path / "weights.pth"], 2, "pip install -e '.[torch]'")


# From here on files that torch writes.

ZIP_AND_LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Hostile:
    """Unpickled by a careless reader, it creates a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def save(torch, tmp_path):
    """(content, zipped) -> a file written by torch.save, numpy arrays as tensors."""

    def as_tensors(value):
        if isinstance(value, dict):
            return {key: as_tensors(entry) for key, entry in value.items()}
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    def write(content, zipped: bool) -> Path:
        path = tmp_path / "weights.pth.tar"
        torch.save(as_tensors(content), path, _use_new_zipfile_serialization=zipped)
        return path

    return write


@pytest.mark.torch
@ZIP_AND_LEGACY
def test_both_torch_formats_are_read(save, mobilenet, zipped):
    variables, info = load_checkpoint(save(mobilenet, zipped))
    assert_is_trunk(variables, mobilenet)
    assert (info["arch"], info["source"]) == ("mobilenet_v2", "weights.pth.tar")


@pytest.mark.torch
@ZIP_AND_LEGACY
def test_a_training_checkpoint_of_parallel_replicas_is_read(save, mobilenet, zipped):
    state = {f"module.{name}": tensor for name, tensor in mobilenet.items()}
    beside = {"epoch": 3, "arch": "mobilenetv2", "best_score": np.float64(71.9)}
    path = save({**beside, "state_dict": state, "optimizer": {"lr": np.float32(0.1)}}, zipped)
    variables, info = load_checkpoint(path)
    assert_is_trunk(variables, mobilenet)
    assert info["torch"] == {**beside, "prefix": "module."}
    json.dumps(info)


@pytest.mark.torch
def test_parameters_and_bfloat16_become_float32(torch, save, mobilenet):
    name = "features.0.0.weight"
    bfloat = torch.from_numpy(mobilenet[name]).bfloat16()
    variables, _ = load_checkpoint(save(mobilenet | {name: torch.nn.Parameter(bfloat)}, True))
    kernel = variables["params"]["features"]["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, bfloat.float().numpy().transpose(2, 3, 1, 0))


@pytest.mark.torch
@ZIP_AND_LEGACY
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_torch_file_is_refused(save, mobilenet, capsys, zipped, share):
    path = save(mobilenet, zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(capsys, [path], 1, "weights.pth.tar: damaged, or not a PyTorch checkpoint")


@pytest.mark.torch
@ZIP_AND_LEGACY
def test_code_in_a_pickle_is_not_run(save, mobilenet, tmp_path, capsys, zipped):
    path = save(mobilenet | {"hook": Hostile(tmp_path / "run")}, zipped)
    assert_refused(capsys, [path], 1, "weights.pth.tar: it holds code (posix.mkdir)", "refused")
    assert not (tmp_path / "run").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no state_dict"),
        ({}, "holds no state_dict"),
        ({"state_dict": 3}, "holds no state_dict"),
        ({"epoch": 3, "model": {}}, "holds no state_dict"),
        ({3: np.zeros(2)}, "holds no state_dict"),
        ({"optimizer": {"w": np.zeros(2)}}, "holds no state_dict"),
        ({"w": np.zeros(2)}, "no known network"),
    ],
)
def test_something_else_than_a_state_dict_is_refused(save, capsys, content, words):
    assert_refused(capsys, [save(content, True)], 1, words)


@pytest.mark.torch
def test_a_text_file_is_refused(torch, tmp_path, capsys):
    (tmp_path / "notes.pt").write_text("these are not the weights you are looking for\n")
    assert_refused(capsys, [tmp_path / "notes.pt"], 1, "notes.pt: damaged, or not a PyTorch")


def test_load_checkpoint_names_the_file_in_every_error(safetensors_file, tmp_path):
    with pytest.raises(UsageError, match=r"trunk\.safetensors: unknown architecture"):
        load_checkpoint(safetensors_file, "vgg")
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(Failure, match=r"other\.safetensors: no known network"):
        load_checkpoint(tmp_path / "other.safetensors")


# --- what people put around the weights ---


def test_it_says_what_it_took_and_what_it_left(mobilenet, tmp_path, capsys):
    """Of the file of someone who trained a model around the trunk, and kept its average."""
    head = {"head.weight": np.zeros((20, 1280), np.float32)}
    raw = {f"student.backbone.{name}": tensor for name, tensor in mobilenet.items()}
    averaged = {
        f"teacher.backbone.{name}": np.asarray(2 * tensor) for name, tensor in mobilenet.items()
    }
    path = tmp_path / "x.safetensors"
    save_file(raw | averaged | head, path)
    assert main([str(path), "--output", str(tmp_path / "raw")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "from student.backbone. (raw); --weights takes what is also there: "
        "teacher.backbone. (ema)\n",
        "313 tensors: 260 converted, 52 unused and kept, 1 left out\n",
        "left out: head.weight [20, 1280]\n",
    ):
        assert line in printed
    variables, info = load_weights(tmp_path / "raw")
    assert_is_trunk(variables, mobilenet)
    assert (info["place"], info["others"]) == ("student.backbone.", ["teacher.backbone."])

    assert main([str(path), "--output", str(tmp_path / "ema"), "--weights", "ema"]) == 0
    assert "from teacher.backbone. (ema); " in capsys.readouterr().out
    twice = {name: np.asarray(2 * tensor) for name, tensor in mobilenet.items()}
    assert_is_trunk(load_weights(tmp_path / "ema")[0], twice)
    assert_refused(
        capsys, [path, "--weights", "best"], 2, "no weights 'best', but student.backbone. (raw), "
    )


def test_names_come_back_as_they_were(mobilenet, tmp_path):
    state = {f"module._orig_mod.{name}": tensor for name, tensor in mobilenet.items()}
    source, back = tmp_path / "source.safetensors", tmp_path / "back.safetensors"
    save_file(state, source)
    assert main([str(source), "--output", str(tmp_path / "ours")]) == 0
    assert main([str(tmp_path / "ours"), "--to", "torch", "--output", str(back)]) == 0
    written = load_file(back)
    assert written.keys() == state.keys()
    assert all(np.array_equal(written[name], state[name]) for name in state)


def test_how_photos_were_prepared_is_read_beside_the_weights(
    safetensors_file, mobilenet, tmp_path, capsys
):
    """And what the command line says goes before it."""
    folder, output = tmp_path / "weights", tmp_path / "ours"
    folder.mkdir()
    save_file(mobilenet, folder / "model.safetensors")
    timm = {"input_size": [3, 192, 192], "interpolation": "bicubic", "crop_pct": 0.95}
    timm |= {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.25]}
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": timm}))
    flags = ["--std", "1", "2", "3", "--center-crop", "0.9"]
    assert main([str(folder), "--output", str(output), *flags]) == 0
    line = (
        "photos: mean 0.5 0.4 0.3, std 1 2 3, 192 px, bicubic, the central 0.9 of the shorter side "
        "(config.json)\n"
    )
    assert line in capsys.readouterr().out
    variables, info = load_weights(output)
    assert_is_trunk(variables, mobilenet)
    assert (info["source"], info["preprocessing_file"]) == ("weights", "config.json")
    assert info["preprocessing"] == {
        "mean": [0.5, 0.4, 0.3],
        "std": [1.0, 2.0, 3.0],
        "image_size": 192,
        "interpolation": "bicubic",
        "center_crop": 0.9,
    }
    other = tmp_path / "elsewhere.json"
    other.write_text(json.dumps(timm | {"crop_pct": 1.0, "crop_mode": "squash"}))
    told = load_checkpoint(folder, preprocessing_file=other)[1]["preprocessing"]
    assert (told["center_crop"], told["std"]) == (0.0, [0.25] * 3)
    given = ["--preprocessing", str(tmp_path / "nowhere.json")]
    assert_refused(capsys, [safetensors_file, *given], 2, "nowhere.json cannot be read: No such")
    assert_refused(
        capsys, [safetensors_file, "--center-crop", "1.5"], 2, "center_crop is 1.5; it must be 0"
    )
    assert_refused(capsys, [safetensors_file, "--std", "0", "1", "1"], 2, "std is [0.0, 1.0, 1.0]")


def test_an_unrelated_file_beside_the_weights_says_nothing(mobilenet, tmp_path):
    save_file(mobilenet, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "convnext"}))
    info = load_checkpoint(tmp_path)[1]
    assert "preprocessing_file" not in info
    assert info["preprocessing"].keys() == {"mean", "std"}


@pytest.mark.parametrize(
    ("folder", "arch", "taken", "twin"),
    [
        ("weights", None, "efficientnet_lite0", "timm_efficientnet_lite0"),
        ("timm--efficientnet_lite0.ra_in1k", None, "timm_efficientnet_lite0", None),
        ("timm--tf_efficientnet_lite0.in1k", None, "efficientnet_lite0", None),
        ("weights", "timm_efficientnet_lite0", "timm_efficientnet_lite0", None),
    ],
)
def test_networks_of_the_same_arrays_are_told_by_name(
    source_tensors, tmp_path, monkeypatch, capsys, folder, arch, taken, twin
):
    monkeypatch.chdir(tmp_path)
    path = Path(folder) / "model.safetensors"
    path.parent.mkdir()
    save_file(source_tensors("efficientnet_lite0", "timm"), path)
    assert main([str(path), "--output", "out", *(["--arch", arch] if arch else [])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{taken} under timm names" in lines[0]
    assert [line for line in lines if "has the same arrays" in line] == (
        [f"{twin} has the same arrays: if it is that, say --arch {twin}"] if twin else []
    )
    preprocessing = load_weights(Path("out"))[1]["preprocessing"]
    assert preprocessing["mean"] == pytest.approx([127 / 255] * 3)


def test_the_longer_of_two_names_is_the_one_that_is_there():
    archs = ("efficientnet_b0", "tf_efficientnet_b0")
    assert named_in("hf:timm/tf_efficientnet_b0.ns_jft_in1k", archs) == "tf_efficientnet_b0"
    assert named_in("hf:timm/efficientnet_b0.ra_in1k", archs) == "efficientnet_b0"
    assert named_in("tf_efficientnet_b1/model.safetensors", archs) is None
