"""Examples as tensors: sizes, ranges and units by hand, and what a batch refuses."""

from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch

from data import AnyDataset, DataConfig, Labels
from data.augment.augment import AugmentConfig
from data.augment.color import ColorConfig
from data.files.images import write_image
from data.hugging_face import HuggingFaceConfig
from data.prepared import PreparedExamples
from data.types import DataError
from mtsp.config import ConfigError, parse
from mtsp.types import Examples, Kind, Sample


class Two:
    """Two examples of 4x6: a frame of one color, its next, a mask of ones, a flow of (3, -2)."""

    kind: Kind = "video"
    ids = ("surf/00000", "surf/00001")

    def __init__(self, *missing: str) -> None:
        self.missing = missing

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        frame = np.full((4, 6, 3), (255, 51, 0), np.uint8)
        valid = np.ones((4, 6), bool)
        valid[0, 0] = False
        whole: dict[str, Any] = {
            "name": self.ids[index],
            "frame": frame,
            "next_frame": frame // 2,
            "mask": np.ones((4, 6), np.uint8),
            "flow": np.full((4, 6, 2), (3, -2), np.float32),
            "flow_valid": valid,
        }
        return cast(Sample, {key: value for key, value in whole.items() if key not in self.missing})

    def labels(self, index: int) -> Labels:
        return cast(Labels, {key: value for key, value in self[index].items() if "frame" not in key})


def drawn(examples: PreparedExamples, index: int = 0, seed: int = 0) -> dict[str, Any]:
    return cast(dict[str, Any], examples.train_sample(index, np.random.default_rng(seed)))


def evaluated(examples: PreparedExamples, index: int = 0) -> dict[str, Any]:
    return cast(dict[str, Any], examples[index])


def test_an_example_is_what_the_framework_takes() -> None:
    examples: Examples = PreparedExamples(Two())
    assert len(examples) == 2
    assert PreparedExamples(Two()).ids == ["surf/00000", "surf/00001"]
    out = cast(dict[str, Any], examples[1])
    assert out["name"] == ["surf/00001"]
    layout = {key: (tuple(out[key].shape), out[key].dtype) for key in out if key != "name"}
    assert layout == {
        "frame": ((3, 4, 6), torch.float32),
        "next_frame": ((3, 4, 6), torch.float32),
        "mask": ((4, 6), torch.int64),
        "flow": ((2, 4, 6), torch.float32),
        "flow_valid": ((4, 6), torch.bool),
    }
    assert out["frame"].is_contiguous()
    # RGB in [0, 1] by division: 255 -> 1, 51 -> 0.2
    assert out["frame"][:, 2, 3].tolist() == [1.0, pytest.approx(0.2), 0.0]
    assert out["flow"][:, 2, 3].tolist() == [3.0, -2.0]


def test_every_byte_becomes_its_nearest_float() -> None:
    class Ramp(Two):
        def __getitem__(self, index: int) -> Sample:
            ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
            return Sample(name="ramp", frame=np.dstack([ramp, ramp, ramp]))

    expected = torch.arange(256, dtype=torch.float32).reshape(16, 16) / 255
    torch.testing.assert_close(evaluated(PreparedExamples(Ramp()))["frame"][1], expected, rtol=0, atol=0)


def test_evaluation_resizes_frames_and_leaves_labels_alone() -> None:
    out = evaluated(PreparedExamples(Two(), AugmentConfig(flip=1.0).build(), size=(8, 18)))
    assert out["frame"].shape == out["next_frame"].shape == (3, 8, 18)
    assert out["mask"].shape == out["flow_valid"].shape == (4, 6)
    assert out["flow"][:, 1, 1].tolist() == [3.0, -2.0]  # native pixels, not mirrored


def test_shrunken_evaluation_frames_are_averages() -> None:
    class Stripes(Two):
        def __getitem__(self, index: int) -> Sample:
            return Sample(name="a", frame=np.tile(np.array([0, 100], np.uint8)[None, :, None], (4, 4, 3)))

    frame = evaluated(PreparedExamples(Stripes(), size=(1, 2)))["frame"]
    torch.testing.assert_close(frame, torch.full((3, 1, 2), 50 / 255))


def test_a_draw_without_augmentation_resizes_everything_and_scales_the_vectors() -> None:
    out = drawn(PreparedExamples(Two(), size=(8, 18)))
    assert {tuple(out[key].shape[-2:]) for key in out if key != "name"} == {(8, 18)}
    # Twice as high, three times as wide: (3, -2) -> (9, -4); the unknown corner pixel is now 2x3.
    assert out["flow"][:, 4, 9].tolist() == [9.0, -4.0]
    assert (~out["flow_valid"]).sum() == 6
    assert not out["flow_valid"][:2, :3].any()
    assert (out["mask"] == 1).all()


def test_a_draw_of_neither_augmentation_nor_size_is_the_example_itself() -> None:
    examples = PreparedExamples(Two())
    for key, value in evaluated(examples).items():
        if key != "name":
            torch.testing.assert_close(drawn(examples)[key], value, rtol=0, atol=0)


def test_a_draw_is_augmented_and_depends_on_its_generator_alone() -> None:
    augmentation = AugmentConfig(crop=(2, 2), position="random", flip=0.5, color=ColorConfig(noise=(0.1, 0.1))).build()
    examples = PreparedExamples(Two(), augmentation, size=(8, 18))
    first, again, other = drawn(examples, seed=1), drawn(examples, seed=1), drawn(examples, seed=2)
    assert first["frame"].shape == (3, 2, 2)  # the crop, not the evaluation size
    torch.testing.assert_close(first["frame"], again["frame"], rtol=0, atol=0)
    assert not torch.equal(first["frame"], other["frame"])


@pytest.mark.parametrize("size", [None, (8, 18)])
def test_a_mask_of_another_size_than_its_frame_is_refused(size: tuple[int, int] | None) -> None:
    class Odd(Two):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample["mask"] = np.ones((4, 5), np.uint8)
            return sample

    with pytest.raises(ValueError, match=r"surf/00000: mask is 4x5"):
        PreparedExamples(Odd(), size=size).train_sample(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"surf/00000: mask is 4x5"):
        PreparedExamples(Odd(), size=size)[0]


VIDEO = {"name": "davis", "root": "DAVIS"}
OWN = {"name": "folder", "frames": "frames"}


@pytest.mark.parametrize(
    ("dataset", "instead"),
    [(VIDEO, "set `dataset.sequences`$"), (OWN | {"masks": "masks"}, "folders with fewer sequences$")],
)
def test_videos_with_masks_are_not_limited_to_some_of_their_frames(dataset: dict[str, str], instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"`limit` would split sequences, .*{instead}"):
        parse(DataConfig, {"dataset": dataset, "limit": 10})
    assert parse(DataConfig, {"dataset": dataset}).limit is None


@pytest.mark.parametrize(
    "dataset",
    [OWN, OWN | {"masks": "masks", "kind": "images", "classes": 5}, {"name": "flying_chairs", "root": "chairs"}],
)
def test_examples_that_are_scored_one_by_one_can_be_limited(dataset: dict[str, str]) -> None:
    assert parse(DataConfig, {"dataset": dataset, "limit": 10}).limit == 10


@pytest.mark.parametrize("config", get_args(get_args(AnyDataset)[0]), ids=lambda config: config.__name__)
def test_every_data_set_says_what_it_holds(config: Any) -> None:
    expected = {"data.video": "video", "data.flow": "pairs", "data.segmentation": "images"}
    if config is HuggingFaceConfig:  # its columns decide
        config = config(name="hugging_face", path="x", image="image", mask="mask")
        assert config.kind == "images"
        return
    kind = config.kind if "kind" not in config.model_fields else config.model_fields["kind"].default
    assert kind == expected.get(config.__module__.rpartition(".")[0], "labeled")


def test_frames_of_more_than_two_classes_are_no_video() -> None:
    with pytest.raises(ConfigError, match=r"`classes` is 5; set `kind: images` to score each class"):
        parse(DataConfig, {"dataset": OWN | {"masks": "masks", "classes": 5}})
    with pytest.raises(ConfigError, match=r"set `classes`, the number of classes in the masks"):
        parse(DataConfig, {"dataset": OWN | {"masks": "masks", "kind": "images"}})


def test_a_split_holds_out_the_same_part_of_every_class(tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 5)):
        (tmp_path / name).mkdir()
        for index in range(count):
            write_image(tmp_path / name / f"{index}.png", np.zeros((4, 4, 3), np.uint8))
    dataset = {"name": "image_folder", "root": str(tmp_path)}

    def part(which: str, seed: int = 0) -> list[str]:
        section = {"fraction": 0.4, "seed": seed, "part": which}
        return list(parse(DataConfig, {"dataset": dataset, "holdout": section}).build_dataset().ids)

    rest, held_out = part("rest"), part("held_out")
    assert sorted(rest + held_out) == sorted(parse(DataConfig, {"dataset": dataset}).build_dataset().ids)
    assert [sum(name.startswith(f"{c}/") for name in held_out) for c in "ab"] == [4, 2]  # 0.4 of 10 and of 5
    assert part("held_out") == held_out != part("held_out", seed=1)


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_image(tmp_path / "a/1.png", np.zeros((4, 4, 3), np.uint8))
    section = {"fraction": 0.5, "part": "rest"}
    dataset = {"name": "image_folder", "root": str(tmp_path)}
    with pytest.raises(DataError, match="holdout: a/1 is the only one of its class"):
        parse(DataConfig, {"dataset": dataset, "holdout": section}).build()


def test_a_split_of_videos_is_refused() -> None:
    section = {"fraction": 0.5, "part": "rest"}
    with pytest.raises(ConfigError, match="`holdout` would split sequences"):
        parse(DataConfig, {"dataset": {"name": "davis", "root": "x"}, "holdout": section})
