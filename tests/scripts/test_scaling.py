"""The cost model: counts by hand and by XLA, memory by hand, published sizes; and its document."""

import functools
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec
from PIL import Image

from mlic_jax.config import default_config
from mlic_jax.models import spread
from mlic_jax.models.ops.convolution import plain

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


@pytest.mark.parametrize(("platform", "products"), [("cpu", 1), ("cuda", 3), ("tpu", 2)])
def test_of_what_a_platform_chooses_its_own_is_counted(cost_of, platform, products):
    def power(count):
        return lambda x: functools.reduce(jnp.matmul, [x] * (count + 1))

    def turn(x, _):
        ways = {"cpu": power(1), "tpu": power(2), "default": power(3)}
        return lax.platform_dependent(x, **ways), None

    once = cost_of(lambda x: turn(x, None)[0], zeros(64, 64), platform=platform)
    assert once.matrix == products * 2 * 64**3
    loop = cost_of(lambda x: lax.scan(turn, x, length=5)[0], zeros(64, 64), platform=platform)
    assert loop.matrix == 5 * once.matrix


def test_what_nobody_reads_is_not_computed(cost_of):
    def gradient(x, w):
        return jax.vjp(lambda x: x @ w, x)[1](x)[0]  # the product itself is not wanted

    cost = cost_of(gradient, zeros(64, 64), zeros(64, 64))
    assert (cost.matrix, cost.moved) == (2 * 64**3, 3 * BYTES)


def test_inside_shard_map(cost_of):
    def product(x):
        return jnp.tanh(x @ x)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec()}
    sharded = jax.shard_map(lambda x: lax.psum(product(x), "data"), mesh=mesh, **specs)
    alone, shared = cost_of(product, zeros(64, 64)), cost_of(sharded, zeros(64, 64))
    assert shared.matrix == alone.matrix
    assert shared.moved == alone.moved + 2 * BYTES  # what is exchanged lies in memory


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
    step, arguments = step_of("mcar")
    cost = cost_of(step, *arguments, platform="cuda")
    with scaling.as_on_accelerators():
        step, arguments = step_of("mcar")
        assert cost_of(step, *arguments) == cost
        flops = step.lower(*arguments).cost_analysis()["flops"]
    assert cost.matrix + cost.vector == pytest.approx(flops, rel=0.03)
    assert cost.inputs == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments))


def test_memory_of_a_train_step(scaling, step_of, cost_of):
    def beside_inputs(**options):
        step, arguments = step_of("pooled", **options)
        cost = cost_of(step, *arguments, platform="cuda")
        return cost.peak - cost.inputs

    whole = beside_inputs()
    assert beside_inputs(size="128") == pytest.approx(4 * whole, rel=0.05)
    assert beside_inputs(dtype="bfloat16") < 0.8 * whole
    # Little is gained where a stage is of one block.
    assert beside_inputs(remat="block") < whole


def test_parameters(scaling):
    # Those of torchvision's ResNet-18, without its classifier of 1000 classes.
    counts = scaling.parameters("mcar_voc2007", "resnet18")
    assert counts == {"features": 11_689_512 - 513_000, "convclass": 512 * 20 + 20}


def test_exchanges_of_batch_normalisation(scaling):
    # ResNet-18 has 20 layers; MCAR looks twice.
    assert scaling.small_exchanges("mcar_voc2007", "resnet18") == 2 * 2 * 20
    assert scaling.small_exchanges("msrn_voc2007", "resnet18") == 2 * 20
    # As many as there are in a step.
    config = scaling.recipe("mcar_voc2007", "resnet10", "64", width=0.125)
    model = spread(scaling.model_of(config), "data")
    images = zeros(2, 64, 64, 3)
    variables = jax.eval_shape(scaling.model_of(config).init, jax.random.key(0), images)

    def loss(params, statistics, images):
        state = {"params": params, "batch_stats": statistics}
        outputs, _ = model.apply(state, images, True, mutable=["batch_stats"])
        return jnp.sum(outputs["logits"])

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    specs = PartitionSpec(), PartitionSpec(), PartitionSpec("data")
    gradient = jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"), check_vma=False
    )
    program = jax.jit(gradient).lower(variables["params"], variables["batch_stats"], images)
    exchanges = program.as_text().count("stablehlo.all_reduce")
    assert exchanges == scaling.small_exchanges("mcar_voc2007", "resnet10")


def test_latency_of_small_exchanges(scaling):
    # Of a tree: along the GPUs of a host, and between hosts, to sum and to spread.
    assert scaling.nccl_latency(1) == pytest.approx(6.8e-6 + 2 * 7 * 0.6e-6)
    assert scaling.nccl_latency(8) == pytest.approx(6.8e-6 + 2 * (7 * 0.6e-6 + 3 * 5e-6))


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
