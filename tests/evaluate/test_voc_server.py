"""Files for the VOC server: the exact layout and ranking, and a checker that misses nothing."""

import gzip
import io
import tarfile

import numpy as np
import pytest

from mlic_jax.data.class_names import VOC
from mlic_jax.errors import Failure, UsageError
from mlic_jax.evaluate import voc_server
from mlic_jax.scores.files import Scores

IDS = ("2008_000001", "2008_000004", "2011_003276", "2008_000007", "2012_004332")
FOLDER = "results/VOC2012/Main"
DOG = f"{FOLDER}/comp1_cls_test_dog.txt"
CAT = f"{FOLDER}/comp1_cls_test_cat.txt"


def make_scores(logits=None, names=VOC, ids=IDS, split="test"):
    if logits is None:
        logits = np.random.default_rng(0).normal(0, 5, (len(ids), len(names))).astype(np.float32)
    return Scores(
        logits=logits,
        labels=np.zeros(logits.shape, np.int8),  # those of the 2012 test split are not public
        image_ids=np.array(ids),
        class_names=np.array(names),
        set_name="voc2012",
        split=split,
        image_size=448,
    )


@pytest.fixture
def files():
    """The files of a right archive, for a test to spoil."""
    return voc_server.server_files(make_scores(), "comp1", "2012")


def problems_of(files, tmp_path, image_ids=IDS):
    path = tmp_path / "archive.tar.gz"
    voc_server.pack(files, path)
    return voc_server.find_problems(path, image_ids)


def test_the_layout_of_files_and_archive(tmp_path):
    scores = make_scores()
    path = voc_server.write(scores, tmp_path)
    with tarfile.open(path, "r:gz") as archive:
        packed = {member.name: archive.extractfile(member).read() for member in archive}
    assert set(packed) == {f"{FOLDER}/comp1_cls_test_{name}.txt" for name in VOC}
    assert len(packed) == 20
    lines = packed[DOG].decode().splitlines()
    assert lines[0] == f"2008_000001 {scores.logits[0, VOC.index('dog')].item():.7g}"
    assert [line.split(" ")[0] for line in lines] == list(IDS)
    for name, content in packed.items():
        assert (tmp_path / name).read_bytes() == content
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["results", "results.tar.gz"]


def test_another_year_competition_and_class_order(tmp_path):
    names = VOC[::-1]
    scores = make_scores(names=names, ids=("000001", "000002"))
    path = voc_server.write(scores, tmp_path, "comp2", "2007")
    assert not voc_server.find_problems(path, ["000002", "000001"])
    text = (tmp_path / "results/VOC2007/Main/comp2_cls_test_cat.txt").read_text()
    assert np.float32(text.split()[1]) == scores.logits[0, names.index("cat")]


def test_the_same_scores_are_the_same_bytes(tmp_path):
    first = voc_server.write(make_scores(), tmp_path / "a").read_bytes()
    later = voc_server.write(make_scores(), tmp_path / "b").read_bytes()
    assert first == later
    assert first[4:8] == bytes(4)  # gzip: no time
    with tarfile.open(tmp_path / "a" / "results.tar.gz") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}


def test_ranks_and_ties_are_exactly_those_of_the_scores():
    rng = np.random.default_rng(1)
    first = int(np.float32(1.7).view(np.uint32))
    neighbours = np.arange(first, first + 40, dtype=np.uint32).view(np.float32)
    extreme = np.array([1e-30, -1e-30, 3e38, -3e38, 0, -0.0, 16777216, 1e-45], np.float32)
    column = rng.permutation(np.concatenate([neighbours, -neighbours, extreme, extreme]))
    ids = [f"2008_{i:06}" for i in range(len(column))]
    logits = np.repeat(column[:, None], 20, axis=1)
    text = voc_server.server_files(make_scores(logits, ids=ids), "comp1", "2012")[DOG]
    words = [line.split(" ")[1] for line in text.splitlines()]
    assert not any("e" in word for word in words)  # plain decimals
    read = np.array([float(word) for word in words])  # in float64, as a server would
    for compare in (np.greater, np.equal):
        np.testing.assert_array_equal(compare.outer(read, read), compare.outer(column, column))
    np.testing.assert_array_equal(read.astype(np.float32), column)


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (make_scores(split="val"), UsageError, "'test'; these are of 'val'"),
        (make_scores(names=(*VOC[:-1], "tv")), UsageError, "differing in tv, tvmonitor"),
        (make_scores(names=VOC[:-1]), UsageError, "differing in tvmonitor"),
        (make_scores(ids=(*IDS[:-1], IDS[0])), Failure, "1 images occur more than once: 2008_0000"),
        (make_scores(ids=(*IDS[:-1], "a.jpg")), Failure, "1 image ids are none, .*: a.jpg"),
        (make_scores(ids=(*IDS[:-1], "a b")), Failure, "1 image ids are none"),
        (make_scores(np.full((5, 20), np.inf, np.float32)), Failure, "100 scores are not finite"),
    ],
)
def test_scores_that_no_server_takes(scores, error, message, tmp_path):
    with pytest.raises(error, match=message):
        voc_server.write(scores, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("competition", "year"), [("comp3", "2012"), ("comp1", "12")])
def test_wrong_names_of_the_challenge(competition, year):
    with pytest.raises(UsageError):
        voc_server.server_files(make_scores(), competition, year)


def test_a_right_archive_has_no_problems(files, tmp_path):
    assert problems_of(files, tmp_path) == []
    assert problems_of(files, tmp_path, None) == []
    dotted = {f"./{name}": text for name, text in files.items()}  # as `tar` of a folder names them
    assert problems_of(dotted, tmp_path) == []


def replaced(text, number, line):
    lines = text.splitlines()
    lines[number] = line
    return "\n".join(lines) + "\n"


LINES = [
    ("2008_000001", "1 lines are not <image id> <score>: line 1 '2008_000001'"),
    ("2008_000001 0.5 0.5", "1 lines are not <image id> <score>"),
    ("2008_000001 high", "1 lines are not <image id> <score>"),
    ("2008_000001 1_0", "1 lines are not <image id> <score>"),
    ("", "1 lines are not <image id> <score>"),
    ("2008_000001 nan", "1 scores are not finite: line 1"),
    ("2008_000001 -inf", "1 scores are not finite: line 1"),
    ("2008_000001 1e999", "1 scores are not finite: line 1"),
    ("2008_000001.jpg 0.5", "1 image ids are none, such as 2008_000001: 2008_000001.jpg"),
    ("2008_000004 0.5", "1 images occur more than once: 2008_000004"),
    ("2009_000001 0.5", "1 images are not of the split: 2009_000001"),
    ("2009_000001 0.5", "1 images are missing: 2008_000001"),
]


@pytest.mark.parametrize(("line", "problem"), LINES)
def test_wrong_lines(line, problem, files, tmp_path):
    files[DOG] = replaced(files[DOG], 0, line)
    found = problems_of(files, tmp_path)
    assert any(text.startswith(f"{DOG}: {problem}") for text in found)
    assert all("\n" not in text and text.startswith(DOG) for text in found)


def test_without_an_image_set_the_files_are_compared_with_each_other(files, tmp_path):
    files[DOG] = files[DOG].split("\n", 1)[1]
    assert problems_of(files, tmp_path, None) == [f"{DOG}: 1 images are missing: 2008_000001"]
    files = {name: text.split("\n", 1)[1] for name, text in files.items() if name != DOG}
    assert len(problems_of(files, tmp_path, IDS)) == 1 + 19


def test_wrong_files(files, tmp_path):
    def after(change):
        spoilt = dict(files)
        change(spoilt)
        return problems_of(spoilt, tmp_path)

    def rename(new):
        def change(spoilt):
            spoilt[new] = spoilt.pop(DOG)

        return change

    no_dog = "1 classes have no file: dog"
    assert after(lambda f: f.pop(DOG)) == [no_dog]
    assert after(lambda f: f.update({DOG: ""})) == [
        f"{DOG}: it is empty",
        f"{DOG}: 5 images are missing: 2008_000001, 2008_000004, 2008_000007, ...",
    ]
    for wrong in (
        "VOC2012/Main/comp1_cls_test_dog.txt",
        "results/VOC2012/comp1_cls_test_dog.txt",
        "results/VOC2012/Main/comp3_cls_test_dog.txt",
        "results/VOC2012/Main/comp1_cls_val_dog.txt",
        "results/VOC2012/Main/comp1_det_test_dog.txt",
        "results/VOC2012/Main/comp1_cls_test_dog.csv",
        "/results/VOC2012/Main/comp1_cls_test_dog.txt",
    ):
        first, second = after(rename(wrong))
        assert first.startswith(f"{wrong} is not results/VOC<year>/Main/")
        assert second == no_dog
    puppy = f"{FOLDER}/comp1_cls_test_puppy.txt"
    assert after(rename(puppy)) == [f"{puppy}: there is no class 'puppy'", no_dog]
    assert after(rename(DOG.replace("comp1", "comp2"))) == [
        "files of several competitions: comp1, comp2"
    ]
    assert after(rename(DOG.replace("2012", "2007"))) == ["files of several years: 2007, 2012"]


def test_wrong_members(files, tmp_path):
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(folder := tarfile.TarInfo("results"))  # an empty file, not a folder
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, text in [*files.items(), (CAT, files[CAT])]:
            member = tarfile.TarInfo(name)
            if name == DOG:
                member.type, member.linkname = tarfile.SYMTYPE, CAT
                archive.addfile(member)
                continue
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    found = voc_server.find_problems(path, IDS)
    assert found[0].startswith("results is not results/VOC<year>/Main/")
    assert found[1:] == [
        f"{DOG} is not a plain file",
        f"{CAT} is there twice",
        "1 classes have no file: dog",
    ]


def test_damaged_archives(files, tmp_path):
    path = tmp_path / "archive.tar.gz"
    voc_server.pack(files, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # of the checksum
    for content in (b"", b"text", whole[:-3], whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        (problem,) = voc_server.find_problems(path)
        assert problem.startswith("it is not a whole .tar.gz")
    with tarfile.open(path, "w") as archive:  # not compressed
        archive.addfile(tarfile.TarInfo(DOG))
    assert len(voc_server.find_problems(path)) == 1


def member(name, size=0, content=b"", kind=tarfile.REGTYPE) -> bytes:
    """A file of an archive, which may claim another size than its content has."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return info.tobuf(tarfile.GNU_FORMAT) + content + padding


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (bytes(100_000_000), "it is not a whole .tar.gz: it unpacks to more than"),
        (member(DOG, 8 * 2**30, b"x"), "claims 8,589,934,592 bytes, which it lacks"),
        (member(DOG, -512), "claims -512 bytes"),  # tarfile itself goes back to it for ever
        (member(DOG, 0, b"", tarfile.GNUTYPE_SPARSE), f"{DOG} is not a plain file"),
        (member(DOG, 2_000_000, b"a 1\n" * 500_000), "it has more than 50,000 lines"),
        (member("x", 0, b"", tarfile.XHDTYPE) * 2000, "20 classes have no file"),
        (b"text" * 200, "it is not a whole .tar.gz"),
    ],
    ids=["zeros", "larger", "negative", "sparse", "many lines", "many extensions", "text"],
)
def test_archives_that_claim_more_than_they_are(content, problem, tmp_path):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(gzip.compress(content, 1))
    found = voc_server.find_problems(path)
    assert any(problem in text for text in found)
    assert all("\n" not in text for text in found)


def test_extensions_of_the_format_are_passed_over(files, tmp_path):
    """Dates to the fraction of a second, and what other systems add."""
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(text), 1.5
            archive.addfile(info, io.BytesIO(text.encode()))
    assert voc_server.find_problems(path, IDS) == []


def test_the_command_line(tmp_path, capsys):
    make_scores().save(tmp_path / "scores_test.npz")
    output = tmp_path / "out"
    arguments = ["write", str(tmp_path / "scores_test.npz"), "--output", str(output)]
    assert voc_server.main([*arguments, "--competition", "comp2"]) == 0
    archive = output / "results.tar.gz"
    assert f"wrote {archive}: 20 classes, 5 images" in capsys.readouterr().out

    image_set = tmp_path / "test.txt"
    image_set.write_text("".join(f"{i}  1\n" for i in IDS))
    check = ["check", str(archive)]
    assert voc_server.main([*check, "--image-set", str(image_set)]) == 0
    assert capsys.readouterr().out == f"{archive}: nothing is wrong\n"
    assert voc_server.main(check) == 0
    assert "give --image-set" in capsys.readouterr().out

    image_set.write_text("".join(f"{i}\n" for i in IDS[1:]))
    assert voc_server.main([*check, "--image-set", str(image_set)]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 20
    assert printed.err == f"error: {archive} has 20 problems\n"

    assert voc_server.main(["check", str(tmp_path / "none.tar.gz")]) == 2
    assert voc_server.main([*check, "--image-set", str(tmp_path / "none.txt")]) == 2
    image_set.write_text("\n")
    assert voc_server.main([*check, "--image-set", str(image_set)]) == 2
    assert voc_server.main([]) == 2
    assert voc_server.main([*arguments, "--competition", "comp5"]) == 2
    assert capsys.readouterr().err.count("error: ") == 5
