"""Caffe's ResNet-50 and ResNet-101: the encoder of SegFlow's `released` and `paper` modes.

After He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385), and its Caffe files.
Differences from torchvision's ResNets: stages 3 to 5 stride in the first 1x1 convolution instead of the 3x3
convolution, and the pooling of the stem has no padding and rounds its output size up. Parameters have torchvision's
names and shapes, but weights are not interchangeable.
"""

from torch import Tensor, nn

BLOCKS = {"resnet50_caffe": (3, 4, 6, 3), "resnet101_caffe": (3, 4, 23, 3)}


class CaffeResNet(nn.Module):
    """A bottleneck ResNet without classifier. `forward` returns the maps at strides 4, 8, 16 and 32."""

    out_channels = (256, 512, 1024, 2048)

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        channels = 64
        for stage, count in enumerate(blocks, start=1):
            middle = 32 * 2**stage
            layers = [_Bottleneck(channels, middle, stride=1 if stage == 1 else 2)]
            layers += [_Bottleneck(4 * middle, middle, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            channels = 4 * middle
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return BCHW maps at strides 4, 8, 16, 32 of a normalized image, B3HW."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            features.append(x)
        return features


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, middle: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, middle, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, 4 * middle, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * middle)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if channels != 4 * middle:
            projection = nn.Conv2d(channels, 4 * middle, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * middle))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)
