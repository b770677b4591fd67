"""Names of encoders and backbones: one network has one name in messages and resolved configs, however it is spelled."""

import re
from typing import Annotated

from pydantic import AfterValidator

_IN_BOTH = re.compile(
    r"(resnet(18|34|50|101|152)|resnext(50_32x4d|101_32x(4|8|16|32)d)|densenet(121|161|169|201)|senet154|mobileone_s[0-4]"
    r"|dpn(68b?|92|98|107|131)|vgg1[1369](_bn)?)"
)
"""Names that segmentation-models-pytorch and timm both use, for networks with different published weights."""

_LITE = re.compile(r"(?:efficientnet-|timm-tf_efficientnet_)lite([0-4])")


def backbone_name(name: str) -> str:
    """Return the one spelling of a network of timm: without `timm/` and `tu-`, and EfficientNet-Lite's own weights.

    The published weights of `efficientnet-lite0` were trained with TensorFlow's padding, and fit
    `tf_efficientnet_lite0`. timm's `efficientnet_lite0` is another network, and keeps its name.
    """
    plain = name.removeprefix("timm/").removeprefix("tu-")
    lite = _LITE.fullmatch(plain)
    return plain if lite is None else f"tf_efficientnet_lite{lite[1]}"


def encoder_name(name: str) -> str:
    """Return the one spelling of an encoder.

    A plain name is one of segmentation-models-pytorch (`resnet101`) if it has this name, else one of timm
    (`vit_small_patch16_dinov3`, also written `tu-...` or `timm/...`). Where both have it, timm's keeps `tu-`.
    """
    plain = backbone_name(name)
    return f"tu-{plain}" if plain != name and _IN_BOTH.fullmatch(plain) else plain


EncoderName = Annotated[str, AfterValidator(encoder_name)]
BackboneName = Annotated[str, AfterValidator(backbone_name)]
