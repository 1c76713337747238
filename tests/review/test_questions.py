"""What is asked, in which order, and what answers do to it: on a set with planted errors."""

import numpy as np
import pytest

from mlic_jax.data import corrections, sources
from mlic_jax.data.corrections import Answer, append, read
from mlic_jax.data.label_tree import LabelTree
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import UsageError
from mlic_jax.review.questions import Questions

MISSING, WRONG, UNLABELLED = 3, 8, (18, 19, 20)  # of two splits


@pytest.fixture(scope="module")
def splits(make_config):
    """Of 20, 9 and 11 photos."""
    return list(sources.open_splits(DataOptions.of(make_config().data)).values())


def with_labels(splits, labels):
    """The photos of the splits with other labels, int8 [40, C]."""
    ends = np.cumsum([len(split) for split in splits])
    return [
        split.with_labels(labels[end - len(split) : end])
        for split, end in zip(splits, ends, strict=True)
    ]


@pytest.fixture(scope="module")
def planted(splits):
    """Splits, and features that tell every label; one label is missing, one wrong, of class 0."""
    rng = np.random.default_rng(0)
    truth = rng.choice([-1, 1], size=(40, len(splits[0].class_names))).astype(np.int8)
    truth[[MISSING, WRONG], 0] = 1, -1
    labels = truth.copy()
    labels[[MISSING, WRONG], 0] = -1, 1
    labels[list(UNLABELLED)] = 0
    return with_labels(splits, labels), truth + rng.normal(scale=0.1, size=truth.shape)


@pytest.fixture
def questions(planted, tmp_path):
    return Questions(*planted, tmp_path / "corrections.csv")


def asked(questions, name):
    """All questions of a list, passing over one after the other."""
    passed, found = [], []
    while (question := questions.next(name, passed)[0]) is not None:
        passed.append((question.row, question.class_index))
        found.append(question)
    return found


def test_planted_errors_come_first(questions):
    first, second, *_ = asked(questions, "doubtful")
    assert {(one.row, one.class_index, one.kind) for one in (first, second)} == {
        (MISSING, 0, "missing"),
        (WRONG, 0, "wrong"),
    }
    assert questions.next("doubtful")[1] == len(asked(questions, "doubtful"))


def test_what_is_answered_is_asked_no_more_and_undone_asked_again(questions):
    first, second, *_ = asked(questions, "doubtful")
    questions.answer([(first.row, first.class_index, "unknown")], "anna")
    assert questions.next("doubtful")[0] == second
    back = questions.undo("anna")
    assert (back.row, back.class_index, back.kind) == (first.row, first.class_index, "again")
    assert questions.next("doubtful")[0] == first
    assert questions.undo("anna") is None
    assert [answer.answer for answer in read(questions.file)] == ["unknown", "undo"]


def test_undo_goes_back_answer_by_answer_of_one_person(questions):
    for row, word, who in ((0, "present", "anna"), (1, "absent", "anna"), (2, "absent", "bert")):
        questions.answer([(row, 0, word)], who)
    questions.answer([(0, 0, "absent")], "anna")
    assert [questions.undo("anna").row for _ in range(3)] == [0, 1, 0]
    standing = questions.corrections().standing
    assert [label.position for label in standing] == [2]


def test_the_answer_of_a_photo_that_moved_is_undone_once(questions):
    moved = questions.splits[0]
    place = moved.image_id(4), "where it was", moved.class_names[0]
    append(questions.file, [Answer(*place, "present", "anna", corrections.now())])
    assert questions.undo("anna").row == 4 and questions.undo("anna") is None
    photo, _, name = place  # the undo names the split where the photo is now
    assert [answer[:4] for answer in read(questions.file)] == [
        (*place, "present"),
        (photo, moved.split, name, "undo"),
    ]
    # An undo that has the split where the photo is now takes it back too.
    back = Answer(place[0], moved.split, place[2], "undo", "anna", corrections.now())
    append(questions.file, [Answer(*place, "absent", "anna", corrections.now()), back])
    assert questions.undo("anna") is None and not questions.corrections().standing


def test_disagreements_come_before_all_else(questions):
    for who, word in (("anna", "present"), ("bert", "absent")):
        questions.answer([(15, 2, word)], who)
    question, _ = questions.next("doubtful")
    assert (question.row, question.class_index, question.kind) == (15, 2, "disagreement")
    questions.answer([(15, 2, "absent")], "anna")
    assert questions.next("doubtful")[0].kind != "disagreement"


def test_what_another_process_writes_counts_at_once(questions):
    first = questions.next("doubtful")[0]
    split, position = questions.photo(first.row)
    name = split.class_names[first.class_index]
    place = split.image_id(position), split.split, name
    append(questions.file, [Answer(*place, "present", "bert", corrections.now())])
    assert questions.next("doubtful")[0] != first


def test_answers_change_what_is_in_doubt(questions):
    before = questions.rank()
    questions.answer([(MISSING, 0, "present"), (WRONG, 0, "absent")], "anna")
    after = questions.rank()
    assert after["doubtful"] < before["doubtful"] and after["mAP"] >= before["mAP"]
    places = [(one.row, one.class_index) for one in asked(questions, "doubtful")]
    assert (MISSING, 0) not in places and (WRONG, 0) not in places


def test_photos_without_labels_are_asked_for_photo_by_photo(questions):
    found = asked(questions, "unlabelled")
    rows = [one.row for one in found]
    assert sorted(set(rows)) == list(UNLABELLED)
    classes = len(questions.class_names)
    assert rows == [row for row in dict.fromkeys(rows) for _ in range(classes)]
    of_first = [one.probability for one in found[:classes]]
    assert of_first == sorted(of_first, reverse=True)  # the likeliest label first
    assert questions.open_classes(rows[0]) == list(range(classes))
    assert questions.open_classes(0) == []
    questions.answer([(rows[0], 2, "present")], "bert")
    assert questions.answer_rest(rows[0], "anna") == classes - 1
    assert questions.answer_rest(rows[0], "anna") == questions.answer_rest(0, "anna") == 0
    labels = questions.labels()[rows[0]]
    assert np.flatnonzero(labels > 0).tolist() == [2] and (labels != 0).all()
    assert rows[0] not in [one.row for one in asked(questions, "unlabelled")]
    assert questions.rank()["unlabelled"] == 3  # of which one has all its answers
    assert questions.next("unlabelled")[1] == 2


def test_what_a_present_label_lies_within_is_present(planted, tmp_path):
    names = planted[0][0].class_names
    tree = LabelTree(names, ((0, 1), (1, 2)))  # 0 is below 1, and that below 2
    questions = Questions(*planted, tmp_path / "corrections.csv", tree)
    row = UNLABELLED[0]
    questions.answer([(row, 0, "present")], "anna")
    assert np.flatnonzero(questions.labels()[row] > 0).tolist() == [0, 1, 2]
    questions.answer([(row, 2, "absent")], "anna")
    assert np.flatnonzero(questions.labels()[row] > 0).tolist() == [0, 1]
    questions.undo("anna")
    assert questions.answer_rest(row, "anna") == len(names) - 1
    said = {answer.class_name: answer.answer for answer in read(questions.file)}
    assert [said[name] for name in names] == 3 * ["present"] + (len(names) - 3) * ["absent"]
    assert row not in [one.row for one in asked(questions, "unlabelled")]
    assert questions.next("unlabelled")[1] == len(UNLABELLED) - 1


def test_a_set_without_any_label_is_asked_for_by_diversity(splits, tmp_path):
    nothing = np.zeros((40, len(splits[0].class_names)), np.int8)
    features = np.eye(40)
    features[1] = features[0]
    questions = Questions(with_labels(splits, nothing), features, tmp_path / "corrections.csv")
    assert questions.rank()["mAP"] is None and questions.next("doubtful") == (None, 0)
    rows = list(dict.fromkeys(one.row for one in asked(questions, "unlabelled")))
    assert sorted(rows) == list(range(40)) and rows[-1] == 1  # the copy of another


def test_what_there_is_not_is_refused(questions):
    for row, class_index, word in ((99, 0, "present"), (0, 99, "present"), (0, 0, "maybe")):
        with pytest.raises(UsageError):
            questions.answer([(0, 1, "absent"), (row, class_index, word)], "anna")
    for row in (-1, 40):
        with pytest.raises(UsageError, match="no photo"):
            questions.answer_rest(row, "anna")
    with pytest.raises(UsageError, match="no correction"):
        questions.answer([(0, 0, "present")], " ")
    with pytest.raises(UsageError, match="doubtful, unlabelled"):
        questions.next("other")
    assert not questions.file.exists()
