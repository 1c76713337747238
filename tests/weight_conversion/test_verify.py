"""The same checkpoint in both frameworks: what passes, what must not, and what is written of it."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image
from safetensors.numpy import save_file

from mlic_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config
from mlic_jax.data import transforms
from mlic_jax.data.fitting import SQUASHED, Fit
from mlic_jax.data.records import open_split, prepare
from mlic_jax.data.scenes import CLASS_NAMES, Scenes
from mlic_jax.data.sources.folders import FolderSet
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import create_model
from mlic_jax.models.ops.regions import normalise_profile, profiles
from mlic_jax.runtime.checkpoint import save_weights
from weight_conversion import sides
from weight_conversion.verify import command, differences
from weight_conversion.verify.page import CHART_DECADES, place_on_chart, write_page
from weight_conversion.verify.photos import Photos, in_order_of, open_photos
from weight_conversion.verify.training import (
    _moved_apart,
    _squares,
    compare_training,
    training_bound,
)

pytestmark = pytest.mark.torch
SIZE, COUNT = 64, 10
# Each of 20 layers adds the rounding of a sum of up to 4608 products in either framework, which, as
# its errors have both signs, is that of one times the root of their number; in both 20^(1/2)
# 4608^(1/2) epsilon of the largest value.
ROUNDED = 4e-5


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory):
    scenes = Scenes(name="verified", sizes={"test": COUNT, "other": 2})
    return prepare(scenes, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Two levels, two formats, and a file that is no photo."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "more/b.png", "more/c.JPG"):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(20, axis=0).repeat(20, axis=1)).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def trunk_file(source_tensors, tmp_path_factory):
    """A seeded ResNet-18 whose statistics keep its activations in range, without classifier."""
    tensors = source_tensors("resnet18")
    path = tmp_path_factory.mktemp("trunk") / "resnet18.safetensors"
    save_file({n: t for n, t in tensors.items() if not n.startswith("fc.")}, path)
    return path


def info(name: str, class_names=CLASS_NAMES, **model) -> dict:
    """The metadata of a run."""
    config = default_config()
    config.model.update(name=name, backbone="resnet18", **model)
    preprocessing = {"image_size": SIZE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {
        "config": json.loads(config.to_json()),
        "class_names": list(class_names),
        "preprocessing": preprocessing,
    }


@pytest.fixture(scope="module")
def checkpoint(torch, trunk_file, prepared_set, tmp_path_factory):
    """An MCAR with logits of a trained network's spread, whatever that of its features.

    At the threshold 1/2 a straight ramp between two cells of a small map can cross on a pixel.
    At 0.47 no profile of these photos comes near it.
    """
    read = sides.read_checkpoint(trunk_file, SIZE)
    photos = open_photos(prepared_set, None, None)
    images = read.normalise(photos.pixels(range(COUNT), SIZE))
    maps = sides.TorchSide(read).run(images)["stage4"]
    pooled = maps.mean(axis=(1, 2))
    kernel = np.random.default_rng(6).normal(size=(512, len(CLASS_NAMES))).astype(np.float32)
    kernel /= np.std((pooled - pooled.mean(axis=0)) @ kernel)
    convclass = {"kernel": kernel, "bias": -pooled.mean(axis=0) @ kernel - 1}
    likely = np.argsort(-pooled @ kernel - convclass["bias"], axis=1)[:, :2]
    scores = 1 / (1 + np.exp(-np.moveaxis(maps @ kernel + convclass["bias"], -1, 1)))
    chosen = np.take_along_axis(scores, likely[:, :, None, None], axis=1)
    of_chosen = profiles(jnp.asarray(chosen), (SIZE, SIZE))
    edges = [normalise_profile(profile) - 0.47 for profile in of_chosen]
    assert min(np.abs(edge).min() for edge in edges) > 1e-5  # where no rounding moves a region
    variables = read.variables | {"params": {**read.variables["params"], "convclass": convclass}}
    path = tmp_path_factory.mktemp("mcar") / "checkpoint"
    save_weights(path, variables, info("mcar", top_n=2, threshold=0.47))
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = command.main(list(map(str, arguments)))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_an_mcar_checkpoint_agrees(torch, checkpoint, prepared_set, tmp_path, capsys):
    arguments = ("--checkpoint", checkpoint, "--data", prepared_set, "--batch-size", 4)
    code, printed, errors = run(capsys, *arguments, "--out", tmp_path / "out")
    assert code == 0, printed + errors
    result = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert result["passed"] and all(check["passed"] for check in result["checks"])
    stages = ["stage1", "stage2", "stage3", "stage4"]
    assert list(result["errors"]) == [*stages, "global_logits", "local_logits", "logits"]
    assert result["errors"]["stage2"]["shape"] == [4, SIZE // 8, SIZE // 8, 128]
    # Two frameworks, so some rounding; and no more than that.
    assert all(0 < error["relative"] < ROUNDED for error in result["errors"].values())
    assert result["boxes"] == {
        "count": 2 * COUNT,
        "identical": 1.0,
        "within_one_pixel": 1.0,
        "images_with_identical_boxes": COUNT,
    }
    assert 0 < result["scores"]["scores"] < ROUNDED
    ap = result["average_precision"]
    assert 0 < ap["torch"] < 100 and ap["difference"] == 0
    labels = open_photos(prepared_set, None, None).labels
    present = {
        name for name, some in zip(CLASS_NAMES, (labels > 0).any(axis=0), strict=True) if some
    }
    assert {row["name"] for row in ap["classes"]} == present
    assert "pass  error of the scores" in printed and "100.00% of 20 identical" in printed

    page = (tmp_path / "out" / "verify.html").read_text()
    assert "within every bound" in page and "blue disc" in page and "stage4" in page
    for loads in ("http", "src=", "<link", "@import", "<script"):
        assert loads not in page


def with_wrong_weight(checkpoint: sides.Checkpoint) -> sides.TorchSide:
    """The reference with one batch normalisation a hundredth too strong."""
    variables = jax.tree.map(np.array, checkpoint.variables)
    variables["params"]["features"]["layer3_0"]["conv2"]["scale"] *= 1.01
    fields = {**vars(checkpoint), "variables": variables}
    return sides.TorchSide(sides.Checkpoint(**fields))


def test_a_wrong_weight_is_found(
    torch, checkpoint, prepared_set, trunk_file, photo_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(differences, "TorchSide", with_wrong_weight)
    arguments = ("--data", prepared_set, "--images", 4, "--out", tmp_path / "out")
    code, printed, errors = run(capsys, "--checkpoint", checkpoint, *arguments)
    assert code == 1
    assert errors.splitlines()[-1].startswith("error: JAX and PyTorch disagree: error of the sc")
    assert "FAIL  error of the scores" in printed
    result = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert not result["passed"]
    assert result["errors"]["stage2"]["relative"] < ROUNDED
    assert result["errors"]["stage3"]["relative"] > 10 * ROUNDED
    assert "The two differ" in (tmp_path / "out" / "verify.html").read_text()

    arguments = ("--data", photo_folder, "--image-size", 32, "--out", tmp_path / "trunk")
    code, _, errors = run(capsys, "--checkpoint", trunk_file, *arguments)
    assert code == 1
    said = errors.splitlines()[-1]
    assert said == "error: JAX and PyTorch disagree: relative error of the stages"


def test_a_trunk_on_a_folder_of_photos(torch, trunk_file, photo_folder, tmp_path, capsys):
    arguments = ("--checkpoint", trunk_file, "--data", photo_folder, "--image-size", 32)
    code, printed, errors = run(capsys, *arguments, "--batch-size", 2, "--out", tmp_path / "out")
    assert code == 0, printed + errors
    result = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert list(result["errors"]) == ["stage1", "stage2", "stage3", "stage4"]
    assert all(0 < error["relative"] < ROUNDED for error in result["errors"].values())
    assert [check["name"] for check in result["checks"]] == ["relative error of the stages"]
    assert result["photos"] == {"name": photo_folder.name, "count": 3, "size": 32}
    assert not result.keys() & {"scores", "boxes", "average_precision", "training"}


@pytest.fixture(scope="module")
def msrn_checkpoint(tmp_path_factory):
    """Five classes in two groups, weights drawn so that activations stay in range."""
    classes = 5
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(classes, 300)).astype(np.float32)
    counts = rng.integers(0, 10, (classes, classes)).astype(np.float32)
    given = {"counts": counts, "class_counts": np.full(classes, 12, np.float32)}
    # P[j, i] >= 0.4 lets label i attend to label j.
    mask = (counts / 12 >= 0.4).T | np.eye(classes, dtype=bool)
    metadata = info("msrn", "abcde", pool_ratio=0.4)
    config = default_config()
    config.model.update(metadata["config"]["model"])
    model = create_model(config.model, classes, word_vectors=vectors, attention_mask=mask)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("kernel", "attention"):
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return spread * rng.standard_normal(leaf.shape, np.float32)
        return rng.uniform(0.5, 0.9, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    variables = {**variables, "label_inputs": {"word_vectors": vectors, **given}}
    path = tmp_path_factory.mktemp("msrn") / "checkpoint"
    save_weights(path, variables, metadata)
    return path


def test_an_msrn_checkpoint_agrees(torch, msrn_checkpoint, photo_folder, tmp_path, capsys):
    arguments = ("--checkpoint", msrn_checkpoint, "--data", photo_folder)
    code, printed, errors = run(capsys, *arguments, "--out", tmp_path / "out")
    assert code == 0, printed + errors
    result = json.loads((tmp_path / "out" / "verify.json").read_text())
    stages = ["stage1", "stage2", "stage3", "stage4"]
    assert list(result["errors"]) == [*stages, "group_assignment", "group_loss", "logits"]
    assert all(error["relative"] < ROUNDED for error in result["errors"].values())
    assert result["errors"]["group_assignment"]["shape"] == [5, 2]
    assert result["groups"] == {"labels_in_the_same_group": 1.0}
    assert [check["name"] for check in result["checks"]] == ["error of the scores"]


@pytest.mark.slow
def test_training_agrees_and_a_wrong_momentum_does_not(
    torch, checkpoint, prepared_set, tmp_path, capsys
):
    arguments = ("--checkpoint", checkpoint, "--data", prepared_set, "--batch-size", 4)
    arguments += ("--images", 6, "--train-steps", 3, "--out", tmp_path / "out")
    code, printed, errors = run(capsys, *arguments)
    assert code == 0, printed + errors
    training = json.loads((tmp_path / "out" / "verify.json").read_text())["training"]
    losses = [step["jax"] for step in training["steps"]]
    assert len(set(losses)) == 3
    assert training["boxes"]["count"] == 3 * 4 * 2
    assert training["groups"].keys() == {"head", "statistics", "trunk"}
    assert all(value > 0 for value in training["groups"].values())

    read = sides.read_checkpoint(checkpoint)
    photos = open_photos(prepared_set, None, 6)
    batch = photos.pixels(range(4), SIZE), photos.labels[:4]
    options = sides.training_options(read)
    right = sides.TorchSide(read).train([batch] * 2, options, [])
    optim = dataclasses.replace(options.optim, momentum=0.5)
    other = dataclasses.replace(options, optim=optim)
    wrong = sides.TorchSide(read).train([batch] * 2, other, [])
    before = sides.torch_state(read.variables, read.model)
    name = "convclass.weight"
    squares = _squares(wrong.state[name], right.state[name], before[name])
    assert _moved_apart([squares]) > 5 * training_bound("head", 2)


@pytest.mark.slow
def test_the_training_of_msrn_agrees(torch, msrn_checkpoint, prepared_set):
    read = sides.read_checkpoint(msrn_checkpoint)
    scenes = open_photos(prepared_set, None, 6)
    labels = np.random.default_rng(0).choice(np.array([-1, 0, 1], np.int8), (6, 5))
    training = compare_training(read, scenes, labels, steps=2, batch_size=4)
    assert training["boxes"] is None
    assert len({step["jax"] for step in training["steps"]}) == 2
    error = {"shape": [1], "absolute": 0.0, "relative": 0.0}
    found = command.checks({"errors": {"stage1": error}, "training": training})
    assert len(found) == 5 and all(check["passed"] for check in found), found


@pytest.mark.slow
def test_mobilenet_agrees_on_the_photos(torch, source_tensors, shared, tmp_path, capsys):
    tensors = source_tensors("mobilenet_v2", "d-li14")
    save_file(tensors, tmp_path / "mobilenet.safetensors")
    arguments = ("--checkpoint", tmp_path / "mobilenet.safetensors", "--data", shared / "images")
    code, printed, errors = run(capsys, *arguments, "--image-size", 128, "--out", tmp_path / "out")
    assert code == 0, printed + errors
    result = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert list(result["errors"]) == [f"stage{k}" for k in range(1, 6)]
    assert result["photos"]["count"] == len(list((shared / "images").rglob("*.jpg")))


# --- what is measured


def test_boxes_are_compared_by_class():
    ours = {"box_classes": np.array([[3, 5], [1, 2], [0, 4]])}
    theirs = {"box_classes": np.array([[5, 3], [1, 2], [0, 9]])}
    a, b = [0, 0, 8, 8], [4, 4, 20, 20]
    ours["boxes"] = np.array([[a, b], [a, b], [a, b]])
    theirs["boxes"] = np.array([[b, a], [a, [4, 5, 19, 20]], [[0, 0, 8, 10], b]])
    distances = differences.box_distances(ours, theirs)
    np.testing.assert_array_equal(distances, [[0, 0], [0, 1], [2, np.inf]])
    assert differences.compare_boxes(distances) == {
        "count": 6,
        "identical": 0.5,
        "within_one_pixel": pytest.approx(4 / 6),
        "images_with_identical_boxes": 1,
    }


def test_a_score_counts_where_the_boxes_agree():
    logits = np.zeros((2, 3), np.float32)
    moved = logits.copy()
    moved[1, 0] = 2
    same_box, other_box = [[[0, 0, 8, 8]]], [[[0, 0, 8, 9]]]
    outputs = {"logits": logits, "global_logits": logits, "local_logits": logits}
    ours = outputs | {"boxes": np.array(same_box * 2), "box_classes": np.zeros((2, 1), int)}
    theirs = {**ours, "logits": moved, "boxes": np.array(same_box + other_box)}
    result = differences.compare_outputs(ours, theirs)
    assert result["scores"]["scores"] == pytest.approx(1 / (1 + np.exp(-2)) - 0.5)
    assert result["scores_where_boxes_agree"]["scores"] == 0
    assert result["scores_where_boxes_agree"]["images"] == 1
    failed = [c["name"] for c in command.checks({**result, "errors": {}}) if not c["passed"]]
    assert failed == ["share of boxes that differ"]
    theirs["boxes"] = ours["boxes"]
    failed = command.checks({**differences.compare_outputs(ours, theirs), "errors": {}})
    assert [c["name"] for c in failed if not c["passed"]] == ["error of the scores"]


def test_every_position_is_in_a_batch_of_one_size():
    assert [rows.tolist() for rows in differences.batches_of(5, 2)] == [[0, 1], [2, 3], [4, 0]]
    assert [rows.tolist() for rows in differences.batches_of(2, 8)] == [[0, 1]]


def test_average_precision_of_both_sides():
    labels = np.array([[1, -1, -1], [-1, 1, -1], [1, 0, -1]], np.int8)
    theirs = np.array([[3, 0, 0], [2, 1, 0], [1, 5, 0]], np.float32)
    ours = theirs.copy()
    ours[1, 0] = 0
    result = differences.compare_average_precision(ours, theirs, labels, ["a", "b", "c"])
    first, second = result["classes"]
    assert (first["name"], first["positives"], first["jax"]) == ("a", 2, 100)
    assert first["torch"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert (second["name"], second["difference"]) == ("b", 0)
    assert result["difference"] == pytest.approx(first["difference"] / 2)
    assert differences.compare_average_precision(ours, theirs, -np.abs(labels), "abc") is None


def test_an_error_without_scale_is_an_error():
    zeros, ones = np.zeros(2), np.ones(2)
    assert differences.Difference().add("x", zeros, zeros).as_dict()["relative"] == 0
    assert differences.Difference().add("x", ones, zeros).as_dict()["relative"] > 1e30
    with pytest.raises(Failure, match="stage9 is not finite"):
        differences.Difference().add("stage9", np.array([1, np.inf]), ones)


def test_photos_are_decoded_as_in_training(tmp_path, make_config, fresh_run):
    folder = tmp_path / "own" / "test" / "class"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    wide = np.arange(600, dtype=np.uint8).reshape(10, 20, 3)
    Image.fromarray(wide).save(folder / "turned.png", exif=exif)
    Image.fromarray(np.array([[0, 1000, 4095]], np.uint16)).save(folder / "deep.png")
    own = prepare(FolderSet("own", tmp_path / "own", ("test",)), tmp_path / "set", upright=True)
    split = open_split(own, "test")
    seen = [transforms.resize(split.decode(split[i]), 32) for i in range(2)]
    np.testing.assert_array_equal(open_photos(own, None, None).pixels([0, 1], 32), seen)

    variables, metadata = fresh_run(make_config())
    metadata["config"]["data"]["upright"] = True
    metadata["preprocessing"] |= {"range": [0, 4095], "interpolation": "bicubic"}
    metadata["preprocessing"]["center_crop"] = 0.8
    save_weights(tmp_path / "checkpoint", variables, metadata)
    read = sides.read_checkpoint(tmp_path / "checkpoint")
    photos = open_photos(folder, None, None, read.upright, read.value_range)
    np.testing.assert_array_equal(photos.pixels([0, 1], 32), seen)
    assert read.fit == Fit("bicubic", 0.8)
    cropped = [read.fit.square(split.decode(split[i]), 32) for i in range(2)]
    np.testing.assert_array_equal(photos.pixels([0, 1], 32, read.fit), cropped)


def test_a_checkpoint_of_before_there_was_a_choice_squashes_photos(checkpoint):
    assert sides.read_checkpoint(checkpoint).fit == SQUASHED


def test_labels_follow_the_order_of_the_checkpoint():
    labels = np.array([[1, -1, 0]], np.int8)
    photos = Photos("set", ["i"], lambda i: b"", labels, ("a", "b", "c"))
    np.testing.assert_array_equal(in_order_of(["c", "a", "b"], photos), [[0, 1, -1]])
    assert in_order_of(["0", "1", "2"], photos) is labels
    assert in_order_of([], photos) is None
    with pytest.raises(UsageError, match=r"^set is .*: it has c$"):
        in_order_of(["a", "b"], photos)


def test_the_page_escapes_names(tmp_path):
    photos = {"name": "<i>", "count": 1, "size": 32}
    error = {"shape": [1, 2], "absolute": 0.0, "relative": 0.0}
    result = {"checkpoint": "<b>&", "model": {}, "photos": photos, "versions": {}, "passed": True}
    write_page(tmp_path / "page.html", {**result, "errors": {"<u>": error}, "checks": []})
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;&amp;" in page and "&lt;i&gt;" in page and "&lt;u&gt;" in page
    assert not {"<b>", "<i>", "<u>"} & set(page.split())


def test_the_chart_is_logarithmic():
    low, high = CHART_DECADES
    assert place_on_chart(0) == place_on_chart(10.0 ** (low - 3)) == 0
    assert place_on_chart(10.0 ** ((low + high) / 2)) == pytest.approx(50)
    assert place_on_chart(1e9) == 100


def test_rounding_may_grow_with_every_step_but_not_without_end():
    bounds = [training_bound("head", steps) for steps in (1, 2, 3, 4, 400)]
    assert bounds == pytest.approx([1e-4, 1e-3, 1e-2, 0.05, 0.05])
    steps = [{"jax": 1.0, "torch": 1.0, "relative": error} for error in (9e-5, 1.1e-3, 0)]
    groups = {"head": 0.011, "statistics": 0.009, "trunk": 0.19}
    error = {"shape": [1], "absolute": 0.0, "relative": 0.0}
    training = {"steps": steps, "groups": groups}
    found = command.checks({"errors": {"stage1": error}, "training": training})
    failed = [check["name"] for check in found if not check["passed"]]
    assert failed == ["relative error of the loss of step 2", "training, head"]


# --- wrong requests


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--checkpoint": "none.pth"}, "none.pth: no such file"),
        ({"--checkpoint": "."}, "no checkpoint at"),
        ({"--data": "nowhere"}, "nowhere: no such folder"),
        ({"--data": "empty"}, "neither a prepared set nor photos"),
        ({"--split": "test"}, "--split is for a prepared set"),
        ({"--images": "0"}, "argument --images: invalid positive number value: '0'"),
        ({"--image-size": "65"}, "the image size is 65; it must be a positive multiple of 32"),
        ({"--train-steps": "1"}, "--train-steps needs a whole model and a prepared set"),
        ({"--device": "tpu"}, "unrecognized arguments: --device tpu"),
    ],
)
def test_a_wrong_request_is_one_line(
    torch, trunk_file, photo_folder, tmp_path, capsys, monkeypatch, changes, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    options = {"--checkpoint": trunk_file, "--data": photo_folder} | changes
    code, printed, errors = run(capsys, *(part for option in options.items() for part in option))
    assert code == 2 and words in errors and errors.count("\n") == 1 and not printed
    assert not (tmp_path / "verify").exists()


def test_a_split_that_is_not_there(torch, trunk_file, prepared_set, capsys):
    arguments = ("--checkpoint", trunk_file, "--data", prepared_set, "--split", "val")
    code, _, errors = run(capsys, *arguments)
    assert code == 2 and "no split 'val'" in errors and "test" in errors


@pytest.mark.parametrize(("name", "backbone"), [("mcar", "resnet10"), ("csra", "resnet18")])
def test_a_model_without_reference(
    torch, checkpoint, photo_folder, tmp_path, capsys, name, backbone
):
    metadata = info(name)
    metadata["config"]["model"]["backbone"] = backbone
    variables, _ = sides.load_weights(checkpoint)
    if name == "csra":
        variables["params"]["head"] = variables["params"].pop("convclass")
    save_weights(tmp_path / "other", variables, metadata)
    code, _, errors = run(capsys, "--checkpoint", tmp_path / "other", "--data", photo_folder)
    assert code == 2 and f"no PyTorch reference of {name} on {backbone}" in errors


def test_without_torch_it_says_what_to_install(trunk_file, photo_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, errors = run(capsys, "--checkpoint", trunk_file, "--data", photo_folder)
    assert code == 2 and "pip install -e '.[torch]'" in errors


def test_a_damaged_photo_is_named(torch, trunk_file, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    arguments = ("--checkpoint", trunk_file, "--data", tmp_path, "--out", tmp_path / "out")
    code, _, errors = run(capsys, *arguments)
    assert code == 1 and "broken.jpg: cannot decode the image" in errors
    assert not (tmp_path / "out").exists()


def test_the_weights_of_a_wrapped_file_are_chosen_and_named(source_tensors, tmp_path):
    tensors = source_tensors("mobilenet_v2")
    wrapped = {f"model.{name}": tensor for name, tensor in tensors.items()}
    wrapped |= {f"model_ema.{name}": np.asarray(2 * tensor) for name, tensor in tensors.items()}
    save_file(wrapped, tmp_path / "x.safetensors")
    stem = tensors["features.0.0.weight"].transpose(2, 3, 1, 0)
    for weights, place, scale in ((None, "model.", 1), ("ema", "model_ema.", 2)):
        read = sides.read_checkpoint(tmp_path / "x.safetensors", SIZE, weights)
        assert read.name == f"x.safetensors, {place}"
        kernel = read.variables["params"]["features"]["stem"]["kernel"]
        np.testing.assert_array_equal(kernel, scale * stem)
    with pytest.raises(UsageError, match="--weights is for files of PyTorch's"):
        sides.read_checkpoint(tmp_path, SIZE, "ema")


def test_the_likeliest_classes_are_those_of_the_classifier(
    torch, source_tensors, photo_folder, tmp_path, capsys
):
    tensors = source_tensors("resnet18")
    tensors["fc.weight"] /= 30  # such scores that several classes have a share
    path, names = tmp_path / "trunk.safetensors", tmp_path / "names.txt"
    save_file(tensors, path)
    names.write_text("".join(f"class {c}\n" for c in range(1000)))
    arguments = ["--checkpoint", path, "--data", photo_folder, "--image-size", SIZE]
    arguments += ["--top", 3, "--names", names, "--out", tmp_path / "out"]
    assert command.main(list(map(str, arguments))) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "out/verify.json").read_text())["top"]
    assert [photo["id"] for photo in result] == ["a.jpg", "more/b.png", "more/c.JPG"]

    checkpoint = sides.read_checkpoint(path, SIZE)
    photos = open_photos(photo_folder, None, None)
    images = checkpoint.normalise(photos.pixels([1], SIZE))
    last = sides.TorchSide(checkpoint).run(images)["stage4"].mean(axis=(1, 2))
    logits = torch.from_numpy(last @ tensors["fc.weight"].T + tensors["fc.bias"])
    scores, indices = torch.softmax(logits, dim=1).topk(3)
    rows = result[1]["classes"]
    assert [row["index"] for row in rows] == indices[0].tolist()
    assert [row["probability"] for row in rows] == pytest.approx(scores[0].tolist(), rel=1e-3)
    said = ", ".join(f"class {row['index']} {row['probability']:.1%}" for row in rows)
    assert f"more/b.png: {said}" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--top", "5"], "--top is for a trunk with its ImageNet classifier"),
        (["--names", "names.txt"], "--names is for --top"),
        (["--top", "5", "--names", "names.txt"], "names.txt: it has 2 lines; it must have 1000"),
        (["--top", "5", "--names", "none.txt"], "--names none.txt: cannot be read as text"),
    ],
)
def test_classes_that_cannot_be_named(
    torch, trunk_file, photo_folder, tmp_path, monkeypatch, capsys, arguments, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    given = ["--checkpoint", trunk_file, "--data", photo_folder, *arguments]
    assert command.main(list(map(str, given))) == 2
    assert told in capsys.readouterr().err
