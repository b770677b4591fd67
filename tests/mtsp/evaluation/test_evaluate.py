"""What is measured is measured at the labels' size, every example once, whatever batches and threads help."""

import math
import threading

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtsp.evaluation.evaluate import at_resolution, evaluate
from mtsp.evaluation.metrics_by_kind import VideoMasks
from mtsp.evaluation.tta import Network
from mtsp.types import IGNORE, Batch, Kind, Outputs

HEIGHT, WIDTH = 4, 6


class Stored:
    """Examples to evaluate on: frames of half the size of their labels."""

    kind: Kind = "video"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        """Mask: the left half. Flow: (3, 4) everywhere, but unknown in the first column."""
        mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
        mask[:, : WIDTH // 2] = 1
        flow = torch.tensor([3.0, 4.0]).view(2, 1, 1).expand(2, HEIGHT, WIDTH).clone()
        valid = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        valid[:, 0] = False
        frame = torch.zeros(3, HEIGHT // 2, WIDTH // 2)
        return Batch(name=[f"clip/{index:05d}"], frame=frame, mask=mask, flow=flow, flow_valid=valid)

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        raise AssertionError("evaluation draws nothing")


class Constant(nn.Module):
    """Says class 1 everywhere, and a flow of (1, 2) pixels of the frame: (2, 4) of labels twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.Dropout()

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        assert not self.training
        assert not torch.is_grad_enabled()
        frame = self.norm(frame)
        logits = torch.stack([torch.zeros_like(frame[:, 0]), torch.ones_like(frame[:, 0])], 1)
        flow = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(len(frame), 2, *frame.shape[-2:])
        return Outputs(mask_logits=logits, flow=flow)


def test_measured_at_the_labels_size_with_the_network_left_as_it_was() -> None:
    model = Constant().train()
    model.frozen.eval()
    seen: list[int] = []
    found = evaluate(Accelerator(cpu=True), model, Stored(4), after_example=lambda index, *rest: seen.append(index))
    values = found.values()
    assert values["epe"] == pytest.approx(1.0)  # (2, 4) against (3, 4): unscaled it would be |(2, 2)| = 2.8
    assert values["pixel_accuracy"] == pytest.approx(0.5)
    assert values["J_mean"] == pytest.approx(0.5)  # half of what is called object is object
    assert seen == [0, 1, 2, 3]
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)
    assert int(model.norm.num_batches_tracked) == 0  # pyright: ignore[reportArgumentType]


def test_a_flow_vector_grows_with_its_image_by_width_and_height() -> None:
    outputs = Outputs(flow=torch.ones(1, 2, 2, 3))
    batch = Batch(name=["a"], frame=torch.zeros(1, 3, 2, 3), flow=torch.zeros(1, 2, 8, 6))
    scaled = at_resolution(outputs, batch)
    assert scaled.keys() == {"flow"}
    assert scaled["flow"].flatten(2).unique(dim=2).tolist() == [[[2.0], [4.0]]]  # pyright: ignore[reportTypedDictNotRequiredAccess]


def test_what_is_not_predicted_or_not_labeled_is_not_measured() -> None:
    class Masks(Constant):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            return Outputs(mask_logits=super().forward(frame)["mask_logits"])  # pyright: ignore[reportTypedDictNotRequiredAccess]

    found = evaluate(Accelerator(cpu=True), Masks(), Stored(2))
    assert [type(metric) for metric in found.metrics] == [VideoMasks]
    assert not {"epe", "fl_all"} & found.values().keys()


def test_unknown_pixels_count_neither_for_nor_against_a_mask() -> None:
    class LeftHalfUnknownElsewhere(Stored):
        def __getitem__(self, index: int) -> Batch:
            sample = super().__getitem__(index)
            assert "mask" in sample
            sample["mask"][:, WIDTH // 2 :] = IGNORE
            return sample

    values = evaluate(Accelerator(cpu=True), Constant(), LeftHalfUnknownElsewhere(4)).values()
    assert values["J_mean"] == 1.0  # right on every known pixel; as background the rest would make it 0.5
    assert values["pixel_accuracy"] == 1.0


class Cracks:
    """Four unrelated photos of a wall, ten pixels each, of which the last five are a crack."""

    kind: Kind = "images"
    classes = ("background", "crack")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Batch:
        frame = torch.full((3, 1, 10), float("abcd"[index] in "bc"))
        return Batch(name=["abcd"[index]], frame=frame, mask=torch.tensor([[0] * 5 + [1] * 5]))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        raise AssertionError("evaluation draws nothing")


class SeesCracksInBrightImages(nn.Module):
    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        crack = frame[:, 0].clone()
        crack[..., :5] = 0
        return Outputs(mask_logits=torch.stack([torch.full_like(crack, 0.5), crack], 1))


def test_still_images_of_two_classes_are_no_video() -> None:
    """The cracks of a and d, the first and the last by name, are missed: as a video, they would not even count."""
    values = evaluate(Accelerator(cpu=True), SeesCracksInBrightImages(), Cracks()).values()
    background = 20 / (20 + 10)  # its 4 x 5 pixels are found, and the 2 x 5 of the missed cracks with them
    crack = 10 / 20  # 2 x 5 of 4 x 5 pixels
    assert values["miou"] == pytest.approx((background + crack) / 2)
    assert values["pixel_accuracy"] == pytest.approx(30 / 40)
    assert not {"J_mean", "F_mean", "iou"} & values.keys()


class Labeled:
    """Seven images of two sizes and of classes 0, 1, 2 in turn; the first pixel says which."""

    kind: Kind = "labeled"

    def __init__(self, unreadable: int | None = None) -> None:
        self.unreadable = unreadable

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Batch:
        if index == self.unreadable:
            raise ValueError("00005.jpg: not a image")
        frame = torch.full((3, 4, 6 if index < 4 else 8), index % 3 / 2)
        return Batch(name=[f"{index:05d}"], frame=frame, label=torch.tensor(index % 3))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        raise AssertionError("evaluation draws nothing")


class Pixel(nn.Module):
    """Knows classes 0 and 1 by their gray, and takes 2 for 1. Remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        self.batches.append(len(frame))
        gray = (frame[:, 0, 0, 0] * 2).round().long().clamp(max=1)
        return Outputs(label_logits=nn.functional.one_hot(gray, 3) * math.log(8))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("size", "batches"), [(1, [1] * 7), (3, [3, 1, 3]), (8, [4, 3])])
def test_images_of_one_size_are_measured_together_and_each_once(size: int, batches: list[int], workers: int) -> None:
    model, seen = Pixel(), []

    def after(index: int, batch: Batch, outputs: Outputs) -> None:
        assert batch["name"] == [f"{index:05d}"]
        assert outputs["label_logits"].shape == (1, 3)  # pyright: ignore[reportTypedDictNotRequiredAccess]
        seen.append(index)

    found = evaluate(
        Accelerator(cpu=True), model, Labeled(), batch_size=size, workers=workers, after_example=after
    ).values()
    assert model.batches == batches
    assert seen == list(range(7))
    assert found["top1"] == pytest.approx(5 / 7)  # classes 0 1 2 0 1 2 0: both images of class 2 are wrong
    assert found["class_accuracy"] == pytest.approx(2 / 3)
    # probability 8/10 for the chosen class, 1/10 for the others
    assert found["nll"] == pytest.approx((5 * math.log(10 / 8) + 2 * math.log(10)) / 7)


def test_an_unreadable_example_ends_the_evaluation_and_the_network_trains_on() -> None:
    model = Pixel().train()
    with pytest.raises(ValueError, match=r"00005\.jpg: not a image"):
        evaluate(Accelerator(cpu=True), model, Labeled(unreadable=5), workers=2)
    assert model.training


def test_an_error_ends_the_threads_that_decode_ahead() -> None:
    def after(index: int, batch: Batch, outputs: Outputs) -> None:
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full") as error:
        evaluate(Accelerator(cpu=True), Pixel(), Labeled(), workers=2, after_example=after)
    assert error.tb  # which keeps what it passed through: nothing has ended because it was forgotten
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("mtsp-decode", "mtsp-measure"))]


def test_an_example_is_measured_while_the_network_looks_at_the_next_one() -> None:
    second = threading.Event()

    class Signals(Pixel):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            if len(self.batches) == 1:
                second.set()
            return super().forward(frame, next_frame)

    def after(index: int, batch: Batch, outputs: Outputs) -> None:
        assert second.wait(timeout=60)
        assert not torch.is_grad_enabled()

    assert evaluate(Accelerator(cpu=True), Signals(), Labeled(), after_example=after).values()["top1"] > 0


def test_the_class_of_a_pixel_is_the_first_largest_as_argmax_has_it() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, math.nan, 0.0], [0.0, 1.0, 2.0, 9.0, math.nan]])[None]  # 1KN, K = 2
    assert logits.max(1).indices.tolist() == logits.argmax(1).tolist() == [[0, 0, 1, 0, 1]]


def test_views_decide_how_the_network_looks() -> None:
    def inverted(network: Network, batch: Batch) -> Outputs:
        return network(1 - batch["frame"], batch.get("next_frame"))

    found = evaluate(Accelerator(cpu=True), Pixel(), Labeled(), tta=inverted).values()
    assert found["top1"] == pytest.approx(2 / 7)  # gray 1, 1/2, 0 now: 0 is taken for 1, 1 for 1, 2 for 0
