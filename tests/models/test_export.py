"""Exported networks compute what PyTorch does, for any number of images of any size."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from models import AnyModel
from models.blocks import padded
from models.export import TOLERANCE, Deployed, onnx_bytes, onnx_parity, program_parity, traced

SHAPES = [(1, 128, 160), (3, 131, 77)]  # divisible by 32, and by nothing
NETWORKS: dict[str, dict[str, Any]] = {
    "flownets": {"name": "flownets", "width": 0.02, "sizes": "resize"},
    "segflow": {
        "name": "segflow", "encoder": "tu-test_convnext", "flow": {"width": 0.02}, "width": 8, "flow_width": 8,
    },
    "encnet": {"name": "encnet", "encoder": "tu-test_resnet", "classes": 5, "width": 16, "codewords": 4},
    "classifier": {"name": "classifier", "backbone": "test_resnet", "classes": 4},
}  # fmt: skip


def network(values: dict[str, Any]) -> Deployed:
    """A network without layers that are zero at first, which would hide their inputs."""
    torch.manual_seed(0)
    model: nn.Module = TypeAdapter(AnyModel).validate_python(values).build()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return Deployed(model)


OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
"""torch 2.11 cannot write EncNet as ONNX for any size, nor pooling with `ceil_mode` as a program for any size."""


@pytest.mark.parametrize("name", [name for name in NETWORKS if not (OLD and name == "encnet")])
def test_onnx_files_compute_the_same_at_sizes_that_were_not_traced(name: str) -> None:
    exported = network(NETWORKS[name])
    content = onnx_bytes(exported, traced(exported), {"classes": "[]"})
    for parity in onnx_parity(exported, content, SHAPES):
        assert parity.differences.keys() == set(exported.outputs)
        assert max(parity.differences.values()) <= TOLERANCE, parity
    graph = onnx.load_from_string(content).graph
    dims = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in graph.input]
    assert [value.name for value in graph.input] == list(exported.inputs)
    assert dims == [["batch", 3, "height", "width"]] * len(exported.inputs)


def test_a_program_of_torch_export_takes_sizes_that_32_divides_and_others() -> None:
    exported = network({**NETWORKS["segflow"], "flow": None})
    for parity in program_parity(exported, traced(exported), SHAPES):
        assert parity.differences["mask_logits"] <= TOLERANCE, parity


def test_a_network_for_one_size_is_exported_for_that_size_alone() -> None:
    class OneSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 6 * 8, 4)

        def forward(self, frame: Tensor) -> dict[str, Tensor]:
            return {"label_logits": self.layer(frame.flatten(1))}

    exported = Deployed(OneSize())
    with pytest.raises(ValueError, match=r"cannot be exported for images of any size.*give one --size"):
        traced(exported)
    content = onnx_bytes(exported, traced(exported, (6, 8)), {})
    assert max(onnx_parity(exported, content, [(3, 6, 8)])[0].differences.values()) <= TOLERANCE


def test_a_failure_of_the_exporter_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        try:
            raise TypeError("no such operator")
        except TypeError as error:
            raise RuntimeError("step 2/3 failed") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    exported = network(NETWORKS["classifier"])
    with pytest.raises(
        ValueError, match=r"^torch \S+ cannot write the network as ONNX: no such operator; a newer one may"
    ):
        onnx_bytes(exported, traced(exported), {})


def test_a_program_that_took_a_size_for_granted_is_refused() -> None:
    class EvenOnly:
        def module(self) -> Any:
            def run(frame: Tensor) -> None:
                assert frame.shape[2] % 2 == 0, "Guard failed: frames_0.size()[2] % 2 == 0"

            return run

    program: Any = EvenOnly()
    with pytest.raises(ValueError, match=r"for images of any size: Guard failed.*; give one --size that it takes"):
        program_parity(network(NETWORKS["classifier"]), program, [(1, 11, 12)])


def test_frames_are_padded_in_the_same_way_while_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = torch.arange(6.0).view(1, 1, 2, 3)
    expected = np.array([[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]])
    assert (padded(frame, 3, 4)[0, 0].numpy() == expected).all()
    monkeypatch.setattr("models.blocks.exporting", lambda: True)
    assert (padded(frame, 3, 4)[0, 0].numpy() == expected).all()
