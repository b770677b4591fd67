"""IoU, accuracies and calibration of random predictions, as torchmetrics measures them."""

from typing import Any

import numpy as np
import pytest
import torch

from mtsp.metrics import ClassificationScores, ConfusionMatrix

peer: Any = pytest.importorskip("torchmetrics.classification")


@pytest.mark.parametrize("seed", range(40))
def test_class_iou_pixel_accuracy_and_the_confusion_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 30))
    truth = torch.from_numpy(rng.choice([*range(classes), 255], (3, 11, 13)))
    truth[0, :classes, 0] = torch.arange(classes)[:11]  # torchmetrics counts a class that is nowhere as 0 or 1
    logits = torch.from_numpy(rng.normal(size=(3, classes, 11, 13)).astype(np.float32))
    ours = ConfusionMatrix(classes)
    for i in range(3):
        ours.update(logits[i : i + 1], truth[i : i + 1])
    options = {"num_classes": classes, "ignore_index": 255}
    matrix = peer.MulticlassConfusionMatrix(**options)(logits, truth)
    np.testing.assert_array_equal(ours.counts[:classes, :classes], matrix.numpy())
    iou = peer.MulticlassJaccardIndex(**options, average="none")(logits, truth)
    np.testing.assert_allclose(ours.class_iou(), iou.numpy(), rtol=1e-6)
    accuracy = peer.MulticlassAccuracy(**options, average="micro")(logits, truth)
    assert ours.compute()["pixel_accuracy"] == pytest.approx(float(accuracy), rel=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_accuracies_and_calibration_of_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, images = int(rng.integers(6, 40)), 200
    logits = torch.from_numpy(rng.normal(0, 3, (images, classes)).astype(np.float32))
    truth = torch.from_numpy(rng.integers(0, classes, images))
    truth[: images // 2] = logits[: images // 2].argmax(1)
    ours = ClassificationScores(classes)
    for part in (slice(0, 70), slice(70, None)):
        ours.update(logits[part], truth[part])
    found = ours.compute()
    for k in (1, 5):
        accuracy = peer.MulticlassAccuracy(classes, top_k=k, average="micro")(logits, truth)
        assert found[f"top{k}"] == pytest.approx(float(accuracy), rel=1e-6)
    assert found["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits.double(), truth)), rel=1e-6)
    for name, norm in (("ece", "l1"), ("mce", "max")):
        error = peer.MulticlassCalibrationError(classes, n_bins=15, norm=norm)(logits.softmax(1), truth)
        assert found[name] == pytest.approx(float(error), abs=2e-6)
