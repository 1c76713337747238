"""Corrections: what a file of answers makes of labels, and that no answer is lost on the way."""

import logging
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from mlic_jax.data import records
from mlic_jax.data.corrections import (
    COLUMNS,
    Answer,
    Corrections,
    append,
    correct,
    now,
    read,
    require_usable,
)
from mlic_jax.errors import Failure, UsageError

HEADER = ",".join(COLUMNS)
WHEN = "2026-11-26T21:03:11Z"


def said(photo, class_name, answer, who="anna", split="train"):
    return Answer(photo, split, class_name, answer, who, WHEN)


@pytest.fixture(scope="module")
def splits(toy_source, tmp_path_factory):
    """Of ten and four images, of which the ids of the four recur; the label ant is i % 3 - 1."""
    folder = records.prepare(toy_source("toy"), tmp_path_factory.mktemp("prepared"))
    return {name: records.open_split(folder, name) for name in ("train", "val")}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "own" / "corrections.csv"


def found(splits, *answers):
    return Corrections.of(splits.values(), answers)


def labels_of(splits, *answers, split="train"):
    return found(splits, *answers).corrected(splits[split]).labels()


def test_rows_come_back_as_they_were_given(file):
    odd = [said('a, "b".jpg', "Straßen|hund", "unknown", who="Zoë"), said("=1+1", "?", "undo")]
    assert read(file) == []
    append(file, odd[:1])
    append(file, odd[1:])
    assert read(file) == odd
    assert file.read_text(encoding="utf-8").splitlines()[0] == HEADER
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())


def test_answers_become_labels(splits):
    before = splits["train"].labels().copy()
    after = labels_of(
        splits,
        *(said("photo0", "ant", "present"), said("photo0", "bee", "absent")),
        *(said("photo2", "ant", "unknown"), said("photo1", "bee", "present")),
    )
    expected = before.copy()
    expected[0, :2], expected[2, 0] = (1, -1), 0
    assert (expected != before).sum() == 3  # bee was there in photo1
    np.testing.assert_array_equal(after, expected)
    np.testing.assert_array_equal(splits["train"].labels(), before)
    record = found(splits, said("photo0", "ant", "present")).corrected(splits["train"])[0]
    assert record.labels[0] == 1 and record.image == splits["train"][0].image


@pytest.mark.parametrize(
    ("given", "is_now"),
    [
        (["present", "absent"], -1),
        (["present", "absent", "undo"], 1),
        (["present", "undo"], -1),  # as it was
        (["undo", "present"], 1),
        (["present", "undo", "undo", "unknown"], 0),
    ],
)
def test_the_last_answer_holds_and_undo_takes_it_back(splits, given, is_now):
    answers = [said("photo0", "ant", answer) for answer in given]
    assert labels_of(splits, *answers)[0, 0] == is_now


def test_where_people_differ_the_label_is_unknown_until_they_agree(splits):
    anna, bert = said("photo0", "ant", "present"), said("photo0", "ant", "absent", "bert")
    people = found(splits, anna, bert)
    assert people.corrected(splits["train"]).labels()[0, 0] == 0
    described = people.described()
    assert [row["answers"] for row in described["conflicts"]] == [
        [
            {"who": "anna", "answer": "present", "when": WHEN},
            {"who": "bert", "answer": "absent", "when": WHEN},
        ]
    ]
    assert described["changed"] == [] and described["people"] == {"anna": 1, "bert": 1}
    assert "1 unknown because people disagree" in described["said"]
    agreed = said("photo0", "ant", "present", "bert")
    assert labels_of(splits, anna, bert, agreed)[0, 0] == 1
    assert labels_of(splits, anna, bert, said("photo0", "ant", "undo"))[0, 0] == -1


def test_what_is_gone_is_listed_and_not_applied(splits):
    gone = [said("nowhere.jpg", "ant", "present"), said("photo0", "dog", "present")]
    taken_back = [said("photo0", "cow", "present"), said("photo0", "cow", "undo")]
    people = found(splits, *gone, *taken_back, said("photo0", "cat", "present"))
    assert people.gone == gone
    assert [row["photo"] for row in people.described()["gone"]] == ["nowhere.jpg", "photo0"]
    assert people.said() == (
        "1 of train changed of 1 labels that people judged; "
        "2 answers not applied, of photos or classes now gone"
    )


def test_a_photo_is_found_in_the_split_that_it_moved_to(splits):
    moved = said("photo9", "ant", "present", split="val")  # which has four
    assert labels_of(splits, moved)[9, 0] == 1
    in_both = said("photo0", "ant", "present", split="val")
    assert labels_of(splits, in_both)[0, 0] == -1
    assert labels_of(splits, in_both, split="val")[0, 0] == 1
    untold = said("photo0", "ant", "present", split="test")
    assert found(splits, untold).gone == [untold]


def test_a_set_without_the_file_is_as_it_was(splits, file, caplog):
    caplog.set_level(logging.INFO, "mlic_jax")
    assert correct(splits, "") == splits and not caplog.text
    assert correct(splits, str(file)) == splits
    assert caplog.messages == [f"{file}: there is no such file yet, labels are as annotated"]
    caplog.clear()
    append(file, [said("photo0", "ant", "present")])
    corrected = correct(splits, str(file))
    assert corrected["val"] is splits["val"] and corrected["train"].labels()[0, 0] == 1
    assert caplog.messages == [f"{file}: 1 of train changed of 1 labels that people judged"]


@pytest.mark.parametrize("cut", [1, 5, 21, len(f"photo1,train,bee,absent,anna,{WHEN}")])
def test_a_line_that_was_cut_short_goes(file, cut):
    first, torn, third = (said(f"photo{i}", "bee", "absent") for i in range(3))
    append(file, [first, torn])
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    # With its end alone missing it is all there, as an editor may leave a file.
    kept = [first, torn] if cut == 1 else [first]
    assert read(file) == kept
    append(file, [third])
    assert read(file) == [*kept, third]


def test_a_header_that_was_cut_short_is_written_again(file):
    file.parent.mkdir()
    file.write_bytes(HEADER[:9].encode())
    assert read(file) == []
    append(file, [said("photo1", "bee", "absent")])
    assert read(file) == [said("photo1", "bee", "absent")]


@pytest.mark.parametrize("row", ["x" * 200_000 + ",train,bee,absent,anna,now", "a\rb,train,bee"])
def test_a_line_that_is_no_csv_is_named(file, row):
    append(file, [said("photo0", "bee", "absent")])
    with file.open("a", newline="") as rows:
        rows.write(f"{row}\n")
    with pytest.raises(Failure, match="line 3"):
        read(file)


def test_an_answer_on_a_photo_that_moved_can_be_taken_back(splits):
    split = splits["train"]
    answer = said(split.image_id(7), split.class_names[0], "absent")
    moved = answer._replace(split="val")
    undone = Corrections.of(splits.values(), [moved, answer._replace(answer="undo")])
    assert undone.holding(answer.who) == []
    assert Corrections.of(splits.values(), [moved]).holding(answer.who) == [moved]


def test_a_byte_order_mark_alone_is_no_file_yet(file):
    file.parent.mkdir()
    file.write_bytes("\ufeffphoto,".encode())
    append(file, [said("photo1", "bee", "absent")])
    assert read(file) == [said("photo1", "bee", "absent")]


@pytest.mark.parametrize(
    "foreign", ["photo1.jpg,dog", "my notes\nof two lines\n", HEADER + ",note", "\0"]
)
def test_a_file_of_something_else_stays_as_it_is(file, foreign):
    file.parent.mkdir()
    file.write_text(foreign)
    for work in (read, lambda path: append(path, [said("photo1", "bee", "absent")])):
        with pytest.raises(Failure, match="is no file of corrections"):
            work(file)
    assert file.read_text() == foreign


@pytest.mark.parametrize("when", ["by hand", "2026-11-26", "26.11.2026", "2026-11-26 21:03"])
def test_a_last_row_by_hand_is_kept_without_its_end(file, when):
    by_hand = said("photo1", "bee", "absent")._replace(when=when)
    file.parent.mkdir()
    file.write_text(f"{HEADER}\n{','.join(by_hand)}")
    assert read(file) == [by_hand]
    append(file, [said("photo2", "bee", "absent")])
    assert read(file) == [by_hand, said("photo2", "bee", "absent")]


def test_a_last_row_by_hand_that_is_malformed_is_told(file):
    file.parent.mkdir()
    file.write_text(f"{HEADER}\nphoto1,train,bee,no,anna,by hand")
    with pytest.raises(Failure, match="line 2: it must be"):
        read(file)


def test_a_file_is_usable_or_not(file):
    require_usable(file)
    assert not file.parent.exists()
    append(file, [said("photo1", "bee", "absent")])
    before = file.read_bytes()
    require_usable(file)
    assert file.read_bytes() == before
    for path, why in ((file / "below", "cannot be written"), (file.parent, "cannot be read")):
        with pytest.raises(Failure, match=why):
            require_usable(path)


def test_a_file_of_excel_is_read(file):
    file.parent.mkdir()
    line = f"photo1,train,bee,absent,anna,{WHEN}"
    file.write_bytes(f"\ufeff{HEADER}\r\n{line}\r\n\r\n{line}".encode())
    assert read(file) == 2 * [said("photo1", "bee", "absent")]
    append(file, [said("photo1", "bee", "undo")])
    assert len(read(file)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER}\nphoto1,train,bee,prsent,anna,{WHEN}\n", "line 2: it must be photo,split"),
        (f"{HEADER}\nphoto1,train,bee,present,anna,{WHEN}\nphoto1\n", "line 3: it must be"),
        (f"{HEADER}\n,train,bee,present,anna,{WHEN}\n", "line 2: it must be"),
        (f"{HEADER}\nphoto1,train,bee,present,{140_000 * 'a'},{WHEN}\n", "line 2: it is no line"),
        (f"{HEADER}\nphoto1,tr\rain,bee,present,anna,{WHEN}\n", "line 2: it is no line of CSV"),
        (f"{HEADER}\rphoto1,train,bee,present,anna,{WHEN}\r", "line 1: it is no line of CSV"),
        (f"photo;split;class\nphoto1;train;bee;{WHEN}\n", "is no file of corrections"),
    ],
)
def test_what_is_malformed_names_its_place(file, content, message):
    file.parent.mkdir()
    file.write_bytes(content.encode())
    with pytest.raises(Failure, match=f"^{re.escape(str(file))}.*{message}"):
        read(file)


@pytest.mark.parametrize(
    "change",
    [{"answer": "perhaps"}, {"who": " "}, {"photo": "a\nb"}, {"class_name": ""}, {"who": "\ud800"}],
)
def test_what_no_row_can_say_is_refused(file, change):
    with pytest.raises(UsageError, match="is no correction"):
        append(file, [said("photo1", "bee", "absent")._replace(**change)])
    assert not file.exists()


@pytest.mark.parametrize("change", [{"who": 101 * "a"}, {"photo": 4097 * "a"}])
def test_what_is_too_long_is_refused(file, change):
    with pytest.raises(UsageError, match="is too long") as error:
        append(file, [said("photo1", "bee", "absent")._replace(**change)])
    assert len(str(error.value)) < 400 and not file.exists()


def test_a_full_disk_leaves_what_was_there(file, files_of_at_most):
    append(file, [said("photo1", "bee", "absent")])
    before = file.read_bytes()
    with files_of_at_most(len(before) + 20), pytest.raises(Failure, match="cannot be written"):
        append(file, [said("photo2", "bee", "absent")])
    assert file.read_bytes() == before
    with pytest.raises(Failure, match="cannot be written"):
        append(file / "below", [said("photo2", "bee", "absent")])


# A person who answers again and again, and says after each answer that it is kept.
ANSWERING = """
import sys
from mlic_jax.data.corrections import Answer, append
_, path, who, count = sys.argv
for i in range(int(count)):
    append(path, [Answer(f"photo{i}", "train", "bee", "absent", who, "2026-11-26")])
    print(i, flush=True)
"""


def answering(file, who, count):
    command = [sys.executable, "-c", ANSWERING, str(file), who, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_at_once_lose_nothing(file):
    people = ("anna", "bert")
    processes = [answering(file, who, 100) for who in people]
    for process in processes:
        assert len(process.communicate(timeout=60)[0].splitlines()) == 100
        assert process.returncode == 0
    answers = read(file)
    for who in people:
        of_person = [answer.photo for answer in answers if answer.who == who]
        assert of_person == [f"photo{i}" for i in range(100)]
    assert len(answers) == 200


def test_a_killed_process_loses_no_answer(file):
    with answering(file, "anna", 10**6) as process:
        told = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += [int(line) for line in process.stdout]
    assert [answer.photo for answer in read(file)][: len(told)] == [f"photo{i}" for i in told]
    append(file, [said("photo0", "bee", "undo")])
    assert read(file)[-1].answer == "undo"
