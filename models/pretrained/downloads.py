"""Tell from where the libraries download weights and where they keep them; download nothing."""

from pathlib import Path
from typing import Any, NamedTuple


class Download(NamedTuple):
    """A file of published weights."""

    url: str
    kept: Path | None
    """The file where its library has kept it; None if it was not downloaded yet."""
    place: Path | None = None
    """Path to put the file at by hand; None if its library keeps files in folders of its own."""


def published_download(network: str, source: str = "imagenet") -> Download | None:
    """Return the file of a network's published weights; None if the network is unknown or nobody publishes any.

    Args:
        network: a name as in a config: `resnet50` or `tu-NAME` of :mod:`models.encoders.names`, a timm network,
            `torchvision:NAME`, or `raft_small`.
        source: `imagenet`, `torchvision` or `torchvision:NAME`, as in `branches.NAME.weights`.
    """
    if source != "imagenet" or network.startswith("torchvision:"):
        return _torchvision(network.removeprefix("torchvision:"), source.partition(":")[2] or "DEFAULT")
    import segmentation_models_pytorch as smp

    encoders: dict[str, Any] = smp.encoders.encoders
    settings = encoders.get(network, {}).get("pretrained_settings", {}).get("imagenet")
    if settings is not None and "repo_id" in settings:
        return _hub(settings["repo_id"], settings.get("revision"), ("model.safetensors",))
    return _timm(network.removeprefix("tu-"))


def _timm(name: str) -> Download | None:
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except Exception:  # an unknown network; building it says which names are near
        return None
    if config is None or not config.hf_hub_id:
        return None
    return _hub(config.hf_hub_id, None, (config.hf_hub_filename or "model.safetensors", "pytorch_model.bin"))


def _torchvision(name: str, weights: str) -> Download | None:
    import torch
    from torchvision.models import get_model_weights

    try:
        url = get_model_weights(name)[weights].url
    except (KeyError, ValueError):
        return None
    return downloaded(url, Path(torch.hub.get_dir()) / "checkpoints")


def downloaded(url: str, folder: Path) -> Download:
    """Return the download of a file that is kept in `folder` under its own name."""
    place = folder / url.rpartition("/")[2]
    return Download(url, place if place.is_file() else None, place)


def _hub(repository: str, revision: str | None, names: tuple[str, ...]) -> Download:
    from huggingface_hub import constants, try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name, revision=revision) for name in names)
    kept = next((Path(path) for path in found if isinstance(path, str)), None)
    return Download(f"{constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/{names[0]}", kept)
