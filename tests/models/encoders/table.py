"""Try encoders as SegFlow, as EncNet and as classifiers, and print the table of docs/encoders.md.

    python tests/models/encoders/table.py [NAME ...]

Each network is built, its encoder is loaded from a file in the published key layout (random values, written here), and
one step trains it with L2-SP, in fp32 and in bf16, on frames of an odd size. No download is needed.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.classifier import ClassifierConfig
from models.encnet import EncNetConfig
from models.encoders.encoded import Encoded
from models.encoders.names import encoder_name
from models.encoders.timm_networks import is_timms
from models.pretrained.load import load_branch
from models.segflow import SegFlowConfig
from mtsp.anchors import capture
from mtsp.regularizers import L2SP

ENCODERS = (
    *("resnet50", "resnet50s", "resnext50_32x4d", "tf_efficientnet_lite0", "efficientnet-b0", "mobilenet_v2"),
    *("mobilenetv3_small_100", "regnetx_002", "densenet121", "vgg11", "inceptionv4", "inception_v3", "levit_128s"),
    *("convnext_atto", "convnextv2_atto", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    *("maxvit_tiny_tf_224", "mit_b0", "pvt_v2_b0", "hiera_tiny_224", "vit_base_patch16_224", "deit3_small_patch16_224"),
    *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"),
    *("vit_base_patch16_siglip_224", "beit_base_patch16_224"),
)
ODD = (57, 83)
CLASSES = 5


class Row(NamedTuple):
    """Results of one encoder: for each network "yes", or the reason why not."""

    name: str
    segflow: str
    encnet: str
    classifier: str
    sizes: str
    anchors: int
    """Number of weights that have an anchor: all convolution and linear weights of the published encoder."""
    anchored: int
    """Number of parameters in them."""
    encoder: int
    """Number of parameters of the encoder."""


def published(name: str) -> dict[str, Tensor]:
    """Return random tensors in the key layout in which the weights of an encoder are published."""
    torch.manual_seed(0)
    if is_timms(name):
        import timm

        return timm.create_model(name.removeprefix("tu-")).state_dict()
    from torchvision import models

    if name in models.list_models(module=models):
        return models.get_model(name).state_dict()
    own: Any = Encoded(name).encoder.state_dict()
    return {**own, "last_linear.weight": torch.rand(10, 4), "last_linear.bias": torch.rand(10)}


def layer_weights(model: nn.Module) -> set[str]:
    """Return the names of the weights of convolution and linear layers, found by the type of the layer."""
    layers = nn.Conv1d | nn.Conv2d | nn.Linear | nn.ConvTranspose2d
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}


def tried(config: Any, branch: str, file: Path, size: tuple[int, int]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build the network, load the file, and train a step in fp32 and one in bf16; return network and anchors.

    Raises:
        ValueError: what refuses it.
        AssertionError: anchors are not exactly the convolution and linear weights of the encoder.
    """
    model: Any = config.build()
    loaded = load_branch(model, branch, file)
    anchors = capture(model, loaded.names)
    inside = f"{branch}.{'network' if branch == 'backbone' and hasattr(model.backbone, 'network') else 'encoder'}."
    assert set(anchors) == {name for name in layer_weights(model) if name.startswith(inside)}, "other anchors"
    regularizer = L2SP(model, anchors=anchors, alpha=0.1, beta=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    regularizer.attach(optimizer)
    frame = torch.rand(2, 3, *size)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            outputs = model(frame)
        logits = outputs["label_logits" if "label_logits" in outputs else "mask_logits"]
        assert logits.shape[2:] in ((), size), "logits of another size"
        loss = nn.functional.cross_entropy(logits.float(), torch.randint(CLASSES, (2, *logits.shape[2:])))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert 0 < regularizer.distances([""])[""] < 1, "the weights did not move"
    with torch.no_grad():
        logits = model.eval()(frame)
        assert all(bool(x.isfinite().all()) for x in logits.values()), "not finite"
    return model, anchors


def row(name: str, folder: Path) -> Row:
    """Return what an encoder does in the three networks."""
    name = encoder_name(name)
    file = folder / "published.safetensors"
    save_file({key: value.contiguous().clone() for key, value in published(name).items()}, file)
    configs = {
        "segflow": SegFlowConfig(name="segflow", encoder=name, classes=CLASSES, width=16, flow=None),
        "encnet": EncNetConfig(name="encnet", encoder=name, classes=CLASSES, width=32, codewords=4),
        "encnet, stride 32": EncNetConfig(
            name="encnet", encoder=name, classes=CLASSES, width=32, codewords=4, output_stride=32
        ),
    }
    texts: dict[str, str] = {}
    sizes, anchors, anchored, parameters = "-", 0, 0, 0
    for key, config in configs.items():
        if key == "encnet, stride 32" and "cannot be dilated" not in texts["encnet"]:
            continue
        branch = "segmentation" if key == "segflow" else "backbone"
        try:
            model, found = tried(config, branch, file, ODD)
        except ValueError as error:
            texts[key] = str(error)
            continue
        encoded: Any = getattr(model, branch)
        sizes, anchors = str(encoded.frame_sizes), len(found)
        anchored, parameters = (sum(x.numel() for x in xs) for xs in (found.values(), encoded.encoder.parameters()))
        texts[key] = "yes"
    if (coarse := texts.get("encnet, stride 32")) is not None:
        texts["encnet"] = "32 only" if coarse == "yes" else coarse
    return Row(name, texts["segflow"], texts["encnet"], _classifier(name, file), sizes, anchors, anchored, parameters)


def _classifier(name: str, file: Path) -> str:
    """Try the network as a classifier: on an odd size, else on the size it was published for."""
    from torchvision import models

    backbone = name if is_timms(name) else f"torchvision:{name}"
    if backbone == name or name in models.list_models(module=models):
        said = ""
        for size in (ODD, (224, 224), (256, 256)):
            try:
                tried(ClassifierConfig(name="classifier", backbone=backbone, classes=CLASSES), "backbone", file, size)
            except (ValueError, RuntimeError) as error:
                said = said or str(error)
            else:
                return "yes" if size == ODD else f"{size[0]}x{size[1]}"
        return said
    try:
        ClassifierConfig(name="classifier", backbone=name, classes=CLASSES).build()
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{name} is a classifier after all")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown, followed by the refusals."""
    lines = [
        "| encoder | SegFlow | EncNet at stride 8 | classifier | frames | anchors | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []

    def cell(text: str) -> str:
        if text == "yes" or text[:1].isdigit():
            return text
        if text not in notes:
            notes.append(text)
        return f"no ({notes.index(text) + 1})"

    for row in rows:
        used = [cell(text) for text in (row.segflow, row.encnet, row.classifier)]
        share = f"{row.anchored / 1e6:.1f} of {row.encoder / 1e6:.1f} M" if row.encoder else "-"
        lines.append(f"| `{row.name}` | {' | '.join(used)} | {row.sizes} | {row.anchors or '-'} | {share} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=ENCODERS, help="encoders to try (default: those of the table)")
    names = parser.parse_args(arguments).names
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, name in enumerate(names, start=1):
            print(f"{number} of {len(names)}: {name}", file=sys.stderr)
            rows.append(row(name, Path(folder)))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
