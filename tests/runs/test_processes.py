"""Runs on several processes and nodes end as one process does."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsp.training.checkpoint import storage
from tests.runs.run_folders import ChildProcess, command, rewound, rows, same_but_for_rounding
from tools.train import main

Train = Callable[..., dict[str, dict[str, float]]]
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


FLOW = {  # the flow branch and its own loss
    "flownets": ({"width": 0.04}, {"multiscale": 0.01}),
    "spynet": ({"name": "spynet"}, {"multiscale": 0.01, "multiscale_weights": [0.1] * 6}),
    "raft": ({"name": "raft", "size": "small", "iterations": 2, "eval_iterations": 2}, {"sequence": 0.01}),
}


@pytest.mark.parametrize("flow", FLOW)
def test_two_processes_end_as_one(several: dict[str, Any], train: Train, tmp_path: Path, flow: str) -> None:
    """With stages in which one branch learns, the other, or both."""
    several["model"]["flow"], loss = FLOW[flow]
    several["tasks"]["flow"] = {"weight": 0.1, **loss}
    (tmp_path / "several.yaml").write_text(json.dumps(several))
    train(several, tmp_path / "one")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"ACCELERATE_USE_CPU": "true"}  # what torchrun sets, and what the user must
    arguments = command(tmp_path / "several.yaml", tmp_path / "two")
    ranks = [
        ChildProcess(arguments, tmp_path / f"log-{rank}", shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.ended() for rank in ranks] == [0, 0], "\n".join(rank.log.read_text() for rank in ranks)
    same_but_for_rounding(tmp_path / "two", tmp_path / "one")
    found, expected = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, truth in zip(found, expected, strict=True):
        assert row.keys() == truth.keys()
        for name in ("train/loss", "train/flow", "train/segmentation"):
            assert row.get(name, 0.0) == pytest.approx(truth.get(name, 0.0), rel=1e-3)
    state = storage.load(tmp_path / "two" / "checkpoints" / "step-00000006").state
    assert state["processes"] == 2


def test_a_run_may_go_on_with_another_number_of_processes(
    several: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """One process until step 2, two until step 4, then one again."""
    several["train"]["keep_last"] = 3
    (tmp_path / "several.yaml").write_text(json.dumps(several))
    train(several, tmp_path / "one")
    rewound(tmp_path / "one", 2, tmp_path / "two")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    arguments = command(tmp_path / "several.yaml", tmp_path / "two", "--resume", "must")
    environments = [
        shared | {"ACCELERATE_USE_CPU": "true", "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)
    ]
    ranks = [ChildProcess(arguments, tmp_path / f"log-{n}", one) for n, one in enumerate(environments)]
    assert [rank.ended() for rank in ranks] == [0, 0], "\n".join(rank.log.read_text() for rank in ranks)
    train(several, rewound(tmp_path / "two", 4, tmp_path / "run"), "must")
    same_but_for_rounding(tmp_path / "run", tmp_path / "one")


def test_two_nodes_of_one_process_end_as_one_process(several: dict[str, Any], train: Train, tmp_path: Path) -> None:
    several["train"] |= {"steps": 3}
    several["evaluation"]["every"] = None
    (tmp_path / "several.yaml").write_text(json.dumps(several))
    train(several, tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    program = [str(ROOT / "tools" / "train.py"), *command(tmp_path / "several.yaml", tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    logs = [tmp_path / f"node-{rank}" for rank in range(2)]
    nodes = [
        subprocess.Popen(
            [*launcher, "--node-rank", str(rank), *program], env=environment, cwd=ROOT, stderr=log.open("w")
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [node.wait(200) for node in nodes]  # of the launcher, which hands on what became of its process
    finally:
        for node in nodes:  # one that still waits for the other; a launcher that is terminated ends its process, too
            node.terminate()
        for node in nodes:
            node.wait(60)
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    same_but_for_rounding(tmp_path / "two", tmp_path / "one")


def test_processes_that_did_not_find_each_other_are_refused(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `torchrun --nproc_per_node 2` starts them, without ACCELERATE_USE_CPU on a machine without GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(command(config, tmp_path / "run")) == 1
    assert "error: 2 processes were started, but this one is 1 of 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
