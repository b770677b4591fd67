"""Write named tensors to safetensors files atomically, and read them with their metadata."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mtsp.files.atomic_file import write_atomically


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors and metadata as a safetensors file.

    Raises:
        OSError: the file could not be written; an existing file is intact.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomically(path, save(plain, dict(metadata) if metadata else None))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors and the metadata of a safetensors file. Raises ValueError if the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
