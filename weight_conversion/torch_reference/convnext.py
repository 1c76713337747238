"""ConvNeXt and ConvNeXt V2 in PyTorch, with the tensor names of timm's state_dicts.

Written from the papers: "A ConvNet for the 2020s" (CVPR 2022), "ConvNeXt V2: Co-designing and
Scaling ConvNets with Masked Autoencoders" (CVPR 2023). Returns the feature map of every stage,
[B, C, H, W], the last one after the normalisation at the end, position by position.
"""

from collections import OrderedDict

import torch
from torch import nn

# Blocks of the third stage, of each other one, channels of the first, version.
SIZES = {
    "convnext_tiny": (9, 3, 96, 1),
    "convnext_small": (27, 3, 96, 1),
    "convnext_base": (27, 3, 128, 1),
    "convnext_large": (27, 3, 192, 1),
    "convnext_xlarge": (27, 3, 256, 1),
    "convnextv2_atto": (6, 2, 40, 2),
    "convnextv2_femto": (6, 2, 48, 2),
    "convnextv2_pico": (6, 2, 64, 2),
    "convnextv2_nano": (8, 2, 80, 2),
    "convnextv2_tiny": (9, 3, 96, 2),
    "convnextv2_base": (27, 3, 128, 2),
    "convnextv2_large": (27, 3, 192, 2),
    "convnextv2_huge": (27, 3, 352, 2),
}


class MapNorm(nn.LayerNorm):
    """Layer normalisation of every position of maps [B, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation of [B, H, W, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return x + self.weight * (x * share) + self.bias


class Block(nn.Module):
    """Depthwise 7x7, normalisation, two linear layers, a shortcut."""

    def __init__(self, channels: int, version: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        layers = OrderedDict(fc1=nn.Linear(channels, 4 * channels), act=nn.GELU())
        if version == 2:
            layers["grn"] = ResponseNorm(4 * channels)
        layers["fc2"] = nn.Linear(4 * channels, channels)
        self.mlp = nn.Sequential(layers)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6)) if version == 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        y = y if self.gamma is None else y * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """What leads to a stage, and its blocks."""

    def __init__(self, inputs: int, channels: int, count: int, version: int):
        super().__init__()
        self.downsample = nn.Identity()
        if inputs != channels:
            conv = nn.Conv2d(inputs, channels, 2, stride=2)
            self.downsample = nn.Sequential(MapNorm(inputs), conv)
        self.blocks = nn.Sequential(*(Block(channels, version) for _ in range(count)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(nn.Module):
    """One of `SIZES`, whose channel counts `width` multiplies."""

    def __init__(self, name: str, width: float = 1.0):
        super().__init__()
        third, others, first, version = SIZES[name]
        channels = [round(first * 2**k * width) for k in range(4)]
        conv = nn.Conv2d(3, channels[0], 4, stride=4)
        self.stem = nn.Sequential(conv, MapNorm(channels[0]))
        inputs = [channels[0], *channels]
        counts = (others, others, third, others)
        self.stages = nn.Sequential(
            *(Stage(inputs[k], channels[k], counts[k], version) for k in range(4))
        )
        self.head = nn.ModuleDict({"norm": MapNorm(channels[-1])})
        self.channels = channels[-1]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return (*maps[:-1], self.head["norm"](x))
