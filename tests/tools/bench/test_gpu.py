"""The checks of a GPU: they pass where device and reference are the same, and a difference fails."""

import pytest
import torch

from tools.bench.gpu import checks


def test_the_cpu_equals_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.main(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert "ok   L2-SP, four steps of SGD fused, fp16 scaler" in printed


def test_a_difference_and_an_error_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(device: torch.device) -> float:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(checks, "_checks", lambda: [("off", lambda device: 0.5, 0.1), ("broken", broken, 1.0)])
    assert checks.main(["--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL off" in printed
    assert "no kernel" in printed
    assert "2 of 2 checks failed" in printed
