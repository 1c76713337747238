"""What photos became in the training of weights: mean, std, size, interpolation, central crop.

Weights do not say it. The files that lie beside them do: `preprocessor_config.json` of
`transformers` and `config.json` of timm. Without one, or beside it, the command line does; and of
some layouts it is the same of all weights that people have (`Layout.usual`). A central crop is
never taken for granted: what is at the edge of a photo has labels too.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from mlic_jax.data.transforms import FILTERS, INTERPOLATIONS, Interpolation
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text

FILES = TRANSFORMERS, TIMM = "preprocessor_config.json", "config.json"
_CONVNEXT_CROP = 224 / 256  # of ConvNextImageProcessor, where its file has no crop_pct
_CONVNEXT_SQUASHED = 384  # pixels from which on it crops nothing


class Preprocessing(TypedDict, total=False):
    """As checkpoints hold it; what is not known is not there.

    Of red, green and blue `mean` and `std`, of values in [0, 1]; `image_size` in pixels;
    `interpolation` and `center_crop` as the options of `config.data`.
    """

    mean: list[float]
    std: list[float]
    image_size: int
    interpolation: Interpolation
    center_crop: float


class _Unusable(Exception):
    """Says what of a file is nothing that photos are prepared with here."""


def file_beside(weights: Path) -> Path | None:
    """The file in the folder of weights that says how photos were prepared for them."""
    for name in FILES:
        path = weights.with_name(name)
        if path.is_file() and _parts(_read(path)):
            return path
    return None


def told_by(path: Path, given: Preprocessing) -> Preprocessing:
    """What a file says, and before it what is `given`, of which the file is not asked.

    Raises:
        UsageError: there is no such file, or it says nothing of photos.
        Failure: it is not JSON, or says something that is not done here.
    """
    parts = _parts(_read(path))
    if not parts:
        raise UsageError(
            f"{path} says nothing of how photos are prepared; it must be a {TRANSFORMERS} of "
            f"transformers or a {TIMM} of timm"
        )
    told: dict[str, Any] = {}
    for names, part in parts.items():
        if all(name in given for name in names):
            continue
        try:
            told |= part()
        except _Unusable as error:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in names)
            raise Failure(f"{path}: {error}; say what to do by {flags}") from None
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            what = f"its {' and '.join(names)} cannot be read ({error!r})"
            raise Failure(f"{path}: {what}") from None
    return cast(Preprocessing, {**told, **given})


def check(preprocessing: Preprocessing, where: str) -> None:
    """Raises UsageError for values that no photo could be prepared with."""
    for name, values in (("mean", preprocessing.get("mean")), ("std", preprocessing.get("std"))):
        if values is not None and not (
            len(values) == 3
            and all(math.isfinite(x) for x in values)
            and (name == "mean" or min(values) > 0)
        ):
            least = " above 0" if name == "std" else ""
            raise UsageError(f"{where}: {name} is {values}; it must be 3 finite numbers{least}")
    if not 0 <= preprocessing.get("center_crop", 0.0) <= 1:
        share = preprocessing["center_crop"]
        raise UsageError(f"{where}: center_crop is {share}; it must be 0 (none), or up to 1")
    if preprocessing.get("image_size", 32) < 1:
        size = preprocessing["image_size"]
        raise UsageError(f"{where}: image_size is {size}; it must be positive")


def described(preprocessing: Preprocessing) -> str:
    """In words, for people."""
    said = []
    for name in ("mean", "std"):
        if name in preprocessing:
            said.append(f"{name} {' '.join(f'{x:.4g}' for x in preprocessing[name])}")
    if "image_size" in preprocessing:
        said.append(f"{preprocessing['image_size']} px")
    if "interpolation" in preprocessing:
        said.append(preprocessing["interpolation"])
    if "center_crop" in preprocessing:
        share = preprocessing["center_crop"]
        said.append(f"the central {share:.4g} of the shorter side" if share else "squashed")
    return ", ".join(said)


def _read(path: Path) -> Mapping[str, Any]:
    content = json_text.read(path)
    return content if isinstance(content, dict) else {}


# What a file says of some names, when it is asked.
_Parts = dict[tuple[str, ...], Callable[[], Mapping[str, Any]]]


def _parts(content: Mapping[str, Any]) -> _Parts:
    """Of one of timm or transformers; of anything else none."""
    if "image_mean" in content or "do_resize" in content:
        return {
            ("mean", "std"): lambda: _normalisation(content),
            ("interpolation",): lambda: _resample(content),
            ("image_size", "center_crop"): lambda: _sizes(content),
        }
    timm = content.get("pretrained_cfg", content)
    if isinstance(timm, dict) and "input_size" in timm:
        return {
            ("mean", "std"): lambda: {n: [float(x) for x in timm[n]] for n in ("mean", "std")},
            ("interpolation",): lambda: {"interpolation": _known(timm["interpolation"])},
            ("image_size", "center_crop"): lambda: _timm_crop(timm),
        }
    return {}


def _known(interpolation: Any) -> Interpolation:
    for known in INTERPOLATIONS:
        if interpolation == known:
            return known
    raise _Unusable(f"its interpolation is {interpolation!r}, not {', '.join(INTERPOLATIONS)}")


# --- timm


def _timm_crop(timm: Mapping[str, Any]) -> Mapping[str, Any]:
    _, height, width = timm["input_size"]
    size, share = _square(height, width), float(timm["crop_pct"])
    mode = timm.get("crop_mode") or "center"
    if share == 1 and mode == "squash":
        share = 0.0
    elif mode != "center" or not 0 < share <= 1:
        raise _Unusable(f"its crop_mode is {mode!r} with crop_pct {share:g}")
    return {"image_size": size, "center_crop": share}


# --- transformers


def _normalisation(content: Mapping[str, Any]) -> Mapping[str, Any]:
    if not math.isclose(content.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
        raise _Unusable(f"its rescale_factor is {content['rescale_factor']}, not 1/255")
    if not content.get("do_normalize", True):
        return {"mean": [0.0] * 3, "std": [1.0] * 3}
    return {name: [float(x) for x in content[f"image_{name}"]] for name in ("mean", "std")}


def _resample(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """By the number that the filter has in Pillow."""
    names = {int(number): name for name, number in FILTERS.items()}
    resample = content.get("resample")
    return {"interpolation": _known(names.get(cast(int, resample), f"of number {resample}"))}


def _sizes(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A square; or the shorter side, and of what is cut out of the middle its side."""
    size, crop = content["size"], content.get("crop_size")
    kind = content.get("image_processor_type", content.get("feature_extractor_type", ""))
    is_convnext = str(kind).startswith("ConvNext") or "crop_pct" in content
    crops = bool(content.get("do_center_crop"))
    if isinstance(size, int):  # of earlier versions, which differ in what it is of
        size = {"shortest_edge": size} if crops or is_convnext else {"height": size, "width": size}
    if "shortest_edge" not in size:
        square = _square(size["height"], size["width"])
        if crops and _crop_side(crop) != square:
            raise _Unusable(f"it squashes photos to {square} pixels and then crops them")
        return {"image_size": square, "center_crop": 0.0}
    edge = int(size["shortest_edge"])
    if is_convnext:
        share = float(content.get("crop_pct") or _CONVNEXT_CROP)
        if edge >= _CONVNEXT_SQUASHED:
            return {"image_size": edge, "center_crop": 0.0}
        return {"image_size": edge, "center_crop": share_of(edge, int(edge / share))}
    if not crops:
        raise _Unusable(f"it resizes the shorter side to {edge} pixels and crops nothing")
    side = _crop_side(crop)
    return {"image_size": side, "center_crop": share_of(side, edge)}


def _crop_side(crop: Any) -> int:
    return _square(crop, crop) if isinstance(crop, int) else _square(crop["height"], crop["width"])


def _square(height: int, width: int) -> int:
    if height != width:
        raise _Unusable(f"its photos are of {height} x {width} pixels, not square")
    return int(height)


def share_of(size: int, edge: int) -> float:
    """The `center_crop` with which the shorter side becomes `edge` for a square of `size`."""
    if not 0 < size <= edge:
        raise _Unusable(f"it crops {size} pixels of photos whose shorter side has {edge}")
    share = size / edge
    while math.floor(size / share) < edge:  # a division that was rounded
        share = math.nextafter(share, 0)
    return share
