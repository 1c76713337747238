"""Programs are compiled once, before they are needed, and kept for later runs."""

import json
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.models.ops.convolution import plain_gradients
from mlic_jax.runtime import compilation, devices
from mlic_jax.runtime.compilation import compile_ahead, jit, keep_programs, make_deterministic
from mlic_jax.train.loop import train

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def no_cache(monkeypatch):
    """JAX as a user starts it, who has said nothing of its cache; as before afterwards."""
    before = {option: getattr(jax.config, option) for option in OPTIONS}
    for option in OPTIONS:
        monkeypatch.delenv(option.upper(), raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    yield
    for option, value in before.items():
        jax.config.update(option, value)


def test_programs_are_kept_in_a_folder_of_the_user(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    keep_programs()
    folder = tmp_path / "home" / ".cache" / "mlic_jax" / "compiled"
    assert folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0

    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xdg" / "mlic_jax" / "compiled")


def test_what_the_environment_says_of_the_cache_wins(no_cache, tmp_path, monkeypatch):
    # As JAX_COMPILATION_CACHE_DIR does while JAX is imported.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "chosen"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "chosen")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1
    assert not (tmp_path / "xdg").exists()


def test_a_folder_that_cannot_be_written_costs_a_line_and_nothing_else(
    no_cache, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = caplog.messages
    assert line.startswith("Compiled programs are not kept for later runs: ")
    assert str(tmp_path / "file") in line


def test_of_kept_programs_those_go_that_were_not_used_for_longest(no_cache, tmp_path, monkeypatch):
    folder = tmp_path / "mlic_jax" / "compiled"
    folder.mkdir(parents=True)
    for name, read, written in (("a", 1, 3), ("b", 2, 2), ("c", 4, 1), ("d", 1, 1), ("e", 5, 5)):
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (read, written))
    (folder / "of_xla").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation, "MOST_KEPT", 300)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    keep_programs()
    assert len(list(folder.iterdir())) == 6, "what the environment says wins"

    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE")
    jax.config.update("jax_compilation_cache_dir", None)
    keep_programs()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c", "e", "of_xla"]


def test_compiling_ahead_says_where_the_program_came_from(caplog):
    def scaled_by_seven(x):
        return 7 * x

    for entry in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("jit_scaled_by_seven-*"):
        entry.unlink()
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    with caplog.at_level(logging.INFO, "mlic_jax"):
        compile_ahead("it", jax.jit(scaled_by_seven), shape)
        jax.clear_caches()  # as in another process
        compiled = compile_ahead("it", jax.jit(scaled_by_seven), shape)
    first, second = (line for line in caplog.messages if line.startswith("Compiled it in "))
    assert first.endswith(" s")
    assert second.endswith(" s (an earlier run had compiled it)")
    assert compiled(jnp.ones(3)).tolist() == [7, 7, 7]
    with pytest.raises(TypeError, match="compiled"):
        compiled(jnp.ones(4))


@pytest.fixture
def kernel_gradient():
    """The gradient of a kernel, a function of three arrays, and the shapes of these."""
    shapes = ((2, 16, 16, 32), (3, 3, 32, 32), (2, 16, 16, 32))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return lambda x, kernel, g: plain_gradients(x, kernel, g)[1], arrays


def test_xla_computes_convolutions_itself(kernel_gradient):
    """By default YNNPACK does, and is slow at this one."""
    function, arrays = kernel_gradient
    by_default, ours = (j(function).lower(*arrays).compile().as_text() for j in (jax.jit, jit))
    assert "ynn_fusion" in by_default
    assert "ynn_fusion" not in ours and " convolution(" in ours


@pytest.mark.parametrize(
    "options", [{"xla_cpu_of_another_time": "1"}, dict.fromkeys(compilation.CPU_OPTIONS, "ANOTHER")]
)
def test_an_xla_that_knows_no_such_option_does_without(monkeypatch, kernel_gradient, options):
    monkeypatch.setattr(compilation, "CPU_OPTIONS", options)
    function, arrays = kernel_gradient
    assert "ynn_fusion" in jit(function).lower(*arrays).compile().as_text()


def test_a_step_moves_nothing_to_its_devices():
    mesh = devices.create_mesh()
    rows, factor = np.ones((8, 3), np.float32), np.float32(7)
    everywhere = devices.lay_out(factor, devices.replicated(mesh))
    batch = devices.to_devices({"rows": rows}, mesh)
    step = compile_ahead(
        "it", jax.jit(lambda batch, factor: batch["rows"] * factor), batch, everywhere
    )
    np.testing.assert_array_equal(step(batch, everywhere), 7 * rows)
    for host in (({"rows": rows}, everywhere), (batch, factor), (batch, 7.0)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
            step(*host)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed device-to-device transfer"):
        step(batch, jnp.float32(7))  # on the first of them alone


def test_nothing_is_compiled_after_the_first_epoch(config, tmp_path, caplog):
    """Training and validation, whose last batches are partly padding."""
    config.model.name, config.optim.multipliers.features = "pooled", 0.0  # which compiles soon
    config.epochs = 3
    validations = []  # done before each compilation

    def count(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            text = (tmp_path / "metrics.jsonl").read_text() if validations else ""
            lines = map(json.loads, text.splitlines())
            validations.append(sum("val/mAP" in line for line in lines))

    (tmp_path / "metrics.jsonl").touch()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
            train(config, tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    steps = [line for line in caplog.messages if line.startswith("Compiling jit(train_step)")]
    assert len(steps) == 1
    assert validations.count(0) >= 2, "the steps themselves"
    assert validations.count(1) == validations.count(2) == 0


def test_what_the_environment_says_to_xla_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_gpu_deterministic_ops=false")
    make_deterministic()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[:2] == ["--xla_a=1", "--xla_gpu_deterministic_ops=false"]
    assert flags[2:] == ["--xla_gpu_deterministic_ops=true"]  # the last one counts
    monkeypatch.delenv("XLA_FLAGS")
    make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
