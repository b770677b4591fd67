"""TF-slim's Inception-V3, written here once more after its source, gives the same in torchvision's network.

No published checkpoint was at hand: the arrays are made up, their names and shapes are those of slim's source.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.classifier import Classifier, ClassifierConfig
from models.pretrained.load import load_branch
from mtsp.config import parse

AVERAGE = "/ExponentialMovingAverage"
Arrays = dict[str, np.ndarray]


class Slim:
    """inception_v3.py of TF-slim: makes each variable when a convolution first asks for it.

    Args:
        classes: of both heads.
        padding_counts: whether the average pooling of the blocks counts its padding, as torchvision's does; slim's own
            does not.
    """

    def __init__(self, classes: int, *, padding_counts: bool) -> None:
        self.classes, self.padding_counts = classes, padding_counts
        self.rng = np.random.default_rng(0)
        self.arrays: Arrays = {}

    def variable(self, name: str, make: Callable[[], np.ndarray]) -> Tensor:
        if name not in self.arrays:
            self.arrays[name] = make().astype(np.float32)
        return torch.from_numpy(self.arrays[name])

    def kernel(self, scope: str, net: Tensor, depth: int, size: tuple[int, int]) -> Tensor:
        shape = (*size, net.shape[1], depth)
        made = self.variable(f"{scope}/weights", lambda: self.rng.normal(0, (2 / np.prod(shape[:3])) ** 0.5, shape))
        return made.permute(3, 2, 0, 1)

    def conv(
        self, net: Tensor, scope: str, depth: int, height: int, width: int, stride: int = 1, *, valid: bool = False
    ) -> Tensor:
        scope = f"InceptionV3/{scope}"
        kernel = self.kernel(scope, net, depth, (height, width))
        net = F.conv2d(net, kernel, stride=stride, padding=(0, 0) if valid else (height // 2, width // 2))
        norm = f"{scope}/BatchNorm"
        beta = self.variable(f"{norm}/beta", lambda: self.rng.normal(0, 0.2, depth))
        mean = self.variable(f"{norm}/moving_mean", lambda: self.rng.normal(0, 0.2, depth))
        variance = self.variable(f"{norm}/moving_variance", lambda: self.rng.uniform(0.5, 1.5, depth))
        beta, mean, variance = (value.view(1, -1, 1, 1) for value in (beta, mean, variance))
        return F.relu((net - mean) / (variance + 0.001).sqrt() + beta)

    def logits(self, net: Tensor, scope: str) -> Tensor:
        scope = f"InceptionV3/{scope}"
        bias = self.variable(f"{scope}/biases", lambda: self.rng.normal(0, 0.2, self.classes))
        return F.conv2d(net, self.kernel(scope, net, self.classes, (1, 1)), bias)[:, :, 0, 0]

    def pooled(self, net: Tensor, scope: str, depth: int) -> Tensor:
        return self.conv(F.avg_pool2d(net, 3, 1, 1, count_include_pad=self.padding_counts), scope, depth, 1, 1)

    def chain(self, net: Tensor, scope: str, *layers: tuple[str, int, int, int]) -> Tensor:
        """One convolution after the other: name, depth, height, width; those of stride 2 are called 1a."""
        for name, depth, height, width in layers:
            halves = "_1a_" in name
            net = self.conv(net, f"{scope}/{name}", depth, height, width, 2 if halves else 1, valid=halves)
        return net

    def mixed_5(self, net: Tensor, name: str, depth: int, second: tuple[str, str]) -> Tensor:
        triple = ("Conv2d_0a_1x1", 64, 1, 1), ("Conv2d_0b_3x3", 96, 3, 3), ("Conv2d_0c_3x3", 96, 3, 3)
        parts = (
            self.chain(net, f"{name}/Branch_0", ("Conv2d_0a_1x1", 64, 1, 1)),
            self.chain(net, f"{name}/Branch_1", (second[0], 48, 1, 1), (second[1], 64, 5, 5)),
            self.chain(net, f"{name}/Branch_2", *triple),
            self.pooled(net, f"{name}/Branch_3/Conv2d_0b_1x1", depth),
        )
        return torch.cat(parts, 1)

    def mixed_6a(self, net: Tensor) -> Tensor:
        triple = ("Conv2d_0a_1x1", 64, 1, 1), ("Conv2d_0b_3x3", 96, 3, 3), ("Conv2d_1a_1x1", 96, 3, 3)
        zero = self.chain(net, "Mixed_6a/Branch_0", ("Conv2d_1a_1x1", 384, 3, 3))
        return torch.cat([zero, self.chain(net, "Mixed_6a/Branch_1", *triple), F.max_pool2d(net, 3, 2)], 1)

    def mixed_6(self, net: Tensor, name: str, depth: int) -> Tensor:
        once = ("Conv2d_0a_1x1", depth, 1, 1), ("Conv2d_0b_1x7", depth, 1, 7), ("Conv2d_0c_7x1", 192, 7, 1)
        begins = ("Conv2d_0a_1x1", depth, 1, 1), ("Conv2d_0b_7x1", depth, 7, 1), ("Conv2d_0c_1x7", depth, 1, 7)
        ends = ("Conv2d_0d_7x1", depth, 7, 1), ("Conv2d_0e_1x7", 192, 1, 7)
        zero = self.chain(net, f"{name}/Branch_0", ("Conv2d_0a_1x1", 192, 1, 1))
        one = self.chain(net, f"{name}/Branch_1", *once)
        two = self.chain(net, f"{name}/Branch_2", *begins, *ends)
        return torch.cat([zero, one, two, self.pooled(net, f"{name}/Branch_3/Conv2d_0b_1x1", 192)], 1)

    def mixed_7a(self, net: Tensor) -> Tensor:
        begins = ("Conv2d_0a_1x1", 192, 1, 1), ("Conv2d_0b_1x7", 192, 1, 7), ("Conv2d_0c_7x1", 192, 7, 1)
        zero = self.chain(net, "Mixed_7a/Branch_0", ("Conv2d_0a_1x1", 192, 1, 1), ("Conv2d_1a_3x3", 320, 3, 3))
        one = self.chain(net, "Mixed_7a/Branch_1", *begins, ("Conv2d_1a_3x3", 192, 3, 3))
        return torch.cat([zero, one, F.max_pool2d(net, 3, 2)], 1)

    def mixed_7(self, net: Tensor, name: str, tall: str) -> Tensor:
        zero = self.chain(net, f"{name}/Branch_0", ("Conv2d_0a_1x1", 320, 1, 1))
        one = self.chain(net, f"{name}/Branch_1", ("Conv2d_0a_1x1", 384, 1, 1))
        two = self.chain(net, f"{name}/Branch_2", ("Conv2d_0a_1x1", 448, 1, 1), ("Conv2d_0b_3x3", 384, 3, 3))
        parts = (
            zero,
            self.chain(one, f"{name}/Branch_1", ("Conv2d_0b_1x3", 384, 1, 3)),
            self.chain(one, f"{name}/Branch_1", (tall, 384, 3, 1)),
            self.chain(two, f"{name}/Branch_2", ("Conv2d_0c_1x3", 384, 1, 3)),
            self.chain(two, f"{name}/Branch_2", ("Conv2d_0d_3x1", 384, 3, 1)),
            self.pooled(net, f"{name}/Branch_3/Conv2d_0b_1x1", 192),
        )
        return torch.cat(parts, 1)

    def __call__(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features and logits of RGB in 0..1, which slim scales to -1..1."""
        net = self.conv(frame * 2 - 1, "Conv2d_1a_3x3", 32, 3, 3, 2, valid=True)
        net = self.conv(net, "Conv2d_2a_3x3", 32, 3, 3, valid=True)
        net = F.max_pool2d(self.conv(net, "Conv2d_2b_3x3", 64, 3, 3), 3, 2)
        net = self.conv(net, "Conv2d_3b_1x1", 80, 1, 1, valid=True)
        net = F.max_pool2d(self.conv(net, "Conv2d_4a_3x3", 192, 3, 3, valid=True), 3, 2)
        net = self.mixed_5(net, "Mixed_5b", 32, ("Conv2d_0a_1x1", "Conv2d_0b_5x5"))
        net = self.mixed_5(net, "Mixed_5c", 64, ("Conv2d_0b_1x1", "Conv_1_0c_5x5"))
        net = self.mixed_5(net, "Mixed_5d", 64, ("Conv2d_0a_1x1", "Conv2d_0b_5x5"))
        net = self.mixed_6a(net)
        for name, depth in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            net = self.mixed_6(net, name, depth)
        net = self.mixed_7(self.mixed_7a(net), "Mixed_7b", "Conv2d_0b_3x1")
        net = self.mixed_7(net, "Mixed_7c", "Conv2d_0c_3x1").mean((2, 3), keepdim=True)
        return net[:, :, 0, 0], self.logits(net, "Logits/Conv2d_1c_1x1")

    def auxiliary(self, net: Tensor) -> Tensor:
        """Return the auxiliary logits of Mixed_6e's 17x17 at 299 pixels."""
        net = self.conv(F.avg_pool2d(net, 5, 3), "AuxLogits/Conv2d_1b_1x1", 128, 1, 1)
        net = self.conv(net, "AuxLogits/Conv2d_2a_5x5", 768, 5, 5, valid=True)
        return self.logits(net, "AuxLogits/Conv2d_2b_1x1")


FRAME = torch.rand(1, 3, 107, 123, generator=torch.Generator().manual_seed(1))
INNER = torch.rand(1, 768, 17, 17, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def slim() -> Slim:
    made = Slim(classes=5, padding_counts=True)
    made(FRAME)
    made.auxiliary(INNER)
    return made


@pytest.fixture(scope="module")
def model() -> Classifier:
    """Of the four classes after the background."""
    return classifier()


def classifier(backbone: str = "torchvision:inception_v3", **settings: object) -> Classifier:
    values = {"name": "classifier", "backbone": backbone, "classes": 4, **settings}
    return parse(ClassifierConfig, values).build().eval()


def saved(path: Path, arrays: Arrays) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)
    return path


def test_slims_variables_are_those_of_its_source(slim: Slim) -> None:
    """94 convolutions and 2 of the auxiliary head with 4 variables each, and two last layers of 2."""
    assert len(slim.arrays) == 96 * 4 + 2 * 2
    assert slim.arrays["InceptionV3/Mixed_7c/Branch_2/Conv2d_0d_3x1/weights"].shape == (3, 1, 384, 384)
    assert slim.arrays["InceptionV3/AuxLogits/Conv2d_2a_5x5/weights"].shape == (5, 5, 128, 768)


@pytest.mark.parametrize("name", ["iNat.npz", "iNat.safetensors"])
@torch.no_grad()
def test_torchvisions_network_gives_what_slims_does(slim: Slim, tmp_path: Path, name: str) -> None:
    model, file = classifier(), saved(tmp_path / name, slim.arrays)
    backbone, head = load_branch(model, "backbone", file), load_branch(model, "head", file)
    assert backbone.fresh == head.fresh == []
    filled = {f"backbone.{key}" for key in model.backbone.state_dict() if not key.endswith("num_batches_tracked")}
    assert len(backbone.names) == len(set(backbone.names)) == 96 * 5
    assert set(backbone.names) == filled - {"backbone.mean", "backbone.std"}
    features, logits = slim(FRAME)
    ours = model.backbone(FRAME)[0]
    assert features.std() > 0.01
    torch.testing.assert_close(ours, features, rtol=1e-3, atol=1e-4 * float(features.max()))
    torch.testing.assert_close(model.head.label(ours), logits[:, 1:], rtol=1e-3, atol=1e-4)
    assert model.head.aux_head is not None
    earlier = model.backbone.network.AuxLogits(INNER)  # pyright: ignore[reportCallIssue, reportOptionalCall]
    torch.testing.assert_close(model.head.aux_head(earlier), slim.auxiliary(INNER)[:, 1:], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_slims_own_pooling_is_the_difference_that_stays(
    slim: Slim, model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 299 pixels the features are 7 % apart; with torchvision's padding left out of its means, they are the same."""
    own = Slim(classes=5, padding_counts=False)
    own.arrays = slim.arrays
    load_branch(model, "backbone", saved(tmp_path / "it.npz", slim.arrays))
    frame = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(1))
    features, _ = own(frame)
    assert (model.backbone(frame)[0] - features).norm() / features.norm() == pytest.approx(0.07, abs=0.01)
    monkeypatch.setattr(F, "avg_pool2d", partial(F.avg_pool2d, count_include_pad=False))
    torch.testing.assert_close(model.backbone(frame)[0], features, rtol=1e-3, atol=1e-4 * float(features.max()))


def test_what_is_left_out_has_its_name_in_the_file(slim: Slim, model: Classifier, tmp_path: Path) -> None:
    file = saved(tmp_path / "it.npz", slim.arrays | {"global_step": np.array(7), "save/hash": np.array(b"text")})
    left_out = load_branch(model, "backbone", file).left_out
    assert "InceptionV3/Logits/Conv2d_1c_1x1/biases: the layer that classifies" in left_out
    assert "global_step: a variable of the training" in left_out
    assert len(left_out) == 5
    assert "InceptionV3/Logits/Conv2d_1c_1x1/biases[0]: the background" in load_branch(model, "head", file).left_out


def test_moving_averages_are_used_instead_of_the_weights(slim: Slim, model: Classifier, tmp_path: Path) -> None:
    """The weights are 3 times their averages; momentum and RMSProp have variables of their own."""
    arrays = {key: 3 * value for key, value in slim.arrays.items()}
    arrays |= {key + AVERAGE: value for key, value in slim.arrays.items() if "moving_" not in key}
    stem = "InceptionV3/Conv2d_1a_3x3/weights"
    arrays |= {f"{stem}/{slot}": slim.arrays[stem] for slot in ("Momentum", "RMSProp", "RMSProp_1")}
    loaded = load_branch(model, "backbone", saved(tmp_path / "averaged.npz", arrays))
    network = model.backbone.network.state_dict()
    expected = torch.from_numpy(slim.arrays[stem]).permute(3, 2, 0, 1)
    assert torch.equal(network["Conv2d_1a_3x3.conv.weight"], expected)
    means = torch.from_numpy(slim.arrays["InceptionV3/Conv2d_1a_3x3/BatchNorm/moving_mean"])
    assert torch.equal(network["Conv2d_1a_3x3.bn.running_mean"], 3 * means)  # it has no average in this file
    assert "moving averages of 388 variables of TF-slim's Inception-V3" in loaded.description
    assert f"{stem}: its moving average is used" in loaded.left_out
    assert f"{stem}/RMSProp_1: a variable of the training" in loaded.left_out


def test_a_file_without_an_auxiliary_head_is_for_a_network_without_one(
    slim: Slim, model: Classifier, tmp_path: Path
) -> None:
    arrays = {key: value for key, value in slim.arrays.items() if "AuxLogits" not in key}
    file = saved(tmp_path / "plain.npz", arrays)
    assert load_branch(classifier(aux_head=False), "backbone", file).fresh == []
    with pytest.raises(ValueError, match="without an auxiliary head; set aux_head=false in the model's config"):
        load_branch(model, "backbone", file)


STEM = "InceptionV3/Conv2d_1a_3x3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{STEM}/BatchNorm/beta": None}, f"but {STEM}/BatchNorm/beta is missing"),
        ({"InceptionV3/Mixed_8a/weights": np.zeros(1)}, "slim's network has no InceptionV3/Mixed_8a/weights"),
        ({f"{STEM}/weights": np.zeros((3, 3, 32))}, r"has shape \(3, 3, 32\), expected height, width, input, output"),
        ({f"{STEM}/weights": np.zeros((3, 3, 1, 32))}, r"has shape \(32, 1, 3, 3\), expected \(32, 3, 3, 3\)"),
        (
            {f"{STEM}/weights{AVERAGE}": np.zeros((3, 3, 3, 32))},
            "averages of 1 variables, but none of .*BatchNorm/beta",
        ),
        ({"InceptionV3/AuxLogits/Conv2d_2a_5x5/weights": None}, "AuxLogits/Conv2d_2a_5x5/weights is missing"),
    ],
)
def test_variables_that_do_not_fit_are_refused(
    slim: Slim, model: Classifier, tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    changed = {**slim.arrays, **change}
    file = saved(tmp_path / "odd.npz", {key: value for key, value in changed.items() if value is not None})
    with pytest.raises(ValueError, match=message) as error:
        load_branch(model, "backbone", file)
    assert "\n" not in str(error.value)


def test_another_network_or_another_number_of_classes_is_refused(slim: Slim, model: Classifier, tmp_path: Path) -> None:
    file = saved(tmp_path / "it.npz", slim.arrays)
    with pytest.raises(ValueError, match="its last layer has 5 classes, this network 3; leave this branch's"):
        load_branch(classifier(classes=3), "head", file)
    with pytest.raises(ValueError, match=r"Inception-V3 .* expected weights of torchvision:resnet18"):
        load_branch(classifier("torchvision:resnet18"), "backbone", file)
    other = saved(tmp_path / "v4.npz", {"InceptionV4/Conv2d_1a_3x3/weights": np.zeros((3, 3, 3, 32), np.float32)})
    with pytest.raises(ValueError, match=r"it looks like TF-slim's InceptionV4 \(1 tensors"):
        load_branch(model, "backbone", other)


def test_an_array_of_objects_is_not_unpickled(model: Classifier, tmp_path: Path) -> None:
    np.savez(tmp_path / "it.npz", weights=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"it.npz cannot be read as weights: Object arrays cannot be loaded"):
        load_branch(model, "backbone", tmp_path / "it.npz")


@pytest.mark.parametrize("named", ["model.ckpt-9", "model.ckpt-9.index", "model.ckpt-9.data-00000-of-00001", "v1.ckpt"])
def test_tensorflows_own_checkpoint_is_read_by_tensorflow(
    slim: Slim, model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Any of the files of a checkpoint, its prefix, or the one file of the first format. Here TensorFlow is a stand-in
    with the three functions that are called."""
    asked: list[str] = []

    def load_checkpoint(path: str) -> SimpleNamespace:
        asked.append(path)
        shapes = {key: list(value.shape) for key, value in slim.arrays.items()}
        return SimpleNamespace(get_variable_to_shape_map=lambda: shapes, get_tensor=slim.arrays.__getitem__)

    end = bytes.fromhex("57fb808b247547db")
    for name in ("model.ckpt-9.index", "v1.ckpt"):
        (tmp_path / name).write_bytes(bytes(40) + end)
    (tmp_path / "model.ckpt-9.data-00000-of-00001").write_bytes(bytes(8))
    monkeypatch.setitem(
        sys.modules, "tensorflow", SimpleNamespace(train=SimpleNamespace(load_checkpoint=load_checkpoint))
    )
    assert load_branch(model, "backbone", tmp_path / named).fresh == []
    assert asked == [str(tmp_path / ("v1.ckpt" if named == "v1.ckpt" else "model.ckpt-9"))]
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install tensorflow, or write its arrays to a \.npz file"):
        load_branch(model, "backbone", tmp_path / named)
