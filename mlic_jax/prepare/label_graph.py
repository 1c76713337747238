"""Builds the label graph of a set, imports a published one, or says what is wrong with one.

    mlic build-label-graph --prepared prepared/voc2007 --split trainval \
        --output graphs/voc2007.npz
    mlic build-label-graph --import voc_adj.pkl --classes voc --output graphs/voc.npz
    mlic build-label-graph --lint graphs/voc.npz

Counts are made on the training split only: those of another one would tell the model its labels.
`--lint` prints a finding a line and exits with 1 where the graph is faulty; with --classes, or
--prepared and --split, it also looks whether the graph's class order fits the set.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import co_occurrence
from mlic_jax.data.class_names import CLASS_LISTS, read_class_names
from mlic_jax.data.co_occurrence import CoOccurrence
from mlic_jax.data.label_policy import POLICIES
from mlic_jax.data.records import open_split
from mlic_jax.errors import Failure, UsageError

_NOT_FOR_TRAINING = ("test", "val")  # how names of splits begin that must not be counted
_NAMES_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = Parser(prog="build_label_graph.py", description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", metavar="DIR", help="a prepared set: count, or compare with")
    parser.add_argument("--split", metavar="NAME", help="its training split")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="as_positive",
        help="what an unknown (difficult) label counts as; default as_positive, as MSRN's",
    )
    parser.add_argument("--import", metavar="FILE", dest="import_", help="a published pickle")
    parser.add_argument("--lint", metavar="FILE", help="a graph, ours or a published pickle")
    parser.add_argument(
        "--classes",
        metavar="FILE_OR_NAME",
        help="the classes of FILE in their order: a text file with one a line, a prepared set, or "
        f"{', '.join(CLASS_LISTS)}",
    )
    parser.add_argument("--output", metavar="FILE", help="the .npz to write")
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.lint and options.import_:
        raise UsageError("--lint and --import exclude each other")
    if bool(options.prepared) != bool(options.split):
        raise UsageError("--prepared and --split, its training split, go together")
    if options.lint:
        if options.output:
            raise UsageError("--lint writes nothing: leave out --output")
        _lint(options)
        return
    if not options.output:
        raise UsageError("--output is missing, for example --output graphs/voc2007.npz")
    if bool(options.import_) == bool(options.prepared):
        raise UsageError("one of --prepared, --import and --lint is needed, and only one")
    graph = _import(options) if options.import_ else _count(options)
    _describe(graph)
    for finding in co_occurrence.lint(graph):
        print(finding)
    graph.save(options.output)
    print(f"wrote {options.output}")


def _count(options: argparse.Namespace) -> CoOccurrence:
    if options.classes:
        raise UsageError("--classes goes with --import or --lint: a prepared set has its own")
    if options.split.startswith(_NOT_FOR_TRAINING):
        raise UsageError(
            f"--split {options.split} is no training split: a graph counted on it would tell the "
            "model its labels"
        )
    split = open_split(options.prepared, options.split)
    print(f"{split.name}, {split.split}: {len(split)} images; unknown labels {options.policy}")
    return co_occurrence.from_split(split, options.policy)


def _import(options: argparse.Namespace) -> CoOccurrence:
    graph = co_occurrence.load(options.import_)
    print(f"{options.import_}: as published")
    if options.classes:
        names = read_class_names(options.classes)
        if len(names) != len(graph.class_counts):
            raise Failure(
                f"{options.import_} has {len(graph.class_counts)} classes, and {options.classes} "
                f"names {len(names)}"
            )
        graph = _with_names(graph, names)
    return graph


def _lint(options: argparse.Namespace) -> None:
    graph = co_occurrence.load(options.lint)
    names = read_class_names(options.classes) if options.classes else None
    class_counts = None
    if options.prepared:
        split = open_split(options.prepared, options.split)
        names = names or split.class_names
        class_counts = co_occurrence.from_split(split, options.policy).class_counts
    if names and len(names) == len(graph.class_counts):
        graph = _with_names(graph, names)
    _describe(graph)
    findings = co_occurrence.lint(graph, names, class_counts)
    for finding in findings:
        print(finding)
    faults = [finding for finding in findings if not finding.startswith(co_occurrence.NOTE)]
    if faults:
        raise Failure(f"{options.lint} is faulty: {len(faults)} findings, printed above")
    print(f"{options.lint}: nothing is wrong with it")


def _with_names(graph: CoOccurrence, names: tuple[str, ...]) -> CoOccurrence:
    """Names the classes of a published graph; a graph of ours keeps the names it has."""
    return dataclasses.replace(graph, class_names=graph.class_names or names)


def _describe(graph: CoOccurrence) -> None:
    """Prints how many edges the graph has, and which classes none."""
    edges = co_occurrence.attention_mask(graph.counts, graph.class_counts)
    np.fill_diagonal(edges, False)
    isolated = np.flatnonzero(~edges.any(axis=0) & ~edges.any(axis=1))
    print(f"{len(edges)} classes, {edges.sum()} edges (probability 0.4 or more)")
    if len(isolated):
        names = graph.class_names or [f"class {i}" for i in range(len(edges))]
        shown = ", ".join(names[i] for i in isolated[:_NAMES_SHOWN])
        rest = f" and {len(isolated) - _NAMES_SHOWN} more" * (len(isolated) > _NAMES_SHOWN)
        print(f"{len(isolated)} classes without an edge: {shown}{rest}")
