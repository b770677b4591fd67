"""SegFlow's context decoder: EncNet's codewords and SE loss on the features of both branches."""

import pytest
import torch
from torch import nn

from models.encnet.encoding import PIXELS, EncModule
from models.segflow.decoders import ContextHead, PyramidHead
from models.segflow.network import SegFlow, SegFlowConfig
from mtsp.config import ConfigError, parse
from mtsp.tasks import SegmentationConfig, Tasks
from mtsp.types import Batch

torch.set_num_threads(1)


def small() -> SegFlow:
    torch.manual_seed(0)
    values = {"name": "segflow", "encoder": "tu-test_efficientnet", "classes": 5, "width": 16, "flow_width": 8}
    return parse(SegFlowConfig, values | {"flow": {"width": 0.0625}, "decoder": "context", "codewords": 4}).build()


def test_the_se_loss_trains_codewords_and_both_branches() -> None:
    network = small()
    assert isinstance(network.segmentation.head, ContextHead)
    assert network.flow is not None
    assert isinstance(network.flow.head, PyramidHead)
    frame, next_frame = torch.rand(2, 2, 3, 64, 96)
    outputs = network(frame, next_frame)
    assert outputs["mask_logits"].shape == (2, 5, 64, 96)
    assert outputs["se_logits"].shape == (2, 5)
    tasks = Tasks(segmentation=SegmentationConfig(weight=1.0, se_loss=0.2))
    batch = Batch(name=["a", "b"], frame=frame, next_frame=next_frame, mask=torch.randint(0, 5, (2, 64, 96)))
    sums = tasks.sums(outputs, batch)
    assert set(sums) == {"segmentation", "segmentation_se"}
    sums["segmentation_se"].backward()
    parts = ("segmentation.encoder", "segmentation.head.context.encoding", "flow.network")
    for part in parts:
        assert any(p.grad is not None and bool(p.grad.any()) for p in network.get_submodule(part).parameters()), part
    assert set(network.eval()(frame, next_frame)) == {"mask_logits", "flow"}


def test_the_head_is_the_context_module_on_the_fused_pyramid() -> None:
    """With everything behind the pyramid written down again; the encoding is that of a map of 60x60 pixels."""
    head = ContextHead((4, 4, 4, 4), (2,), 3, width=8, codewords=2)
    encoder = [torch.rand(2, 4, side, side) for side in (16, 8, 4, 2)]
    motion = [torch.rand(2, 2, 8, 8)]
    logits, se_logits = head(encoder, motion)
    fused = head.pyramid(encoder, motion).relu()
    context: EncModule = head.context
    encoded = context.encoding(context.project(fused)) * (PIXELS / (16 * 16))
    encoded = context.norm(encoded).relu().mean(1)
    expected = nn.functional.conv2d(
        fused * (1 + context.gate(encoded).sigmoid())[:, :, None, None], head.classify.weight, head.classify.bias
    )
    torch.testing.assert_close(logits, expected)
    assert context.se_head is not None
    torch.testing.assert_close(se_logits, context.se_head(encoded))


def test_the_released_modes_have_no_context() -> None:
    with pytest.raises(ConfigError, match="mode released does not support decoder context; leave out decoder"):
        parse(SegFlowConfig, {"name": "segflow", "mode": "released", "decoder": "context"})
