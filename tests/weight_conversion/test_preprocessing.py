"""What files beside weights say of photos, by the names of each codebase."""

import json
import math

import pytest

from mlic_jax.errors import Failure, UsageError
from weight_conversion.layouts import LAYOUTS
from weight_conversion.preprocessing import file_beside, share_of, told_by

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUASH = {**IMAGENET, "do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2}
CROP = {**IMAGENET, "do_center_crop": True, "size": {"shortest_edge": 256}, "resample": 3}
CROP |= {"crop_size": {"height": 224, "width": 224}}
CONVNEXT = {**IMAGENET, "image_processor_type": "ConvNextImageProcessor", "resample": 3}
TIMM = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 224, 224], "crop_pct": 0.9}
TIMM |= {"interpolation": "bicubic", "crop_mode": "center"}


@pytest.fixture
def told(tmp_path):
    """What a file with this content says, with what is given beside it."""

    def read(content, **given):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(content))
        return told_by(path, given)

    return read


@pytest.mark.parametrize(
    ("content", "size", "interpolation", "share"),
    [
        (SQUASH, 224, "bilinear", 0.0),
        (SQUASH | {"size": 384, "resample": 1}, 384, "lanczos", 0.0),
        (CROP, 224, "bicubic", 0.875),
        (CROP | {"size": 224, "crop_size": 224}, 224, "bicubic", 1.0),  # of CLIP, as it was written
        (CONVNEXT | {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, "bicubic", 0.875),
        (CONVNEXT | {"size": 224}, 224, "bicubic", 0.875),
        (CONVNEXT | {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, "bicubic", 0.0),
        (SQUASH | {"do_center_crop": True, "crop_size": 224}, 224, "bilinear", 0.0),
        ({"pretrained_cfg": TIMM}, 224, "bicubic", 0.9),
        (TIMM | {"crop_mode": "squash", "crop_pct": 1.0}, 224, "bicubic", 0.0),
    ],
)
def test_files_of_transformers_and_timm(told, content, size, interpolation, share):
    said = told(content)
    crop = said["center_crop"]
    assert (said["image_size"], said["interpolation"], crop) == (size, interpolation, share)


def test_mean_and_deviation(told):
    assert told(SQUASH)["mean"] == IMAGENET["image_mean"]
    assert told(SQUASH)["std"] == IMAGENET["image_std"]
    said = told(SQUASH | {"do_normalize": False})
    assert (said["mean"], said["std"]) == ([0.0] * 3, [1.0] * 3)
    assert told(TIMM)["std"] == [0.25] * 3


@pytest.mark.parametrize(
    ("content", "words", "given"),
    [
        (SQUASH | {"resample": 0}, "its interpolation is 'of number 0'.*--interpolation$", "inter"),
        (TIMM | {"interpolation": "nearest"}, "'nearest', not bilinear, bicubic, lanczos", "inter"),
        (TIMM | {"crop_mode": "border"}, "crop_mode is 'border' .*--center-crop$", "sizes"),
        (TIMM | {"input_size": [3, 224, 288]}, "of 224 x 288 pixels, not square", "sizes"),
        (CROP | {"crop_size": 288}, "it crops 288 pixels of photos whose shorter side", "sizes"),
        (CROP | {"do_center_crop": False}, "to 256 pixels and crops nothing", "sizes"),
        (SQUASH | {"do_center_crop": True, "crop_size": 192}, "and then crops them", "sizes"),
        (SQUASH | {"rescale_factor": 1 / 127.5}, "its rescale_factor is 0.0078", "mean"),
        (SQUASH | {"size": "large"}, "its image_size and center_crop cannot be read", "sizes"),
        (TIMM | {"mean": ["a"]}, "its mean and std cannot be read", "mean"),
    ],
)
def test_what_is_not_done_here_is_refused_unless_it_is_given(told, content, words, given):
    with pytest.raises(Failure, match=words) as error:
        told(content)
    assert "\n" not in str(error.value)
    instead = {
        "inter": {"interpolation": "bicubic"},
        "sizes": {"image_size": 96, "center_crop": 0.5},
        "mean": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }[given]
    said = told(content, **instead)
    assert said | instead == said


def test_files_that_say_nothing_of_photos(told, tmp_path):
    with pytest.raises(UsageError, match="says nothing of how photos are prepared"):
        told({"model_type": "vit"})
    with pytest.raises(UsageError, match="says nothing of how photos are prepared"):
        told([1])
    weights = tmp_path / "model.safetensors"
    assert file_beside(weights) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert file_beside(weights) is None
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": TIMM}))
    assert file_beside(weights).name == "config.json"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CROP))
    assert file_beside(weights).name == "preprocessor_config.json"


def test_shares_give_the_very_edge_again():
    for size in range(32, 640):
        for more in (0, 1, 7, 8, 32, 33, 100):
            assert math.floor(size / share_of(size, size + more)) == size + more


def test_what_is_usual_of_a_family():
    usual = {(layout.name, layout.archs[0]): layout.usual for layout in LAYOUTS}
    assert usual["timm", "convnext_tiny"] == {"interpolation": "bicubic"}
    assert usual["torchvision", "convnext_tiny"] == {"interpolation": "bilinear"}
    # Of these names people have weights of both filters.
    assert usual["torchvision", "resnet18"] == {}
