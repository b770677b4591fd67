"""What is anchored, and how anchors are told apart."""

import pytest
import torch
from torch import nn

from mtsp.anchors import capture, fingerprint, penalized, plain_name


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 1), nn.LayerNorm(1))


def test_only_weights_of_convolutions_and_linear_layers_are_penalized() -> None:
    assert penalized(network()) == ["0.weight", "3.weight"]


def test_wrappers_do_not_change_a_name() -> None:
    assert plain_name("module._orig_mod.layer.module.weight") == "layer.module.weight"
    assert plain_name("_fsdp_wrapped_module.a._fsdp_wrapped_module.b") == "a.b"


def test_an_anchor_does_not_follow_its_weight() -> None:
    model = network()
    anchors = capture(model, ["0.weight", "0.bias", "1.weight", "1.running_mean"])
    before = anchors["0.weight"].clone()
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)
    assert list(anchors) == ["0.weight"]
    torch.testing.assert_close(anchors["0.weight"], before, rtol=0, atol=0)


def test_pretrained_tensors_without_a_weight_to_anchor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the 2 pretrained tensors, the first '0\.bias'"):
        capture(network(), ["0.bias", "1.weight"])


def test_the_fingerprint_knows_names_values_and_dtypes() -> None:
    one = {"a": torch.ones(2), "b": torch.zeros(1)}
    assert fingerprint(one) == fingerprint({"b": torch.zeros(1), "a": torch.ones(2)})
    others = [
        {"a": torch.ones(2), "c": torch.zeros(1)},
        {"a": torch.ones(2), "b": torch.full((1,), 1e-30)},
        {"a": torch.ones(2).double(), "b": torch.zeros(1)},
        {"a": torch.ones(1, 2), "b": torch.zeros(1)},
    ]
    assert len({fingerprint(other) for other in [one, *others]}) == 5


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 1)), r"3\.parametrizations\.weight\.original0"),
        (nn.LSTM(4, 1), r"3\.weight_ih_l0"),
    ],
)
def test_pretrained_matrices_that_stay_free_are_told(layer: nn.Module, name: str) -> None:
    model = network()
    model[3] = layer
    with pytest.warns(
        UserWarning, match=rf"2 matrices of recurrent or reparametrized layers, the first {name}, are not"
    ):
        anchors = capture(model, [name for name, _ in model.named_parameters()])
    assert list(anchors) == ["0.weight"]
