"""The program of docs/encoders.md on small encoders: published files, exact anchors, a step in fp32 and bf16."""

from pathlib import Path

import pytest

from tests.models.encoders.table import row, table


@pytest.mark.parametrize(
    ("name", "anchors"),
    [
        ("resnet18", 20),  # 1 + 4 * 4 convolutions, 3 shortcuts
        ("mobilenetv3_small_050", 52),
        ("test_convnext", 31),  # the stem, 3 strided convolutions, 9 blocks of 3
        ("test_vit", 25),  # the patches' convolution; 6 blocks of qkv, projection and two layers
    ],
)
def test_a_small_encoder_works_in_all_three_networks(name: str, anchors: int, tmp_path: Path) -> None:
    found = row(name, tmp_path)
    assert (found.segflow, found.encnet, found.classifier, found.sizes) == ("yes", "yes", "yes", "any")
    assert found.anchors == anchors


def test_a_refusal_names_another_encoder_and_is_told_below_the_table(tmp_path: Path) -> None:
    found = row("levit_128s", tmp_path)
    assert "use resnet50, inceptionv4, convnext_tiny" in found.segflow
    lines = table([found]).splitlines()
    assert lines[2] == "| `levit_128s` | no (1) | no (1) | 224x224 | - | - | - |"
    assert lines[4] == f"1. {found.segflow}"
