"""Bundles: written from a run, proven in every runtime, and of use without this package."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from PIL import Image

from mlic_jax.data import transforms
from mlic_jax.data.fitting import Fit
from mlic_jax.errors import Failure, UsageError
from mlic_jax.export import bundle, labelling, run_bundle, write
from mlic_jax.export import command as door
from mlic_jax.export.labelling import Source
from mlic_jax.export.predictor import open_bundle
from mlic_jax.files.atomic import locked
from mlic_jax.metrics.operating_point import OperatingPoint
from mlic_jax.models.backbones import vit
from mlic_jax.predict.files import predict_files
from mlic_jax.predict.predictor import Predictor
from mlic_jax.runtime.checkpoint import load_weights, save_weights

ODD = 'a "b" & <c>\n`ж` \\ d'  # a label as people have them
THRESHOLDS = (0.2, 0.5, 0.4, 0.6, 0.3)


@pytest.fixture(scope="module")
def checkpoint(make_config, fresh_run, tmp_path_factory):
    """A model that did no step, with an operating point, that looks at the middle of photos."""
    config = make_config()
    config.data.center_crop, config.data.interpolation = 0.8, "bicubic"
    config.eval.consistent = True
    variables, metadata = fresh_run(config)
    metadata["class_names"] = names = (ODD, *metadata["class_names"][1:])
    metadata["label_tree"] = [[name, names[2]] for name in names[3:]]
    point = OperatingPoint(
        temperature=1.7,
        thresholds=tuple(THRESHOLDS[c % 5] for c in range(len(names))),
        rule="thresholds of a test",
        set_name="tiny_scenes",
        split="val",
        images=9,
        error_before=3.0,
        error_after=2.0,
    )
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    save_weights(path, variables, metadata | {"operating_point": point.to_dict()})
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "scenes"
    write.export(str(checkpoint), out, licence="CC0")
    return out


def changed(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_a_bundle_is_whole(exported, checkpoint):
    description = bundle.read(exported)
    assert description["class_names"] == list(Predictor.from_checkpoint(checkpoint).class_names)
    assert description["input"]["shape"] == ["batch", 64, 64, 3]
    assert description["preprocessing"]["center_crop"] == 0.8
    assert description["operating_point"]["temperature"] == 1.7
    assert len(description["references"]) == 8
    assert description["licence"] == "CC0"
    assert exported.with_name("scenes.zip").is_file()
    card = (exported / "README.md").read_text()
    assert "thresholds of a test" in card and "CC0" in card and "[batch, 64, 64, 3]" in card
    assert r'a "b" \& \<c\> \`ж\` \\ d, ' in card


def test_the_card_names_the_thresholds_of_its_figures(checkpoint, tmp_path):
    """Those of the checkpoint, if it was evaluated with them."""
    run = tmp_path / "run" / "checkpoints"
    source = write.Source(str(shutil.copytree(checkpoint, run / "1")), "float32", None)
    figures = {"mAP": 80.04, "OF1": 70.0, "CF1": 60.0, "threshold": 0.5}
    point = {"thresholds": source.thresholds.tolist(), "figures": {"OF1": 75.0, "CF1": 65.0}}
    description = {
        **{"model": {"name": "", "backbone": ""}, "class_names": [], "formats": [], "outputs": {}},
        **{"licence": "", "written_by": "", "input": {"shape": []}, "data": ""},
        "operating_point": {"temperature": 1.0, "rule": ""},
    }
    for stored, said in (
        ({}, "at a probability of 0.5 OF1 70.0, CF1 60.0"),
        ({"operating_point": point}, "at these thresholds OF1 75.0, CF1 65.0"),
        ({"operating_point": point | {"thresholds": [0.5]}}, "at a probability of 0.5 OF1 70.0"),
    ):
        (run.parent / "metrics_test.json").write_text(json.dumps(figures | stored))
        card = write._card(source, description, str(run / "1"))
        assert f"On `test`: mAP 80.0; {said}" in card


def test_its_checkpoint_proves_it(exported, checkpoint, tmp_path, capsys):
    """The model's own code; and no other model is taken for it."""
    verify = ["verify", str(exported), "--runtime"]
    assert door.main([*verify, "jax", "--checkpoint", str(checkpoint)]) == 0
    assert "jax: probabilities within 0.0e+00, labels the same on 8" in capsys.readouterr().out
    variables, metadata = load_weights(checkpoint)
    other = metadata | {"class_names": metadata["class_names"][::-1]}
    save_weights(tmp_path / "other", variables, other)
    assert door.main([*verify, "jax", "--checkpoint", str(tmp_path / "other")]) == 2
    assert "which has other labels or another size" in capsys.readouterr().err
    for wrong in (["jax"], ["onnxruntime", "--checkpoint", str(checkpoint)]):
        assert door.main([*verify, *wrong]) == 2
        assert "give both, or none" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", bundle.RUNTIMES)
def test_every_runtime_proves_it(exported, runtime, capsys):
    assert door.main(["verify", str(exported), "--runtime", runtime]) == 0
    said = capsys.readouterr().out
    assert f"{runtime}: probabilities within" in said and "labels the same on 8 of 8" in said


def test_openvino_does_not_tell_of_its_use(exported):
    """Its telemetry forks a process, of which Python warns where there are threads."""
    code = (
        "import os, pathlib, sys; from mlic_jax.export import bundle; "
        "os.register_at_fork(before=lambda: print('forked')); path = pathlib.Path(sys.argv[1]); "
        "bundle.open_runtime(path, bundle.read(path), 'openvino'); print('opened')"
    )
    done = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("opened\n", "")


def test_what_it_says_is_what_prediction_says(exported, checkpoint):
    """Temperature, thresholds, mirrored views, the central crop and where regions lie in photos."""
    description = bundle.read(exported)
    found = run_bundle.Bundle(exported)
    for name in description["references"]:
        said = found(exported / name)
        expected = Predictor.from_checkpoint(checkpoint)(exported / name)
        assert said["labels"] == list(expected.labels)
        scores = np.array([*said["scores"].values()])
        np.testing.assert_allclose(scores, [*expected.scores.values()], atol=1e-4)
        assert scores[2] == scores[2:].max()  # the label tree
        boxes = [list(region.box) for region in expected.regions]
        assert [region["box"] for region in said["regions"]] == boxes


def test_the_program_in_it_needs_neither_jax_nor_this_package(exported, tmp_path):
    """In an environment that has neither: only what it asks for is linked into it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    (site,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    packages = Path(sysconfig.get_paths()["purelib"])
    for name in (
        "numpy",
        "numpy.libs",
        "PIL",
        "pillow.libs",
        "onnxruntime",
        "flatbuffers",
        "google",
    ):
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)
    python = tmp_path / "bare" / "bin" / "python"
    for module in ("jax", "mlic_jax"):
        assert subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode
    (tmp_path / "torn.jpg").write_bytes(b"no photo")
    photo = exported / "references" / Path(bundle.read(exported)["references"][0]).name
    done = subprocess.run(
        [python, exported / "run.py", photo, tmp_path / "torn.jpg", "--top", "2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1, done.stderr
    assert len(first["labels"]) == 2 and len(first["regions"]) == 2 and ODD in first["scores"]
    assert "cannot identify image file" in second["error"]
    assert len((exported / "run.py").read_text().splitlines()) < 150


SIZES = [(90, 60), (60, 90), (640, 480), (7, 900), (64, 64)]


@pytest.mark.parametrize("interpolation", transforms.INTERPOLATIONS)
@pytest.mark.parametrize("center_crop", [0.0, 0.875])
def test_the_program_sees_what_prediction_sees(interpolation, center_crop):
    rng, fit = np.random.default_rng(0), Fit(interpolation, center_crop)
    how = {"size": 64, "grid": 48, "interpolation": interpolation, "center_crop": center_crop}
    for width, height in SIZES:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        np.testing.assert_array_equal(run_bundle.square(image, how), fit.square(image, 64))
        box = np.array([3, 10, 40, 48])
        expected = fit.frame(height, width, 64).box_in_photo(box, 48)
        assert run_bundle.box_in_photo(box, width, height, how) == list(expected)


def photos_of_all_kinds():
    rng = np.random.default_rng(0)
    for turn in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, "6"):
        turned = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
        turned.getexif()[0x0112] = turn
        yield turned, None
    damaged = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    damaged.info["exif"] = b"Exif\0\0no tags"
    yield damaged, None
    palette = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).quantize(16)
    palette.info["transparency"] = 0
    yield palette, None
    yield Image.fromarray(rng.integers(0, 4096, (9, 7)).astype(np.uint16)), (0, 4095)
    yield Image.fromarray(rng.normal(size=(9, 7)).astype(np.float32)), (-1.0, 2.0)
    yield Image.fromarray(rng.integers(0, 256, (9, 7), np.uint8)), None


def test_the_program_decodes_as_prediction_does():
    for image, value_range in photos_of_all_kinds():
        expected = transforms.to_rgb(image.copy(), upright=True, value_range=value_range)
        found = run_bundle.to_rgb(image.copy(), value_range)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    deep = Image.fromarray(np.full((4, 4), 900, np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        run_bundle.to_rgb(deep, None)


# --- prediction with a bundle


def rows_of(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_prediction_with_it_writes_what_its_checkpoint_does(exported, checkpoint, tmp_path):
    images, in_onnxruntime = (
        str(exported / "references"),
        {"open_model": partial(open_bundle, runtime="onnxruntime")},
    )
    ours, others = tmp_path / "ours", tmp_path / "others"
    predict_files(checkpoint, images, ours)
    predict_files(exported, images, others, **in_onnxruntime)
    files = [{path.relative_to(out) for path in out.rglob("*")} for out in (ours, others)]
    assert files[0] == files[1]
    assert len(rows_of(ours)) == 8 and any(row["labels"] for row in rows_of(ours))
    for row, expected in zip(rows_of(others), rows_of(ours), strict=True):
        assert row["labels"] == expected["labels"]
        assert row["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        for region, of in zip(row["regions"], expected["regions"], strict=True):
            assert (region["class"], region["box"]) == (of["class"], of["box"])
            for look in ("global", "local"):
                assert region[look] == pytest.approx(of[look], abs=1e-5)
    assert "mcar on resnet10, in onnxruntime" in (others / "index.html").read_text()
    written = (others / "predictions.jsonl").read_bytes()
    predict_files(exported, images, others, resume=True, **in_onnxruntime)
    assert (others / "predictions.jsonl").read_bytes() == written
    with pytest.raises(UsageError, match="begun with another checkpoint"):
        predict_files(exported, images, ours, resume=True, **in_onnxruntime)


def test_what_no_bundle_can_be_asked_for(exported, checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r"is no bundle: .* --mode export writes one"):
        open_bundle(checkpoint, "onnxruntime")
    with pytest.raises(UsageError, match="--flip is for a checkpoint: a bundle looks as it was"):
        open_bundle(exported, "onnxruntime", flip=True, scales=None)
    with pytest.raises(UsageError, match="it is a bundle, for `mlic bundle`, or for `mlic predic"):
        Predictor.from_checkpoint(exported)
    copy = changed(exported, tmp_path)
    description = bundle.read(copy) | {"runtimes": ["onnxruntime"]}
    (copy / bundle.DESCRIPTION).write_text(json.dumps(description))
    bundle.write_hashes(copy)
    with pytest.raises(UsageError, match="is for onnxruntime, and not for openvino"):
        open_bundle(copy, "openvino")


# --- what else can be exported


def test_a_fixed_batch_and_another_size(checkpoint, tmp_path, capsys):
    write.export(str(checkpoint), tmp_path / "b", ("onnx", "onnx"), size=96, batch=3)
    assert capsys.readouterr().out.count("writing") == 1
    description = bundle.read(tmp_path / "b")
    assert description["input"]["shape"] == [3, 96, 96, 3]
    photo = tmp_path / "b" / description["references"][0]
    assert run_bundle.Bundle(tmp_path / "b")(photo)["regions"]
    with pytest.raises(UsageError, match="has no stablehlo, which stablehlo needs; it has onnx"):
        bundle.open_runtime(tmp_path / "b", description, "stablehlo")


def test_regions_of_a_larger_view_lie_where_prediction_has_them(checkpoint, tmp_path):
    """Boxes count in pixels of the plain view, and the input is as large as the largest."""
    write.export(str(checkpoint), tmp_path / "b", ("onnx",), batch=2, scales=(96,))
    description = bundle.read(tmp_path / "b")
    assert description["input"]["shape"] == [2, 96, 96, 3]
    photo = tmp_path / "b" / description["references"][0]
    expected = Predictor.from_checkpoint(checkpoint, scales=(96,))(photo).regions
    found = run_bundle.Bundle(tmp_path / "b")(photo)["regions"]
    assert [region["box"] for region in found] == [list(region.box) for region in expected]


def test_bfloat16_beside_what_a_killed_export_left(checkpoint, tmp_path, capsys):
    left = tmp_path / ".b.partial" / "b"
    left.mkdir(parents=True)
    (left / "foreign").touch()
    write.export(str(checkpoint), tmp_path / "b", ("stablehlo",), precision="bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.zip"]
    assert "run.py" not in bundle.read(tmp_path / "b")  # it needs ONNX
    assert not (tmp_path / "b" / "run.py").exists()
    assert "run.py" not in (tmp_path / "b" / "README.md").read_text()
    assert door.main(["run", str(tmp_path / "b"), "photo.jpg"]) == 2
    assert "has no onnx, which run needs; it has stablehlo" in capsys.readouterr().err
    exported = jax.export.deserialize(bytearray((tmp_path / "b" / "model.stablehlo").read_bytes()))
    assert "bf16" in exported.mlir_module() and exported.platforms == ("cpu", "cuda", "tpu")


def test_int8_costs_what_it_says(checkpoint, tmp_path, capsys):
    options = {"formats": ("onnx",), "precision": "int8", "allow": True}
    write.export(str(checkpoint), tmp_path / "b", **options)
    description = bundle.read(tmp_path / "b")
    cost = description["int8"]
    assert f"int8: mAP {cost['mAP_int8']:.2f} on val" in capsys.readouterr().out
    kinds = {node.op_type for node in onnx.load(tmp_path / "b" / "model.onnx").graph.node}
    assert "QuantizeLinear" in kinds


def test_int8_that_costs_too_much_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "MOST_LOSS", -101.0)
    with pytest.raises(Failure, match=r"int8 costs .* points of mAP on val.*--allow"):
        write.export(str(checkpoint), tmp_path / "b", ("onnx",), precision="int8")
    assert not list(tmp_path.iterdir())


def test_convolutions_are_those_of_the_platform_that_it_is_lowered_for(checkpoint):
    """On a CPU ours are of other formulations, which no accelerator should get."""
    source = Source(str(checkpoint), "float32", None)
    example = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    counts = {}
    for platform in ("cpu", "cuda", "tpu"):
        exported = jax.export.export(jax.jit(source.labelling), platforms=(platform,))(example)
        counts[platform] = exported.mlir_module().count("stablehlo.convolution")
    assert counts["cuda"] == counts["tpu"] > counts["cpu"]


def test_weights_stay_as_they_are(make_config, fresh_run, tmp_path, monkeypatch):
    """However often a model is traced; a ViT adds a position to its class token."""
    tiny = vit.SIZES["vit_tiny_patch16"]._replace(depth=4, features=8, heads=2)
    monkeypatch.setitem(vit.SIZES, "vit_tiny_patch16", tiny)
    config = make_config()
    config.model.backbone, config.model.width = "vit_tiny_patch16", 1.0
    variables, metadata = fresh_run(config)
    save_weights(tmp_path / "model", variables, metadata)
    source = Source(str(tmp_path / "model"), "float32", None)
    jax.eval_shape(source.labelling, labelling.example(source, None))
    jax.tree.map(np.testing.assert_array_equal, source.variables, variables)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ()}, "--formats names none; known are stablehlo, onnx"),
        ({"formats": ("onx",)}, "--formats is 'onx'; known are stablehlo, onnx, web; did you mean"),
        ({"precision": "float8"}, "--precision is 'float8'; known are"),
        ({"precision": "bfloat16"}, "bfloat16 is for stablehlo"),
        ({"batch": 0}, "--batch is 0; it must be positive"),
        ({"size": 65}, "65"),
        ({"size": 1_000_000}, "--size is 1000000; it must be at most 8192 pixels"),
        ({"images": "nowhere"}, "nowhere"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(checkpoint, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        write.export(str(checkpoint), tmp_path / "b", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["", "..", "/"])
def test_folders_that_are_none_to_write(checkpoint, out):
    with pytest.raises(UsageError, match="must name a folder that is not there"):
        write.export(str(checkpoint), Path(out))


def test_two_exports_at_once(checkpoint, tmp_path):
    other = tmp_path / ".b.partial"
    other.mkdir()
    with locked(other), pytest.raises(UsageError, match="another process is writing"):
        write.export(str(checkpoint), tmp_path / "b")
    assert other.is_dir()


def test_a_model_that_no_file_holds(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "LARGEST", 1000)
    with pytest.raises(Failure, match="GB of parameters, and a file of StableHLO or ONNX holds"):
        write.export(str(checkpoint), tmp_path / "b")


def test_a_full_disk_leaves_nothing(checkpoint, exported, tmp_path, files_of_at_most):
    """Not even an archive that was cut short; it is larger than all other files."""
    size = exported.with_name("scenes.zip").stat().st_size
    assert size * 0.9 > max(path.stat().st_size for path in exported.iterdir())
    with files_of_at_most(int(size * 0.9)), pytest.raises(OSError, match="too large"):
        write.export(str(checkpoint), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_reference_photo_that_is_none(checkpoint, tmp_path):
    """Of a converted model too, which names no data."""
    variables, metadata = load_weights(checkpoint)
    metadata["config"]["data"].update(source="", name="")
    save_weights(tmp_path.parent / f"{tmp_path.name}-converted", variables, metadata)
    checkpoint = tmp_path.parent / f"{tmp_path.name}-converted"
    (tmp_path / "torn.jpg").write_bytes(b"no photo")
    with pytest.raises(Failure, match=r"torn\.jpg: cannot decode the image .*not of a format"):
        write.export(str(checkpoint), tmp_path / "b", images=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["torn.jpg"]


def test_nothing_is_written_over(checkpoint, tmp_path):
    (tmp_path / "b.zip").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"b\.zip is in the way: give another --out"):
        write.export(str(checkpoint), tmp_path / "b")


def test_a_runtime_that_does_not_agree_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(write.TOLERANCE, "scores", -1.0)
    with pytest.raises(Failure, match=r"stablehlo differs by 0 in .* nothing was written"):
        write.export(str(checkpoint), tmp_path / "b", ("stablehlo",))
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_as_they_were(exported, tmp_path, capsys):
    copy = changed(exported, tmp_path)
    (copy / "more.txt").write_text("foreign")
    (copy / "README.md").write_text("changed")
    (copy / "run.py").unlink()
    assert door.main(["verify", str(copy)]) == 1
    said = capsys.readouterr().err
    for problem in ("run.py is missing", "more.txt is none of its files", "README.md was changed"):
        assert problem in said
    assert len(said.splitlines()) == 1


def test_links_and_files_that_hide(exported, tmp_path, capsys):
    copy = changed(exported, tmp_path)
    (copy / "references" / "__pycache__").mkdir()
    (copy / "references" / "__pycache__" / "run.pyc").touch()
    (copy / "model.onnx").rename(tmp_path / "model.onnx")
    (copy / "model.onnx").symlink_to(tmp_path / "model.onnx")
    os.mkfifo(copy / "pipe")
    hashes = json.loads((copy / bundle.HASHES).read_text()) | {"README.md": "", "../../x": ""}
    (copy / bundle.HASHES).write_text(json.dumps(hashes))
    assert door.main(["verify", str(copy)]) == 1
    said = capsys.readouterr().err
    for problem in (
        *("../../x is missing", "references/__pycache__/run.pyc is none of its files"),
        *("model.onnx is a link or no file", "pipe is none of its files", "README.md was changed"),
    ):
        assert problem in said
    assert len(said.splitlines()) == 1


CHANGES = [
    {"class_names": 3},
    {"class_names": []},
    {"class_names": [{}]},
    {"input": {"name": "pixels", "shape": [0, 64, 64, 3]}},
    {"input": None},
    {"model": {}},
    {"operating_point": {"temperature": 1, "rule": "", "thresholds": {}}},
    {"preprocessing": {"size": "64"}},
    {"formats": ["onnx"]},
    {"formats": {"onnx": "../model.onnx"}},
    {"formats": {"onnx": "/etc/passwd"}},
    {"formats": {"onnx": {}}},
    {"formats": {"pickle": "model.onnx"}},
    {"references": []},
    {"references": ["../../x.jpg"]},
    {"references": "references"},
    {"tolerance": {"scores": "many"}},
]


def test_descriptions_that_no_export_writes(exported, tmp_path, capsys):
    copy = changed(exported, tmp_path)
    description = json.loads((copy / bundle.DESCRIPTION).read_text())
    texts = [json.dumps(description | change) for change in CHANGES]
    for text in (*texts, "[]", "{", "[" * 100_000, '{"version": 3}', ""):
        (copy / bundle.DESCRIPTION).write_text(text)
        bundle.write_hashes(copy)
        assert door.main(["verify", str(copy)]) == 1, text
        said = capsys.readouterr().err
        assert said.startswith("error: ") and len(said.splitlines()) == 1, text
        assert "which should not be" not in said, text
    for text in ("[]", "3", '{"model.json": {}}'):
        (copy / bundle.HASHES).write_text(text)
        assert door.main(["verify", str(copy)]) == 1, text
        assert "which should not be" not in capsys.readouterr().err, text


@pytest.mark.parametrize("runtime", bundle.RUNTIMES)
def test_models_that_are_none(exported, tmp_path, runtime, capsys):
    copy = changed(exported, tmp_path)
    for content in (b"", b"no model", b"\0" * 1000):
        for name in bundle.FORMATS.values():
            (copy / name).write_bytes(content)
        bundle.write_hashes(copy)
        assert door.main(["verify", str(copy), "--runtime", runtime]) == 1
        said = capsys.readouterr().err
        assert f"error: {runtime} does not " in said and len(said.splitlines()) == 1


def test_references_that_are_none(exported, tmp_path, capsys):
    copy = changed(exported, tmp_path)
    said = json.loads((copy / bundle.REFERENCES).read_text())
    for changed_to, message in (
        (said | {"probabilities": said["probabilities"][:1]}, "of shape"),
        (said | {"probabilities": [[0.5], []]}, "not as --mode export writes it"),
        (said | {"present": "yes"}, "not as --mode export writes it"),
        ({"present": said["present"]}, "not as --mode export writes it"),
        ([], "not as --mode export writes it"),
    ):
        (copy / bundle.REFERENCES).write_text(json.dumps(changed_to))
        bundle.write_hashes(copy)
        assert door.main(["verify", str(copy), "--runtime", "onnxruntime"]) == 1
        assert message in capsys.readouterr().err
    (copy / bundle.read(copy)["references"][2]).write_bytes(b"no photo")
    bundle.write_hashes(copy)
    assert door.main(["verify", str(copy), "--runtime", "onnxruntime"]) == 1
    assert "references/2." in (error := capsys.readouterr().err) and "cannot decode" in error


def test_another_model_is_not_proven(exported, tmp_path, capsys):
    copy = changed(exported, tmp_path)
    written = json.loads((copy / bundle.REFERENCES).read_text())
    written["probabilities"][3][2] += 0.01
    (copy / bundle.REFERENCES).write_text(json.dumps(written))
    bundle.write_hashes(copy)
    assert door.main(["verify", str(copy), "--runtime", "onnxruntime"]) == 1
    assert (
        "onnxruntime differs by 0.01 in a probability; 0.001 is allowed" in capsys.readouterr().err
    )


def test_folders_and_runtimes_that_are_not_known(exported, tmp_path, capsys):
    assert door.main(["verify", str(tmp_path)]) == 2
    assert "is no bundle: it has no hashes.json" in capsys.readouterr().err
    assert door.main(["verify", f"{exported}.zip"]) == 2
    assert "scenes.zip is a file: unpack it, and give the folder" in capsys.readouterr().err
    assert door.main(["verify", str(exported), "--runtime", "onnx"]) == 2
    assert "known are jax, stablehlo, onnxruntime, openvino" in capsys.readouterr().err


def test_photos_are_labelled_from_the_command_line(exported, capsys):
    photo = exported / bundle.read(exported)["references"][0]
    assert door.main(["run", str(exported), str(photo), "--top", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["labels"]) == 1
    assert door.main(["run", str(exported), str(photo), "--top", "0"]) == 2
    assert "--top is 0; it must be positive" in capsys.readouterr().err
    assert door.main(["run", str(exported), str(exported / "model.json")]) == 1
    assert "1 of 1 photos could not be read" in capsys.readouterr().err
