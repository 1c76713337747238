"""The PyTorch references, tuned: the same weights and results by the fastest plain PyTorch.

The references say what the released systems compute, an image, a class and a region at a time; here
is what a user of PyTorch who cares for speed would make of them. For the worker processes of
PyTorch alone.
"""

import torch
from torch import nn
from torch.nn.functional import grid_sample, interpolate, leaky_relu, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval

from weight_conversion.torch_reference import mcar, msrn


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Puts every batch normalisation into the convolution before it, for evaluation; in place."""
    module.eval()
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        for name, child in children.items():
            # The pairs are `conv1` and `bn1`, or neighbours in a sequence.
            after = str(int(name) + 1) if name.isdigit() else name.replace("conv", "bn")
            if isinstance(child, nn.Conv2d) and isinstance(children.get(after), nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(child, children[after]))
                setattr(parent, after, nn.Identity())
    return module


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
