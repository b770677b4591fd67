"""One optimizer step worked out by hand; what is held stays."""

import math
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtsp import losses
from mtsp.optim.groups import parameter_groups
from mtsp.optim.schedule import ScheduleConfig
from mtsp.regularizers import L2SP
from mtsp.tasks import FlowConfig, SegmentationConfig, Tasks
from mtsp.training.experiment import StageConfig, TrainConfig
from mtsp.training.loop import LEAST_SCALE, NonFiniteStep, optimizer_step, seed_model, set_trainable, train
from mtsp.training.state import Position, Requests, TrainState
from mtsp.types import IGNORE, Batch, Outputs

HEIGHT, WIDTH = 4, 6


class TwoBranches(nn.Module):
    """A mask from `segmentation`, a flow from `flow`: one convolution each, on one frame."""

    branches = ("segmentation", "flow")

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.segmentation = nn.Sequential(nn.Conv2d(3, 2, 1), *([nn.BatchNorm2d(2)] if norm else []))
        self.flow = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(dropout), *([nn.BatchNorm2d(2)] if norm else []))

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        return Outputs(mask_logits=self.segmentation(frame), flow=self.flow(frame))


class Fixture:
    """A network ready to train, and the optimizer under Accelerate's."""

    def __init__(self, model: nn.Module, tasks: Tasks, *, momentum: float = 0.0, lr: float = 0.1, **more: Any) -> None:
        groups = parameter_groups(model, {"segmentation": lr, "flow": lr / 2})
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
        accelerator = Accelerator(cpu=True)
        model, prepared = accelerator.prepare(model, self.optimizer)
        self.model = model
        self.parts = TrainState(accelerator, model, prepared, tasks, ("segmentation", "flow"), **more)

    def weights(self, branch: str = "") -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.model.state_dict().items() if k.startswith(branch)}


BOTH = Tasks(segmentation=SegmentationConfig(class_balance=False), flow=FlowConfig(weight=0.5))


def example(seed: int, known: int, flow: bool = True) -> Batch:
    """One frame; the first `known` pixels of its mask are known, and as many of its flow."""
    rng = torch.Generator().manual_seed(seed)
    valid = (torch.arange(HEIGHT * WIDTH) < known).view(1, HEIGHT, WIDTH)
    mask = torch.randint(0, 2, (1, HEIGHT, WIDTH), generator=rng)
    batch = Batch(name=[f"frame {seed}"], frame=torch.rand(1, 3, HEIGHT, WIDTH, generator=rng))
    batch["mask"] = torch.where(valid, mask, IGNORE)
    if flow:
        batch["flow"] = torch.randn(1, 2, HEIGHT, WIDTH, generator=rng)
        batch["flow_valid"] = valid
    return batch


def joined(*batches: Batch) -> Batch:
    merged: dict[str, Any] = {"name": [name for batch in batches for name in batch["name"]]}
    for key in batches[0]:
        if key != "name":
            merged[key] = torch.cat([batch[key] for batch in batches])
    return merged  # pyright: ignore[reportReturnType]


def fresh(norm: bool = False, dropout: float = 0.0) -> TwoBranches:
    torch.manual_seed(0)
    return TwoBranches(norm, dropout)


def test_a_loss_is_a_mean_over_all_known_pixels_of_the_step() -> None:
    """Cross-entropy and end-point error written out; frames know 20 and 4 pixels, and a mean of means would differ."""
    one, two = example(1, 20), example(2, 4)
    model = fresh()
    sums = {"segmentation": 0.0, "flow": 0.0}
    means = []
    with torch.no_grad():
        for batch, known in ((one, 20), (two, 4)):
            outputs = model(batch["frame"])
            chance = outputs["mask_logits"].softmax(1)[0].flatten(1)[:, :known]
            truth = batch["mask"].flatten()[:known]  # pyright: ignore[reportTypedDictNotRequiredAccess]
            entropy = -chance[truth, torch.arange(known)].log().sum()
            error = (outputs["flow"] - batch["flow"])[0].flatten(1)[:, :known].square().sum(0).add(1e-6).sqrt().sum()  # pyright: ignore[reportTypedDictNotRequiredAccess]
            sums["segmentation"] += float(entropy)
            sums["flow"] += 0.5 * float(error)  # the task's weight
            means.append(float(entropy) / known)
    result = optimizer_step(Fixture(model, BOTH).parts, [one, two], step=1)
    assert result.losses["segmentation"] == pytest.approx(sums["segmentation"] / 24, rel=1e-6)
    assert result.losses["segmentation"] != pytest.approx(sum(means) / 2, rel=1e-3)
    assert result.losses["flow"] == pytest.approx(sums["flow"] / 24, rel=1e-6)
    assert result.losses["loss"] == pytest.approx(result.losses["segmentation"] + result.losses["flow"], rel=1e-6)
    assert (result.samples, result.requests, result.gradient_norm) == (2, Requests(), None)


def test_micro_batches_of_unequal_counts_step_as_one_batch_does() -> None:
    one, two = example(1, 20), example(2, 4)
    whole, parts = Fixture(fresh(), BOTH, lr=1.0), Fixture(fresh(), BOTH, lr=1.0)
    start = whole.weights()
    optimizer_step(whole.parts, [joined(one, two)], step=1)
    optimizer_step(parts.parts, [one, two], step=1)
    for name, expected in whole.weights().items():
        torch.testing.assert_close(parts.weights()[name], expected, rtol=0, atol=1e-6)
        assert not torch.equal(expected, start[name])


def test_the_gradient_is_clipped_as_a_whole_and_its_norm_before_that_is_told() -> None:
    batch = example(1, 24)
    free, clipped = Fixture(fresh(), BOTH, lr=1.0), Fixture(fresh(), BOTH, lr=1.0)
    free.optimizer.param_groups[1]["lr"] = clipped.optimizer.param_groups[1]["lr"] = 1.0
    start = free.weights()
    optimizer_step(free.parts, [batch], step=1)
    result = optimizer_step(clipped.parts, [batch], step=1, clip=0.01)
    gradient = {name: start[name] - value for name, value in free.weights().items()}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
    for name, value in clipped.weights().items():
        torch.testing.assert_close(start[name] - value, gradient[name] * 0.01 / norm, rtol=1e-3, atol=1e-7)


def test_a_batch_that_teaches_nothing_is_refused_with_its_labels() -> None:
    batch = Batch(name=["a"], frame=torch.zeros(1, 3, HEIGHT, WIDTH), mask=torch.zeros(1, HEIGHT, WIDTH).long())
    with pytest.raises(ValueError, match="a has the labels mask and the network returns mask_logits, flow: some task"):
        optimizer_step(Fixture(fresh(), Tasks(flow=FlowConfig())).parts, [batch], step=1)


def test_a_loss_that_is_not_finite_names_step_and_term_and_changes_no_weight() -> None:
    run = Fixture(fresh(), BOTH, momentum=0.9)
    optimizer_step(run.parts, [example(1, 24)], step=1)
    before = run.weights()
    poisoned = example(2, 24)
    poisoned["flow"][0, 0, 0, 0] = math.nan  # pyright: ignore[reportTypedDictNotRequiredAccess]
    said = r"not finite at step 2: segmentation 0\.\d+, flow nan; in a batch of frame 2$"
    with pytest.raises(NonFiniteStep, match=said):
        optimizer_step(run.parts, [poisoned], step=2)
    assert all(torch.equal(value, before[name]) for name, value in run.weights().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


# Holding


def test_a_held_branch_does_not_move_by_gradient_momentum_or_regularizer() -> None:
    """Both branches learn for two steps, so that both have momentum; then the flow is held, and learns again."""
    run = Fixture(fresh(norm=True), BOTH, momentum=0.9)
    L2SP(run.model, anchors=None, alpha=0.0, beta=10.0).attach(run.parts.optimizer)
    set_trainable(run.parts, None)
    for step in (1, 2):
        optimizer_step(run.parts, [example(step, 24)], step=step)
    momentum = {p: run.optimizer.state[p]["momentum_buffer"].clone() for p in run.model.flow.parameters()}  # pyright: ignore[reportAttributeAccessIssue]
    assert all(float(buffer.abs().sum()) > 0 for buffer in list(momentum.values())[:1])
    flow, segmentation = run.weights("flow"), run.weights("segmentation")

    set_trainable(run.parts, ("segmentation",))
    for step in (3, 4):
        optimizer_step(run.parts, [example(step, 24)], step=step)
    assert all(torch.equal(value, flow[name]) for name, value in run.weights("flow").items())  # statistics included
    assert all(torch.equal(run.optimizer.state[p]["momentum_buffer"], buffer) for p, buffer in momentum.items())
    assert not any(torch.equal(value, segmentation[name]) for name, value in run.weights("segmentation").items())
    assert run.weights("flow").keys() >= {"flow.2.running_mean", "flow.2.num_batches_tracked"}

    set_trainable(run.parts, ("flow",))
    optimizer_step(run.parts, [example(5, 24)], step=5)
    assert not any(torch.equal(value, flow[name]) for name, value in run.weights("flow").items())


def test_a_frozen_branch_never_learns_and_frozen_statistics_stay_while_weights_learn() -> None:
    run = Fixture(fresh(norm=True), BOTH, frozen=("flow",), frozen_norm=("segmentation",))
    before = run.weights()
    for learn in (None, ("segmentation",)):
        set_trainable(run.parts, learn)
        optimizer_step(run.parts, [example(1, 24)], step=1)
    after = run.weights()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {f"segmentation.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}


# The loop


def stream_of(known: list[str]) -> Any:
    """Streams that note what was asked of them, and when they were closed."""

    def open_stream(name: str, size: int, first: int) -> Generator[Batch, None, None]:
        known.append(f"{name} by {size} from {first}")
        try:
            while True:
                yield example(first, 24)
                first += 1
        finally:
            known.append(f"{name} closed")

    return open_stream


STAGES = (
    StageConfig(steps=2, batch_size={"a": 1}, learn=("segmentation",)),
    StageConfig(steps=1, batch_size={"a": 4, "b": 1}, learn=("flow",)),
)


def steps(number: int, stages: tuple[StageConfig, ...] = STAGES) -> TrainConfig:
    return TrainConfig(steps=number, stages=stages)


def test_stages_follow_each_other_and_begin_again_where_their_streams_were() -> None:
    run, progress, opened, learned = Fixture(fresh(), BOTH), Position(), [], []
    before = run.weights()

    def after_step(result: Any, rates: dict[str, float]) -> None:
        nonlocal before
        after = run.weights()
        learned.append({name.split(".")[0] for name in after if not torch.equal(after[name], before[name])})
        before = after

    schedule, more = ScheduleConfig(), {"seed": 0, "after_step": after_step}
    assert not train(run.parts, progress, steps(4), schedule, open_stream=stream_of(opened), **more)
    assert learned == [{"segmentation"}, {"segmentation"}, {"flow"}, {"segmentation"}]
    assert progress == Position(4, {"a:1": 3, "a:4": 1, "b:1": 1})
    assert opened[:3] == ["a by 1 from 0", "a by 4 from 0", "b by 1 from 0"]
    assert sorted(opened[3:]) == ["a closed", "a closed", "b closed"]
    opened.clear()
    train(run.parts, progress, steps(6), schedule, open_stream=stream_of(opened), **more)
    assert opened[:3] == ["a by 1 from 3", "a by 4 from 1", "b by 1 from 1"]


def test_streams_are_closed_also_when_a_step_fails() -> None:
    opened: list[str] = []

    def fail(result: Any, rates: Any) -> None:
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(
            Fixture(fresh(), BOTH).parts,
            Position(),
            steps(2),
            ScheduleConfig(),
            open_stream=stream_of(opened),
            seed=0,
            after_step=fail,
        )
    assert opened == ["a by 1 from 0", "a closed"]


def test_each_branch_has_its_own_rate_under_the_common_schedule() -> None:
    run, rates = Fixture(fresh(), BOTH, lr=0.1), []
    train(
        run.parts,
        Position(),
        steps(4),
        ScheduleConfig(name="poly", power=1.0, warmup=2),
        open_stream=stream_of([]),
        seed=0,
        after_step=lambda result, now: rates.append(now),
    )
    # warm-up 1/2, 1, 1, 1; poly 1, 3/4, 2/4, 1/4
    shares = [0.5, 0.75, 0.5, 0.25]
    assert [now["segmentation"] for now in rates] == pytest.approx([0.1 * share for share in shares])
    assert [now["flow"] for now in rates] == pytest.approx([0.05 * share for share in shares])


def test_a_run_that_is_asked_to_stop_ends_after_the_step() -> None:
    progress = Position()
    asked = iter([False, True])
    assert train(
        Fixture(fresh(), BOTH).parts,
        progress,
        steps(9),
        ScheduleConfig(),
        open_stream=stream_of([]),
        seed=0,
        requests=lambda: Requests(stop=next(asked)),
    )
    assert progress.step == 2


def test_dropout_is_a_function_of_seed_step_and_process() -> None:
    def drawn(*where: int) -> list[float]:
        seed_model(*where)
        return torch.rand(3).tolist()

    assert drawn(1, 2, 0) == drawn(1, 2, 0)
    assert len({tuple(drawn(*where)) for where in ((1, 2, 0), (2, 1, 0), (1, 3, 0), (1, 2, 1), (0, 2, 0))}) == 5

    def trained(run: Fixture, first: int, last: int) -> dict[str, Tensor]:
        config = steps(last, (StageConfig(steps=1, batch_size={"a": 1}),))
        train(
            run.parts,
            Position(first, {"a:1": first}),
            config,
            ScheduleConfig(),
            open_stream=stream_of([]),
            seed=5,
        )
        return run.weights()

    whole = trained(Fixture(fresh(dropout=0.5), BOTH), 0, 4)
    halfway = Fixture(fresh(dropout=0.5), BOTH)
    trained(halfway, 0, 2)
    torch.rand(17)  # whatever is drawn in between
    resumed = trained(halfway, 2, 4)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# Measuring


def test_a_label_that_the_network_does_not_predict_is_refused_not_counted_as_learned() -> None:
    class OnlyMasks(TwoBranches):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            return Outputs(mask_logits=self.segmentation(frame))

    fixture = Fixture(OnlyMasks(), BOTH)
    with pytest.raises(
        ValueError, match=r"frame 0 has the labels flow, mask and the network returns mask_logits: some task"
    ):
        optimizer_step(fixture.parts, [example(0, 5)], step=1)


class InfiniteSlope(nn.Module):
    """Logits whose loss is finite and whose gradient is not: the root of 0 has an infinite slope."""

    branches = ("segmentation",)

    def __init__(self) -> None:
        super().__init__()
        self.segmentation = nn.Conv2d(3, 2, 1)

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        logits = self.segmentation(frame)
        return Outputs(mask_logits=logits + (logits - logits.detach()).pow(2).sqrt())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_names_the_samples_and_changes_no_weight(clip: float | None) -> None:
    model: Any = InfiniteSlope()
    optimizer = torch.optim.SGD(parameter_groups(model, {"segmentation": 0.1}), lr=0.1)
    accelerator = Accelerator(cpu=True)
    model, prepared = accelerator.prepare(model, optimizer)
    state = TrainState(accelerator, model, prepared, BOTH, ("segmentation",))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = example(3, 24)
    del batch["flow"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    with pytest.raises(NonFiniteStep, match=r"the gradient is not finite at step 7, though .* in a batch of frame 3$"):
        optimizer_step(state, [batch], step=7, clip=clip)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_with_fp16_a_gradient_that_stays_infinite_lowers_the_loss_scale_and_then_stops_the_run() -> None:
    model: Any = InfiniteSlope()
    accelerator = Accelerator(cpu=True)
    scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4 * LEAST_SCALE)
    model, prepared = accelerator.prepare(
        model, torch.optim.SGD(parameter_groups(model, {"segmentation": 0.1}), lr=0.1)
    )
    state = TrainState(accelerator, model, prepared, BOTH, ("segmentation",))
    batch = example(3, 24)
    del batch["flow"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    for step in (1, 2):  # each halves the scale
        optimizer_step(state, [batch], step=step)
    assert scaler.get_scale() == LEAST_SCALE
    with pytest.raises(NonFiniteStep, match=r"the gradient is not finite at step 3, .* in a batch of frame 3$"):
        optimizer_step(state, [batch], step=3)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_step_waits_for_the_gpu_once(monkeypatch: pytest.MonkeyPatch, clip: float | None) -> None:
    """To read a tensor's value in Python is to wait; the labels' classes are checked on CPUs only."""
    fixture = Fixture(fresh(), BOTH)
    L2SP(fixture.model, anchors=dict(fixture.model.named_parameters()), alpha=0.1, beta=0.1).attach(fixture.optimizer)
    batches = [BOTH.collate([one]) for one in (unbatched(1, 20), unbatched(2, 4))]
    waits: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *arguments: Any) -> Any:
            waits.append(name)
            return original(tensor, *arguments)

        return read

    monkeypatch.setattr(losses, "_check_classes", lambda *arguments: None)
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(Tensor, name, counted(name))
    optimizer_step(fixture.parts, batches, step=1, clip=clip)
    assert waits == ["tolist"]


def test_counts_made_by_a_worker_are_used() -> None:
    one, other = Fixture(fresh(), BOTH, lr=1.0), Fixture(fresh(), BOTH, lr=1.0)
    batch = BOTH.collate([unbatched(1, 20)])
    assert batch.get("counts") == {"segmentation": 20, "flow": 20}
    optimizer_step(one.parts, [batch], step=1)
    optimizer_step(other.parts, [example(1, 20)], step=1)
    assert all(map(torch.equal, one.weights().values(), other.weights().values()))


def unbatched(seed: int, known: int) -> Batch:
    """Return an example without the batch dimension, as a data set gives it."""
    return {key: value if key == "name" else value[0] for key, value in example(seed, known).items()}  # pyright: ignore
