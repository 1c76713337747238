"""Names of splits in paths: which folders and files are of train, val or test."""

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

SPLIT = "{split}"  # in a pattern of paths
_WORDS = r"train(?:ing|val)?|val(?:id(?:ation)?|idate)?|dev|eval(?:uation)?|test(?:ing)?"
_WHOLE = re.compile(rf"(?i)({_WORDS})(?![a-z]).*")
_INSIDE = re.compile(rf"(?i)(?<![a-z0-9])({_WORDS})\d*(?![a-z0-9])")
_ROLES = {"tr": "train", "va": "val", "de": "val", "ev": "val", "te": "test"}


def role_of(name: str) -> str | None:
    """train, val or test, if the name of a folder or file begins with a word for it."""
    found = _WHOLE.fullmatch(name)
    return _ROLES[found[1][:2].lower()] if found else None


def role_in(name: str) -> str | None:
    """train, val or test, if a word for it stands in a name: of `labels_train.csv` train."""
    found = _INSIDE.search(name)
    return _ROLES[found[1][:2].lower()] if found else None


def agree(names: Iterable[str], others: Iterable[str]) -> bool:
    """Whether names of folders are of no other splits than other names are, if these are of any."""
    roles = {role_of(name) for name in names} - {None}
    other_roles = {role_of(name) for name in others} - {None}
    return not roles or not other_roles or bool(roles & other_roles)


def splits_of(root: Path, pattern: str) -> tuple[str, ...]:
    """The splits for which a pattern below root has files, sorted; none if it is no pattern.

    Where some of the names are those of splits, others, as `labels` beside `train`, do not count.
    """
    first, *others = pattern.split(SPLIT)
    if not others:
        return ()
    wanted = re.escape(first) + r"(\w+)" + r"\1".join(map(re.escape, others))
    files = root.glob("*".join(map(glob.escape, (first, *others))))
    matches = (re.fullmatch(wanted, file.relative_to(root).as_posix()) for file in files)
    splits = sorted(match[1] for match in matches if match)
    return tuple([split for split in splits if role_of(split)] or splits)


def pattern_of(path: str) -> tuple[str, str] | None:
    """A path of a file of one split as a pattern, and the split; None if it names no split.

    `a/train/_classes.csv` is `a/{split}/_classes.csv` of train, `train2017.csv` `{split}.csv`.
    """
    *folders, name = path.split("/")
    split = next((folder for folder in reversed(folders) if role_of(folder)), None)
    if split is None:
        found = _INSIDE.search(name)
        if not found:
            return None
        return "/".join([*folders, name[: found.start()] + SPLIT + name[found.end() :]]), found[0]
    folders = [SPLIT if folder == split else folder for folder in folders]
    stem, dot, suffix = name.partition(".")
    return "/".join([*folders, (SPLIT if stem == split else stem) + dot + suffix]), split


def by_pattern(root: Path, files: Sequence[Path]) -> dict[str, list[str]]:
    """The patterns, relative to root, that stand for files of train and of others -> the splits."""
    patterns: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if found := pattern_of(file.relative_to(root).as_posix()):
            patterns[found[0]].append(found[1])
    return {
        pattern: splits
        for pattern, splits in patterns.items()
        if len(splits) > 1 and "train" in map(role_of, splits)
    }
