"""A classifier of whole images: DSTL's Inception-V3 with its auxiliary head, or any backbone of torchvision or timm.

Cui, Song, Sun, Howard and Belongie, "Large Scale Fine-Grained Categorization and Domain-Specific Transfer Learning"
(CVPR 2018), fine-tune the Inception-V3 of Szegedy et al., "Rethinking the Inception Architecture" (CVPR 2016). The file
bears the paper's name, as those of the other two networks; DSTL's are the default backbone and its auxiliary head. What
else DSTL is, a choice of source classes, is no network: see `mtsp/transfer`.
"""

import difflib
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.encoders.build import IMAGENET_MEAN, IMAGENET_STD
from mtsp.config import Config
from mtsp.types import Outputs

INCEPTION = "torchvision:inception_v3"
SMALLEST, SMALLEST_TRAINED = 75, 299
"""Sides that Inception-V3 takes; its auxiliary head, which only learns, needs the larger one."""


class ClassifierConfig(Config):
    """What :class:`Classifier` can be told."""

    name: Literal["classifier"]
    backbone: str = INCEPTION
    """A network of timm (`tf_efficientnet_lite0`, `resnet50`), or `torchvision:` and one of torchvision's."""
    classes: int = Field(gt=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of the pooled features, before the head. Slim's Inception-V3, which DSTL trained, keeps 0.8 of them."""
    aux_head: bool | None = None
    """Whether Inception-V3 has its auxiliary head; null: yes. No other backbone has one."""

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
    """Pooled features of `backbone`, and a linear `head` on them.

    Departures from DSTL: its released script trains the last layer alone, this all that is not frozen; and it begins
    with fresh layers in the auxiliary head too, where this takes all but the last from the published weights.
    """

    branches = ("backbone", "head")

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone, aux_head=config.aux_head is not False)
        self.head = Head(self.backbone, config.classes, config.dropout)

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        """Predict the class of `frame`, and in training, with the auxiliary head, once more from earlier features.

        Args:
            frame: B3HW, RGB in [0, 1]; its size is the backbone's affair (299x299 for Inception-V3).
            next_frame: not looked at.

        Raises:
            ValueError: Inception-V3 cannot take so small a frame.
        """
        features, earlier = self.backbone(frame)
        outputs = Outputs(label_logits=self.head.label(self.head.dropout(features)))
        if earlier is not None and self.head.aux_head is not None:
            outputs["aux_label_logits"] = self.head.aux_head(earlier)
        return outputs


class Head(nn.Module):
    """The last layer of each output: `label`, and with an auxiliary head `aux_head`."""

    task_layers = ("aux_head.",)  # may be missing from, or unused in, a file that mtsp saved

    def __init__(self, backbone: "Backbone", classes: int, dropout: float) -> None:
        super().__init__()
        self.published = backbone.classifiers
        self.dropout = nn.Dropout(dropout)
        self.label = nn.Linear(backbone.width, classes)
        earlier = backbone.aux_width
        self.aux_head = None if earlier is None else nn.Linear(earlier, classes)


class Backbone(nn.Module):
    """A published network without its last layer: normalizes frames and gives pooled features.

    The normalization belongs to the weights, so `mean` and `std` (RGB, of values in [0, 1]) are buffers, travel with a
    checkpoint, and are set by :func:`models.pretrained.load.load_branch`. Inception-V3's is (x - 0.5) / 0.5 everywhere:
    what TensorFlow's slim does, and what torchvision's `transform_input` makes of ImageNet's mean and deviation.

    Attributes:
        width: number of pooled features.
        aux_width: features of the auxiliary head, or None.
        classifiers: names that the layers left out have in published weights: the last one, then the auxiliary one.
    """

    task_layers = ("network.AuxLogits.",)
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, aux_head: bool = True) -> None:
        super().__init__()
        self.name = name
        self.aux_width: int | None = None
        if name == INCEPTION:
            self._inception(aux_head)
        elif name.startswith("torchvision:"):
            self._torchvision(name.removeprefix("torchvision:"))
        else:
            self._timm(name)
        self.register_buffer("mean", torch.tensor(self.normalization[0]))
        self.register_buffer("std", torch.tensor(self.normalization[1]))

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return pooled features BD of `frame` (B3HW, RGB in [0, 1]), and in training the auxiliary head's, if any."""
        if self.name == INCEPTION:
            trained = self.training and self.aux_width is not None
            smallest = SMALLEST_TRAINED if trained else SMALLEST
            if min(frame.shape[-2:]) < smallest:
                what = "with its auxiliary head trains on" if trained else "takes"
                raise ValueError(
                    f"Inception-V3 {what} sides of {smallest} and more, got {frame.shape[-2]}x{frame.shape[-1]}; "
                    "set `crop` and `size` to [299, 299]"
                )
        normalized = (frame - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        out = self.network(normalized)
        return (out, None) if isinstance(out, Tensor) else (out[0], out[1])

    def published(self) -> dict[str, Tensor]:
        """Return the ImageNet weights that torchvision or timm publish for this network, by a download."""
        if self.name.startswith("torchvision:"):
            from torchvision.models import get_model

            return get_model(self.name.removeprefix("torchvision:"), weights="DEFAULT").state_dict()
        import timm

        return timm.create_model(self.name, pretrained=True).state_dict()

    def _inception(self, aux_head: bool) -> None:
        from torchvision.models import inception_v3

        network = inception_v3(weights=None, aux_logits=aux_head, transform_input=False, init_weights=True)
        self.width = network.fc.in_features
        network.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        network.dropout.p = 0.0  # the head has its own
        if aux_head:
            assert network.AuxLogits is not None
            last = cast(nn.Linear, network.AuxLogits.fc)
            self.aux_width = last.in_features
            network.AuxLogits.fc = nn.Identity()
        self.network, self.classifiers = network, ("fc", "AuxLogits.fc")
        self.normalization = (0.5,) * 3, (0.5,) * 3

    def _torchvision(self, name: str) -> None:
        from torchvision import models

        _known(name, models.list_models(module=models), "torchvision")
        options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
        network = models.get_model(name, weights=None, **options)
        if name.startswith("squeezenet"):  # it classifies with a convolution, and pools afterwards
            self.width, last = 512, "classifier.1"
            network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        else:
            linear = [(key, module) for key, module in network.named_modules() if isinstance(module, nn.Linear)]
            last, layer = linear[-1]
            self.width = layer.in_features
            owner, _, key = last.rpartition(".")
            before = list(network.get_submodule(owner).children())[-2:-1]
            setattr(network.get_submodule(owner), key, nn.Identity())
            for module in (*before, getattr(network, "dropout", None)):
                if isinstance(module, nn.Dropout):
                    module.p = 0.0  # the head has its own
        self.network, self.classifiers = network, (last,)
        self.normalization = IMAGENET_MEAN, IMAGENET_STD

    def _timm(self, name: str) -> None:
        import timm

        _known(name.split(".")[0], timm.list_models(), "timm")
        network: Any = timm.create_model(name, pretrained=False, num_classes=0)
        self.width = int(getattr(network, "head_hidden_size", None) or network.num_features)
        settings = network.default_cfg or {}
        last = settings.get("classifier", "")
        self.network, self.classifiers = network, (last,) if isinstance(last, str) else tuple(last)
        self.normalization = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))


def _known(name: str, names: list[str], library: str) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "torchvision's begin with torchvision:"
    raise ValueError(f"no backbone {name!r} in {library}; {hint}")
