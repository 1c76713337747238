"""Tables as programs and people write them: every form is read right, or asked about."""

import pytest

from mlic_jax.errors import Failure, UsageError

NAMES = [f"img{i}.jpg" for i in range(12)]
TRUTH = [
    {"cat"},
    {"dog"},
    {"cat", "dog"},
    {"car"},
    {"car", "dog"},
    set(),
    {"cat", "car"},
    {"dog"},
    {"cat"},
    {"car"},
    {"cat", "dog", "car"},
    {"dog", "car"},
]
CLASSES = ("car", "cat", "dog")
EXPECTED = dict(zip(NAMES, TRUTH, strict=True))


def table(cell, header="image,labels", photo="{}", end=""):
    """A CSV with a cell, `cell(labels)`, for each photo."""
    rows = (f"{photo.format(name)},{cell(sorted(names))}{end}" for name, names in EXPECTED.items())
    return "\n".join([header + end, *rows]) + "\n"


def wide(present, absent, header="image,car,cat,dog", mark=",", end=""):
    rows = (
        mark.join([name, *(present if c in names else absent for c in CLASSES)])
        for name, names in EXPECTED.items()
    )
    return "\n".join(row + end for row in [header.replace(",", mark), *rows]) + "\n"


def quoted(names):
    return ", ".join(map(repr, names))


@pytest.mark.parametrize(
    "cell",
    [
        "|".join,
        ";".join,
        " ; ".join,
        lambda names: "".join(f"{name};" for name in names),  # a separator at the end
        lambda names: f'"{",".join(names)}"',
        lambda names: f'"[{quoted(names)}]"',
        lambda names: f'"({quoted(names)}{"," if len(names) == 1 else ""})"',
        lambda names: f'"{{{quoted(names)}}}"' if names else "set()",
        lambda names: f'"frozenset({{{quoted(names)}}})"',
        lambda names: f'"[{" ".join(map(repr, names))}]"',  # as NumPy prints arrays
        lambda names: '"[' + "\n ".join(map(repr, names)) + ']"',  # long ones
        lambda names: f'"array([{quoted(names)}], dtype=object)"',
        lambda names: '"[' + ", ".join(f"np.str_({name!r})" for name in names) + ']"',
        lambda names: '"[' + ", ".join(f'""{name}""' for name in names) + ']"',  # JSON
        lambda names: '"{""choices"": [' + ", ".join(f'""{name}""' for name in names) + ']}"',
        lambda names: "|".join(names) or "nan",
        lambda names: "|".join(names) or "None",
        lambda names: "|".join(f" {name} " for name in names),
    ],
)
def test_cells_that_list_labels(plant, read_own, cell):
    own = read_own(plant({"labels.csv": table(cell)}, NAMES))
    assert own.source.class_names == CLASSES
    assert own.labels == EXPECTED


@pytest.mark.parametrize("column", ["tags", "Finding Labels", "classes", "label", "CATEGORY"])
@pytest.mark.parametrize("photo", ["file_name", "Image Index", "filename", "image_id", "Path"])
def test_names_of_columns(plant, read_own, column, photo):
    own = read_own(plant({"labels.csv": table("|".join, f"{photo},{column}")}, NAMES))
    assert own.labels == EXPECTED


def test_columns_that_do_not_count(plant, read_own):
    """As NIH's chest X-rays: others beside, and a comma at the end of every line."""
    header = "Follow-up #,Patient Age,Image Index,Finding Labels,View"
    rows = [f"0,{40 + i}Y,{n},{'|'.join(sorted(EXPECTED[n]))},PA," for i, n in enumerate(NAMES)]
    own = read_own(plant({"Data.csv": "\n".join([f"{header},", *rows])}, NAMES))
    assert own.labels == EXPECTED
    assert "columns that do not count: Follow-up #, Patient Age, View" in own.notes


@pytest.mark.parametrize(
    ("present", "absent"),
    [
        ("1", "0"),
        ("1.0", "0.0"),
        ("True", "False"),
        ("1", ""),
        ("1", "-1"),
        ("x", ""),
        ("1", "nan"),
    ],
)
def test_a_column_a_class(plant, read_own, present, absent):
    own = read_own(plant({"train.csv": wide(present, absent)}, NAMES))
    assert (own.source.class_names, own.labels) == (CLASSES, EXPECTED)


def test_minus_one_is_unknown_beside_zero(plant, read_own):
    """CheXpert's policy, and what is said of it."""
    text = "Path,No Finding,Edema\na.jpg,1.0,\nb.jpg,-1.0,0.0\nc.jpg,,-1.0\n"
    own = read_own(plant({"train.csv": text}, ["a.jpg", "b.jpg", "c.jpg"]))
    assert own.labels == {"a.jpg": {"No Finding"}, "b.jpg": {"No Finding?"}, "c.jpg": {"Edema?"}}
    assert "2 cells are -1: unknown, since others are 0" in own.notes
    assert "2 cells are empty: absent" in own.notes


def test_columns_beside_those_of_classes(plant, read_own):
    header, *rows = wide("1.0", "").splitlines()
    lines = [f"{header},Sex,Age", *(f"{row},{'MF'[i % 2]},{30 + i}" for i, row in enumerate(rows))]
    own = read_own(plant({"train.csv": "\n".join(lines)}, NAMES))
    assert own.labels == EXPECTED
    assert "columns that do not count: Sex, Age" in own.notes


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_marks_between_columns(plant, read_own, mark):
    assert read_own(plant({"l.csv": wide("1", "0", mark=mark)}, NAMES)).labels == EXPECTED
    text = table("|".join).replace(",", mark)
    assert read_own(plant({"l.csv": text}, NAMES)).labels == EXPECTED


def test_numbers_with_a_comma(plant, read_own):
    assert read_own(plant({"l.csv": wide("1,0", "0,0", mark=";")}, NAMES)).labels == EXPECTED


def test_a_mark_that_the_file_names(plant, read_own):
    text = "sep=;\n" + wide("1", "0", mark=";")
    assert read_own(plant({"l.csv": text}, NAMES)).labels == EXPECTED


def test_commas_at_the_end_of_lines(plant, read_own):
    assert read_own(plant({"l.csv": wide("1", "0", end=",")}, NAMES)).labels == EXPECTED
    header, rows = wide("1", "0", end=",").split(",\n", 1)
    assert read_own(plant({"l.csv": f"{header}\n{rows}"}, NAMES)).labels == EXPECTED


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", ["", "Unnamed: 0", "index"])
def test_numbers_of_rows(plant, read_own, name, start):
    """As pandas writes them, the index."""
    header, *rows = table("|".join).splitlines()
    lines = [f"{name},{header}", *(f"{i},{row}" for i, row in enumerate(rows, start))]
    own = read_own(plant({"labels.csv": "\n".join(lines)}, NAMES))
    assert (own.source.class_names, own.labels) == (CLASSES, EXPECTED)


def test_a_nameless_column_of_photos(plant, read_own):
    own = read_own(plant({"l.csv": wide("1", "0", header=",car,cat,dog")}, NAMES))
    assert own.labels == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252", "gbk"])
def test_encodings(plant, read_own, encoding):
    names = {"gbk": ("狗", "猫咪")}.get(encoding, ("chien", "créé"))
    text = f"image,labels\na.jpg,{names[0]}\nb.jpg,{names[1]};{names[0]}\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    own = read_own(plant({"l.csv": mark + text.encode(encoding)}, ["a.jpg", "b.jpg"]))
    assert own.labels == {"a.jpg": {names[0]}, "b.jpg": {*names}}
    assert ("l.csv is not UTF-8: read as" in own.notes) == (encoding in ("cp1252", "gbk"))


def test_a_row_a_label(plant, read_own):
    rows = [f"{n},{name}" for n in NAMES for name in sorted(EXPECTED[n]) or [""]]
    own = read_own(plant({"l.csv": "\n".join(["image,label", *rows])}, NAMES))
    assert own.labels == EXPECTED
    assert f"{len(rows)} rows are of 12 photos" in own.notes


def test_a_row_a_box(plant, read_own):
    """Roboflow's _annotations.csv: the same label may come twice."""
    rows = [f"{n},8,8,{c},1,1,{x},5" for n in NAMES for c in sorted(EXPECTED[n]) for x in (3, 4)]
    header = "filename,width,height,class,xmin,ymin,xmax,ymax"
    own = read_own(plant({"_annotations.csv": "\n".join([header, *rows])}, NAMES))
    assert own.labels == {name: names for name, names in EXPECTED.items() if names}


def test_a_row_a_label_that_may_be_absent(plant, read_own):
    """OpenImages: what is not mentioned is unknown there."""
    text = (
        "ImageID,Source,LabelName,Confidence\na,verification,/m/cat,1\na,verification,/m/dog,0\n"
        "b,verification,/m/dog,1\nb,verification,/m/dog,1\n"
    )
    own = read_own(plant({"labels.csv": text}, ["a.jpg", "b.jpg"]))
    assert own.labels == {"a.jpg": {"/m/cat"}, "b.jpg": {"/m/dog", "/m/cat?"}}
    assert "labels that are not mentioned are unknown" in own.notes


def test_words_that_are_labels(plant, read_own):
    """Plant Pathology and Planet."""
    text = "image,labels\na.jpg,scab\nb.jpg,rust\nc.jpg,scab rust\nd.jpg,rust\n"
    own = read_own(plant({"l.csv": text}, [f"{i}.jpg" for i in "abcd"]))
    assert own.labels["c.jpg"] == {"scab", "rust"}
    tags = ["haze primary", "agriculture clear primary water", "clear primary"]
    tags += ["haze water primary", "agriculture clear primary"]
    rows = [f"{i}.jpg,{cell}" for i, cell in zip("abcde", tags, strict=True)]
    text = "\n".join(["image_name,tags", *rows])
    own = read_own(plant({"l.csv": text}, [f"{i}.jpg" for i in "abcde"]))
    assert own.labels["b.jpg"] == {"agriculture", "clear", "primary", "water"}


def test_words_that_are_no_labels(plant, read_own):
    text = "image,labels\na.jpg,traffic light\nb.jpg,stop sign\nc.jpg,traffic light\n"
    own = read_own(plant({"l.csv": text}, ["a.jpg", "b.jpg", "c.jpg"]))
    assert own.source.class_names == ("stop sign", "traffic light")


def test_words_that_may_be_labels(plant, read_own):
    text = "image,labels\na.jpg,hot dog\nb.jpg,dog\nc.jpg,hot dog\n"
    folder = plant({"l.csv": text}, ["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(Failure, match="are the words of 'hot dog' labels of their own"):
        read_own(folder)
    assert read_own(folder, cell_separator=";").labels["a.jpg"] == {"hot dog"}
    assert read_own(folder, cell_separator=" ").labels["a.jpg"] == {"hot", "dog"}


def test_attributes(plant, read_own):
    text = "image,colour,shape\na.jpg,red,round\nb.jpg,red,\nc.jpg,blue,flat\nd.jpg,blue,round\n"
    folder = plant({"l.csv": text}, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    with pytest.raises(Failure, match="'image', 'colour', 'shape'; say --label-column NAME"):
        read_own(folder)  # shapes hardly repeat
    own = read_own(folder, label_column="colour,shape")
    assert own.labels["a.jpg"] == {"colour=red", "shape=round"}
    assert own.labels["b.jpg"] == {"colour=red"}
    told = read_own(plant({"l.csv": text.replace("flat", "round")}))
    assert told.labels["d.jpg"] == {"colour=blue", "shape=round"}


def test_several_columns_of_labels(plant, read_own):
    text = "image,label1,label2\na.jpg,cat,dog\nb.jpg,dog,cat\nc.jpg,cat,\nd.jpg,dog,cat\n"
    own = read_own(plant({"l.csv": text}, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]))
    assert own.source.class_names == ("cat", "dog")
    assert own.labels["a.jpg"] == {"cat", "dog"} and own.labels["c.jpg"] == {"cat"}
    assert "labels are those of the columns label1, label2" in own.notes


def test_photos_that_are_named_by_numbers(plant, read_own):
    text = "index,label\n0,cat\n1,dog\n2,cat\n"
    own = read_own(plant({"l.csv": text}, ["x/0.jpg", "x/1.jpg", "x/2.jpg"]))
    assert own.labels == {"x/0.jpg": {"cat"}, "x/1.jpg": {"dog"}, "x/2.jpg": {"cat"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (wide("1", "0").partition("\n")[2], "no header, its first line is of the photo img0.jpg"),
        ("img0,1,0\nimg1,0,1\n", "the table has no header, its first line is of the photo img0"),
        (table("|".join).partition("\n")[2], "the table has no header"),
        ("image,label\n" + "".join(f"{n},{i % 3}\n" for i, n in enumerate(NAMES)), "are numbers"),
        ("image,0,1\nimg0.jpg,1,0\nimg1.jpg,0,1\n", "no header|are numbers"),
        ("image,7,8\nimg0.jpg,1,0\nimg1.jpg,0,1\n", "the names of the columns are numbers"),
        ("image,label\n" + "".join(f"{n},{i > 5}\n" for i, n in enumerate(NAMES)), "are answers"),
        ("image,label\n" + "".join(f"{n},<a|b)\n" for n in NAMES), "have brackets"),
        ("image,label\n" + "".join(f"{n},{n[:4]}.png\n" for n in NAMES), "are files"),
        ("image,label\n" + "".join(f"{n},say{n[:-4]}\n" for n in NAMES), "hardly ever occur twice"),
        ("image,labels\nimg0.jpg,\"{'cat': 1}\"\n", "is not a Python list of names"),
        ("image,labels\nimg0.jpg,\"['cat', 'd\no']\"\n", "is not a Python list of names"),
        ("image,labels\nimg0.jpg,\"['cat', 3]\"\n", "is not a Python list of names"),
        ("image,label,cat\nimg0.jpg,dog,1\nimg1.jpg,dog,0\n", "which counts"),
    ],
)
def test_what_is_asked(plant, read_own, text, message):
    folder = plant({"labels.csv": text}, NAMES)
    with pytest.raises(Failure, match=message) as failure:
        read_own(folder)
    assert "labels.csv, line" in str(failure.value) and "\n" not in str(failure.value)


def test_the_answer_is_taken(plant, read_own):
    text = "image,label\n" + "".join(f"{n},{i % 3}\n" for i, n in enumerate(NAMES))
    folder = plant({"labels.csv": text}, NAMES)
    assert read_own(folder, label_column="Label").labels["img4.jpg"] == {"1"}
    with pytest.raises(UsageError, match="there is no column 'tag', but 'image', 'label'"):
        read_own(folder, label_column="tag")
    other = "id,photo,kind\n" + "".join(f"{i}.jpg,{n},a\n" for i, n in enumerate(NAMES))
    own = read_own(plant({"labels.csv": other}), image_column="photo", label_column="kind")
    assert own.labels == {name: {"a"} for name in NAMES}


@pytest.mark.parametrize(
    "rows", [("image,labels", "a.jpg,x;y", "a.jpg,y;x"), ("image,x,y", "a.jpg,1,1", "./a.jpg,1,1")]
)
def test_rows_that_say_the_same_are_taken_once(plant, read_own, rows):
    lines = [*rows, rows[1], "b.jpg,x" if "labels" in rows[0] else "b.jpg,1,0"]
    folder = plant({"l.csv": "\n".join(lines)}, ["a.jpg", "b.jpg"])
    own = read_own(folder)
    assert own.labels == {"a.jpg": {"x", "y"}, "b.jpg": {"x"}}
    assert "2 rows say of a photo what an earlier row says of it: taken once" in own.notes
    other = "a.jpg,x" if "labels" in rows[0] else "a.jpg,1,0"
    with pytest.raises(Failure, match=r"line 6: a.jpg is listed already, in .*line 2, which says"):
        read_own(plant({"l.csv": "\n".join([*lines, other])}))


def test_an_image_of_two_splits(plant, read_own):
    """Unless each split has its own folder, in which it is another one."""
    text = "image,label,split\na.jpg,cat,train\na.jpg,dog,val\nb.jpg,dog,val\n"
    folder = plant({"l.csv": text}, ["a.jpg", "b.jpg"])
    with pytest.raises(Failure, match=r"line 3: a.jpg is listed already, in .*line 2"):
        read_own(folder)
    (folder / "a.jpg").unlink()
    own = read_own(plant({}, ["train/a.jpg", "val/a.jpg", "val/b.jpg"]))
    assert own.labels == {"train/a.jpg": {"cat"}, "val/a.jpg": {"dog"}, "val/b.jpg": {"dog"}}


@pytest.mark.parametrize("mark", ["/", "+", " & "])
def test_marks_that_divide_what_occurs_alone(plant, read_own, mark):
    own = read_own(plant({"l.csv": table(mark.join)}, NAMES))
    assert own.labels == EXPECTED
    text = f"image,label\na.jpg,cat{mark}big\nb.jpg,cat{mark}big\nc.jpg,cat\n"
    names = read_own(plant({"l.csv": text}, ["a.jpg", "b.jpg", "c.jpg"]), cell_separator=";")
    assert names.source.class_names == ("cat", f"cat{mark}big")


@pytest.mark.parametrize("header", ["id,labels", "filename\tlabels", "Image Name;labels"])
def test_a_table_in_a_text_file(plant, read_own, header):
    mark = next(mark for mark in ",\t;" if mark in header)
    rows = "".join(f"{i:04d}{mark}{'cat' if i % 2 else 'dog|cat'}\n" for i in range(4))
    files = {"labels.txt": f"{header}\n{rows}", "README.txt": "Name, and more\n", "list.txt": "a\n"}
    photos = [f"train/{i:04d}.jpeg" for i in range(4)]
    for annotations in (None, "labels.txt"):
        own = read_own(plant(files, photos), annotations)
        assert own.layout.format == "csv"
        labels = [{"cat"} if i % 2 else {"dog", "cat"} for i in range(4)]
        assert own.labels == dict(zip(photos, labels, strict=True))


YES_NO = "image,cat,dog,is_valid\na.jpg,1,0,False\nb.jpg,0,1,True\nc.jpg,1,1,False\n"


@pytest.mark.parametrize(
    "table", [YES_NO, "image,labels,is_valid\na.jpg,cat,0\nb.jpg,dog,1\nc.jpg,cat;dog,0\n"]
)
def test_a_column_that_says_what_is_for_validation(plant, read_own, table):
    own = read_own(plant({"labels.csv": table}, ["a.jpg", "b.jpg", "c.jpg"]))
    assert own.source.class_names == ("cat", "dog")
    assert own.of == {
        "train": {"a.jpg": {"cat"}, "c.jpg": {"cat", "dog"}},
        "val": {"b.jpg": {"dog"}},
    }


@pytest.mark.parametrize("name", ["fold", "Partition", "is_train"])
def test_what_divides_photos_is_no_class(plant, read_own, name):
    table = YES_NO.replace("is_valid", name)
    with pytest.raises(Failure, match=f"'{name}' seems to divide the photos"):
        read_own(plant({"labels.csv": table}, ["a.jpg", "b.jpg", "c.jpg"]))


def test_two_marks_in_a_cell_are_asked_about(plant, read_own):
    table = 'image,labels\na.jpg,"tench, Tinca tinca;fish"\nb.jpg,fish\n'
    folder = plant({"labels.csv": table}, ["a.jpg", "b.jpg"])
    with pytest.raises(Failure, match="what divides the labels of 'tench, Tinca tinca;fish'"):
        read_own(folder)
    own = read_own(folder, cell_separator=";")
    assert own.labels == {"a.jpg": {"tench, Tinca tinca", "fish"}, "b.jpg": {"fish"}}
