"""Map the tensors of a file to the parameter names of a branch.

A branch is any `nn.Module` that is an attribute of a network. A file whose keys are the branch's own parameter names
(with or without the branch's name in front) loads without any code: see :mod:`models.pretrained.mtsp_weights`. To load
other weights, a branch may define

- `task_layers`: prefixes of the names of layers that depend on the task or the number of classes, `("classify.",)`. If
  a file lacks these layers or has other shapes, they stay as initialized. Default: `("head.",)`.
- `published_layout(file)`, see :class:`Published`: maps files with other names.
- `download(source)`, see :class:`Downloadable`: downloads weights for the sources `imagenet` and `torchvision`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class LayoutError(ValueError):
    """The tensors of a file do not fit. The message says which network they look like and what was expected."""


class DownloadError(ValueError):
    """Weights cannot be downloaded. The message says which file to put where."""


@dataclass(frozen=True)
class WeightsFile:
    """Content of a checkpoint file."""

    tensors: dict[str, Tensor]
    name: str = ""
    """File name without its folder."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other entries of the file, for example the epoch."""


@dataclass(frozen=True)
class Layout:
    """Tensors of a file under their names in a branch."""

    tensors: dict[str, Tensor]
    left_out: list[str]
    """Tensors of the file that are not used: `key: reason`."""
    buffers: dict[str, Any]
    """Values for buffers of the branch that describe its input and the unit of its output, such as `mean` and `std`."""
    description: str
    """Description of the file for messages."""

    def under(self, prefix: str) -> "Layout":
        """Return the layout with `prefix` added to the names of its tensors, but not of its buffers."""
        return replace(self, tensors={prefix + key: value for key, value in self.tensors.items()})


@runtime_checkable
class Published(Protocol):
    """A branch that can load files with other parameter names."""

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the file's tensors to the branch. Raises LayoutError if they do not fit."""
        ...


@runtime_checkable
class Downloadable(Protocol):
    """A branch whose weights a library can download."""

    def download(self, source: str) -> Layout:
        """Download weights.

        Args:
            source: `imagenet`, `torchvision` or `torchvision:NAME`.

        Raises:
            LayoutError: nobody publishes such weights. A download that fails raises other errors.
        """
        ...


def looks_like(tensors: Mapping[str, Tensor]) -> str:
    """Describe the network that the keys of a file look like."""
    signs = {
        "conv_redir.0.weight": "FlowNetC",
        "upsampled_flow6_to_5.weight": "FlowNetS",
        "netBasic.0.netBasic.0.weight": "SPyNet",
        "update_block.recurrent_block.convgru1.convz.weight": "RAFT of torchvision",
        "fnet.conv1.weight": "RAFT of its authors",
        "_conv_stem.weight": "an EfficientNet of EfficientNet-PyTorch",
        "conv_stem.weight": "an EfficientNet or MobileNet of timm",
        "layer4.0.conv1.weight": "a ResNet of torchvision or timm",
        "layer3.0.conv1.weight": "a small (CIFAR) ResNet",
        "features.3.squeeze.weight": "SqueezeNet of torchvision",
        "blocks.0.attn.qkv.weight": "a vision transformer",
        "layers.0.blocks.0.attn.qkv.weight": "a Swin transformer",
        "stages.0.blocks.0.conv_dw.weight": "a ConvNeXt of timm",
        "features.0.weight": "VGG or AlexNet of torchvision",
        "bn_conv1.0": "blobs of a Caffe ResNet",
        "head.encmodule.fc.0.weight": "an EncNet of PyTorch-Encoding",
        "head.context.gate.weight": "an mtsp file",
        "segmentation.encoder.conv1.weight": "an mtsp file",
        "flow.network.conv1.0.weight": "an mtsp file",
        "Mixed_7c.branch_pool.conv.weight": "Inception-V3",
        **{
            f"{name}/Conv2d_1a_3x3/weights": f"TF-slim's {name}"
            for name in ("InceptionV3", "InceptionV4", "InceptionResnetV2")
        },
    }
    sign = next((sign for key, sign in signs.items() if key in tensors), "an unknown network")
    return f"{sign} ({len(tensors)} tensors, the first {next(iter(tensors), 'nothing')!r})"
