"""One photo through every door of the pipeline: the same pixels, and boxes where they are."""

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from mlic_jax.data import pipeline, sources
from mlic_jax.features.store import PIXELS
from mlic_jax.models import create_model
from mlic_jax.predict.predictor import Predictor
from mlic_jax.predict.serve import answer
from mlic_jax.runtime import devices
from mlic_jax.scores import scoring
from mlic_jax.scores.stored import open_plain_store
from mlic_jax.train.loop import training_batches
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.stored import open_training_store

# Upright 90 x 61, of which the shorter side is resized to 73 = floor(64 / 0.875) and the longer one
# to 107 = floor(73 * 90 / 61); the square begins at round(43 / 2) = 22 and round(9 / 2) = 4.
RESIZED, CORNER, SIZE = (107, 73), (22, 4), 64
MARK = (40, 20, 60, 44)  # (y1, x1, y2, x2) of what is white, in the upright photo
ROLES = ("train", "val", "test")


@pytest.fixture
def photo(tmp_path):
    """A file that an EXIF tag turns, in each split of a set of two classes."""
    rng = np.random.default_rng(0)
    upright = rng.integers(0, 90, (90, 61, 3), dtype=np.uint8)
    y1, x1, y2, x2 = MARK
    upright[y1:y2, x1:x2] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    for role in ROLES:
        for name in ("cat", "dog"):
            path = tmp_path / "photos" / role / name / "turned.png"
            path.parent.mkdir(parents=True)
            stored.save(path, exif=exif)
    return path


@pytest.fixture
def cropped(config, photo, tmp_path):
    """A recipe of bicubic central crops of that set, on a frozen backbone."""
    config.data.update(source="folders", root=str(photo.parents[2]), name="turned", image_dir="")
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.data.upright, config.data.views = True, 1
    config.data.interpolation, config.data.center_crop = "bicubic", 0.875
    config.augment.flip, config.augment.jitter = False, 0.0
    config.freeze_statistics, config.optim.multipliers.features = True, 0.0
    config.features.store = True
    return config


@pytest.fixture
def square():
    """What Pillow alone makes of the photo: turned, resized across, then down, and cut out."""

    def of(path):
        with Image.open(path) as stored:
            upright = stored.convert("RGB").transpose(Image.Transpose.ROTATE_270)
        tall, wide = RESIZED
        across = upright.resize((wide, upright.height), Image.Resampling.BICUBIC)
        resized = across.resize((wide, tall), Image.Resampling.BICUBIC)
        top, left = CORNER
        return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)))

    return of


def pixels_of(batches):
    """The images of batches that are no padding, all in one array."""
    return np.concatenate([batch["image"][batch["index"] >= 0] for batch in batches])


def test_every_door_gives_a_model_the_same_pixels(cropped, photo, square, fresh_run):
    options = TrainOptions.of(cropped)
    splits = sources.open_splits(options.data)
    variables, metadata = fresh_run(cropped)
    model = create_model(options.model, 2)
    mesh = devices.create_mesh()
    seen = {}

    evaluated = []

    def step(_, batch):
        evaluated.append(jax.device_get(batch))
        return {"logits": batch["labels"].astype(np.float32)} | {
            name: batch[name] for name in ("labels", "index")
        }

    evaluator = scoring.Evaluator(step, splits["val"], options, mesh)
    evaluator(variables)
    seen["evaluation"] = pixels_of(evaluated)
    kept = dict(image_size=SIZE, batch_size=2, shuffle=False, fit=options.data.fit, cache="pixels")
    for _ in range(2):  # of which the second is read from the disk
        seen["kept pixels"] = pixels_of(pipeline.batches(splits["val"], **kept))
    seen["training"] = pixels_of(training_batches(splits["train"], options, 0))
    stores = {
        "features of evaluation": open_plain_store(model, variables, splits["test"], options, mesh),
        "features of training": open_training_store(
            model, variables, splits["train"], options, mesh
        ),
    }
    for name, store in stores.items():
        seen[name] = store.read((PIXELS,), np.zeros(2, np.int32), np.arange(2, dtype=np.int32))[
            PIXELS
        ]
    predictor = Predictor(cropped, variables, metadata)
    predicted, run = [], predictor._step

    def noted(variables, batch):
        predicted.append({"image": np.asarray(batch["image"]), "index": np.zeros(1)})
        return run(variables, batch)

    predictor._step = noted
    assert predictor(photo).error is None
    assert "refusal" not in answer(predictor, photo)
    seen["prediction and the demo"] = pixels_of(predicted)

    assert {name: len(images) for name, images in seen.items()} == {
        name: 2 * cropped.epochs if name == "training" else 2 for name in seen
    }
    for name, images in seen.items():
        for image in images:
            np.testing.assert_array_equal(image, square(photo), err_msg=name)


def test_a_box_of_the_crop_is_reported_where_it_is_in_the_photo(cropped, photo, square, fresh_run):
    variables, metadata = fresh_run(cropped)
    predictor = Predictor(cropped, variables, metadata)
    white = np.nonzero(square(photo).min(axis=2) > 170)
    box = [*np.min(white, axis=1), *(np.max(white, axis=1) + 1)]
    run = predictor._step
    predictor._step = lambda *given: run(*given) | {"boxes": np.tile(np.int32(box), (1, 2, 1))}
    prediction = predictor(photo)
    assert (prediction.height, prediction.width) == (90, 61)
    for region in prediction.regions:
        # Its edge is known to a pixel of the square, and a pixel of the photo is what it touches.
        assert np.abs(np.subtract(region.box, MARK)).max() <= 2
    scale = np.array([90 / 107, 61 / 73] * 2)
    ends = np.array([22, 4, 22 + SIZE, 4 + SIZE]) * scale
    assert prediction.seen == (*np.floor(ends[:2]), *np.ceil(ends[2:]))


def test_what_was_made_before_there_was_a_choice_is_known_again(cropped, fresh_run):
    """Of defaults no store has another name; of others each has its own."""
    variables, _ = fresh_run(cropped)

    def folders(**changed):
        config = cropped.copy_and_resolve_references().unlock()
        config.data.update(changed)
        options = TrainOptions.of(config)
        splits = sources.open_splits(options.data)
        model, mesh = create_model(options.model, 2), devices.create_mesh()
        stores = (
            open_plain_store(model, variables, splits["val"], options, mesh),
            open_training_store(model, variables, splits["train"], options, mesh),
        )
        return [(store.folder, store._about()["views"]) for store in stores]

    (plain, said), (trained, of_training) = folders(interpolation="bilinear", center_crop=0.0)
    assert not {"interpolation", "center_crop"} & {*said, *of_training}
    others = {plain, trained}
    for changed in ({"interpolation": "bicubic"}, {"interpolation": "bilinear"}):
        others |= {folder for folder, _ in folders(**changed)}
    assert len(others) == 6
    # A random crop is the same whatever evaluation cuts out.
    random = {"train_crop": "random_resized_crop"}
    first, second = (folders(**random, center_crop=share) for share in (0.0, 0.875))
    assert first[1] == second[1] and first[0] != second[0]
