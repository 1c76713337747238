"""ML-Decoder and Query2Label against plain PyTorch, written here from the papers."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from mlic_jax.models.heads.decoders import MLDecoder, Query2Label, sine_positions

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

pytestmark = pytest.mark.torch

CLASSES, WIDTH, INPUTS = 7, 24, 12
RNG = np.random.default_rng(0)
MAPS = RNG.standard_normal((3, 4, 5, INPUTS))


class Layer(torch.nn.Module):
    """A transformer layer without dropout: what each of the two papers uses of it."""

    def __init__(self, wide, heads, self_attention, cross_attention):
        super().__init__()

        def attention():
            return torch.nn.MultiheadAttention(WIDTH, heads, batch_first=True)

        self.self_attention = attention() if self_attention else None
        self.attention = attention() if cross_attention else None
        self.norm_self, self.norm_attention, self.norm_reduce = (
            torch.nn.LayerNorm(WIDTH) for _ in range(3)
        )
        self.expand, self.reduce = torch.nn.Linear(WIDTH, wide), torch.nn.Linear(wide, WIDTH)

    def forward(self, x, places=0, keys=None, values=None):
        if self.self_attention is not None:
            placed = x + places
            x = self.norm_self(x + self.self_attention(placed, placed, x)[0])
        if self.attention is not None:
            seen, self.looked = self.attention(x, keys, values)
            x = self.norm_attention(x + seen)
        return self.norm_reduce(x + self.reduce(torch.relu(self.expand(x))))


class TorchMLDecoder(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.groups = min(classes, 100)
        self.classes, labels = classes, -(-classes // self.groups)
        self.tokens = torch.nn.Linear(INPUTS, WIDTH)
        self.norm_queries = torch.nn.LayerNorm(WIDTH)
        self.layer = Layer(WIDTH * 8 // 3, 8, False, True)
        self.queries = torch.nn.Parameter(torch.empty(self.groups, WIDTH), requires_grad=False)
        self.kernel = torch.nn.Parameter(torch.empty(self.groups, WIDTH, labels))
        self.bias = torch.nn.Parameter(torch.empty(classes))

    def forward(self, maps):
        tokens = torch.relu(self.tokens(maps.flatten(1, 2)))
        queries = self.queries.expand(len(maps), -1, -1)
        queries = self.norm_queries(queries + queries)
        queries = self.layer(queries, keys=tokens, values=tokens)
        logits = torch.stack([queries[:, k] @ self.kernel[k] for k in range(self.groups)], 1)
        return logits.flatten(1)[:, : self.classes] + self.bias


class TorchQuery2Label(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.project = torch.nn.Linear(INPUTS, WIDTH)
        self.encoder = Layer(4 * WIDTH, 4, True, False)
        self.decoder0 = Layer(4 * WIDTH, 4, False, True)
        self.decoder1 = Layer(4 * WIDTH, 4, True, True)
        self.queries = torch.nn.Parameter(torch.empty(classes, WIDTH))
        self.kernel = torch.nn.Parameter(torch.empty(classes, WIDTH))
        self.bias = torch.nn.Parameter(torch.empty(classes))

    def forward(self, maps):
        places = torch.from_numpy(sine_positions(*maps.shape[1:3], WIDTH)).double()[None]
        memory = self.encoder(self.project(maps.flatten(1, 2)), places)
        queries = self.queries.expand(len(maps), -1, -1)
        for decoder in (self.decoder0, self.decoder1):
            queries = decoder(queries, keys=memory + places, values=memory)
        return (queries * self.kernel).sum(-1) + self.bias


def drawn(model):
    """Variables in float64, other than those of the start."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), MAPS.astype(np.float32))
    return jax.tree.map(lambda leaf: 0.3 * RNG.standard_normal(leaf.shape), shapes)


def torch_names(head, parameters):
    """Our parameters under PyTorch's names, in its shapes."""
    named, parts = {}, {}
    for path, value in flax.traverse_util.flatten_dict(parameters).items():
        *modules, name = path
        modules = [m for m in modules if m != "per_label"]
        if head == "ml_decoder" and modules and modules[0] not in ("tokens", "norm_queries"):
            modules.insert(0, "layer")
        if modules and modules[-1] in ("query", "key", "value"):
            parts[*modules, name] = value
            continue
        if modules and not modules[-1].startswith("norm") and name == "kernel":
            value = value.T
        if modules and modules[-1] == "out":
            modules[-1] = "out_proj"
        if modules:
            name = {"kernel": "weight", "scale": "weight"}.get(name, name)
        named[".".join((*modules, name))] = value
    for path in {path[:-2] for path in parts}:
        for ours, theirs in (("kernel", "in_proj_weight"), ("bias", "in_proj_bias")):
            three = [parts[*path, name, ours].T for name in ("query", "key", "value")]
            named[".".join((*path, theirs))] = np.concatenate(three)
    return named


@pytest.mark.parametrize(
    ("head", "classes"), [("ml_decoder", 7), ("ml_decoder", 130), ("query2label", 7)]
)
def test_logits_and_gradients_are_those_of_pytorch(head, classes):
    ours = {"ml_decoder": MLDecoder, "query2label": Query2Label}[head](classes, width=WIDTH)
    theirs = {"ml_decoder": TorchMLDecoder, "query2label": TorchQuery2Label}[head](classes).double()
    weigh = RNG.standard_normal((3, classes))
    variables = drawn(ours)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # in LayerNorm
        params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

        def total(params, maps):
            logits = ours.apply({"params": params, **rest}, maps)["logits"]
            return (logits * weigh).sum(), logits

        gradients, logits = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, MAPS)
        gradients, logits = jax.device_get((gradients, logits))

    def as_torch(tree):
        return {name: torch.from_numpy(np.array(x)) for name, x in torch_names(head, tree).items()}

    state = as_torch(params)
    if rest:
        state["queries"] = torch.from_numpy(rest["batch_stats"]["queries"])
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all("norm_" in name for name in missing.missing_keys)  # of parts that are not used
    maps = torch.from_numpy(MAPS).requires_grad_()
    want = theirs(maps)
    (want * torch.from_numpy(weigh)).sum().backward()
    np.testing.assert_allclose(logits, want.detach().numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(gradients[1], maps.grad.numpy(), rtol=1e-9, atol=1e-9)
    of_theirs = dict(theirs.named_parameters())
    for name, gradient in as_torch(gradients[0]).items():
        np.testing.assert_allclose(gradient, of_theirs[name].grad, rtol=1e-8, atol=1e-9)


def test_maps_are_where_the_last_layer_looked():
    ours, theirs = Query2Label(CLASSES, width=WIDTH), TorchQuery2Label(CLASSES).double()
    variables = drawn(ours)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # in LayerNorm
        got = np.asarray(jax.jit(ours.apply)(variables, MAPS)["class_maps"])
    named = torch_names("query2label", variables["params"])
    theirs.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in named.items()}, False)
    theirs(torch.from_numpy(MAPS))
    looked = theirs.decoder1.looked.detach().numpy()  # the mean over heads, [B, C, P]
    want = (looked / looked.max(axis=-1, keepdims=True)).transpose(0, 2, 1).reshape(3, 4, 5, -1)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
