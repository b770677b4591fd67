"""What would be pulled twice, not at all, or wrongly, without a word: refused, or done right."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mtsp.anchors import capture, penalized, plain_name
from mtsp.regularizers import L1SP, L2SP, MARS, SPD, CautiousL2SP, L2SPFisher, Pace

SGD = torch.optim.SGD


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def l2sp(model: nn.Module, **options: Any) -> L2SP:
    return L2SP(model, **{"anchors": capture(model, ["0.weight"]), "alpha": 1.0, "beta": 1.0, **options})


def fill_gradients(model: nn.Module, value: float = 0.0) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_a_group_that_is_added_later_gets_the_number_of_its_pace() -> None:
    """lr 0.5 and a pace of 100 steps: beta = 1 / (0.5 * 100) = 0.02, so that a step leaves 0.99 of the weight."""
    model = network()
    optimizer = SGD(model[0].parameters(), lr=0.1)
    regularizer = l2sp(model, beta=Pace(100))
    regularizer.attach(optimizer)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.5})
    before = model.get_parameter("2.weight").detach().clone()
    fill_gradients(model)
    optimizer.step()
    assert regularizer.targets["2.weight"].strength == pytest.approx(0.02)
    torch.testing.assert_close(model.get_parameter("2.weight").detach(), 0.99 * before)


@pytest.mark.parametrize("how", ["add_param_group", "load_state_dict", "assignment"])
def test_a_weight_decay_that_comes_later_is_refused_before_the_step(how: str) -> None:
    model = network()
    optimizer = SGD(model[0].parameters(), lr=0.1)
    l2sp(model).attach(optimizer)
    if how == "add_param_group":
        optimizer.add_param_group({"params": model[2].parameters(), "weight_decay": 1.0})
    elif how == "load_state_dict":
        optimizer.load_state_dict(SGD(model[0].parameters(), lr=0.1, weight_decay=1.0).state_dict())
    else:
        optimizer.param_groups[0]["weight_decay"] = 1.0
    fill_gradients(model)
    with pytest.raises(ValueError, match=r"weight_decay=1\.0 and this regularizer would both pull"):
        optimizer.step()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_what_hooks_write_into_the_groups_of_a_fused_sgd_stays(kind: str, first: bool) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.8, fused=True)
    regularizer = l2sp(model)
    if not first:
        regularizer.attach(optimizer)

    def halve(optimizer: Any, *_: Any) -> None:
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0]
        optimizer.param_groups[0]["lr"] *= 0.5

    getattr(optimizer, f"register_step_{kind}_hook")(halve)
    if first:
        regularizer.attach(optimizer)
    for _ in range(3):
        fill_gradients(model)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # 0.8 / 2^3


def test_after_an_exception_in_the_fused_kernel_the_groups_are_the_optimizers_own() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, fused=True, momentum=0.9)
    own = optimizer.param_groups
    l2sp(model).attach(optimizer)
    fill_gradients(model)
    optimizer.state[model.get_parameter("0.weight")]["momentum_buffer"] = "not a tensor"
    with pytest.raises(TypeError):
        optimizer.step()
    assert optimizer.param_groups is own


def test_under_lbfgs_the_pull_is_part_of_the_objective_or_refused() -> None:
    """The minimum of (w - 3)^2 / 2 + (w - 1)^2 / 2 is 2."""
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (model.weight - 3).square().sum()
        loss.backward()
        return loss

    one = torch.ones(1, 1)
    for wrong in (
        L2SP(model, anchors={"weight": one}, alpha=1.0, beta=0.0, mode="decoupled"),
        L2SP(model, anchors={"weight": one}, alpha=1.0, beta=0.0, mode="proximal"),
        SPD(model, anchors={"weight": one}, alpha=1.0, beta=0.0),
    ):
        with pytest.raises(ValueError, match="LBFGS moves many times in a step"):
            wrong.attach(optimizer)
    L2SP(model, anchors={"weight": one}, alpha=1.0, beta=0.0).attach(optimizer)
    for _ in range(3):
        optimizer.step(closure)
    assert model.weight.item() == pytest.approx(2.0)


def test_a_weight_in_two_regularized_optimizers_is_refused_until_one_is_given_up() -> None:
    model = network()
    first, second = SGD(model.parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)
    regularizer, other = l2sp(model), l2sp(model)
    regularizer.attach(first)
    for one in (regularizer, other):
        with pytest.raises(ValueError, match=r"2\.weight is pulled in the steps of another optimizer already"):
            one.attach(second)
    regularizer.detach()
    other.attach(second)
    del one, other, second  # as when a cell of a notebook runs again
    regularizer.attach(first)


def test_no_anchors_are_said_by_none() -> None:
    model = network()
    with pytest.raises(ValueError, match="anchors is empty, so no weight would be pulled to a start; give None"):
        l2sp(model, anchors={})
    assert not any(pull.shared for pull in l2sp(model, anchors=None).targets.values())
    assert not any(pull.shared for pull in l2sp(model, anchors={}, zero=True).targets.values())


def test_capture_knows_wrapped_names_and_refuses_unknown_ones() -> None:
    model = network()
    assert list(capture(model, ["module._orig_mod.0.weight", "0.bias"])) == ["0.weight"]
    with pytest.raises(ValueError, match=r"1 of 2 names are not in the model, the first '2\.weigth'"):
        capture(model, ["0.weight", "2.weigth"])


def test_modules_named_like_wrappers_keep_their_names() -> None:
    model = nn.ModuleDict({"base_layer": nn.Linear(2, 2), "database_layer": nn.Linear(2, 2), "module": nn.Linear(2, 2)})
    assert penalized(model) == ["base_layer.weight", "database_layer.weight", "module.weight"]
    assert plain_name("my_orig_mod.weight") == "my_orig_mod.weight"
    pulled = L2SP(model, anchors=model.state_dict(), alpha=1.0, beta=1.0).targets
    assert all(pull.shared for pull in pulled.values())


def test_two_weights_with_one_plain_name_are_refused() -> None:
    inner = nn.ModuleDict({"_orig_mod": nn.ModuleDict({"a": nn.Linear(2, 2)}), "a": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"two weights of the model are named 'a\.weight' without their wrappers"):
        penalized(inner)


@pytest.mark.parametrize("kind", [L1SP, SPD, CautiousL2SP, L2SPFisher])
def test_only_a_pull_that_is_proportional_to_the_distance_has_a_pace(kind: Any) -> None:
    model = nn.Linear(2, 2, bias=False)
    options: dict[str, Any] = {"anchors": model.state_dict(), "beta": 0.0}
    if kind is L2SPFisher:
        options["fisher"] = {"weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"alpha of .* has no time constant; give a number"):
        kind(model, alpha=Pace(100), **options)
    regularizer = kind(model, alpha=0.5, **options)
    regularizer.attach(SGD(model.parameters(), lr=0.1))
    assert regularizer.time_constant() is None
    assert regularizer.report()[""].time_constant != regularizer.report()[""].time_constant  # nan


@pytest.mark.parametrize(("mode", "constant"), [("coupled", 20.0), ("proximal", 20.0), ("decoupled", 200.0)], ids=str)
def test_the_time_constant_is_of_the_full_learning_rate(mode: Any, constant: float) -> None:
    """(1 - 0.9) / (0.01 * 0.5) = 20, or 1 / (0.01 * 0.5) = 200; the head has none."""
    model = network()
    regularizer = l2sp(model, alpha=0.5, mode=mode)
    assert regularizer.time_constant() is None
    regularizer.attach(SGD([{"params": model.parameters(), "lr": 0.001, "full_lr": 0.01}], momentum=0.9))
    assert regularizer.time_constant() == pytest.approx(constant)
    assert regularizer.time_constant("0") == pytest.approx(constant)
    assert regularizer.time_constant("2") is None


def test_through_adam_there_is_a_time_constant_unless_coupled() -> None:
    for mode, constant in (("auto", pytest.approx(20.0)), ("coupled", None)):
        model = network()
        regularizer = l2sp(model, alpha=0.5, mode=mode)
        regularizer.attach(torch.optim.Adam(model.parameters(), lr=0.1))
        assert regularizer.time_constant() == constant


def test_a_pace_under_onecycle_is_of_its_highest_rate() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=100, cycle_momentum=False)
    regularizer = l2sp(model, alpha=Pace(1000))
    regularizer.attach(optimizer)
    assert regularizer.targets["0.weight"].strength == pytest.approx(0.001)  # 1 / (1.0 * 1000)


@pytest.mark.parametrize("how", ["OneCycleLR", "assignment"])
def test_a_rate_that_rises_above_that_of_a_pace_is_refused(how: str) -> None:
    """Pace(1000) is the strength 1 at a rate of 0.001; at 0.1, the time constant would be 10 steps."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.001)
    l2sp(model, alpha=Pace(1000)).attach(optimizer)
    if how == "OneCycleLR":
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100, cycle_momentum=False)
    else:
        optimizer.param_groups[0]["lr"] = 0.1
    fill_gradients(model)
    with pytest.raises(
        ValueError, match=r"was 0\.001 at attach\(\).* is 0\.1 now, so the pull would be 100 times as fast"
    ):
        optimizer.step()


@pytest.mark.parametrize("lr", [-0.1, torch.tensor(-0.1)], ids=str)
def test_a_negative_rate_is_refused_as_it_would_push(lr: Any) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    l2sp(model, mode="coupled").attach(optimizer)
    optimizer.param_groups[0]["lr"] = lr
    fill_gradients(model)
    with pytest.raises(ValueError, match=r"a learning rate of -0\.1 would push the weights away .* maximize=True"):
        optimizer.step()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (nn.utils.parametrizations.spectral_norm, r"0\.parametrizations\.weight\.original"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "0.weight_orig"),
    ],
)
def test_a_layer_that_is_reparametrized_later_is_refused(change: Any, name: str) -> None:
    """Its parameter has another name then, under which there is no anchor."""
    message = rf"0\.weight is named {name} since the regularizer was built"
    model = network()
    regularizer = l2sp(model)
    change(model[0])
    with pytest.raises(ValueError, match=message):
        regularizer.attach(SGD(model.parameters(), lr=0.1))
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    l2sp(model).attach(optimizer)
    change(model[0])
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})  # the weights are looked up again
    with pytest.raises(ValueError, match=message):
        optimizer.step()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_hook_that_clips_gradients_does_not_clip_the_pull(fused: bool, first: bool) -> None:
    """Each step takes 0.1 * 1 of the distance to zero, whatever a hook does to the gradient of the loss."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1, fused=fused)
    regularizer = L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=1.0, beta=0.0)

    def clip(*_: Any) -> None:
        assert model.weight.grad is not None
        model.weight.grad.mul_(0.0)

    if first:
        optimizer.register_step_pre_hook(clip)
    regularizer.attach(optimizer)
    if not first:
        optimizer.register_step_pre_hook(clip)
    for left in (0.9, 0.81):
        fill_gradients(model, 7.0)
        optimizer.step()
        assert model.weight.item() == pytest.approx(left)


@pytest.mark.parametrize("fused", [False, True])
def test_a_frozen_weight_with_a_gradient_of_zeros_does_not_move(fused: bool) -> None:
    model = network()
    l2sp(model).attach(optimizer := SGD(model.parameters(), lr=0.1, fused=fused))
    fill_gradients(model)
    model.requires_grad_(False)
    before = model.get_parameter("2.weight").detach().clone()
    optimizer.step()
    assert torch.equal(model.get_parameter("2.weight"), before)


def test_a_shared_weight_has_one_anchor_and_counts_if_one_layer_is_linear() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["table"].weight  # pyright: ignore[reportArgumentType]
    same = {name: torch.ones(3, 2) for name in ("table.weight", "head.weight")}
    pulled = L2SP(model, anchors=same, alpha=1.0, beta=1.0).targets
    assert [(name, pull.shared) for name, pull in pulled.items()] == [("table.weight", True)]
    with pytest.raises(
        ValueError, match=r"two of the anchors belong to table\.weight, which the model shares, but they differ"
    ):
        L2SP(model, anchors={**same, "head.weight": torch.zeros(3, 2)}, alpha=1.0, beta=1.0)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.LSTM(2, 3), "weight_ih_l0"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "parametrizations.weight.original0"),
        (nn.utils.spectral_norm(nn.Linear(2, 2)), "weight_orig"),
    ],
)
def test_anchors_of_layers_whose_matrices_are_left_out_are_refused(layer: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), layer)
    anchors = dict(model.named_parameters())
    with pytest.raises(ValueError, match=rf"1\.{name} has an anchor but belongs to .* only with every=True"):
        L2SP(model, anchors=anchors, alpha=1.0, beta=1.0)
    L2SP(model, anchors=anchors, alpha=1.0, beta=1.0, every=True)


def test_late_anchors_are_found_out_in_sixteen_bits_too() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    fill_gradients(model, 1.0)
    optimizer.step()
    with pytest.raises(ValueError, match="captured too late"):
        l2sp(model, anchor_dtype=torch.bfloat16).attach(optimizer)


def test_pickles_and_copies_of_a_regularized_optimizer_are_refused_and_its_state_is_saved() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = l2sp(model)
    regularizer.attach(optimizer)
    for make in (pickle.dumps, copy.copy, copy.deepcopy, lambda one: torch.save(one, io.BytesIO())):
        with pytest.raises(ValueError, match="a copy of this optimizer would not be regularized"):
            make(optimizer)
    torch.save(optimizer.state_dict(), io.BytesIO())
    regularizer.detach()
    copy.copy(optimizer)


def test_a_checkpoint_knows_the_fisher_information_and_no_dtype_of_the_anchors() -> None:
    model = network()
    anchors = capture(model, ["0.weight"])
    states = [
        L2SPFisher(model, anchors=anchors, alpha=alpha, beta=0.0, fisher={"0.weight": torch.full((4, 3), value)})
        for alpha, value in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))
    ]
    states[1].load_state_dict(states[0].state_dict())
    with pytest.raises(ValueError, match="was trained with another fisher"):
        states[2].load_state_dict(states[0].state_dict())
    l2sp(model, anchor_dtype=torch.bfloat16).load_state_dict(l2sp(model).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "0.1"}, r"alpha must be a number from 0 up, got '0\.1' for 0\.weight"),
        ({"alpha": None}, "alpha must be a number from 0 up, got None"),
        ({"anchors": network()}, "anchors must be a mapping of names to tensors, got a Sequential"),
        ({"anchors": {"0.weight": [[1.0]]}}, r"0\.weight among the anchors is a list, not a torch\.Tensor"),
        ({"anchor_dtype": torch.int8}, r"anchor_dtype must be float64, float32, bfloat16 or float16, got torch\.int8"),
    ],
)
def test_what_is_of_the_wrong_type_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        l2sp(network(), **options)


def test_a_radius_is_no_pace() -> None:
    model: nn.Module = network()
    pace: Any = Pace(100)
    with pytest.raises(ValueError, match="the radius must be above 0, got Pace"):
        MARS(model, anchors=capture(model, ["0.weight"]), radius=pace)
