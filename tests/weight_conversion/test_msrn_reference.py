"""MSRN with the same weights and pixels in both frameworks: outputs, loss and every gradient.

Both compute in float64. A gradient jumps where a ReLU or a maximum changes sides, and of the
million values here some are so near to that edge that float32 puts them on either.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.models import create_model
from mlic_jax.train.losses import total_loss
from weight_conversion.arrays import to_flax, to_torch
from weight_conversion.matching import detect

pytestmark = [pytest.mark.torch, pytest.mark.numerical]
# Of the largest value of an array: seven digits above the rounding, which the layers amplify.
TOLERANCE = 1e-9
ARCH, LABELS, GROUPS, DIMENSIONS = "resnet18", 4, 2, 9
# Name in a released state_dict -> path in our tree, and how its axes are turned.
CONV, LINEAR, SAME = (lambda x: x[:, :, 0, 0].T), (lambda x: x.T), (lambda x: x)
TENSORS = {
    "resnet_101.conv_buffer1.weight": ("branch2", "kernel", CONV),
    "resnet_101.conv_buffer1.bias": ("branch2", "bias", SAME),
    "resnet_101.conv_buffer2.weight": ("branch3", "kernel", CONV),
    "resnet_101.conv_buffer2.bias": ("branch3", "bias", SAME),
    "label_embed.layers.0.W": ("label_attention0", "kernel", SAME),
    "label_embed.layers.0.a": ("label_attention0", "attention", SAME),
    "label_embed.layers.1.W": ("label_attention1", "kernel", SAME),
    "label_embed.layers.1.a": ("label_attention1", "attention", SAME),
    "group_embed.layers.0.embed.W": ("group_attention", "kernel", SAME),
    "group_embed.layers.0.embed.a": ("group_attention", "attention", SAME),
    "group_embed.layers.0.assign_mat.W": ("group_assignment", "kernel", SAME),
    "group_embed.layers.0.assign_mat.a": ("group_assignment", "attention", SAME),
    "ProjectM.0.weight": ("project2", "kernel", CONV),
    "ProjectM.0.bias": ("project2", "bias", SAME),
    "ProjectM.1.weight": ("project3", "kernel", CONV),
    "ProjectM.1.bias": ("project3", "bias", SAME),
    "ProjectM.2.weight": ("project4", "kernel", CONV),
    "ProjectM.2.bias": ("project4", "bias", SAME),
    "fc_label.weight": ("label_linear", "kernel", LINEAR),
    "fc_label.bias": ("label_linear", "bias", SAME),
    "fc1.weight": ("fc1", "kernel", LINEAR),
    "fc1.bias": ("fc1", "bias", SAME),
    "fc2.weight": ("fc2", "kernel", LINEAR),
    "fc2.bias": ("fc2", "bias", SAME),
}
DEAD = ("W", "B", "resnet_101.conv_buffer0.weight", "resnet_101.conv_buffer0.bias")


def released_shapes(resnet: dict[str, tuple], labels: int, groups: int) -> dict[str, tuple]:
    """What a released checkpoint over ResNet-101 holds."""
    shapes = {f"resnet_101.{name}": shape for name, shape in resnet.items()}
    for i, channels in enumerate((256, 512, 1024)):
        shapes[f"resnet_101.conv_buffer{i}.weight"] = (channels, channels, 1, 1)
        shapes[f"resnet_101.conv_buffer{i}.bias"] = (channels,)
    for i, channels in enumerate((512, 1024, 2048)):
        shapes[f"ProjectM.{i}.weight"] = (512, channels, 1, 1)
        shapes[f"ProjectM.{i}.bias"] = (512,)
    attention = {
        "label_embed.layers.0": (256, 300),
        "label_embed.layers.1": (300, 512),
        "group_embed.layers.0.embed": (512, 512),
        "group_embed.layers.0.assign_mat": (512, groups),
    }
    for name, (inputs, outputs) in attention.items():
        shapes[f"{name}.W"] = (inputs, outputs)
        shapes[f"{name}.a"] = (2 * outputs, 1)
    linear = {
        "fc_label": (256, 300),
        "fc1": (2048, (labels + groups) * 1536),
        "fc2": (labels, 2048),
    }
    for name, shape in linear.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes | {"W": (labels, 3072), "B": (labels,)}


@pytest.mark.parametrize(
    ("labels", "pool_ratio", "groups"), [(20, 0.2, 4), (80, 0.05, 4), (81, 0.05, 4), (11, 0.2, 2)]
)
def test_state_dict_is_the_released_one(torch, source_shapes, labels, pool_ratio, groups):
    from weight_conversion.torch_reference.msrn import MSRN

    with torch.device("meta"):
        module = MSRN("resnet101", torch.empty(labels, 300), torch.ones(labels, labels), pool_ratio)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    trunk = {n: s for n, s in source_shapes("resnet101").items() if not n.startswith("fc.")}
    assert shapes == released_shapes(trunk, labels, groups)


@pytest.fixture(scope="module")
def both(torch, source_tensors, in_float64):
    """Outputs, loss and gradients by torch name, of ours and theirs."""
    from weight_conversion.torch_reference.msrn import MSRN

    rng = np.random.default_rng(0)
    word_vectors = rng.normal(0, 1, (LABELS, DIMENSIONS)).astype(np.float32)
    mask = np.eye(LABELS, dtype=bool)
    mask[0, 1] = mask[0, 3] = mask[2, 0] = True  # 3 attends to itself alone, none both ways
    coarse = rng.normal(0, 1, (2, 8, 8, 3)).repeat(16, axis=1).repeat(16, axis=2)
    images = (coarse + rng.normal(0, 0.3, coarse.shape)).astype(np.float32)  # 128 px
    targets = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)

    module = MSRN(ARCH, torch.from_numpy(word_vectors), torch.from_numpy(mask) * 0.25, 0.5)
    trunk = source_tensors(ARCH)
    state = {}
    for name, tensor in module.state_dict().items():
        name_in_trunk = name.removeprefix("resnet_101.")
        if name_in_trunk in trunk:
            state[name] = trunk[name_in_trunk]
            continue
        graph = name.endswith((".W", ".a"))  # the inputs come first there
        inputs = tensor.shape[0] if graph else np.prod(tensor.shape[1:])
        spread = inputs**-0.5 if tensor.ndim > 1 else 0.1
        state[name] = np.float32(spread) * rng.standard_normal(tuple(tensor.shape), np.float32)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    module.double().eval()
    theirs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double())
    soft_margin = torch.nn.MultiLabelSoftMarginLoss()
    theirs["loss"] = theirs["group_loss"] + soft_margin(
        theirs["logits"], torch.from_numpy(targets).double()
    )
    theirs["loss"].backward()
    their_gradients = {
        name: None if p.grad is None else p.grad.numpy() for name, p in module.named_parameters()
    }

    config = default_config()
    config.model.update(name="msrn", backbone=ARCH, pool_ratio=0.5)
    model = create_model(config.model, LABELS, word_vectors=word_vectors, attention_mask=mask)
    variables = to_flax(trunk, detect({name: t.shape for name, t in trunk.items()}))
    params = {"features": variables["params"]["features"]}
    for name, (layer, leaf, turn) in TENSORS.items():
        params.setdefault(layer, {})[leaf] = turn(state[name])
    statistics = {"features": variables["batch_stats"]["features"]}
    model, variables = in_float64(model, {"params": params, "batch_stats": statistics})

    @jax.jit
    def run(params):
        present = jnp.asarray(targets)
        out = model.apply(variables | {"params": params}, jnp.asarray(images))
        loss, _ = total_loss(out, present, jnp.ones_like(present))
        return loss, out

    with jax.enable_x64(True):
        compute = jax.value_and_grad(run, has_aux=True)
        (loss, ours), gradients = jax.device_get(compute(variables["params"]))
    trunk_gradients = to_torch({"params": {"features": gradients["features"]}}, ARCH)
    our_gradients = {f"resnet_101.{name}": array for name, array in trunk_gradients.items()}
    for name, (layer, leaf, turn) in TENSORS.items():
        # A convolution's gradient is compared as the matrix that its kernel is here.
        our_gradients[name] = np.asarray(gradients[layer][leaf])
        their_gradients[name] = turn(their_gradients[name])
    theirs = {name: tensor.detach().numpy() for name, tensor in theirs.items()}
    return {**ours, "loss": loss}, theirs, our_gradients, their_gradients


def test_outputs_and_loss_agree(both):
    ours, theirs, _, _ = both
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        error = np.abs(array - theirs[name]).max() / np.abs(theirs[name]).max()
        assert error < TOLERANCE, (name, error)
    # Both groups are some label's likeliest; the loss of the groups is there to be seen.
    assert set(theirs["group_assignment"].argmax(axis=1)) == {0, 1}
    assert theirs["group_loss"] > 1e-4


def test_every_gradient_agrees(both):
    _, _, ours, theirs = both
    dead = {name for name, gradient in theirs.items() if gradient is None}
    assert dead == set(DEAD)
    assert set(ours) == set(theirs) - dead
    for name, gradient in ours.items():
        error = np.abs(gradient - theirs[name]).max() / np.abs(theirs[name]).max()
        assert error < TOLERANCE, (name, error)
