"""Make maps at strides 4, 8, 16 and 32 from those of a plain vision transformer, which has one stride."""

from collections.abc import Sequence
from typing import Literal

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

WIDTH = 256
LEVELS = (4, 8, 16, 32)
Pyramid = Literal["simple", "dpt"]


class SimplePyramid(nn.Module):
    """ViTDet's simple feature pyramid: every level is made from the transformer's last map.

    After Li, Mao, Girshick and He, "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022,
    section 3: deconvolutions or pooling to the level's stride, then a 1x1 and a 3x3 convolution to 256 channels, each
    followed by LayerNorm.

    Args:
        channels: numbers of channels of the maps; the last one is used.
        stride: stride of the maps.
        output_stride: levels beyond this stride keep it.
    """

    out_channels = (WIDTH,) * len(LEVELS)

    def __init__(self, channels: Sequence[int], stride: int, output_stride: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level in LEVELS:
            layers, width = _resampled(channels[-1], stride, min(level, output_stride))
            layers += [nn.Conv2d(width, WIDTH, 1, bias=False), LayerNorm2d(WIDTH)]
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), LayerNorm2d(WIDTH)]
            self.levels.append(nn.Sequential(*layers))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return four BChw maps with 256 channels."""
        return [level(maps[-1]) for level in self.levels]


class DepthPyramid(nn.Module):
    """DPT's reassembly: level 4 is made from the map of the first quarter's depth, ..., level 32 from the last.

    After Ranftl, Bochkovskiy and Koltun, "Vision Transformers for Dense Prediction", ICCV 2021, section 3.2: a 1x1
    convolution, a resampling to the level's stride, and a 3x3 convolution to 256 channels. Departures: the class token
    is not read, and each map is normalized by a LayerNorm first, since depths differ in scale.

    Args: as for :class:`SimplePyramid`, with the channels of four maps.
    """

    out_channels = (WIDTH,) * len(LEVELS)

    def __init__(self, channels: Sequence[int], stride: int, output_stride: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level, count in zip(LEVELS, channels, strict=True):
            layers: list[nn.Module] = [LayerNorm2d(count), nn.Conv2d(count, WIDTH, 1)]
            between, width = _resampled(WIDTH, stride, min(level, output_stride), narrowing=False)
            self.levels.append(nn.Sequential(*layers, *between, nn.Conv2d(width, WIDTH, 3, padding=1, bias=False)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return four BChw maps with 256 channels."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def pyramid_for(
    kind: Pyramid, channels: Sequence[int], stride: int, output_stride: int
) -> SimplePyramid | DepthPyramid:
    """Return a new pyramid of this kind."""
    return {"simple": SimplePyramid, "dpt": DepthPyramid}[kind](channels, stride, output_stride)


def _resampled(channels: int, stride: int, wanted: int, *, narrowing: bool = True) -> tuple[list[nn.Module], int]:
    """Return layers that bring a map from `stride` to the stride `wanted`, and the number of channels after them."""
    layers: list[nn.Module] = []
    if wanted > stride:
        factor = wanted // stride
        return [nn.MaxPool2d(factor, factor, ceil_mode=True)], channels
    while stride > wanted:
        after = channels // 2 if narrowing else channels
        layers += [LayerNorm2d(channels), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(channels, after, 2, stride=2))
        stride, channels = stride // 2, after
    return layers, channels
