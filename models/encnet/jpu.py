"""Joint Pyramid Upsampling: features at stride 8 from an encoder that is not dilated.

After Wu et al., "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation", 2019
(arXiv:1903.11816), section 3.3, and the code that its authors released.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks import conv_norm_relu, resized

DILATIONS = (1, 2, 4, 8)


class JointPyramidUpsampling(nn.Module):
    """Projects maps at strides 8, 16, 32, resizes them to stride 8, and convolves them jointly at four dilations.

    Args:
        encoder: numbers of channels of the three maps.
        width: number of channels of each projection and of the output of each dilation.
    """

    def __init__(self, encoder: Sequence[int], width: int) -> None:
        super().__init__()
        self.channels = len(DILATIONS) * width
        self.project = nn.ModuleList([conv_norm_relu(channels, width, 3) for channels in encoder])
        self.read = nn.ModuleList([_separable(len(encoder) * width, width, dilation) for dilation in DILATIONS])

    def forward(self, *features: Tensor) -> Tensor:
        """Return BChw with 4 * width channels at stride 8, from BChw features at strides 8, 16, 32."""
        maps = [project(x) for project, x in zip(self.project, features, strict=True)]
        joined = torch.cat([resized(x, maps[0]) for x in reversed(maps)], dim=1)  # coarsest first, as published
        return torch.cat([read(joined) for read in self.read], dim=1)


def _separable(channels_in: int, channels_out: int, dilation: int) -> nn.Sequential:
    depthwise = nn.Conv2d(
        channels_in, channels_in, 3, padding=dilation, dilation=dilation, groups=channels_in, bias=False
    )
    return nn.Sequential(depthwise, nn.BatchNorm2d(channels_in), *conv_norm_relu(channels_in, channels_out, 1))
