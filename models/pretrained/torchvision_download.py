"""Download weights that torchvision publishes, by torchvision's own names."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.pretrained.layouts import DownloadError, LayoutError
from mtsp.text import did_you_mean


class TorchvisionWeights(NamedTuple):
    """Published weights of a network of torchvision."""

    tensors: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    description: str


def download_torchvision(network: str, source: str) -> TorchvisionWeights:
    """Return the weights `torchvision` (its default ones) or `torchvision:NAME` of a network; a file in the cache is
    not downloaded again.

    Args:
        network: torchvision's name of the network, `resnet101` or `raft_large`.
        source: `torchvision:IMAGENET1K_V1`, for example.

    Raises:
        LayoutError: torchvision has no such network or weights.
        DownloadError: the download failed; the message says which file to put where.
    """
    import torchvision

    kind, _, name = source.partition(":")
    if kind != "torchvision":
        raise LayoutError(f"{source} is not a source for {network}; give torchvision, torchvision:NAME or a file")
    try:
        published: Any = torchvision.models.get_model_weights(network)
    except ValueError as error:
        raise LayoutError(f"torchvision has no network {network!r}; give a file, or imagenet") from error
    known = list(published.__members__)
    if name and name not in known:
        hint = did_you_mean(name, known, f"known are {', '.join(known)}")
        raise LayoutError(f"torchvision has no weights {name!r} of {network}; {hint}")
    weights = published[name] if name else published.DEFAULT
    transforms = weights.transforms()
    try:
        tensors = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        why = " ".join(str(error).split())[:160]
        raise DownloadError(f"{weights.url} cannot be downloaded ({why}); put that file into {folder}") from error
    mean, std = (tuple(v) if (v := getattr(transforms, key, None)) else None for key in ("mean", "std"))
    return TorchvisionWeights(tensors, mean, std, f"torchvision's {weights} of {network} ({len(tensors)} tensors)")
