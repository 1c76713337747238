"""Rows outlive the process, in any order they are wanted in, and a torn line does not count."""

import json

import pytest

from mlic_jax.predict.journal import JOURNAL, LINES, TABLE, Journal, begun, has_rows

CLASSES = ("dog", "cat;fish")
RUN = {"weights": "1", "flip": False}


def entry(file, error=None):
    scores = {} if error else dict.fromkeys(CLASSES, 0.25)
    return {"row": {"file": file, "labels": [], "scores": scores, "error": error}, "peaks": [0.1]}


def files(folder):
    return [(folder / name).read_bytes() for name in (JOURNAL, LINES, TABLE)]


def written(folder, *entries):
    """A journal that was closed."""
    folder.mkdir()
    with Journal(folder, RUN, CLASSES) as journal:
        journal.arrange(())
        for each in entries:
            journal.add(each)
    return folder


def test_a_row_is_there_once_it_is_added(tmp_path):
    assert begun(tmp_path) is None
    with Journal(tmp_path, RUN, CLASSES) as journal:
        journal.arrange(())
        assert begun(tmp_path) == RUN
        assert not has_rows(tmp_path)
        for k, file in enumerate(("b.jpg", "a.jpg")):
            journal.add(entry(file, "cut; short" if k else None))
            assert has_rows(tmp_path)
            assert len(journal) == len((tmp_path / LINES).read_text().splitlines()) == k + 1
        assert list(journal) == [entry("b.jpg"), entry("a.jpg", "cut; short")]
    rows = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    assert rows == [entry("b.jpg")["row"], entry("a.jpg", "cut; short")["row"]]
    assert (tmp_path / TABLE).read_bytes().decode().splitlines() == [
        "file,labels,error,dog,cat;fish",
        "b.jpg,,,0.250000,0.250000",
        "a.jpg,,cut; short,,",
    ]


def test_rows_are_arranged_as_if_they_had_come_so(tmp_path):
    folder = written(tmp_path / "one", *map(entry, ("c", "a", "b")))
    with Journal(folder, RUN, CLASSES) as journal:
        journal.arrange(["a", "x", "c"])
        assert "b" not in journal
        journal.add(entry("d"))
        assert [each["row"]["file"] for each in journal] == ["a", "c", "d"]
    assert files(folder) == files(written(tmp_path / "two", *map(entry, ("a", "c", "d"))))


@pytest.mark.parametrize("cut", [1, 10, 50])
def test_a_torn_line_does_not_count(tmp_path, cut):
    folder = written(tmp_path / "one", *map(entry, ("a", "b")))
    text = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(text[:-cut])
    with Journal(folder, RUN, CLASSES) as journal:
        assert [each["row"]["file"] for each in journal] == ["a"]
        journal.arrange(["a", "b"])
        journal.add(entry("b"))
    assert (folder / JOURNAL).read_bytes() == text
    (folder / JOURNAL).write_bytes(text[:5])
    assert begun(folder) is None
