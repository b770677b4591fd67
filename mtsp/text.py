"""Format text for messages, and order names naturally."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names as "a, b", with ", ..." if there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return "did you mean a or b?" with at most three names like `name`, or `otherwise` if there are none."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def similar(name: str, others: Iterable[str]) -> str:
    """Return a hint for a message if one of `others` differs from `name` only in blanks, capitals or accents, else "".

    Letters outside ASCII are written as codes, since composed and decomposed accents look the same.
    """
    wanted = _look(name)
    found = next((other for other in others if other != name and _look(other) == wanted), None)
    return "" if found is None else f"; for {name!a} there is {found!a}"


def _look(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


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
    one, or one after a hyphen. Names that count in another way than by decimal numbers (0,15 with a decimal comma; f2
    after F1; 0a after 09; aa after z; 1e-5; dates that end with the year) are ambiguous if it changes their order.
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
    return _another_reading(names)


def _another_reading(names: Sequence[str]) -> str | None:
    ordered = sorted(names, key=natural_order)
    shortest = min(map(len, ordered), default=0)
    start = next((i for i in range(shortest) if len({name[i] for name in ordered}) > 1), shortest)
    for what, read in (_READINGS | _COUNTERS).items():
        # A counter's common start such as "0" of 09, 0a may belong to it, so that names are read with and without it.
        for ends in (ordered, [name[start:] for name in ordered])[: 2 if what in _COUNTERS else 1]:
            values = read(ends)
            other = (
                [] if values is None else [name for _, name in sorted(zip(values, ordered, strict=True), key=_first)]
            )
            if other and other != ordered:
                before, after = next(pair for pair in zip(ordered, other, strict=True) if pair[0] != pair[1])
                return f"{before} comes before {after}, but after it {what}; number frames from 0 on, in decimal digits"
    return None


def _first(pair: tuple[Any, str]) -> Any:
    return pair[0]


def _with_commas(names: Sequence[str]) -> list[Any] | None:
    if not any(re.search(r"\d,\d", name) for name in names):
        return None
    return [natural_order(re.sub(r"(?<=\d),(?=\d)", ".", name))[0] for name in names]


def _without_thousands(names: Sequence[str]) -> list[Any] | None:
    divided = [name for name in names if re.search(r"\d[,._' ]\d", name)]
    if not divided or len(divided) == len(names) or not all(_THOUSANDS.search(name) for name in divided):
        return None
    return [natural_order(_THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), name))[0] for name in names]


def _without_capitals(names: Sequence[str]) -> list[Any] | None:
    if all(name == name.casefold() for name in names):
        return None
    return [natural_order(name.casefold())[0] for name in names]


def _in_any_digits(names: Sequence[str]) -> list[Any] | None:
    if all(name.isascii() for name in names):
        return None
    plain = [re.sub("[\u2010-\u2015\u2212\uff0d]", "-", name) for name in names]
    return [natural_order("".join(str(unicodedata.decimal(char, char)) for char in name))[0] for name in plain]


def _counted(form: str, gap: int, value: Callable[[str], int]) -> Callable[[Sequence[str]], list[Any] | None]:
    """Return a reader of counters of another base; it gives None if their values are further apart than `gap`."""

    def read(names: Sequence[str]) -> list[Any] | None:
        if not all(re.fullmatch(form, name) for name in names) or all(name.isdecimal() for name in names):
            return None
        values = [value(name) for name in names]
        return values if max(values) - min(values) < gap * len(names) else None

    return read


def _letters(name: str) -> int:
    number = 0
    for char in name.lower():
        number = 26 * number + ord(char) - ord("a") + 1
    return number


def _with_exponents(names: Sequence[str]) -> list[Any] | None:
    numbers = all(re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d{1,2})?", name, re.ASCII | re.IGNORECASE) for name in names)
    return [float(name) for name in names] if numbers and any("e" in name.lower() for name in names) else None


def _dates(month: int) -> Callable[[Sequence[str]], list[Any] | None]:
    def read(names: Sequence[str]) -> list[Any] | None:
        found = [_DATE.search(name) for name in names]
        if not all(found):
            return None
        days = [(int(m[3]), int(m[month]), int(m[3 - month])) for m in found if m]
        return [(day, natural_order(name)[0]) for day, name in zip(days, names, strict=True)]

    return read


def _hours(names: Sequence[str]) -> list[Any] | None:
    found = [_HALF_DAY.search(name) for name in names]
    if not all(found):
        return None
    return [(int(m[1]) % 12 + 12 * (m[4] in "pP"), int(m[2] or 0), int(m[3] or 0)) for m in found if m]


def _words(names: Sequence[str]) -> list[Any] | None:
    lower = [name.strip(" _-").lower() for name in names]
    if all(re.fullmatch(_ROMAN, name) for name in lower):
        values = [_roman(name) for name in lower]
        return values if max(values, default=0) < 4 * len(names) + 4 else None
    for series in _SERIES:
        place = {word[:length]: i for i, word in enumerate(series.split()) for length in {3, len(word)}}
        if len(place) >= len(series.split()) and all(name in place for name in lower):
            return [place[name] for name in lower]
    return None


def _roman(name: str) -> int:
    digits = [_ROMAN_DIGITS[char] for char in name]
    return sum(-a if a < b else a for a, b in zip(digits, [*digits[1:], 0], strict=True))


def _wrapped(names: Sequence[str]) -> list[Any] | None:
    found = [_LAST.fullmatch(name) for name in names]
    ends = [m[3] for m in found if m]
    if len(ends) < max(2, len(names)) or len({len(end) for end in ends}) > 1 or len({m[1] for m in found if m}) > 1:
        return None
    values, most = [int(end) for end in ends], 10 ** len(ends[0]) - 1
    if most not in values or min(values) > 1 or most < 1000:
        return None
    ordered = sorted(values)
    gap, start = max((b - a, b) for a, b in pairwise(ordered))
    return [(value < start, value) for value in values] if gap > most // 2 else None


_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:[,._' ]\d{3})+(?![\d.,])", re.ASCII)
_HALF_DAY = re.compile(r"(?<!\d)(\d\d?)(?:\D?(\d\d))?(?:\D?(\d\d))? ?[_-]?([ap])\.?m", re.ASCII | re.IGNORECASE)
_ROMAN = "(?=.)c?(xc|xl|l?x{0,3})(ix|iv|v?i{0,3})"
_ROMAN_DIGITS = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_SERIES = (
    "january february march april may june july august september october november december",
    "monday tuesday wednesday thursday friday saturday sunday",
    "zero one two three four five six seven eight nine ten eleven twelve",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
)
_DATE = re.compile(r"(?<!\d)(\d\d?)[-_. ](\d\d?)[-_. ]((?:19|20)\d\d)(?!\d)", re.ASCII)
_READINGS: dict[str, Callable[[Sequence[str]], list[Any] | None]] = {
    "where commas are decimal": _with_commas,
    "where thousands are divided": _without_thousands,
    "without regard to capitals": _without_capitals,
    "by other digits than 0 to 9": _in_any_digits,
    "as dates of day, month and year": _dates(month=2),
    "as dates of month, day and year": _dates(month=1),
    "by the hours before and after noon": _hours,
    "where a camera's counter began again": _wrapped,
}
_COUNTERS: dict[str, Callable[[Sequence[str]], list[Any] | None]] = {
    "as words or Roman numerals that count": _words,
    "as hexadecimal numbers": _counted("(0x)?([0-9a-f]+|[0-9A-F]+)", 4, lambda name: int(name, 16)),
    "where letters count a to z, aa": _counted("[a-z]+|[A-Z]+", 30, _letters),
    "as numbers with exponents": _with_exponents,
}
"""Other ways to order names: a key for each name, or None if the names are not of this form."""
