"""Profiles of real loops: the files, what their summary says, and that the loop goes on."""

import contextlib
import gzip
import io
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from mlic_jax.evaluate.run import evaluate_run
from mlic_jax.runtime import devices, profiling
from mlic_jax.train.loop import train

BATCH = 16


@jax.jit
def layer(kernel, images):
    """A convolution, sums over the devices, a transpose and a sort."""
    window = (1, 1), "SAME"
    seen = jax.lax.conv_general_dilated(
        images, kernel, *window, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = seen.mean(0, keepdims=True)  # over the rows of all devices
    return jnp.tanh(seen - mean).sum(), jnp.sort(seen[:, :, 0, 0]), jnp.asarray(images.mT)


def slow_batches(count, seconds):
    for _ in range(count):
        time.sleep(seconds)
        index = np.arange(BATCH)
        yield {
            "image": np.ones((BATCH, 32, 32, 8), np.float32),
            "index": np.where(index < 12, index, -1),
        }


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """(folder, steps that the loop did) of a loop that waits 20 ms for every batch."""
    folder = tmp_path_factory.mktemp("profile")
    mesh = devices.create_mesh()
    kernel = jax.device_put(np.ones((3, 3, 8, 8), np.float32), devices.replicated(mesh))
    to_devices = profiling.annotated(profiling.TO_DEVICES)(devices.to_devices)
    dispatch = profiling.annotated(profiling.DISPATCH)(layer)
    steps = 0
    for batch in profiling.profiled(slow_batches(10, 0.02), 10, "train", folder):
        # One step at a time: collectives of several can starve each other on few cores.
        jax.block_until_ready(dispatch(kernel, to_devices(batch, mesh)["image"]))
        steps += 1
    return folder, steps


@pytest.fixture(scope="module")
def summary(profile):
    return json.loads((profile[0] / "summary.json").read_text())


@pytest.fixture(scope="module")
def perfetto(profile):
    """The events of the trace that Perfetto opens."""
    found = json.loads(gzip.decompress((profile[0] / "perfetto_trace.json.gz").read_bytes()))
    assert "metadata" not in found
    return found["traceEvents"]


def test_the_loop_goes_on_after_the_traced_steps(profile, summary):
    assert profile[1] == 10
    assert summary["steps"] == profiling.TRACED_STEPS
    assert summary["devices"] == 8


@pytest.mark.parametrize("side", ["host", "device"])
def test_the_parts_add_up_to_the_step(summary, side):
    seconds = [part["seconds"] for part in summary[side].values()]
    assert min(seconds) >= 0
    assert sum(seconds) == pytest.approx(summary["step_seconds"])
    assert sum(part["share"] for part in summary[side].values()) == pytest.approx(1)


def test_operations_add_up_to_their_groups_and_parts(summary):
    for group, part in summary["device"].items():
        if group in (profiling.BETWEEN, profiling.WAITING):
            continue
        of_group = [o["seconds"] for o in summary["operations"] if o["group"] == group]
        assert sum(of_group) == pytest.approx(part["seconds"])
        assert of_group == sorted(of_group, reverse=True)
    total = sum(o["seconds"] for o in summary["operations"])
    assert sum(p["seconds"] for p in summary["parts"].values()) == pytest.approx(total)


def test_a_slow_reader_is_found(summary):
    assert 0.02 <= summary["host"][profiling.WAIT_FOR_DATA]["seconds"] < summary["step_seconds"]
    assert summary["device"][profiling.WAITING]["share"] > 0.3
    assert summary["images_per_second"] == pytest.approx(12 / summary["step_seconds"])  # no padding


def test_steps_and_operations_are_in_both_traces(profile, summary, perfetto):
    (path,) = (profile[0] / "plugins" / "profile" / "process_0").glob("*.xplane.pb")
    planes = ProfileData.from_file(str(path)).planes
    xprof = {event.name for plane in planes for line in plane.lines for event in line.events}
    steps = [event["args"] for event in perfetto if event.get("name") == "train"]
    assert sorted(int(args["step_num"]) for args in steps) == [3, 4, 5, 6, 7]
    for names in (xprof, {event.get("name") for event in perfetto}):
        assert {operation["name"] for operation in summary["operations"]} <= names
        assert {profiling.WAIT_FOR_DATA, profiling.TO_DEVICES, profiling.DISPATCH} <= names


def test_operations_are_in_their_groups(summary):
    """Of this program all groups are known, whatever the compiler fuses."""
    assert all(o["program"] == "jit_layer" for o in summary["operations"])
    for group in (profiling.PRODUCTS, profiling.ELEMENTWISE, profiling.COLLECTIVES):
        assert summary["device"][group]["seconds"] > 0
    groups = {o["source"].split("/")[-1]: o["group"] for o in summary["operations"]}
    assert groups["conv_general_dilated"] == profiling.PRODUCTS
    assert groups["sort"] == profiling.OTHER


def test_the_text_says_what_the_summary_does(profile, summary):
    text = (profile[0] / "summary.txt").read_text()
    assert f"{summary['images_per_second']:.1f} images/s" in text
    waiting = summary["device"][profiling.WAITING]
    (line,) = (line for line in text.splitlines() if profiling.WAITING in line)
    assert f"{1000 * waiting['seconds']:.2f} ms" in line and f"{waiting['share']:.1%}" in line


def contents_of(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return profiling.parse_program(text)


@pytest.mark.parametrize(
    ("function", "group"),
    [
        (lambda x: x @ x, profiling.PRODUCTS),
        (lambda x: jnp.tanh(x) * x.sum(0)[None], profiling.ELEMENTWISE),
        (lambda x: jnp.flip(x.T), profiling.MOVES),
        (lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, jnp.sin, x), profiling.OTHER),
    ],
)
def test_groups_of_compiled_operations(function, group):
    contents = contents_of(function, jnp.ones((64, 64)))
    assert group in {profiling.group_of(opcodes) for opcodes, _ in contents.values()}


def test_group_by_name_where_the_program_is_unknown():
    for name, group in [
        ("transpose_copy_fusion.3", profiling.MOVES),
        ("wrapped_tanh", profiling.ELEMENTWISE),
        ("all-reduce-start.1", profiling.COLLECTIVES),
        ("loop_convert_fusion", profiling.ELEMENTWISE),
        ("MemcpyH2D", profiling.MOVES),
        ("cudnn-conv-bias-activation.2", profiling.PRODUCTS),
        ("gemm_fusion_dot.4", profiling.PRODUCTS),
    ]:
        assert profiling.group_of(profiling.opcodes_of_name(name)) == group, name


def test_parts_of_the_model():
    for source, part in [
        ("jvp(MCAR)/MCAR.look_globally/features/layer1_0/conv1/mul", "features/layer1"),
        ("transpose(jvp(MSRN))/features/layer4_2/conv1/dot_general", "features/layer4, backward"),
        ("jvp(MCAR)/MCAR.look_locally/MCAR.score_regions/vmap()/gather", "MCAR.score_regions"),
        ("MSRN/project1/while/body/closed_call/add", "project1"),
        ("add", "outside of the model"),
        ("", "fused from many parts"),
    ]:
        assert profiling.part_of(source) == part


def test_divide_against_every_single_nanosecond():
    """Runs and operations drawn at random: nested, at once, and across the ends of the window."""
    draw = np.random.default_rng(0)
    window = (20, 180)
    for _ in range(20):
        starts = draw.choice(200, 30, replace=False)
        operations = [
            profiling.Operation(int(s), int(s + draw.integers(1, 25)), "p", f"o{i % 7}", i % 11)
            for i, s in enumerate(starts)
        ]
        expected: dict = {}
        for now in range(*window):
            running = [o for o in operations if o.start <= now < o.end]
            begun = {o.run for o in operations if o.start <= now}
            unfinished = {o.run for o in operations if o.end > now}
            what = profiling.BETWEEN if begun & unfinished else profiling.WAITING
            if running:
                what = "p", max(running, key=lambda o: o.start).name
            expected[what] = expected.get(what, 0) + 1
        assert profiling.divide(operations, window) == expected


def test_an_error_in_a_traced_step_ends_the_trace(tmp_path):
    batches = profiling.profiled(slow_batches(2, 0), 2, "train", tmp_path / "first")
    next(batches), next(batches)
    batches.close()  # as the loop's ExitStack does
    assert not (tmp_path / "first" / "summary.json").exists()
    jax.profiler.start_trace(tmp_path / "second")  # which refuses to be the second at a time
    jax.profiler.stop_trace()


@pytest.mark.parametrize(("count", "traced"), [(0, 0), (1, 1), (2, 1), (6, 3)])
def test_short_loops(tmp_path, count, traced):
    assert len(list(profiling.profiled(slow_batches(count, 0), count, "train", tmp_path))) == count
    written = tmp_path / "summary.json"
    assert (json.loads(written.read_text())["steps"] if written.exists() else 0) == traced


@pytest.fixture(scope="module")
def small_config(make_config):
    config = make_config()
    config.model.name = "pooled"
    # Without the gradient of the backbone, which takes longest to compile.
    config.freeze_statistics, config.optim.multipliers.features = True, 0.0
    return config


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    """The folder of a profiled run, and what it printed."""
    workdir = tmp_path_factory.mktemp("run")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train(small_config, workdir, profile=True)
    return workdir, printed.getvalue()


def test_a_training_run(run):
    """Of six steps the last three are traced, the validation and the saving of the last too."""
    workdir, printed = run
    summary = json.loads((workdir / "profile" / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["devices"] == 8
    assert (workdir / "profile" / "summary.txt").read_text() in printed
    assert (workdir / "profile" / "perfetto_trace.json.gz").exists()
    for side in ("host", "device"):
        seconds = sum(part["seconds"] for part in summary[side].values())
        assert seconds == pytest.approx(summary["step_seconds"])
    for phase in profiling.PHASES:
        assert summary["host"][phase]["seconds"] > 0, phase
    assert {o["program"] for o in summary["operations"]} >= {"jit_train_step", "jit_eval_step"}
    known = [o for o in summary["operations"] if o["source"]]
    assert len(known) > 0.5 * len(summary["operations"])
    assert {"features/stem", "convclass, backward"} <= summary["parts"].keys()


def test_training_goes_on_after_the_traced_steps(run):
    (*_, last) = (run[0] / "metrics.jsonl").read_text().splitlines()
    assert json.loads(last)["step"] == 6
    assert (run[0] / "metrics_test.json").exists()


def test_a_profile_of_an_evaluation(run, small_config, tmp_path):
    evaluate_run(small_config, tmp_path, run[0], profile=True)
    summary = json.loads((tmp_path / "profile" / "summary.json").read_text())
    assert summary["loop"] == "evaluate"
    assert summary["steps"] == 1  # of two batches
    assert summary["images_per_second"] == pytest.approx(3 / summary["step_seconds"])
    assert sum(part["share"] for part in summary["device"].values()) == pytest.approx(1)
    assert {o["program"] for o in summary["operations"]} == {"jit_eval_step"}
    assert not any("backward" in part for part in summary["parts"])
