"""Read lists and labels from text, JSON and MATLAB files. Errors name the file."""

import io
import json
import re
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from data.files.images import read_file
from data.types import DataError

MAX_BYTES = 1 << 30
"""Size of the largest list or label file that is read."""

_SURROGATE = re.compile(r"\\u[dD][89abAB]")


def read_mat(path: Path, *keys: str) -> list[np.ndarray]:
    """Return variables of a MATLAB file (up to version 7.2), each as an array of one dimension.

    A cell array of text becomes an array of str, and a struct becomes an array with named fields.

    Raises:
        DataError: the file is missing, cannot be read or lacks a variable, or scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise DataError(f"{path} is a MATLAB file; to read it: pip install mtsp[mat]") from error
    data = read_file(path, MAX_BYTES)
    try:
        found: dict[str, Any] = loadmat(io.BytesIO(data), squeeze_me=True)
    except Exception as error:  # scipy raises many types: ValueError, TypeError, zlib.error, OSError, ...
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot be read as a MATLAB file: {reason}") from error
    if missing := [key for key in keys if key not in found]:
        names = ", ".join(key for key in found if not key.startswith("__")) or "nothing"
        raise DataError(f"{path}: has no variable {missing[0]!r}; it holds {names}")
    return [np.atleast_1d(found[key]) for key in keys]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises DataError if it cannot be read."""
    text = read_text(path)
    try:
        found = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    return found


def read_lines(path: Path) -> list[list[str]]:
    """Return the words of each non-blank line of a split file.

    Raises:
        DataError: the file is missing, not text, or empty.
    """
    lines = [words for line in read_text(path).splitlines() if (words := line.split())]
    if not lines:
        raise DataError(f"{path}: the split is empty")
    return lines


def read_names(path: Path) -> list[str]:
    """Return the non-blank lines of a file, stripped. Raises DataError if it cannot be read."""
    return [name for line in read_text(path).splitlines() if (name := line.strip())]


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file, without a byte order mark.

    Raises:
        DataError: the file is missing, not a regular file, larger than :data:`MAX_BYTES`, or not UTF-8.
    """
    try:
        return read_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error


def read_classes(path: Path) -> list[str]:
    """Return the class names in a file; one per line: a name ends at a tab; blank lines and lines
    that begin with # are skipped; accents are composed (NFC). Raises DataError."""
    lines = read_text(path).splitlines()
    names = [
        name for line in lines if not line.startswith("#") and (name := normalize("NFC", line.split("\t")[0].strip()))
    ]
    if not names:
        raise DataError(f"{path}: the list of classes is empty")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: {len(twice)} classes are listed twice, for example {twice[0]!r}")
    return names
