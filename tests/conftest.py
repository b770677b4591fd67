"""Fixtures for whole runs: synthetic data in the layouts of the real data sets, and a small experiment on it."""

import copy
import json
import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_davis, write_flying_chairs
from tests import two_processes

torch.set_num_threads(1)
# Worker processes, and the runs that tests kill, are forked from a process that has imported everything once.
multiprocessing.set_forkserver_preload(["mtsp.training.run", "tools.build", "timm", "segmentation_models_pytorch"])

RUN_SPECIFIC = ("time", "train/samples_per_second")
"""Columns of metrics.jsonl that may differ between two runs of one experiment."""


SLOW = ("tests/runs/", "tests/tools/test_demo", "tests/tools/test_sweep", "two_processes.py")
"""Whole runs, in the paths of their tests: what `-m "not slow"` leaves out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of whole runs as slow."""
    for item in items:
        if any(part in item.path.as_posix() for part in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `DAVIS` (9 frames of 64x96 to train on, 3 to validate) and `chairs` (6 pairs and 2). Read only."""
    root = tmp_path_factory.mktemp("synthetic")
    config = SyntheticConfig(clips=4, frames=3, height=64, width=96, objects=(1, 2))
    write_davis(config, root / "DAVIS", validation=0.25)
    write_flying_chairs(config, root / "chairs", validation=0.25)
    return root


@pytest.fixture
def values(synthetic: Path) -> dict[str, Any]:
    """An experiment with everything that a resumed run must restore: three stages in turn, branches frozen after they
    gathered momentum, a data entry in batches of two sizes, batch normalization, augmentation, a schedule.
    """
    davis, chairs = str(synthetic / "DAVIS"), str(synthetic / "chairs")
    return copy.deepcopy(
        {
            "name": "small",
            "seed": 3,
            "model": {
                "name": "segflow",
                "encoder": "tu-test_efficientnet",
                "width": 8,
                "flow_width": 8,
                "flow": {"width": 0.04},
            },
            "branches": {"segmentation": {}, "flow": {}},
            "data": {
                "davis": {
                    "dataset": {"name": "davis", "root": davis},
                    "augment": {"preset": "segflow", "resize": [64, 96]},
                },
                "davis_val": {"dataset": {"name": "davis", "root": davis, "split": "val"}},
                "chairs": {"dataset": {"name": "flying_chairs", "root": chairs}},
                "chairs_val": {"dataset": {"name": "flying_chairs", "root": chairs, "split": "val"}, "limit": 1},
            },
            "tasks": {"segmentation": {}, "flow": {"weight": 0.1, "multiscale": 0.01}},
            "regularizer": {"name": "l2", "alpha": 0.001, "beta": 0.001},
            "optimizer": {"name": "sgd", "lr": 0.01},
            "schedule": {"name": "poly", "warmup": 2},
            "train": {
                "steps": 6,
                "stages": [
                    {"steps": 2, "batch_size": {"davis": 2}, "learn": ["segmentation"]},
                    {"steps": 1, "batch_size": {"chairs": 2}, "learn": ["flow"]},
                    {"steps": 1, "batch_size": {"davis": 1, "chairs": 2}},
                ],
                "workers": 0,
                "save_every": 2,
            },
            "evaluation": {"data": ["davis_val", "chairs_val"], "every": 3},
            "tracking": {"log_every": 1, "images": 0},
        }
    )


@pytest.fixture
def config(values: dict[str, Any], tmp_path: Path) -> Path:
    """The experiment as a file."""
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(values))  # YAML, as every JSON
    return path


@pytest.fixture
def litter() -> Callable[[Path], None]:
    """`litter(root)` adds to each folder the files that macOS, Windows, Jupyter and Synology leave; none is data."""

    def leave(root: Path) -> None:
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            for file in (".DS_Store", "Thumbs.db", "desktop.ini", "README.txt"):
                (folder / file).write_text("no data")
            for path in [path for path in folder.iterdir() if path.is_file()]:
                (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
            for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
                (folder / hidden / "inner").mkdir(parents=True, exist_ok=True)  # a link shows a folder twice
                for name in ("left.png", "inner/left.jpg", "inner/left.flo"):
                    (folder / hidden / name).write_bytes(b"\0\5\x16\7")

    return leave


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[..., None]:
    """`in_two_processes(function, *arguments)` runs function(rank, *arguments) in two processes of one group."""
    return partial(two_processes.run, tmp_path / "group")


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Reset Accelerate, which keeps the first precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def train() -> Callable[..., dict[str, dict[str, float]]]:
    """`train(values, run_dir, resume=None)` runs an experiment here and returns its results, {} if stopped."""
    from mtsp.config import parse
    from tools.build import AnyExperiment
    from tools.train import train

    def call(values: dict[str, Any], run_dir: Path, resume: str | None = None) -> dict[str, dict[str, float]]:
        AcceleratorState._reset_state(reset_partial_state=True)
        return train(parse(AnyExperiment, values), run_dir, resume) or {}

    return call


@pytest.fixture
def outcome() -> Callable[[Path], tuple[dict[str, bytes], list[dict[str, float]], dict[str, Any]]]:
    """`outcome(run_dir)` returns the bytes of the weights, the curves without clock and speed, and the results: all
    that must not depend on how a run was interrupted.
    """

    def read(run_dir: Path) -> tuple[dict[str, bytes], list[dict[str, float]], dict[str, Any]]:
        weights = load_file(run_dir / "weights.safetensors")
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return (
            {name: value.numpy().tobytes() for name, value in weights.items()},
            [{key: value for key, value in row.items() if key not in RUN_SPECIFIC} for row in rows],
            json.loads((run_dir / "results.json").read_text()),
        )

    return read


@pytest.fixture
def small_network(values: dict[str, Any], tmp_path: Path) -> list[str]:
    """A small SegFlow with random weights, as the options `--config` and `--checkpoint`."""
    (tmp_path / "small.yaml").write_text(json.dumps(values))
    from mtsp.config import parse
    from mtsp.files.tensors import write_tensors
    from tools.build import AnyExperiment

    torch.manual_seed(1)
    write_tensors(tmp_path / "weights.safetensors", parse(AnyExperiment, values).model.build().state_dict())
    return ["--config", str(tmp_path / "small.yaml"), "--checkpoint", str(tmp_path / "weights.safetensors")]
