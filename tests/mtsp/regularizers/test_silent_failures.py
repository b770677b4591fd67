"""The silent failures of public attempts: each naive version fails a check that ours passes, or is an error here."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mtsp.anchors import capture, penalized
from mtsp.regularizers import L2SP

ALPHA = 0.5


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()


def data_loss(model: nn.Module) -> Tensor:
    return model(torch.ones(2, 3, dtype=torch.float64)).square().sum()


Naive = Callable[[nn.Module], Callable[[], Tensor]]
"""Takes the model as loaded, gives the penalty that a training loop adds to its loss."""


def pulls(penalty: Naive | None) -> Tensor:
    """What is added to the gradient of the first layer, 1 away from its anchor, after another step has gone before."""
    found = []
    for active in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        term = penalty(model) if penalty is not None else lambda: torch.zeros(())
        if penalty is None and active:
            L2SP(model, anchors=capture(model, ["0.weight"]), alpha=ALPHA, beta=0.0).attach(optimizer)
        for step in range(2):
            optimizer.zero_grad()
            (data_loss(model) + (term() if active else 0)).backward()
            optimizer.step()
            if step == 0:
                with torch.no_grad():
                    model.get_parameter("0.weight").add_(1.0)
        gradient = model.get_parameter("0.weight").grad
        assert gradient is not None
        found.append(gradient.clone())
    return found[1] - found[0]


def exact(pull: Tensor) -> bool:
    return torch.allclose(pull, torch.full_like(pull, ALPHA), rtol=0, atol=1e-12)


def test_a_regularizer_that_is_never_attached_is_noticed_at_the_first_step() -> None:
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    forgotten = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=ALPHA, beta=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.optim.SGD(other.parameters(), lr=0.0).step()  # of another network: nothing to say
    with pytest.warns(UserWarning, match="L2SP was built but never attached: .* that SGD moves") as told:
        optimizer.step()
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # it is said once
    del forgotten


def test_a_regularizer_that_is_attached_or_gone_is_not_missed() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    L2SP(model, anchors=capture(model, ["0.weight"]), alpha=ALPHA, beta=0.0)  # built for its table, say
    regularizer = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=ALPHA, beta=0.0)
    regularizer.attach(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        regularizer.detach()
        optimizer.step()  # as asked


def aliased(model: nn.Module) -> Callable[[], Tensor]:
    anchor = model.get_parameter("0.weight").detach()  # no clone: it follows the weight
    return lambda: ALPHA / 2 * (model.get_parameter("0.weight") - anchor).square().sum()


def detached(model: nn.Module) -> Callable[[], Tensor]:
    anchor = model.get_parameter("0.weight").detach().clone()
    return lambda: ALPHA / 2 * (model.state_dict()["0.weight"] - anchor).square().sum()  # state_dict() detaches


def norm(model: nn.Module) -> Callable[[], Tensor]:
    anchor = model.get_parameter("0.weight").detach().clone()
    return lambda: ALPHA / 2 * (model.get_parameter("0.weight") - anchor).norm()  # not its square


def captured_late(model: nn.Module) -> Callable[[], Tensor]:
    def term() -> Tensor:
        anchor = model.get_parameter("0.weight").detach().clone()  # at the step, not at the start
        return ALPHA / 2 * (model.get_parameter("0.weight") - anchor).square().sum()

    return term


def right(model: nn.Module) -> Callable[[], Tensor]:
    anchor = model.get_parameter("0.weight").detach().clone()
    return lambda: ALPHA / 2 * (model.get_parameter("0.weight") - anchor).square().sum()


@pytest.mark.parametrize("naive", [aliased, detached, norm, captured_late])
def test_the_gradient_is_alpha_times_the_distance_where_naive_terms_are_not(naive: Naive) -> None:
    assert not exact(pulls(naive))
    assert exact(pulls(right))
    assert exact(pulls(None))


def test_the_root_of_a_sum_has_no_gradient_at_the_start_and_ours_is_zero() -> None:
    model = network()
    weight = model.get_parameter("0.weight")
    anchor = weight.detach().clone()
    (weight - anchor).square().sum().sqrt().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isnan().all())
    assert L2SP(model, anchors={"0.weight": anchor}, alpha=1.0, beta=0.0).penalty() == 0.0


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_anchors_captured_from_trained_weights_are_refused(make: Any) -> None:
    """As a script does that resumes first and captures then: its penalty would start again from zero."""
    model = network()
    optimizer = make(model.parameters())
    pretrained = capture(model, ["0.weight"])
    data_loss(model).backward()
    optimizer.step()
    late = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=0.1, beta=0.0)
    with pytest.raises(ValueError, match="captured too late"):
        late.attach(optimizer)
    L2SP(model, anchors=pretrained, alpha=0.1, beta=0.0).attach(optimizer)


def test_a_copy_of_the_optimizer_without_the_hook_is_refused() -> None:
    """copy.deepcopy drops an optimizer's hooks without a word."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: None)
    assert not copy.deepcopy(optimizer)._optimizer_step_pre_hooks
    regularizer = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=ALPHA, beta=0.0)
    regularizer.attach(optimizer)
    with pytest.raises(ValueError, match="a copy of this optimizer would not be regularized"):
        copy.deepcopy(optimizer)
    regularizer.detach()
    copy.deepcopy(optimizer)


def test_a_head_is_pulled_to_zero_and_never_to_its_random_start() -> None:
    """With all current weights as anchors, the naive capture, the head would be anchored to noise."""
    model = network()
    naive = capture(model, [name for name, _ in model.named_parameters()])
    assert "2.weight" in naive
    pulled = L2SP(model, anchors=capture(model, ["0.weight", "0.bias"]), alpha=ALPHA, beta=0.25).targets
    assert pulled["2.weight"].anchor is None
    assert not pulled["2.weight"].shared
    assert pulled["2.weight"].strength == 0.25


def test_biases_and_normalization_layers_are_free_unless_asked_for() -> None:
    model = network()
    assert penalized(model) == ["0.weight", "2.weight"]
    every = L2SP(model, anchors={"0.bias": torch.zeros(4)}, alpha=1.0, beta=1.0, every=True)
    assert list(every.targets) == [name for name, _ in model.named_parameters()]


def test_a_head_of_another_size_under_the_same_name_is_an_error() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"has shape \(7, 4\), the weight \(2, 4\); leave it out"):
        L2SP(model, anchors={"2.weight": torch.zeros(7, 4)}, alpha=1.0, beta=1.0)


def test_an_average_of_the_weights_is_not_pulled() -> None:
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        for parameter in (*model.parameters(), *average.parameters()):
            parameter.add_(1.0)
    before = copy.deepcopy(average.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2SP(model, anchors={"0.weight": torch.zeros(4, 3)}, alpha=1.0, beta=1.0).attach(optimizer)
    data_loss(model).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())


def test_what_is_not_a_torch_optimizer_is_refused() -> None:
    class Own:
        """With groups and a step, but no hooks."""

        param_groups: ClassVar[list[Any]] = []

    model = network()
    regularizer = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=ALPHA, beta=0.0)
    with pytest.raises(ValueError, match=r"Own is not a torch\.optim\.Optimizer, so its step cannot be hooked"):
        regularizer.attach(Own())


def test_a_sparse_gradient_is_refused() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(5, 2, sparse=True), "head": nn.Linear(2, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2SP(model, anchors={"table.weight": torch.zeros(5, 2)}, alpha=1.0, beta=0.0, every=True).attach(optimizer)
    model["head"](model["table"](torch.tensor([1]))).sum().backward()
    with pytest.raises(ValueError, match=r"the gradient of table\.weight is sparse"):
        optimizer.step()


def test_sixteen_bits_swallow_a_small_pull_and_that_is_said() -> None:
    """Adding 1e-3 of the way to a bfloat16 weight of 1 changes nothing, however often."""
    weight, anchor = torch.ones(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(100):
        weight.lerp_(anchor, 1e-3)
    assert weight.item() == 1.0
    model = network().bfloat16()
    regularizer = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=0.1, beta=0.0)
    with pytest.warns(UserWarning, match=r"1 weights, the first 0\.weight, are kept in 16 bits"):
        regularizer.attach(torch.optim.Adam(model.parameters(), lr=1e-2))


def test_adapters_of_lora_are_left_alone_and_the_layer_inside_is_found() -> None:
    """peft wraps a linear layer in one that holds it as `base_layer`, beside `lora_A` and `lora_B`."""
    wrapped = nn.Module()
    wrapped.base_layer = nn.Linear(3, 4)
    wrapped.lora_A = nn.ModuleDict({"default": nn.Linear(3, 1, bias=False)})
    model = nn.ModuleDict({"layer": wrapped, "head": nn.Linear(4, 2)})
    pulled = L2SP(model, anchors={"layer.weight": torch.zeros(4, 3)}, alpha=1.0, beta=0.5).targets
    assert {name: pull.shared for name, pull in pulled.items()} == {"layer.weight": True, "head.weight": False}


def test_the_linear_layers_inside_attention_are_pulled() -> None:
    """A ViT of torchvision keeps a quarter of its weights there."""
    attention = nn.MultiheadAttention(4, 2)
    assert penalized(attention) == ["in_proj_weight", "out_proj.weight"]


def test_flattened_weights_are_refused() -> None:
    """FSDP1 replaces weights by pieces of one flat tensor, under the same names."""
    model = network()
    regularizer = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=1.0, beta=0.0)
    model[0].weight = nn.Parameter(torch.zeros(5))
    with pytest.raises(ValueError, match=r"0\.weight now has shape \(5,\), its anchor has \(4, 3\): FSDP1 flattens"):
        regularizer.attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_an_optimizer_of_the_head_alone_is_noticed() -> None:
    model = network()
    pull = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=0.1, beta=0.1)
    with pytest.warns(UserWarning, match="none of the 1 pretrained weights that may train"):
        pull.attach(torch.optim.SGD(model[2].parameters(), lr=0.1))


def test_an_optimizer_of_all_weights_and_a_frozen_backbone_are_not_noticed() -> None:
    for frozen in (False, True):
        model = network()
        model[0].requires_grad_(not frozen)
        weights = model[2].parameters() if frozen else model.parameters()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pull = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=0.1, beta=0.1)
            pull.attach(torch.optim.SGD(weights, lr=0.1))
