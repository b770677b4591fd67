"""Maps of plain vision transformers: the transformer's own tokens, in place, whatever the image's size."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from models.encoders.encoded import Encoded
from models.encoders.plain_vit import PlainViT, four_depths
from models.encoders.pyramids import DepthPyramid, SimplePyramid

torch.set_num_threads(1)


def encoder(name: str, **options: object) -> PlainViT:
    torch.manual_seed(0)
    found = Encoded(name, **options).eval().encoder  # pyright: ignore[reportArgumentType]
    assert isinstance(found, PlainViT)
    return found


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "test_vit"])
def test_the_map_of_patches_of_16_is_the_transformers_own_tokens(name: str) -> None:
    ours = encoder(name)
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(ours.model.state_dict(), strict=False)
    image = torch.rand(2, 3, 64, 96)
    tokens: Tensor = theirs.forward_features(image)  # pyright: ignore[reportCallIssue]
    patches = tokens[:, tokens.shape[1] - 4 * 6 :]  # after class and distillation tokens
    expected = patches.transpose(1, 2).reshape(2, -1, 4, 6)
    torch.testing.assert_close(ours(image)[-1], expected)


def test_maps_of_patches_of_14_lie_where_they_were_in_the_image() -> None:
    """The center of cell i of a map at stride 16 is pixel 16 i + 7.5, which is (16 i + 8) / 14 - 0.5 in tokens."""
    ours = encoder("vit_small_patch14_dinov2")
    image = torch.rand(1, 3, 112, 224)  # 8x16 patches, and 7x14 cells
    tokens = ours.model.forward_intermediates(image, indices=[11], norm=True, intermediates_only=True)[0]
    rows = (16 * torch.arange(7) + 8) / 14 - 0.5
    below = rows.floor().clamp(0, 6).long()
    weight = (rows - below)[:, None]
    expected_rows = tokens[0, :, below] * (1 - weight) + tokens[0, :, below + 1] * weight
    columns = (16 * torch.arange(14) + 8) / 14 - 0.5
    left = columns.floor().clamp(0, 14).long()
    weight = columns - left
    expected = expected_rows[..., left] * (1 - weight) + expected_rows[..., left + 1] * weight
    torch.testing.assert_close(ours(image)[-1][0], expected, atol=1e-5, rtol=1e-5)


def test_beit_interpolates_its_relative_positions_to_the_image() -> None:
    """timm resizes the table itself; here the published table stays the parameter."""
    torch.manual_seed(0)
    small: Any = {"num_classes": 0, "depth": 2, "embed_dim": 48, "num_heads": 3}
    ours = PlainViT(timm.create_model("beit_base_patch16_224", **small), 16, [1]).eval()
    table = ours.model.blocks[0].attn.relative_position_bias_table
    for block in ours.model.blocks:
        torch.nn.init.normal_(block.attn.relative_position_bias_table)
    theirs = timm.create_model("beit_base_patch16_224", **small).eval()
    theirs.load_state_dict(ours.model.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 96)
    theirs.set_input_size((64, 96))  # pyright: ignore[reportCallIssue]
    expected = theirs.forward_intermediates(image, indices=[1], norm=True, intermediates_only=True)[0]  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(ours(image)[-1], expected, atol=1e-4, rtol=1e-4)
    assert ours.model.blocks[0].attn.relative_position_bias_table is table
    native = torch.rand(1, 3, 224, 224)
    theirs.set_input_size((224, 224))  # pyright: ignore[reportCallIssue]
    theirs.load_state_dict(ours.model.state_dict(), strict=False)
    expected = theirs.forward_intermediates(native, indices=[1], norm=True, intermediates_only=True)[0]  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(ours(native)[-1], expected, atol=1e-4, rtol=1e-4)


def test_dpt_reads_the_ends_of_four_quarters() -> None:
    assert four_depths(12) == [2, 5, 8, 11]
    assert four_depths(24) == [5, 11, 17, 23]
    ours = encoder("vit_tiny_patch16_224", pyramid="dpt")
    image = torch.rand(1, 3, 32, 48)
    expected = ours.model.forward_intermediates(image, indices=[2, 5, 8, 11], norm=True, intermediates_only=True)
    for found, wanted in zip(ours(image), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", [SimplePyramid, DepthPyramid])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_pyramid_has_the_strides_asked_for(
    kind: type[SimplePyramid] | type[DepthPyramid], stride: int, output_stride: int
) -> None:
    maps = [torch.rand(1, 12, 64 // stride, 128 // stride) for _ in range(4)]
    found = kind([12] * 4, stride, output_stride)(maps)
    assert [(x.shape[1], *x.shape[2:]) for x in found] == [
        (256, 64 // s, 128 // s) for s in (min(level, output_stride) for level in (4, 8, 16, 32))
    ]


def test_every_level_of_the_simple_pyramid_is_made_from_the_last_map() -> None:
    pyramid = SimplePyramid([12] * 4, 16, 32)
    maps = [torch.rand(1, 12, 4, 4) for _ in range(4)]
    others = [*(torch.rand(1, 12, 4, 4) for _ in range(3)), maps[3]]
    for one, other in zip(pyramid(maps), pyramid(others), strict=True):
        assert torch.equal(one, other)


def test_all_weights_of_the_pyramid_and_the_transformer_learn() -> None:
    encoded = Encoded("test_vit")
    sum(x.mean() for x in encoded.encode(torch.rand(1, 3, 50, 70))).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert [name for name, weight in encoded.named_parameters() if weight.grad is None] == []


def test_an_image_of_another_size_interpolates_positions() -> None:
    """Half of the published size sees the mean of each 2x2 positions (antialiased bicubic, so only roughly)."""
    ours = encoder("vit_tiny_patch16_224")
    rows = torch.linspace(-1, 1, 14)
    grid = torch.stack([rows[:, None].expand(14, 14), rows[None].expand(14, 14)])
    position = torch.zeros(1, 197, 192)
    position[0, 1:, :2] = grid.flatten(1).T
    with torch.no_grad():
        ours.model.pos_embed.copy_(position)
        for parameter in ours.model.patch_embed.parameters():
            parameter.zero_()
    seen: list[Tensor] = []
    ours.model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ours(torch.rand(1, 3, 112, 112))
    half = interpolate(grid[None], size=(7, 7), mode="area")[0]
    found = seen[0][0, 1:, :2].T.reshape(2, 7, 7)
    torch.testing.assert_close(found[:, 1:-1, 1:-1], half[:, 1:-1, 1:-1], atol=0.02, rtol=0)
