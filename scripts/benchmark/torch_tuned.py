"""The PyTorch references, tuned: the same weights and results by the fastest plain PyTorch.

The references say what the released systems compute, an image, a class and a region at a time; here
is what a user of PyTorch who cares for speed would make of them. For the worker processes of
PyTorch alone.
"""

from functools import lru_cache
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import (
    grid_sample,
    interpolate,
    leaky_relu,
    linear,
    pad,
    relu,
    scaled_dot_product_attention,
)
from torch.nn.utils.fusion import fuse_conv_bn_eval

from weight_conversion.torch_reference import mcar, msrn, swin, tresnet, vit


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Puts every batch normalisation into the convolution before it, for evaluation; in place."""
    module.eval()
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        for name, following in pairwise(children):
            # The pairs are `conv1` and `bn1`, or neighbours.
            renamed = name.replace("conv", "bn")
            after = renamed if renamed != name and renamed in children else following
            holder, last = _last_of(parent, name)
            conv, norm = getattr(holder, last), _as_batch_norm(children[after])
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(holder, last, fuse_conv_bn_eval(conv, norm))
                setattr(parent, after, nn.Identity())
    return module


def _last_of(parent: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The child, or where that is a sequence its last part: what holds it, and its name there."""
    child = getattr(parent, name)
    if isinstance(child, nn.Sequential) and len(child):
        return child, list(dict(child.named_children()))[-1]
    return parent, name


def _as_batch_norm(module: nn.Module) -> nn.Module:
    """TResNet's normalisation as the usual one, in evaluation; others as they are."""
    if not isinstance(module, tresnet.InPlaceABN):
        return module
    norm = nn.BatchNorm2d(len(module.weight)).eval()
    norm.load_state_dict(module.state_dict(), strict=False)
    norm.weight.data = norm.weight.data.abs() + 1e-5
    return norm


class Pooled(mcar.MCAR):
    """The global stream alone; a Swin takes all of its windows at once, as published codes do."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        _turn_into(self, {swin.Block: WindowBlock})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.classify(self.features(images)[-1])}


def fuse_attention(module: nn.Module) -> nn.Module:
    """Has the Vision Transformers in it attend by PyTorch's fused function; in place."""
    _turn_into(module, {vit.Attention: FusedAttention, swin.Attention: FusedWindowAttention})
    return module


def _turn_into(module: nn.Module, kinds: dict[type, type]) -> None:
    """Modules of a type become those of a subclass that has the same tensors."""
    for part in module.modules():
        part.__class__ = kinds.get(type(part), type(part))


class FusedAttention(vit.Attention):
    """That of a Vision Transformer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = scaled_dot_product_attention(*self.project(x))
        return self.proj(seen.transpose(1, 2).flatten(2))


class FusedWindowAttention(swin.Attention):
    """That of the windows of a Swin; version 2 compares by cosines, as it did."""

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        if self.version == 2:
            return super().forward(x, allowed)
        _, height, width, channels = x.shape
        parts = linear(x.flatten(1, 2), self.qkv.weight, self.qkv.bias)
        parts = parts.unflatten(-1, (3, self.heads, channels // self.heads))
        mask = self.position_bias(height, width) - 100 * ~allowed
        seen = scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4), attn_mask=mask)
        return self.proj(seen.transpose(1, 2).reshape(x.shape))


class WindowBlock(swin.Block):
    """A block of a Swin whose windows are rows of a batch."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, channels = x.shape
        sides = [min(self.side, length) for length in (height, width)]
        shifts = [
            self.side // 2 if self.shifted and length > self.side else 0
            for length in (height, width)
        ]
        bottom, right = (
            -length % side for length, side in zip((height, width), sides, strict=True)
        )
        x = pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x
        padded = x.shape[1:3]
        if any(shifts):
            x = torch.roll(x, (-shifts[0], -shifts[1]), (1, 2))
        allowed = allowed_of(tuple(padded), tuple(sides), tuple(shifts))
        allowed = allowed.repeat(len(x), 1, 1, 1) if any(shifts) else allowed[:1]
        y = self.attn(windows_of(x, sides), allowed)
        y = y.unflatten(0, (len(x), padded[0] // sides[0], padded[1] // sides[1]))
        y = y.transpose(2, 3).reshape(len(x), *padded, channels)
        if any(shifts):
            y = torch.roll(y, shifts, (1, 2))
        return y[:, :height, :width]


def windows_of(x: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """The windows of maps [B, H, W, C] as rows: [B n, h, w, C]."""
    x = x.unflatten(2, (-1, sides[1])).unflatten(1, (-1, sides[0]))
    return x.transpose(2, 3).flatten(0, 2)


@lru_cache
def allowed_of(
    padded: tuple[int, int], sides: tuple[int, int], shifts: tuple[int, int]
) -> torch.Tensor:
    """Of every window, which of its positions lay side by side before the shift: [n, 1, T, T]."""
    rows, columns = (
        torch.arange(length) >= length - shift for length, shift in zip(padded, shifts, strict=True)
    )
    part = (2 * rows[:, None] + columns.int())[None, :, :, None]
    part = windows_of(part, sides).flatten(1)
    return (part[:, :, None] == part[:, None])[:, None]


class TunedMCAR(mcar.MCAR):
    """Upsamples only the maps that it looks at, and samples all crops at once."""

    def localise(self, maps: torch.Tensor, global_logits: torch.Tensor, size: tuple[int, int]):
        classes = global_logits.topk(self.top_n, dim=1).indices
        image = torch.arange(len(maps), device=maps.device)[:, None]
        chosen = torch.sigmoid(self.convclass(maps))[image, classes]
        return localise(chosen, size[-1], self.threshold), classes

    def crop(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return sample_crops(images, boxes)


def localise(maps: torch.Tensor, size: int, threshold: float) -> torch.Tensor:
    """Boxes int32 [B, N, 4] of maps [B, N, h, w] on a grid of `size`.

    The profiles are taken of all maps at once; the loop over them is over short lists.
    """
    fine = interpolate(maps, (size, size), mode="bilinear", align_corners=True)
    rows, columns = (fine.amax(dim=axis).flatten(0, 1).cpu() for axis in (3, 2))
    boxes = []
    for row, column in zip(rows, columns, strict=True):
        y1, y2 = mcar.interval(mcar.normalise(row), threshold)
        x1, x2 = mcar.interval(mcar.normalise(column), threshold)
        boxes.append((y1, x1, y2, x2))
    return torch.tensor(boxes, dtype=torch.int32).reshape(*maps.shape[:2], 4)


def sample_crops(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Regions [B, N, 4] of images [B, 3, S, S], each at the full size: [B * N, 3, S, S]."""
    batch, size = len(images), images.shape[-1]
    y1, x1, y2, x2 = boxes.float().to(images.device).unbind(dim=2)
    steps = torch.linspace(0, 1, size, device=images.device)
    rows, columns = (
        (low[..., None] + steps * (high - 1 - low)[..., None]) * 2 / (size - 1) - 1
        for low, high in ((y1, y2), (x1, x2))
    )
    shape = *boxes.shape[:2], size, size
    grid = torch.stack([columns[:, :, None].expand(shape), rows[..., None].expand(shape)], dim=4)
    # The regions of an image lie below each other, so that no image is repeated.
    crops = grid_sample(images, grid.flatten(1, 2), mode="bilinear", align_corners=True)
    crops = crops.reshape(batch, 3, -1, size, size).transpose(1, 2).flatten(0, 1)
    is_last = images.is_contiguous(memory_format=torch.channels_last)
    return crops.contiguous(
        memory_format=torch.channels_last if is_last else torch.contiguous_format
    )


class TunedMSRN(msrn.MSRN):
    """Attends label by label, so that no array has positions and labels."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = self.label_embed(self.fc_label(self.word_vectors), self.adjacency)
        groups, assignment = self.group_embed(relu(labels), self.adjacency)
        embeddings = torch.cat([labels, groups])
        branches = self.resnet_101(images)
        projected = [project(x) for project, x in zip(self.ProjectM, branches, strict=True)]
        seen = torch.cat([attend_by_label(x, embeddings) for x in projected], dim=2)
        hidden = leaky_relu(self.fc1(torch.tanh(seen).flatten(1)), 0.01)
        return {
            "logits": self.fc2(hidden),
            "group_loss": msrn.group_loss(labels, groups, assignment),
            "group_assignment": assignment,
        }


def attend_by_label(maps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """The spatial attention of maps [B, D, h, w] in a loop over the labels: [B, C, D]."""
    features = maps.contiguous().flatten(2)  # [B, D, P]: the positions side by side
    means = [
        ((features * embedding[:, None]).softmax(dim=2) * features).sum(dim=2)
        for embedding in embeddings
    ]
    return torch.stack(means, dim=1)
