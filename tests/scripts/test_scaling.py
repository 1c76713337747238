"""The cost model: counts by hand and by XLA, memory by hand, published sizes; and its document."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

from mlic_jax.config import default_config
from mlic_jax.models.convolution import plain

ROOT = Path(__file__).resolve().parents[2]
BYTES = 4 * 64 * 64  # of one array below


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module("scaling")


@pytest.fixture(scope="module")
def cost_of(scaling):
    return scaling.cost_of


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depthwise", [False, True])
def test_products_of_a_convolution_and_its_gradients(cost_of, stride, depthwise):
    def passes(x, kernel):
        y, gradients_of = jax.vjp(lambda *given: plain(*given, stride, depthwise), x, kernel)
        return y, gradients_of(jnp.ones_like(y))

    x, kernel = jnp.ones((2, 7, 8, 4)), jnp.ones((3, 3, 1 if depthwise else 4, 4))
    # Of ones, every product is 1: what is padding or lies between strides adds nothing.
    products = sum(np.sum(array) for array in jax.tree.leaves(passes(x, kernel)))
    assert cost_of(passes, x, kernel).matrix == 2 * products


def test_products_of_matrices_and_turns_of_a_loop(cost_of):
    def product(a, b):
        return jnp.einsum("bij,bjk->bik", a, b)

    a = zeros(3, 4, 4)
    expected = jax.jit(product).lower(a, a).compile().cost_analysis()["flops"]
    assert cost_of(product, a, a).matrix == expected == 2 * 3 * 4**3
    loop = cost_of(lambda a: lax.fori_loop(0, 7, lambda _, x: product(x, a), a), a)
    assert loop.matrix == 7 * expected


def test_what_is_elementwise_is_done_on_the_way(cost_of):
    x = zeros(64, 64)
    assert cost_of(lambda x: jnp.tanh(2 * x + 1), x).moved == 2 * BYTES
    assert cost_of(lambda x: jnp.sum(jnp.tanh(x)), x).moved == BYTES + 4
    # A product cannot read through it: tanh is read and written before.
    assert cost_of(lambda x: jnp.tanh(x) @ x, x).moved == 2 * BYTES + 3 * BYTES


def test_an_update_takes_the_place_of_what_it_updates(cost_of):
    def update(p, m, g):
        m = 0.9 * m + g + 1e-4 * p
        return p - 0.1 * m, m

    cost = cost_of(update, *[zeros(64, 64)] * 3)
    assert (cost.peak, cost.moved) == (3 * BYTES, 5 * BYTES)


def layers(count, wrap=lambda layer: layer):
    """A loss of as many layers, and the gradient of it by all weights."""
    layer = wrap(lambda x, w: jnp.sin(x @ w))

    def loss(weights, x):
        for w in weights:
            x = layer(x, w)
        return jnp.sum(x)

    return jax.grad(loss), [zeros(64, 64)] * count, zeros(64, 64)


def test_memory_of_a_gradient(cost_of):
    def growth(wrap):
        few, many = (cost_of(*layers(count, wrap)) for count in (6, 10))
        return (many.peak - many.inputs - few.peak + few.inputs) / 4 / BYTES

    # Of a layer stay its product, for the cosine, and its output, which the next one multiplies.
    # Where it is computed again, the output alone.
    assert growth(lambda layer: layer) == 2
    assert growth(jax.checkpoint) == 1


def test_memory_inside_a_loop(cost_of):
    def turn(x, _):
        return jnp.sum(x @ x) + x @ x, None

    inside = cost_of(lambda x: turn(x, None)[0], zeros(64, 64))
    loop = cost_of(lambda x: lax.scan(turn, x, length=5)[0], zeros(64, 64))
    assert loop.peak == inside.peak + BYTES  # what goes round


@pytest.fixture(scope="module")
def step_of(scaling):
    """(model, size, options of config.model) -> a narrow train step, and its arguments."""

    def make(model, size="64", **options):
        config = scaling.recipe("mcar_voc2007", "resnet10", size, width=0.25, **options)
        config.model.name = model
        return scaling.train_step_of(config, batch=64)

    return make


def test_products_of_a_train_step(scaling, step_of, cost_of):
    with scaling.as_on_accelerators():
        step, arguments = step_of("mcar")
        cost = cost_of(step, *arguments)
        flops = step.lower(*arguments).cost_analysis()["flops"]
    assert cost.matrix + cost.vector == pytest.approx(flops, rel=0.03)
    assert cost.inputs == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments))


def test_memory_of_a_train_step(scaling, step_of, cost_of):
    def beside_inputs(**options):
        step, arguments = step_of("pooled", **options)
        cost = cost_of(step, *arguments)
        return cost.peak - cost.inputs

    with scaling.as_on_accelerators():
        whole = beside_inputs()
        assert beside_inputs(size="128") == pytest.approx(4 * whole, rel=0.05)
        assert beside_inputs(dtype="bfloat16") < 0.8 * whole
        # Little is gained where a stage is of one block.
        assert beside_inputs(remat="block") < whole


def test_parameters(scaling):
    # Those of torchvision's ResNet-18, without its classifier of 1000 classes.
    counts = scaling.parameters("mcar_voc2007", "resnet18")
    assert counts == {"features": 11_689_512 - 513_000, "convclass": 512 * 20 + 20}


def test_of_devices(scaling):
    # Every device passes on n - 1 of n shares twice: to sum them, and to spread the sums.
    assert scaling.ring(gradient=800.0, devices=8, bandwidth=100.0) == pytest.approx(2 * 7)
    assert scaling.largest_batch(memory=100.0, fixed=30.0, of_image=20.0) == 3
    assert scaling.largest_batch(memory=100.0, fixed=95.0, of_image=20.0) == 0


def test_decoding(scaling, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    assert scaling.main(["decode", "--photos", str(tmp_path)]) == 0
    rates = re.findall(r"^\| (\d+) \| (\d+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [int(size) for size, _ in rates] == [256, 448, 576]
    assert all(int(rate) > 0 for _, rate in rates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode"], "--photos is None; decode needs a folder with .jpg files"),
        (["decode", "--photos", "/nowhere"], "--photos is /nowhere; decode needs a folder"),
        (["speed"], "invalid choice: 'speed'"),
    ],
)
def test_wrong_requests(scaling, capsys, arguments, message):
    assert scaling.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_writing_a_table(scaling, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    document = tmp_path / "scaling.md"
    monkeypatch.setattr(scaling, "DOCUMENT", document)
    command = ["decode", "--photos", str(tmp_path), "--write"]
    document.write_text("before\n<!-- scaling: decode -->\nold\n<!-- end -->\nafter\n")
    assert scaling.main(command) == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- scaling: decode -->\n| px | images/s of one core |\n")
    assert text.endswith(" |\n<!-- end -->\nafter\n") and "old" not in text
    document.write_text("nothing\n")
    assert scaling.main(command) == 2
    assert "must have one <!-- scaling: decode -->" in capsys.readouterr().err
    assert document.read_text() == "nothing\n"


def test_the_document_names_what_exists(scaling):
    text = scaling.DOCUMENT.read_text(encoding="utf-8")
    for name in scaling.TABLES:
        assert re.search(rf"<!-- scaling: {name} -->\n\|.*?<!-- end -->", text, re.DOTALL), name
    for size, rate in scaling.DECODED.items():
        assert f"| {size} | {rate:.0f} |" in text
    for path in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / path).is_file(), path
    options = default_config()
    for option in re.findall(r"--config\.([\w.]+\w)", text):
        value = options
        for part in option.split("."):
            assert part in value, option
            value = value[part]
