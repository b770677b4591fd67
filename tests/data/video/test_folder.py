"""A folder of one's own frames and masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.images import write_image
from data.files.masks import write_mask
from data.types import DataError, MissingDataError
from data.video.folder import Folder, FolderConfig

NONE: np.ndarray = np.zeros((0, 0), np.uint8)


def folder(root: Path, masks: bool = True, classes: int | None = None, **options: Any) -> Folder:
    return FolderConfig(
        name="folder", frames=root / "frames", masks=root / "masks" if masks else None, classes=classes, **options
    ).build()


def add(root: Path, name: str, level: int, mask: list[int] | None = None, suffix: str = ".png") -> None:
    """A image of 2x3 pixels of one gray level, and a mask of two equal rows."""
    for place in ("frames", "masks"):
        (root / place / name).parent.mkdir(parents=True, exist_ok=True)
    write_image(root / "frames" / f"{name}{suffix}", np.full((2, 3, 3), level, np.uint8))
    if mask is not None:
        write_mask(root / "masks" / f"{name}.png", np.array([mask, mask], np.uint8))


def levels(dataset: Folder) -> list[tuple[int, int]]:
    examples = [dataset[i] for i in range(len(dataset))]
    return [(int(sample["frame"].mean()), int(sample.get("next_frame", NONE).mean())) for sample in examples]


def test_frames_follow_each_other_by_number_within_a_subfolder(tmp_path: Path) -> None:
    for name, level in {"b/frame10": 50, "b/frame2": 40, "b/frame1": 30, "a/x": 20}.items():
        add(tmp_path, name, level)
    dataset = folder(tmp_path, masks=False)
    assert dataset.ids == ["a/x", "b/frame1", "b/frame2", "b/frame10"]
    assert levels(dataset) == [(20, 20), (30, 40), (40, 50), (50, 50)]
    assert set(dataset[0]) == {"name", "frame", "next_frame"}
    assert set(dataset.labels(0)) == {"name"}


def test_a_flat_folder_is_one_sequence(tmp_path: Path) -> None:
    add(tmp_path, "1", 10, suffix=".ppm")
    add(tmp_path, "2", 20)
    assert folder(tmp_path, masks=False).ids == ["1", "2"]
    assert levels(folder(tmp_path, masks=False)) == [(10, 20), (20, 20)]
    assert "next_frame" not in folder(tmp_path, masks=False, next_frame=False)[0]


def test_names_of_words_and_numbers_are_put_in_order(tmp_path: Path) -> None:
    for name in ("10", "9", "a10", "a9", "a", "9a"):
        add(tmp_path, name, 1)
    assert folder(tmp_path, masks=False).ids == ["9", "9a", "10", "a", "a9", "a10"]


def test_a_masks_ids_are_its_palette_indices(tmp_path: Path) -> None:
    add(tmp_path, "clip/1", 10, [0, 2, 255])
    sample = folder(tmp_path, classes=3, kind="images")[0]
    assert sample.get("mask", NONE).tolist() == [[0, 2, 255]] * 2
    with pytest.raises(DataError, match=r"clip/1\.png: ids \[2\], but a video has one object, 1; .*--objects"):
        folder(tmp_path)[0]


def test_videos_are_found_behind_links_and_not_among_hidden_ones(
    tmp_path: Path, litter: Callable[[Path], None]
) -> None:
    add(tmp_path / "disk", "dog/1", 1)
    add(tmp_path, "cat/1", 2)
    (tmp_path / "frames" / "far").symlink_to(tmp_path / "disk" / "frames")
    litter(tmp_path / "frames")
    litter(tmp_path / "disk")
    assert folder(tmp_path, masks=False).ids == ["cat/1", "far/dog/1"]


def test_a_mask_that_a_jpeg_has_changed_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "1", 10)
    Image.fromarray(np.array([[0, 255, 0]] * 2, np.uint8)).save(tmp_path / "masks" / "1.jpg")
    for foreground in (False, True):
        with pytest.raises(DataError, match=r"1\.jpg: the mask is a JPEG, .* as a PNG"):
            folder(tmp_path, foreground=foreground)[0]


def test_ids_that_are_no_classes_are_named_with_their_file(tmp_path: Path) -> None:
    add(tmp_path, "clip/1", 10, [0, 7, 3])
    with pytest.raises(DataError, match=r"clip/1\.png: ids \[3, 7\] are no classes; 3 classes have the ids 0 to 2"):
        folder(tmp_path, classes=3, kind="images")[0]
    assert folder(tmp_path, classes=8, kind="images")[0].get("mask", NONE).max() == 7


def test_masks_of_0_and_255_are_not_taken_for_background_and_unknown(tmp_path: Path) -> None:
    add(tmp_path, "1", 10, [0, 255, 255])
    settings: dict[str, Any]
    for settings in ({}, {"classes": 2}, {"classes": 21, "kind": "images"}):
        with pytest.raises(DataError, match=r"1\.png: .* only 0 and 255.* set `foreground: true`"):
            folder(tmp_path, **settings)[0]
        known = folder(tmp_path, **settings, unknown=(255,))[0].get("mask", NONE)
        assert known.tolist() == [[0, 255, 255]] * 2
    assert folder(tmp_path, foreground=True)[0].get("mask", NONE).tolist() == [[0, 1, 1]] * 2
    add(tmp_path, "2", 10, [0, 1, 255])  # a mask with an id shows that 255 is none
    assert folder(tmp_path)[0].get("mask", NONE).tolist() == [[0, 255, 255]] * 2


def test_a_mask_of_colors_is_refused_with_the_way_out(tmp_path: Path) -> None:
    add(tmp_path, "1", 10)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match=r"masks/1\.png: .*colors and no class ids; .*palette"):
        folder(tmp_path)[0]


def test_frames_and_masks_without_each_other_are_counted_at_once(tmp_path: Path) -> None:
    for number in range(12):
        add(tmp_path, f"clip/{number}", 10)
    add(tmp_path, "clip/12", 10, [0, 0, 1])
    with pytest.raises(MissingDataError) as error:
        folder(tmp_path)
    assert "for 12 files (clip/0.png, clip/1.png, " in str(error.value)
    assert "clip/9.png, ...)" in str(error.value)  # the tenth is the last one listed
    for number in range(12):
        (tmp_path / "frames" / "clip" / f"{number}.png").unlink()
    assert folder(tmp_path).ids == ["clip/12"]
    (tmp_path / "frames" / "clip" / "12.png").rename(tmp_path / "frames" / "clip" / "13.png")
    write_mask(tmp_path / "masks" / "clip" / "13.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(MissingDataError, match=r"no frame in .*frames for 1 file \(clip/12\.png\)"):
        folder(tmp_path)


def test_a_link_to_nothing_is_found_at_once(tmp_path: Path) -> None:
    add(tmp_path, "clip/1", 10, [0, 1])
    (tmp_path / "masks/clip/1.png").rename(tmp_path / "mask.png")
    (tmp_path / "masks/clip/1.png").symlink_to(tmp_path / "mask.png")
    assert len(folder(tmp_path)) == 1
    (tmp_path / "mask.png").unlink()
    with pytest.raises(MissingDataError, match=r"masks at .*: expected 1 file \(clip/1.png\), found links to none"):
        folder(tmp_path)


def test_a_mask_of_another_size_names_both(tmp_path: Path) -> None:
    add(tmp_path, "1", 10)
    write_mask(tmp_path / "masks" / "1.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match=r"masks/1\.png has 3x3 pixels, but .*frames/1\.png has 2x3"):
        folder(tmp_path)[0]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*frames"):
        folder(tmp_path, masks=False)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no examples"):
        folder(tmp_path, masks=False)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    add(tmp_path, "1", 10)
    add(tmp_path, "1", 10, suffix=".ppm")
    with pytest.raises(DataError, match=r"both 1\.png and 1\.ppm; keep one"):
        folder(tmp_path, masks=False)
