"""Every way in which people wrap the weights of a network, and which of several are taken."""

import re

import numpy as np
import pytest

from mlic_jax.errors import Failure, UsageError
from weight_conversion import matching
from weight_conversion.convert import load_checkpoint
from weight_conversion.wrapping import WORDS, find, kind_of, places_of

PLACES = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model/",
    "model_state_dict/",
    "state_dict/",
    "state_dict/module.",
    "state_dict/model.",  # Lightning's
    "state_dict/model.backbone.",
    "state_dict/module.encoder_q.",  # MoCo's
    "state_dict/backbone.",  # mmpretrain's
    "backbone.",
    "state_dict_ema/",
    "model_ema/module.",  # torch.optim.swa_utils.AveragedModel
    "ema/module/",
    "teacher/backbone.",
    "student/module.backbone.",
]


def at(place: str, shapes: dict[str, tuple]) -> dict[str, tuple]:
    return {place + name: shape for name, shape in shapes.items()}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_found(source_shapes, place):
    shapes = at(place, source_shapes("resnet18"))
    found = find(shapes)
    assert (found.place, found.matched.arch) == (place, "resnet18")
    assert {name for name, _ in found.matched.filled.values()} == set(source_shapes("resnet18"))
    assert not (found.others or found.left_out)
    assert kind_of(place) == ("ema" if re.search("ema|teacher", place) else "raw")
    assert find(shapes, weights=place or ".").place == place


def test_a_part_of_a_network_that_fits_is_no_place(source_shapes, monkeypatch):
    """ViT of `transformers` has an encoder, and is one alone where it is called that."""
    looked_at = []

    def closest(shapes, arch):
        looked_at.append(set(shapes))
        return matching.closest(shapes, arch)

    monkeypatch.setattr("weight_conversion.wrapping.closest", closest)
    shapes = source_shapes("vit_tiny_patch16", "transformers-trunk")
    assert "encoder." in places_of(shapes)
    assert find(shapes).place == "" and looked_at == [set(shapes)]
    assert find(at("encoder.", shapes)).place == "encoder."


@pytest.mark.parametrize("layout", ["mcar", "msrn"])
@pytest.mark.parametrize("place", ["module.", "state_dict/model."])
def test_whole_models_are_wrapped_too(source_shapes, layout, place):
    beside = {"state_dict/criterion.weight": (2,)}
    found = find(at(place, source_shapes("resnet18", layout)) | beside)
    assert (found.place, found.matched.layout.name) == (place, layout)
    assert found.left_out == tuple(beside)
    assert found.matched.sizes.classes == 2


@pytest.mark.parametrize(
    ("raw", "ema"),
    [
        ("state_dict/", "state_dict_ema/"),
        ("model/", "model_ema/module."),
        ("student/backbone.", "teacher/backbone."),
        ("module.encoder_q.", "module.encoder_k."),
        ("", "ema/"),
    ],
)
def test_of_both_the_raw_weights_are_taken_and_the_average_by_a_word(source_shapes, raw, ema):
    trunk = source_shapes("resnet18")
    both = at(ema, trunk) | at(raw, trunk) | {"queue": (128, 65536)}
    found = find(both)
    assert (found.place, found.others, found.left_out) == (raw, (ema,), ("queue",))
    assert find(both, weights="raw").place == raw
    assert find(both, weights="ema").place == ema
    named = find(both, weights=ema)
    assert (named.place, named.others, named.left_out) == (ema, (raw,), ("queue",))


def test_an_average_alone_is_taken(source_shapes):
    shapes = at("model_ema/", source_shapes("resnet18"))
    assert find(shapes).place == "model_ema/"
    with pytest.raises(UsageError, match=r"no weights 'raw', but model_ema/ \(ema\)$"):
        find(shapes, weights="raw")


def test_two_that_fit_alike_are_told_apart_by_a_place(source_shapes):
    shapes = at("model/", source_shapes("resnet18")) | at("net/", source_shapes("resnet34"))
    with pytest.raises(
        UsageError, match="net/ and model/ fit alike: say which with --weights net/"
    ):
        find(shapes)
    assert find(shapes, weights="model/").matched.arch == "resnet18"
    assert find(shapes, weights="net/").others == ("model/",)
    assert find(shapes, "resnet34").place == "net/"


def test_what_does_not_fit_is_told_of_the_place_that_comes_closest(source_shapes):
    shapes = at("state_dict/module.", source_shapes("resnet18")) | {"best": ()}
    del shapes["state_dict/module.layer4.1.conv2.weight"]
    told = (
        r"^state_dict/module\.: does not fit resnet18 .* tensor 'layer4.1.conv2.weight' is missing"
    )
    with pytest.raises(Failure, match=told):
        find(shapes)
    right = at("ema/", source_shapes("resnet18"))
    with pytest.raises(Failure, match=told):
        find(shapes | right, weights="state_dict/module.")
    with pytest.raises(Failure, match=r"no known network \(its tensors: 'w'"):
        find({"model/w": (3,)})
    with pytest.raises(UsageError, match="the weights of resnet18, not of resnet50"):
        find(at("model/", source_shapes("resnet18")), "resnet50")


def test_words_may_begin_the_names_of_a_network_itself(source_shapes):
    """A word is one up to its dot: `model2.` and `modules.` are none."""
    assert places_of(["model.a", "model2.b", "model/c", "a.model.d"]) == ["", "model.", "model/"]
    assert places_of([]) == [""]


def test_hostile_names_cost_little(source_shapes):
    names = ["".join(f"{word}." for word in WORDS) + str(k) for k in range(100)]
    names += [f"{a}.{b}.x" for a in WORDS for b in WORDS]
    assert len(places_of(names)) == 32


VARIANTS = ["half", "bfloat16", "double", "channels last", "parameters", "no counts"]


@pytest.mark.torch
@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_of_every_kind_give_the_same_weights(torch, source_tensors, tmp_path, variant):
    change = {
        "half": lambda t: t.half(),
        "bfloat16": lambda t: t.bfloat16(),
        "double": lambda t: t.double(),
        "channels last": lambda t: (
            t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
        ),
        "parameters": torch.nn.Parameter,
        "no counts": lambda t: t,
    }[variant]
    # Numbers that all of these types have.
    tensors = {n: np.round(16 * t) / 16 for n, t in source_tensors("mobilenet_v2").items()}
    state = {n: torch.from_numpy(np.array(t)) for n, t in tensors.items()}
    state = {n: change(t) if t.is_floating_point() else t for n, t in state.items()}
    if variant == "no counts":
        state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    torch.save({"model_ema": state}, tmp_path / "x.pth")
    variables, info = load_checkpoint(tmp_path / "x.pth")
    assert info["place"] == "model_ema/"
    assert info["num_tensors"] == len(state)
    kernel = variables["params"]["features"]["stem"]["kernel"]
    assert kernel.dtype == np.float32
    wanted = change(torch.from_numpy(tensors["features.0.0.weight"])).detach().float().numpy()
    np.testing.assert_array_equal(kernel, wanted.transpose(2, 3, 1, 0))
