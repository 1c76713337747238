"""TResNet in PyTorch, with the tensor names of its authors' state_dicts or of timm's.

Written from the paper: "TResNet: High Performance GPU-Dedicated Architecture" (WACV 2021). Returns
the map of every stage, [B, C, H, W].
"""

from collections import OrderedDict

import torch
from torch import nn

# Blocks in each of the four stages, width, whether the first two stages have bottlenecks as well.
SIZES = {
    "tresnet_m": ((3, 4, 11, 3), 1.0, False),
    "tresnet_l": ((4, 5, 18, 3), 1.2, False),
    "tresnet_v2_l": ((3, 4, 23, 3), 1.0, True),
}


class InPlaceABN(nn.Module):
    """Batch normalisation whose scale is the magnitude of its weight, and at least 1e-5."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        scale = self.weight.abs() + 1e-5
        return nn.functional.batch_norm(x, *statistics, scale, self.bias, self.training)


class Blur(nn.Module):
    """Weights 1, 2, 1 along both axes of mirrored maps, at every other position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
        kernel = (taps[:, None] * taps / 16).expand(x.shape[1], 1, 3, 3)
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return nn.functional.conv2d(padded, kernel, stride=2, groups=x.shape[1])


class SqueezeExcite(nn.Module):
    """Channels times a sigmoid of two layers on their means."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(means))))


def _layer(
    names: str, inputs: int, outputs: int, kernel: int, slope: float | None, blurred: bool = False
) -> nn.Sequential:
    """A convolution and its normalisation, `slope` of the leaky ReLU after it, and a blur.

    Args:
        names: `authors` numbers the parts, and those before a blur once more; `timm` names them.
    """
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    norm = InPlaceABN(outputs) if names == "authors" else nn.BatchNorm2d(outputs)
    activation = nn.Identity() if slope is None else nn.LeakyReLU(slope)
    if names == "timm":
        parts = OrderedDict(conv=conv, bn=norm, act=activation)
        return nn.Sequential(parts | {"aa": Blur()} if blurred else parts)
    # What has no tensors stands after what has, so that the numbers are theirs.
    layer = nn.Sequential(conv, norm, activation)
    return nn.Sequential(layer, Blur()) if blurred else layer


class Block(nn.Module):
    """A basic block or a bottleneck."""

    def __init__(self, names, inputs, width, stride, bottleneck, squeeze):
        super().__init__()
        halves = stride == 2
        self.bottleneck = bottleneck
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = _layer(names, inputs, width, 1, 1e-3)
            self.conv2 = _layer(names, width, width, 3, 1e-3, halves)
            self.conv3 = _layer(names, width, outputs, 1, None)
        else:
            self.conv1 = _layer(names, inputs, width, 3, 1e-3, halves)
            self.conv2 = _layer(names, width, width, 3, None)
        reduced = max(64, outputs // 8 if bottleneck else outputs // 4)
        self.se = SqueezeExcite(width, reduced) if squeeze else nn.Identity()
        self.downsample = nn.Identity()
        if halves or inputs != outputs:
            pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            project = _layer(names, inputs, outputs, 1, None)
            self.downsample = nn.Sequential(*([pool] if halves else []), project)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.se(self.conv2(self.conv1(x)))
        y = self.conv3(y) if self.bottleneck else y
        return torch.relu(y + self.downsample(x))


class TResNet(nn.Module):
    """By its name in `mlic_jax.models`; `width` multiplies the channels."""

    def __init__(self, name: str, width: float = 1.0):
        super().__init__()
        names = "timm" if name.startswith("timm_") else "authors"
        depths, scale, bottlenecks = SIZES[name.removeprefix("timm_")]
        first = channels = int(64 * scale * width)
        parts = OrderedDict(conv1=_layer(names, 48, first, 3, 1e-2))
        for stage, depth in enumerate(depths, start=1):
            blocks = []
            bottleneck = bottlenecks or stage > 2
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                inner = first * 2 ** (stage - 1)
                blocks.append(Block(names, channels, inner, stride, bottleneck, stage < 4))
                channels = 4 * inner if bottleneck else inner
            parts[f"layer{stage}"] = nn.Sequential(*blocks)
        self.body = nn.Sequential(parts)
        self.channels = channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 4, 4, width // 4, 4)
        x = x.permute(0, 3, 5, 1, 2, 4).reshape(batch, 16 * channels, height // 4, width // 4)
        x = self.body.conv1(x)
        maps = []
        for stage in range(1, 5):
            x = getattr(self.body, f"layer{stage}")(x)
            maps.append(x)
        return tuple(maps)
