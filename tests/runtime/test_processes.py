"""Real processes on this machine: they equal one, stop together, and end when one is lost."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mlic_jax.data import sources
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import UsageError
from mlic_jax.runtime import processes
from mlic_jax.runtime.checkpoint import load_weights
from mlic_jax.scores.files import Scores
from mlic_jax.train.loop import train

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 500  # seconds that a busy machine may take


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(*command, stderr, cwd=ROOT):
    """A process with four devices."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    with stderr.open("w") as err:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )


@contextlib.contextmanager
def pair(*command, folder, lost_seconds=10, cwds=(ROOT, ROOT)):
    """Both processes of a command, `folder/{0,1}.err` being what they say."""
    port = free_port()
    both = [
        start(
            *command,
            *("--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"),
            *(f"--process_id={i}", f"--join_seconds={PATIENCE}", f"--lost_seconds={lost_seconds}"),
            stderr=folder / f"{i}.err",
            cwd=cwds[i],
        )
        for i in range(2)
    ]
    try:
        yield both
    finally:
        for process in both:
            process.kill()
            process.communicate()


def training(config, workdir):
    """The command that trains as a configuration says."""
    recipe = workdir.parent / "recipe.py"
    recipe.write_text(
        "import json\nfrom mlic_jax.config import default_config\n\ndef get_config():\n"
        "    config = default_config()\n"
        f"    config.update(json.loads({config.to_json()!r}))\n    return config\n"
    )
    return "-m", "mlic_jax.main", "--config", str(recipe), "--workdir", str(workdir)


@pytest.fixture(scope="module")
def small_config(make_config):
    """Of a model that compiles soon and whose regions rounding cannot move: it has none.

    With every option of training that many devices could make a difference to; the schedule is one
    that more epochs do not change, so that longer runs find the same programs compiled.
    """
    config = make_config()
    config.model.name, config.model.bn_groups = "pooled", 2
    config.batch_size, config.accumulation, config.eval.batch_size = 16, 2, 1
    config.loss.label_smoothing = 0.1
    config.optim.scaling, config.optim.reference_batch = "linear", 8
    config.optim.nesterov, config.optim.clip_norm = True, 1.0
    config.optim.milestones, config.optim.warmup_epochs = (1,), 0.5
    return config


@pytest.fixture(scope="module")
def alone(small_config, tmp_path_factory):
    """The workdir of a run in one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    train(small_config, workdir)
    return workdir


@pytest.fixture(scope="module")
def together(small_config, tmp_path_factory):
    """The workdir of the same run in two processes of four devices each, and what they printed."""
    folder = tmp_path_factory.mktemp("together")
    sources.open_splits(DataOptions.of(small_config.data))
    with pair(*training(small_config, folder / "run"), folder=folder) as both:
        printed = [process.communicate(timeout=PATIENCE)[0] for process in both]
        for i, process in enumerate(both):
            assert process.returncode == 0, (folder / f"{i}.err").read_text()[-3000:]
    return folder / "run", printed


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def latest(workdir):
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def test_two_processes_of_four_devices_equal_one_of_eight(alone, together):
    for expected, got in zip(lines_of(alone), lines_of(together[0]), strict=True):
        for values in (expected, got):
            values.pop("images_per_second", None)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-3, err_msg=name)
    expected, got = (load_weights(run / "checkpoints/4")[0] for run in (alone, together[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), expected, got)


def test_scores_are_gathered_once_and_in_order(alone, together):
    """Eleven images in batches of eight over two processes."""
    expected, got = (Scores.load(run / "scores_test.npz") for run in (alone, together[0]))
    assert len(got.logits) == 11
    np.testing.assert_array_equal(got.image_ids, expected.image_ids)
    np.testing.assert_array_equal(got.labels, expected.labels)
    np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-3, atol=1e-3)


def test_only_the_first_process_prints_and_logs(together):
    workdir, (first, second) = together
    # What the library of the collectives says, whose threads write pieces of lines between others'.
    pieces = ("[Gloo] Rank", "is connected to", "peer ranks.", "Expected number of connected")
    of_gloo = "|".join(map(re.escape, (*pieces, "peer ranks is :")))
    assert "final mAP" in first
    assert re.sub(rf"{of_gloo}|\d+|\s+", "", second) == ""
    said = [(workdir.parent / f"{i}.err").read_text() for i in range(2)]
    assert "Compiled the training step in" in said[0]
    of_libraries = re.compile(r"[IWE]\d{4} ")  # such as that a heartbeat came late
    assert [line for line in said[1].splitlines() if line and not of_libraries.match(line)] == []


def test_a_signal_stops_both_a_kill_ends_both_and_the_run_resumes(
    alone, together, small_config, tmp_path
):
    """Whichever is killed. Also: what two processes saved, one process reads."""
    config = small_config.copy_and_resolve_references()
    config.epochs, config.checkpoint_every, config.eval.every = 400, 2, 1000
    printed, codes, said = {}, {}, {}
    with contextlib.ExitStack() as stack:
        pairs = {}
        for number, who in ((signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGKILL, 0)):
            folder = tmp_path / f"{number.name}-{who}"
            shutil.copytree(together[0], folder / "run")
            command = *training(config, folder / "run"), "--allow_changes"
            pairs[number, who, folder] = stack.enter_context(pair(*command, folder=folder))
        for (number, who, folder), both in pairs.items():
            deadline = time.monotonic() + PATIENCE
            while latest(folder / "run") < 6 and time.monotonic() < deadline:
                assert both[who].poll() is None
                time.sleep(0.01)
            both[who].send_signal(number)
        for (*case, folder), both in pairs.items():
            texts = [process.communicate(timeout=PATIENCE)[0] for process in both]
            case = tuple(case)
            printed[case], codes[case] = texts[0], [process.returncode for process in both]
            said[case] = [(folder / f"{i}.err").read_text() for i in range(2)]

    run = tmp_path / "SIGTERM-1" / "run"
    assert codes[signal.SIGTERM, 1] == [0, 0], said[signal.SIGTERM, 1][0][-3000:]
    stopped = f"stopped at step {latest(run)} of 800, saved; the same command continues"
    assert stopped in printed[signal.SIGTERM, 1]

    for who in range(2):
        other = said[signal.SIGKILL, who][1 - who]
        assert codes[signal.SIGKILL, who][who] == -signal.SIGKILL
        assert codes[signal.SIGKILL, who][1 - who] == 1, other[-3000:]
        assert f"error: {processes.LOST}" in other
        assert other.count("error: ") == 1
        run = tmp_path / f"SIGKILL-{who}" / "run"
        config.epochs = latest(run) // 2 + 1
        train(config, run, allow_changes=True, evaluate=False)
        assert [line["step"] for line in lines_of(run) if "loss" in line] == list(
            range(1, config.epochs * 2 + 1)
        )


TOGETHER = """
import os, signal, sys, time
from pathlib import Path
from absl import flags
from mlic_jax.runtime import processes
from mlic_jax.command_line import exit_code

def act():
    import jax
    import numpy as np
    from mlic_jax.runtime import devices
    from mlic_jax.runtime.run_checkpoints import RunCheckpoints
    made, workdir = map(Path, sys.argv[1:])
    with processes.joined(mode, ["agree"]):
        me = jax.process_index()
        mine = processes.first_alone(lambda: made.exists() or made.touch())
        told = processes.of_all("name", f"from {me}")
        print(mine is True, told, file=sys.stderr, flush=True)
        checkpoints = RunCheckpoints(workdir)
        everywhere = devices.replicated(devices.create_mesh())

        def save(step):
            x = devices.lay_out(np.full(1000, step), everywhere)
            checkpoints.save(step, {"params": {"x": x}}, {"step": x}, {})
            checkpoints.add_validation(step, step / SAVES)

        with processes.stop_requests(5) as stop_at:
            for step in range(6, 400):
                if step == 8:
                    signal.raise_signal([signal.SIGTERM, signal.SIGINT][me])
                    save(1)  # which takes nobody back to step 1
                    time.sleep(2)
                if stop_at(step):
                    break
                time.sleep(0.01)
                processes.wait_for_all("the step is done")
        print("stopped at", step, file=sys.stderr, flush=True)
        for step in range(2, SAVES + 1):
            save(step)
        checkpoints.close()
        if me == 0:
            processes.wait_for_all("said")
            os.kill(os.getpid(), signal.SIGKILL)
        processes.wait_for_all("said")
        processes.wait_for_all("never")

SAVES = 20
mode = flags.DEFINE_string("mode", "agree", "")
sys.argv[1:] = flags.FLAGS(sys.argv)[1:]
os._exit(exit_code(act))
"""


def test_processes_wait_for_each_other_stop_together_and_save_many_checkpoints(tmp_path):
    """And where that one is killed, all others know."""
    with pair("-c", TOGETHER, str(tmp_path / "made"), str(tmp_path), folder=tmp_path) as both:
        for process in both:
            process.communicate(timeout=PATIENCE)
    said = [(tmp_path / f"{i}.err").read_text() for i in range(2)]
    told = ["from 0", "from 1"]
    assert f"False {told}\n" in said[0]
    assert f"True {told}\n" in said[1]
    stops = [int(re.search(r"stopped at (\d+)", text)[1]) for text in said]
    assert 8 <= stops[0] == stops[1] < 399
    assert [process.returncode for process in both] == [-signal.SIGKILL, 1]
    assert f"error: {processes.LOST}" in said[1]
    assert latest(tmp_path) == 20


FAIL = """
import ctypes, os, sys
from absl import flags
from mlic_jax.runtime import processes
from mlic_jax.command_line import exit_code

def fail():
    import jax
    if cause == "disk":
        open("/dev/full", "wb", buffering=0).write(b"x")
    elif cause == "memory":
        jax.numpy.ones(2**50, jax.numpy.int8).block_until_ready()
    elif cause == "sign":  # what XLA also says of others
        raise jax.errors.JaxRuntimeError("ABORTED: of this process alone")
    else:
        ctypes.CDLL(None).abort()

def act():
    from mlic_jax.runtime.run_checkpoints import RunCheckpoints
    with processes.joined(mode, ["fail"]), RunCheckpoints(folder):
        if processes.is_first() == (who == "first"):
            fail()
        processes.wait_for_all("never")

mode = flags.DEFINE_string("mode", "fail", "")
who, cause, folder = flags.FLAGS(sys.argv)[1:]
os._exit(exit_code(act))
"""


def test_whatever_ends_one_process_ends_both_and_each_says_its_own_reason(tmp_path):
    defect = "error: JaxRuntimeError, which should not be: "
    cases = {
        ("second", "disk"): "error: No space left on device; what was saved stays",
        ("first", "memory"): "error: memory is full; fewer photos",
        ("second", "sign"): f"{defect}ABORTED: of this process alone",
        ("second", "abort"): f"error: {processes.ABORTED}",
    }
    with contextlib.ExitStack() as stack:
        pairs = []
        for case in cases:
            folder = tmp_path / "-".join(case)
            folder.mkdir()
            command = "-c", FAIL, *case, str(folder / "run")
            pairs += [stack.enter_context(pair(*command, folder=folder, lost_seconds=5))]
        for ((who, cause), reason), both in zip(cases.items(), pairs, strict=True):
            for process in both:
                process.communicate(timeout=PATIENCE)
                assert process.returncode == 1
            said = [(tmp_path / f"{who}-{cause}" / f"{i}.err").read_text() for i in range(2)]
            failing, other = said if who == "first" else reversed(said)
            for text, line in ((failing, reason), (other, f"error: {processes.LOST}")):
                assert line in text
                assert text.count("error: ") == 1, text


def test_a_run_that_cannot_start_says_why_in_a_line(tmp_path):
    config = str(ROOT / "configs/mcar_scenes.py")
    # A batch that does not divide among four devices, in case a run starts all the same.
    main = ("-m", "mlic_jax.main", "--config", config, "--workdir=run", "--config.batch_size=6")
    cwds = tmp_path / "one", tmp_path / "another"
    for cwd in cwds:
        cwd.mkdir()
    with socket.socket() as taken:  # so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        nobody = f"--coordinator=127.0.0.1:{taken.getsockname()[1]}"
        alone = start(*main, "--distributed", stderr=tmp_path / "alone")
        late = start(
            *main,
            *("--distributed", nobody, "--num_processes=2", "--process_id=1", "--join_seconds=1"),
            stderr=tmp_path / "late",
        )
        with pair(*main, folder=tmp_path, cwds=cwds) as both:
            for process in (alone, late, *both):
                process.communicate(timeout=PATIENCE)
    assert alone.returncode == 2
    (line,) = (tmp_path / "alone").read_text().splitlines()
    assert line.startswith("error: --distributed finds no launcher that it knows")
    assert "--coordinator=HOST:PORT, --num_processes and --process_id" in line
    assert late.returncode == 1
    *_, line = (tmp_path / "late").read_text().splitlines()
    assert line.startswith("error: the processes did not find each other at 127.0.0.1:")
    for i, process in enumerate(both):
        assert process.returncode == 2, (tmp_path / f"{i}.err").read_text()[-3000:]
        *_, line = (tmp_path / f"{i}.err").read_text().splitlines()
        assert line == "error: --workdir run must be a folder that all processes share"
        assert not list(cwds[i].iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("host:1", 2, None), "given all or none"),
        (("host", 2, 1), "--coordinator is 'host'; it must be HOST:PORT"),
        (("host:1", 2, 2), "--process_id is 2; it must be below 2"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        processes.initialize(*arguments)
