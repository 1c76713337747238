"""What MSRN knows of its labels before it sees an image: word vectors and a label graph.

A checkpoint holds them as the collection `label_inputs` of its variables: float32 `word_vectors`
[C, D], `counts` [C, C] and `class_counts` [C].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlic_jax.data import co_occurrence, word_vectors
from mlic_jax.data.co_occurrence import CoOccurrence
from mlic_jax.data.label_files import order_of
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.errors import UsageError

OfLabels = TypeVar("OfLabels", CoOccurrence, WordVectors)


def read(
    graph: CoOccurrence | str | Path, vectors: str | Path, class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The label inputs in the order of `class_names`.

    Args:
        graph: co-occurrence counts, or a file of them.
        vectors: a file of word vectors, or "one_hot". Either file is one of ours, or a published
            pickle; those have no class names and must be in the order of `class_names`.

    Raises:
        UsageError: there is no such file, or it is of other classes.
        Failure: one is damaged or unsafe.
    """

    def in_order(loaded: OfLabels, count: int, path: object) -> OfLabels:
        if count != len(class_names):
            raise UsageError(f"{path}: has {count} classes, and {len(class_names)} are wanted")
        return loaded.permute(order_of(loaded.class_names or class_names, class_names, str(path)))

    counts = graph if isinstance(graph, CoOccurrence) else co_occurrence.load(graph)
    counts = in_order(counts, len(counts.class_counts), graph)
    one_hot = vectors == word_vectors.ONE_HOT
    words = word_vectors.one_hot(class_names) if one_hot else word_vectors.load(vectors)
    words = in_order(words, len(words.vectors), vectors)
    return {
        "word_vectors": words.vectors,
        "counts": counts.counts,
        "class_counts": counts.class_counts,
    }


def arguments_of(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What `create_model` takes of the collection `label_inputs`; nothing where there is none."""
    if "label_inputs" not in variables:
        return {}
    known = variables["label_inputs"]
    mask = co_occurrence.attention_mask(known["counts"], known["class_counts"])
    return {"word_vectors": np.asarray(known["word_vectors"]), "attention_mask": mask}
