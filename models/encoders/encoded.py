"""Base of branches with an image encoder."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from models.blocks import Normalized
from models.encoders.build import build
from models.encoders.caffe_resnet import BLOCKS
from models.encoders.names import encoder_name
from models.encoders.plain_vit import PlainViT
from models.encoders.pyramids import Pyramid, pyramid_for
from models.encoders.sizes import Size, cropped
from models.encoders.timm_networks import is_timms
from models.pretrained.caffe_resnet import caffe_layout
from models.pretrained.encnet import split_encoder
from models.pretrained.layouts import Layout, LayoutError, WeightsFile
from models.pretrained.timm_files import as_timm_reads
from models.pretrained.torchvision_download import download_torchvision
from models.pretrained.torchvision_timm import encoder_layout, normalization


class Encoded(Normalized):
    """Base of branches with an image encoder: normalizes frames and runs `encoder` on them.

    A plain vision transformer has maps at one stride; `pyramid`, which is always new, makes four of them.

    Args:
        name: `resnet50_caffe`, `resnet101_caffe`, or an encoder of segmentation-models-pytorch (`resnet101`, whose keys
            are torchvision's) or timm (`convnext_tiny`, `vit_small_patch14_reg4_dinov2.lvd142m`); see
            :func:`models.encoders.names.encoder_name`.
        output_stride: 8 or 16: stages beyond this stride are dilated instead of strided. 32: as published.
        image_size: height and width of the largest frames, for encoders that are built for one size.
        pyramid: pyramid of a plain vision transformer: `simple` (ViTDet's, of the last map) or `dpt` (DPT's, of four
            depths). None: `simple`; other encoders have none.

    Raises:
        ValueError: there is no such encoder, it lacks maps at strides 4, 8, 16 and 32, cannot be dilated or built for
            this size, or has no use for an option.
    """

    def __init__(
        self, name: str, *, output_stride: int = 32, image_size: Size | None = None, pyramid: Pyramid | None = None
    ) -> None:
        encoder, sizes = build(name, output_stride=output_stride, image_size=image_size, pyramid=pyramid)
        super().__init__(*normalization(encoder))
        self.encoder_name = encoder_name(name)
        self.encoder = encoder
        self.frame_sizes = sizes
        self.image_size = image_size
        self.output_stride = output_stride
        channels = tuple(cast(Sequence[int], encoder.out_channels))[-4:]
        self.pyramid = None
        if isinstance(encoder, PlainViT):
            self.pyramid = pyramid_for(pyramid or "simple", channels, encoder.grid, output_stride)
            channels = self.pyramid.out_channels
        self.encoder_channels = channels

    def encode(self, frame: Tensor) -> list[Tensor]:
        """Return BCHW maps at strides 4, 8, 16, 32 (at most the output stride) of `frame`, B3HW, RGB in [0, 1].

        Raises:
            ValueError: the frame is larger than the only size that the encoder takes.
        """
        height, width = frame.shape[-2:]
        image = self.frame_sizes.padded(self.normalized(frame), self.encoder_name)
        maps = self.encoder(image)[-4:]
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        return cropped(maps, (height, width), self.output_stride)

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published file to the encoder; see :class:`models.pretrained.layouts.Published`."""
        name = self.encoder_name
        if name in BLOCKS:
            return caffe_layout(self.encoder, file.tensors).under("encoder.")
        tensors, others = split_encoder(file.tensors)
        if is_timms(name):
            tensors = as_timm_reads(name.removeprefix("tu-"), tensors, self.image_size)
        layout = encoder_layout(self.encoder, name, tensors)
        return replace(layout, left_out=[*layout.left_out, *others]).under("encoder.")

    def download(self, source: str) -> Layout:
        """Download the encoder's ImageNet weights; see :class:`models.pretrained.layouts.Downloadable`."""
        name = self.encoder_name
        if name in BLOCKS:
            hint = "give a file of Caffe blobs, or use mode modern"
            raise LayoutError(f"nobody publishes PyTorch weights of {name}: {hint}")
        if source != "imagenet":
            weights = download_torchvision(name, source)
            layout = encoder_layout(self.encoder, name, weights.tensors)
            given: dict[str, Any] = {"mean": weights.mean, "std": weights.std}
            return replace(layout, buffers=given, description=weights.description).under("encoder.")
        if is_timms(name):
            import timm

            return self.published_layout(
                WeightsFile(timm.create_model(name.removeprefix("tu-"), pretrained=True).state_dict())
            )
        encoder = build(name, pretrained=True).module
        buffers: dict[str, Any] = dict(zip(("mean", "std"), normalization(encoder), strict=True))
        return Layout(encoder.state_dict(), [], buffers, f"weights of {name}").under("encoder.")
