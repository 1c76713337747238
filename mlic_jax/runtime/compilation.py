"""Compiling programs: before they are needed, with a line that says so, and once for many runs."""

import contextlib
import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mlic_jax.runtime import profiling

logger = logging.getLogger(__name__)

MOST_KEPT = 2 * 1024**3  # bytes of programs that are kept when a run starts

# To YNNPACK, products and reductions alone. By default XLA's CPU backend hands it convolutions too,
# and so makes the gradients of their kernels several times slower.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


def keep_programs() -> None:
    """Keeps compiled programs in a folder of the user, from where later runs take them.

    It is `$XDG_CACHE_HOME/mlic_jax/compiled`, by default below `~/.cache`, and may be deleted at
    any time. What the environment says of JAX's compilation cache wins over this. Where the folder
    cannot be written, a line says so and nothing is kept. Of many processes JAX has the first alone
    write, whose programs serve all on GPUs and TPUs; on CPUs the others compile theirs every time.

    What was not used for longest is removed here, and not by JAX as it writes: that needs a package
    more, a lock that all runs wait for at every program, and fails for good in a folder that holds
    a program of the time before, or one whose writer was killed.
    """
    # Small ones too: a run compiles a hundred that take a tenth of a second each.
    for option, value in (
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if option.upper() not in os.environ:
            jax.config.update(option, value)
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored, says the XDG specification.
    folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "mlic_jax"
    folder /= "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            remove_oldest(folder, MOST_KEPT)
    except OSError as error:
        logger.warning("Compiled programs are not kept for later runs: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def remove_oldest(folder: Path, most: int) -> None:
    """Removes the files that were not read or written for longest, until `most` bytes are left.

    Other runs may read, write and remove there at the same time.

    Raises:
        OSError: a file cannot be removed.
    """
    used = []
    for path in folder.iterdir():
        if path.is_dir():  # what XLA keeps of its own
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            used.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    excess = sum(size for _, size, _ in used) - most
    for _, size, path in sorted(used):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


def make_deterministic() -> None:
    """Has XLA take no operation on a GPU whose sums change their order from run to run.

    XLA reads it once, where JAX starts its devices: this must come before. CPUs and TPUs have no
    such operations.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def jit(function: Callable[..., Any], **options: Any) -> jax.stages.Wrapped:
    """`jax.jit` for what looks at images: on a CPU XLA gets `CPU_OPTIONS`.

    Args:
        function: of arrays.
        options: of `jax.jit`.
    """
    on_cpu = jax.default_backend() == "cpu" and knows(tuple(CPU_OPTIONS.items()))
    return jax.jit(function, compiler_options=CPU_OPTIONS if on_cpu else None, **options)


@functools.cache
def knows(compiler_options: tuple[tuple[str, str], ...]) -> bool:
    """Whether this XLA has such options, and for them such values: some are experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(compiler_options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def compile_ahead(name: str, function: Any, *arguments: Any) -> Callable[..., Any]:
    """Compiles a jitted function, and says on the log how long it took.

    Args:
        name: what the line calls it.
        function: what `jax.jit` returned.
        arguments: arrays, or `jax.ShapeDtypeStruct` with shardings; what it is called with later
            must agree with them in shape, type and sharding.

    Returns:
        The program, to be called as `function` would be. It never compiles again: it refuses other
        shapes. And it moves nothing: it refuses what is not on its devices yet, for a transfer that
        nobody sees holds up every step.
    """
    hits = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    logger.info("Compiling %s ...", name)
    start = time.monotonic()
    jax.monitoring.register_event_listener(listen)
    try:
        compiled = function.lower(*arguments).compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    source = " (an earlier run had compiled it)" if hits else ""
    logger.info("Compiled %s in %.1f s%s", name, time.monotonic() - start, source)
    without_transfers = jax.transfer_guard("disallow")(compiled)
    return profiling.annotated(profiling.DISPATCH)(without_transfers)
