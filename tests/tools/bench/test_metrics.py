"""The metric benchmarks compare ways that find the same numbers."""

import importlib.util
import os

import numpy as np
import pytest

from tools.bench import metrics


@pytest.mark.parametrize("way", metrics.FLOW_WAYS)
def test_each_way_to_flow_errors_finds_what_ours_finds(way: str) -> None:
    flows = metrics.made_up_flows(quick=True)
    found, ours = metrics.FLOW_WAYS[way](flows), metrics.ours_flow(flows)
    common = found.keys() & ours.keys() - {"aae", "aae_per_image"}
    assert common
    assert {key: found[key] for key in common} == pytest.approx({key: ours[key] for key in common}, rel=1e-5)


def test_the_order_in_memory_changes_nothing() -> None:
    flows = metrics.made_up_flows(quick=True)
    laid = metrics.paired(flows)
    assert laid.truth.strides[1] == 4  # (dx, dy) side by side
    assert metrics.ours_flow(laid) == pytest.approx(metrics.ours_flow(flows), rel=1e-12, nan_ok=True)


def test_each_way_to_classification_scores_finds_what_ours_finds() -> None:
    logits, labels = metrics.made_up_logits(quick=True)
    ours = metrics.ours_classification(logits, labels)
    ways = [metrics.classification_idiom]
    if importlib.util.find_spec("torchmetrics") is not None:
        ways.append(metrics.torchmetrics_scores)
    for way in ways:
        found = way(logits, labels)
        assert found == pytest.approx({key: ours[key] for key in found}, rel=1e-5)


def test_one_read_adds_up_every_item() -> None:
    assert metrics.one_read(np.full((3, 700, 1024), 0.5, np.float32), np.zeros(4, np.bool_)) == 3 * 700 * 1024 / 2


def test_a_quick_run_prints_every_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # main sets it
    metrics.main(["--quick", "--rounds", "1", "--threads", "1"])
    printed = capsys.readouterr().out
    for way in ("one read of the arrays", *metrics.FLOW_WAYS, *metrics.CLASSIFICATION_WAYS):
        assert way in printed
