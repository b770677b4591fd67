"""Convert TF-slim's Inception-V3, published by DSTL, to torchvision's names and layout.

The checkpoints of DSTL's repository (pre-trained on iNaturalist, ImageNet or both) are TensorFlow checkpoints. If
`tensorflow` is installed, they load directly; otherwise, write their arrays to a NumPy file on a machine that has it:

    import numpy, tensorflow
    reader = tensorflow.train.load_checkpoint("inception_v3_iNat_299.ckpt")
    numpy.savez("inat.npz", **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})

Besides the names, it differs from torchvision's Inception-V3: kernels are stored as height, width, input, output; batch
normalization has no scale (it is 1); pixels are x / 127.5 - 1; ImageNet's 1001 classes begin with a background. If a
file has moving averages of the weights, they are used instead of the weights, as DSTL does to extract features.

One difference remains: at the border, the 3x3 average pooling in slim's nine blocks excludes the padding from the mean;
torchvision counts it as zeros, also for its own weights, which were converted from TensorFlow.

The key map is from slim's source (tensorflow/models, slim/nets/inception_v3.py). Tested once against TensorFlow:
checkpoints of random weights that tf-slim 1.1 wrote in both formats give its logits at 299 pixels to 2e-6 of the
largest with slim's pooling. With torchvision's pooling the norm of the difference of features is 7 % (a test holds it).
The published files themselves were not available.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.pretrained import torchvision_timm
from models.pretrained.layouts import Layout, LayoutError, looks_like

_SCOPE = "InceptionV3/"
_AVERAGE = "/ExponentialMovingAverage"
_TABLE = bytes.fromhex("57fb808b247547db")  # last bytes of an index file, and of a checkpoint in the older format

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")


def _block(layers: str) -> dict[str, str]:
    """Return a dict from slim's to torchvision's layer names; `1/0b_5x5` stands for `Branch_1/Conv2d_0b_5x5`."""
    pairs = (pair.split() for pair in layers.split(","))
    return {f"Branch_{theirs.replace('/', '/Conv2d_')}": ours for theirs, ours in pairs}


_MIXED_5 = _block(
    "0/0a_1x1 branch1x1, 1/0a_1x1 branch5x5_1, 1/0b_5x5 branch5x5_2, 2/0a_1x1 branch3x3dbl_1, "
    "2/0b_3x3 branch3x3dbl_2, 2/0c_3x3 branch3x3dbl_3, 3/0b_1x1 branch_pool"
)
_MIXED_6A = _block(  # layers named 1a_1x1 are 3x3
    "0/1a_1x1 branch3x3, 1/0a_1x1 branch3x3dbl_1, 1/0b_3x3 branch3x3dbl_2, 1/1a_1x1 branch3x3dbl_3"
)
_MIXED_6 = _block(
    "0/0a_1x1 branch1x1, 1/0a_1x1 branch7x7_1, 1/0b_1x7 branch7x7_2, 1/0c_7x1 branch7x7_3, 2/0a_1x1 branch7x7dbl_1, "
    "2/0b_7x1 branch7x7dbl_2, 2/0c_1x7 branch7x7dbl_3, 2/0d_7x1 branch7x7dbl_4, 2/0e_1x7 branch7x7dbl_5, "
    "3/0b_1x1 branch_pool"
)
_MIXED_7A = _block(
    "0/0a_1x1 branch3x3_1, 0/1a_3x3 branch3x3_2, 1/0a_1x1 branch7x7x3_1, 1/0b_1x7 branch7x7x3_2, "
    "1/0c_7x1 branch7x7x3_3, 1/1a_3x3 branch7x7x3_4"
)
_MIXED_7 = _block(
    "0/0a_1x1 branch1x1, 1/0a_1x1 branch3x3_1, 1/0b_1x3 branch3x3_2a, 1/0c_3x1 branch3x3_2b, 2/0a_1x1 branch3x3dbl_1, "
    "2/0b_3x3 branch3x3dbl_2, 2/0c_1x3 branch3x3dbl_3a, 2/0d_3x1 branch3x3dbl_3b, 3/0b_1x1 branch_pool"
)
_BLOCKS = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _MIXED_5),
    "Mixed_6a": _MIXED_6A,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _MIXED_6),
    "Mixed_7a": _MIXED_7A,
    **dict.fromkeys(("Mixed_7b", "Mixed_7c"), _MIXED_7),
}
_MISNAMED = {  # irregular names in slim's source: the regular ones
    "Mixed_5c/Branch_1/Conv2d_0b_1x1": "Mixed_5c/Branch_1/Conv2d_0a_1x1",
    "Mixed_5c/Branch_1/Conv_1_0c_5x5": "Mixed_5c/Branch_1/Conv2d_0b_5x5",
    "Mixed_7b/Branch_1/Conv2d_0b_3x1": "Mixed_7b/Branch_1/Conv2d_0c_3x1",
}
_AUXILIARY = {"AuxLogits/Conv2d_1b_1x1": "AuxLogits.conv0", "AuxLogits/Conv2d_2a_5x5": "AuxLogits.conv1"}
_LAST = {"Logits/Conv2d_1c_1x1": "fc", "AuxLogits/Conv2d_2b_1x1": "AuxLogits.fc"}

_NORMED = {
    "weights": "conv.weight",
    "BatchNorm/beta": "bn.bias",
    "BatchNorm/moving_mean": "bn.running_mean",
    "BatchNorm/moving_variance": "bn.running_var",
}
_LINEAR = {"weights": "weight", "biases": "bias"}


class Slim(NamedTuple):
    """Variables of slim's Inception-V3 as torchvision's tensors."""

    tensors: dict[str, Tensor]  # with torchvision's names and layout
    names: dict[str, str]  # slim's name by torchvision's name; a scale of 1 has no entry
    left_out: list[str]  # `name: reason`
    description: str


def is_slim(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds variables of slim's Inception-V3."""
    return any(key.startswith(_SCOPE) for key in tensors)


def convert(tensors: Mapping[str, Tensor]) -> Slim:
    """Convert the variables of slim's Inception-V3 to torchvision's tensors.

    Variables of an optimizer and the step are left out. The auxiliary head and the last layers may be missing.

    Raises:
        LayoutError: any other variable is missing or unknown, or only some weights have a moving average.
    """
    ours = {
        f"{layer}/{theirs}": f"{name}.{kind}"
        for layer, (name, kinds) in _layers().items()
        for theirs, kind in kinds.items()
    }
    plain = {key: value for key, value in tensors.items() if key in ours}
    averages = {key.removesuffix(_AVERAGE): value for key, value in tensors.items() if key.endswith(_AVERAGE)}
    averages = {key: value for key, value in averages.items() if key in ours}
    left_out = [f"{key}: its moving average is used" for key in plain if key in averages]
    for key in tensors:
        if key in plain or key.removesuffix(_AVERAGE) in averages:
            continue
        if key.startswith(_SCOPE) and key.rpartition("/")[0] not in ours:  # an optimizer's are below a weight's name
            raise LayoutError(f"it looks like {looks_like(tensors)}, but slim's network has no {key}")
        left_out.append(f"{key}: a variable of the training")
    without = [key for key in plain if key not in averages and "/moving_" not in key]
    if averages and without:
        raise LayoutError(f"it has moving averages of {len(averages)} variables, but none of {without[0]}")
    found = plain | averages
    _require_whole(found)
    used = {ours[key]: _laid_out(key, value) for key, value in found.items()}
    biases = [(name, value) for name, value in used.items() if name.endswith("bn.bias")]
    used |= {name.removesuffix("bias") + "weight": torch.ones_like(value) for name, value in biases}
    names = {ours[key]: key + _AVERAGE * (key in averages) for key in found}
    kind = "moving averages of " if averages else ""
    return Slim(used, names, left_out, f"{kind}{len(found)} variables of TF-slim's Inception-V3")


def head_layout(label: nn.Linear, last: str, slim: Slim, *, aux_head: bool) -> Layout:
    """Map slim's last layers to a head. If they have one more class, the first class (background) is left out.

    See :func:`models.pretrained.torchvision_timm.head_layout`.
    """
    layers = {key: value for key, value in slim.tensors.items() if key.startswith(("fc.", "AuxLogits.fc."))}
    background = "fc.bias" in layers and len(layers["fc.bias"]) == label.out_features + 1
    if background:
        layers = {key: value[1:] for key, value in layers.items()}
    layout = in_slims_names(torchvision_timm.head_layout(label, last, slim.tensors | layers, aux_head=aux_head), slim)
    first = [f"{slim.names[key]}[0]: the background" for key in layers if background]
    return replace(layout, left_out=[*layout.left_out, *first])


def in_slims_names(layout: Layout, slim: Slim) -> Layout:
    """Return the layout of converted tensors, in which left-out tensors have their names in the file."""
    lines = [line.partition(": ") for line in layout.left_out]
    left_out = [f"{slim.names[key]}: {reason}" for key, _, reason in lines if key in slim.names]
    return replace(layout, left_out=[*left_out, *slim.left_out], description=slim.description)


def checkpoint_at(path: Path) -> Path | None:
    """Return TensorFlow's name of the checkpoint at `path`, or None if `path` is not a TensorFlow checkpoint.

    A checkpoint is one file, or several (`.index`, `.data-00000-of-00001`); `path` may be any of them.
    """
    name = path.name.removesuffix(".index").partition(".data-")[0]
    if path.with_name(f"{name}.index").is_file():
        return path.with_name(name)
    if not path.is_file() or path.stat().st_size < len(_TABLE):
        return None
    with path.open("rb") as file:
        file.seek(-len(_TABLE), 2)
        return path if file.read() == _TABLE else None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the variables of a TensorFlow checkpoint that :func:`checkpoint_at` found.

    Raises:
        ValueError: TensorFlow is not installed, or cannot read the checkpoint.
    """
    try:
        from tensorflow import train  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError as error:
        raise ValueError(
            f"{path} is a checkpoint of TensorFlow, which is not installed: pip install tensorflow, or write its "
            "arrays to a .npz file on a machine that has it (models/pretrained/tf_slim.py has the three lines)"
        ) from error
    try:
        reader: Any = train.load_checkpoint(str(path))
        arrays = {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}
    except Exception as error:  # TensorFlow raises many types of errors for damaged files
        raise ValueError(f"{path} cannot be read by TensorFlow: {' '.join(str(error).split())[:200]}") from error
    return numbers(arrays)


def numbers(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the numeric arrays of a TensorFlow checkpoint as tensors; other arrays, such as a saver's graph, are
    skipped."""
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items() if value.dtype.kind in "fiub"}


def _layers() -> dict[str, tuple[str, dict[str, str]]]:
    """Return torchvision's name and the names of the variables for each of slim's layers."""
    normed = {layer: layer for layer in _STEM} | _AUXILIARY
    usual = {theirs: actual for actual, theirs in _MISNAMED.items()}
    for block, layers in _BLOCKS.items():
        for theirs, ours in layers.items():
            normed[usual.get(f"{block}/{theirs}", f"{block}/{theirs}")] = f"{block}.{ours}"
    return {_SCOPE + layer: (ours, _NORMED) for layer, ours in normed.items()} | {
        _SCOPE + layer: (ours, _LINEAR) for layer, ours in _LAST.items()
    }


def _require_whole(found: Mapping[str, Tensor]) -> None:
    has_auxiliary = any(key.startswith(f"{_SCOPE}{layer}/") for key in found for layer in _AUXILIARY)
    for layer, (_, kinds) in _layers().items():
        missing = [f"{layer}/{kind}" for kind in kinds if f"{layer}/{kind}" not in found]
        inner = layer.removeprefix(_SCOPE)
        optional = inner in _LAST or (inner in _AUXILIARY and not has_auxiliary)
        if missing and not (optional and len(missing) == len(kinds)):
            raise LayoutError(f"it looks like TF-slim's Inception-V3, but {missing[0]} is missing")


def _laid_out(key: str, value: Tensor) -> Tensor:
    """Return a variable in torchvision's layout: output, input, height, width; a matrix for a last layer."""
    if not key.endswith("/weights"):
        return value
    if value.ndim != 4:
        raise LayoutError(f"{key} has shape {tuple(value.shape)}, expected height, width, input, output")
    kernel = value.permute(3, 2, 0, 1).contiguous()
    return kernel.flatten(1) if key.removeprefix(_SCOPE).rpartition("/")[0] in _LAST else kernel
