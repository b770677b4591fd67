"""Networks of timm: their properties, and how to build them for images of any size, or of another size."""

import inspect
from functools import cache
from typing import Any, NamedTuple

import torch

from models.encoders.caffe_resnet import BLOCKS
from models.encoders.plain_vit import GRIDS
from models.encoders.sizes import Size
from mtsp.text import did_you_mean


class Inspected(NamedTuple):
    """Properties of a network of timm, found without its weights."""

    strides: tuple[int, ...]
    depth: int
    """Number of blocks of a transformer; 0: no transformer."""
    native: Size
    """Height and width of the images it was published for."""
    options: dict[str, Any]
    """Options of timm that let it take images of other sizes."""
    can_build_for_a_size: bool
    is_plain: bool
    """Whether it is a transformer with maps at one stride only."""


@cache
def inspected(name: str) -> Inspected:
    """Return the properties of a network of timm."""
    import timm

    with torch.device("meta"):
        network: Any = timm.create_model(name, pretrained=False)
    settings = {key for base in type(network).__mro__ for key in inspect.signature(base.__init__).parameters}
    options = {key: True for key in ("dynamic_img_size", "dynamic_img_pad") if key in settings}
    info: Any = getattr(network, "feature_info", None)
    stages: list[Any] = info if isinstance(info, list) else []
    strides = tuple(int(stage["reduction"]) for stage in stages if "reduction" in stage)
    blocks = getattr(network, "blocks", ())
    one_stride = set(strides) <= set(GRIDS) and len(set(strides)) == 1
    plain = one_stride and hasattr(network, "forward_intermediates")
    _, height, width = (network.default_cfg or {}).get("input_size", (3, 224, 224))
    depth = len(blocks) if hasattr(blocks, "__len__") else 0
    return Inspected(strides, depth, (height, width), options, "img_size" in settings, plain and depth > 0)


def is_timms(name: str) -> bool:
    """Return whether an encoder is one of timm, not of segmentation-models-pytorch.

    Raises:
        ValueError: neither library has it.
    """
    import segmentation_models_pytorch as smp
    import timm

    plain, _, tag = name.removeprefix("tu-").partition(".")
    theirs = smp.encoders.get_encoder_names()
    if not tag and name in theirs:
        return False
    if plain in timm.list_models():
        return True
    known = [*BLOCKS, *theirs, *timm.list_models()]
    raise ValueError(
        f"no encoder {name!r}; {did_you_mean(plain, known, 'known are those of segmentation-models-pytorch and timm')}"
    )


def timm_network(name: str, *, image_size: Size | None = None, **options: Any) -> Any:
    """Return a network of timm, with new weights, that takes images of any size if it can, or of `image_size`.

    Raises:
        ValueError: it cannot be built for this size.
    """
    import timm

    kind = inspected(name)
    if image_size is None:
        return timm.create_model(name, pretrained=False, **kind.options, **options)
    if not kind.can_build_for_a_size:
        raise ValueError(f"{name} cannot be built for another size than {kind.native[0]}x{kind.native[1]}")
    try:
        return timm.create_model(name, pretrained=False, img_size=image_size, **options)
    except Exception as error:  # the type of error depends on the network
        why = " ".join(str(error).split())
        wanted = [side + -side % 32 for side in image_size]
        raise ValueError(f"{name} cannot be built for image_size {list(image_size)} ({why}); try {wanted}") from error
