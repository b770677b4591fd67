"""Choose examples of a data set by their indices."""


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return `most` of the indices 0 ... `count` - 1, evenly spaced and beginning with 0; all if there are fewer."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]
