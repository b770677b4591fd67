"""Loops of other trainers: the pull is the one of an independent reference, in one process or in two."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.regularizers import L2SP

ALPHA, BETA, LR = 0.3, 0.1, 0.05
SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW
WAYS = ("DDP with a static graph", "tensor parallel", "ZeRO", "FSDP2 around an attached optimizer")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def moved(model: nn.Module) -> dict[str, Tensor]:
    """Anchors of the first layer, from which all weights are then 0.1 away."""
    anchors = capture(model, ["0.weight"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    return anchors


def batch(step: int) -> Tensor:
    return torch.linspace(-1, 1, 24).reshape(4, 6) * (step + 1)


def make(parameters: Iterable[Any], kind: Any) -> Any:
    return SGD(parameters, lr=LR, momentum=0.9) if kind is SGD else ADAMW(parameters, lr=LR, weight_decay=0.0)


def by_hand(kind: Any) -> dict[str, Tensor]:
    """One process: a term in the loss for SGD, a move before the step for AdamW."""
    model = network()
    anchor = moved(model)["0.weight"]
    old, new = model.get_parameter("0.weight"), model.get_parameter("2.weight")
    optimizer = make(model.parameters(), kind)
    for step in range(4):
        optimizer.zero_grad()
        loss = model(batch(step)).square().mean()
        if kind is SGD:
            loss = loss + ALPHA / 2 * (old - anchor).square().sum() + BETA / 2 * new.square().sum()
        loss.backward()
        if kind is not SGD:
            with torch.no_grad():
                old.sub_(LR * ALPHA * (old - anchor))
                new.mul_(1 - LR * BETA)
        optimizer.step()
    return {name: weight.detach() for name, weight in model.named_parameters()}


def prepared(way: str, kind: Any) -> tuple[nn.Module, Any]:
    """The network and its optimizer in one of two processes, with the regularizer attached."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model: nn.Module = network()
    anchors = moved(model)
    mesh = init_device_mesh("cpu", (2,))
    if way == "DDP with a static graph":
        model = nn.parallel.DistributedDataParallel(model, static_graph=True)
    elif way == "tensor parallel":
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    elif way == "ZeRO":
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = make(model.parameters(), kind)
    if way == "ZeRO":
        more: dict[str, Any] = {"momentum": 0.9} if kind is SGD else {"weight_decay": 0.0}
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, lr=LR, **more)
    L2SP(model, anchors=anchors, alpha=ALPHA, beta=BETA).attach(optimizer)
    if way == "FSDP2 around an attached optimizer":  # as Accelerate does: the optimizer is given the new parameters
        names = [name for name, _ in model.named_parameters()]
        fully_shard(model, mesh=mesh)
        optimizer.param_groups[0]["params"] = [model.get_parameter(name) for name in names]
    return model, optimizer


def in_one_of_two_processes(rank: int, folder: str) -> None:
    results = {}
    for way in WAYS:
        for kind in (SGD, ADAMW):
            model, optimizer = prepared(way, kind)
            share = slice(0, 4) if way == "tensor parallel" else slice(2 * rank, 2 * rank + 2)
            for step in range(4):
                optimizer.zero_grad()
                model(batch(step)[share]).square().mean().backward()
                optimizer.step()
            results[way, kind.__name__] = {
                name.removeprefix("module."): getattr(weight, "full_tensor", lambda weight=weight: weight)().detach()
                for name, weight in model.named_parameters()
            }
    torch.save(results, Path(folder) / f"results-{rank}.pt")


def test_two_processes_end_where_a_reference_in_one_does(in_two_processes: Callable[..., None], tmp_path: Path) -> None:
    in_two_processes(in_one_of_two_processes, str(tmp_path))
    for rank in (0, 1):
        results = torch.load(tmp_path / f"results-{rank}.pt", weights_only=True)
        assert len(results) == 2 * len(WAYS)
        for (way, kind), weights in results.items():
            expected = by_hand(SGD if kind == "SGD" else ADAMW)
            for name, weight in weights.items():
                torch.testing.assert_close(
                    weight, expected[name], rtol=0, atol=1e-6, msg=lambda text, case=(way, kind): f"{case}: {text}"
                )


class Reverting(SGD):
    """SGD that, once told to, begins each step where its last one ended: what moves weights in between is undone."""

    reverts = False

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.last: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for weight in self.param_groups[0]["params"]:
            if self.reverts and weight in self.last:
                weight.copy_(self.last[weight])
        super().step(closure)
        self.last = {weight: weight.clone() for weight in self.param_groups[0]["params"]}


@pytest.mark.parametrize("exchanged", [True, False])
def test_the_trial_is_repeated_when_the_parameters_are_exchanged(exchanged: bool) -> None:
    """As FSDP2 does. Without an exchange nobody looks again, as that would cost time in every step."""
    model = network()
    optimizer = Reverting(model.parameters(), lr=LR)
    L2SP(model, anchors=moved(model), alpha=ALPHA, beta=BETA, mode="decoupled").attach(optimizer)
    optimizer.reverts = True
    if exchanged:
        for name in ("0", "2"):
            layer = model.get_submodule(name)
            layer.weight = nn.Parameter(layer.get_parameter("weight").detach().clone())
        optimizer.param_groups[0]["params"] = list(model.parameters())
    model(batch(0)).square().mean().backward()
    with (
        pytest.raises(ValueError, match="a decoupled pull does not arrive in Reverting") if exchanged else nullcontext()
    ):
        optimizer.step()


def test_a_loop_of_timm_with_layer_decay_a_schedule_and_averaged_weights_is_a_reference() -> None:
    pytest.importorskip("timm", reason="needs timm")
    import timm
    from timm.optim import param_groups_layer_decay
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3

    def run(pulled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        size: Any = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32, "num_classes": 2}
        model = timm.create_model("vit_tiny_patch16_224", **size)
        anchors = capture(model, [name for name, _ in model.named_parameters() if not name.startswith("head.")])
        groups = param_groups_layer_decay(model, weight_decay=0.0, layer_decay=0.5)
        optimizer = ADAMW(groups, lr=0.01, weight_decay=0.0)
        schedule = CosineLRScheduler(optimizer, t_initial=5, warmup_t=2, warmup_lr_init=1e-4)
        if pulled:
            L2SP(model, anchors=anchors, alpha=ALPHA, beta=BETA).attach(optimizer)
        averaged = ModelEmaV3(model, decay=0.9)
        names = {id(weight): name for name, weight in model.named_parameters()}
        for step in range(5):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32) * (step + 1)).square().mean().backward()
            for group in [] if pulled else optimizer.param_groups:
                for weight in group["params"]:
                    name = names[id(weight)]
                    with torch.no_grad():
                        if name in anchors:
                            weight.sub_(group["lr"] * ALPHA * (weight - anchors[name]))
                        elif name == "head.weight":
                            weight.mul_(1 - group["lr"] * BETA)
            optimizer.step()
            averaged.update(model, step=step)
            schedule.step(step + 1)
        return [*model.state_dict().values(), *averaged.module.state_dict().values()]

    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
