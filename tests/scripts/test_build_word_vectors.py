"""The command line that looks up and imports word vectors."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.data import records, word_vectors
from mlic_jax.data.scenes import Scenes

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_word_vectors.py"
LINES = "the 9 9 9\ndining 1 2 3\ntable 3 4 5\ncat 0 1 0\nred 1 0 0\nhot 0 0 1\n"


@pytest.fixture(scope="module")
def run(load_script):
    return load_script(SCRIPT)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder: a small GloVe file and two lists of classes."""
    monkeypatch.chdir(tmp_path)
    Path("glove.txt").write_text(LINES)
    Path("classes.txt").write_text("cat\ndiningtable\n")
    Path("strange.txt").write_text("cat\nhot zeppelin\ndodo\n")
    return tmp_path


def test_looking_up(run, folder, capsys):
    arguments = ("--classes", "classes.txt", "--glove", "glove.txt", "--output", "out/words.npz")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "2 classes, 3 numbers each, from glove.txt" in printed
    assert "diningtable: the mean of dining table" in printed
    assert "wrote out/words.npz" in printed
    vectors = word_vectors.load("out/words.npz")
    np.testing.assert_array_equal(vectors.vectors, [[0, 1, 0], [2, 3, 4]])
    assert vectors.class_names == ("cat", "diningtable")


def test_unknown_words(run, folder, capsys):
    arguments = ("--classes", "strange.txt", "--glove", "glove.txt", "--output", "words.npz")
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "hot zeppelin (zeppelin), dodo" in line
    assert not Path("words.npz").exists()
    assert run(*arguments, "--allow-missing") == 0
    printed = capsys.readouterr().out
    assert "hot zeppelin: hot\n" in printed
    assert "dodo: no word is known, the vector is 0" in printed
    expected = [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_array_equal(word_vectors.load("words.npz").vectors, expected)


def test_the_classes_of_a_prepared_set(run, folder):
    source = Scenes(name="few_scenes", sizes={"train": 2})
    prepared = records.prepare(source, folder / "prepared", workers=1)
    words = ("yellow", "disc", "ring", "star")
    shapes = "".join(f"{word} {i} 1 2\n" for i, word in enumerate(words))
    Path("glove.txt").write_text(LINES + shapes + "green 0 0 2\nblue 5 6 7\n")
    assert run("--prepared", prepared, "--glove", "glove.txt", "--output", "words.npz") == 0
    vectors = word_vectors.load("words.npz")
    assert vectors.class_names == source.class_names
    row = source.class_names.index("green ring")
    np.testing.assert_array_equal(vectors.vectors[row], [1, 0.5, 2])


@pytest.mark.parametrize("name", ["voc", "coco", "nuswide", "apparel"])
def test_published_vectors(run, name, shared, tmp_path):
    published = shared / "msrn_data" / f"{name}_glove_word2vec.pkl"
    output = tmp_path / "words.npz"
    assert run("--import", published, "--classes", name, "--output", output) == 0
    vectors = word_vectors.load(output)
    np.testing.assert_array_equal(vectors.vectors, word_vectors.load(published).vectors)
    assert len(vectors.class_names) == len(vectors.vectors)
    assert run("--import", published, "--output", output) == 0
    assert word_vectors.load(output).class_names is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--classes classes.txt --output w.npz", "--glove --package --import"),
        ("--classes classes.txt --glove glove.txt", "--output"),
        ("--glove glove.txt --output w.npz", "--prepared or --classes is needed"),
        ("--classes a --glove glove.txt --package --output w.npz", "not allowed with"),
        ("--classes a --prepared b --glove glove.txt --output w.npz", "not allowed with"),
        ("--classes nothing --glove glove.txt --output w.npz", "nothing is no text file"),
        ("--classes classes.txt --glove nothing --output w.npz", "nothing cannot be read"),
        ("--import nothing.pkl --output w.npz", "nothing.pkl cannot be read"),
    ],
)
def test_wrong_requests(run, arguments, message, folder, capsys):
    assert run(*arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not Path("w.npz").exists()


def test_files_that_do_not_fit(run, folder, capsys):
    Path("three.pkl").write_bytes(pickle.dumps(np.ones((3, 2))))
    assert run("--import", "three.pkl", "--classes", "voc", "--output", "w.npz") == 1
    assert capsys.readouterr().err == "error: three.pkl has 3 vectors, and voc names 20 classes\n"
    Path("code.pkl").write_bytes(pickle.dumps([print]))
    assert run("--import", "code.pkl", "--output", "w.npz") == 1
    assert "names builtins.print" in capsys.readouterr().err
    Path("bad.txt").write_text("the 1 2\ncat 1\n")
    assert run("--classes", "classes.txt", "--glove", "bad.txt", "--output", "w.npz") == 1
    assert "bad.txt, line 2: not in GloVe's format" in capsys.readouterr().err
    assert not Path("w.npz").exists()


def test_as_a_program(folder):
    answer = subprocess.run(
        [sys.executable, SCRIPT, *["--classes", "nothing", "--package", "--output", "w"]],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: nothing is no text file of class names")
