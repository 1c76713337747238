"""Every name table against names written by hand, and every way a checkpoint can fail."""

import jax
import numpy as np
import pytest

from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import BACKBONES, create_backbone
from weight_conversion.name_tables import ARCHS, LAYOUTS, detect, match, to_flax, to_torch

# Published sizes, the ImageNet classifier included.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
}
NETWORKS = [(arch, layout.name) for layout in LAYOUTS for arch in layout.archs]


def test_every_backbone_has_a_table():
    assert set(ARCHS) == set(BACKBONES) - {"resnet10"}  # which torchvision does not have


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("arch", "layout"), NETWORKS)
def test_every_network_is_recognised_and_filled(source_shapes, arch, layout, prefix):
    shapes = source_shapes(arch, layout)
    found = detect({prefix + name: shape for name, shape in shapes.items()})
    assert (found.arch, found.layout.name) == (arch, layout)
    dropped = {prefix + name for name in shapes if name.endswith("num_batches_tracked")}
    assert set(found.dropped) == dropped
    sizes = {
        target: np.prod(shapes[name.removeprefix("module.")])
        for target, (name, _) in found.filled.items()
    }
    parameters = sum(size for target, size in sizes.items() if target.startswith("params/"))
    assert parameters == PARAMETERS[arch]
    assert len(found.filled) + len(dropped) == len(shapes)


@pytest.mark.parametrize(("arch", "layout"), NETWORKS)
def test_the_classifier_is_optional(source_shapes, arch, layout):
    shapes = source_shapes(arch, layout)
    trunk = dict(list(shapes.items())[:-2])
    found = detect(trunk)
    assert (found.arch, found.layout.name) == (arch, layout)
    assert not any("classifier" in target for target in found.filled)


@pytest.mark.parametrize(
    ("arch", "layout"),
    [
        ("resnet18", "torchvision"),
        ("resnet50", "torchvision"),
        ("mobilenet_v2", "torchvision"),
        ("mobilenet_v2", "d-li14"),
        ("mobilenet_v2", "tonylins"),
    ],
)
def test_tensors_go_there_and_back_unchanged(source_tensors, arch, layout):
    tensors = source_tensors(arch, layout)
    variables = to_flax(tensors, detect({name: t.shape for name, t in tensors.items()}))
    back = to_torch(variables, arch, layout)
    assert set(back) == {name for name in tensors if not name.endswith("num_batches_tracked")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))

    del variables["params"]["classifier"]
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    wanted = jax.eval_shape(create_backbone(arch).init, jax.random.key(0), images)
    inner = {collection: tree["features"] for collection, tree in variables.items()}
    assert jax.tree.map(np.shape, inner) == jax.tree.map(np.shape, dict(wanted))


def test_known_leaves_hold_the_right_axes(source_tensors):
    tensors = source_tensors("mobilenet_v2", "d-li14")
    variables = to_flax(tensors, detect({name: t.shape for name, t in tensors.items()}))
    features, statistics = variables["params"]["features"], variables["batch_stats"]["features"]
    stem = tensors["features.0.0.weight"]
    assert features["stem"]["kernel"][0, 2, 1, 5] == stem[5, 1, 0, 2]
    depthwise = tensors["features.4.conv.3.weight"]
    assert features["block4"]["depthwise"]["kernel"].shape == (3, 3, 1, 144)
    assert features["block4"]["depthwise"]["kernel"][2, 0, 0, 7] == depthwise[7, 0, 2, 0]
    assert variables["params"]["classifier"]["kernel"][3, 8] == tensors["classifier.weight"][8, 3]
    for leaf, name in (("mean", "running_mean"), ("var", "running_var")):
        np.testing.assert_array_equal(statistics["head"][leaf], tensors[f"conv.1.{name}"])
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
        np.testing.assert_array_equal(
            features["block1"]["project"][leaf], tensors[f"features.1.conv.4.{name}"]
        )


def test_all_problems_are_listed_at_once(source_shapes):
    shapes = source_shapes("resnet50")
    shapes["stranger.weight"] = (3,)
    shapes["layer1.7.conv1.weight"] = (64, 64, 1, 1)
    shapes["module.bn1.bias"] = (64,)
    shapes["conv1.weight"] = (64, 4, 7, 7)
    shapes["layer4.0.conv2.weight"] = (512,)
    del shapes["layer2.3.bn3.running_var"], shapes["fc.bias"]
    with pytest.raises(Failure) as failure:
        detect(shapes)
    title, *problems = str(failure.value).split("\n  ")
    assert title == "does not fit resnet50 under torchvision names (7 problems):"
    assert sorted(problems) == sorted(
        [
            "tensor 'stranger.weight' [3] is unknown",
            "tensor 'layer1.7.conv1.weight' has no place in resnet50",
            "tensor 'module.bn1.bias' repeats 'bn1.bias'",
            "tensor 'conv1.weight' is [64, 4, 7, 7] and must be [64, 3, 7, 7]",
            "tensor 'layer4.0.conv2.weight' is [512] and must be [512, 512, 3, 3]",
            "tensor 'layer2.3.bn3.running_var' is missing",
            "tensor 'fc.bias' is missing",
        ]
    )


def test_a_long_list_of_problems_is_cut(source_shapes):
    shapes = {name: s for name, s in source_shapes("resnet50").items() if "layer1" not in name}
    with pytest.raises(Failure) as failure:
        detect(shapes)
    lines = str(failure.value).splitlines()
    assert len(lines) == 22
    assert lines[-1].strip() == "... and 30 more"  # ten convolutions of five tensors are missing


def test_a_classifier_of_other_classes_is_refused(source_shapes):
    shapes = source_shapes("resnet18") | {"fc.weight": (21, 512), "fc.bias": (21,)}
    with pytest.raises(Failure, match=r"'fc.weight' is \[21, 512\] and must be \[1000, 512\]"):
        detect(shapes)


def test_the_heads_tell_the_two_flat_mobilenets_apart(source_shapes):
    shapes = source_shapes("mobilenet_v2", "d-li14")
    mixed = shapes | {"features.18.0.weight": (1280, 320, 1, 1)}
    with pytest.raises(Failure, match=r"'features\.18\.0\.weight' .* is unknown"):
        detect(mixed)


@pytest.mark.parametrize(
    "shapes", [{}, {"encoder.weight": (3, 3)}, {"features.0.weight": (64, 3, 3, 3), "x": ()}]
)
def test_a_foreign_network_is_refused_with_the_known_ones(shapes):
    with pytest.raises(Failure, match=r"no known network .* torchvision resnet18.* d-li14"):
        detect(shapes)


def test_the_architecture_can_be_insisted_on(source_shapes):
    shapes = source_shapes("resnet34")
    assert detect(shapes, "resnet34").arch == "resnet34"
    with pytest.raises(UsageError, match="the weights of resnet34, not of resnet18"):
        detect(shapes, "resnet18")
    with pytest.raises(UsageError, match="unknown architecture 'vgg16': choose one of resnet18"):
        detect(shapes, "vgg16")
    del shapes["conv1.weight"]
    with pytest.raises(Failure, match="does not fit resnet18"):
        detect(shapes, "resnet18")


def test_every_name_matches_one_rule_of_its_own_table_only(source_shapes):
    """An ambiguous table would say "matches 2 rules" here."""
    for layout in LAYOUTS:
        for arch in layout.archs:
            assert match(source_shapes(arch, layout.name), layout, arch).problems == []


def test_unusable_values_are_listed_at_once(source_tensors):
    tensors = source_tensors("resnet18")
    matched = detect({name: t.shape for name, t in tensors.items()})
    tensors["bn1.bias"] = np.zeros(64, np.int32)
    tensors["bn1.weight"][3] = np.nan
    tensors["fc.bias"][0] = np.inf
    with pytest.raises(Failure) as failure:
        to_flax(tensors, matched)
    for problem in ("'bn1.bias' is int32", "'bn1.weight' holds NaN", "'fc.bias' holds NaN"):
        assert problem in str(failure.value)


def test_there_is_no_way_back_under_foreign_names():
    with pytest.raises(UsageError, match="there are no d-li14 names of resnet18"):
        to_torch({}, "resnet18", "d-li14")
