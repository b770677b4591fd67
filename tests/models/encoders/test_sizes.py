"""Frames of any size, and the sizes that a network of one size refuses."""

import math

import pytest
import torch
from torch import nn

from models.classifier import ClassifierConfig
from models.encoders.encoded import Encoded
from mtsp.batches import without_computing

torch.set_num_threads(1)


def maps_of(name: str, height: int, width: int, **options: object) -> list[tuple[int, ...]]:
    """Sizes of the maps, without computing them."""
    encoder = Encoded(name, **options).eval()  # pyright: ignore[reportArgumentType]

    class Encode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return self.encoder.encode(x)

    return [tuple(x.shape[-2:]) for x in without_computing(Encode(), torch.rand(1, 3, height, width))]


def rounded_up(height: int, width: int, strides: tuple[int, ...] = (4, 8, 16, 32)) -> list[tuple[int, ...]]:
    return [(math.ceil(height / s), math.ceil(width / s)) for s in strides]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "convnext_atto",  # non-overlapping patches: 57 rows would give 14, not 15
        "swin_tiny_patch4_window7_224",  # built for 224x224 otherwise
        "mit_b0",
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",  # maps at stride 14 on a grid of 16
    ],
)
@pytest.mark.parametrize("size", [(57, 83), (96, 64)])
def test_maps_have_a_row_for_every_4_8_16_and_32_rows_of_the_frame_rounded_up(name: str, size: tuple[int, int]) -> None:
    assert maps_of(name, *size) == rounded_up(*size)


def test_windows_of_maxvit_are_filled_by_padding_to_multiples_of_its_published_size() -> None:
    assert maps_of("maxvit_rmlp_pico_rw_256", 57, 83) == rounded_up(57, 83)


def test_a_plain_transformer_has_maps_at_stride_8_without_dilation() -> None:
    assert maps_of("vit_tiny_patch16_224", 57, 83, output_stride=8) == rounded_up(57, 83, (4, 8, 8, 8))


def test_an_encoder_of_one_size_names_the_setting_that_builds_it_for_larger_frames() -> None:
    encoder = Encoded("hiera_tiny_224").eval()
    with pytest.raises(ValueError, match=r"at most 224x224, got 100x300; set model.image_size=\[224, 320\]"):
        encoder.encode(torch.rand(1, 3, 100, 300))
    assert maps_of("hiera_tiny_224", 100, 300, image_size=(224, 320)) == rounded_up(100, 300)
    with pytest.raises(ValueError, match=r"cannot be built for image_size \[225, 321\].*; try \[256, 352\]"):
        Encoded("hiera_tiny_224", image_size=(225, 321))


def test_an_encoder_of_any_size_has_no_use_for_one() -> None:
    for name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224"):
        with pytest.raises(ValueError, match=f"encoder {name} takes frames of any size; leave out image_size"):
            Encoded(name, image_size=(64, 64))
    with pytest.raises(ValueError, match="encoder resnet18 has maps at several strides itself; leave out pyramid"):
        Encoded("resnet18", pyramid="dpt")


def test_a_classifier_of_one_size_refuses_others_instead_of_padding_them() -> None:
    network = ClassifierConfig(name="classifier", backbone="levit_128s", classes=2).build().eval()
    assert network(torch.rand(1, 3, 224, 224))["label_logits"].shape == (1, 2)
    with pytest.raises(ValueError, match=r"levit_128s takes frames of 224x224, got 96x96; set `crop` and `size`"):
        network(torch.rand(1, 3, 96, 96))


def test_shapes_are_found_without_changing_statistics_or_reading_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)).train()
    assert without_computing(network, torch.zeros(2, 3, 9, 7)).shape == (2, 4, 4, 3)
    assert not network[1].running_mean.any()  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]

    class LooksAtValues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x + 1)[..., : int(x.sum().item()) + 2]

    looks = LooksAtValues().train()
    assert without_computing(looks, torch.zeros(2, 3, 9, 7)).shape == (2, 3, 9, 2)
    assert not looks.norm.running_mean.any()  # pyright: ignore[reportOptionalMemberAccess]
