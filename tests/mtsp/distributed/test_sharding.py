"""Weights spread over two processes by FSDP2: the pull, the checkpoint and the reports are those of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.distributed.sharding import full_states, has_shards, load_full_states
from mtsp.regularizers import L2SP
from mtsp.training.checkpoint.atomic_save import save
from mtsp.training.checkpoint.storage import Checkpoint, load


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Linear(4, 2))


def trained(model: nn.Module, anchors: dict[str, Tensor], steps: int, found: Checkpoint | None = None) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if found is not None:
        load_full_states(model, optimizer, found.model, found.optimizer)
    regularizer = L2SP(model, anchors=anchors, alpha=0.5, beta=0.1)
    regularizer.attach(optimizer)
    for step in range(2 if found is not None else 0, steps):
        optimizer.zero_grad()
        model(torch.full((4, 5), 0.1 * (step + 1))).square().sum().backward()
        optimizer.step()
    return optimizer, regularizer


def in_one_of_two_processes(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    model = network()
    anchors = capture(model, ["0.weight", "2.weight"])
    fully_shard(model, mesh=mesh)
    assert has_shards(model)
    optimizer, _ = trained(model, anchors, steps=2)
    weights, state = full_states(model, optimizer)
    if rank == 0:
        save(Path(folder) / "run", 2, weights, state, {"step": 2}, keep_last=1)
    torch.distributed.barrier()

    again = network()
    with torch.no_grad():
        again.get_parameter("0.weight").zero_()
    fully_shard(again, mesh=mesh)
    optimizer, regularizer = trained(again, anchors, steps=5, found=load(Path(folder) / "run/step-00000002"))
    weights, _ = full_states(again, optimizer)
    report = {"penalty": regularizer.penalty(), **regularizer.distances(["0", "2"])}
    if rank == 0:
        torch.save({"weights": weights, "report": report}, Path(folder) / "result.pt")


def test_two_processes_with_sharded_weights_that_save_and_resume_equal_one(
    in_two_processes: Callable[..., None], tmp_path: Path
) -> None:
    in_two_processes(in_one_of_two_processes, str(tmp_path))
    model = network()
    _, regularizer = trained(model, capture(model, ["0.weight", "2.weight"]), steps=5)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert result["weights"].keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result["weights"][name], value, rtol=0, atol=1e-6)
    expected = {"penalty": regularizer.penalty(), **regularizer.distances(["0", "2"])}
    torch.testing.assert_close(torch.tensor(list(result["report"].values())), torch.tensor(list(expected.values())))
