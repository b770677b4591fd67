"""DELTA and BSS against numbers worked out by hand, and their gradients against finite differences."""

import copy
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.methods.feature_losses import Delta, batch_spectral_shrinkage, channel_attention, feature_distance


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


def test_the_distance_of_feature_maps_is_the_papers_over_size_and_batch() -> None:
    # Two examples, two channels, maps of 1x2. Differences of the first example: (1, 1) and (0, 2), mean squares 1 and
    # 2; of the second: (0, 0) and (2, 0), mean squares 0 and 2. Sums over channels 3 and 2, mean 2.5, half of it 1.25.
    found = torch.tensor([[[[1.0, 1.0]], [[0.0, 2.0]]], [[[0.0, 0.0]], [[2.0, 0.0]]]])
    start = torch.zeros_like(found)
    assert feature_distance({"a": found}, {"a": start}).item() == pytest.approx(1.25)
    # Attention (3/4, 1/4): examples 2 (3/4 * 1 + 1/4 * 2) = 2.5 and 2 (1/4 * 2) = 1, mean 1.75, half of it 0.875.
    attention = {"a": torch.tensor([0.75, 0.25])}
    assert feature_distance({"a": found}, {"a": start}, attention).item() == pytest.approx(0.875)
    # Layers add up; a layer of vectors is one of maps of size 1: 1/2 (3^2 + 4^2) = 12.5.
    vectors = torch.tensor([[3.0, 4.0]])
    both = feature_distance({"a": found, "b": vectors}, {"a": start, "b": 0 * vectors})
    assert both.item() == pytest.approx(13.75)


def test_even_attention_is_none() -> None:
    found, start = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    even = feature_distance({"a": found}, {"a": start}, {"a": torch.full((4,), 0.25)})
    torch.testing.assert_close(feature_distance({"a": found}, {"a": start}), even)


def test_the_distance_does_not_depend_on_the_size_of_the_batch() -> None:
    found = torch.randn(2, 3, 4, 4)
    one = feature_distance({"a": found}, {"a": 0 * found})
    twice = torch.cat([found, found])
    torch.testing.assert_close(feature_distance({"a": twice}, {"a": 0 * twice}), one)


def test_delta_is_zero_with_a_zero_gradient_at_the_start_and_pulls_back_from_elsewhere() -> None:
    model = network()
    delta = Delta(model, reference=copy.deepcopy(model), layers=["0"])
    x = torch.ones(1, 1, 2, 2)
    model(x)
    distance = delta(x)
    distance.backward()
    weight = model[0].weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None
    assert distance.item() == 0
    assert not weight.grad.any()
    # Away by (1, 0) the features of ones differ by 1 in the first channel: 1/2, and the gradient is the difference.
    with torch.no_grad():
        weight[0] += 1
    model(x)
    distance = delta(x)
    distance.backward()
    assert distance.item() == pytest.approx(0.5)
    torch.testing.assert_close(weight.grad.flatten(), torch.tensor([1.0, 0.0]))


def test_the_reference_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    reference = copy.deepcopy(model)
    before = copy.deepcopy(reference.state_dict())
    delta = Delta(model, reference=reference, layers=["1"])
    x = torch.randn(4, 1, 3, 3)
    model(x)
    delta(x).backward()
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert all(weight.grad is None for weight in reference.parameters())


def test_features_of_an_evaluation_in_between_are_not_taken() -> None:
    model = network()
    delta = Delta(model, reference=copy.deepcopy(model), layers=["0"])
    model(torch.ones(1, 1, 2, 2))
    with torch.no_grad():
        model(torch.zeros(1, 1, 2, 2))
    assert delta(torch.ones(1, 1, 2, 2)).item() == 0


def test_a_reference_that_shares_its_weights_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"share the weight 0\.weight"):
        Delta(model, reference=model, layers=["0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["conv"]}, "no module 'conv'"),
        ({"layers": []}, "layers is empty"),
        ({"layers": ["0"], "attention": {"1": torch.ones(2)}}, "attention is given for 1, but the layers are 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Delta(network(), reference=network(), **options)


def test_delta_asks_for_the_models_call_and_for_the_same_inputs() -> None:
    model = network()
    delta = Delta(model, reference=network(), layers=["0"])
    with pytest.raises(ValueError, match="call the model first"):
        delta(torch.ones(1, 1, 2, 2))
    model(torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="call both networks with the same inputs"):
        delta(torch.ones(2, 1, 2, 2))


def test_removed_hooks_keep_nothing() -> None:
    model = network()
    delta = Delta(model, reference=network(), layers=["0"])
    delta.remove()
    model(torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="call the model first"):
        delta(torch.ones(1, 1, 2, 2))


def test_attention_is_on_the_channel_whose_loss_hurts() -> None:
    # The loss is the output's negative: channels 3 and 1 of the features add 3 and 1 to it. Without them it rises by 3
    # and 1, standardized +1 and -1, over 5: softmax(0.2, -0.2) = 1 / (1 + e^-0.4) = 0.59869 and the rest.
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x).sum()

    model = Two().train()
    batches = [torch.tensor([[3.0, 1.0]])]
    attention = channel_attention(model, ["features"], batches, lambda model, batch: -model(batch))
    assert attention["features"].tolist() == pytest.approx([0.59869, 0.40131], abs=1e-5)
    assert model.training
    assert not model.features._forward_hooks
    # Channels that matter alike: even attention, not 0/0.
    even = channel_attention(model, ["features"], [torch.ones(1, 4)], lambda model, batch: -model(batch))
    assert even["features"].tolist() == [0.25] * 4


def test_attention_that_fails_leaves_the_model_in_the_mode_it_was_in() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model[1].eval()
    with pytest.raises(ValueError, match="there is no module 'middle'"):
        channel_attention(model, ["middle"], [torch.ones(1, 1)], lambda model, batch: model(batch).sum())
    assert [module.training for module in model] == [True, False]


def test_shrinkage_is_the_square_of_the_smallest_singular_values() -> None:
    # Singular values 3 and 4 (and none for the third column).
    features = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]], requires_grad=True)
    loss = batch_spectral_shrinkage(features)
    loss.backward()
    assert loss.item() == pytest.approx(9.0)
    torch.testing.assert_close(features.grad, torch.tensor([[6.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert batch_spectral_shrinkage(features, 2).item() == pytest.approx(25.0)
    assert batch_spectral_shrinkage(features.T).item() == pytest.approx(9.0)


def test_shrinkage_agrees_with_the_singular_value_decomposition() -> None:
    features = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(features.double())[-3:].square().sum()
    assert batch_spectral_shrinkage(features, 3).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
def test_the_gradients_are_those_of_finite_differences(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: batch_spectral_shrinkage(f, 2), (features,))
    maps = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    attention = {"a": torch.tensor([0.2, 0.3, 0.5])}
    assert torch.autograd.gradcheck(lambda f: feature_distance({"a": f}, {"a": 0 * f}, attention), (maps,))


def test_equal_and_zero_singular_values_have_a_finite_gradient() -> None:
    # All values equal: with all of them counted the loss is the squared norm, whose gradient is 2 F.
    features = torch.eye(3, requires_grad=True)
    batch_spectral_shrinkage(features, 3).backward()
    torch.testing.assert_close(features.grad, 2 * torch.eye(3))
    # One of three equal ones: a subgradient 2 u u' F, of norm 2.
    features = torch.eye(3, requires_grad=True)
    batch_spectral_shrinkage(features, 1).backward()
    assert features.grad is not None
    assert features.grad.norm().item() == pytest.approx(2.0)
    # Zeros, several of them: the smallest cannot shrink further.
    features = torch.zeros(3, 4, requires_grad=True)
    batch_spectral_shrinkage(features, 2).backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_a_small_value_beside_a_large_one_is_not_lost() -> None:
    # 1000 and 0.01: in float32 the Gram matrix' eigenvalue 1e-4 has an error of about 1e6 * 6e-8 = 0.06.
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0))).Q
    features = turn @ torch.diag(torch.tensor([1000.0, 0.01]))
    exact = torch.linalg.svdvals(features.double())[-1].square().item()
    assert batch_spectral_shrinkage(features).item() == pytest.approx(exact, rel=1e-5)


def test_half_precision_features_are_counted_in_float32() -> None:
    features = torch.tensor([[300.0, 0.0], [0.0, 400.0]], dtype=torch.float16, requires_grad=True)
    loss = batch_spectral_shrinkage(features)  # 90000 is beyond float16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(90000.0)


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [
        ((2, 3, 4), 1, "pool feature maps first"),
        ((2, 3), 3, "k=3, but"),
        ((2, 3), 0, "k=0, but"),
    ],
)
def test_features_without_so_many_singular_values_are_refused(shape: tuple[int, ...], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_spectral_shrinkage(torch.ones(shape), k)


def test_the_example_in_the_docs_runs_and_its_loss_has_all_three_parts() -> None:
    torch.manual_seed(0)
    page = (Path(__file__).resolve().parents[3] / "docs/regularizers.md").read_text()
    code = re.findall(r"```python\n(from mtsp\.methods .*?)```", page, flags=re.DOTALL)
    assert len(code) == 1
    layer, head = nn.Linear(4, 3, bias=False), nn.Linear(3, 2)
    backbone = nn.Sequential(OrderedDict(layer4=layer))
    start, x, labels = layer.weight.detach().clone(), torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    names: dict[str, Any] = {
        "copy": copy, "cross_entropy": nn.functional.cross_entropy, "backbone": backbone, "head": head,
        "loader": [(x, labels)],
    }  # fmt: skip
    moved = code[0].replace("for images", "backbone.layer4.weight.data += 1  # as training would\nfor images")
    exec(moved, names)
    features = x @ (start + 1).T
    task = nn.functional.cross_entropy(head(features), labels)
    distance = 0.5 * (features - x @ start.T).square().sum(1).mean()
    smallest = torch.linalg.svdvals(features)[-1].square()
    torch.testing.assert_close(names["loss"], task + 0.01 * distance + 0.001 * smallest)
    names["loss"].backward()
    assert all(weight.grad is not None for weight in (*backbone.parameters(), *head.parameters()))
