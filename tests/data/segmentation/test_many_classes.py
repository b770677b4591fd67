"""Masks of 16 bits and more than 255 classes, from the files to the network's loss, scores and predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.files.images import write_image
from data.files.masks import byte_ids, read_mask, write_mask
from data.prepared import DataConfig
from data.segmentation.label_map import RESERVED, LabelMap
from mtsp.config import parse
from mtsp.evaluation.classes import align
from mtsp.figures.masks import overlay
from mtsp.losses import cross_entropy
from mtsp.metrics.segmentation import ConfusionMatrix

NAMES = [f"part {i}" for i in range(300)]


def own(root: Path, stored: list[int], **settings: Any) -> DataConfig:
    """An image whose mask holds each value in two pixels: one row of each."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    write_image(root / "images/1.png", np.zeros((2, len(stored), 3), np.uint8))
    Image.fromarray(np.array([stored, stored], np.uint16)).save(root / "masks/1.png")
    dataset = {"name": "mask_folder", "frames": str(root / "images"), "masks": str(root / "masks"), **settings}
    return parse(DataConfig, {"dataset": dataset})


def test_the_number_255_is_left_out_of_more_than_255_classes(tmp_path: Path) -> None:
    config = own(tmp_path, [0, 1, 255, 256, 300], classes=NAMES, values=list(range(1, 301)), unknown=[0])
    examples = config.build()
    classes: tuple[str, ...] = examples.classes  # pyright: ignore[reportAttributeAccessIssue]
    assert len(classes) == 301
    assert (classes[254], classes[255], classes[256], classes[300]) == ("part 254", RESERVED, "part 255", "part 299")
    mask = examples[0].get("mask", torch.zeros(1))
    assert mask[0].tolist() == [255, 0, 254, 256, 300]
    augmented = examples.train_sample(0, np.random.default_rng(0)).get("mask", torch.zeros(1))
    assert torch.equal(augmented, mask)
    logits = torch.full((1, 301, 2, 5), -20.0)
    logits[0, [7, 0, 254, 256, 300], :, range(5)] = 20.0  # right in all known pixels
    assert float(cross_entropy(logits, mask[None], class_balance=False).total) < 1e-6
    scores = ConfusionMatrix(301)
    scores.update(logits, mask[None])
    assert scores.compute()["pixels"] == 8
    assert scores.compute()["miou"] == 1.0
    assert 255 in scores.absent()
    backwards = align("data.val", examples, classes[::-1], "the weights")[0].get("mask", torch.zeros(1))
    assert backwards[0].tolist() == [255, 300, 46, 44, 0]
    assert overlay(np.zeros((2, 5, 3), np.uint8), mask.numpy()).shape == (2, 5, 3)


def test_few_classes_may_have_values_of_16_bits(tmp_path: Path) -> None:
    config = own(tmp_path, [1000, 7, 65535], classes=["road", "car"], values=[7, 1000], unknown=[65535])
    dataset = config.build_dataset()
    mask = dataset.labels(0).get("mask", np.zeros(1))
    assert mask.dtype == np.uint8
    assert mask[0].tolist() == [1, 0, 255]
    with pytest.raises(ValueError, match=r"the values \[1000\] are not in the label map mask_folder \(classes: 5, 7"):
        own(tmp_path, [7, 1000], classes=["road", "car"], values=[5, 7]).build_dataset()[0]
    with pytest.raises(ValueError, match=r"the values \[65536\] are not in 0 to 65535"):
        LabelMap("wide", ("a",), (65536,))


def test_predictions_above_255_are_written_with_16_bits(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 300]])
    write_mask(tmp_path / "wide.png", byte_ids(ids))
    assert np.array_equal(read_mask(tmp_path / "wide.png"), ids)
    write_mask(tmp_path / "byte.png", byte_ids(ids[:, :2]))
    assert read_mask(tmp_path / "byte.png").dtype == np.uint8
    Image.fromarray(np.array([[3, 9]], np.uint16)).save(tmp_path / "deep.png")
    assert read_mask(tmp_path / "deep.png").dtype == np.uint8  # few values in 16 bits are read as usual
