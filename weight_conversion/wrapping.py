"""What people put around the weights of a network, and which of the weights in a file are meant.

A training script saves `{"state_dict": ..., "epoch": ...}`; data parallelism and compilation write
`module.` and `_orig_mod.` before every name, and a network that is part of another the name of that
part. All of these are the words of one table. A place is a row of them, as a file has it: in
`state_dict/module.encoder_q.` the word before the slash is the key of a dictionary, and those
before dots begin the names of the tensors in it. The place that is taken is one whose tensors fit a
network, whatever stands beside it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlic_jax.errors import Failure, UsageError
from weight_conversion.layouts.rules import Shape
from weight_conversion.matching import Match, check, closest

RAW, EMA = "raw", "ema"
# Each with the weights that it says it holds, if any: those that were trained, or their average.
WORDS = {
    # what scripts save the weights under
    **dict.fromkeys(("state_dict", "model_state_dict", "model", "net", "network"), ""),
    **dict.fromkeys(("state_dict_ema", "model_ema", "model_ema_state_dict"), EMA),
    **dict.fromkeys(("ema", "ema_model", "ema_state_dict"), EMA),
    # what torch and Lightning put around a network
    **dict.fromkeys(("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module"), ""),
    # what networks are part of: mmpretrain's and torchvision's, then those that train themselves
    **dict.fromkeys(("backbone", "body", "encoder", "trunk"), ""),
    # what CLIP calls its image tower, and those that are built on it
    **dict.fromkeys(("visual", "vision_model", "vision_tower"), ""),
    **{"encoder_q": RAW, "encoder_k": EMA, "base_encoder": RAW, "momentum_encoder": EMA},
    **{"student": RAW, "teacher": EMA, "online_encoder": RAW, "target_encoder": EMA},
}
WHOLE_FILE = "."  # how a user calls the place without any words
_WORD = re.compile(rf"({'|'.join(map(re.escape, WORDS))})[./]")
_DEEPEST, _MOST = 8, 32  # words in a row, and places that are looked at


@dataclass(frozen=True)
class Found:
    """The weights that are taken from a file, and what of it is not."""

    place: str
    matched: Match  # by names without the place
    others: tuple[str, ...]  # places that fit as well
    left_out: tuple[str, ...]  # tensors of none of them, by their names in the file

    @property
    def prefix(self) -> str:
        """What begins the names of the tensors: the place without the keys of dictionaries."""
        return self.place.rpartition("/")[2]


def find(shapes: Mapping[str, Shape], arch: str | None = None, weights: str | None = None) -> Found:
    """Finds the weights of a network among the tensors of a file.

    Args:
      shapes: the shape of every tensor by its name in the file, behind the keys of dictionaries.
      arch: insist on this architecture.
      weights: `raw`, `ema` or a place. By default raw ones where there are any: those are what
        training goes on from, and what the file gives whoever never heard of averages.

    Raises:
      UsageError: `arch` is unknown or another, there are no such `weights`, or several places fit.
      Failure: nothing fits; lists the problems of the place that comes closest.
    """
    matches = _matches(shapes, arch)
    fitting = [place for place, match in matches.items() if not match.problems]
    fitting = [place for place in fitting if arch in (None, matches[place].arch)]
    named = "" if weights == WHOLE_FILE else weights
    if not fitting or (named in matches and named not in fitting):
        # Of equal ones the innermost, whose names are the shortest to read.
        size = {p: (len(match.filled), len(under(shapes, p))) for p, match in matches.items()}
        place = named if named in matches else max(reversed(size), key=size.__getitem__)
        try:
            check(matches[place], under(shapes, place), arch)
        except (UsageError, Failure) as error:
            raise type(error)(f"{place}: {error}" if place else str(error)) from error
    place = named if named in fitting else _chosen(fitting, weights)
    of_use = {p + name for p in fitting for name, _ in matches[p].filled.values()}
    others = tuple(p for p in fitting if p != place)
    left_out = tuple(name for name in shapes if name not in of_use)
    return Found(place, matches[place], others, left_out)


def _matches(shapes: Mapping[str, Shape], arch: str | None) -> dict[str, Match]:
    """What is at the places of a file, but those that are a part of a network that fits."""
    matches: dict[str, Match] = {}
    filled: set[str] = set()
    for place in places_of(shapes):
        if not matches or any(n.startswith(place) and n not in filled for n in shapes):
            matches[place] = closest(under(shapes, place), arch)
            if not matches[place].problems:
                filled |= {place + name for name, _ in matches[place].filled.values()}
    return matches


def places_of(names: Iterable[str]) -> list[str]:
    """The places in a file, with most of the tensors first: first of all the whole file."""
    counts = Counter({"": 0})
    for name in names:
        end = 0
        counts[""] += 1
        for _ in range(_DEEPEST):
            if not (word := _WORD.match(name, end)):
                break
            end = word.end()
            counts[name[:end]] += 1
    return [place for place, _ in counts.most_common(_MOST)]


def kind_of(place: str) -> str:
    """`raw` or `ema`: an average of the weights if any word of the place says so."""
    return EMA if EMA in (WORDS[word] for word in _WORD.findall(place)) else RAW


def under(shapes: Mapping[str, Shape], place: str) -> dict[str, Shape]:
    """The tensors of a place, by their names without it."""
    return {n.removeprefix(place): s for n, s in shapes.items() if n.startswith(place)}


def _chosen(fitting: list[str], weights: str | None) -> str:
    """The one of the places that are `weights`, by default raw."""
    kinds = (RAW, EMA) if weights is None else (weights,)
    of_kind = [[place for place in fitting if kind_of(place) == kind] for kind in kinds]
    found = next((places for places in of_kind if places), [])
    if not found:
        there = ", ".join(f"{place or WHOLE_FILE} ({kind_of(place)})" for place in fitting)
        raise UsageError(f"it has no weights {weights!r}, but {there}")
    if len(found) > 1:
        told = " and ".join(place or WHOLE_FILE for place in found)
        raise UsageError(f"{told} fit alike: say which with --weights {found[0] or WHOLE_FILE}")
    return found[0]
