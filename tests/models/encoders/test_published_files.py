"""Files of a network's authors, and positions of the published size, into encoders."""

import pytest
import timm
import torch
from torch import Tensor

from models.encoders.encoded import Encoded
from models.pretrained.layouts import LayoutError, WeightsFile

torch.set_num_threads(1)


def loaded(encoded: Encoded, tensors: dict[str, Tensor]) -> list[str]:
    """Load the tensors as a branch would; return what is left out."""
    layout = encoded.published_layout(WeightsFile(tensors))
    encoded.load_state_dict(layout.tensors, strict=False)
    return layout.left_out


def test_dinov2s_own_file_is_read_as_timm_reads_it() -> None:
    """Its authors call registers otherwise, and keep a position of the class token, which timm adds to the token."""
    torch.manual_seed(0)
    own = timm.create_model("vit_small_patch14_reg4_dinov2").state_dict()
    position = torch.rand(1, 1, 384)
    theirs = {key: value for key, value in own.items() if key not in ("reg_token", "pos_embed")}
    theirs["register_tokens"] = own["reg_token"]
    theirs["pos_embed"] = torch.cat([position, own["pos_embed"]], dim=1)
    theirs["mask_token"] = torch.zeros(1, 384)
    encoded = Encoded("vit_small_patch14_reg4_dinov2")
    loaded(encoded, theirs)
    found = encoded.encoder.state_dict()
    assert torch.equal(found["model.reg_token"], own["reg_token"])
    assert torch.equal(found["model.pos_embed"], own["pos_embed"])
    assert torch.equal(found["model.cls_token"], own["cls_token"] + position)
    del theirs["blocks.3.attn.qkv.weight"]
    with pytest.raises(LayoutError, match=r"looks like a vision transformer .*blocks.3.attn.qkv.weight is missing"):
        encoded.published_layout(WeightsFile(theirs))


def test_hieras_positions_are_interpolated_to_the_size_it_is_built_for() -> None:
    """Positions that grow linearly over 56x56 tokens do so over 56x80, too, away from the border."""
    tensors = timm.create_model("hiera_tiny_224").state_dict()
    rows = torch.linspace(-1, 1, 56)[:, None].expand(56, 56)
    tensors["pos_embed"] = torch.zeros_like(tensors["pos_embed"])
    tensors["pos_embed"][0, :, 0] = rows.flatten()
    encoded = Encoded("hiera_tiny_224", image_size=(224, 320))
    left_out = loaded(encoded, tensors)
    assert {text.partition(".")[0] for text in left_out} == {"head"}
    found = encoded.encoder.state_dict()["model.model.pos_embed"][0, :, 0].reshape(56, 80)
    torch.testing.assert_close(found, torch.linspace(-1, 1, 56)[:, None].expand(56, 80), atol=1e-3, rtol=0)
