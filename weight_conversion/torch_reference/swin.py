"""Swin Transformer and V2 in PyTorch, with the tensor names of timm's state_dicts.

Written from the papers: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(ICCV 2021), "Swin Transformer V2: Scaling Up Capacity and Resolution" (CVPR 2022). Returns the
feature map of every stage, [B, C, H, W], the last one after the normalisation at the end.
"""

import itertools
import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

# Blocks of the third stage, heads of the first, version, side of the windows and of those of the
# last stage.
SIZES = {
    "swin_tiny": (6, 3, 1, 7, 7),
    "swin_small": (18, 3, 1, 7, 7),
    "swin_base": (18, 4, 1, 7, 7),
    "swin_large": (18, 6, 1, 7, 7),
    "swin_base_window12": (18, 4, 1, 12, 12),
    "swin_large_window12": (18, 6, 1, 12, 12),
    "swinv2_tiny": (6, 3, 2, 8, 8),
    "swinv2_small": (18, 3, 2, 8, 8),
    "swinv2_base": (18, 4, 2, 8, 8),
    "swinv2_tiny_window16": (6, 3, 2, 16, 8),
    "swinv2_small_window16": (18, 3, 2, 16, 8),
    "swinv2_base_window16": (18, 4, 2, 16, 8),
}


class Attention(nn.Module):
    """Of the positions of one window, [B, h, w, C], among which `allowed` [h w, h w] may attend."""

    def __init__(self, channels: int, heads: int, version: int, side: int):
        super().__init__()
        self.heads, self.side, self.version = heads, side, version
        self.qkv = nn.Linear(channels, 3 * channels, bias=version == 1)
        self.proj = nn.Linear(channels, channels)
        if version == 1:
            table = torch.zeros((2 * side - 1) ** 2, heads)
            self.relative_position_bias_table = nn.Parameter(table)
        else:
            self.q_bias = nn.Parameter(torch.zeros(channels))
            self.v_bias = nn.Parameter(torch.zeros(channels))
            self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
            last = nn.Linear(512, heads, bias=False)
            self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), last)

    def position_bias(self, height: int, width: int) -> torch.Tensor:
        """[heads, h w, h w]."""
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        down = rows.flatten()[:, None] - rows.flatten()
        right = columns.flatten()[:, None] - columns.flatten()
        if self.version == 1:
            row = (down + self.side - 1) * (2 * self.side - 1)
            return self.relative_position_bias_table[row + right + self.side - 1].permute(2, 0, 1)
        share = torch.stack([down, right], -1).to(self.logit_scale.dtype)
        share *= 8 / max(self.side - 1, 1)
        bias = self.cpb_mlp(torch.sign(share) * torch.log2(share.abs() + 1) / math.log2(8))
        return 16 * torch.sigmoid(bias).permute(2, 0, 1)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        bias = self.qkv.bias
        if self.version == 2:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        y = functional.linear(x, self.qkv.weight, bias)
        y = y.view(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = y.permute(2, 0, 3, 1, 4)
        if self.version == 1:
            scores = query @ key.transpose(-2, -1) / math.sqrt(channels // self.heads)
        else:
            query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
            scale = self.logit_scale.clamp(max=math.log(100)).exp()
            scores = query @ key.transpose(-2, -1) * scale
        scores = scores + self.position_bias(height, width) - 100 * ~allowed
        seen = scores.softmax(dim=-1) @ value
        return self.proj(seen.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Attention and two linear layers, a shortcut past each; [B, H, W, C]."""

    def __init__(self, channels: int, heads: int, version: int, side: int, shifted: bool):
        super().__init__()
        self.side, self.shifted, self.version = side, shifted, version
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = Attention(channels, heads, version, side)
        fc1, fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Window by window."""
        _, height, width, _ = x.shape
        sides = [min(self.side, length) for length in (height, width)]
        shifts = [
            self.side // 2 if self.shifted and length > self.side else 0
            for length in (height, width)
        ]
        padding = [-length % side for length, side in zip((height, width), sides, strict=True)]
        x = functional.pad(x, (0, 0, 0, padding[1], 0, padding[0]))
        x = torch.roll(x, (-shifts[0], -shifts[1]), (1, 2))
        y = torch.empty_like(x)
        starts = (range(0, x.shape[k + 1], sides[k]) for k in (0, 1))
        for top, left in itertools.product(*starts):
            # What lay at the upper and left edges before the shift is a part of its own.
            rows = torch.arange(top, top + sides[0]) >= x.shape[1] - shifts[0]
            columns = torch.arange(left, left + sides[1]) >= x.shape[2] - shifts[1]
            part = (2 * rows[:, None] + columns).flatten()
            window = (slice(None), slice(top, top + sides[0]), slice(left, left + sides[1]))
            y[window] = self.attn(x[window], part[:, None] == part)
        return torch.roll(y, shifts, (1, 2))[:, :height, :width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.version == 1:
            x = x + self.attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + self.norm1(self.attend(x))
        return x + self.norm2(self.mlp(x))


class Merging(nn.Module):
    """Four positions to one."""

    def __init__(self, channels: int, version: int):
        super().__init__()
        self.version = version
        self.norm = nn.LayerNorm(4 * channels if version == 1 else 2 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x)) if self.version == 1 else self.norm(self.reduction(x))


class Stem(nn.Module):
    """Patches of 4x4 pixels, [B, 3, H, W] -> [B, H / 4, W / 4, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, channels, 4, stride=4), nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """What leads to a stage, and its blocks."""

    def __init__(self, first: bool, channels: int, count: int, heads: int, version: int, side: int):
        super().__init__()
        self.downsample = nn.Identity() if first else Merging(channels // 2, version)
        self.blocks = nn.Sequential(
            *(Block(channels, heads, version, side, k % 2 == 1) for k in range(count))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class Swin(nn.Module):
    """One of `SIZES`; `width` multiplies the channels of every head."""

    def __init__(self, name: str, width: float = 1.0):
        super().__init__()
        third, heads, version, side, last = SIZES[name]
        counts, sides = (2, 2, third, 2), (side, side, side, last)
        channels = [heads * 2**k * round(32 * width) for k in range(4)]
        self.patch_embed = Stem(channels[0])
        self.layers = nn.Sequential(
            *(
                Stage(k == 0, channels[k], counts[k], heads * 2**k, version, sides[k])
                for k in range(4)
            )
        )
        self.norm = nn.LayerNorm(channels[-1])
        self.channels = channels[-1]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.patch_embed(x)
        maps = []
        for stage in self.layers:
            x = stage(x)
            maps.append(x)
        maps[-1] = self.norm(x)
        return tuple(x.permute(0, 3, 1, 2) for x in maps)
