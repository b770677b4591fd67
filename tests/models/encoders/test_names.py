"""One network has one name, however it is spelled."""

import pytest
import segmentation_models_pytorch as smp
import timm

from models.classifier import ClassifierConfig
from models.encoders.names import backbone_name, encoder_name
from models.encoders.timm_networks import is_timms
from models.segflow import SegFlowConfig
from mtsp.training.experiment import BranchConfig

LITE0 = ["efficientnet-lite0", "tf_efficientnet_lite0", "tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0"]


@pytest.mark.parametrize("spelled", [*LITE0, "timm/tf_efficientnet_lite0"])
def test_efficientnet_lite_has_one_name_in_all_networks(spelled: str) -> None:
    assert SegFlowConfig(name="segflow", encoder=spelled).encoder == "tf_efficientnet_lite0"
    assert ClassifierConfig(name="classifier", backbone=spelled, classes=2).backbone == "tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("spelled", "name", "from_timm"),
    [
        ("resnet18", "resnet18", False),  # both libraries have it: a plain name is torchvision's, by way of smp
        ("tu-resnet18", "tu-resnet18", True),
        ("resnet18.a1_in1k", "resnet18.a1_in1k", True),  # only timm has tags
        ("tu-resnet18.a1_in1k", "resnet18.a1_in1k", True),
        ("efficientnet_lite0", "efficientnet_lite0", True),  # another network than tf_efficientnet_lite0
        ("efficientnet-b0", "efficientnet-b0", False),
        ("timm/vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m", True),
        ("resnet101_caffe", "resnet101_caffe", None),
    ],
)
def test_an_encoder_has_one_name(spelled: str, name: str, from_timm: bool | None) -> None:
    assert encoder_name(spelled) == name
    assert encoder_name(name) == name
    if from_timm is not None:
        assert is_timms(name) is from_timm


def test_a_prefix_stays_exactly_where_two_libraries_share_a_name() -> None:
    shared = set(smp.encoders.get_encoder_names()) & set(timm.list_models())
    assert {name for name in timm.list_models() if encoder_name(f"tu-{name}") != name} == shared
    assert all(backbone_name(f"tu-{name}") == name for name in shared)


def test_the_package_of_weights_has_its_own_name() -> None:
    assert BranchConfig(weights="package:efficientnet-lite0").weights == "package:efficientnet-lite0"
