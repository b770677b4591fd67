"""FlyingChairs: pairs, their list, and what is refused."""

from pathlib import Path

import pytest

from data.types import DataError, MissingDataError
from tests.data.flow.files import chairs, first, write_chairs


def test_line_n_of_the_chairs_list_is_pair_number_n(tmp_path: Path) -> None:
    write_chairs(tmp_path, [1, 2, 3, 4], "1211")
    assert chairs(tmp_path).ids == ["00001", "00003", "00004"]
    assert chairs(tmp_path, split="val").ids == ["00002"]
    assert len(chairs(tmp_path, split="all")) == 4
    assert first(chairs(tmp_path)[1]) == (3, 103, 3.0)
    assert "flow_valid" not in chairs(tmp_path)[1]


def test_a_part_of_the_chairs_with_the_full_list_keeps_its_numbers(tmp_path: Path) -> None:
    write_chairs(tmp_path, [2, 5], "12112")
    assert chairs(tmp_path, split="val").ids == ["00002", "00005"]  # lines 2 and 5, not 1 and 2


def test_a_part_of_the_chairs_with_a_list_of_its_own_goes_by_order(tmp_path: Path) -> None:
    write_chairs(tmp_path, [50, 7, 64], "121")
    assert chairs(tmp_path).ids == ["00007", "00064"]
    (tmp_path / "FlyingChairs_train_val.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"2 lines, expected one for each of 3 pairs or for numbers up to 00064"):
        chairs(tmp_path)


def test_the_chairs_are_found_below_the_folder_they_were_unpacked_in(tmp_path: Path) -> None:
    write_chairs(tmp_path / "FlyingChairs_release", [1, 2], "12")
    assert len(chairs(tmp_path)) == 1
    (tmp_path / "FlyingChairs_release" / "FlyingChairs_train_val.txt").rename(tmp_path / "FlyingChairs_train_val.txt")
    assert len(chairs(tmp_path)) == 1


def test_missing_chairs_are_named_and_a_wrong_list_is_refused(tmp_path: Path) -> None:
    write_chairs(tmp_path, [1, 2, 3], "113")
    with pytest.raises(DataError, match=r"each line must be 1 \(train\) or 2 \(val\), got '3'"):
        chairs(tmp_path)
    (tmp_path / "FlyingChairs_train_val.txt").write_text("1\n1\n1\n")
    with pytest.raises(DataError, match="no examples in what was asked for"):
        chairs(tmp_path, split="val")
    (tmp_path / "data" / "00002_img2.ppm").unlink()
    (tmp_path / "data" / "00003_flow.flo").unlink()
    with pytest.raises(MissingDataError, match=r"2 files \(data/00002_img2\.ppm, data/00003_flow\.flo\) missing"):
        chairs(tmp_path)
    (tmp_path / "FlyingChairs_train_val.txt").unlink()
    with pytest.raises(DataError, match="set split=all"):
        chairs(tmp_path)
