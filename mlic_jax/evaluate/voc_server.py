"""Score files for the PASCAL VOC evaluation server, written, packed and checked.

    python -m mlic_jax.voc_server write scores_test.npz --output voc_server --competition comp2
    python -m mlic_jax.voc_server check voc_server/results.tar.gz --image-set test.txt

The server takes a `.tar.gz` that holds `results/VOC<year>/Main/<competition>_cls_test_<class>.txt`,
a file for each of the 20 classes, with a line `<image id> <score>` for each image.
"""

import argparse
import gzip
import io
import itertools
import math
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data.class_names import VOC as CLASS_NAMES
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text, written_whole
from mlic_jax.names import require_one_of
from mlic_jax.scores.files import Scores

# Of the classification task: trained on the challenge's own images alone, or on others as well.
COMPETITIONS = ("comp1", "comp2")
ARCHIVE = "results.tar.gz"

_YEAR = r"20\d\d"
_IMAGE_ID = r"\w+"
_MEMBER = re.compile(rf"results/VOC({_YEAR})/Main/({'|'.join(COMPETITIONS)})_cls_test_(\w+)\.txt")
_MOST_LINES = 50_000  # of a file: VOC's test splits have 4,952 and 10,991 images
# What an archive may unpack to: 16 times its size, and 4 MB.
_EXPANSION, _ALLOWANCE = 16, 4 * 2**20
_SHOWN = 3  # of what is wrong in the same way


def server_files(scores: Scores, competition: str, year: str) -> dict[str, str]:
    """The text of every file by its path in the archive.

    Scores are the logits in their shortest decimal form that reads back as the same float32, so
    that the ranking, ties included, is exactly that of `scores`. Classes may be in any order.

    Raises:
        UsageError: the classes are not VOC's, the split is not the test split, or a wrong year or
            competition.
        Failure: a score is not finite, or an image id is none of VOC's or occurs twice.
    """
    require_one_of("competition", competition, COMPETITIONS)
    if not re.fullmatch(_YEAR, year):
        raise UsageError(f"year is {year!r}; it must be one like 2012")
    if scores.split != "test":
        raise UsageError(f"the server scores the split 'test'; these are of {scores.split!r}")
    names = [str(name) for name in scores.class_names]
    if sorted(names) != sorted(CLASS_NAMES):
        differing = sorted(set(names) ^ set(CLASS_NAMES))
        raise UsageError(f"these are not VOC's 20 classes, differing in {_some(differing)}")
    image_ids = [str(image_id) for image_id in scores.image_ids]
    if problems := _wrong_ids(image_ids):
        raise Failure("; ".join(problems))
    if not np.isfinite(scores.logits).all():
        raise Failure(f"{np.sum(~np.isfinite(scores.logits))} scores are not finite")

    files = {}
    for name in CLASS_NAMES:
        column = scores.logits[:, names.index(name)]
        lines = [
            f"{image_id} {np.format_float_positional(score, trim='0')}\n"
            for image_id, score in zip(image_ids, column, strict=True)
        ]
        files[f"results/VOC{year}/Main/{competition}_cls_test_{name}.txt"] = "".join(lines)
    return files


def pack(files: Mapping[str, str], path: Path) -> None:
    """Writes files as one `.tar.gz`; the same files give the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=9, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(files):
            content = files[name].encode("utf-8")
            member = tarfile.TarInfo(name)  # nobody's, of 1970, readable by all
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write(scores: Scores, folder: Path, competition: str = "comp1", year: str = "2012") -> Path:
    """Writes the files below `folder` and packs them into `folder/results.tar.gz`.

    The archive is checked before it appears.

    Returns:
        The path of the archive.

    Raises:
        UsageError, Failure: see `server_files`.
    """
    files = server_files(scores, competition, year)
    for name, text in files.items():
        write_text(Path(folder) / name, text)
    path = Path(folder) / ARCHIVE
    with written_whole(path) as partial:
        pack(files, partial)
        if problems := find_problems(partial, [str(image_id) for image_id in scores.image_ids]):
            raise Failure(f"{path} was not written: {'; '.join(problems)}")
    return path


def find_problems(path: Path, image_ids: Collection[str] | None = None) -> list[str]:
    """What the server could object to in an archive, a line each; nothing where it is right.

    What is wrong in the same way in one file is one line, with a count and the first cases.

    Args:
        path: the archive.
        image_ids: of the test split; by default all that any of the files names.
    """
    try:
        members, problems = _read_members(path)
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        return [f"it is not a whole .tar.gz: {error}"]
    years, competitions, classes = (sorted(set(values)) for values in _columns(members))
    if len(years) > 1:
        problems.append(f"files of several years: {', '.join(years)}")
    if len(competitions) > 1:
        problems.append(f"files of several competitions: {', '.join(competitions)}")
    if missing := [name for name in CLASS_NAMES if name not in classes]:
        problems.append(f"{len(missing)} classes have no file: {', '.join(missing)}")

    listed = {}
    for name, content in members.items():
        listed[name], found = _read_scores(content)
        problems += [f"{name}: {problem}" for problem in found]
    expected = set().union(*listed.values()) if image_ids is None else set(image_ids)
    for name, ids in listed.items():
        if absent := sorted(expected.difference(ids)):
            problems.append(f"{name}: {len(absent)} images are missing: {_some(absent)}")
        if others := sorted(set(ids) - expected):
            problems.append(f"{name}: {len(others)} images are not of the split: {_some(others)}")
    return problems


def _read_members(path: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files that are where they belong, by name, and what is wrong with the others."""
    members, problems = {}, []
    for member, content in _unpack(path):
        name = member.name.removeprefix("./")
        match = _MEMBER.fullmatch(name)
        if member.isdir():
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            problems.append(f"{name} is not a plain file")
        elif not match:
            problems.append(
                f"{name} is not results/VOC<year>/Main/<comp1 or comp2>_cls_test_<class>.txt"
            )
        elif match[3] not in CLASS_NAMES:
            problems.append(f"{name}: there is no class {match[3]!r}")
        elif name in members:
            problems.append(f"{name} is there twice")
        else:
            members[name] = content
    return members, problems


def _unpack(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of an archive, each of which has all the bytes that it claims.

    Header by header, for `tarfile` itself also follows the extensions of the format, which can
    claim any size, lead backwards, and make a member of nothing. Names here are short.
    """
    most = _EXPANSION * path.stat().st_size + _ALLOWANCE
    with gzip.open(path) as file:
        content = file.read(most + 1)  # to its end, where the checksum is compared
    if not content:
        raise EOFError("it is empty")
    if len(content) > most:
        raise tarfile.ReadError(f"it unpacks to more than {most:,} bytes, which no scores do")
    position = 0
    while any(header := content[position : position + tarfile.BLOCKSIZE]):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        start = position + tarfile.BLOCKSIZE
        if member.size < 0 or start + member.size > len(content):
            raise tarfile.ReadError(f"{member.name} claims {member.size:,} bytes, which it lacks")
        if member.type not in (tarfile.XHDTYPE, tarfile.XGLTYPE):  # dates, and so on
            yield member, content[start : start + member.size]
        position = start + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _columns(names: Collection[str]) -> list[list[str]]:
    """The years, competitions and classes in the names of files."""
    matches = [match for name in names if (match := _MEMBER.fullmatch(name))]
    return [[match[group] for match in matches] for group in (1, 2, 3)]


def _read_scores(content: bytes) -> tuple[list[str], list[str]]:
    """The image ids of a file, and what is wrong with its lines."""
    malformed, infinite, image_ids = [], [], []
    lines = io.TextIOWrapper(io.BytesIO(content), "ascii", "replace")
    for number, line in enumerate(itertools.islice(lines, _MOST_LINES), 1):
        line = line.rstrip("\n")
        match = re.fullmatch(r"(\S+)[ \t]+(\S+)[ \t]*", line)
        score = _number(match[2]) if match else None
        if match is None or score is None:
            malformed.append(f"line {number} {line[:60]!r}")
            continue
        if not math.isfinite(score):
            infinite.append(f"line {number} {line[:60]!r}")
        image_ids.append(match[1])
    problems = _wrong_ids(image_ids)
    if malformed:
        problems.append(f"{len(malformed)} lines are not <image id> <score>: {_some(malformed)}")
    if infinite:
        problems.append(f"{len(infinite)} scores are not finite: {_some(infinite)}")
    if next(lines, None) is not None:
        problems.append(f"it has more than {_MOST_LINES:,} lines, and no test split of VOC has")
    if not content.strip():
        problems.append("it is empty")
    return image_ids, problems


def _wrong_ids(image_ids: Sequence[str]) -> list[str]:
    problems = []
    if wrong := [i for i in image_ids if not re.fullmatch(_IMAGE_ID, i, re.ASCII)]:
        problems.append(f"{len(wrong)} image ids are none, such as 2008_000001: {_some(wrong)}")
    if twice := [image_id for image_id, times in Counter(image_ids).items() if times > 1]:
        problems.append(f"{len(twice)} images occur more than once: {_some(twice)}")
    return problems


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def read_image_set(path: Path) -> list[str]:
    """The image ids of a file of `ImageSets/Main`, the first word of each line.

    Raises:
        UsageError: there is no such file, or it names no image.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--image-set {path} cannot be read: {error}") from None
    if not (image_ids := [line.split()[0] for line in lines if line.strip()]):
        raise UsageError(f"--image-set {path} names no image")
    return image_ids


def _write(options: argparse.Namespace) -> None:
    scores = Scores.load(options.scores)
    path = write(scores, options.output, options.competition, options.year)
    print(f"wrote {path}: {len(CLASS_NAMES)} classes, {len(scores.image_ids)} images")


def _check(options: argparse.Namespace) -> None:
    if not options.archive.is_file():
        raise UsageError(f"no archive at {options.archive}")
    image_ids = read_image_set(options.image_set) if options.image_set else None
    if problems := find_problems(options.archive, image_ids):
        print("\n".join(problems))
        what = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise Failure(f"{options.archive} has {what}")
    compared = "" if image_ids else "; give --image-set to see whether every image is there"
    print(f"{options.archive}: nothing is wrong{compared}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = Parser(prog="python -m mlic_jax.voc_server", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="write | check")

    command = commands.add_parser("write", help="make the files and the archive of a score file")
    command.add_argument("scores", type=Path, help="a score file, scores_test.npz")
    command.add_argument("--output", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--competition",
        default="comp1",
        choices=COMPETITIONS,
        help="comp1 (default): trained on VOC's images alone; comp2: on others too, as a backbone "
        "from ImageNet is",
    )
    command.add_argument("--year", default="2012", help="of the challenge, by default 2012")
    command.set_defaults(run=_write)

    command = commands.add_parser("check", help="say everything that is wrong with an archive")
    command.add_argument("archive", type=Path, help="a .tar.gz")
    command.add_argument(
        "--image-set", type=Path, metavar="FILE", help="ImageSets/Main/test.txt of the devkit"
    )
    command.set_defaults(run=_check)

    def run() -> None:
        options = parser.parse_args(arguments)
        options.run(options)

    return exit_code(run)
