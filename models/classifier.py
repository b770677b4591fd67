"""Image classifier: Inception-V3 with its auxiliary head, as in DSTL, or any backbone of torchvision or timm.

DSTL (Cui, Song, Sun, Howard and Belongie, "Large Scale Fine-Grained Categorization and Domain-Specific Transfer
Learning", CVPR 2018) fine-tunes the Inception-V3 of Szegedy et al., "Rethinking the Inception Architecture" (CVPR
2016). Its selection of source classes is in :mod:`mtsp.transfer`.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor, nn

from models.blocks import ClassesConfig, Normalized
from models.encoders.names import BackboneName, backbone_name
from models.encoders.sizes import FrameSizes, Size, frame_sizes
from models.encoders.timm_networks import inspected, timm_network
from models.pretrained import tf_slim, torchvision_timm
from models.pretrained.layouts import Layout, WeightsFile
from models.pretrained.timm_files import as_timm_reads
from models.pretrained.torchvision_download import TorchvisionWeights, download_torchvision
from models.pretrained.torchvision_timm import IMAGENET_MEAN, IMAGENET_STD
from mtsp.text import did_you_mean
from mtsp.types import Outputs

INCEPTION = "torchvision:inception_v3"
SMALLEST, SMALLEST_TRAINED = 75, 299
"""Smallest height and width for Inception-V3, without and with its auxiliary head in training."""


class ClassifierConfig(ClassesConfig):
    """Config of :class:`Classifier`."""

    name: Literal["classifier"]
    backbone: BackboneName = INCEPTION
    """A timm network (`tf_efficientnet_lite0`, `resnet50`), or `torchvision:` and the name of a torchvision network."""
    classes: int | None = Field(default=None, gt=1)
    """Number of classes; null: as many as the data to train on have."""
    image_size: Size | None = None
    """Height and width of the largest frames, for backbones that are built for one size (BEiT, Hiera, LeViT); null:
    the published size."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout rate of the pooled features before the head. TF-slim's Inception-V3, used by DSTL, has 0.2."""
    zero_head: bool = False
    """Begin with a head of zeros, whose first steps do not disturb the backbone."""
    aux_head: bool | None = None
    """Train Inception-V3 with its auxiliary head; null: yes. No other backbone has an auxiliary head."""

    @model_validator(mode="after")
    def _only_inception_has_one(self) -> "ClassifierConfig":
        if self.aux_head and self.backbone != INCEPTION:
            raise ValueError(f"`aux_head`: only {INCEPTION} has an auxiliary head; leave it out")
        return self

    def build(self) -> "Classifier":
        """Return the network, with fresh weights.

        Raises:
            ValueError: there is no such backbone, or it has no layer that classifies whole images.
        """
        return Classifier(self)


class Classifier(nn.Module):
    """Classifier: `backbone` pools features, and a linear `head` classifies them.

    Departures from DSTL's released script: all layers that are not frozen are trained, not only the last layer; all of
    the auxiliary head but its last layer is loaded from the published weights, not newly initialized.
    """

    branches = ("backbone", "head")

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone, aux_head=config.aux_head is not False, image_size=config.image_size)
        self.head = Head(self.backbone, config.class_count, config.dropout)
        if config.zero_head:
            nn.init.zeros_(self.head.label.weight)
            nn.init.zeros_(self.head.label.bias)

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        """Predict the class of `frame`; in training also predict it with the auxiliary head, from earlier features.

        Args:
            frame: B3HW, RGB in [0, 1], of a size that the backbone accepts (299x299 for Inception-V3).
            next_frame: ignored.

        Raises:
            ValueError: the frame is too small for Inception-V3.
        """
        features, earlier = self.backbone(frame)
        outputs = Outputs(label_logits=self.head.label(self.head.dropout(features)))
        if earlier is not None and self.head.aux_head is not None:
            outputs["aux_label_logits"] = self.head.aux_head(earlier)
        return outputs


class Head(nn.Module):
    """The layers that classify: `label`, and `aux_head` if there is an auxiliary head."""

    task_layers = ("aux_head.",)

    def __init__(self, backbone: "Backbone", classes: int, dropout: float) -> None:
        super().__init__()
        self.last = backbone.classifiers[0]
        self.backbone_name = backbone.name
        self.dropout = nn.Dropout(dropout)
        self.label = nn.Linear(backbone.width, classes)
        self.aux_head = None if backbone.aux_width is None else nn.Linear(backbone.aux_width, classes)

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the last layers of a published classifier to this head; both must have the same number of classes."""
        aux_head = self.aux_head is not None
        if tf_slim.is_slim(file.tensors):
            return tf_slim.head_layout(self.label, self.last, tf_slim.convert(file.tensors), aux_head=aux_head)
        return torchvision_timm.head_layout(self.label, self.last, file.tensors, aux_head=aux_head)

    def download(self, source: str) -> Layout:
        """Download the last layers of an ImageNet classifier; see :class:`models.pretrained.layouts.Downloadable`."""
        weights = _download(self.backbone_name, source)
        return replace(self.published_layout(WeightsFile(weights.tensors)), description=weights.description)


class Backbone(Normalized):
    """A published network without its last layer, which normalizes frames and returns pooled features.

    Inception-V3 expects inputs (x - 0.5) / 0.5, as in TF-slim; torchvision's `transform_input` converts from ImageNet's
    normalization to it.

    Attributes:
        width: number of pooled features.
        aux_width: number of features of the auxiliary head; None without it.
        classifiers: names of the removed layers in published weights: the last layer, then the auxiliary head's.
    """

    task_layers = ("network.AuxLogits.",)

    def __init__(self, name: str, *, aux_head: bool = True, image_size: Size | None = None) -> None:
        name = backbone_name(name)
        published = name.removeprefix("torchvision:")
        if published == name:
            features = _timm(name, image_size)
        elif image_size is not None:
            raise ValueError(f"image_size: {name} is built for its own size only; leave it out, or use one of timm")
        else:
            features = _torchvision(published, aux_head)
        super().__init__(*features.normalization)
        self.name = name
        self.image_size = image_size
        self.network, self.width, self.aux_width, self.classifiers, self.normalization, self.frame_sizes = features

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return pooled features BD of `frame` (B3HW, RGB in [0, 1]), and in training the auxiliary features, if
        any."""
        if self.name == INCEPTION:
            trained = self.training and self.aux_width is not None
            smallest = SMALLEST_TRAINED if trained else SMALLEST
            if min(frame.shape[-2:]) < smallest:
                what = "with its auxiliary head trains on" if trained else "takes"
                raise ValueError(
                    f"Inception-V3 {what} sides of {smallest} and more, got {frame.shape[-2]}x{frame.shape[-1]}; "
                    "set `crop` and `size` to [299, 299]"
                )
        out = self.network(self.frame_sizes.checked(self.normalized(frame), self.name))
        return (out, None) if isinstance(out, Tensor) else (out[0], out[1])

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published classifier to the backbone; see
        :class:`models.pretrained.layouts.Published`."""
        slim = tf_slim.convert(file.tensors) if tf_slim.is_slim(file.tensors) else None
        layout = torchvision_timm.backbone_layout(
            self.network,
            self.name,
            self._as_published(file.tensors) if slim is None else slim.tensors,
            classifiers=self.classifiers,
            aux_head=self.aux_width is not None,
            normalization=self.normalization,
        )
        return layout if slim is None else tf_slim.in_slims_names(layout, slim)

    def _as_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        is_timms = not self.name.startswith("torchvision:")
        return as_timm_reads(self.name, tensors, self.image_size) if is_timms else tensors

    def download(self, source: str) -> Layout:
        """Download ImageNet weights of torchvision or timm; see :class:`models.pretrained.layouts.Downloadable`."""
        weights = _download(self.name, source)
        return replace(self.published_layout(WeightsFile(weights.tensors)), description=weights.description)


def _download(backbone: str, source: str) -> TorchvisionWeights:
    name = backbone.removeprefix("torchvision:")
    if source == "imagenet" and name == backbone:
        import timm

        tensors = timm.create_model(name, pretrained=True).state_dict()
        return TorchvisionWeights(tensors, None, None, f"timm's weights of {name}")
    return download_torchvision(name, "torchvision" if source == "imagenet" else source)


class _Features(NamedTuple):
    network: nn.Module
    width: int
    aux_width: int | None
    classifiers: tuple[str, ...]
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    frame_sizes: FrameSizes = FrameSizes()


def _torchvision(name: str, aux_head: bool) -> _Features:
    from torchvision import models

    _require_known(name, models.list_models(module=models), "torchvision")
    options: dict[str, bool] = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    if name == "inception_v3":
        options = {"aux_logits": aux_head, "transform_input": False, "init_weights": True}
    network: Any = models.get_model(name, weights=None, **options)
    if name.startswith("squeezenet"):  # SqueezeNet classifies by a convolution followed by pooling
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return _Features(network, 512, None, ("classifier.1",), (IMAGENET_MEAN, IMAGENET_STD))
    last, layer = [(key, module) for key, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    owner, _, key = last.rpartition(".")
    before = list(network.get_submodule(owner).children())[-2:-1]
    setattr(network.get_submodule(owner), key, nn.Identity())
    for module in (*before, getattr(network, "dropout", None)):
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the head has its own dropout
    if name != "inception_v3":
        return _Features(network, layer.in_features, None, (last,), (IMAGENET_MEAN, IMAGENET_STD))
    aux_width = None
    if aux_head:
        aux_width = network.AuxLogits.fc.in_features
        network.AuxLogits.fc = nn.Identity()
    return _Features(network, layer.in_features, aux_width, ("fc", "AuxLogits.fc"), ((0.5,) * 3, (0.5,) * 3))


def _timm(name: str, image_size: Size | None) -> _Features:
    import timm

    _require_known(name.split(".")[0], timm.list_models(), "timm")
    kind = inspected(name)
    network: Any = timm_network(name, image_size=image_size, num_classes=0)
    width = int(getattr(network, "head_hidden_size", None) or network.num_features)
    settings = network.default_cfg or {}
    last = settings.get("classifier", "")
    normalization = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
    sizes = FrameSizes()
    if kind.can_build_for_a_size:  # a convolutional network takes any size above its own smallest one
        found = frame_sizes(network, lambda out, _: out.ndim == 2, native=image_size or kind.native)
        sizes = sizes if found is None else found
    if image_size is not None and sizes.fixed is None:
        raise ValueError(f"image_size: {name} takes frames of any size; leave it out")
    return _Features(network, width, None, (last,) if isinstance(last, str) else tuple(last), normalization, sizes)


def _require_known(name: str, names: list[str], library: str) -> None:
    if name not in names:
        hint = did_you_mean(name, names, "names of torchvision begin with torchvision:")
        raise ValueError(f"no backbone {name!r} in {library}; {hint}")
