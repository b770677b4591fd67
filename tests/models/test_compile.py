"""Networks compile into one graph, and training does not compile them again and again."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch._dynamo.testing import CompileCounter

from models.classifier import ClassifierConfig
from models.encnet.network import EncNetConfig
from models.segflow.network import SegFlowConfig
from mtsp.config import parse
from mtsp.regularizers import L2SP
from mtsp.tasks import FlowConfig, SegmentationConfig, Tasks
from mtsp.training.loop import set_trainable
from mtsp.training.state import TrainState

pytestmark = pytest.mark.slow

SEGFLOW = {"name": "segflow", "encoder": "tu-resnet10t", "width": 8, "flow_width": 8}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "segflow, flownets": (SegFlowConfig, SEGFLOW | {"flow": {"width": 0.125}}),
    "encnet": (EncNetConfig, {"name": "encnet", "encoder": "resnet18", "classes": 3, "width": 16, "codewords": 4}),
    "classifier": (ClassifierConfig, {"name": "classifier", "backbone": "resnet18", "classes": 3}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_graph(name: str) -> None:
    kind, values = NETWORKS[name]
    torch._dynamo.reset()
    network, frame = parse(kind, values).build().train(), torch.rand(2, 3, 64, 64)
    found: Any = torch._dynamo.explain(network)(*([frame] if name == "classifier" else [frame, frame]))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_alternating_branches_and_sizes_compile_a_fixed_number_of_times() -> None:
    torch._dynamo.reset()
    kind, values = NETWORKS["segflow, flownets"]
    network = parse(kind, values).build()
    anchors = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    L2SP(network, anchors=anchors, alpha=0.1, beta=0.1).attach(optimizer)
    tasks = Tasks(segmentation=SegmentationConfig(), flow=FlowConfig())
    state = TrainState(Accelerator(cpu=True), network, optimizer, tasks, ("segmentation", "flow"))
    counter = CompileCounter()
    network.compile(backend=counter)

    compiled = []
    for _ in range(3):
        for learn in (("segmentation",), ("flow",)):
            for height in (64, 128):
                set_trainable(state, learn)
                frame = torch.rand(1, 3, height, 64)
                outputs = network(frame, frame)
                outputs["mask_logits" if learn == ("segmentation",) else "flow"].sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        compiled.append(counter.frame_count)
    assert compiled[1:] == [compiled[1]] * 2, compiled  # in the first two rounds the sizes become symbols
