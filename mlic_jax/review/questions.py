"""What a person is asked: labels of which people disagree, labels in doubt, photos without labels.

A probe on stored features is fitted across folds, on the labels as they are corrected so far; what
it says of each label decides what is in doubt, and which photo is the most informative one. Every
photo of all splits has a number, its row, one split after the other.
"""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.data import corrections
from mlic_jax.data.corrections import UNDO, Answer, Corrections, Label
from mlic_jax.data.label_tree import LabelTree
from mlic_jax.data.records import Split
from mlic_jax.diagnose.cross_fit import cross_fit, photo_ids
from mlic_jax.diagnose.doubtful import doubtful_labels
from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics.average_precision import average_precision
from mlic_jax.names import require_one_of
from mlic_jax.review.selection import most_informative, uncertainty

LISTS = ("doubtful", "unlabelled")
AHEAD = 50  # photos without labels that are put in order by diversity too


@dataclasses.dataclass(frozen=True)
class Question:
    """A label to judge.

    Attributes:
        row: of the photo.
        class_index: of the label.
        kind: `disagreement`, `missing` or `wrong` (see `Doubt`), `unlabelled`, or `again`.
        probability: that the label is present, by probes that did not see it; NaN: of too few.
    """

    row: int
    class_index: int
    kind: str
    probability: float


class Questions:
    """The questions of a set, and the answers to them.

    Attributes:
        splits: with the labels that they were prepared with.
        class_names: of the C labels.
        file: of the answers.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        features: np.ndarray,
        file: Path,
        tree: LabelTree | None = None,
    ):
        """Ranks all labels, in seconds.

        Args:
            splits: all of a set.
            features: float `[N, D]`, of all their photos, split by split.
            file: of the answers that there are, and to come.
            tree: of the labels, which says what else is present.

        Raises:
            Failure: the file is malformed.
        """
        self.splits, self.file, self._features = list(splits), file, features
        self._tree = tree
        self.class_names = splits[0].class_names
        sizes = [len(split) for split in splits]
        self._first_row = dict(
            zip([of.split for of in splits], np.cumsum([0, *sizes[:-1]]).tolist(), strict=True)
        )
        self._given = np.concatenate([split.labels() for split in splits])
        self._read: tuple[Any, Corrections] | None = None
        self._lock = threading.RLock()
        self.rank()

    # --- photos and labels by number

    def photo(self, row: int) -> tuple[Split, int]:
        """The split of a photo and its position there; raises UsageError where there is none."""
        for split in self.splits:
            position = row - self._first_row[split.split]
            if 0 <= position < len(split):
                return split, position
        raise UsageError(f"there is no photo {row}")

    def label(self, row: int, class_index: int) -> Label:
        """Raises UsageError where there is none."""
        split, position = self.photo(row)
        if class_index not in range(len(self.class_names)):
            raise UsageError(f"there is no class {class_index}")
        return Label(split.split, position, class_index)

    def _place(self, label: Label) -> tuple[int, int]:
        return self._first_row[label.split] + label.position, label.class_index

    def labels(self) -> np.ndarray:
        """int8 `[N, C]`, what is known now; parents of what is present are, but as people say."""
        people = self.corrections()
        labels = np.concatenate([people.labels(split.split) for split in self.splits])
        if self._tree is not None:
            labels = self._tree.filled(labels)
            for label in people.standing:
                labels[self._place(label)] = people.value(label)
        return labels

    # --- answers

    def corrections(self) -> Corrections:
        """The answers of everyone, as the file has them now."""
        with self._lock:
            try:
                stat = self.file.stat()
                stamp = (stat.st_size, stat.st_mtime_ns)
            except OSError:
                stamp = (0, 0)
            if self._read is None or self._read[0] != stamp:
                answers = corrections.read(self.file)
                self._read = stamp, Corrections.of(self.splits, answers)
            return self._read[1]

    def answer(self, given: Sequence[tuple[int, int, str]], who: str) -> None:
        """Keeps answers, of row, class and word; they are on the disk when this returns.

        Raises:
            UsageError: there is no such label or answer, or `who` is no name.
            Failure: the disk does not take them.
        """
        when = corrections.now()
        rows = []
        for row, class_index, word in given:
            split, position = self.photo(row)
            name = self.class_names[self.label(row, class_index).class_index]
            rows.append(Answer(split.image_id(position), split.split, name, word, who, when))
        corrections.append(self.file, rows)

    def answer_rest(self, row: int, who: str) -> int:
        """Keeps that the `open_classes` of a photo are absent; gives how many these are.

        But the parents of what is present, as a label tree has them, are present too.

        Raises:
            UsageError, Failure: see `answer`.
        """
        with self._lock:
            left = self.open_classes(row)
            labels = self.labels()[row]
            words = ["present" if labels[c] > 0 else "absent" for c in left]
            self.answer([(row, c, word) for c, word in zip(left, words, strict=True)], who)
            return len(left)

    def undo(self, who: str) -> Question | None:
        """Takes back the last answer of a person that holds; gives its question, None: none does.

        Raises:
            Failure: the disk does not take it.
        """
        with self._lock:
            people = self.corrections()
            for answer in reversed(people.holding(who)):
                if (label := people.label_of(answer)) is not None:
                    row, class_index = self._place(label)
                    self.answer([(row, class_index, UNDO)], who)
                    return self._question(row, class_index, "again")
            return None

    # --- questions

    def rank(self) -> dict[str, Any]:
        """Fits the probe to the labels as they are now, and puts the questions in order.

        Returns:
            `seconds` that it took; `mAP` of the probes on photos that they did not see, None where
            nothing can be said; how many labels are `doubtful` and photos `unlabelled`.
        """
        start = time.monotonic()
        labels = self.labels()
        value = None
        try:
            probabilities = cross_fit(self._features, labels, photo_ids(self.splits))
        except Failure:  # of too few labels
            probabilities = np.full(labels.shape, np.nan)
            doubts = []
        else:
            judged = ~np.isnan(probabilities).all(axis=0)
            value = float(
                np.nanmean(average_precision(probabilities[:, judged], labels[:, judged]))
            )
            doubts = doubtful_labels(labels, probabilities)
        unlabelled = self._in_order(probabilities, labels)
        with self._lock:
            self._probabilities, self._doubts, self._unlabelled = probabilities, doubts, unlabelled
        return {
            "seconds": round(time.monotonic() - start, 1),
            "mAP": None if value is None else round(value, 1),
            "doubtful": len(doubts),
            "unlabelled": len(unlabelled),
        }

    def _in_order(self, probabilities: np.ndarray, labels: np.ndarray) -> list[int]:
        """The rows of photos that came without any label, the most informative first."""
        came_without = ~self._given.any(axis=1)
        is_labelled = np.logical_or(~came_without, labels.any(axis=1))
        first = most_informative(self._features, probabilities, is_labelled, AHEAD).tolist()
        others = np.setdiff1d(np.flatnonzero(came_without), first)
        order = np.argsort(-uncertainty(probabilities[others]), kind="stable")
        return [*first, *others[order].tolist()]

    def next(
        self,
        name: str,
        passed: Collection[tuple[int, int]] = (),
        left_out: Collection[int] = (),
    ) -> tuple[Question | None, int]:
        """The first question of a list that is open and not passed over; and how many there are,
        or of photos without labels, how many of these.

        Args:
            name: of `LISTS`.
            passed: row and class of questions.
            left_out: rows of photos.

        Open is a label of which nobody has said anything, or of which people disagree.

        Raises:
            UsageError: there is no such list.
        """
        require_one_of("the list", name, LISTS)
        with self._lock:
            people = self.corrections()
            rows = self._without_labels(people)
            asked = self._doubtful(people) if name == "doubtful" else self._of_photos(people, rows)
            open_now = (
                question
                for question in asked
                if (question.row, question.class_index) not in passed
                and question.row not in left_out
            )
            first = next(open_now, None)
            if first is None:
                return None, 0
            if name == "unlabelled":
                return first, len(rows)
            return first, 1 + sum(1 for _ in open_now)

    def open_classes(self, row: int) -> list[int]:
        """The classes of a photo that came without labels of which nobody has said anything.

        Raises:
            UsageError: there is no such photo.
        """
        self.photo(row)
        if self._given[row].any():
            return []
        people = self.corrections()
        return [c for c in range(len(self.class_names)) if self._is_open(people, row, c)]

    def _doubtful(self, people: Corrections) -> Iterator[Question]:
        for label in people.conflicts():
            yield self._question(*self._place(label), "disagreement")
        for doubt in self._doubts:
            if self._is_open(people, doubt.photo, doubt.class_index):
                yield self._question(doubt.photo, doubt.class_index, doubt.kind)

    def _without_labels(self, people: Corrections) -> list[int]:
        """The rows of the photos without labels of which not all is said."""
        said = Counter(self._place(label)[0] for label in people.standing)
        return [row for row in self._unlabelled if said[row] < len(self.class_names)]

    def _of_photos(self, people: Corrections, rows: Sequence[int]) -> Iterator[Question]:
        """Of each photo the likeliest label first."""
        for row in rows:
            for c in np.argsort(-np.nan_to_num(self._probabilities[row]), kind="stable").tolist():
                if self._is_open(people, row, c):
                    yield self._question(row, c, "unlabelled")

    def _is_open(self, people: Corrections, row: int, class_index: int) -> bool:
        return self.label(row, class_index) not in people.standing

    def _question(self, row: int, class_index: int, kind: str) -> Question:
        return Question(row, class_index, kind, float(self._probabilities[row, class_index]))
