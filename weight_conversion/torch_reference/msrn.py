"""MSRN in PyTorch, every tensor of a formula built in full: hungry, literal, easy to check by eye.

The multi-layered semantic representation network of the released system, with the names of its
state_dicts, the tensors that exist there without taking part (`conv_buffer0`, `W`, `B`) included.
"""

import torch
from torch import nn
from torch.nn import functional

from weight_conversion.torch_reference.backbones import RESNETS, ResNet


class BranchedResNet(ResNet):
    """A ResNet that shows layer2, layer3 and layer4 at half their size, the first two convolved."""

    def __init__(self, name: str):
        super().__init__(*RESNETS[name])
        expansion = 4 if RESNETS[name][1] else 1
        self.conv_buffer0 = nn.Conv2d(64 * expansion, 64 * expansion, 1)  # takes no part
        self.conv_buffer1 = nn.Conv2d(128 * expansion, 128 * expansion, 1)
        self.conv_buffer2 = nn.Conv2d(256 * expansion, 256 * expansion, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _, map2, map3, map4 = super().forward(x)
        branches = (self.conv_buffer1(map2), self.conv_buffer2(map3), map4)
        return tuple(functional.max_pool2d(branch, 2, stride=2) for branch in branches)


class GraphAttention(nn.Module):
    """[N, F] -> [N, G]: node i attends to the j of adjacency[i, j] > 0."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(inputs, outputs))
        self.a = nn.Parameter(torch.empty(2 * outputs, 1))
        nn.init.xavier_uniform_(self.W, gain=1.414)
        nn.init.xavier_uniform_(self.a, gain=1.414)

    def forward(self, nodes: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        h = nodes @ self.W
        count = len(h)
        first = h[:, None].expand(count, count, -1)
        second = h[None].expand(count, count, -1)
        pairs = torch.cat([first, second], dim=2)  # [N, N, 2G]: h_i beside h_j
        scores = functional.leaky_relu((pairs @ self.a)[:, :, 0], 0.2)
        attention = scores.masked_fill(adjacency <= 0, -torch.inf).softmax(dim=1)
        return functional.elu(attention @ h + h)


class LabelEmbedding(nn.Module):
    """Two layers of graph attention: [C, 256] -> [C, 512]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([GraphAttention(256, 300), GraphAttention(300, 512)])

    def forward(self, nodes: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            nodes = layer(nodes, adjacency)
        return nodes


class Pooling(nn.Module):
    """Labels [C, 512] -> groups [K, 512] and the share of each label in each group [C, K]."""

    def __init__(self, groups: int):
        super().__init__()
        self.embed = GraphAttention(512, 512)
        self.assign_mat = GraphAttention(512, groups)

    def forward(self, nodes: torch.Tensor, adjacency: torch.Tensor):
        assignment = self.assign_mat(nodes, adjacency).softmax(dim=1)
        return assignment.T @ self.embed(nodes, adjacency), assignment


class GroupEmbedding(nn.Module):
    """One layer of pooling."""

    def __init__(self, groups: int):
        super().__init__()
        self.layers = nn.ModuleList([Pooling(groups)])

    def forward(self, nodes: torch.Tensor, adjacency: torch.Tensor):
        return self.layers[0](nodes, adjacency)


class MSRN(nn.Module):
    """The whole network over a ResNet.

    Args:
        backbone: a key of `RESNETS`.
        word_vectors: [C, V].
        adjacency: [C, C]; label i attends to label j where [i, j] is above 0.
        pool_ratio: groups by the number of labels.
    """

    def __init__(
        self,
        backbone: str,
        word_vectors: torch.Tensor,
        adjacency: torch.Tensor,
        pool_ratio: float = 0.05,
    ):
        super().__init__()
        labels, dimensions = word_vectors.shape
        groups = int(pool_ratio * labels)
        self.resnet_101 = BranchedResNet(backbone)  # the name stays, whatever the depth
        channels = (
            self.resnet_101.conv_buffer1.out_channels,
            self.resnet_101.conv_buffer2.out_channels,
            self.resnet_101.channels,
        )
        self.ProjectM = nn.ModuleList([nn.Conv2d(inputs, 512, 1) for inputs in channels])
        self.fc_label = nn.Linear(dimensions, 256)
        self.label_embed = LabelEmbedding()
        self.group_embed = GroupEmbedding(groups)
        self.fc1 = nn.Linear((labels + groups) * 1536, 2048)
        self.fc2 = nn.Linear(2048, labels)
        self.W = nn.Parameter(torch.zeros(labels, 3072))  # these two take no part
        self.B = nn.Parameter(torch.zeros(labels))
        # Inputs, not state: the released checkpoints do not hold them.
        self.register_buffer("word_vectors", word_vectors, persistent=False)
        self.register_buffer("adjacency", adjacency, persistent=False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images [B, 3, S, S], normalised -> logits [B, C], group_loss [], group_assignment."""
        labels = self.label_embed(self.fc_label(self.word_vectors), self.adjacency)
        groups, assignment = self.group_embed(functional.relu(labels), self.adjacency)
        embeddings = torch.cat([labels, groups])

        branches = self.resnet_101(images)
        projected = [project(x) for project, x in zip(self.ProjectM, branches, strict=True)]
        seen = torch.cat([spatial_attention(x, embeddings) for x in projected], dim=2)
        hidden = functional.leaky_relu(self.fc1(torch.tanh(seen).flatten(1)), 0.01)
        return {
            "logits": self.fc2(hidden),
            "group_loss": group_loss(labels, groups, assignment),
            "group_assignment": assignment,
        }


def spatial_attention(maps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Maps [B, D, h, w] and embeddings [C, D] -> the maps' means [B, C, D] under the attention."""
    features = maps.flatten(2)[:, None]  # [B, 1, D, P]
    weights = (features * embeddings[:, :, None]).softmax(dim=3)  # [B, C, D, P]
    return (weights * features).sum(dim=3)


def group_loss(
    labels: torch.Tensor, groups: torch.Tensor, assignment: torch.Tensor
) -> torch.Tensor:
    """1e-4 times the sum over the labels of the distance to the group of the largest share."""
    distances = [
        torch.linalg.vector_norm(label - groups[shares.argmax()])
        for label, shares in zip(labels, assignment, strict=True)
    ]
    return 1e-4 * sum(distances)
