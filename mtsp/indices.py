"""Choose examples of a data set by their indices."""


def evenly_spaced(count: int, most: int, *, centered: bool = False) -> list[int]:
    """Return `most` of the indices 0 ... `count` - 1, evenly spaced; all if there are fewer.

    They are the first indices of equal parts or, if `centered`, those in the middle of the parts.
    """
    chosen = min(count, most)
    if centered:
        return [round((i + 0.5) * count / chosen - 0.5) for i in range(chosen)]
    return [i * count // chosen for i in range(chosen)]
