"""What the frameworks differ in, as far as a measurement sees it: arrays, waiting, peak memory.

Made in the worker processes, each of which has one framework on one device.
"""

import ctypes
import gc
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Host:
    """NumPy and all else that stays in the host's memory."""

    def __init__(self, accelerated: bool):
        del accelerated

    def describe(self) -> tuple[str, str | None]:
        """The version, and the accelerator or None."""
        return np.__version__, None

    def put(self, array: np.ndarray) -> Any:
        """An input where `make` expects it."""
        return array

    def wait(self, outputs: Mapping[str, Any]) -> None:
        """Returns once the outputs are there."""

    def fetch(self, output: Any) -> np.ndarray:
        """An output as NumPy's."""
        return np.asarray(output)

    def peak_bytes(self, run: Callable[[], None]) -> int | None:
        """What `run` needs at most, above what was in use before; None where nothing tells."""
        return _peak_resident_bytes(run)


class Jax(Host):
    """JAX on its default device, or on the CPU."""

    def __init__(self, accelerated: bool):
        # Several processes share an accelerator: none may take all its memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax

        from mlic_jax.runtime.compilation import keep_programs

        if not accelerated:
            jax.config.update("jax_platforms", "cpu")
        keep_programs()
        self._jax, self._accelerated = jax, accelerated

    def describe(self) -> tuple[str, str | None]:
        device = self._jax.devices()[0]
        return self._jax.__version__, None if device.platform == "cpu" else device.device_kind

    def put(self, array: np.ndarray) -> Any:
        return self._jax.device_put(array)

    def wait(self, outputs: Mapping[str, Any]) -> None:
        self._jax.block_until_ready(outputs)

    def peak_bytes(self, run: Callable[[], None]) -> int | None:
        if not self._accelerated:
            return _peak_resident_bytes(run)
        device = self._jax.devices()[0]
        before = device.memory_stats()
        run()
        # Of the whole process so far, compilation included: an upper bound.
        return before and device.memory_stats()["peak_bytes_in_use"] - before["bytes_in_use"]


class Torch(Host):
    """PyTorch on CUDA, or on the CPU with as many threads as JAX has there."""

    def __init__(self, accelerated: bool):
        # What a case does with JAX beside it, such as drawing weights, must not touch the device.
        os.environ["JAX_PLATFORMS"] = "cpu"
        import torch

        torch.set_num_threads(available_cores())
        self._torch, self._accelerated = torch, accelerated
        self._device = "cuda" if accelerated else "cpu"

    def describe(self) -> tuple[str, str | None]:
        cuda = self._torch.cuda
        return self._torch.__version__, cuda.get_device_name() if cuda.is_available() else None

    def put(self, array: np.ndarray) -> Any:
        return self._torch.from_numpy(array).to(self._device)

    def wait(self, outputs: Mapping[str, Any]) -> None:
        if self._accelerated:
            self._torch.cuda.synchronize()

    def fetch(self, output: Any) -> np.ndarray:
        return output.detach().cpu().numpy()

    def peak_bytes(self, run: Callable[[], None]) -> int | None:
        if not self._accelerated:
            return _peak_resident_bytes(run)
        cuda = self._torch.cuda
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        run()
        return cuda.max_memory_allocated() - before


class Onnxruntime(Host):
    """The runtime, on the CPU; what a case does with JAX beside it is done there."""

    module = "onnxruntime"

    def __init__(self, accelerated: bool):
        os.environ["JAX_PLATFORMS"] = "cpu"
        self._version = importlib.import_module(self.module).__version__

    def describe(self) -> tuple[str, str | None]:
        return self._version.split("-")[0], None


class OpenVino(Onnxruntime):
    """The same of OpenVINO."""

    module = "openvino"


# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SMALL_BLOCK = 2**16  # bytes up to which what malloc keeps does not matter

FRAMEWORKS = {
    "jax": Jax,
    "torch": Torch,
    "onnxruntime": Onnxruntime,
    "openvino": OpenVino,
    "host": Host,
}


def available_cores() -> int:
    """Those this process may use, which are the threads of JAX on a CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peak_resident_bytes(run: Callable[[], None]) -> int | None:
    """The growth of this process's resident memory during `run`, once it runs as it always does.

    Changes how malloc works in this process: what it kept of freed memory would be used again, and
    not be seen.
    """
    try:
        libc = ctypes.CDLL(None)
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            libc.mallopt(option, _SMALL_BLOCK)
        run()  # what it frees now goes back to the system, and earlier leftovers with it
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
    except (AttributeError, OSError):  # not Linux with glibc
        return None
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise OSError(f"/proc/self/status has no {field}")
