"""Damaged and hostile files of weights and label graphs: pickles, npz, safetensors, pth, Orbax."""

import argparse
import importlib.util
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fuzzer import Broken, Fuzzer, answer, bounded
from mutations import altered, damaged, to_json
from safetensors.numpy import save_file

from mlic_jax.data import co_occurrence, word_vectors
from mlic_jax.data.co_occurrence import CoOccurrence
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.runtime.checkpoint import load_weights, save_weights
from weight_conversion.reading import open_tensors

NAMES = ("ant", "bee", "cat")
_TORCH = importlib.util.find_spec("torch") is not None


class CheckpointFiles(Fuzzer):
    title = "Hostile files of weights and label graphs"
    units = "files"
    holds = (
        "a file is refused in one line, or read as arrays of the promised shapes and types, an "
        "Orbax checkpoint as the very same arrays; nothing in it is run; in 5 s of the processor "
        "and 20 times the file's size plus 200 MB"
    )
    share = 5
    seconds = 60

    def __init__(self, shared: Path):
        self._originals = shared / "files"
        if not self._originals.is_dir():
            _plant(self._originals)
        for kind, read in READ.items():  # pays for what is loaded once
            read(self._originals / kind)

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        kind = list(READ)[rng.integers(len(READ))]
        target = folder / kind
        original = self._originals / kind
        if original.is_dir():
            shutil.copytree(original, target)
            files = sorted(path for path in target.rglob("*") if path.is_file())
            file = files[rng.integers(len(files))]
            harm_orbax(rng, file)
        else:
            trap = folder / "trap"
            content = original.read_bytes()
            harm = HARM.get(target.suffix)
            hostile = harm(rng, content, trap) if harm and rng.random() < 0.6 else None
            target.write_bytes(hostile if hostile is not None else damaged(rng, content))
        files = [target, *target.rglob("*")]
        size = sum(path.stat().st_size for path in files if path.is_file())
        with bounded(size):
            read, line = answer(lambda: READ[kind](target))
        if (folder / "trap").exists():
            raise Broken("something in the file was run")
        if line is None and kind == "orbax":
            self._check_same(read)
        yield f"{kind}: {'read' if line is None else 'refused'}"

    def _check_same(self, read: tuple[dict, dict]) -> None:
        expected = load_weights(self._originals / "orbax")
        same = jax.tree.structure(read) == jax.tree.structure(expected) and all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(expected), strict=True)
        )
        if not same:
            raise Broken("other numbers or metadata are read in silence")


def _plant(folder: Path) -> None:
    """A file of each kind, as people have them."""
    folder.mkdir()
    counts = np.array([[0, 2, 1], [2, 0, 3], [1, 3, 0]], np.float32)
    numbers = np.array([4, 6, 5], np.float32)
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    (folder / "graph.pkl").write_bytes(pickle.dumps({"adj": counts, "nums": numbers}, 2))
    (folder / "vectors.pkl").write_bytes(pickle.dumps(vectors.tolist(), 4))
    CoOccurrence(counts, numbers, NAMES, "toy", "train", "ignore").save(folder / "graph.npz")
    WordVectors(vectors, NAMES, "random").save(folder / "vectors.npz")
    tensors = {"conv1.weight": vectors.reshape(2, 3, 2, 2), "fc.bias": numbers}
    save_file(tensors, folder / "weights.safetensors")
    kernel = {"features": {"stem": {"kernel": vectors}}}
    stats = {"features": {"stem": {"mean": numbers}}}
    save_weights(folder / "orbax", {"params": kernel, "batch_stats": stats}, {"arch": "resnet18"})
    if _TORCH:
        import torch

        state = {name: torch.tensor(array) for name, array in tensors.items()}
        content = {"state_dict": state, "epoch": 3, "best_score": np.float64(0.5)}
        content["args"] = argparse.Namespace(lr=0.1, root=Path("photos"))
        torch.save(content, folder / "weights.pth")
        torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)


# --- reading, with what must be true of all that is read


def _graph(path: Path) -> None:
    graph = co_occurrence.load(path)
    classes = len(graph.class_counts)
    wanted = (classes, classes), np.float32
    if (graph.counts.shape, graph.counts.dtype) != wanted:
        raise Broken(f"counts are {graph.counts.shape} of {graph.counts.dtype}")
    co_occurrence.lint(graph, NAMES)


def _vectors(path: Path) -> None:
    vectors = word_vectors.load(path).vectors
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise Broken(f"vectors are {vectors.shape} of {vectors.dtype}")


def _tensors(path: Path) -> None:
    tensors = open_tensors(path)
    for name, shape in tensors.shapes.items():
        array = tensors[name]
        if not isinstance(array, np.ndarray) or array.shape != shape:
            raise Broken(f"{name} is {type(array).__name__} of {np.shape(array)}, not {shape}")


READ: dict[str, Callable[[Path], Any]] = {
    "graph.pkl": _graph,
    "vectors.pkl": _vectors,
    "graph.npz": _graph,
    "vectors.npz": _vectors,
    "weights.safetensors": _tensors,
    "orbax": load_weights,
}
if _TORCH:
    READ |= {"weights.pth": _tensors, "legacy.pth": _tensors}


# --- harm that a format has of its own


def harm_pickle(rng: np.random.Generator, content: bytes, trap: Path) -> bytes:
    """A program for the machine that reads pickles."""
    match rng.integers(6):
        case 0:  # the same tuple twice in a tuple, and so on: to hash it takes 2^depth
            depth = int(rng.integers(5, 60))
            nested = b"(I1\nI1\nt" + b"2\x86" * depth
            return b"\x80\x02}" + nested + b"K\x01s."
        case 1:
            depth = int(10 ** rng.uniform(2, 5.5))
            opening, closing = ((b"(", b"t"), (b"]", b"a"), (b"", b"\x85"))[rng.integers(3)]
            return b"\x80\x02" + opening * depth + b"K\x01" + closing * depth + b"."
        case 2:  # claims more than there is
            opcode = (b"\x8e", b"\x8d", b"\x96", b"\x95")[rng.integers(4)]
            claimed = int(2 ** rng.uniform(8, 63))
            return b"\x80\x05" + opcode + struct.pack("<Q", claimed) + rng.bytes(9) + b"."
        case 3:
            call = (os.system, f"touch '{trap}'")
            name = (b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\nexec\n")[rng.integers(3)]
            text = call[1] if b"exec" not in name else f"open({str(trap)!r}, 'w')"
            return b"\x80\x02" + name + b"(V" + text.encode() + b"\ntR."
        case 4:  # snippets in any order
            parts = [_SNIPPETS[rng.integers(len(_SNIPPETS))] for _ in range(rng.integers(2, 60))]
            return b"\x80\x04" + b"".join(parts) + b"."
        case _:  # an array in which a part is another
            return damaged(rng, pickle.dumps({"adj": np.eye(3), "nums": {1, (2, "a")}}, 2))


_SNIPPETS = (
    *(b"K\x01", b"N", b"\x88", b"]", b"}", b")", b"(", b"0", b"2", b"a", b"s", b"u", b"t", b"e"),
    *(b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"\x94", b"h\x00", b"R", b"b", b"\x81"),
    *(b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"),
    *(b"cnumpy.core.multiarray\nscalar\n", b"cbuiltins\nset\n", b"cbuiltins\nbytearray\n"),
    *(b"c_codecs\nencode\n", b"X\x02\x00\x00\x00f4", b"X\x02\x00\x00\x00|O", b"C\x04abcd"),
    *(b"J\xff\xff\xff\x7f", b"J\x00\x00\x00\x80", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"I9\n"),
    *(b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"q\x00", b"r\xff\xff\xff\x7f", b"j\x00\x00\x00\x10"),
)


def harm_npz(rng: np.random.Generator, content: bytes, trap: Path) -> bytes:
    """An archive that is whole, with an array in it that is not what it claims."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = list(entries)[rng.integers(len(entries))]
    match rng.integers(6):
        case 0:
            shapes = ("(2**31, 2)", "(1000000000,)", "(-1,)", "(1, 0)", "(3, 3, 3)", "(1e9,)", "()")
            entries[name] = _npy("'<f4'", shapes[rng.integers(len(shapes))], rng.bytes(36))
        case 1:
            kinds = ("'|O'", "[('a', '<f4')]", "'<U1000000000'", "'<c16'", "'V8'", "'>i8'", "'<M8'")
            entries[name] = _npy(kinds[rng.integers(len(kinds))], "(2,)", pickle.dumps([1, 2]))
        case 2:
            depth = int(10 ** rng.uniform(1, 4.5))
            entries[name] = _npy("'<f4'", "(" * depth + ")" * depth, b"")
        case 3:  # little that becomes much
            entries[name] = _npy("'<f4'", f"({int(10 ** rng.uniform(3, 8))},)", bytes(4 * 10**7))
        case 4:
            del entries[name]
        case _:
            entries[name] = damaged(rng, entries[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, data in entries.items():
            archive.writestr(other, data)
    return buffer.getvalue()


def _npy(kind: str, shape: str, data: bytes) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + data


def harm_safetensors(rng: np.random.Generator, content: bytes, trap: Path) -> bytes:
    """A file with another header."""
    (size,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    match rng.integers(4):
        case 0:  # very many tensors of nothing
            empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            header |= {f"t{k}": empty for k in range(int(10 ** rng.uniform(2, 4.5)))}
            text = json.dumps(header).encode()
        case 1:
            text = json.dumps(header).encode() + b" " * int(10 ** rng.uniform(2, 6.5))
        case _:
            text = to_json(altered(rng, header)).encode("utf-8", "surrogatepass")
    claimed = len(text) if rng.random() < 0.8 else int(2 ** rng.uniform(1, 63))
    return struct.pack("<Q", claimed) + text + data


def harm_pth(rng: np.random.Generator, content: bytes, trap: Path) -> bytes | None:
    """An archive that is whole, with another pickle in it; None where there is no archive."""
    if not content.startswith(b"PK"):
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in entries if name.endswith("data.pkl"))
    if rng.random() < 0.5:
        entries[program] = harm_pickle(rng, entries[program], trap)
    else:
        entries[program] = damaged(rng, entries[program])
    buffer = io.BytesIO()
    method = zipfile.ZIP_STORED if rng.random() < 0.8 else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for other, data in entries.items():
            archive.writestr(other, data)
    return buffer.getvalue()


HARM = {
    ".pkl": harm_pickle,
    ".npz": harm_npz,
    ".safetensors": harm_safetensors,
    ".pth": harm_pth,
}


def harm_orbax(rng: np.random.Generator, file: Path) -> None:
    """A file of a checkpoint with other bytes, or with other values where it is JSON."""
    content = file.read_bytes()
    try:
        values = json.loads(content)
    except ValueError:
        values = None
    if values is not None and rng.random() < 0.8:
        file.write_bytes(to_json(altered(rng, values)).encode("utf-8", "surrogatepass"))
    elif rng.random() < 0.2:
        file.unlink()
    else:
        file.write_bytes(damaged(rng, content))


FUZZER = CheckpointFiles
