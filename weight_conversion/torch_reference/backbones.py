"""ResNet v1.5 and MobileNetV2 in PyTorch, with the tensor names of torchvision's state_dicts.

Both return the feature map of every stage, deepest last, [B, C, H, W]. Written from the papers:
"Deep Residual Learning for Image Recognition" (CVPR 2016), with the stride of a bottleneck on its
3x3 convolution (v1.5), and "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018).
"""

import torch
from torch import nn

from weight_conversion.torch_reference import (
    convnext,
    efficientnet,
    resnet_d,
    swin,
    tresnet,
    vit,
)

# Blocks in each of the four stages, and whether a block is a bottleneck.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
# Table 2 of the MobileNetV2 paper: expansion, output channels, repeats, stride of the first.
INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def create_backbone(name: str, width: float = 1.0) -> nn.Module:
    """A backbone by its name in `mlic_jax.models`, of so many times its channels."""
    if name in convnext.SIZES:
        return convnext.ConvNeXt(name, width)
    if name in swin.SIZES:
        return swin.Swin(name, width)
    if "efficientnet" in name:
        return efficientnet.EfficientNet(name, width)
    if "tresnet" in name:
        return tresnet.TResNet(name, width)
    if name in resnet_d.SIZES:
        return resnet_d.ResNetD(name, width)
    if name in vit.SIZES:
        return vit.ViT(name, width)
    if name == "mobilenet_v2":
        return MobileNetV2(width)
    return ResNet(*RESNETS[name], width)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = _conv(inputs, width, 1)
            self.conv2 = _conv(width, width, 3, stride)
            self.conv3 = _conv(width, outputs, 1)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = _conv(inputs, width, 3, stride)
            self.conv2 = _conv(width, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.bottleneck = bottleneck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.bottleneck:
            x = self.bn3(self.conv3(torch.relu(x)))
        return torch.relu(x + shortcut)


class ResNet(nn.Module):
    """The maps of layer1 to layer4, at strides 4, 8, 16 and 32."""

    def __init__(self, depths: tuple[int, ...], bottleneck: bool, width: float = 1.0):
        super().__init__()
        first = channels = int(64 * width)
        self.conv1 = _conv(3, first, 7, 2)
        self.bn1 = nn.BatchNorm2d(first)
        for stage, depth in enumerate(depths, start=1):
            inner = first * 2 ** (stage - 1)
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(ResidualBlock(channels, inner, stride, bottleneck))
                channels = 4 * inner if bottleneck else inner
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.channels = channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return tuple(maps)


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
    conv = _conv(inputs, outputs, kernel, stride, groups)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 expansion (none at ratio 1), 3x3 depthwise, linear 1x1; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [_conv_bn_relu6(inputs, hidden, 1)] if expansion > 1 else []
        layers.append(_conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden))
        layers.append(_conv(hidden, outputs, 1))
        layers.append(nn.BatchNorm2d(outputs))
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8 and does not fall short by more than 10%."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class MobileNetV2(nn.Module):
    """The maps after the last block of each resolution, strides 2 to 16, and of the 1x1 head."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        channels = round_channels(32 * width)
        layers = [_conv_bn_relu6(3, channels, 3, 2)]
        self.stage_ends = []
        for expansion, outputs, repeats, first_stride in INVERTED_RESIDUALS:
            outputs = round_channels(outputs * width)
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                if stride == 2:
                    self.stage_ends.append(len(layers) - 1)
                layers.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        self.channels = round_channels(1280 * max(1.0, width))
        layers.append(_conv_bn_relu6(channels, self.channels, 1))
        self.stage_ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.stage_ends:
                maps.append(x)
        return tuple(maps)
