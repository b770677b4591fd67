"""Angular errors of flow, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from mtsp.metrics import FlowErrors, flow_sums
from mtsp.metrics.kernels import flow_forms, flow_loops, jit


def computed(*arguments: jit.Array | None) -> dict[str, float]:
    errors = FlowErrors()
    errors.update(*arguments)  # pyright: ignore[reportArgumentType]
    return errors.compute()


def test_angles_of_vectors_worked_out_by_hand() -> None:
    # (1, 0, 1) and (0, 0, 1): 45 degrees. (1, 1, 1) and (-1, -1, 1): cosine -1/3. Equal: 0. (0, 1e4, 1) from itself
    # turned by 90 degrees about the third axis: cosine 1 / (1 + 1e8).
    prediction = np.array([[[1, 1, 5, 0]], [[0, 1, 6, 1e4]]], np.float32)
    truth = np.array([[[0, -1, 5, 1e4]], [[0, -1, 6, 0]]], np.float32)
    expected = [45, math.degrees(math.acos(-1 / 3)), 0, math.degrees(math.acos(1 / (1 + 1e8)))]
    for x, degrees in enumerate(expected):
        found = computed(prediction[:, :, x : x + 1], truth[:, :, x : x + 1])["aae"]
        assert found == pytest.approx(degrees, rel=1e-6)
    assert computed(prediction, truth)["aae"] == pytest.approx(sum(expected) / 4, rel=1e-6)


def test_a_tiny_angle_is_not_lost() -> None:
    # (1e-6, 0, 1) and (0, 0, 1): 1e-6 radians to 18 digits, where the cosine is 1 in single precision
    found = computed(np.array([[[1e-6]], [[0]]], np.float32), np.zeros((2, 1, 1), np.float32))["aae"]
    assert found == pytest.approx(math.degrees(1e-6), rel=1e-6)


@pytest.mark.parametrize("form", ["compiled", "numpy", "torch"])
@pytest.mark.parametrize(("kind", "size"), [(np.float32, 1e30), (np.float64, 1e250)])
def test_the_angle_of_a_prediction_out_of_all_bounds_is_finite(
    monkeypatch: pytest.MonkeyPatch, form: str, kind: type, size: float
) -> None:
    prediction, truth = np.full((1, 2, 1, 1), size, kind), np.array([[[[1]], [[0]]]], kind)
    if form == "numpy":
        monkeypatch.setattr(flow_loops, "_kernel", lambda: None)
    if form == "torch":
        sums = flow_forms.torch_sums(torch.from_numpy(prediction), torch.from_numpy(truth), None, True)
    else:
        sums = flow_sums(prediction, truth)
    # (1, 1, 0) and (1, 0, 1): cosine 1/2
    assert sums[0, flow_loops.SUMS.index("angle")] == pytest.approx(60, rel=1e-6)
