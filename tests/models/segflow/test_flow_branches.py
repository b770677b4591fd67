"""SegFlow with each flow network: exchange of features, the initial flow, gradients, refusals."""

from typing import Any

import pytest
import torch
from torch import nn

from models.flow.flownets import FlowNetSConfig
from models.segflow.network import SegFlow, SegFlowConfig
from mtsp.config import ConfigError, parse

torch.set_num_threads(1)
BRANCHES = {
    "flownets": {"name": "flownets", "width": 0.0625},
    "raft": {"name": "raft", "size": "small", "iterations": 2, "eval_iterations": 2},
    "spynet": {"name": "spynet"},
}


def small(flow: str, **changes: Any) -> SegFlow:
    torch.manual_seed(0)
    values = {
        "name": "segflow",
        "encoder": "tu-test_efficientnet",
        "width": 16,
        "flow_width": 8,
        "flow": BRANCHES[flow],
    }
    return parse(SegFlowConfig, values | changes).build()


def test_without_a_name_the_flow_branch_is_flownets() -> None:
    config = parse(SegFlowConfig, {"name": "segflow", "flow": {"width": 0.5}})
    assert config.flow == FlowNetSConfig(width=0.5)


@pytest.mark.parametrize("decoder", ["fpn", "scores"])
@pytest.mark.parametrize("flow", BRANCHES)
def test_both_losses_reach_both_branches_and_the_first_flow_is_the_flow_networks(flow: str, decoder: str) -> None:
    network = small(flow, decoder=decoder)
    assert network.flow is not None
    frame, next_frame = torch.rand(2, 2, 3, 67, 101)
    outputs = network(frame, next_frame)
    assert outputs["flow"].shape == (2, 2, 67, 101)
    assert outputs["mask_logits"].shape == (2, 2, 67, 101)
    padded = [nn.functional.pad(x, [0, 27, 0, 29], mode="replicate") for x in (frame, next_frame)]
    own = network.flow.network(*padded).flow
    own = nn.functional.interpolate(own, (96, 128), mode="bilinear", align_corners=False)[..., :67, :101]
    torch.testing.assert_close(outputs["flow"], own)
    for name, parameter in network.named_parameters():
        if ".head." in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)  # heads that start at zero pass nothing back in the first step
    for output in ("mask_logits", "flow"):
        network.zero_grad()
        network(frame, next_frame)[output].square().sum().backward()
        for part in ("segmentation.encoder", "flow.network"):
            reached = (p.grad for p in network.get_submodule(part).parameters())
            assert any(g is not None and bool(g.any()) for g in reached), (output, part)


@pytest.mark.parametrize("mode", ["released", "paper"])
def test_the_released_modes_have_flownets_only(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"mode {mode} does not support flow spynet; use flownets, or mode modern"):
        parse(SegFlowConfig, {"name": "segflow", "mode": mode, "flow": {"name": "spynet"}})


def test_mistakes_in_the_flow_section_are_told_with_their_key() -> None:
    with pytest.raises(ConfigError, match=r"flow.name: 'spinet' is not one of .*spynet; did you mean spynet\?"):
        parse(SegFlowConfig, {"name": "segflow", "flow": {"name": "spinet"}})
    with pytest.raises(ConfigError, match=r"flow.widht: unknown key; did you mean flow.width\?"):
        parse(SegFlowConfig, {"name": "segflow", "flow": {"widht": 1.0}})
