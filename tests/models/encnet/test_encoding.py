"""The Encoding layer against its definition, by hand and by the broadcast formula that needs a BNKD tensor."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.encnet.encoding import NEGLIGIBLE, Encoding, encode

torch.set_num_threads(1)


def by_definition(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """E with every residual written out: x is BND, codewords KD."""
    residuals = x[:, :, None] - codewords
    assigned = torch.softmax(scale * residuals.square().sum(3), dim=2)
    return (assigned[..., None] * residuals).sum(1)


def inputs(*, scale: tuple[float, ...] = (-0.5, 0.0, 0.3, -1.0), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Two maps of 5x6 pixels with 7 channels, and 4 codewords."""
    torch.manual_seed(0)
    maps = torch.randn(2, 7, 5, 6, dtype=dtype)
    return [maps, torch.randn(4, 7, dtype=dtype), torch.tensor(scale, dtype=dtype)]


def gradients(outputs: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(outputs, tensors, torch.randn_like(outputs)))


def pixels(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def test_two_pixels_and_two_codewords_worked_out_by_hand() -> None:
    """Pixels 0 and 1, codewords 0 and 1, scale -ln 2: a pixel's own codeword, at distance 0, gets 2/3 of it, the other,
    at distance 1, gets 1/3. E_0 = 2/3 * (0 - 0) + 1/3 * (1 - 0) and E_1 = 1/3 * (0 - 1) + 2/3 * (1 - 1).
    """
    line = torch.tensor([[0.0], [1.0]])
    scale = -torch.log(torch.tensor([2.0, 2.0]))
    assert encode(line[None], line, scale).flatten().tolist() == pytest.approx([1 / 3, -1 / 3])


@pytest.mark.parametrize("channels_last", [False, True])
def test_outputs_and_gradients_are_those_of_the_definition(channels_last: bool) -> None:
    maps, codewords, scale = (tensor.requires_grad_() for tensor in inputs())
    laid_out = maps.contiguous(memory_format=torch.channels_last) if channels_last else maps
    layer = Encoding(7, 4).double()
    with torch.no_grad():
        layer.codewords.copy_(codewords)
        layer.scale.copy_(scale)
    ours = layer(laid_out)
    theirs = by_definition(pixels(maps), codewords, scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    expected = gradients(theirs, [maps, codewords, scale])
    for found, wanted in zip(gradients(ours, [maps, layer.codewords, layer.scale]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [(0.0, 0.0, 0.0, 0.0), (-0.5, 0.0, 0.3, -1.0), (-40.0, -30.0, 0.0, -50.0)])
def test_gradients_are_exact_also_where_a_scale_is_zero(scale: tuple[float, ...]) -> None:
    maps, codewords, scales = (tensor.requires_grad_() for tensor in inputs(scale=scale))
    assert torch.autograd.gradcheck(encode, (pixels(maps[:, :, :2, :3]), codewords, scales))


def test_a_feature_that_is_a_codeword_has_finite_gradients() -> None:
    maps, codewords, scale = (tensor.float() for tensor in inputs())
    maps[:, :, 0, 0] = codewords[2]
    leaves = [tensor.requires_grad_() for tensor in (maps, codewords, scale)]
    assert all(g.isfinite().all() for g in gradients(encode(pixels(maps), codewords, scale), leaves))


def test_twice_the_pixels_give_twice_the_encoding() -> None:
    maps, codewords, scale = inputs()
    twice = encode(pixels(torch.cat([maps, maps], dim=3)), codewords, scale)
    torch.testing.assert_close(twice, 2 * encode(pixels(maps), codewords, scale))


def test_the_order_of_pixels_does_not_matter_and_codewords_keep_theirs() -> None:
    maps, codewords, scale = inputs()
    x, order, words = pixels(maps), torch.randperm(30), torch.tensor([2, 0, 3, 1])
    expected = encode(x, codewords, scale)
    torch.testing.assert_close(encode(x[:, order], codewords, scale), expected)
    torch.testing.assert_close(encode(x, codewords[words], scale[words]), expected[:, words])


def test_images_of_a_batch_do_not_mix() -> None:
    maps, codewords, scale = inputs()
    both = encode(pixels(maps), codewords, scale)
    torch.testing.assert_close(both[1:], encode(pixels(maps[1:]), codewords, scale))


def test_what_is_assigned_sums_to_one_in_every_pixel() -> None:
    """With all scales zero each of the 4 codewords gets a quarter of each of the 30 pixels, wherever these are: moved
    by 2, they add 30 / 4 * 2 to E.
    """
    maps, codewords, scale = inputs(scale=(0.0, 0.0, 0.0, 0.0))
    moved = encode(pixels(maps) + 2.0, codewords, scale) - encode(pixels(maps), codewords, scale)
    torch.testing.assert_close(moved, torch.full_like(moved, 30 / 4 * 2.0))


@pytest.mark.parametrize("offset", [20.0, 1000.0])
def test_a_common_offset_of_features_and_codewords_changes_nothing_in_float32(offset: float) -> None:
    torch.manual_seed(0)
    x, codewords = torch.randn(1, 200, 64) + offset, torch.randn(8, 64) + offset
    scale = torch.linspace(-0.1, -0.01, 8)
    exact = by_definition(x.double(), codewords.double(), scale.double())
    error = (encode(x, codewords, scale) - exact).abs().max()
    assert error < 2e-4 * exact.abs().max()
    # the same expansion without a common center is far off: what is subtracted is offset^2 * 64 large
    distances = x.square().sum(2, keepdim=True) - 2 * x @ codewords.t() + codewords.square().sum(1)
    assigned = torch.softmax(distances * scale, dim=2)
    careless = assigned.transpose(1, 2) @ x - assigned.sum(1)[..., None] * codewords
    assert (careless - exact).abs().max() > 10 * error


def test_half_precision_features_are_encoded_in_float32_under_autocast() -> None:
    layer = Encoding(7, 4)
    half = inputs()[0].bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(half)
    expected = layer(half.detach().float())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), half)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_lies_in_memory_as_the_features(memory_format: torch.memory_format) -> None:
    maps = inputs()[0].float().contiguous(memory_format=memory_format).requires_grad_()
    (gradient,) = torch.autograd.grad(Encoding(7, 4)(maps).sum(), maps)
    assert gradient.stride() == maps.stride()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.element_size())
        return result


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_nothing_larger_than_the_features_is_ever_made(memory_format: torch.memory_format) -> None:
    maps = torch.randn(2, 64, 10, 10).contiguous(memory_format=memory_format).requires_grad_()
    layer = Encoding(64, 16)
    with Largest() as seen:
        layer(maps).sum().backward()
    assert seen.numbers == 2 * 64 * 100  # the residuals would be 16 times that


def test_only_the_features_and_two_numbers_per_pixel_and_codeword_are_kept_for_the_backward_pass() -> None:
    maps = torch.randn(2, 64, 10, 10, requires_grad=True)
    layer = Encoding(64, 16)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        layer(maps)
    assert sum(x.numel() for x in kept) == 2 * 100 * 64 + 2 * (2 * 100 * 16) + 16 * 64 + 16
    assert any(x.untyped_storage().data_ptr() == maps.untyped_storage().data_ptr() for x in kept)  # not a copy


def test_negligible_assignments_are_zero_and_never_denormal() -> None:
    """A squared distance of 90 at scale -1: exp(-90) = 8e-40 is a denormal float32."""
    x = torch.zeros(1, 50, 1)
    codewords = torch.tensor([[0.0], [90.0**0.5]])
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        encode(x, codewords.requires_grad_(), torch.tensor([-1.0, -1.0]))
    assigned = next(tensor for tensor in kept if tensor.shape == (1, 50, 2) and tensor.max() == 1)
    assert torch.equal(assigned, torch.tensor([1.0, 0.0]).expand(1, 50, 2))
    assert torch.softmax(torch.tensor([0.0, -90.0]), 0)[1] > 0
    assert torch.finfo(torch.float32).tiny < NEGLIGIBLE


def test_frozen_codewords_get_no_gradient_and_fixed_features_cost_none() -> None:
    maps = inputs()[0].float()
    layer = Encoding(7, 4)
    layer.codewords.requires_grad_(False)
    layer(maps).sum().backward()
    assert layer.codewords.grad is None
    assert maps.grad is None
    assert layer.scale.grad is not None


def test_it_compiles_into_one_graph_with_the_same_gradients() -> None:
    maps = inputs()[0].float().requires_grad_()
    layer = Encoding(7, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    leaves = [maps, layer.codewords, layer.scale]
    expected, found = layer(maps), compiled(maps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, leaves), gradients(expected, leaves))


def test_gradients_of_gradients_are_refused_and_not_wrong() -> None:
    maps = inputs()[0].requires_grad_()
    (first,) = torch.autograd.grad(Encoding(7, 4).double()(maps).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_codewords_and_scales_start_as_published() -> None:
    layer = Encoding(512, 32)
    assert layer.codewords.shape == (32, 512)
    assert 0.0077 < layer.codewords.abs().max().item() <= 0.0078125  # 1 / sqrt(32 * 512) = 1 / 128
    assert -1 < layer.scale.min().item() < layer.scale.max().item() < 0
