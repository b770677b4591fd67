"""Missing weights are told before a network is built."""

from pathlib import Path

import pytest

from mtsp.config import parse
from tools import build

RESNET = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
RAFT = "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torchvision, without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("tools.build.why_unreachable", lambda url: "no network in tests")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_the_main_job_with_raft_asks_only_for_downloads_of_torchvision(cache: Path) -> None:
    experiment = build.read_experiment("davis_segflow_raft.yaml")
    found = build.missing_weights(experiment)
    assert [line.partition(":")[0] for line in found] == ["branches.segmentation.weights", "branches.flow.weights"]
    for line, url in zip(found, (RESNET, RAFT), strict=True):
        assert f"needs {url}, which cannot be reached (no network in tests); fetch that file elsewhere" in line
        assert f"put it here as {cache / url.rpartition('/')[2]}" in line
        (cache / url.rpartition("/")[2]).touch()
    assert build.missing_weights(experiment) == []


def test_raft_alone_asks_for_its_own_file() -> None:
    values = build.read_experiment("davis_segflow_raft.yaml").model_dump(mode="json")
    values["model"] = values["model"]["flow"]
    del values["branches"]["segmentation"]
    values["train"]["stages"] = [{"steps": 1, "batch_size": {"chairs": 1}}]
    values["tasks"]["segmentation"] = None
    (line,) = build.missing_weights(parse(build.AnyExperiment, values))
    assert f"branches.flow.weights: torchvision:C_T_SKHT_V2 needs {RAFT}" in line
