"""Write named tensors to safetensors files atomically, with a hash of the file, which is checked when it is read."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtsp.files.atomic_file import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

_NO_HASH = "0" * 64
_HASH = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # in metadata; inside a value its quotes would be escaped


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors and metadata as a safetensors file.

    Raises:
        OSError: the file could not be written; an existing file is intact.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_hashed(path, plain, metadata, save)


def write_hashed(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None, save: Any) -> None:
    """Write what `save` of safetensors makes of tensors or arrays, with the hash of the file in its metadata.

    The hash is that of the file with zeros in place of its digits. Equal content gives equal files: safetensors itself
    writes metadata in any order.
    """
    notes = dict(sorted({**(metadata or {}), "sha256": _NO_HASH}.items()))
    data = save(tensors, notes)
    size = int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8 : 8 + size]), "__metadata__": notes}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as in safetensors, the tensors begin at a multiple of 8
    data = bytearray(len(text).to_bytes(8, "little") + text + data[8 + size :])
    found = _HASH.search(data)
    assert found is not None
    data[found.start(1) : found.end(1)] = hashlib.sha256(data).hexdigest().encode()
    write_atomically(path, data)


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], Mapping[str, str]]":
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: the file cannot be read, or has changed since :func:`write_tensors` wrote it. Other programs store
            no hash to compare with.
    """
    from safetensors import SafetensorError, safe_open

    require_unchanged(path)
    try:
        with safe_open(path, "pt") as file:
            notes = {key: text for key, text in (file.metadata() or {}).items() if key != "sha256"}
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def require_unchanged(path: Path) -> None:
    """Raise ValueError if a safetensors file does not have the hash in its metadata. A file without a hash passes."""
    with path.open("rb") as file:
        size = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
        found = _HASH.search(header := file.read(size))
        if found is None:
            return
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        digest.update(header[: found.start(1)] + _NO_HASH.encode() + header[found.end(1) :])
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest().encode() != found[1]:
        raise ValueError(
            f"{path} is damaged: it does not have the SHA-256 that it was written with (a program that changes weights "
            "and keeps their metadata must leave out `sha256`)"
        )
