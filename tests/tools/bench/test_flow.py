"""The benchmark of flow networks."""

from pathlib import Path

import numpy as np
import pytest

from data.flow.flying_chairs import FlyingChairsConfig
from tools.bench import flow


def test_a_quick_run_prints_every_network_and_the_error_of_no_motion(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: flow.NETWORKS[name] for name in ("flownets_quarter", "spynet")}  # the others take long to make
    monkeypatch.setattr(flow, "NETWORKS", kept)
    root = synthetic / "chairs"
    assert flow.main(["--quick", "--rounds", "1", "--data", f"{{name: flying_chairs, root: {root}, split: val}}"]) == 0
    printed = capsys.readouterr().out
    assert "1,440,300" in printed
    dataset = FlyingChairsConfig(name="flying_chairs", root=root, split="val").build()
    lengths = [np.linalg.norm(dataset.labels(i).get("flow", np.zeros(2)), axis=2).mean() for i in range(len(dataset))]
    (line,) = [line for line in printed.splitlines() if "no motion" in line]
    assert float(line.split()[-1]) == pytest.approx(np.mean(lengths), abs=0.006)


def test_mistakes_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert flow.main(["--weights", "raft=x"]) == 1
    assert "--weights: no network 'raft'; there are flownets, " in capsys.readouterr().err
    assert flow.main(["--data", "{name: davis, root: x}"]) == 1
    assert "--data: davis has no pairs with flow" in capsys.readouterr().err
