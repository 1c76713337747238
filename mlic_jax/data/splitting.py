"""Divides a set that has no splits of its own, so that rare labels are on both sides."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse

from mlic_jax.data.records import Example, RandomAccess, Source
from mlic_jax.errors import UsageError

_HELD_OUT = ("val", "test")


def divide(
    set_name: str,
    splits: Sequence[str],
    image_ids: Sequence[str],
    labels: np.ndarray,
    share: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """The images of the splits that are asked for, of a set that has no splits of its own.

    "train" has the share of the images that `stratified_split` chooses; "val" or "test", of which
    only one can be asked for, has the rest. A share of 1 leaves no rest: "train" has all.

    Args:
        set_name: how a message names the set.
        splits: what is asked for.
        image_ids, labels, share, seed: see `stratified_split`.

    Returns:
        Split -> bool [N].

    Raises:
        UsageError: other splits are asked for, or the share is not between 0 and 1.
    """
    held_out = [split for split in splits if split != "train"]
    if len(held_out) > 1 or not set(held_out) <= set(_HELD_OUT):
        raise UsageError(
            f"set {set_name} has no splits of its own, so it is divided into train and either val "
            f"or test; asked for: {', '.join(splits)}"
        )
    if share == 1 and not held_out:
        return {"train": np.ones(len(image_ids), bool)}
    train = stratified_split(image_ids, labels, share, seed)
    return {split: train == (split == "train") for split in splits}


def divide_examples(source: Source, examples: RandomAccess[Example]) -> dict[str, list[Example]]:
    """As `divide`, of a source whose description has `train_share` and `split_seed`."""
    if not examples:
        return {split: [] for split in source.splits}
    division = divide(
        source.name,
        source.splits,
        [example.image_id for example in examples],
        np.stack([example.labels for example in examples]),
        source.description["train_share"],
        source.description["split_seed"],
    )
    return {
        split: [examples[i] for i in np.flatnonzero(of).tolist()] for split, of in division.items()
    }


def stratified_parts(
    image_ids: Sequence[str],
    labels: np.ndarray,
    shares: Mapping[str, float],
    rest: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """Divides images into any number of parts, one after the other by `stratified_split`.

    Args:
        image_ids, labels, seed: see `stratified_split`.
        shares: part -> its share of all images; together they are below 1.
        rest: the part that has all other images; what single positives there are, are here.

    Returns:
        Part -> the positions of its images, int [K], ascending.
    """
    parts, left, share_left = {}, np.arange(len(image_ids)), 1.0
    for part in sorted(shares):
        kept_share = 1 - shares[part] / share_left
        kept = stratified_split(
            [image_ids[i] for i in left.tolist()], labels[left], kept_share, seed
        )
        parts[part], left = left[~kept], left[kept]
        share_left -= shares[part]
    return {**parts, rest: left}


def stratified_split(
    image_ids: Sequence[str], labels: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Which images are for training: iterative stratification (Sechidis et al., ECML-PKDD 2011).

    Label by label, the one with the fewest images left first, images are dealt out so that each
    side gets its share of the label. Among the images of a label every side also gets its share of
    each set of labels that occurs. What is left without a label fills up the total.

    The answer is a function of the seed and of what is known of each image, whatever the order of
    the images: chance is a hash of seed and image id.

    In order of importance: a class with two or more positives has one on each side; the total is
    `share` of the images, rounded; so are the positives of each class. The first holds for every
    class with at least C positives, or with an image that has no other label, and can only fail
    where classes stand in each other's way, as three do that share three images in pairs. The
    second holds where each side is to have at least C images. The image of a class with a single
    positive is for training, if nothing else decides.

    Args:
        image_ids: N of them, each once.
        labels: int8 [N, C] in {+1, 0, -1}; unknown labels (0) do not count.
        share: of the images that are for training, between 0 and 1.
        seed: another seed gives another division.

    Returns:
        bool [N].

    Raises:
        UsageError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"train_share is {share}; it must be between 0 and 1, without them")
    digests = [hashlib.blake2b(f"{seed} {i}".encode(), digest_size=16).digest() for i in image_ids]
    by_hash = sorted(range(len(digests)), key=digests.__getitem__)
    positive = np.asarray(labels)[by_hash] == 1
    train = _deal(positive, share)
    _improve(train, positive, share)
    result = np.empty_like(train)
    result[by_hash] = train
    return result


def _deal(positive: np.ndarray, share: float) -> np.ndarray:
    """Iterative stratification of images in random order, bool [N, C] -> bool [N]."""
    wanted = _wanted(positive.sum(axis=0), share)
    kinds = _label_sets(positive)
    train = np.zeros(len(positive), bool)
    left, counts = positive.copy(), positive.sum(axis=0)
    while counts.any():
        label = int(np.argmin(np.where(counts > 0, counts, len(left) + 1)))
        rows = np.flatnonzero(left[:, label])
        missing = wanted[label] - np.count_nonzero(train & positive[:, label])
        train[_evenly(rows[np.argsort(kinds[rows], kind="stable")], missing)] = True
        counts -= left[rows].sum(axis=0)
        left[rows] = False
    rows = np.flatnonzero(~positive.any(axis=1))
    train[_evenly(rows, _wanted(len(train), share) - train.sum())] = True
    return train


def _improve(train: np.ndarray, positive: np.ndarray, share: float) -> None:
    """Lets one image after the other change sides, in place, while that is better.

    Better is: fewer classes on one side only, or else a total nearer to the share. Among the best
    images it is the one that does the shares of its classes most good.
    """
    counts = positive.sum(axis=0)
    wanted, wanted_total = _wanted(counts, share), int(_wanted(len(train), share))
    # Few labels of an image are present. The sums of these integers are exact.
    indicators = scipy.sparse.csr_array(positive, dtype=np.float32)
    while len(train):
        have = (train.astype(np.float32) @ indicators).astype(int)
        total = int(np.count_nonzero(train))
        cost = np.where(
            train,
            _cost_of_leaving(indicators, have, counts - have, have - wanted, total - wanted_total),
            _cost_of_leaving(indicators, counts - have, have, wanted - have, wanted_total - total),
        )
        best = np.argmin(cost)
        if cost[best] >= 0:
            return
        train[best] = not train[best]


def _cost_of_leaving(
    indicators: scipy.sparse.csr_array,
    here: np.ndarray,
    there: np.ndarray,
    too_many: np.ndarray,
    total_too_many: int,
) -> np.ndarray:
    """What it costs that an image leaves its side; [N] from counts [C] of this and the other side.

    The change in classes on one side only comes before the change of the total, and that before the
    sum of the changes in the classes' shares, which is at most C.
    """
    scale = 2 * len(here) + 1
    one_sided = (here + there >= 2) * ((here == 1).astype(int) - (there == 0))
    share = np.where(too_many > 0, -1, 1)
    per_class = (3 * scale * one_sided + share).astype(np.float32)
    return indicators @ per_class + (-scale if total_too_many > 0 else scale)


def _wanted(counts: np.ndarray | int, share: float) -> np.ndarray:
    """How many of so many are for training: the share, but some on each side; one is for it."""
    least = np.minimum(counts, 1)
    return np.clip(
        np.rint(np.multiply(counts, share)).astype(int), least, np.maximum(counts - 1, least)
    )


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """So many of the rows, as evenly spaced as possible; none or all if there are not so many."""
    count = np.clip(count, 0, len(rows))
    steps = np.arange(len(rows) + 1) * count // max(len(rows), 1)
    return rows[np.diff(steps) > 0]


def _label_sets(positive: np.ndarray) -> np.ndarray:
    """For every image the number of its set of labels, in the order of their first images; [N]."""
    packed = np.packbits(positive, axis=1)
    as_bytes = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return first[inverse]
