"""File names that look alike and are not: composed and decomposed letters, two spaces, a no-break space."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data import DataConfig
from data.files.images import write_image
from data.files.masks import write_mask
from data.types import DataError
from mtsp.config import parse

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def own(root: Path, frames: list[str], masks: list[str], split: str | None = None) -> list[str]:
    for folder, names in (("frames", frames), ("masks", masks)):
        (root / folder).mkdir()
        for name in names:
            if folder == "frames":
                write_image(root / folder / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
            else:
                write_mask(root / folder / f"{name}.png", np.ones((4, 4), np.uint8))
    values = {
        "name": "mask_folder",
        "frames": str(root / "frames"),
        "masks": str(root / "masks"),
        "classes": ["a", "b"],
    }
    if split is not None:
        (root / "split.txt").write_text(split, encoding="utf-8")
        values["split"] = str(root / "split.txt")
    dataset = parse(DataConfig, {"dataset": values}).build_dataset()
    return [dataset[i]["name"] for i in range(len(dataset))]


def test_letters_composed_or_not_are_the_same_name(tmp_path: Path) -> None:
    found = own(tmp_path, [DECOMPOSED], [COMPOSED], split=f"{COMPOSED}\n")
    assert [unicodedata.normalize("NFC", name) for name in found] == [COMPOSED]


def test_letters_composed_or_not_are_the_same_name_in_videos(tmp_path: Path) -> None:
    for folder, name in (("frames", DECOMPOSED), ("masks", COMPOSED)):
        (tmp_path / folder / name).mkdir(parents=True)
        path = tmp_path / folder / name / f"{name}.png"
        if folder == "frames":
            write_image(path, np.zeros((4, 4, 3), np.uint8))
        else:
            write_mask(path, np.ones((4, 4), np.uint8))
    values = {"name": "folder", "frames": str(tmp_path / "frames"), "masks": str(tmp_path / "masks")}
    assert len(parse(DataConfig, {"dataset": values}).build_dataset()) == 1


@pytest.mark.parametrize("line", ["a  b", "a\u00a0b", "A b"])
def test_a_line_that_only_looks_like_a_name_is_shown_with_the_difference(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"split\.txt.*'a( |\\xa0|A)* ?b'.*'a b'|'A b'.*'a b'"):
        own(tmp_path, ["a b"], ["a b"], split=f"{line}\n")


def test_a_name_with_two_spaces_can_be_listed(tmp_path: Path) -> None:
    assert own(tmp_path, ["a  b"], ["a  b"], split="a  b\n") == ["a  b"]
