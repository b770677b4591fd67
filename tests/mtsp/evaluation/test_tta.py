"""Test-time augmentation: many crops at once give what one crop at a time gives, written out plainly here."""

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtsp.config import Config, ConfigError, parse
from mtsp.evaluation.tta import AnyTta, MultiCropConfig, MultiScaleConfig, NoTtaConfig
from mtsp.types import Batch, Outputs


class Holder(Config):
    tta: AnyTta = NoTtaConfig()


def scales(**settings: Any) -> MultiScaleConfig:
    return MultiScaleConfig(name="multi_scale", **settings)


class Segmenter(nn.Module):
    """Five classes from a 5x5 neighborhood; sees the border, so that a window's place and its padding matter."""

    def __init__(self, factor: float = 1.0, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(channels, 5, kernel_size=5, padding=2)
        self.factor = factor
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        self.sizes.append(tuple(frame.shape))
        images = frame if next_frame is None else torch.cat([frame, next_frame], dim=1)
        return Outputs(mask_logits=self.factor * self.layer(images), flow=frame[:, :2])


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def batch_of(frame: Tensor, **more: Tensor) -> Batch:
    return cast(Batch, {"name": ["a"] * len(frame), "frame": frame, **more})


def look(config: MultiScaleConfig, network: nn.Module, frame: Tensor, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return config.build()(network, batch_of(frame, **more)).get("mask_logits", torch.empty(0))


def padded_to(images: Tensor, height: int, width: int) -> Tensor:
    out = torch.zeros(1, images.shape[1], max(height, images.shape[2]), max(width, images.shape[3]), dtype=images.dtype)
    out[:, :, : images.shape[2], : images.shape[3]] = images
    return out


def score_of_window(network: nn.Module, window: Tensor, flip: bool) -> Tensor:
    logits = network(window)["mask_logits"]
    if flip:
        logits = logits + network(window.flip(3))["mask_logits"].flip(3)
    return logits.exp()


def one_window_at_a_time(config: MultiScaleConfig, network: nn.Module, frame: Tensor) -> Tensor:
    """EncNet's evaluation as its authors describe it, in float64: the sum over scales of mean scores of windows."""
    network, frame = network.double(), frame.double()
    height, width = frame.shape[2:]
    crop, step = config.crop, int(config.crop * config.stride)
    total = torch.zeros(1, 5, height, width, dtype=torch.float64)
    for scale in config.scales:
        long = math.ceil(config.base * scale)
        if height > width:
            high, wide = long, max(1, int(width * long / height + 0.5))
        else:
            high, wide = max(1, int(height * long / width + 0.5)), long
        scaled = F.interpolate(frame, size=(high, wide), mode="bilinear", align_corners=True)
        if long <= crop:
            scores = score_of_window(network, padded_to(scaled, crop, crop), config.flip)[:, :, :high, :wide]
        else:
            whole = padded_to(scaled, crop, crop)  # the short side may be below the crop
            tall, broad = whole.shape[2:]
            scores, count = torch.zeros(1, 5, tall, broad, dtype=torch.float64), torch.zeros(1, 1, tall, broad)
            for row in range(math.ceil((tall - crop) / step) + 1):
                for column in range(math.ceil((broad - crop) / step) + 1):
                    top, left = row * step, column * step
                    bottom, right = min(top + crop, tall), min(left + crop, broad)  # cut, not moved back
                    window = padded_to(whole[:, :, top:bottom, left:right], crop, crop)
                    score = score_of_window(network, window, config.flip)
                    scores[:, :, top:bottom, left:right] += score[:, :, : bottom - top, : right - left]
                    count[:, :, top:bottom, left:right] += 1
            assert (count > 0).all()
            scores = (scores / count)[:, :, :high, :wide]
        total += F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=True)
    network.float()
    return total.log()


@pytest.mark.parametrize("size", [(33, 47), (47, 33), (40, 40), (7, 9), (1, 50), (25, 52)])
@pytest.mark.parametrize("flip", [True, False])
def test_all_windows_at_once_are_one_window_at_a_time(size: tuple[int, int], flip: bool) -> None:
    config = scales(base=52, crop=24, scales=(0.4, 0.75, 1.0, 1.3), flip=flip, batch_size=7)  # 52 > 24: 1 to 12 windows
    network, frame = Segmenter(factor=8), image(*size)
    expected = one_window_at_a_time(config, network, frame)
    found = look(config, network, frame)
    assert found.shape == (1, 5, *size)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    base=st.integers(2, 60),
    crop=st.integers(2, 40),
    stride=st.floats(0.5, 1),
    scale=st.floats(0.3, 2),
    batch=st.integers(1, 50),
)
@settings(max_examples=40, deadline=None)
def test_any_sizes_agree(
    height: int, width: int, base: int, crop: int, stride: float, scale: float, batch: int
) -> None:
    config = scales(base=base, crop=crop, stride=stride, scales=(scale, 1.0), batch_size=batch)
    network, frame = Segmenter(), image(height, width)
    expected = one_window_at_a_time(config, network, frame)
    torch.testing.assert_close(look(config, network, frame).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_pascal_photo_takes_thirty_six_forwards_of_one_size() -> None:
    class Counter(nn.Module):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            seen.append(tuple(frame.shape))
            return Outputs(mask_logits=frame[:, :2])

    seen: list[tuple[int, ...]] = []
    look(scales(batch_size=16), Counter(), image(375, 500))
    # Long sides 260, 390, 520, 650, 780, 910, short ones 195, 293, 390, 488, 585, 683: 1 + 1 + 2 + 4 + 4 + 6 windows.
    assert seen == [(16, 3, 480, 480), (16, 3, 480, 480), (4, 3, 480, 480)]


def test_a_crop_larger_than_the_image_sees_black_right_and_below() -> None:
    network = Segmenter()
    look(scales(base=10, crop=16, scales=(1.0,), flip=False), network, torch.ones(1, 3, 8, 10))
    assert network.sizes == [(1, 3, 16, 16)]

    class Bright(nn.Module):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            seen.append(frame[0, 0])
            return Outputs(mask_logits=frame)

    seen: list[Tensor] = []
    look(scales(base=10, crop=16, scales=(1.0,), flip=False), Bright(), torch.ones(1, 3, 8, 10))
    expected = torch.zeros(16, 16)
    expected[:8, :10] = 1
    torch.testing.assert_close(seen[0], expected)


def test_one_scale_that_fits_is_the_networks_own_decision() -> None:
    """With one window as large as the image nothing is resized, padded or averaged: log(exp(z)) = z."""
    network, frame = Segmenter(), image(20, 30)
    found = look(scales(base=30, crop=30, scales=(1.0,), flip=False), network, frame)
    with torch.no_grad():
        torch.testing.assert_close(found, network(frame)["mask_logits"], rtol=1e-4, atol=1e-5)


def test_mirror_images_make_the_decision_symmetric() -> None:
    network, frame = Segmenter(), image(20, 30)
    config = scales(base=30, crop=30, scales=(1.0,))
    torch.testing.assert_close(look(config, network, frame.flip(3)), look(config, network, frame).flip(3))


def test_logits_beyond_the_range_of_float32_still_decide() -> None:
    """e^89 is infinite in float32; here a window and its mirror image reach 150, and some classes are far below."""
    config = scales(base=40, crop=24, scales=(0.5, 1.0), batch_size=2)
    network, frame = Segmenter(factor=40), image(30, 40)
    assert network.layer.bias is not None
    network.layer.bias.data += 1
    expected = one_window_at_a_time(config, network, frame)
    assert expected.max() > 120
    found = look(config, network, frame)
    assert found.isfinite().all()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.999
    torch.testing.assert_close(found.softmax(1).double(), expected.softmax(1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("level", [-200.0, -60.0, 60.0, 200.0])
@pytest.mark.parametrize("flip", [True, False])
def test_the_level_of_all_logits_decides_nothing(level: float, flip: bool) -> None:
    """e^-104 is 0 in float32: a window's and its mirror image's -60 made every pixel class 0."""
    config = scales(base=40, crop=24, scales=(0.5, 1.0), flip=flip, batch_size=2)
    network, frame = Segmenter(factor=8), image(30, 40)
    usual = look(config, network, frame)
    assert len(usual.argmax(1).unique()) > 1
    assert network.layer.bias is not None
    network.layer.bias.data += level / 8
    found = look(config, network, frame)
    near = usual.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] < 1e-3  # float32 rounds 60.00001 and 60 to one number
    assert near.float().mean() < 0.01
    assert (found.argmax(1) == usual.argmax(1))[~near].all()
    torch.testing.assert_close(found, usual + level * (2 if flip else 1), rtol=1e-5, atol=2e-3)


def test_the_batch_does_not_change_the_result() -> None:
    network, frame = Segmenter(), image(33, 47)
    results = [look(scales(base=52, crop=24, batch_size=batch), network, frame) for batch in (1, 2, 5, 100)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flip", [True, False])
def test_the_memory_format_of_the_logits_changes_no_bit_and_they_stay_the_networks_own(flip: bool) -> None:
    config = scales(base=52, crop=24, scales=(0.5, 1.0, 1.5), flip=flip)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        kept = torch.randn(100, 5, 24, 24, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
        before = kept.clone()

        def network(frame: Tensor, next_frame: Tensor | None, kept: Tensor = kept) -> Outputs:
            return Outputs(mask_logits=kept[: len(frame)])

        results.append(config.build()(network, batch_of(image(33, 47))).get("mask_logits"))
        assert torch.equal(kept, before)
    assert torch.equal(*results)


def test_images_of_a_batch_are_looked_at_each_by_itself() -> None:
    network, frames = Segmenter(), [image(33, 47), image(33, 47, seed=1)]
    config = scales(base=52, crop=24, batch_size=12)
    together = look(config, network, torch.cat(frames))
    torch.testing.assert_close(together, torch.cat([look(config, network, frame) for frame in frames]))


def test_the_next_frame_is_cut_alike() -> None:
    """A network that subtracts the frames sees nothing where both are the same, in every window."""

    class Difference(nn.Module):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            assert next_frame is not None
            return Outputs(mask_logits=frame - next_frame)

    frame = image(33, 47)
    config = scales(base=52, crop=24, scales=(0.5, 1.0))
    same = look(config, Difference(), frame, next_frame=frame)
    # Logits 0 have score 1; two scales: log 2.
    torch.testing.assert_close(same, torch.full_like(same, math.log(2)))
    assert look(config, Difference(), frame, next_frame=image(33, 47, seed=1)).std() > 0.1


def test_whole_passes_on_everything_the_network_says() -> None:
    network, frame = Segmenter(), image(9, 11)
    outputs = Holder().tta.build()(network, batch_of(frame))
    assert set(outputs) == {"mask_logits", "flow"}
    torch.testing.assert_close(outputs["mask_logits"], network(frame)["mask_logits"])  # pyright: ignore[reportTypedDictNotRequiredAccess]


def test_scales_refuse_what_they_cannot_add_up() -> None:
    class Classifier(nn.Module):
        def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
            return Outputs(label_logits=frame.mean((2, 3)))

    with pytest.raises(ValueError, match="this network predicts none; use tta `none`"):
        look(scales(), Classifier(), image(8, 8))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"name": "multi_scale", "crop": 1, "stride": 0.5}, "is less than one pixel"),
        ({"name": "multi_scale", "scales": []}, "at least 1 item"),
        ({"name": "multi_scale", "stride": 1.5}, "less than or equal to 1"),
        ({"name": "multi_crop", "sizes": [200, 256]}, "224 pixels does not fit into an image whose short side is 200"),
        ({"name": "scale"}, "scale"),
    ],
)
def test_a_mistake_in_the_config_is_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(Holder, {"tta": settings})


class Corner(nn.Module):
    """Class scores are the three colors of a crop's first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        self.seen.append(len(frame))
        return Outputs(label_logits=frame[:, :, 0, 0])


def chances(config: MultiCropConfig, frame: Tensor, network: nn.Module | None = None) -> Tensor:
    return config.build()(network or Corner(), batch_of(frame)).get("label_logits", torch.empty(0)).exp()


def test_ten_crops_are_the_corners_the_middle_and_their_mirror_images() -> None:
    frame = torch.cat([image(6, 9), image(6, 9, seed=1)])
    config = MultiCropConfig(name="multi_crop", sizes=(6,), crop=4, batch_size=7)
    # The first pixels of crops at rows 0 and 2, columns 0 and 5, and in the middle at (1, 2); of their mirror images
    # the last pixel of the first row, three columns on. (9 - 4) / 2 = 2.5 is rounded to the even 2.
    corners = [(0, 0), (0, 5), (2, 0), (2, 5), (1, 2)]
    pixels = [frame[:, :, row, column + mirrored] for row, column in corners for mirrored in (0, 3)]
    expected = torch.stack([pixel.softmax(1) for pixel in pixels]).mean(0)
    network = Corner()
    torch.testing.assert_close(chances(config, frame, network), expected)
    assert network.seen == [7, 7, 6]  # 2 images x 10 crops


def test_the_mean_is_of_probabilities_not_of_logits() -> None:
    """Crops that are sure of classes 0 and 1 with unlike force share the image evenly; their logits would not."""
    frame = torch.zeros(1, 3, 2, 4)
    frame[:, 0, :, :2], frame[:, 1, :, 2:] = 100, 50
    found = chances(MultiCropConfig(name="multi_crop", sizes=(2,), crop=2, places="corners", flip=False), frame)
    # Columns 0 (twice), 2 (twice) and 1 in the middle, whose first pixel is class 0's: 3/5 and 2/5.
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.4, 0.0]]))


def test_several_sizes_are_averaged() -> None:
    frame = image(8, 12)
    both, small, large = (
        chances(MultiCropConfig(name="multi_crop", sizes=sizes, crop=4, places="center", flip=False), frame)
        for sizes in ((6, 8), (6,), (8,))
    )
    torch.testing.assert_close(both, (small + large) / 2)
    assert not torch.allclose(small, large)


def test_crops_need_a_label() -> None:
    with pytest.raises(ValueError, match="predicts none; use tta `none`"):
        chances(MultiCropConfig(name="multi_crop"), image(32, 32), Segmenter())
