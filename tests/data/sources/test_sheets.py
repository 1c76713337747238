"""Parquet and Excel: read as a CSV of the same cells is, or refused in one line."""

import datetime
import io
import json
import sys
import zipfile

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from mlic_jax.errors import Failure, UsageError

NAMES = [f"img{i}.jpg" for i in range(4)]
LISTS = [["cat"], ["dog", "red, old car"], [], ["cat", "dog"]]
WIDE = {"image": NAMES, "cat": [True, False, False, True], "dog": [0.0, 1.0, None, 1.0]}
FEATURES = {"labels": {"feature": {"names": ["cat", "dog", "red, old car"], "_type": "ClassLabel"}}}
NUMBERS = {"file_name": NAMES, "labels": [[0], [1, 2], [], [0, 1]]}


def parquet(columns, features=None):
    table = pyarrow.table(columns)
    if features:
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    return content.getvalue()


def xlsx(**sheets):
    """A file of Excel of sheets, name=rows."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def of_each(*labels):
    return dict(zip(NAMES, labels, strict=True))


def rows_of(columns):
    return [list(columns), *zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(
    "content",
    [
        parquet({"file_name": NAMES, "labels": LISTS}),
        parquet(NUMBERS, FEATURES),
        parquet(NUMBERS, {"labels": [FEATURES["labels"]["feature"]]}),  # as older versions write it
        parquet(NUMBERS | {"box": [{"x": 1}] * 4, "digest": [b"\xff"] * 4}, FEATURES),
    ],
    ids=["lists", "numbers", "older numbers", "other columns"],
)
def test_columns_of_labels_in_parquet(plant, read_own, content):
    own = read_own(plant({"metadata.parquet": content}, NAMES))
    assert own.layout.format == "parquet" and own.labels == of_each(*map(set, LISTS))


@pytest.mark.parametrize("file", ["t.parquet", "t.xlsx"])
def test_cells_of_several_labels(plant, read_own, file):
    columns = {"image": NAMES, "labels": ["cat", "dog|old car", None, "cat, dog"]}
    content = xlsx(all=rows_of(columns)) if file == "t.xlsx" else parquet(columns)
    own = read_own(plant({file: content}, NAMES))
    assert own.labels == of_each({"cat"}, {"dog", "old car"}, set(), {"cat", "dog"})


def test_one_class_each_in_parquet(plant, read_own):
    """Names with commas, as ImageNet's are; -1 is of no class."""
    features = {"label": {"names": ["tench, Tinca", "dog"], "_type": "ClassLabel"}}
    content = parquet({"image": NAMES, "label": [0, 1, -1, 0]}, features)
    own = read_own(plant({"a.parquet": content}, NAMES))
    assert own.source.class_names == ("dog", "tench, Tinca")
    assert own.labels == of_each({"tench, Tinca"}, {"dog"}, set(), {"tench, Tinca"})


@pytest.mark.parametrize("file", ["t.parquet", "t.xlsx"])
def test_a_column_a_class(plant, read_own, file):
    columns = WIDE | {"split": ["train", "train", "val", "train"]}
    content = xlsx(all=rows_of(columns)) if file == "t.xlsx" else parquet(columns)
    own = read_own(plant({file: content}, NAMES))
    assert own.own_splits == ("train", "val")
    assert own.labels == of_each({"cat"}, {"dog"}, set(), {"cat", "dog"})
    assert "1 cells are empty: absent" in own.notes


def test_a_file_a_split(plant, read_own):
    """Hugging Face's imagefolder: metadata.parquet beside the photos of each split."""
    files = {
        f"{split}/metadata.parquet": parquet({"file_name": ["a.jpg"], "labels": [[label]]})
        for split, label in (("train", "cat"), ("test", "dog"))
    }
    own = read_own(plant(files, ["train/a.jpg", "test/a.jpg"]))
    assert own.of == {"train": {"train/a.jpg": {"cat"}}, "test": {"test/a.jpg": {"dog"}}}


def test_sheets(plant, read_own):
    labels = [["photo", "tags", "taken"], *([n, "cat", datetime.date(2020, 1, 2)] for n in NAMES)]
    other = [["photo", "tags"], [], *([n, "dog; car"] for n in NAMES), [None, None]]
    folder = plant({"t.xlsx": xlsx(first=labels, second=other), "~$t.xlsx": "of Excel"}, NAMES)
    own = read_own(folder)
    assert own.labels == of_each(*[{"cat"}] * 4)
    assert "the first sheet is read, not second; see --sheet" in own.notes
    assert "columns that do not count: taken" in own.notes
    own = read_own(folder, sheet="second")
    assert own.labels == of_each(*[{"dog", "car"}] * 4) and "see --sheet" not in own.notes
    with pytest.raises(UsageError, match="has no sheet 'third', but 'first', 'second'"):
        read_own(folder, sheet="third")


def test_a_first_sheet_that_is_no_table_of_labels_says_what_others_there_are(plant, read_own):
    notes = [["note"], ["labels are on sheet 2"]]
    folder = plant({"t.xlsx": xlsx(about=notes, data=[["image", "labels"], ["a.jpg", "dog"]])})
    with pytest.raises(Failure, match="first sheet; for another say --sheet: data"):
        read_own(folder)


def altered(book, old, new):
    """A file of Excel with a text in its XML replaced."""
    content, found = io.BytesIO(), 0
    with zipfile.ZipFile(io.BytesIO(book)) as whole, zipfile.ZipFile(content, "w") as copy:
        for part in whole.namelist():
            found += whole.read(part).count(old)
            copy.writestr(part, whole.read(part).replace(old, new))
    assert found
    return content.getvalue()


def test_a_row_far_below(plant, read_own):
    content = altered(xlsx(s=rows_of(WIDE)), b'<row r="5"', b'<row r="999999999"')
    with pytest.raises(Failure, match="a sheet has at most 1,048,576 rows"):
        read_own(plant({"t.xlsx": content}, NAMES))


def test_a_wrong_extent_is_not_believed(plant, read_own):
    """Some programs write one that cuts rows and columns off."""
    content = altered(xlsx(s=rows_of(WIDE)), b'ref="A1:C5"', b'ref="A1:B2"')
    own = read_own(plant({"t.xlsx": content}, NAMES))
    assert own.labels == of_each({"cat"}, {"dog"}, set(), {"cat", "dog"})


def test_cells_of_errors_and_numbers_of_rows(plant, read_own):
    rows = [["image", "labels"], *zip(NAMES, ["cat", "#N/A", "dog", "cat"], strict=True)]
    own = read_own(plant({"t.xlsx": xlsx(s=rows)}, NAMES))
    assert own.labels == of_each({"cat"}, set(), {"dog"}, {"cat"})
    assert "cells of #N/A name no label" in own.notes
    columns = {"image": NAMES[:2], "cat": [1, 0], "__index_level_0__": [0, 1]}  # of pandas
    (plant() / "t.xlsx").unlink()
    own = read_own(plant({"t.parquet": parquet(columns)}))
    assert own.source.class_names == ("cat",)


def test_names_that_are_numbers(plant, read_own):
    rows = [["id", "labels"], [1, "cat"], [2, "dog"], [3, "cat"]]
    own = read_own(plant({"t.xlsx": xlsx(s=rows)}, ["1.jpg", "2.jpg", "3.jpg"]))
    assert own.labels == {"1.jpg": {"cat"}, "2.jpg": {"dog"}, "3.jpg": {"cat"}}


def test_other_annotations_come_first(plant, read_own):
    """A sheet may be about anything."""
    text = "image,labels\n" + "".join(f"{name},cat\n" for name in NAMES)
    own = read_own(plant({"labels.csv": text, "costs.xlsx": xlsx(s=[["what", "costs"]])}, NAMES))
    assert own.layout.format == "csv"


def _contradicted(columns):
    """The first photo has the labels of the second in a row of its own."""
    return {name: [values[name != "image"], *values] for name, values in columns.items()}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t.parquet", b"PAR1 no more", "t.parquet is not Parquet: .* [(]taken for parquet"),
        ("t.parquet", parquet(WIDE)[:-9], "t.parquet is not Parquet"),
        (
            "t.parquet",
            parquet(_contradicted(WIDE)),
            "row 2: img0.jpg is listed already, in .*row 1",
        ),
        ("t.parquet", parquet({"image": [], "cat": [], "dog": []}), "no image is listed"),
        ("t.parquet", parquet({"image": NAMES}), "beside image and split there must be"),
        ("t.parquet", parquet(NUMBERS), r"row 1, column 'labels': '\[0\]' is not a Python list"),
        (
            "t.parquet",
            parquet(NUMBERS | {"labels": [[7]] * 4}, FEATURES),
            "row 1, column 'labels': '7' is none of its 3 classes",
        ),
        (
            "t.parquet",
            parquet({"image": [{"bytes": b"\xff\xd8", "path": "a.jpg"}], "label": ["cat"]}),
            "its column 'image' holds the photos themselves. Save each to a file",
        ),
        ("t.xlsx", b"PK no more", "t.xlsx is no .xlsx file of Excel: BadZipFile"),
        ("t.xlsx", xlsx(s=[]), "t.xlsx is empty: its sheet must have a header"),
        ("t.xlsx", xlsx(s=[["image", "cat"], ["a.jpg", 1, 1]]), "row 2: it goes on beyond the 2"),
        ("t.xlsx", xlsx(s=rows_of(_contradicted(WIDE))), "row 3: img0.jpg is listed already"),
        ("t.xlsx", xlsx(s=[["image", "cat"], ["img0.jpg", 3]]), "row 2, column 'cat': '3' is nei"),
    ],
)
def test_what_is_refused(plant, read_own, file, content, message):
    with pytest.raises(Failure, match=message) as failure:
        read_own(plant({file: content}, NAMES))
    assert "\n" not in str(failure.value)


def test_a_zip_of_something_else(plant, read_own):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    with pytest.raises(Failure, match=r"is no .xlsx file of Excel"):
        read_own(plant({"t.xlsx": content.getvalue()}, NAMES))


@pytest.mark.parametrize(("file", "package"), [("t.parquet", "pyarrow"), ("t.xlsx", "openpyxl")])
def test_without_the_package(plant, read_own, monkeypatch, file, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"the package {package} is needed .*\[tables\]"):
        read_own(plant({file: b""}, NAMES))


def _sheet_with(change, rows):
    """A file of Excel of rows, of which `change` changes the sheet."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    change(book.active)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


LABELLED = [["image", "label"], *([name, "cat"] for name in NAMES)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sheet: sheet.merge_cells("B2:B4"), "B2:B4: these cells are merged"),
        (lambda sheet: sheet.merge_cells("A5:B5"), "A5:B5: these cells are merged"),
        (lambda sheet: sheet.cell(3, 2, '=IF(1,"cat","dog")'), "B3: the formula was never worked"),
        (lambda sheet: sheet.cell(3, 2, "#REF!"), "B3: #REF! is the error of a formula"),
        (lambda sheet: sheet.cell(3, 2, "#NAME?"), "B3: #NAME[?] is the error of a formula"),
    ],
)
def test_cells_without_a_value_of_their_own(plant, read_own, change, message):
    with pytest.raises(Failure, match=message):
        read_own(plant({"t.xlsx": _sheet_with(change, LABELLED)}, NAMES))


def test_cells_without_a_value_beside_the_table_do_not_count(plant, read_own):
    def change(sheet):
        sheet.merge_cells("A7:B9")  # empty
        sheet.merge_cells("D1:E1")
        sheet.cell(2, 7, "=1+1")

    content = _sheet_with(change, LABELLED)
    assert read_own(plant({"t.xlsx": content}, NAMES)).labels == of_each(*[{"cat"}] * 4)


@pytest.mark.parametrize("labels", [[b"cat", b"dog"] * 2, [[["cat"]]] * 4, [{"name": "cat"}] * 4])
def test_labels_that_are_no_texts_are_not_passed_over(plant, read_own, labels):
    content = parquet({"file_name": NAMES, "label": labels, "source": ["web", "web", "me", "me"]})
    folder = plant({"t.parquet": content}, NAMES)
    with pytest.raises(Failure, match="the column 'label' holds neither texts nor lists"):
        read_own(folder)
    assert read_own(folder, label_column="source").source.class_names == ("me", "web")


def test_columns_that_are_left_out_are_told(plant, read_own):
    content = parquet(NUMBERS | {"box": [{"x": 1}] * 4, "digest": [b"\xff"] * 4}, FEATURES)
    told = "columns that are neither values nor lists: box, digest"
    assert told in read_own(plant({"t.parquet": content}, NAMES)).source.notes
