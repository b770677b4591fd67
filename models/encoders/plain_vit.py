"""Plain vision transformers of timm, which have maps at one stride only, as encoders."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models import beit
from torch import Tensor, nn

GRIDS = {8: 8, 14: 16, 16: 16, 32: 32}
"""Stride of the maps by patch size: a power of two that is near."""


class PlainViT(nn.Module):
    """Maps of some depths of a plain vision transformer (ViT, DeiT, DINOv2 and v3, EVA, SigLIP, BEiT, ...).

    Class and register tokens take part in the attention, and are not in the maps. The maps are normalized by the
    transformer's last norm, as DINOv2's authors do for dense tasks. Images of any size are padded to whole patches by
    repeating their last rows and columns; positions are interpolated. Maps of patches of 14 pixels are resampled to a
    stride of 16.

    Args:
        model: a transformer of timm without its classifier, with `forward_intermediates`.
        patch: side of a patch in pixels: 8, 14, 16 or 32.
        depths: numbers of the blocks whose outputs are returned.
    """

    def __init__(self, model: Any, patch: int, depths: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.patch, self.grid = patch, GRIDS[patch]
        self.depths = list(depths)
        self.out_channels = (int(model.num_features),) * len(self.depths)
        for module in model.modules():
            if type(module) is beit.Attention and module.window_size is not None:
                module.__class__ = _BeitAttention
        if isinstance(model, beit.Beit):
            model.patch_embed.strict_img_size = False

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return BChw maps of a normalized image, B3HW, with a row for each `grid` rows of the image, rounded up."""
        height, width = (math.ceil(side / self.grid) for side in x.shape[-2:])
        sides = [math.ceil(n * self.grid / self.patch) for n in (height, width)]
        padding = [n * self.patch - side for n, side in zip(sides, x.shape[-2:], strict=True)]
        if any(padding):
            x = F.pad(x, [0, padding[1], 0, padding[0]], mode="replicate")
        for module in self.modules():
            if isinstance(module, _BeitAttention):
                module.grid = (sides[0], sides[1])
        maps = self.model.forward_intermediates(
            x, indices=self.depths, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        if self.patch != self.grid:  # an explicit factor keeps positions in the image, whatever the size
            maps = [F.interpolate(m, scale_factor=self.patch / self.grid, mode="bilinear") for m in maps]
        return [m[..., :height, :width] for m in maps]

    def fits(self, maps: Sequence[Tensor], size: tuple[int, int]) -> bool:
        """Return whether `maps` have the sizes that they should have for an image of this height and width."""
        return all(tuple(x.shape[-2:]) == tuple(math.ceil(side / self.grid) for side in size) for x in maps)


class _BeitAttention(beit.Attention):
    """BEiT's attention with relative positions that are interpolated to the grid of the present image.

    timm replaces the table of positions by one of another size instead; here the published one stays the parameter.
    """

    grid: tuple[int, int]

    def _get_rel_pos_bias(self) -> Tensor:
        assert self.window_size is not None
        assert self.relative_position_bias_table is not None
        published: tuple[int, int] = self.window_size
        if self.grid == tuple(published):
            return super()._get_rel_pos_bias()
        table = self.relative_position_bias_table
        height, width = self.grid
        shape = ((2 * height - 1) * (2 * width - 1) + 3, table.shape[1])
        resized = resize_rel_pos_bias_table(table, self.grid, shape, old_window_size=published)
        index = beit.gen_relative_position_index(self.grid, device=table.device)
        return resized[index].permute(2, 0, 1)[None]


def four_depths(blocks: int) -> list[int]:
    """Return the numbers of the last blocks of four equal parts of a transformer: 2, 5, 8, 11 of 12."""
    return [blocks * part // 4 - 1 for part in (1, 2, 3, 4)]
