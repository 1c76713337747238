"""MCAR in PyTorch, one image and one class at a time: slow, literal, and easy to check by eye.

Source: "Learning to Discover Multi-Class Attentional Regions for Multi-Label Image Recognition"
(MCAR, TIP 2021), with the localisation of the released system.
"""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional

from weight_conversion.torch_reference.backbones import create_backbone


class MCAR(nn.Module):
    """The two streams over one shared `features` and one shared 1x1 classifier `convclass`."""

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        pooling: str = "avg",
        top_n: int = 4,
        threshold: float = 0.5,
        width: float = 1.0,
    ):
        super().__init__()
        self.features = create_backbone(backbone, width)
        self.convclass = nn.Conv2d(self.features.channels, num_classes, 1)
        self.pooling, self.top_n, self.threshold = pooling, top_n, threshold

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images [B, 3, S, S], normalised -> logits [B, C] of both streams, boxes, box_classes."""
        maps = self.features(images)[-1]
        global_logits = self.classify(maps)
        with torch.no_grad():
            boxes, classes = self.localise(maps, global_logits, images.shape[-2:])
            crops = self.crop(images, boxes)
        crop_logits = self.classify(self.features(crops)[-1])
        local_logits = crop_logits.reshape(len(images), self.top_n, -1).amax(dim=1)
        return {
            "logits": torch.maximum(global_logits, local_logits),
            "global_logits": global_logits,
            "local_logits": local_logits,
            "boxes": boxes,
            "box_classes": classes,
        }

    def crop(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, S, S] and boxes [B, N, 4] -> crops [B * N, 3, S, S]."""
        return crop_and_resize(images, boxes)

    def classify(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps [B, F, h, w] -> class logits [B, C]."""
        average, maximum = maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))
        pooled = {"avg": average, "max": maximum, "gwp": (maximum + average) / 2}[self.pooling]
        return self.convclass(pooled[:, :, None, None])[:, :, 0, 0]

    def localise(self, maps: torch.Tensor, global_logits: torch.Tensor, size: tuple[int, int]):
        """Boxes [B, N, 4] (y1, x1, y2, x2) of the N likeliest classes [B, N] of each image."""
        scores = torch.sigmoid(self.convclass(maps))
        scores = functional.interpolate(scores, size, mode="bilinear", align_corners=True)
        classes = torch.sigmoid(global_logits).topk(self.top_n, dim=1).indices
        boxes = torch.zeros(*classes.shape, 4, dtype=torch.int32)
        for b in range(len(maps)):
            for n in range(self.top_n):
                activation = scores[b, classes[b, n]]
                x1, x2 = interval(normalise(activation.amax(dim=0)), self.threshold)
                y1, y2 = interval(normalise(activation.amax(dim=1)), self.threshold)
                boxes[b, n] = torch.tensor([y1, x1, y2, x2], dtype=torch.int32)
        return boxes, classes.to(torch.int32)


def normalise(profile: torch.Tensor) -> torch.Tensor:
    """Min-max to [0, 1]; a constant profile is divided by its maximum instead."""
    low, high = profile.min(), profile.max()
    if low == high:
        return profile / high
    return (profile - low) / (high - low)


def interval(profile: torch.Tensor, threshold: float) -> tuple[int, int]:
    """The half-open interval [start, end) of a profile [L] that the released system picks."""
    length = len(profile)
    shortest = math.ceil(length / 8)
    signs = torch.sign(profile - threshold).tolist()
    crossings = [i for i in range(length - 1) if signs[i] * signs[i + 1] == -1]
    if not crossings:
        return shortest, math.ceil(7 * length / 8)

    candidates = [(0, crossings[0])] if crossings[0] > 0 else []
    candidates.append((crossings[-1], length))
    candidates.extend(itertools.pairwise(crossings))
    values = profile.tolist()
    # max() keeps the first of equals.
    start, end = max(candidates, key=lambda c: (max(values[c[0] : c[1]]), c[1] - c[0]))

    if end - start <= shortest:
        pad = shortest - (end - start)
        half = math.ceil(pad / 2)
        if start > half and length - end > pad:
            start, end = start - half + 1, end + half
        if start < half:
            start, end = 0, shortest
        if length - end < half:
            start, end = length - shortest + 1, length
    return start, end


def crop_and_resize(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Regions [B, N, 4] of images [B, 3, H, W], each at the full size: [B * N, 3, H, W]."""
    crops = []
    for image, regions in zip(images, boxes.tolist(), strict=True):
        for y1, x1, y2, x2 in regions:
            region = image[None, :, y1:y2, x1:x2]
            crops.append(
                functional.interpolate(
                    region, images.shape[-2:], mode="bilinear", align_corners=True
                )
            )
    return torch.cat(crops)
