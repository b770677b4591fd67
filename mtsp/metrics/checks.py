"""Check the arrays that are passed to metrics."""

import sys
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

_NUMBERS = "biufc"
"""Kinds of numpy types that are numbers; numpy would silently convert or compare some of the other kinds."""


def require_numbers(**arrays: Any) -> None:
    """Raise unless every array holds numbers that metrics can read; messages name an array by its keyword.

    Raises:
        TypeError: an argument is neither a numpy array nor a torch tensor.
        ValueError: an array does not hold numbers, has a type without arithmetic (float8, quantized), is sparse, has
            masked entries, or is on the device "meta".
    """
    torch = sys.modules.get("torch")  # a caller that has a tensor has imported torch
    for what, array in arrays.items():
        if isinstance(array, np.ndarray):
            trouble = _of_numpy(array)
        elif torch is not None and isinstance(array, torch.Tensor):
            trouble = _of_torch(array, torch)
        else:
            kind = type(array).__name__
            raise TypeError(f"{what} is a {kind}; expected a numpy array or a torch tensor, as np.asarray({what})")
        if trouble:
            raise ValueError(f"{what} {trouble}")


def keep_rows(kept: dict[str, np.ndarray], names: str | Collection[str], rows: Iterable[np.ndarray], what: str) -> None:
    """Add a row to `kept` for each image name. Raises ValueError for a wrong number of names or a repeated name."""
    names, rows = [names] if isinstance(names, str) else names, list(rows)
    if len(names) != len(rows):
        raise ValueError(f"{len(names)} names for {len(rows)} images")
    new = dict(zip(names, rows, strict=True))
    twice = sorted(kept.keys() & new.keys())
    if twice or len(new) != len(names):
        raise ValueError(f"{what} of {twice[0] if twice else 'an image'} was scored twice; names must be unique")
    kept.update(new)


def for_device(array: Any) -> Any:
    """Return `array` in a form that torch can copy to a device: in native byte order, without negative strides.

    Long doubles become float64. Tensors are returned unchanged.
    """
    if not isinstance(array, np.ndarray):
        return array
    kind = np.dtype(np.float64) if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    array = array.astype(kind, copy=False)
    return np.ascontiguousarray(array) if any(step < 0 for step in array.strides) else array


def _of_numpy(array: np.ndarray) -> str:
    if array.dtype.kind not in _NUMBERS:
        return f"of type {array.dtype}; expected numbers, as astype(np.float32) or astype(np.int64) makes them"
    if np.ma.is_masked(array):
        return "has masked entries, which would be counted; pass a plain array with unknown values marked"
    return ""


def _of_torch(array: Any, torch: Any) -> str:
    if array.layout is not torch.strided:
        return f"has the layout {array.layout}; give it as to_dense()"
    if array.device.type == "meta":
        return "is on the device meta, which has no numbers; give a tensor that was computed"
    if array.is_quantized:
        return f"of type {array.dtype}; give it as dequantize()"
    if array.dtype is torch.complex32:
        return f"of type {array.dtype}; expected real numbers"
    if array.dtype.is_floating_point and array.element_size() == 1:
        return f"of type {array.dtype}, which nothing computes with; give it as float()"
    return ""
