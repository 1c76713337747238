"""Word vectors and graph of the labels, in the order that is wanted."""

import pickle

import numpy as np
import pytest

from mlic_jax.data import label_inputs
from mlic_jax.data.co_occurrence import CoOccurrence
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.errors import UsageError

ORDER = [2, 0, 3, 1]
NAMES = ("auk", "bee", "cow", "dog")
COUNTS = np.array([[0, 9, 1, 2], [9, 0, 3, 4], [1, 3, 0, 5], [2, 4, 5, 0]], np.float32)
CLASS_COUNTS = np.array([10, 11, 6, 30], np.float32)


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    vectors = np.random.default_rng(1).normal(0, 1, (4, 300)).astype(np.float32)
    return {"word_vectors": vectors, "counts": COUNTS, "class_counts": CLASS_COUNTS}


def test_files_with_names_are_put_in_order(inputs, tmp_path):
    graph, vectors = tmp_path / "graph.npz", tmp_path / "vectors.npz"
    CoOccurrence(COUNTS, CLASS_COUNTS, NAMES, "birds", "train", "as_positive").save(graph)
    WordVectors(inputs["word_vectors"][ORDER], ("cow", "auk", "dog", "bee"), "g").save(vectors)
    found = label_inputs.read(graph, vectors, [NAMES[i] for i in ORDER])
    np.testing.assert_array_equal(found["word_vectors"], inputs["word_vectors"][ORDER])
    np.testing.assert_array_equal(found["class_counts"], CLASS_COUNTS[ORDER])
    for i in range(4):
        for j in range(4):
            assert found["counts"][i, j] == COUNTS[ORDER[i], ORDER[j]]
    with pytest.raises(UsageError, match=r"graph\.npz"):
        label_inputs.read(graph, vectors, ("auk", "bee", "cow", "elk"))


def test_published_pickles_are_in_the_order_that_is_wanted(inputs, tmp_path):
    graph, vectors = tmp_path / "graph.pkl", tmp_path / "vectors.pkl"
    graph.write_bytes(pickle.dumps({"adj": COUNTS, "nums": CLASS_COUNTS}))
    vectors.write_bytes(pickle.dumps(inputs["word_vectors"]))
    found = label_inputs.read(graph, vectors, NAMES)
    for name, array in inputs.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(UsageError, match=r"graph\.pkl: has 4 classes, and 3 are wanted"):
        label_inputs.read(graph, vectors, NAMES[:3])


def test_one_hot_vectors_need_no_file(tmp_path):
    graph = tmp_path / "graph.pkl"
    graph.write_bytes(pickle.dumps({"adj": COUNTS, "nums": CLASS_COUNTS}))
    found = label_inputs.read(graph, "one_hot", NAMES)
    np.testing.assert_array_equal(found["word_vectors"], np.eye(4, dtype=np.float32))


def test_the_arguments_of_the_model(inputs):
    assert label_inputs.arguments_of({}) == {}
    arguments = label_inputs.arguments_of({"label_inputs": inputs})
    np.testing.assert_array_equal(arguments["word_vectors"], inputs["word_vectors"])
    # "auk" (10 images) is seen with "bee" (11) nine times: each implies the other.
    assert arguments["attention_mask"][0, 1]
    assert arguments["attention_mask"][1, 0]
    # Of 30 images with "dog" 5 show a "cow", of 6 with "cow" 5 a "dog": "dog" attends to "cow".
    assert arguments["attention_mask"][3, 2]
    assert not arguments["attention_mask"][2, 3]
