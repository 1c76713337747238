"""Backbones: images to feature maps."""

import itertools
import re

from mlic_jax.models.backbones.mobilenet_v2 import GROUPS

# The last block of each of MobileNetV2's groups; they are counted from 1.
_LAST_BLOCKS = tuple(itertools.accumulate(count for _, _, count, _ in GROUPS))


def stage_of(module: str) -> int:
    """How deep in its backbone a module is, by its name: 0 the stem, and on by stages.

    Of ResNet 1 to 4, of MobileNetV2 1 to 7, the lines of `GROUPS`, and 8 the last convolution.
    """
    if module == "stem":
        return 0
    if module == "head":
        return len(GROUPS) + 1
    if found := re.fullmatch(r"layer(\d)_\d+", module):
        return int(found[1])
    block = int(module.removeprefix("block"))
    return 1 + next(group for group, last in enumerate(_LAST_BLOCKS) if block <= last)
