"""EfficientNet and EfficientNet-Lite in PyTorch, with the tensor names of timm's state_dicts.

Written from the papers and the published tables: "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks" (ICML 2019), and for Lite the notes of its authors. Returns the maps
[B, C, H, W] of strides 4, 8 and 16, and that of the 1x1 convolution at the end.
"""

import math

import torch
from torch import nn

# Blocks of B0's stages: kernel, stride of the first, expansion, channels, repeats.
BASE = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
SCALES = {"0": (1.0, 1.0), "1": (1.0, 1.1), "2": (1.1, 1.2), "3": (1.2, 1.4), "4": (1.4, 1.8)}


def divisible(channels: float) -> int:
    """The nearest multiple of 8, of at least 90%."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class Conv(nn.Conv2d):
    """Without bias; `tf` pads as TensorFlow's SAME does, for the size of the image at hand."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, tf: bool):
        padding = 0 if tf else kernel // 2
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.tf = tf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.tf:
            kernel, stride = self.kernel_size[0], self.stride[0]
            padding = []
            for length in (x.shape[3], x.shape[2]):
                windows = math.ceil(length / stride)
                total = max((windows - 1) * stride + kernel - length, 0)
                padding += [total // 2, total - total // 2]
            x = nn.functional.pad(x, padding)
        return super().forward(x)


class SqueezeExcite(nn.Module):
    """Channels times a sigmoid of two layers on their means."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        hidden = nn.functional.silu(self.conv_reduce(means))
        return x * torch.sigmoid(self.conv_expand(hidden))


class Block(nn.Module):
    """An inverted residual; without an expansion timm calls its layers otherwise."""

    def __init__(self, inputs, outputs, kernel, stride, expansion, lite, tf, norm):
        super().__init__()
        hidden = inputs * expansion
        layers = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
        if expansion > 1:
            layers = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
            self.conv_pw = Conv(inputs, hidden, 1, 1, 1, tf)
            self.bn1 = norm(hidden)
        self.layers = layers
        setattr(self, layers[-2][0], Conv(hidden, hidden, kernel, stride, hidden, tf))
        setattr(self, layers[-2][1], norm(hidden))
        self.se = nn.Identity() if lite else SqueezeExcite(hidden, max(1, int(inputs * 0.25)))
        setattr(self, layers[-1][0], Conv(hidden, outputs, 1, 1, 1, tf))
        setattr(self, layers[-1][1], norm(outputs))
        self.act = nn.ReLU6() if lite else nn.SiLU()
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for conv, norm in self.layers[:-1]:
            y = self.act(getattr(self, norm)(getattr(self, conv)(y)))
        conv, norm = self.layers[-1]
        y = getattr(self, norm)(getattr(self, conv)(self.se(y)))
        return x + y if self.has_shortcut else y


class EfficientNet(nn.Module):
    """By its name in `mlic_jax.models`; `width` multiplies the channels once more."""

    def __init__(self, name: str, width: float = 1.0):
        super().__init__()
        scale, depth = SCALES[name[-1]]
        lite = "lite" in name
        tf = name.startswith(("efficientnet_lite", "tf_"))

        def norm(channels: int) -> nn.BatchNorm2d:
            settings = {"eps": 1e-3, "momentum": 0.01} if tf else {}
            return nn.BatchNorm2d(channels, **settings)

        inputs = divisible((32 if lite else 32 * scale) * width)
        self.conv_stem = Conv(3, inputs, 3, 2, 1, tf)
        self.bn1 = norm(inputs)
        stages = []
        for index, (kernel, stride, expansion, channels, repeats) in enumerate(BASE):
            outputs = divisible(channels * scale * width)
            if not (lite and index in (0, 6)):
                repeats = math.ceil(repeats * depth)
            blocks = []
            for repeat in range(repeats):
                first = stride if repeat == 0 else 1
                blocks.append(Block(inputs, outputs, kernel, first, expansion, lite, tf, norm))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.channels = divisible((1280 if lite else 1280 * scale) * max(1.0, width))
        self.conv_head = Conv(inputs, self.channels, 1, 1, 1, tf)
        self.bn2 = norm(self.channels)
        self.act = nn.ReLU6() if lite else nn.SiLU()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.act(self.bn1(self.conv_stem(x)))
        maps = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in (1, 2, 4):  # the next one halves the map
                maps.append(x)
        return (*maps, self.act(self.bn2(self.conv_head(x))))
