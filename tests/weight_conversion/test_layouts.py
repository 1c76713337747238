"""Every name table against names written by hand, and every way a checkpoint can fail."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models import BACKBONES, create_backbone, create_model
from mlic_jax.models.backbones import swin, vit
from weight_conversion.arrays import to_flax, to_torch, with_dead_tensors
from weight_conversion.layouts import ARCHS, LAYOUTS, TWINS
from weight_conversion.layouts.efficientnet import BY_AUTHORS
from weight_conversion.layouts.rules import IMAGENET_CLASSES, LINEAR, Layout, Part, Rule
from weight_conversion.matching import detect, match

# Published sizes, the ImageNet classifier included.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "resnetrs50": 35_691_912,
    "resnetrs101": 63_618_696,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "timm_efficientnet_lite0": 4_652_008,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "tf_efficientnet_b0": 5_288_548,
    "tf_efficientnet_b1": 7_794_184,
    "tf_efficientnet_b2": 9_109_994,
    "tf_efficientnet_b3": 12_233_232,
    "tf_efficientnet_b4": 19_341_616,
    "tresnet_m": 31_389_032,
    "tresnet_l": 55_989_256,
    "tresnet_v2_l": 46_174_824,
    "timm_tresnet_m": 31_389_032,
    "timm_tresnet_l": 55_989_256,
    "timm_tresnet_v2_l": 46_174_824,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_xlarge": 350_196_968,
    "convnextv2_atto": 3_708_400,
    "convnextv2_femto": 5_233_240,
    "convnextv2_pico": 9_066_280,
    "convnextv2_nano": 15_623_800,
    "convnextv2_tiny": 28_635_496,
    "convnextv2_base": 88_717_800,
    "convnextv2_large": 197_956_840,
    "convnextv2_huge": 660_289_640,
    "swin_tiny": 28_288_354,
    "swin_small": 49_606_258,
    "swin_base": 87_768_224,
    "swin_large": 196_532_476,
    "swin_base_window12": 87_903_584,
    "swin_large_window12": 196_735_516,
    "swinv2_tiny": 28_347_154,
    "swinv2_small": 49_728_418,
    "swinv2_base": 87_918_816,
    "swinv2_tiny_window16": 28_347_154,
    "swinv2_small_window16": 49_728_418,
    "swinv2_base_window16": 87_918_816,
    "vit_tiny_patch16": 5_717_416,
    "vit_small_patch16": 22_050_664,
    "vit_small_patch32": 22_878_952,
    "vit_base_patch16": 86_567_656,
    "vit_base_patch32": 88_224_232,
    "vit_large_patch16": 304_326_632,
    "vit_large_patch32": 306_535_400,
    # Of those before, and two normalisations of the 64 features of a head in every block.
    "vit_small_patch16_qk_norm": 22_050_664 + 12 * 2 * 2 * 64,
    "vit_base_patch16_qk_norm": 86_567_656 + 12 * 2 * 2 * 64,
    "vit_large_patch16_qk_norm": 304_326_632 + 24 * 2 * 2 * 64,
}
# Biases of keys that torchvision keeps, and sets to 0.
KEY_BIASES = {"swinv2_tiny": 4_416, "swinv2_small": 9_024, "swinv2_base": 12_032}
LOOK_LIKE_OTHERS = {*BY_AUTHORS, "timm_efficientnet_lite0"}  # under timm's names
# By size alone they differ from others that are here.
LIKE_OTHERS = {
    *("resnet34d", "resnet101d", "resnet152d", "resnetrs101", "tresnet_l", "timm_tresnet_l"),
    *("timm_tresnet_v2_l", "efficientnet_lite2", "efficientnet_lite3", "efficientnet_b2"),
    *("efficientnet_b3", "efficientnet_b4", "tf_efficientnet_b3"),
}


def to_recognise(layout: Layout) -> tuple[str, ...]:
    """All of a layout; of the many of transformers, whose sizes differ in numbers, one."""
    is_transformer = layout.archs[0] in {*vit.SIZES, *swin.SIZES}
    is_one_of_many = is_transformer and layout.name not in ("timm", "transformers")
    return layout.archs[:1] if is_one_of_many else layout.archs


NETWORKS = [
    (arch, layout.name)
    for layout in LAYOUTS
    for arch in to_recognise(layout)
    if arch not in LIKE_OTHERS and not (layout.name == "timm" and arch in LOOK_LIKE_OTHERS)
]
TRUNKS = [
    (arch, layout)
    for arch, layout in NETWORKS
    if arch in PARAMETERS and layout not in ("mcar", "msrn") and not layout.endswith("-trunk")
]
SMALLEST = [
    (arch, layout)
    for arch, layout in NETWORKS
    if arch in ("resnet18", "mobilenet_v2", "convnextv2_atto")
]
# (C, K) of the four released checkpoints of MSRN.
MSRN_SETS = {"voc": (20, 4), "coco": (80, 4), "nuswide": (81, 4), "apparel": (11, 2)}


def test_a_fused_tensor_is_several_of_ours():
    fused = np.arange(24.0).reshape(6, 4)  # [out, in] of query, key, value
    rules = [Rule("qkv.weight", name, LINEAR, Part(k, 3)) for k, name in enumerate("qkv")]
    ours = [rule.ours(fused) for rule in rules]
    np.testing.assert_array_equal(ours[1], fused[2:4].T)
    np.testing.assert_array_equal(
        np.concatenate([r.theirs(x) for r, x in zip(rules, ours, strict=True)]), fused
    )
    assert rules[2].their_shape(ours[2].shape) == fused.shape


def shapes_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def is_dead(name: str) -> bool:
    last = name.rpartition(".")[2]
    constants = ("relative_position_index", "relative_coords_table", "bias_mask", "periods")
    return last in (*constants, "num_batches_tracked", "mask_token") or name in (
        "W",
        "B",
        "resnet_101.conv_buffer0.weight",
        "resnet_101.conv_buffer0.bias",
    )


def asked(arch: str, layout: str) -> str | None:
    """The architecture, where another has tensors of the same shapes."""
    is_told = layout in ("microsoft", "torchvision")
    return arch if arch in {*TWINS, *TWINS.values()} and not is_told else None


def count_parameters(shapes: dict[str, tuple], arch: str | None = None) -> int:
    filled = detect(shapes, arch).filled.items()
    names = {name for path, (name, _) in filled if path.startswith("params/")}
    return sum(np.prod(shapes[name]) for name in names)


def test_every_backbone_has_a_table():
    assert set(ARCHS) == set(BACKBONES) - {"resnet10"}  # which torchvision does not have


@pytest.mark.parametrize(("arch", "layout"), NETWORKS)
def test_every_network_is_recognised_and_filled(source_shapes, arch, layout):
    shapes = source_shapes(arch, layout)
    found = detect(shapes, asked(arch, layout))
    if arch.startswith("openclip"):  # of whose tensors nothing tells that OpenAI's are others
        assert found.arch == arch.removeprefix("open")
        found = detect(shapes, arch)
    assert (found.arch, found.layout.name) == (arch, layout)
    assert {name for name, _ in found.filled.values()} == set(shapes)
    assert not found.left_out
    unused = {path.removeprefix("unused/") for path in found.filled if path.startswith("unused/")}
    has_dead_keys = arch in KEY_BIASES or arch.startswith("dinov3")
    of_keys = {name for name in shapes if has_dead_keys and name.endswith("qkv.bias")}
    assert unused == {name for name in shapes if is_dead(name)} | of_keys


@pytest.mark.parametrize(("arch", "layout"), TRUNKS)
def test_trunks_have_the_published_number_of_parameters(source_shapes, arch, layout):
    expected = PARAMETERS[arch] + (KEY_BIASES.get(arch, 0) if layout == "torchvision" else 0)
    assert count_parameters(source_shapes(arch, layout), asked(arch, layout)) == expected


@pytest.mark.parametrize("classes", [1, 20, 80])
@pytest.mark.parametrize(
    ("arch", "features"), [("resnet50", 2048), ("resnet101", 2048), ("mobilenet_v2", 1280)]
)
def test_mcar_is_a_trunk_and_one_classifier(source_shapes, arch, features, classes):
    shapes = source_shapes(arch, "mcar", classes)
    assert detect(shapes).sizes.classes == classes
    expected = PARAMETERS[arch] + (classes - 1000) * (features + 1)
    assert count_parameters(shapes) == expected


@pytest.mark.parametrize("name", MSRN_SETS)
def test_msrn_is_recognised_for_every_set(source_shapes, name):
    classes, groups = MSRN_SETS[name]
    shapes = source_shapes("resnet101", "msrn", classes, groups)
    found = detect(shapes)
    assert (found.arch, found.layout.name) == ("resnet101", "msrn")
    assert (found.sizes.classes, found.sizes.groups) == (classes, groups)
    fc1 = shapes[found.filled["params/fc1/kernel"][0]]
    assert np.prod(fc1) == 3 * 512 * (classes + groups) * 2048  # of COCO 264 million


def test_msrn_may_carry_the_classifier_of_its_trunk(source_shapes):
    shapes = source_shapes("resnet18", "msrn")
    shapes["resnet_101.fc.weight"] = (1000, 512)
    with pytest.raises(Failure, match=r"msrn names: tensor 'resnet_101\.fc\.bias' is missing$"):
        detect(shapes)
    found = detect(shapes | {"resnet_101.fc.bias": (1000,)})
    assert found.filled["unused/resnet_101.fc.weight"][0] == "resnet_101.fc.weight"


@pytest.mark.parametrize(("arch", "layout"), TRUNKS)
def test_the_classifier_is_optional(source_shapes, arch, layout):
    shapes = source_shapes(arch, layout)
    trunk = {n: s for n, s in shapes.items() if s[:1] != (IMAGENET_CLASSES,)}
    found = detect(trunk, asked(arch, layout))
    assert (found.arch, found.layout.name) == (arch, layout)
    assert not any("classifier" in target for target in found.filled)


@pytest.mark.parametrize(
    ("arch", "layout"), [*SMALLEST, ("resnet50", "torchvision"), ("convnext_tiny", "torchvision")]
)
def test_tensors_go_there_and_back_unchanged(source_tensors, arch, layout):
    tensors = source_tensors(arch, layout)
    if layout == "msrn":
        tensors["W"][0, :2] = np.nan, np.inf  # never initialised, and nobody noticed
    variables = to_flax(tensors, detect(shapes_of(tensors)))
    assert set(variables) == {"params", "batch_stats", "unused"}
    weights = jax.tree.leaves([variables["params"], variables["batch_stats"]])
    assert all(leaf.dtype == np.float32 for leaf in weights)
    back = to_torch(variables, arch, layout)
    assert set(back) == set(tensors)
    for name, array in back.items():
        assert array.dtype == tensors[name].dtype and array.flags.c_contiguous
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)


@pytest.mark.parametrize(("arch", "layout"), SMALLEST)
def test_the_leaves_are_those_of_our_models(source_tensors, arch, layout):
    tensors = source_tensors(arch, layout)
    variables = to_flax(tensors, detect(shapes_of(tensors)))
    given = {name: variables[name] for name in ("params", "batch_stats")}
    if layout in ("mcar", "msrn"):
        config = default_config().model
        config.update(name=layout, backbone=arch, top_n=1, pool_ratio=0.5)
        inputs = {"word_vectors": np.zeros((2, 300), np.float32)}
        inputs["attention_mask"] = np.eye(2, dtype=bool)
        model = create_model(config, 2, **inputs if layout == "msrn" else {})
    else:
        given = {name: tree["features"] for name, tree in given.items() if tree}
        model = create_backbone(arch)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, given) == jax.tree.map(np.shape, dict(wanted))


@pytest.mark.parametrize(("arch", "layout"), SMALLEST)
def test_weights_that_never_saw_torch_get_its_dead_tensors(source_tensors, arch, layout):
    tensors = source_tensors(arch, layout)
    variables = to_flax(tensors, detect(shapes_of(tensors)))
    del variables["unused"]
    state = to_torch(variables, arch, layout)
    assert set(state) == {name for name in tensors if not is_dead(name)}

    complete = with_dead_tensors(state, arch, layout)
    assert shapes_of(complete) == shapes_of(tensors)
    for name, array in complete.items():
        assert array.dtype == tensors[name].dtype
        assert is_dead(name) == (not array.any()), name
    np.testing.assert_array_equal(with_dead_tensors(tensors, arch, layout)[name], tensors[name])


def test_dead_tensors_may_be_missing_but_not_wrong(source_shapes):
    shapes = source_shapes("resnet18", "msrn")
    alive = {name: shape for name, shape in shapes.items() if not is_dead(name)}
    assert detect(alive).sizes.classes == 2
    for wrong in (
        {"W": (2, 1536)},
        {"resnet_101.conv_buffer0.weight": (64, 3, 1, 1)},
        {"resnet_101.bn1.num_batches_tracked": (64,)},
    ):
        with pytest.raises(Failure, match="and must be") as failure:
            detect(shapes | wrong)
        assert repr(*wrong) in str(failure.value)


def test_known_leaves_hold_the_right_axes(source_tensors):
    tensors = source_tensors("mobilenet_v2", "d-li14")
    variables = to_flax(tensors, detect(shapes_of(tensors)))
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


def test_known_leaves_of_convnext(source_tensors):
    for layout, block, scale in (
        ("torchvision", "features.3.1", "layer_scale"),
        ("timm", "stages.1.blocks.1", "gamma"),
        ("facebook", "stages.1.1", "gamma"),
        ("transformers", "convnext.encoder.stages.1.layers.1", "layer_scale_parameter"),
    ):
        tensors = source_tensors("convnext_tiny", layout)
        params = to_flax(tensors, detect(shapes_of(tensors)))["params"]
        ours = params["features"]["stage2_1"]
        np.testing.assert_array_equal(ours["layer_scale"], tensors[f"{block}.{scale}"].ravel())
        names = {"torchvision": ("block.3", "block.5"), "timm": ("mlp.fc1", "mlp.fc2")}
        expand, reduce = names.get(layout, ("pwconv1", "pwconv2"))
        assert ours["expand"]["kernel"][3, 8] == tensors[f"{block}.{expand}.weight"][8, 3]
        assert ours["reduce"]["bias"][5] == tensors[f"{block}.{reduce}.bias"][5]
    tensors = source_tensors("convnextv2_atto", "transformers")
    params = to_flax(tensors, detect(shapes_of(tensors)))["params"]
    theirs = tensors["convnextv2.encoder.stages.2.layers.4.grn.weight"]
    np.testing.assert_array_equal(
        params["features"]["stage3_4"]["response_norm"]["scale"], theirs[0, 0, 0]
    )


def test_known_leaves_of_whole_models(source_tensors):
    tensors = source_tensors("mobilenet_v2", "mcar")
    params = to_flax(tensors, detect(shapes_of(tensors)))["params"]
    assert params["convclass"]["kernel"][9, 1] == tensors["convclass.weight"][1, 9, 0, 0]
    head = params["features"]["head"]["kernel"]
    assert head[0, 0, 7, 5] == tensors["features.1.0.weight"][5, 7, 0, 0]
    expand = params["features"]["block3"]["expand"]["kernel"]
    assert expand[0, 0, 4, 6] == tensors["features.0.3.conv.0.weight"][6, 4, 0, 0]

    tensors = source_tensors("resnet18", "msrn")
    variables = to_flax(tensors, detect(shapes_of(tensors)))
    params = variables["params"]
    for name, kernel in (
        ("resnet_101.conv_buffer1", params["branch2"]["kernel"]),
        ("resnet_101.conv_buffer2", params["branch3"]["kernel"]),
        ("ProjectM.1", params["project3"]["kernel"]),
        ("fc_label", params["label_linear"]["kernel"]),
        ("fc1", params["fc1"]["kernel"]),
        ("fc2", params["fc2"]["kernel"]),
    ):
        assert kernel[6, 1] == tensors[f"{name}.weight"][1, 6].item(), name
    for name, module in (
        ("label_embed.layers.0", "label_attention0"),
        ("label_embed.layers.1", "label_attention1"),
        ("group_embed.layers.0.embed", "group_attention"),
        ("group_embed.layers.0.assign_mat", "group_assignment"),
    ):
        np.testing.assert_array_equal(params[module]["kernel"], tensors[f"{name}.W"])
        np.testing.assert_array_equal(params[module]["attention"], tensors[f"{name}.a"])
    np.testing.assert_array_equal(variables["unused"]["W"], tensors["W"])


def test_all_problems_are_listed_in_one_line(source_shapes):
    shapes = source_shapes("resnet50")
    shapes["layer1.0.se.fc1.weight"] = (16, 256)  # would change what the block computes
    shapes["layer1.7.conv1.weight"] = (64, 64, 1, 1)
    shapes["conv1.weight"] = (64, 4, 7, 7)
    shapes["layer4.0.conv2.weight"] = (512,)
    del shapes["layer2.3.bn3.running_var"], shapes["fc.bias"]
    with pytest.raises(Failure) as failure:
        detect(shapes)
    title, problems = str(failure.value).split(": ")
    assert title == "does not fit resnet50 under torchvision names"
    assert sorted(problems.split("; ")) == sorted(
        [
            "tensor 'layer1.0.se.fc1.weight' [16, 256] is unknown",
            "tensor 'layer1.7.conv1.weight' [64, 64, 1, 1] is unknown",
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
    problems = str(failure.value).split("; ")
    assert len(problems) == 9
    assert problems[-1] == "and 42 more"  # ten convolutions of five tensors are missing


def test_the_class_count_is_what_most_tensors_say(source_shapes):
    right = source_shapes("resnet18", "msrn", classes=20, groups=4)
    for name in ("fc2.bias", "fc2.weight", "W"):
        wrong = (21, *right[name][1:])
        told = f"names: tensor '{name}' is {list(wrong)} and must be {list(right[name])}"
        with pytest.raises(Failure, match=re.escape(told) + "$"):
            detect(right | {name: wrong})
    shapes = source_shapes("resnet18", "msrn", classes=20, groups=4)
    shapes["fc1.weight"] = (2048, 25 * 1536)
    with pytest.raises(Failure, match=r"'fc1.weight' is .* must be \[2048, 36864\]$"):
        detect(shapes)


@pytest.mark.parametrize("layout", ["mcar", "msrn"])
def test_no_classes_at_all_are_refused(source_shapes, layout):
    with pytest.raises(Failure, match=r"is \[0\] and must be \[1\]"):
        detect(source_shapes("resnet18", layout, classes=0))


def test_a_head_of_other_classes_is_left_out(source_shapes):
    shapes = source_shapes("resnet18") | {"fc.weight": (21, 512), "fc.bias": (21,)}
    found = detect(shapes)
    assert found.left_out == ["fc.weight", "fc.bias"]
    assert not any("classifier" in target for target in found.filled)
    del shapes["fc.bias"]
    assert detect(shapes).left_out == ["fc.weight"]


@pytest.mark.parametrize("kernel", [(21, 256), (1000, 256), (21, 512, 1, 1), (22, 512), ()])
def test_a_head_that_is_wrong_otherwise_is_refused(source_shapes, kernel):
    shapes = source_shapes("resnet18") | {"fc.weight": kernel, "fc.bias": (21,)}
    with pytest.raises(Failure, match=r"'fc.weight' is .* and must be \[1000, 512\]"):
        detect(shapes)


def test_tensors_beside_a_trunk_are_left_out_and_beside_a_model_refused(source_shapes):
    more = {"aux.weight": (3, 3), "fc.1.weight": (20, 512)}
    assert detect(source_shapes("resnet18") | more).left_out == list(more)
    with pytest.raises(Failure, match=r"'aux\.weight' \[3, 3\] is unknown"):
        detect(source_shapes("resnet18", "mcar") | more)


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


def test_an_ambiguous_table_is_no_table(source_shapes):
    shapes, layout = source_shapes("resnet18"), LAYOUTS[0]
    twice = Rule("stem.weight", "params/features/stem/scale")
    with pytest.raises(ValueError, match="stem/scale matches 2 rules"):
        match(shapes, replace(layout, rules=(*layout.rules, twice)), "resnet18")
    shared = [
        replace(rule, source="bn1.weight") if rule.source == "bn1.bias" else rule
        for rule in layout.rules
    ]
    with pytest.raises(ValueError, match=r"bn1\.weight is the name of .*bias and .*scale"):
        match(shapes, replace(layout, rules=tuple(shared)), "resnet18")


def test_unusable_values_are_listed_at_once(source_tensors):
    tensors = source_tensors("resnet18")
    matched = detect(shapes_of(tensors))
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
    with pytest.raises(UsageError, match="there are no msrn names of mobilenet_v2"):
        to_torch({}, "mobilenet_v2", "msrn")
