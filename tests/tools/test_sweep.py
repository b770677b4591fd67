"""The command line of tools/sweep.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.sweep import main


def pretrained(values: dict[str, Any]) -> dict[str, Any]:
    """10 steps with L2-SP; both branches pretrained."""
    branches = {"segmentation": {"weights": "start.safetensors"}, "flow": {"weights": "start.safetensors"}}
    regularizer = {"name": "l2sp", "alpha": 7.0, "beta": 0.001}
    return values | {"branches": branches, "regularizer": regularizer, "train": values["train"] | {"steps": 10}}


def test_the_program_prints_what_to_launch_elsewhere(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(pretrained(values)))
    line = [
        "--config",
        str(config),
        "--run-dir",
        str(tmp_path / "s"),
        "--seeds",
        "2",
        "--taus",
        "10",
        "--print-commands",
    ]
    assert main(line) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert printed[5] == (
        f"accelerate launch tools/train.py --config {tmp_path}/s/configs/tau10.yaml "
        f"--run-dir {tmp_path}/s/tau10-seed4 --resume auto seed=4"
    )
    assert (tmp_path / "s/configs/tau10.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--taus", "10,x"], "--taus 10,x: expected numbers of steps"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["evaluation.data=[]"], "evaluation.data is empty"),
    ],
)
def test_what_cannot_be_swept_is_one_line(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(pretrained(values)))
    line = ["--config", str(config), "--run-dir", str(tmp_path / "s"), *arguments]
    assert main(line) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_several_processes_are_sent_to_the_commands(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(pretrained(values)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--config", str(config), "--run-dir", str(tmp_path / "s")]) == 1
    assert "--print-commands" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--tune", "--print-commands"], "--print-commands has no effect with --tune"),
        (["--tune", "--taus", "10"], "--taus has no effect with --tune"),
        (["--untuned"], "--untuned has no effect without --tune"),
        (["--control-rate", "3"], "--control-rate has no effect without --tune"),
    ],
)
def test_options_of_the_other_protocol_are_refused(
    capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--config", "demo.yaml", *line])
    assert message in capsys.readouterr().err
