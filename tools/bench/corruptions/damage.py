"""Damage the bytes of a file in a given number of ways, drawn from a seed."""

from collections.abc import Iterator

import numpy as np

KINDS = ("bit", "bit", "bit", "byte", "cut", "cut", "zeros", "noise", "gone", "twice", "more", "huge")
"""Kinds of damage, in turn; a single bit is the most frequent one."""


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged copies of `data`, none of them equal to it."""
    rng = np.random.default_rng(seed)
    done = 0
    while done < count:
        other = _damage(data, KINDS[done % len(KINDS)], rng)
        if other != data:
            done += 1
            yield other


def _damage(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    # A third of the damage is within the first 64 bytes, where formats keep their sizes.
    place = int(rng.integers(len(data))) if rng.random() > 0.33 else int(rng.integers(min(64, len(data))))
    size = int(rng.integers(1, max(2, len(data) // 8)))
    before, after = data[:place], data[place + size :]
    match kind:
        case "bit":
            return before + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]
        case "byte":
            return before + rng.bytes(1) + data[place + 1 :]
        case "cut":
            return before
        case "zeros":
            return before + bytes(len(data[place : place + size])) + after
        case "noise":
            return before + rng.bytes(len(data[place : place + size])) + after
        case "gone":
            return before + after
        case "twice":
            return before + data[place : place + size] + data[place:]
        case "more":
            return before + rng.bytes(size) + data[place:]
    return before + (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"9999999")[int(rng.integers(3))] + data[place + 4 :]
