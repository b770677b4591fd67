"""Format text for messages, and order names naturally."""

import difflib
import re
from collections.abc import Sequence
from decimal import Decimal


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names as "a, b", with ", ..." if there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return "did you mean a or b?" with at most three names like `name`, or `otherwise` if there are none."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


_NUMBER = re.compile(r"((?:(?:^|(?<=/))-)?(?:(?<![\d.])\d+\.\d+(?![\d.])|\d+))", re.ASCII)
_DECIMAL = re.compile(r"(?<![\d.])(\d+)\.(\d+)(?![\d.])", re.ASCII)
_LAST = re.compile(r"(.*?)(-?)(\d+)", re.ASCII | re.DOTALL)


def natural_order(name: str) -> tuple[list[Decimal | str], str]:
    """Return a sort key that orders numbers inside names by value: frame2 before frame10.

    0.15 lies between 0.1 and 0.2, and a name or folder that begins with -1 comes before 0.
    """
    pieces = _NUMBER.split(name)  # words and numbers alternate, words first, so that equal types are compared
    return [Decimal(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def ambiguous_order(names: Sequence[str]) -> str | None:
    """Return a text that says why names of frames are ambiguous to order, or None if they are not.

    1.9 comes before 1.10 if the dots separate two numbers, and after it if they are decimal points. t-1 may mean minus
    one, or one after a hyphen.
    """
    decimals: dict[str, list[str]] = {}
    for name in names:
        for whole, part in _DECIMAL.findall(name):
            decimals.setdefault(whole, []).append(part)
    for whole, parts in decimals.items():
        odd = next((part for part in parts if len(part) > 1 and part.endswith("0")), None)
        if odd is not None and len({len(part) for part in parts}) > 1:
            return f"{whole}.{odd} may be a decimal or two numbers; pad the numbers to equal length"
    ends = {(m[1], m[2]) for name in names if (m := _LAST.fullmatch(name))}
    for prefix, hyphen in sorted(ends):
        if hyphen and prefix and (prefix, "") in ends:
            return f"{prefix}-1 may be minus one or one after a hyphen: {prefix}1 exists too; number from 0 on"
    return None
