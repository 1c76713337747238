"""A process with little memory and time reads small files that would take all of both."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

# Grants what the process has and 200 MB more, and reads each file as its first argument says.
READ = """
import resource, sys, time
from pathlib import Path
from mlic_jax.data import co_occurrence, word_vectors
from mlic_jax.data.sources.coco import CocoFolder
from mlic_jax.data.sources.table import Table
from mlic_jax.errors import Failure
from mlic_jax.scores.files import Scores

def coco(path):
    CocoFolder("x", path.parent, ("all",), image_dir="", annotations=path.name).class_names

def csv(path):
    Table("x", path.parent, ("train",), kind="csv", annotations=path.name).class_names

READERS = {"graph": co_occurrence.load, "words": word_vectors.load, "scores": Scores.load}
READERS |= {"coco": coco, "csv": csv}
has = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (has + 200_000_000,) * 2)
for reader, path in zip(sys.argv[1::2], sys.argv[2::2]):
    started = time.monotonic()
    try:
        READERS[reader](Path(path))
        print("read")
    except Failure as failure:
        print(failure)
    assert time.monotonic() - started < 5, path
"""
# 2 ** 60 times nothing: pairs of twice the same pair, by the memo that pickles have.
PAIRS = b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60))
PAIR = b"h\x3c"


def hostile_files(folder: Path) -> list[tuple[str, Path]]:
    """(reader, file) of each."""
    array = {"logits": np.zeros(300_000_000, np.int8), "labels": np.zeros(3)}
    np.savez_compressed(folder / "zeros.npz", **array)
    words = pickle.dumps([["a" * 400_000], *[["b"]] * 100_000], 2)
    same = [{"id": k * (2**61 - 1), "file_name": "a"} for k in range(20_000)]  # all of one hash
    coco = {"images": same, "annotations": [], "categories": []}
    contents = {
        "set.pkl": b"\x80\x04\x8f(" + PAIRS + b"\x90.",
        "adj.pkl": b"\x80\x04"
        + PAIRS
        + b"}(X\x03\x00\x00\x00adj"
        + PAIR
        + b"X\x04\x00\x00\x00numsNu.",
        "memo.pkl": b"\x80\x02}r\xff\xff\xff\x0f.",
        "bytearray.pkl": b"\x80\x02cbuiltins\nbytearray\n(J\x00\x00\x00\x70tR.",
        "words.pkl": words,
        "hashes.json": json.dumps(coco).encode(),
        "deep.json": b"[" * 100_000,
        "labels.csv": b"image,labels\n" + b"".join(b"%d.jpg,%d\n" % (i, i) for i in range(30_000)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    readers = {"words.pkl": "words", "labels.csv": "csv"}
    files = [(readers.get(n, "coco" if ".json" in n else "graph"), folder / n) for n in contents]
    return [*files, *((reader, folder / "zeros.npz") for reader in ("scores", "graph", "words"))]


def test_no_small_file_takes_much(tmp_path):
    files = hostile_files(tmp_path)
    arguments = [str(part) for file in files for part in file]
    done = subprocess.run(
        [sys.executable, "-c", READ, *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(files)
    for line, (_, path) in zip(lines, files, strict=True):
        assert str(path) in line or "30,000 different labels" in line
