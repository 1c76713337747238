"""Reads PyTorch's files: names and shapes first, then arrays one at a time, and never any code.

A `.safetensors` file cannot hold code. What `torch.save` wrote is a pickle, which torch unpickles
with `weights_only=True`: tensors and plain containers, and here also what scripts leave beside
them: NumPy scalars, paths, and objects such as an `argparse.Namespace`, for which something empty
stands. A file that calls anything is refused. Arrays are mapped from the file, so that nothing is
allocated before names and shapes are known to be right.
"""

import contextlib
import hashlib
import io
import mmap
import re
import struct
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mlic_jax.data import safe_pickle
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.files import json_text
from weight_conversion import preprocessing
from weight_conversion.matching import listing
from weight_conversion.wrapping import WORDS

INDEX = ".index.json"  # ends the name of the file that says which tensor is in which shard
HUB_FILES = ("model.safetensors", f"model.safetensors{INDEX}")
# What a folder is read for, the first that is there; as `transformers` writes them.
IN_A_FOLDER = (*HUB_FILES, "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
_HUB_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@sha256:([0-9a-f]{64}))?")
_ZIP_START = b"PK\x03\x04"  # by which torch.load tells its two formats apart
_ZIP_HEADER = struct.Struct("<4s22xHH")  # of an entry: start, sizes of its name and of its extras
_LAYOUT = ("torch.serialization", "_get_layout")
_LARGEST_HEADER = 8 * 2**20  # of a safetensors file: room for 80,000 tensors
# The types of safetensors that NumPy has; bfloat16 by way of ml_dtypes, which JAX brings.
_NUMPY_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"}
_NUMPY_TYPES |= {"BOOL"}
# What a training checkpoint holds beside its weights and a conversion keeps.
_KEPT = ("epoch", "arch", "best_score")
_MOST_CLASSES = 100  # of objects beside the tensors
# Where torch's own tensors are made of; whatever else is of torch is an object beside them.
_OF_TENSORS = {"torch", "torch._tensor", "torch._utils", "torch.nn.parameter", "torch.storage"}


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file by name; an array is read each time that it is asked for.

    Attributes:
        shapes: of every tensor, known without reading it.
        beside: `epoch`, `arch` and `best_score` where the file has them, as plain numbers and text.
        left_out: what else a file of torch's holds, by its keys.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
        beside: dict[str, Any] | None = None,
        left_out: tuple[str, ...] = (),
    ):
        self.shapes = shapes
        self.beside = beside or {}
        self.left_out = left_out
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def under(self, place: str) -> "Tensors":
        """The tensors whose names begin with `place`, by the rest of their names."""
        shapes = {n.removeprefix(place): s for n, s in self.shapes.items() if n.startswith(place)}
        return Tensors(shapes, lambda name: self._read(place + name), self.beside, self.left_out)


def file_in(folder: Path) -> Path | None:
    """The file of weights in a folder, or the index of its shards: one of `IN_A_FOLDER`."""
    return next((folder / name for name in IN_A_FOLDER if (folder / name).is_file()), None)


def locate(source: str | Path) -> tuple[Path, str]:
    """The file that `source` means, and its SHA-256; of an index of shards that of all together.

    Args:
        source: a path, of a folder one of `IN_A_FOLDER`; or `hf:OWNER/NAME`, one of `HUB_FILES` in
            a repository of the Hugging Face Hub. `hf:OWNER/NAME@sha256:DIGEST` insists on a digest.

    Raises:
        UsageError: there is no such file, or fetching needs the extra `hub`, which is missing.
        Failure: it cannot be fetched, its digest is another, or a shard is missing.
    """
    wanted = None
    if str(source).startswith("hf:"):
        path, wanted = _fetch(str(source))
    else:
        path = Path(source)
        path = (file_in(path) if path.is_dir() else path) or path
    if not path.is_file():
        of_folder = f" as {', '.join(IN_A_FOLDER)} in this folder" if path.is_dir() else ""
        raise UsageError(f"{source}: no such file{of_folder}")
    try:
        shards = sorted(set(read_index(path).values())) if _is_index(path) else []
        digest = _digest([path, *shards])
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror})") from error
    if wanted not in (None, digest):
        raise Failure(f"{source}: refused, the file that was fetched has sha256 {digest}")
    return path, digest


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()


def _fetch(source: str) -> tuple[Path, str | None]:
    """The file of `hf:OWNER/NAME[@sha256:DIGEST]` in the Hub's own cache, and DIGEST.

    With its shards, and with what says how photos were prepared.
    """
    name = _HUB_NAME.fullmatch(source)
    if not name:
        raise UsageError(f"{source}: must be hf:OWNER/NAME or hf:OWNER/NAME@sha256:DIGEST")
    try:
        from huggingface_hub import hf_hub_download, logging
        from huggingface_hub.utils import EntryNotFoundError
    except ImportError as error:
        raise UsageError(
            f"{source}: fetching it needs huggingface_hub: pip install -e '.[hub]'"
        ) from error
    logging.set_verbosity_error()  # else it tells of every attempt
    whole, index = HUB_FILES
    try:
        try:
            path = Path(hf_hub_download(name[1], whole))
        except EntryNotFoundError:
            path = Path(hf_hub_download(name[1], index))
            for shard in set(_shards(path).values()):
                hf_hub_download(name[1], shard)
        for beside in preprocessing.FILES:
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(name[1], beside)
        return path, name[2]
    except Failure:
        raise
    except Exception as error:  # Its errors and its network library's have no base in common.
        raise Failure(f"{source}: cannot be fetched ({reason(error)})") from error


def open_tensors(path: Path) -> Tensors:
    """The tensors of a `.safetensors` file, of one that `torch.load` reads, or of such shards.

    Shards are given by their index, a file that ends in `.index.json`. What `torch.load` reads
    holds a state_dict, or dictionaries of them under the words of `wrapping.WORDS`: then a name
    begins with their keys, as in `state_dict/conv1.weight`. Its arrays are float32 wherever they
    are floating point. Safetensors are told by their content too, whatever they are called.

    Raises:
        UsageError: torch is needed and missing.
        Failure: the file is damaged, holds code, or holds no tensors; or of shards one is missing
            or lacks a tensor.
    """
    if _is_index(path):
        return _open_shards(path)
    return (_open_safetensors if _is_safetensors(path) else _open_torch)(path)


def _is_safetensors(path: Path) -> bool:
    """By its name, or by the header behind eight bytes; what torch writes has other bytes there."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _is_index(path: Path) -> bool:
    return path.name.endswith(INDEX)


def _shards(index: Path) -> dict[str, str]:
    """The name of the shard that each tensor is in; all lie beside the index."""
    content = json_text.read(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise Failure(f"{index}: has no weight_map, which says which tensor is in which shard")
    for shard in shards.values():
        is_name = isinstance(shard, str) and Path(shard).name == shard
        if not is_name or shard.endswith(INDEX):
            raise Failure(f"{index}: {shard!r} is no name of a shard beside it")
    return shards


def read_index(index: Path) -> dict[str, Path]:
    """The shard that each tensor is in.

    Raises:
        Failure: it is no index, or shards are missing.
    """
    shards = {name: index.with_name(shard) for name, shard in _shards(index).items()}
    if missing := sorted({path.name for path in shards.values() if not path.is_file()}):
        raise Failure(f"{listing(f'{index}: shards are missing', missing)}")
    return shards


def _open_shards(index: Path) -> Tensors:
    shard_of = read_index(index)
    opened = {path: open_tensors(path) for path in dict.fromkeys(shard_of.values())}
    absent = [
        f"{name} (of {path.name})"
        for name, path in shard_of.items()
        if name not in opened[path].shapes
    ]
    if absent:
        raise Failure(listing(f"{index}: tensors are not in the shards that it says", absent))
    unlisted = [
        name
        for path, tensors in opened.items()
        for name in (*tensors.left_out, *tensors.shapes)
        if shard_of.get(name) != path
    ]
    return Tensors(
        {name: opened[path].shapes[name] for name, path in shard_of.items()},
        lambda name: opened[shard_of[name]][name],
        left_out=tuple(unlisted),
    )


def _open_safetensors(path: Path) -> Tensors:
    shapes = {}
    try:
        _check_header(path)
        file = safe_open(path, framework="numpy")
        for name in file.keys():  # noqa: SIM118, it is no dict
            entry = file.get_slice(name)
            if entry.get_dtype() not in _NUMPY_TYPES:
                raise Failure(f"{path}: tensor {name!r} is of the unknown type {entry.get_dtype()}")
            shapes[name] = tuple(entry.get_shape())
    except (SafetensorError, OSError) as error:
        raise Failure(f"{path}: damaged, or not a safetensors file ({error})") from error
    return Tensors(shapes, file.get_tensor)


def _check_header(path: Path) -> None:
    """Refuses a header that no model has; what is made of it takes 24 times its size."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _LARGEST_HEADER:
        raise Failure(
            f"{path}: damaged, or not a safetensors file (its header claims {size:,} bytes, where "
            f"{_LARGEST_HEADER:,} are room for 80,000 tensors)"
        )


def _open_torch(path: Path) -> Tensors:
    """The tensors of a file that `torch.save` wrote, in its zip or its older format."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"{path}: reading it needs PyTorch: pip install -e '.[torch]'") from error
    content = _unpickle(path)
    state: dict[str, Any] = {}
    left_out: list[str] = []
    _collect(content, "", state, left_out)
    if not state:
        raise Failure(f"{path}: holds no state_dict (of a model saved whole, save its state_dict)")
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise Failure(f"{path}: tensor {name!r} is not all in the file (sparse, or a view)")

    def read(name: str) -> np.ndarray:
        tensor = state[name]
        # NumPy has no bfloat16 of its own, and every weight ends up as float32.
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)

    beside = {name: content[name] for name in _KEPT if name in content}
    for name, value in beside.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            beside[name] = value.item()
    plain = {name: v for name, v in beside.items() if isinstance(v, int | float | str)}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in plain}
    return Tensors(shapes, read, plain, tuple(name for name in left_out if name not in plain))


def _collect(content: Any, place: str, state: dict[str, Any], left_out: list[str]) -> None:
    """Puts the tensors of a dictionary into `state`, and the keys of all else into `left_out`."""
    import torch

    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, torch.Tensor) and isinstance(name, str):
            state[place + name] = value
        elif isinstance(value, dict) and name in WORDS:
            _collect(value, f"{place}{name}/", state, left_out)
        else:
            left_out.append(f"{place}{name}")


def _unpickle(path: Path) -> Any:
    """What `torch.load` finds in a file, without running any of it."""
    import torch

    allowed: list = [(_NumpyType, "numpy.dtype"), (_Object, "numpy.ndarray")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # of NumPy 1 and 2
        allowed += [(_numpy_scalar, f"{module}.scalar"), (_Object, f"{module}._reconstruct")]
    allowed += [(make, f"{module}.{name}") for (module, name), make in _PLAIN_CALLS.items()]
    try:
        zipped, foreign = _check_content(path)
        for name, stands_for in foreign.items():
            is_dict = any(stands_for.objects)  # torch fills an OrderedDict and nothing of its like
            allowed.append((OrderedDict if is_dict else _Object, name))
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # of odd pickles; they are read or they are refused
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except safe_pickle.Refused as error:
        raise Failure(f"{path}: {_holds_code(error)}") from None
    except Exception as error:  # Damaged bytes can end in almost any exception.
        # torch names what it declined to unpickle as "GLOBAL module.name" in a long explanation.
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise Failure(f"{path}: {_holds_code(code[1])}") from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Failure(f"{path}: damaged, or not a PyTorch checkpoint ({lines[0]})") from error


def _holds_code(name: Any) -> str:
    return f"it holds code ({name}) and not only tensors: refused, nothing was run"


# --- what a file may claim. torch believes sizes, and hashes what takes for ever to hash.


def _check_content(path: Path) -> tuple[bool, dict[str, safe_pickle.Foreign]]:
    """Goes through what torch will read, and makes nothing of it.

    Returns:
        Whether it is a zip archive, and what the file names that is neither imported nor called, by
        the name that torch has for it.

    Raises:
        Refused: a pickle names what neither tensors nor plain containers are made with.
        ValueError, OSError, zipfile.BadZipFile: it is damaged, or claims more than it has.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        zipped = data[: len(_ZIP_START)] == _ZIP_START
        claims = _Claims(len(data))
        if zipped:
            pickled = io.BytesIO(_pickle_of_zip(path, data))
            safe_pickle.interpret(pickled, claims.find, claims.storage)
        else:
            # A number by which torch knows its files, a version, the system, the content, and the
            # keys of the storages that follow.
            for _ in range(5):
                safe_pickle.interpret(data, claims.find, claims.storage)
    return zipped, claims.foreign


class _Claims:
    """Adds up what the storages of a file claim to hold, and what it names."""

    def __init__(self, size: int):
        self._size = size
        self._elements: dict[str, int] = {}
        self.foreign: dict[str, safe_pickle.Foreign] = {}

    def storage(self, name: tuple) -> str:
        """What stands for the storage `("storage", type, key, device, elements, ...)`."""
        kind, _type, key, _device, elements, *_view = name
        if kind != "storage" or not isinstance(key, str) or not 0 <= elements <= self._size:
            raise ValueError("a storage larger than the file")
        self._elements[key] = elements
        if sum(self._elements.values()) > self._size:
            raise ValueError("storages larger than the file")
        return key

    def find(self, module: str, name: str) -> Callable | None:
        """Stands for what a file names; what torch declines is still declined by it."""
        if module == "collections" and name in ("OrderedDict", "Counter", "defaultdict"):
            return safe_pickle.Opaque
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return lambda *_: None
        if (module, name) in (("torch", "Size"), ("torch", "device"), _LAYOUT, *_PLAIN_CALLS):
            return lambda *_: None
        if module in _OF_TENSORS:
            return None  # types, which are arguments
        try:
            return safe_pickle.find_array(module, name)
        except safe_pickle.Refused:
            pass
        # Protocol 2 writes the names of Python 2, which torch translates so: `__builtin__.long`.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if len(self.foreign) == _MOST_CLASSES and full not in self.foreign:
            raise ValueError(f"it names more than {_MOST_CLASSES} classes")
        return self.foreign.setdefault(full, safe_pickle.Foreign(full))


def _pickle_of_zip(path: Path, data: mmap.mmap) -> bytes:
    """The pickle in an archive, none of which could grow: `torch.save` never compresses."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("an entry is compressed")
    if any(entry.file_size != entry.compress_size for entry in entries):
        raise ValueError("an entry claims another size than it has")
    if len({entry.filename for entry in entries}) != len(entries):
        raise ValueError("an entry is there twice")
    spans = {entry.filename: _span(data, entry) for entry in entries}
    ends = [0, *(end for _, end in spans.values())]
    if any(entry.header_offset < end for entry, end in zip(entries, ends, strict=False)):
        raise ValueError("entries overlap")
    if max(ends) > len(data):
        raise ValueError("an entry is larger than the file")
    (start, end), *others = (spans[name] for name in spans if name.endswith("/data.pkl"))
    if others:
        raise ValueError("it has two pickles")
    return data[start:end]


def _span(data: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an entry begin and end, which its own header tells."""
    header = data[entry.header_offset : entry.header_offset + _ZIP_HEADER.size]
    start, name_size, extra_size = _ZIP_HEADER.unpack(header)
    if start != _ZIP_START:
        raise ValueError("an entry is not where it should be")
    start = entry.header_offset + _ZIP_HEADER.size + name_size + extra_size
    return start, start + entry.file_size


def _is_plain(tensor: Any) -> bool:
    """Whether all elements of a tensor lie in the file, one by one.

    A tensor of stride 0 claims any size with a single element: allocating it would be the attack.
    """
    import torch

    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


# Stand-ins for NumPy's constructors, so that unpickling `best_score` calls nothing of NumPy that a
# file could talk into more than reading a number.


class _NumpyType:
    """`numpy.dtype`, of numbers alone."""

    def __init__(self, code: str | bytes, *_: Any):
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not re.fullmatch(r"[fiu][1248]|b1", text):
            raise ValueError(f"a NumPy type {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Object:
    """An object beside the weights, such as an array; nothing of it is kept."""

    def __new__(cls, *_: Any) -> "_Object":
        return super().__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _numpy_scalar(kind: _NumpyType, data: bytes) -> int | float | bool:
    """`numpy.core.multiarray.scalar`, as a Python number."""
    return np.frombuffer(data, kind.dtype, count=1)[0].item()


def _dict(*_: Any) -> dict:
    """`defaultdict`, which is made with a function."""
    return {}


_PLAIN_CALLS: dict[tuple[str, str], Callable] = {
    ("collections", "defaultdict"): _dict,
    **{("datetime", kind): _Object for kind in ("date", "datetime", "time", "timedelta")},
    **{
        (module, pure + system): _Object
        for module in ("pathlib", "pathlib._local")  # before and since Python 3.13
        for pure in ("", "Pure")
        for system in ("PosixPath", "WindowsPath")
    },
}
