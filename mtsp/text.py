"""Text for messages."""

from collections.abc import Sequence


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names as "a, b", with ", ..." if there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
