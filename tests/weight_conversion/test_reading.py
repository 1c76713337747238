"""Files that mean harm, or are not what they seem: refused in one line, without being run."""

import argparse
import collections
import datetime
import hashlib
import importlib.util
import json
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlic_jax.errors import Failure, UsageError
from weight_conversion.convert import main
from weight_conversion.reading import locate, open_tensors


def safetensors_bytes(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_shapes_are_known_and_arrays_read_one_by_one(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array(3, np.int64)}
    save_file(arrays, tmp_path / "x.safetensors")
    tensors = open_tensors(tmp_path / "x.safetensors")
    assert tensors.shapes == {"a": (2, 3), "b": ()}
    assert set(tensors) == {"a", "b"}
    np.testing.assert_array_equal(tensors["a"], arrays["a"])
    assert (tensors["a"].dtype, tensors["b"].dtype) == (np.float16, np.int64)


def write_index(folder: Path, shard_of: object, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder of two shards with their index, as `transformers` writes them."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file({"a": np.arange(3), "b": np.ones((2, 1), np.float16)}, folder / "one.safetensors")
    save_file({"c": np.array(7)}, folder / "two.safetensors")
    write_index(folder, {"a": "one.safetensors", "c": "two.safetensors", "b": "one.safetensors"})
    return folder


def test_shards_are_one_file(shards):
    path, digest = locate(shards)
    assert path == shards / "model.safetensors.index.json"
    assert locate(path) == (path, digest)
    together = b"".join(file.read_bytes() for file in (path, *sorted(shards.glob("*.safetensors"))))
    assert digest == hashlib.sha256(together).hexdigest()
    tensors = open_tensors(path)
    assert tensors.shapes == {"a": (3,), "c": (), "b": (2, 1)}
    assert (tensors["a"].tolist(), tensors["c"], tensors["b"].dtype) == ([0, 1, 2], 7, np.float16)
    assert tensors.left_out == ()


def test_shards_that_torch_wrote(torch, tmp_path):
    for name, state in (
        ("1", {"a": torch.ones(2)}),
        ("2", {"b": torch.zeros(1), "x": torch.ones(1)}),
    ):
        torch.save(state, tmp_path / f"{name}.bin")
    write_index(tmp_path, {"a": "1.bin", "b": "2.bin"}, "pytorch_model.bin.index.json")
    tensors = open_tensors(locate(tmp_path)[0])
    assert tensors.shapes == {"a": (2,), "b": (1,)}
    np.testing.assert_array_equal(tensors["a"], np.ones(2, np.float32))
    assert tensors.left_out == ("x",)  # nobody lists it


@pytest.mark.parametrize(
    ("shard_of", "words"),
    [
        ({"a": "one.safetensors", "z": "two.safetensors"}, r"not in .* says: z \(of two\.safetens"),
        ({"a": "two.safetensors"}, r"says: a \(of two\.safetensors\)$"),
        (
            {"a": "three.safetensors", "c": "four.safetensors"},
            "missing: four.*; three.safetensors$",
        ),
        ({"a": "../sharded/one.safetensors"}, "'../sharded/one.safetensors' is no name of a shard"),
        ({"a": "model.safetensors.index.json"}, "is no name of a shard beside it"),
        ({"a": 1}, "1 is no name of a shard"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_shards_that_are_not_as_their_index_says(shards, shard_of, words):
    write_index(shards, shard_of)
    with pytest.raises(Failure, match=words) as error:
        open_tensors(locate(shards)[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"\xff" * 64, "damaged"),
        (safetensors_bytes({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}), "dam"),
        (
            safetensors_bytes(
                {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)
            ),
            "damaged",
        ),
        (
            safetensors_bytes(
                {"w": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)
            ),
            "tensor 'w' is of the unknown type F8_E5M2",
        ),
    ],
    ids=["empty", "noise", "cut", "larger than the file", "unknown type"],
)
def test_damaged_safetensors_are_refused(tmp_path, content, words):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(Failure, match=rf"x\.safetensors: {words}"):
        open_tensors(tmp_path / "x.safetensors")


def test_a_header_larger_than_any_is_refused_before_it_is_read(tmp_path):
    """What is made of it takes 24 times its size."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little") + b"{")
        file.truncate(100_000_000)
    with pytest.raises(Failure, match=r"x\.safetensors: damaged.*header claims 90,000,000 bytes"):
        open_tensors(path)


# --- what torch writes ---


@pytest.fixture
def save(torch, tmp_path):
    def write(content, zipped: bool = True) -> Path:
        path = tmp_path / "weights.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path

    return write


@pytest.mark.torch
def test_views_without_their_elements_are_refused(torch, save):
    """Four bytes that claim 10^14: whoever allocates that has lost."""
    path = save({"convclass.weight": torch.zeros(1).expand(10**11, 1280, 1, 1)})
    with pytest.raises(Failure, match=r"'convclass\.weight' is not all in the file"):
        open_tensors(path)
    for other in (torch.eye(3).to_sparse(), torch.zeros(3, device="meta")):
        with pytest.raises(Failure, match="'w' is not all in the file"):
            open_tensors(save({"w": other}))


@pytest.mark.torch
def test_slices_of_larger_tensors_are_read(torch, save):
    tensors = open_tensors(save({"w": torch.arange(12.0).reshape(3, 4).T[1:]}))
    np.testing.assert_array_equal(tensors["w"], np.arange(12.0).reshape(3, 4).T[1:])


@pytest.mark.torch
def test_a_compressed_archive_is_refused(torch, save, tmp_path):
    path = save({"w": torch.zeros(1_000_000)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 100_000
    with pytest.raises(Failure, match=r"or not a PyTorch checkpoint \(.*an entry is compressed"):
        open_tensors(path)


@pytest.mark.torch
def test_a_compressed_archive_that_is_no_smaller_is_refused(torch, save):
    """Noise does not shrink: the sum of the sizes says nothing here."""
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    path = save({"w": torch.from_numpy(noise)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            is_data = name.endswith("data/0")
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if is_data else zipfile.ZIP_STORED)
        sizes = [(entry.file_size, entry.compress_size) for entry in archive.infolist()]
    assert sum(size for size, _ in sizes) <= path.stat().st_size
    assert any(size != stored for size, stored in sizes)
    with pytest.raises(Failure, match=r"or not a PyTorch checkpoint \(.*an entry is compressed"):
        open_tensors(path)


@pytest.mark.torch
def test_an_archive_of_more_than_the_file_holds_is_refused(torch, save):
    """Nothing is compressed, but four entries are of the same bytes."""
    path = save({name: torch.zeros(10_000 if name == "a" else 1) for name in "abcd"})
    with zipfile.ZipFile(path, "a") as archive:
        large, *small = (archive.getinfo(f"weights/data/{i}") for i in range(4))
        for entry in small:
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(entry, field, getattr(large, field))
        archive.writestr("weights/more", "")  # so that the directory is written anew
    with zipfile.ZipFile(path) as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    with pytest.raises(Failure, match="damaged, or not a PyTorch checkpoint"):
        open_tensors(path)


@pytest.mark.torch
def test_quantised_tensors_are_refused(torch, save):
    """Their numbers mean nothing without a scale, which no array has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its old storages
        path = save({"w": torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.qint8)})
    with pytest.raises(Failure, match="'w' is not all in the file"):
        open_tensors(path)


@pytest.mark.torch
def test_scores_of_the_other_byte_order_are_read(torch, save):
    """As a big-endian machine would have written 93.25."""
    score = np.array(93.25).byteswap()[()]
    path = save({"state_dict": {"w": torch.zeros(3)}, "best_score": score}, zipped=False)
    content = path.read_bytes()
    little, big = (b"X\x01\x00\x00\x00" + sign for sign in (b"<", b">"))  # a text of one letter
    assert content.count(little) == 1
    path.write_bytes(content.replace(little, big))
    assert open_tensors(path).beside == {"best_score": 93.25}


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (np.float64(93.25), 93.25),
        (np.float32(93.25), 93.25),
        (np.int64(-3), -3),
        (np.array([1.0, 2.0]), None),  # accepted, and left out
        ("torch", 93.25),
        (93.25, 93.25),
    ],
)
def test_numpy_scores_beside_the_weights_are_read(torch, save, zipped, score, expected):
    score = torch.tensor(93.25) if isinstance(score, str) else score
    content = {"state_dict": {"w": torch.zeros(3)}, "epoch": 7, "best_score": score, "lr": [0.1]}
    tensors = open_tensors(save(content, zipped))
    wanted = {"epoch": 7} if expected is None else {"epoch": 7, "best_score": expected}
    assert tensors.beside == wanted
    assert all(type(value) in (int, float) for value in tensors.beside.values())


@pytest.mark.torch
def test_scores_that_numpy_1_wrote_are_read(torch, save):
    path = save({"state_dict": {"w": torch.zeros(3)}, "best_score": np.float64(0.5)}, zipped=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray\n" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert open_tensors(path).beside == {"best_score": 0.5}


@pytest.mark.torch
def test_numpy_is_let_in_for_numbers_alone(torch, save):
    state = {"w": torch.zeros(3)}
    for value in (np.array([{}], object), np.datetime64("2020-01-01"), np.str_("text")):
        with pytest.raises(Failure, match=r"weights\.pth: damaged, or not"):
            open_tensors(save({"state_dict": state, "best_score": value}))
    with pytest.raises(Failure, match="holds no state_dict"):
        open_tensors(save({"state_dict": {"w": np.zeros(3)}}))


@pytest.mark.torch
def test_the_byte_order_of_numpy_scores_counts(torch, save):
    for order in ("<", ">"):
        score = np.array(93.25, f"{order}f8")[()]
        assert open_tensors(save({"state_dict": {"w": torch.zeros(3)}, "best_score": score})).beside
    path = save(
        {"state_dict": {"w": torch.zeros(3)}, "best_score": np.float64(93.25)}, zipped=False
    )
    content = path.read_bytes()
    number = np.float64(93.25).tobytes()
    swapped = content.replace(number, number[::-1]).replace(
        b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>"
    )
    assert swapped != content
    path.write_bytes(swapped)
    assert open_tensors(path).beside == {"best_score": 93.25}


class Settings(dict):
    """A dictionary with attributes, as configurations are."""


def objects_of_training(torch) -> dict:
    settings = Settings(lr=0.1)
    settings.name = "run"
    return {
        "args": argparse.Namespace(model="resnet18", size=(2, 3), root=Path("a/b")),
        "config": {"root": Path("/data"), "settings": settings, "kind": int},
        "log": collections.defaultdict(list, loss=[1.0, 2.0]),
        "saved": datetime.datetime(2026, 1, 2),
        "version": torch.__version__,  # a class of torch's own
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{}]},
        "scores": np.arange(20.0),
        "model": torch.nn.Linear(2, 2),  # saved whole
    }


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_objects_beside_the_weights_are_left_out(torch, save, zipped):
    objects = objects_of_training(torch)
    if not zipped:
        del objects["model"]  # of which that format has the source
    state = {"conv1.weight": torch.arange(3.0)}
    tensors = open_tensors(save({"state_dict": state, "epoch": 3, **objects}, zipped))
    assert tensors.shapes == {"state_dict/conv1.weight": (3,)}
    np.testing.assert_array_equal(tensors["state_dict/conv1.weight"], [0, 1, 2])
    assert tensors.left_out == tuple(objects)
    assert tensors.beside == {"epoch": 3}


@pytest.mark.torch
def test_no_object_beside_the_weights_is_made(torch, save, monkeypatch):
    """Not even one that would do no harm: the class is never asked."""
    path = save({"state_dict": {"w": torch.zeros(3)}, "settings": Settings(lr=0.1)})

    def made(*_):
        raise AssertionError("an object of the file was made")

    monkeypatch.setattr(Settings, "__new__", made)
    monkeypatch.setattr(Settings, "__setitem__", made)
    monkeypatch.setitem(sys.modules, Settings.__module__, None)  # nor may it be imported
    assert open_tensors(path).left_out == ("settings",)


@pytest.mark.torch
def test_a_model_that_was_saved_whole_says_what_to_save(torch, save):
    with pytest.raises(Failure, match=r"holds no state_dict \(of a model saved whole, save its"):
        open_tensors(save(torch.nn.Linear(2, 2)))


@pytest.mark.torch
def test_more_classes_than_any_script_has_are_refused(torch, save):
    kinds = [type(f"Kind{k}", (), {"__module__": "__main__"}) for k in range(101)]
    for kind in kinds:
        setattr(sys.modules["__main__"], kind.__name__, kind)
    path = save({"w": torch.zeros(3), "objects": [kind() for kind in kinds]})
    for kind in kinds:
        delattr(sys.modules["__main__"], kind.__name__)
    with pytest.raises(Failure, match="it names more than 100 classes"):
        open_tensors(path)


@pytest.mark.torch
def test_dictionaries_of_tensors_are_opened_by_their_keys(torch, save):
    state = {"w": torch.zeros(3)}
    content = {"model": {"module": state}, "best": torch.ones(1), "other": state, "ema": {}}
    tensors = open_tensors(save(content))
    assert tensors.shapes == {"model/module/w": (3,), "best": (1,)}
    assert tensors.left_out == ("other",)
    assert tensors.under("model/module/").shapes == {"w": (3,)}


@pytest.mark.parametrize("name", ["x.pth", "x.bin"])
def test_safetensors_are_told_by_their_content(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / name)
    assert open_tensors(tmp_path / name).shapes == {"w": (3,)}


def legacy(content: bytes) -> bytes:
    """The older format around a pickle: a number, a version, the system, it, keys, storages."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in parts) + content + pickle.dumps([], 2)


PAIRS = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
STORAGE = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x05\x00\xe4\x0b\x54\x02NtQK\x00))\x89)tR."
)


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02" + PAIRS + b"}h\x3cNs.", "a key must be text"),  # hashed for ever
        (b"\x80\x02" + PAIRS + b".", "the same things so often"),
        (b"\x80\x02cbuiltins\nbytearray\n(J\x00\x00\x00\x70tR.", "'int' object"),
        (b"\x80\x02ctorch\nFloatTensor\n(J\x00\x00\x00\x70tR.", "no constructor"),
        (STORAGE, "a storage larger than the file"),
        (b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.", r"holds code \(os.system\)"),
    ],
)
def test_a_pickle_is_gone_through_before_torch_has_it(torch, zipped, content, reason, tmp_path):
    path = tmp_path / "weights.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(legacy(content))
    with pytest.raises(Failure, match=rf"weights\.pth: .*{reason}") as failure:
        open_tensors(path)
    assert "\n" not in str(failure.value)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entry: setattr(entry, "file_size", 10**9), "claims another size than it has"),
        (
            lambda entry: [setattr(entry, size, 10**9) for size in ("file_size", "compress_size")],
            "overlap|is larger than the file",
        ),
        (lambda entry: setattr(entry, "header_offset", 0), "overlap"),
        (lambda entry: setattr(entry, "filename", "weights/data.pkl"), "is there twice"),
    ],
    ids=["oversized", "too large for the file", "overlapping", "twice"],
)
def test_each_entry_of_an_archive_has_its_own_bytes(torch, save, change, reason):
    path = save({"w": torch.zeros(1000)})
    with zipfile.ZipFile(path, "a") as archive:
        change(next(e for e in archive.infolist() if e.filename.endswith("/data/0")))
        archive._didModify = True  # has the directory written again
    with pytest.raises(Failure, match=rf"damaged, or not a PyTorch checkpoint \(.*({reason})"):
        open_tensors(path)


@pytest.mark.torch
def test_the_last_entry_of_an_archive_ends_in_the_file(torch, save):
    """Nothing follows that it could overlap with."""
    path = save({"w": torch.zeros(1000)})
    with zipfile.ZipFile(path, "a") as archive:
        last = max(archive.infolist(), key=lambda entry: entry.header_offset)
        last.file_size = last.compress_size = 10**9
        archive._didModify = True
    with pytest.raises(Failure, match=r"checkpoint \(.*an entry is larger than the file"):
        open_tensors(path)


# --- the Hugging Face Hub ---


def refusal(capsys, tmp_path, source: str) -> tuple[int, str]:
    code = main([source, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return code, line


def test_without_the_hub_a_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, line = refusal(capsys, tmp_path, "hf:timm/resnet101.tv_in1k")
    assert code == 2
    assert "pip install -e '.[hub]'" in line


@pytest.mark.parametrize(
    "source", ["hf:", "hf:resnet", "hf:a/b@sha256:12", "hf:a/b/c", "hf:../x y"]
)
def test_a_malformed_name_is_refused(tmp_path, capsys, source):
    code, line = refusal(capsys, tmp_path, source)
    assert code == 2
    assert "must be hf:OWNER/NAME" in line


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """The Hub's cache on a machine without a network, with one repository in it."""
    if importlib.util.find_spec("huggingface_hub") is None:
        pytest.skip("needs the extra `hub`")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--timm--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save_file({"w": np.zeros(3, np.float32)}, snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


def test_shards_of_a_repository_are_found_by_their_index(hub_cache, shards):
    hub_cache.unlink()
    for file in shards.iterdir():
        (hub_cache.parent / file.name).write_bytes(file.read_bytes())
    path, digest = locate("hf:timm/tiny")
    assert path.samefile(hub_cache.with_name("model.safetensors.index.json"))
    assert digest == locate(shards)[1]
    (hub_cache.parent / "two.safetensors").unlink()
    with pytest.raises(Failure, match="hf:timm/tiny: cannot be fetched"):
        locate("hf:timm/tiny")


def test_a_repository_is_found_by_name_and_digest(hub_cache):
    path, digest = locate("hf:timm/tiny")
    assert path.samefile(hub_cache)
    assert locate(f"hf:timm/tiny@sha256:{digest}") == (path, digest)
    with pytest.raises(Failure, match=f"refused, the file that was fetched has sha256 {digest}"):
        locate(f"hf:timm/tiny@sha256:{'0' * 64}")


def test_without_a_network_a_line_says_so(hub_cache, tmp_path, capsys):
    code, line = refusal(capsys, tmp_path, "hf:timm/resnet101.tv_in1k")
    assert code == 1
    assert "hf:timm/resnet101.tv_in1k: cannot be fetched (" in line


def test_a_path_is_a_path(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        locate(tmp_path / "none.pth")
    with pytest.raises(UsageError, match="no such file"):
        locate(tmp_path)
