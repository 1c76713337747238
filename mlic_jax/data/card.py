"""What there is to know of a prepared set before training on it: the numbers of its data card."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mlic_jax.data import co_occurrence, kept_labels, label_tree, look_alikes
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.data.sources import merge
from mlic_jax.data.sources.split_names import role_of
from mlic_jax.data.transforms import orientation

NEARLY_ALL = 0.95  # the share of images from which on a class says little
FEW_NEGATIVES = 5
LEAST_IMAGES = 20  # of a split of which negatives are counted


def describe(
    splits: Mapping[str, Split], unlisted: int = 0, data: DataOptions | None = None
) -> dict[str, Any]:
    """Reads every image of a set once, decoding JPEGs at a reduced scale, and counts.

    Args:
        splits: of one set, by name, the training split first.
        unlisted: files of images that are in no split.
        data: the options that say which labels are kept; None: all are.

    Returns:
        What JSON can hold, `unlisted` and
          `name`, `class_names`, `source` (the description of the source);
          `splits`: split -> `images`, `unlabelled` (images without any present label),
            `labels_per_image` (entry n: the images with n present labels), `positives`,
            `negatives` and `unknown` [C], `without_positives` (names), `unreadable` (the images
            left out), `misfits` (ids of the images with boxes that do not fit them);
          `co_occurrence`: of the first split `counts` (C lists of C), with `positives` on the
            diagonal, and `pairs` (see `strongest_pairs`);
          `sizes`: [width, height, images] of each size there is, the most frequent first;
          `formats`: format -> images; `turned`: images that an EXIF tag turns; `upright`: whether
            they are turned; `range`: what is black and what white of images of more than 8 bits,
            None where there are none;
          `kept`: of the labels to train on, where not all are kept, `said`, a sentence, and
            `positives`, `negatives` and `unknown` [C]; None where all are;
          `label_tree`: where there is one, its `rules` (child and parent) and by split in how many
            images labels go against each; None where there is none;
          `duplicates`: images of the same bytes, a group a list of {`split`, `image_id`, `labels`
            (the names of those present)};
          `look_alikes`: pairs of such, of an image and the one of an earlier split that it looks
            like and is not the same bytes as.
    """
    first = next(iter(splits.values()))
    sizes: Counter[tuple[int, int]] = Counter()
    formats: Counter[str | None] = Counter()
    turned = 0
    shown, signatures = [], []
    same_bytes: dict[bytes, list[tuple[Split, int]]] = defaultdict(list)
    for split in splits.values():
        for i in tqdm(range(len(split)), f"look at {split.name} {split.split}", unit=" images"):
            record = split[i]
            sizes[record.width, record.height] += 1
            with Image.open(io.BytesIO(record.image)) as image:
                formats[image.format] += 1
                # Pillow itself follows the tag of a TIFF.
                turned += image.format != "TIFF" and 2 <= orientation(image) <= 8
            same_bytes[hashlib.blake2b(record.image, digest_size=16).digest()].append((split, i))
            shown.append((split, i))
            signatures.append(look_alikes.signature(record.image))
    repeated = {copy for group in same_bytes.values() for copy in group[1:]}
    numbers = [list(splits).index(split.split) for split, _ in shown]
    alike = [
        (shown[image], shown[other])
        for image, other in look_alikes.pairs_across(signatures, numbers).items()
        if shown[image] not in repeated
    ]
    together, positives = co_occurrence.count(first.labels(), "ignore")
    counts = (together + np.diag(positives)).astype(int)
    return {
        "name": first.name,
        "class_names": list(first.class_names),
        "source": first.description,
        "splits": {name: _describe_split(split) for name, split in splits.items()},
        "co_occurrence": {
            "split": first.split,
            "counts": counts.tolist(),
            "pairs": strongest_pairs(counts, len(first), first.class_names),
        },
        "sizes": [[*size, images] for size, images in sizes.most_common()],
        "formats": dict(formats.most_common()),
        "turned": turned,
        "upright": first.upright,
        "range": first.value_range and list(first.value_range),
        "unlisted": unlisted,
        "kept": _describe_kept(first, data) if data else None,
        "label_tree": _describe_tree(splits, data) if data else None,
        "duplicates": [
            [_copy(split, i) for split, i in group]
            for group in same_bytes.values()
            if len(group) > 1
        ],
        "look_alikes": [[_copy(*copy) for copy in pair] for pair in alike],
    }


def _describe_tree(splits: Mapping[str, Split], data: DataOptions) -> dict[str, Any] | None:
    tree = label_tree.of_options(data, next(iter(splits.values())).class_names)
    if tree is None:
        return None
    violations = {name: tree.violations(split.labels()) for name, split in splits.items()}
    return {"rules": tree.named(), "violations": violations}


def strongest_pairs(
    counts: np.ndarray, images: int, class_names: Sequence[str], most: int = 20
) -> list[dict[str, Any]]:
    """The pairs of classes that most often occur together beyond chance.

    Args:
        counts: int [C, C], images with both classes; on the diagonal those with the class.
        images: N, of which they are.
        class_names: [C].
        most: how many pairs.

    Returns:
        Of each pair the more frequent class first: `classes`, `together` (images with both),
        `by_chance` (images that were to be expected if the classes had nothing to do with one
        another), `given_first` and `given_second` (shares of the images with one that show both).
        The pair with the greatest difference of the first two comes first.
    """
    positives = np.diag(counts)
    by_chance = np.outer(positives, positives) / max(images, 1)
    i, j = np.nonzero(np.triu(counts > by_chance, k=1))
    order = np.argsort(-(counts - by_chance)[i, j], kind="stable")[:most]
    pairs = []
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if positives[b] > positives[a]:
            a, b = b, a
        pairs.append(
            {
                "classes": [class_names[a], class_names[b]],
                "together": int(counts[a, b]),
                "by_chance": float(by_chance[a, b]),
                "given_first": float(counts[a, b] / positives[a]),
                "given_second": float(counts[a, b] / positives[b]),
            }
        )
    return pairs


def findings(card: Mapping[str, Any], roles: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a person should know before training, the gravest first.

    Args:
        card: of `describe`.
        roles: train, val and test -> split.

    Returns:
        ("problem" or "note", a sentence).
    """
    problems, notes = [], []
    train = card["splits"][roles["train"]]
    groups = card["duplicates"]
    crossing = [group for group in groups if len({copy["split"] for copy in group}) > 1]
    if crossing:
        problems.append(
            f"{_images(len(crossing))} of the same bytes in more than one split: what was trained "
            "on is measured on again, and results look better than they are"
        )
    if alike := card["look_alikes"]:
        examples = [" and ".join(f"{c['split']}/{c['image_id']}" for c in pair) for pair in alike]
        notes.append(
            f"{_looks(len(alike))} like one of another split: {_some(examples, 3)}. Where they are "
            "of one scene, or one photo saved twice, what was trained on is measured on again"
        )
    differing = [group for group in groups if len({tuple(copy["labels"]) for copy in group}) > 1]
    if differing:
        problems.append(f"{_images(len(differing))} more than once, with different labels")
    for names in merge.alike(card["class_names"]):
        if len(names) > 1:
            problems.append(
                f"the classes {', '.join(names)} differ in case and blanks alone; --merge-classes "
                "makes them one"
            )
    if inside := len(groups) - len(crossing):
        notes.append(f"{_images(inside)} more than once in the same split")
    for split, part in card["splits"].items():
        if missing := part["without_positives"]:
            use = "nothing is learned of them" if split == roles["train"] else "they have no AP"
            problems.append(f"{split} shows no image of {', '.join(missing)}: {use}")
        problems += _scarce_negatives(split, part, card["class_names"])
        if part["unreadable"]:
            problems.append(f"{split}: {_images(len(part['unreadable']))} unreadable and left out")
        if misfits := part["misfits"]:
            problems.append(
                f"{split}: {_photos(len(misfits))} boxes that do not fit the picture, or were "
                f"drawn on one of another size; what is outside is cut off: {_some(misfits)}"
            )
    notes += filter(None, [no_third_split(roles)])
    unknown = sum(sum(part["unknown"]) for part in card["splits"].values())
    if unknown:
        total = len(card["class_names"]) * sum(part["images"] for part in card["splits"].values())
        notes.append(
            f"{unknown:,} of {total:,} labels are unknown: training and evaluation ignore them"
        )
    if kept := card["kept"]:
        notes.append(kept["said"])
        lost = zip(card["class_names"], kept["positives"], train["positives"], strict=True)
        if names := [name for name, left, of in lost if of and not left]:
            problems.append(f"no label of {_some(names)} is kept: nothing is learned of it")
    if tree := card.get("label_tree"):
        against = {split: sum(counts) for split, counts in tree["violations"].items()}
        if any(against.values()):
            counted = ", ".join(f"{count:,} of {split}" for split, count in against.items())
            problems.append(
                f"labels go against the label tree, a child without its parent: {counted}; "
                "data.fill_parents completes them"
            )
    if card["unlisted"]:
        notes.append(f"{_images(card['unlisted'])} there without annotations, and in no split")
    if card["turned"] and card["upright"]:
        notes.append(
            f"{_images(card['turned'])} turned upright, as an EXIF tag says (data.upright)"
        )
    elif card["turned"]:
        problems.append(
            f"{_images(card['turned'])} turned by an EXIF tag, which training ignores and "
            "prediction respects: set data.upright, or turn the pixels themselves"
        )
    if card["range"]:
        black, white = card["range"]
        notes.append(
            f"of pictures of more than 8 bits a value of {black:,g} is black and {white:,g} white "
            "(data.range)"
        )
    return [("problem", text) for text in problems] + [("note", text) for text in notes]


def no_third_split(roles: Mapping[str, str]) -> str:
    """What to say of one split for validation and test, and how to divide another; "" of two."""
    if roles["val"] != roles["test"]:
        return ""
    lacking = "val" if role_of(roles["test"]) == "test" else "test"
    return (
        f"there is no split for {lacking}: {roles['val']} serves as validation and as test, the "
        "checkpoint is chosen on the images that results are reported on. For results to publish "
        f"divide one from train: --{lacking}-share 0.15"
    )


def _scarce_negatives(split: str, part: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """What to say of classes that hardly any image lacks."""
    if part["images"] < LEAST_IMAGES:
        return []
    positives, negatives = np.array(part["positives"]), np.array(part["negatives"])
    everywhere = positives >= NEARLY_ALL * np.maximum(positives + negatives, 1)
    few = ~everywhere & (negatives < FEW_NEGATIVES) & (positives > 0)
    said = []
    if everywhere.any():
        names = [
            f"{class_names[c]} ({100 * positives[c] / (positives[c] + negatives[c]):.1f}%)"
            for c in np.flatnonzero(everywhere).tolist()
        ]
        said.append(
            f"{split}: nearly every image shows {_some(names)}: always to say so is as good, and "
            "AP is near 100 whatever is learned. Add images without, or leave it out"
        )
    if few.any():
        names = [f"{class_names[c]} ({negatives[c]})" for c in np.flatnonzero(few).tolist()]
        said.append(
            f"{split}: fewer than {FEW_NEGATIVES} images are without {_some(names)}: what a figure "
            "says of it hangs on these"
        )
    return said


def _describe_split(split: Split) -> dict[str, Any]:
    labels = split.labels()
    per_image = (labels == 1).sum(axis=1)
    names = split.class_names
    return {
        "images": len(split),
        "unlabelled": int((per_image == 0).sum()),
        "labels_per_image": np.bincount(per_image).tolist(),
        **_count(labels),
        "without_positives": [names[c] for c in np.flatnonzero(~(labels == 1).any(axis=0))],
        "unreadable": list(split.skipped),
        "misfits": list(split.misfits),
    }


def _describe_kept(train: Split, data: DataOptions) -> dict[str, Any] | None:
    if kept_labels.keeps_all(data):
        return None
    left = kept_labels.kept_of(train.labels(), data)
    return {"said": kept_labels.said_of(train.labels(), left, data), **_count(left)}


def _count(labels: np.ndarray) -> dict[str, list[int]]:
    """The images of each class, of labels int8 [N, C]."""
    values = {"positives": 1, "negatives": -1, "unknown": 0}
    return {name: (labels == value).sum(axis=0).tolist() for name, value in values.items()}


def _copy(split: Split, position: int) -> dict[str, Any]:
    present = np.flatnonzero(split.labels()[position] == 1)
    return {
        "split": split.split,
        "image_id": split.image_id(position),
        "labels": [split.class_names[c] for c in present],
    }


def _images(count: int) -> str:
    return f"{count:,} image is" if count == 1 else f"{count:,} images are"


def _looks(count: int) -> str:
    return f"{count:,} image looks" if count == 1 else f"{count:,} images look"


def _photos(count: int) -> str:
    return f"{count:,} image has" if count == 1 else f"{count:,} images have"


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
