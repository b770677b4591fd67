"""A step reaches the weights that the last data entry's losses depend on, and no others."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtsp.tasks import FlowConfig, SegmentationConfig, Tasks
from mtsp.training.checks.unused_weights import leaves_weights_unused, search_for_unused
from mtsp.training.experiment import StageConfig
from mtsp.types import Batch

MASKS, FLOWS = "masks", "flows"


class TwoHeads(nn.Module):
    """Masks with an auxiliary head, and flow, from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 1, bias=False)
        self.mask, self.aux, self.flow = (nn.Conv2d(4, 2, 1, bias=False) for _ in range(3))

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> dict[str, Tensor]:
        seen = self.trunk(frame)
        return {"mask_logits": self.mask(seen), "aux_mask_logits": self.aux(seen), "flow": self.flow(seen)}


class Entry:
    """One sample with a mask, or with flow."""

    def __init__(self, label: str) -> None:
        self.label = label

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        labels: Any = {"mask": torch.zeros(4, 4)} if self.label == MASKS else {"flow": torch.zeros(2, 4, 4)}
        return Batch(name=["a"], frame=torch.zeros(3, 4, 4), **labels)


def experiment(*stages: dict[str, int], learn: tuple[str, ...] | None = None, frozen: bool = False) -> Any:
    tasks = Tasks(segmentation=SegmentationConfig(aux_loss=0.2), flow=FlowConfig())
    planned = tuple(StageConfig(steps=1, batch_size=sizes, learn=learn) for sizes in stages)
    return SimpleNamespace(tasks=tasks, train=SimpleNamespace(stages=planned), frozen={"trunk": False, "flow": frozen})


DATA: Any = {MASKS: Entry(MASKS), FLOWS: Entry(FLOWS)}


def test_weights_without_a_gradient_are_told_by_stage() -> None:
    network = TwoHeads()
    values = experiment({MASKS: 1})
    assert leaves_weights_unused(values, network, DATA) == "masks"
    network.flow.requires_grad_(False)
    assert leaves_weights_unused(values, network, DATA) is None


@pytest.mark.parametrize("learn", [None, ("trunk",)])
def test_a_frozen_branch_counts_as_unused(learn: tuple[str, ...] | None) -> None:
    network = TwoHeads()
    network.flow.requires_grad_(False)
    found = leaves_weights_unused(experiment({MASKS: 1}, learn=learn), network, DATA)
    assert found == (None if learn is None else "learn: trunk")


def test_the_last_entry_of_a_step_decides() -> None:
    network = TwoHeads()
    values = experiment({MASKS: 1, FLOWS: 1})  # both heads learn, but not in one backward pass
    assert leaves_weights_unused(values, network, DATA) == "masks, flows"


def test_a_branch_that_is_frozen_in_every_step_counts_as_unused() -> None:
    values = experiment({MASKS: 1}, frozen=True)
    assert leaves_weights_unused(values, TwoHeads(), DATA) == "frozen flow"


@pytest.mark.parametrize("frozen", [False, True])
def test_processes_search_only_where_it_is_needed(frozen: bool) -> None:
    network = TwoHeads()
    network.flow.requires_grad_(False)
    accelerator: Any = SimpleNamespace(ddp_handler=SimpleNamespace(), is_main_process=True)
    search_for_unused(experiment({MASKS: 1}, frozen=frozen), accelerator, network, DATA)
    assert accelerator.ddp_handler.find_unused_parameters == frozen
