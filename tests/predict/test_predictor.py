"""Photos to labels: what `Predictor` says is what the model says, in the photo's own pixels."""

import copy
import dataclasses
import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mlic_jax.config import default_config
from mlic_jax.data import label_inputs, records
from mlic_jax.data.scenes import render
from mlic_jax.data.sources.folders import FolderSet
from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics.operating_point import OperatingPoint
from mlic_jax.models import create_backbone, create_model
from mlic_jax.predict.predictor import (
    Predictor,
    common_batch_size,
    load_model,
    spread,
)
from mlic_jax.reports.predictions import annotate_prediction
from mlic_jax.runtime.checkpoint import save_weights
from mlic_jax.train import resume
from weight_conversion import convert

SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def run(make_config, fresh_run):
    """The configuration, the variables and the metadata of a run that did no step."""
    config = make_config()
    # At 0.5 the straight ramp between two cells of a map crosses exactly on a pixel, and rounding
    # alone decides where a region ends.
    config.model.threshold = 0.47
    variables, metadata = fresh_run(config)
    # Spread over many probabilities, as those of a trained model are.
    classifier = variables["params"]["convclass"]
    classifier["kernel"] = 8 * classifier["kernel"]
    return config, variables, metadata


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory):
    """Its checkpoint."""
    _, variables, metadata = run
    folder = tmp_path_factory.mktemp("checkpoint") / "weights"
    save_weights(folder, variables, metadata)
    return folder


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint, batch_size=3)


def model_input(image, size=SIZE):
    """A PIL image as the model sees it, float32 [1, S, S, 3]."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    return ((pixels / 255 - np.float32(MEAN)) / np.float32(STD))[None]


@pytest.fixture(scope="module")
def reference(run):
    """What the model says of one input, without any of our pipeline."""
    config, variables, _ = run
    apply = jax.jit(create_model(config.model, 12).apply)

    def say(pixels):
        outputs = apply(variables, pixels)
        return {name: np.asarray(rows[0], np.float64) for name, rows in outputs.items()}

    return say


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six scenes as JPEG files; none is square."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(render(0, "test", i).image)
    return sorted(folder.iterdir())


def drawn(rng, leaf):
    """Positive values, small where many are summed."""
    return rng.uniform(0.1, 0.9, leaf.shape).astype(np.float32) / np.float32(leaf.shape[-1])


def probability(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def save_changed(run, folder, **metadata):
    """Another checkpoint of the run, with other metadata."""
    save_weights(folder, run[1], run[2] | metadata)
    return folder


def test_predictions_are_what_the_model_says(predictor, reference, photos, run):
    config, _, metadata = run
    names = metadata["class_names"]
    predictions = predictor(photos)
    assert len(predictions) == 6
    assert len({prediction.labels for prediction in predictions}) > 1
    for path, prediction in zip(photos, predictions, strict=True):
        image = Image.open(path)
        want = reference(model_input(image))
        assert (prediction.file, prediction.error) == (str(path), None)
        assert (prediction.width, prediction.height) == image.size
        scores = probability(want["logits"])
        assert list(prediction.scores) == names
        np.testing.assert_allclose(list(prediction.scores.values()), scores, rtol=1e-4)
        # The protocol `mcar` has the threshold 0.6; the likeliest label comes first.
        ranked = np.argsort(-scores)
        assert prediction.labels == tuple(names[c] for c in ranked if scores[c] >= 0.6)
        assert len(prediction.regions) == config.model.top_n
        for k, region in enumerate(prediction.regions):
            c = int(want["box_classes"][k])
            assert region.class_name == names[c]
            scale = np.array([image.height, image.width] * 2) / SIZE
            edges = want["boxes"][k] * scale
            assert region.box == (*np.floor(edges[:2]), *np.ceil(edges[2:]))
            assert region.global_probability == pytest.approx(
                probability(want["global_logits"][c]), rel=1e-4
            )
            assert region.local_probability == pytest.approx(
                probability(want["local_logits"][c]), rel=1e-4
            )


def test_class_maps_are_the_classifier_at_every_position(predictor, photos, run):
    config, variables, metadata = run
    pixels = model_input(Image.open(photos[0]))
    backbone = create_backbone(config.model.backbone, config.model.width)
    features = {name: variables[name]["features"] for name in ("params", "batch_stats")}
    deepest = np.asarray(jax.jit(backbone.apply)(features, pixels)[-1][0], np.float64)
    classifier = variables["params"]["convclass"]
    maps = probability(deepest @ classifier["kernel"] + classifier["bias"])
    (prediction,) = predictor(photos[:1])
    for region in prediction.regions:
        want = maps[..., metadata["class_names"].index(region.class_name)]
        assert region.class_map.shape == (2, 2)
        np.testing.assert_allclose(region.class_map, want, rtol=1e-3)


def test_one_compilation_serves_all(predictor, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    one = predictor(photos[:1])
    many = predictor([*photos, tmp_path / "broken.jpg"])
    assert predictor._step._cache_size() == 1
    assert one[0].labels == many[0].labels
    np.testing.assert_allclose(
        list(one[0].scores.values()), list(many[0].scores.values()), rtol=1e-5
    )
    assert predictor([]) == []


def test_what_cannot_be_read_is_said_and_the_rest_is_done(predictor, photos, tmp_path):
    whole = photos[0].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    bad = [tmp_path / name for name in ("cut.jpg", "text.jpg", "empty.png", "missing.jpg", ".")]
    good = predictor(photos)
    # Mixed, so that a row lost or moved in a batch would be seen.
    mixed = predictor([photos[0], *bad[:2], *photos[1:4], *bad[2:], *photos[4:]])
    for k, prediction in enumerate(mixed):
        if k in (1, 2, 6, 7, 8):
            assert prediction.error
            assert "\n" not in prediction.error
            assert "object at" not in prediction.error
            assert (prediction.labels, prediction.scores, prediction.regions) == ((), {}, ())
    fine = [prediction for prediction in mixed if prediction.error is None]
    assert [prediction.file for prediction in fine] == [str(path) for path in photos]
    for got, want in zip(fine, good, strict=True):
        assert got.labels == want.labels
        assert got.regions == want.regions
    assert [prediction.error is None for prediction in predictor(bad)] == [False] * 5


def test_paths_images_and_arrays_are_the_same(predictor, photos):
    image = Image.open(photos[0])
    pixels = np.array(image)
    predictions = predictor([photos[0], str(photos[0]), image, pixels])
    assert len({tuple(prediction.scores.values()) for prediction in predictions}) == 1
    assert [prediction.file for prediction in predictions] == [str(photos[0])] * 3 + [""]
    (cut,) = predictor([Image.open(io.BytesIO(photos[0].read_bytes()[:3000]))])
    assert "truncated" in cut.error


def test_one_photo_gives_one_prediction_and_several_a_list(predictor, photos):
    pixels = np.array(Image.open(photos[0]))
    (want,) = predictor([photos[0]])
    for one in (str(photos[0]), photos[0].read_bytes(), pixels, jnp.asarray(pixels), pixels / 255):
        assert predictor(one) == dataclasses.replace(want, file=str(photos[0]) * (one is str(one)))
    with photos[0].open("rb") as file:
        assert predictor(file) == want  # which has a name
    both = np.stack([pixels, pixels[::-1]])
    first, second = predictor(both)
    assert [first, second] == predictor(iter([pixels, both[1]]))
    assert first.scores == want.scores != second.scores
    missing = predictor("missing.jpg")
    assert (missing.file, missing.error) == ("missing.jpg", "No such file or directory")
    assert str(missing) == "missing.jpg: No such file or directory"
    pattern = predictor("*.jpg")
    assert pattern.error == "no such file; of a pattern give glob.glob('*.jpg')"


@pytest.mark.parametrize("wrong", [3, None, [3], [None], np.zeros(3), [[photo] for photo in "ab"]])
def test_what_is_no_photo_is_refused(predictor, wrong):
    with pytest.raises(UsageError, match="is no photo; it must be"):
        predictor(wrong)


def test_thresholds_and_numbers_of_labels_are_asked_for(predictor, photos):
    ranked = sorted(predictor(photos[0]).scores.items(), key=lambda item: -item[1])
    names, scores = zip(*ranked, strict=True)
    assert predictor(photos[0], threshold=scores[4]).labels == names[:5]
    assert predictor(photos[0], threshold=scores[4], top=2).labels == names[:2]
    assert predictor(photos[0], threshold=1.0).labels == ()
    assert predictor(photos[0], top=12).labels == names
    assert [one.labels for one in predictor(photos[:1] * 2, top=3)] == [names[:3]] * 2
    # Of one label alone: the others keep the checkpoint's.
    kept = {name for name, score in ranked if score >= 0.6}
    assert 1 <= len(kept) < 12
    assert set(predictor(photos[0], threshold={names[0]: 1.0}).labels) == kept - {names[0]}
    assert set(predictor(photos[0], threshold={names[-1]: 0.0}).labels) == kept | {names[-1]}
    name = predictor.class_names[0]
    with pytest.raises(UsageError, match=rf"no label '{name}s'; did you mean '{name}'\?$"):
        predictor(photos[0], threshold={f"{name}s": 0.5})
    for wrong in (1.5, -0.1, float("nan"), "0.5", {name: 2}):
        with pytest.raises(UsageError, match="must be a probability, 0 to 1"):
            predictor(photos[0], threshold=wrong)
    for wrong in (0, 13, 2.5):
        with pytest.raises(UsageError, match="must be 1 to 12 labels"):
            predictor(photos[0], top=wrong)


def test_what_a_notebook_shows(predictor, photos, tmp_path):
    assert repr(predictor).startswith("Predictor(mcar on resnet10, 64 px; 12 labels: "), repr(
        predictor
    )
    assert repr(predictor).endswith("; labels from the threshold of the protocol mcar, 0.6)")
    prediction = predictor(photos[0], top=2)
    first, second = prediction.labels
    scores = prediction.scores
    said = f"{photos[0]}: {first} {scores[first]:.2f}, {second} {scores[second]:.2f}"
    assert (str(prediction), repr(prediction)) == (said, f"Prediction({said})")
    assert predictor(photos[0], top=12).found().endswith(" and 4 more")
    nothing = predictor(photos[0].read_bytes(), threshold=1)
    assert str(nothing) == f"a photo: no label; the likeliest is {first} {scores[first]:.2f}"
    image = predictor.annotated(photos[0])
    assert image == predictor.annotated(photos[0], predictor(photos[0]))
    assert image == annotate_prediction(Image.open(photos[0]), predictor(photos[0]))
    assert image != predictor.annotated(photos[0], nothing)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(Failure, match="not of a format"):
        predictor.annotated(tmp_path / "broken.jpg")


# What a camera stores for each EXIF orientation, of a photo whose upright pixels are u.
STORED = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.transpose(1, 0, 2),
    6: lambda u: np.rot90(u),  # to be turned clockwise
    7: lambda u: u[::-1, ::-1].transpose(1, 0, 2),
    8: lambda u: np.rot90(u, -1),
}


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_every_orientation_gives_the_upright_photo(predictor, photos, tmp_path, kind):
    upright = np.asarray(Image.open(photos[0]))
    paths = []
    for orientation, store in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"{orientation}.{kind}")
        options = {"lossless": True} if kind == "webp" else {}
        Image.fromarray(np.ascontiguousarray(store(upright))).save(paths[-1], exif=exif, **options)
    want = predictor([upright])[0]
    for given in (paths, [Image.open(path) for path in paths]):
        for prediction in predictor(given):
            assert (prediction.height, prediction.width) == upright.shape[:2]
            assert prediction.scores == pytest.approx(want.scores, rel=1e-5)
            assert [region.box for region in prediction.regions] == [
                region.box for region in want.regions
            ]
    sideways = paths[5]
    assert predictor.annotated(sideways) == predictor.annotated(sideways, predictor(sideways))
    sideways = paths[5]
    assert predictor.annotated(sideways) == predictor.annotated(sideways, predictor(sideways))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's
def test_a_damaged_exif_tag_costs_no_photo(predictor, photos, tmp_path):
    image = Image.open(photos[0])
    image.save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", quality=95)
    (prediction,) = predictor([tmp_path / "odd.jpg"])
    assert prediction.error is None
    assert (prediction.width, prediction.height) == image.size


def test_whatever_an_image_raises_concerns_it_alone(predictor, photos):
    closed = Image.open(photos[0])
    closed.close()
    bad, good = predictor([closed, photos[1]])
    assert bad.error == "Operation on closed image"
    assert (bad.labels, bad.scores) == ((), {})
    assert good == predictor([photos[1]])[0]


def test_labels_are_those_of_the_operating_point(run, reference, photos, tmp_path):
    names = run[2]["class_names"]
    logits = reference(model_input(Image.open(photos[0])))["logits"]
    wanted = [1, 4, 7]
    thresholds = np.clip(probability(logits / 3) + 0.01, 0, 1)
    thresholds[wanted] -= 0.02
    point = OperatingPoint(
        temperature=3.0,
        thresholds=tuple(thresholds.tolist()),
        rule="some rule",
        set_name="toy",
        split="val",
        images=9,
        error_before=5.0,
        error_after=2.0,
    )
    predictor = Predictor.from_checkpoint(
        save_changed(run, tmp_path / "calibrated", operating_point=point.to_dict()),
        batch_size=3,  # as the other predictor's, whose program is kept
    )
    (prediction,) = predictor(photos[:1])
    assert set(prediction.labels) == {names[c] for c in wanted}
    assert list(prediction.scores.values()) == pytest.approx(probability(logits / 3), rel=1e-4)
    best = prediction.regions[0]  # the regions' probabilities are on the same scale
    final = max(best.global_probability, best.local_probability)
    assert final == pytest.approx(prediction.scores[best.class_name])
    assert predictor.rule == "some rule"


def test_logits_are_averaged_over_views(config, fresh_run, photos, tmp_path):
    """Two sizes, of which the host prepares the larger one; `test_views.py` has the rest."""
    config.model.name = "pooled"  # which compiles in a third of the time
    variables, metadata = fresh_run(config)
    classifier = variables["params"]["convclass"]
    classifier["kernel"] = 8 * classifier["kernel"]
    save_weights(tmp_path / "pooled", variables, metadata)
    model = create_model(config.model, 12)
    reference = partial(jax.jit(model.apply), variables)
    # Five of the eight devices have two rows each, of which the last is padding.
    predictor = Predictor.from_checkpoint(tmp_path / "pooled", batch_size=9, scales=[96])
    (prediction,) = predictor(photos[:1])
    large = Image.open(photos[0]).resize((96, 96), Image.Resampling.BILINEAR)
    views = [model_input(large), model_input(large, 96)]
    logits = np.mean([reference(view)["logits"][0] for view in views], axis=0)
    got = np.array(list(prediction.scores.values()))
    np.testing.assert_allclose(got, probability(logits), atol=5e-3)  # pixels are rounded elsewhere
    plain = probability(reference(model_input(large))["logits"][0])
    assert np.abs(got - plain).max() > 0.05


def test_scores_agree_with_a_label_tree(run, reference, photos, tmp_path):
    """Of the checkpoint, or of a file that is given."""
    names = run[2]["class_names"]
    logits = reference(model_input(Image.open(photos[0])))["logits"]
    low, high = int(np.argmin(logits)), int(np.argmax(logits))
    expected = logits.copy()
    expected[low] = logits[high]
    config = json.loads(json.dumps(run[2]["config"]))
    config["eval"]["consistent"] = True
    kept = {"config": config, "label_tree": [[names[high], names[low]]]}
    (tmp_path / "tree.txt").write_text(f"{names[high]} < {names[low]}")
    plain = save_changed(run, tmp_path / "plain")
    for predictor in (
        Predictor.from_checkpoint(save_changed(run, tmp_path / "kept", **kept), batch_size=3),
        Predictor.from_checkpoint(plain, batch_size=3, label_tree=tmp_path / "tree.txt"),
    ):
        (prediction,) = predictor(photos[:1])
        got = list(prediction.scores.values())
        assert got == pytest.approx(probability(expected), rel=1e-4)
        assert got[low] == got[high]


def test_arguments_go_before_the_checkpoint(run, checkpoint, tmp_path):
    config = json.loads(json.dumps(run[2]["config"]))
    config["eval"] |= {"flip": True, "scales": [96]}
    stored = save_changed(run, tmp_path / "stored", config=config)
    for path, look, want in (
        (stored, {}, (True, (96,))),
        (stored, {"flip": False, "scales": []}, (False, ())),
        (stored, {"flip": None, "scales": [128]}, (True, (128,))),
        (checkpoint, {}, (False, ())),
        (checkpoint, {"flip": True}, (True, ())),
    ):
        got = load_model(path, **look)[0].eval
        assert (got.flip, got.scales) == want
    with pytest.raises(UsageError, match=r"eval\.scales has 50"):
        Predictor.from_checkpoint(checkpoint, scales=[50])
    with pytest.raises(UsageError, match="batch_size is 0"):
        Predictor.from_checkpoint(checkpoint, batch_size=0)
    with pytest.raises(UsageError, match=r"'fllip'; known are .*; did you mean 'flip'\?"):
        Predictor.from_checkpoint(checkpoint, fllip=True)


def test_options_that_are_newer_than_the_checkpoint(run, checkpoint, tmp_path):
    config = json.loads(json.dumps(run[2]["config"]))
    del config["eval"]["flip"], config["eval"]["scales"], config["model"]["localizer"]
    config["gone"] = {"option": 1}
    old = load_model(save_changed(run, tmp_path / "old", config=config))[0]
    new = load_model(checkpoint)[0]
    assert (old.model, old.eval, old.data) == (new.model, new.eval, new.data)


def test_msrn_has_labels_and_no_regions(config, photos, tmp_path):
    config.model.update(name="msrn", head="per_label", pool_ratio=0.4)
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d", "e"]
    known = {
        "word_vectors": rng.normal(0, 1, (5, 7)).astype(np.float32),
        "counts": rng.integers(0, 5, (5, 5)),
        "class_counts": np.full(5, 9),
    }
    model = create_model(config.model, 5, **label_inputs.arguments_of({"label_inputs": known}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), model_input(Image.open(photos[0])))
    variables = jax.tree.map(lambda leaf: drawn(rng, leaf), shapes)
    metadata = {"config": json.loads(config.to_json()), "class_names": names}
    save_weights(tmp_path / "whole", {**variables, "label_inputs": known}, metadata)
    (prediction,) = Predictor.from_checkpoint(tmp_path / "whole")(photos[:1])
    logits = jax.jit(model.apply)(variables, model_input(Image.open(photos[0])))["logits"][0]
    assert list(prediction.scores.values()) == pytest.approx(probability(logits), rel=1e-4)
    assert prediction.regions == ()

    save_weights(tmp_path / "bare", variables, metadata)
    with pytest.raises(UsageError, match="--graph and --vectors"):
        Predictor.from_checkpoint(tmp_path / "bare")


def test_a_converted_model_predicts(photos, tmp_path):
    """MCAR of full width, written under the names of PyTorch and converted."""
    config = default_config()
    config.model.backbone = "resnet18"
    names = [f"class {k}" for k in range(5)]
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        create_model(config.model, 5).init, jax.random.key(0), model_input(Image.open(photos[0]))
    )
    variables = jax.tree.map(lambda leaf: drawn(rng, leaf), shapes)
    source = tmp_path / "model.safetensors"
    convert.save_torch_checkpoint(variables, source, {"arch": "resnet18", "layout": "mcar"})
    (tmp_path / "names.txt").write_text("\n".join(names))
    options = ["--output", str(tmp_path / "converted"), "--image-size", "64", "--classes"]
    assert convert.main([str(source), *options, str(tmp_path / "names.txt")]) == 0
    predictor = Predictor.from_checkpoint(tmp_path / "converted")
    (prediction,) = predictor(photos[:1])
    assert list(prediction.scores) == names
    assert len(prediction.regions) == 4
    assert predictor.config.data.image_size == 64


def test_checkpoints_that_cannot_predict(run, predictor, photos, tmp_path):
    _, variables, _ = run
    save_weights(tmp_path / "backbone", variables, {"arch": "resnet50", "source": "x.pth"})
    with pytest.raises(UsageError, match=r"holds a backbone alone \(resnet50\)"):
        Predictor.from_checkpoint(tmp_path / "backbone")
    with pytest.raises(UsageError, match="no checkpoint at"):
        Predictor.from_checkpoint(tmp_path / "nowhere")
    damaged = copy.copy(predictor)
    damaged._variables = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), predictor._variables)
    with pytest.raises(Failure, match="scores are not finite"):
        damaged(photos[:1])


@pytest.mark.parametrize(
    ("images", "limit", "want"),
    [(1, 16, 1), (2, 16, 2), (5, 16, 8), (16, 16, 16), (100, 16, 16), (3, 1, 1), (9, 12, 12)],
)
def test_few_programs_serve_all_numbers_of_photos(images, limit, want):
    assert common_batch_size(images, limit) == want


@pytest.mark.parametrize(
    ("batch_size", "devices", "want"),
    [
        *((1, 1, (1, 1)), (5, 1, (1, 5)), (1, 8, (1, 1)), (3, 8, (3, 3)), (8, 8, (8, 8))),
        *((9, 8, (5, 10)), (12, 8, (6, 12)), (13, 8, (7, 14)), (100, 8, (8, 104))),
    ],
)
def test_a_batch_goes_to_as_many_devices_as_make_it_quick(batch_size, devices, want):
    """One that they do not divide is filled up, and never left to one of them."""
    assert spread(batch_size, devices) == want


def test_deep_photos_are_seen_in_the_range_of_the_set_that_was_trained_on(run, tmp_path, capsys):
    config, variables, metadata = run
    values = np.array([[0, 1000, 4095]], np.uint16)
    for split in ("train", "val"):
        (tmp_path / "own" / split / "class").mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "own" / split / "class" / "deep.png")
    source = FolderSet("own", tmp_path / "own", ("train", "val"))
    split = records.open_split(records.prepare(source, tmp_path / "prepared"), "train")
    preprocessing = json.loads(
        json.dumps(resume.run_metadata(config, split, tmp_path)["preprocessing"])
    )
    seen = Predictor(config, variables, metadata | {"preprocessing": preprocessing})
    pixels = np.asarray(seen.read(tmp_path / "own" / "val" / "class" / "deep.png"))
    np.testing.assert_array_equal(pixels, np.asarray(split.decode(split[0])))
    assert pixels[0, :, 0].tolist() == [0, 62, 255]
    with Image.open(tmp_path / "own" / "val" / "class" / "deep.png") as image:
        np.testing.assert_array_equal(np.asarray(seen.read(image)), pixels)
    unknown = Predictor(config, variables, metadata | {"preprocessing": {}})
    capsys.readouterr()
    for _ in range(2):  # and says so once
        deep = np.asarray(unknown.read(tmp_path / "own" / "val" / "class" / "deep.png"))
        assert deep[0, :, 0].tolist() == [0, 62, 255]
    (line,) = capsys.readouterr().out.splitlines()
    assert "deep.png has more than 8 bits" in line and "black is 0 and white 4095" in line
    floats = Image.fromarray(np.array([[-1.0, 0.0, 3.0]], np.float32))
    assert np.asarray(unknown.read(floats))[0, :, 0].tolist() == [0, 64, 255]
    assert "a photo has more than 8 bits" in capsys.readouterr().out
