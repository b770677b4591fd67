"""The source task is measured with the fine-tuned branches under the old head, by hand on a network of two numbers."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtsp.config import Config, ConfigError
from mtsp.evaluation.evaluate import Evaluation, evaluate
from mtsp.evaluation.forgetting import SourceConfig, SourceTask, as_csv, shared_tensors
from mtsp.evaluation.metrics_by_kind import lower_is_better
from mtsp.types import Batch, Examples, Kind, Outputs


class Brightness(nn.Module):
    """`backbone` scales the brightness x, `head` turns it into two logits: class 1 where scale * x > threshold."""

    branches = ("backbone", "head")

    def __init__(self, scale: float, threshold: float) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 2)
        with torch.no_grad():
            self.backbone.weight.fill_(scale)
            self.head.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.head.bias.copy_(torch.tensor([0.0, -threshold]))

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        return Outputs(label_logits=self.head(self.backbone(frame.mean((1, 2, 3))[:, None])))


class Lights:
    """Four images of brightness 0.1, 0.3, 0.5, 0.7; class 1 from 0.4 on."""

    kind: Kind = "labeled"
    classes = ("dark", "bright")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Batch:
        x = 0.1 + 0.2 * index
        return Batch(name=[str(index)], frame=torch.full((3, 2, 2), x), label=torch.tensor(int(x > 0.4)))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        raise AssertionError("evaluation draws nothing")


def on_lights(model: nn.Module, examples: Examples) -> Evaluation:
    return evaluate(Accelerator(cpu=True), model, examples)


def task(fine_tuned: nn.Module | None = None, **settings: object) -> SourceTask:
    """Before fine-tuning scale 1 and threshold 0.4: all four are right."""
    config = SourceConfig[Config].model_validate({"data": "lights", "heads": {"head": "old.safetensors"}, **settings})
    network = Brightness(1.0, 0.4)
    shared = shared_tensors(config, fine_tuned or network, network, Brightness.branches)
    return SourceTask(config, network, Lights(), shared=shared, evaluate=on_lights)


def test_the_fine_tuned_branch_is_measured_under_the_old_head() -> None:
    source = task()
    assert source.start is not None
    assert source.start.values()["top1"] == 1.0
    # Scale 2: 0.2, 0.6, 1.0, 1.4 against the old threshold 0.4: the second is wrong. The new head's 9 plays no part.
    now = source.measure(Brightness(2.0, 9.0))
    assert now.values()["top1"] == 0.75
    assert now.headlines()["retained"] == 0.75
    assert source.start.values()["top1"] == 1.0


def test_without_an_old_head_the_network_is_measured_as_it_is() -> None:
    source = task(heads={})
    assert source.measure(Brightness(1.0, 0.6)).values()["top1"] == 0.75  # 0.5 is taken for dark


class Painter(nn.Module):
    """Another network, whose `eye.scale` is what `backbone` is in :class:`Brightness`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.eye = nn.ModuleDict({"scale": nn.Linear(1, 1, bias=False)})
        self.brush = nn.Linear(1, 2)
        nn.init.constant_(self.eye["scale"].weight, scale)  # pyright: ignore[reportArgumentType]


def test_an_encoder_is_measured_in_the_classifier_that_it_comes_from() -> None:
    other: dict[str, object] = {"model": {}, "heads": {}, "shared": {"eye.scale": "backbone"}}
    painter = Painter(2.0)
    source = task(painter, **other)
    assert source.measure(painter).values()["top1"] == 0.75  # scale 2, as above
    found = {fraction: one.values()["top1"] for fraction, one in source.between(painter, (0.0, 1.0))}
    assert found == {0.0: 1.0, 1.0: 0.75}


def test_a_shared_module_that_one_of_the_networks_lacks_is_said() -> None:
    other: dict[str, object] = {"model": {}, "heads": {}}
    with pytest.raises(ConfigError, match=r"eye of the fine-tuned network does not fit .* \(eye.scale.weight\)"):
        task(Painter(2.0), **other, shared={"eye": "backbone"})
    with pytest.raises(ConfigError, match=r"nose .* \(it has no weights\); name the same module of both in `shared`"):
        task(Painter(2.0), **other, shared={"nose": "backbone"})
    with pytest.raises(ValueError, match="`model` and `shared` need each other"):
        SourceConfig[Config].model_validate({"data": "lights", "model": {}})


def test_between_start_and_end_the_shared_branches_are_interpolated_and_put_back() -> None:
    source, model = task(), Brightness(5.0, 9.0)
    # Scales 1, 3 and 5 against 0.4: brightness above 0.4, 0.13 and 0.08 is taken for class 1.
    found = {fraction: one.values()["top1"] for fraction, one in source.between(model, (0.0, 0.5, 1.0))}
    assert found == {0.0: 1.0, 0.5: 0.75, 1.0: 0.5}
    assert model.backbone.weight.item() == 5.0
    assert model.head.bias[1].item() == -9.0


def test_an_unknown_start_gives_no_retained_share() -> None:
    source = SourceTask(
        SourceConfig[Config](data="lights"),
        Brightness(1.0, 0.4),
        Lights(),
        shared={"backbone.weight": "backbone.weight"},
        evaluate=on_lights,
        measure_start=False,
    )
    assert "retained" not in source.measure(Brightness(1.0, 0.4)).values()


def test_a_start_of_nothing_retains_no_number() -> None:
    source = task()
    source.start = on_lights(Brightness(-1.0, -0.4), Lights())  # every one is wrong
    assert source.start.values()["top1"] == 0.0
    assert "retained" not in source.measure(Brightness(1.0, 0.4)).values()


def test_a_source_of_other_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.source.classes is 1000, but data.lights has 2"):
        task(classes=1000)


def test_the_curve_is_a_csv_of_every_metric() -> None:
    curve = {0.0: {"new/top1": 0.25, "source/top1": 1.0}, 1.0: {"new/top1": 0.75, "source/top1": 0.5}}
    assert as_csv(curve) == "fraction,new/top1,source/top1\n0.0,0.25,1.0\n1.0,0.75,0.5\n"


@pytest.mark.parametrize(
    ("metric", "lower"),
    [("top1", False), ("val/epe", True), ("fl_all", True), ("J_mean", False), ("J_decay", True), ("x/ece", True)],
)
def test_errors_are_better_when_lower(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


def test_errors_retain_the_start_as_a_share_of_now() -> None:
    class Flow(Lights):
        kind: Kind = "pairs"

        def __getitem__(self, index: int) -> Batch:
            frame = torch.zeros(3, 2, 2)
            return Batch(name=[str(index)], frame=frame, next_frame=frame, flow=torch.zeros(2, 2, 2))

    class Drift(nn.Module):
        def __init__(self, pixels: float) -> None:
            super().__init__()
            self.flow = nn.Conv2d(3, 2, 1)
            nn.init.zeros_(self.flow.weight)
            with torch.no_grad():
                assert self.flow.bias is not None
                self.flow.bias.copy_(torch.tensor([pixels, 0.0]))

        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            return Outputs(flow=self.flow(frame))

    shared = {name: name for name in ("flow.weight", "flow.bias")}
    source = SourceTask(SourceConfig[Config](data="x"), Drift(1.0), Flow(), shared=shared, evaluate=on_lights)
    now = source.measure(Drift(4.0)).values()
    assert now["epe"] == 4.0
    assert math.isclose(now["retained"], 0.25)  # the error was 1 and is 4
