"""Vision Transformers in PyTorch, with the tensor names of timm's state_dicts.

Written from the papers: "An Image is Worth 16x16 Words" (ICLR 2021), "DINOv2: Learning Robust
Visual Features without Supervision" (TMLR 2024), "Vision Transformers Need Registers" (ICLR 2024)
and "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021); the
normalised queries and keys from "Scaling Vision Transformers to 22 Billion Parameters" (ICML 2023).
Returns the patches after a quarter, a half, three quarters and all of the blocks as maps
[B, C, h, w], the last one after the normalisation at the end.
"""

import math

import torch
from torch import nn
from torch.nn import functional

# Blocks, channels, heads.
TINY, SMALL, BASE, LARGE = (12, 192, 3), (12, 384, 6), (12, 768, 12), (24, 1024, 16)
# The size, pixels of a side of a patch, patches of a side of the images that it is published for.
SIZES = {
    "vit_tiny_patch16": (TINY, 16, 14),
    "vit_small_patch16": (SMALL, 16, 14),
    "vit_small_patch32": (SMALL, 32, 7),
    "vit_base_patch16": (BASE, 16, 14),
    "vit_base_patch32": (BASE, 32, 7),
    "vit_large_patch14": (LARGE, 14, 16),
    "vit_large_patch16": (LARGE, 16, 14),
    "vit_large_patch32": (LARGE, 32, 7),
    "vit_small_patch16_qk_norm": (SMALL, 16, 14),
    "vit_base_patch16_qk_norm": (BASE, 16, 14),
    "vit_large_patch16_qk_norm": (LARGE, 16, 14),
    "dinov2_small": (SMALL, 14, 37),
    "dinov2_base": (BASE, 14, 37),
    "dinov2_large": (LARGE, 14, 37),
    "dinov2_small_registers": (SMALL, 14, 37),
    "dinov2_base_registers": (BASE, 14, 37),
    "dinov2_large_registers": (LARGE, 14, 37),
    "clip_vit_base_patch32": (BASE, 32, 7),
    "clip_vit_base_patch16": (BASE, 16, 14),
    "clip_vit_large_patch14": (LARGE, 14, 16),
    "openclip_vit_base_patch32": (BASE, 32, 7),
    "openclip_vit_base_patch16": (BASE, 16, 14),
    "openclip_vit_large_patch14": (LARGE, 14, 16),
}
REGISTERS = 4


class QuickGELU(nn.Module):
    """That of OpenAI's CLIP."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """A factor for every channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Of tokens [B, T, C] to each other, by heads."""

    def __init__(self, channels: int, heads: int, has_norms: bool, epsilon: float):
        super().__init__()
        self.heads = heads
        norms = (
            nn.LayerNorm(channels // heads, eps=epsilon) if has_norms else nn.Identity()
            for _ in range(2)
        )
        self.q_norm, self.k_norm = norms
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each [B, heads, T, C / heads]."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        return self.q_norm(query), self.k_norm(key), value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(x)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers, both normalised before; a shortcut around each."""

    def __init__(
        self,
        channels: int,
        heads: int,
        activation: nn.Module,
        is_scaled: bool,
        has_qk_norms: bool,
        epsilon: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=epsilon)
        self.attn = Attention(channels, heads, has_qk_norms, epsilon)
        self.ls1 = LayerScale(channels) if is_scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(channels, eps=epsilon)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(channels, 4 * channels))
        self.mlp.add_module("act", activation)
        self.mlp.add_module("fc2", nn.Linear(4 * channels, channels))
        self.ls2 = LayerScale(channels) if is_scaled else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """One of `SIZES`, whose number of heads `width` multiplies.

    Attributes:
        antialias: how positions are resized to other grids, see `torch.nn.functional.interpolate`.
    """

    def __init__(self, name: str, width: float = 1.0):
        super().__init__()
        (depth, channels, heads), self.patch, grid = SIZES[name]
        channels = channels // heads * round(heads * width)
        heads = round(heads * width)
        is_dino, is_clip = "dinov2" in name, "clip" in name
        epsilon = 1e-5 if is_clip else 1e-6
        self.antialias = name.startswith("vit") or name.endswith("registers")
        conv = nn.Conv2d(3, channels, self.patch, stride=self.patch, bias=not is_clip)
        self.patch_embed = nn.ModuleDict({"proj": conv})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        has_registers = name.endswith("registers")
        # timm adds the class token's position to the token itself where there are registers.
        first = 0 if has_registers else 1
        self.pos_embed = nn.Parameter(torch.zeros(1, first + grid**2, channels))
        self.reg_token = None
        if has_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, REGISTERS, channels))
        self.norm_pre = nn.LayerNorm(channels, eps=epsilon) if is_clip else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                *(channels, heads, QuickGELU() if name.startswith("clip") else nn.GELU()),
                *(is_dino, name.endswith("qk_norm"), epsilon),
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels, eps=epsilon)
        self.channels = channels

    def _load_from_state_dict(self, state: dict, prefix: str, *arguments) -> None:
        """As of any module, but positions may be of another grid than the published one."""
        if f"{prefix}pos_embed" in state:
            table = self.pos_embed.new_empty(state[f"{prefix}pos_embed"].shape)
            self.pos_embed = nn.Parameter(table)
        super()._load_from_state_dict(state, prefix, *arguments)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.patch_embed["proj"](x)
        shape = x.shape[2:]
        side = math.isqrt(self.pos_embed.shape[1])
        of_class, positions = self.pos_embed.split([self.pos_embed.shape[1] - side**2, side**2], 1)
        if tuple(shape) != (side, side):
            grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
            grid = functional.interpolate(grid, shape, mode="bicubic", antialias=self.antialias)
            positions = grid.flatten(2).transpose(1, 2)
        first = self.cls_token + of_class if of_class.shape[1] else self.cls_token
        tokens = [first] if self.reg_token is None else [first, self.reg_token]
        tokens = [token.expand(len(x), -1, -1) for token in tokens]
        x = torch.cat([*tokens, x.flatten(2).transpose(1, 2) + positions], dim=1)
        x = self.norm_pre(x)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number * 4 % len(self.blocks) == 0:
                last = self.norm(x) if number == len(self.blocks) else x
                patches = last[:, sum(token.shape[1] for token in tokens) :]
                maps.append(patches.transpose(1, 2).unflatten(2, shape))
        return tuple(maps)
