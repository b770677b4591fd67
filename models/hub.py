"""Load networks that `mtsp.integrations.hub` shared: from a folder, or from the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from torch import nn

from models import AnyModel
from models.pretrained.load_trained import load_trained
from mtsp.config import load
from mtsp.integrations.hub import WEIGHTS, fetch
from mtsp.reports.runs import EXPERIMENT
from mtsp.training.experiment import Experiment


def from_pretrained(source: str | Path) -> nn.Module:
    """Return a shared network with all its weights, in evaluation mode.

    Args:
        source: a folder of :func:`mtsp.integrations.hub.write_folder`, or OWNER/NAME on the Hub.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the download failed, a file has changed since it was written, or the config has mistakes.
    """
    folder = fetch(source)
    experiment = load(Experiment[AnyModel, Any], folder / EXPERIMENT)  # pyright: ignore[reportInvalidTypeArguments]
    return load_trained(experiment, folder / WEIGHTS).eval()
