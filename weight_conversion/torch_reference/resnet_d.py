"""ResNet-D and ResNet-RS in PyTorch, with the tensor names of timm's state_dicts.

Written from the papers: "Bag of Tricks for Image Classification with Convolutional Neural Networks"
(CVPR 2019), "Revisiting ResNets: Improved Training and Scaling Strategies" (NeurIPS 2021). Returns
the map of every stage, [B, C, H, W].
"""

import torch
from torch import nn

# Blocks in each of the four stages, and whether a block is a bottleneck.
SIZES = {
    "resnet18d": ((2, 2, 2, 2), False),
    "resnet34d": ((3, 4, 6, 3), False),
    "resnet50d": ((3, 4, 6, 3), True),
    "resnet101d": ((3, 4, 23, 3), True),
    "resnet152d": ((3, 8, 36, 3), True),
    "resnetrs50": ((3, 4, 6, 3), True),
    "resnetrs101": ((3, 4, 23, 3), True),
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class SqueezeExcite(nn.Module):
    """Channels times a sigmoid of two layers on their means."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(means))))


class Block(nn.Module):
    """A residual block whose shortcut is averaged before its 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, squeeze: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.count = len(shapes)
        for k, shape in enumerate(shapes, start=1):
            setattr(self, f"conv{k}", _conv(*shape))
            setattr(self, f"bn{k}", nn.BatchNorm2d(shape[1]))
        self.se = SqueezeExcite(outputs) if squeeze else nn.Identity()
        self.downsample = nn.Identity()
        if stride > 1 or inputs != outputs:
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
            self.downsample = nn.Sequential(
                pool if stride > 1 else nn.Identity(),
                _conv(inputs, outputs, 1),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for k in range(1, self.count + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = torch.relu(y) if k < self.count else y
        return torch.relu(self.se(y) + self.downsample(x))


class ResNetD(nn.Module):
    """By its name in `mlic_jax.models`; `width` multiplies the channels."""

    def __init__(self, name: str, width: float = 1.0):
        super().__init__()
        depths, bottleneck = SIZES[name]
        is_rs = name.startswith("resnetrs")
        first = channels = round(64 * width)
        half = channels // 2
        self.conv1 = nn.Sequential(
            *(_conv(3, half, 3, 2), nn.BatchNorm2d(half), nn.ReLU()),
            *(_conv(half, half, 3), nn.BatchNorm2d(half), nn.ReLU()),
            _conv(half, first, 3),
        )
        self.bn1 = nn.BatchNorm2d(first)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        if is_rs:
            conv = _conv(first, first, 3, 2)
            self.maxpool = nn.Sequential(conv, nn.BatchNorm2d(first), nn.ReLU())
        for stage, depth in enumerate(depths, start=1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                inner = first * 2 ** (stage - 1)
                blocks.append(Block(channels, inner, stride, bottleneck, is_rs))
                channels = 4 * inner if bottleneck else inner
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.channels = channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return tuple(maps)
