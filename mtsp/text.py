"""Text for messages."""

import difflib
from collections.abc import Sequence


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names as "a, b", with ", ..." if there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return "did you mean a or b?" with at most three names like `name`, or `otherwise` if there are none."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
