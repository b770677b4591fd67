"""What messages have in common."""

import pytest

from mtsp.text import ambiguous_order, first_names


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, ""), (1, "0"), (10, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"), (11, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")],
)
def test_ten_names_are_shown_and_that_there_are_more(count: int, said: str) -> None:
    assert first_names([str(number) for number in range(count)]) == said


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["0,1", "0,15", "0,2"], "0,2 comes before 0,15, but after it where commas are decimal"),
        (["999", "1,000", "1,001"], "where thousands are divided"),
        (["F1", "f2", "F3"], "F3 comes before f2, but after it without regard to capitals"),
        (["\uff12", "\uff11\uff10"], "by other digits than 0 to 9"),  # 2 and 10 in full width
        (["08", "09", "0a", "0b", "10"], "as hexadecimal numbers"),  # 8, 9, 10, 11, 16
        (["f_9", "f_a", "f_f", "f_10"], "f_10 comes before f_a, but after it as hexadecimal numbers"),  # 9, 10, 15, 16
        (["a", "b", "z", "aa"], "aa comes before b, but after it where letters count a to z, aa"),
        (["1e-5", "2e-5", "1e-4"], "as numbers with exponents"),
        (["01-02-2020", "15-01-2020"], "as dates of day, month and year"),
        (["998", "999", "1_000"], "where thousands are divided"),
        (["999", "1.000", "1.001"], "where thousands are divided"),
        (["\u22122", "\u22121", "0", "1"], "by other digits"),  # minus signs that are no hyphens
        (["9am", "10am", "1pm"], "1pm comes before 9am, but after it by the hours before and after noon"),
        (["12-30am", "1-05am"], "by the hours"),  # half past midnight, and after one
        (["i", "iv", "v", "ix", "x"], "ix comes before v, but after it as words or Roman numerals that count"),
        (["jan", "feb", "mar"], "as words"),
        (["t_one", "t_two", "t_three"], "as words"),
        (["DSC_9998", "DSC_9999", "DSC_0001"], "DSC_0001 comes before DSC_9998, but after it where a camera's counter"),
        (["x 12-31-2019", "x 01-01-2020"], "as dates of"),
    ],
)
def test_frames_that_count_in_another_way_have_no_order(names: list[str], why: str) -> None:
    assert why in (ambiguous_order(names) or "")


@pytest.mark.parametrize(
    "names",
    [
        ["00000", "00001", "00010"],
        ["cam1_frame2", "cam1_frame10", "cam2_frame1"],
        ["a9", "a10", "b1"],  # as hexadecimal numbers 169, 2576, 177: too far apart for a counter
        ["deadbeef", "0badcafe", "12345678"],
        ["left", "right", "up"],
        ["A1", "B1", "B2"],
        ["2020-01-31", "2020-02-01"],
        ["0", "1"],
        ["0.125", "0.25", "0.5", "1"],
        ["1_000", "1_001", "2_000"],
        ["IMG_0001", "IMG_0002", "IMG_9998"],
        ["9-59-59", "10-00-00"],
        ["img", "img (1)", "img (2)", "img (10)"],
        ["frame"],
        [],
    ],
)
def test_usual_names_of_frames_have_an_order(names: list[str]) -> None:
    assert ambiguous_order(names) is None
