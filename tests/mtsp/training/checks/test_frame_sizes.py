"""Sizes of frames are tried before training: those of crops, of evaluation, and of windows of its augmentation."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtsp.config import ConfigError
from mtsp.evaluation.tta import MultiScaleConfig, NoTtaConfig
from mtsp.training.checks.frame_sizes import try_sizes
from mtsp.types import Batch, Outputs


class Frames:
    """Frames of given sizes; crops of 32x32 in training."""

    kind = "images"

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Batch:
        return Batch(name=[str(index)], frame=torch.zeros(3, *self.sizes[index]))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        return Batch(name=[str(index)], frame=torch.zeros(3, 32, 32))


class Picky(nn.Module):
    """Takes frames whose sides are multiples of 32, and remembers their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Conv2d(3, 2, 1)
        self.seen: list[tuple[int, int, bool]] = []

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        height, width = frame.shape[-2:]
        self.seen.append((height, width, self.training))
        cells = frame.reshape(len(frame), 3, height // 32, 32, width // 32, 32)
        return Outputs(mask_logits=self.predict(cells.reshape(frame.shape)))


def experiment(tta: Any = None, evaluated: tuple[str, ...] = ("val",)) -> Any:
    evaluation = SimpleNamespace(data=evaluated, tta=tta or NoTtaConfig())
    return SimpleNamespace(train=SimpleNamespace(entries=["train"]), evaluation=evaluation)


def test_crops_are_tried_in_training_mode_and_frames_in_evaluation_mode_each_size_once() -> None:
    network = Picky().train()
    data: Any = {"train": Frames((5, 5)), "val": Frames((64, 96), (64, 96), (96, 64))}
    try_sizes(experiment(), network, data)
    assert network.seen == [(32, 32, True), (64, 96, False), (96, 64, False)]
    assert network.training


def test_a_size_that_fails_is_told_with_its_entry_and_sizes_that_work() -> None:
    data: Any = {"train": Frames((5, 5)), "val": Frames((64, 96), (50, 96))}
    with pytest.raises(ConfigError) as caught:
        try_sizes(experiment(), Picky(), data)
    text = str(caught.value)
    assert text.startswith("data.val, in evaluation: the network does not take frames of 50x96 (")
    assert text.endswith("); sizes that work are 224x224, 256x256, 384x384, 512x512")
    assert "\n" not in text


def test_windows_of_multi_scale_evaluation_are_tried_instead_of_whole_frames() -> None:
    """A frame of 50x96 at scale 1 of 96 pixels is cut into windows of 64x64, flipped ones beside them."""
    network = Picky()
    tta = MultiScaleConfig(name="multi_scale", base=96, crop=64, scales=(1.0,))
    try_sizes(experiment(tta), network, {"train": Frames((5, 5)), "val": Frames((50, 96))})  # pyright: ignore[reportArgumentType]
    assert {(height, width) for height, width, training in network.seen if not training} == {(64, 64)}
    with pytest.raises(ConfigError, match=r"data.val, in evaluation: .* frames of 60x60"):
        try_sizes(
            experiment(MultiScaleConfig(name="multi_scale", base=96, crop=60)),
            network,
            {"train": Frames((5, 5)), "val": Frames((50, 96))},  # pyright: ignore[reportArgumentType]
        )


def test_an_error_that_says_what_to_do_is_passed_on() -> None:
    class Says(Picky):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            raise ValueError("frames are too small; set crop")

    with pytest.raises(ConfigError, match=r"^data.train, in training: frames are too small; set crop$"):
        try_sizes(experiment(), Says(), {"train": Frames((5, 5)), "val": Frames((64, 64))})  # pyright: ignore[reportArgumentType]
