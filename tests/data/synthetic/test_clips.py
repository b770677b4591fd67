from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from data.files.flow_formats.flo import read_flo
from data.files.flow_formats.pfm import read_pfm
from data.files.images import read_image
from data.files.masks import read_mask
from data.synthetic.clips import SyntheticConfig, render_clip
from data.synthetic.layers import Clip, Layer, render
from data.synthetic.writers import write_davis, write_flying_chairs, write_scene_flow

SMALL = SyntheticConfig(clips=3, frames=3, height=64, width=80, objects=(2, 4), distractors=(1, 2))
STILL = SMALL.model_copy(update={"motion": 0.0, "camera": 0.0, "rotation": 0.0, "zoom": 0.0, "nonrigid": 0.0})
RNG = np.random.default_rng(3)


def grid(height: int, width: int) -> np.ndarray:
    """The (x, y) of every pixel, HW2 float32."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)


def look_up(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """`image` at the places that the flow points to, bilinear."""
    place = grid(*flow.shape[:2]) + flow
    return cv2.remap(image, place[..., 0], place[..., 1], cv2.INTER_LINEAR)


def square(places: list[tuple[float, float]], side: int, *, foreground: bool = True) -> Layer:
    """A square of noise, whose center is at these (x, y) in frames 0, 1, ..."""
    maps = np.array([[[1, 0, x], [0, 1, y]] for x, y in places], float)
    half = side / 2
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    texture = RNG.integers(256, size=(side, side, 3), dtype=np.uint8)
    still = np.zeros((len(places), 2))
    coverage = np.full((side, side), 255, np.uint8)
    return Layer(texture, coverage, corners, maps, np.zeros(2), np.ones(2), still, foreground)


def wall(steps: list[tuple[float, float]], height: int, width: int) -> Layer:
    """A background that is shifted by these (x, y) in frames 0, 1, ..."""
    maps = np.array([[[1, 0, (width - 1) / 2 + x], [0, 1, (height - 1) / 2 + y]] for x, y in steps], float)
    texture = RNG.integers(256, size=(height, width, 3), dtype=np.uint8)
    return Layer(texture, None, np.zeros((0, 2)), maps, np.zeros(2), np.ones(2), np.zeros((len(steps), 2)), False)


def two_squares() -> Clip:
    """6x12, a still background; a near 2x2 square steps from columns 2-3 to 5-6, onto a far one at columns 6-7."""
    background = wall([(0, 0), (0, 0)], 6, 12)
    far = square([(6.5, 2.5), (6.5, 2.5)], 2)
    near = square([(2.5, 2.5), (5.5, 2.5)], 2)
    return render([background, far, near], 6, 12)


def test_a_hand_made_scene_has_the_mask_flow_and_occlusion_worked_out_by_hand() -> None:
    clip = two_squares()
    mask = np.zeros((6, 12), np.uint8)
    mask[2:4, [2, 3, 6, 7]] = 1
    flow = np.zeros((6, 12, 2), np.float32)
    flow[2:4, 2:4] = (3, 0)
    hidden = np.zeros((6, 12), bool)
    hidden[2:4, [5, 6]] = True  # a background column and the far square's left column; the near square itself is not
    uncovered = np.zeros((6, 12), bool)
    uncovered[2:4, 2:4] = True  # where the near square was, frame 1 shows background that frame 0 does not
    backward = np.zeros((6, 12, 2), np.float32)
    backward[2:4, 5:7] = (-3, 0)
    np.testing.assert_array_equal(clip.masks[0], mask)
    np.testing.assert_array_equal(clip.flow[0], flow)
    np.testing.assert_array_equal(clip.backward_flow[0], backward)
    np.testing.assert_array_equal(clip.occlusion[0], hidden)
    np.testing.assert_array_equal(clip.backward_occlusion[0], uncovered)


def test_what_leaves_the_image_is_occluded_and_what_enters_has_no_past() -> None:
    clip = render([wall([(0, 0), (-2, 1)], 5, 7)], 5, 7)
    leaves = np.zeros((5, 7), bool)
    leaves[:, :2] = leaves[-1] = True  # two columns to the left, one row to the bottom
    enters = np.zeros((5, 7), bool)
    enters[:, -2:] = enters[0] = True
    np.testing.assert_array_equal(clip.occlusion[0], leaves)
    np.testing.assert_array_equal(clip.backward_occlusion[0], enters)


def test_a_rigid_translation_gives_exactly_one_flow() -> None:
    flow = render([wall([(0.3, -0.2), (3.8, 1.05)], 40, 50)], 40, 50).flow[0]
    assert (flow == flow[0, 0]).all()
    np.testing.assert_allclose(flow[0, 0], [3.5, 1.25], atol=1e-6)


def test_a_rotation_by_90_degrees_about_the_middle_is_known_in_closed_form() -> None:
    layer = wall([(0, 0), (0, 0)], 9, 9)
    layer.to_image[1, :, :2] = [[0, -1], [1, 0]]  # (x, y) -> (-y, x) around (4, 4)
    x, y = np.moveaxis(grid(9, 9) - 4, -1, 0)
    np.testing.assert_allclose(render([layer], 9, 9).flow[0], np.stack([-y - x, x - y], axis=-1), atol=1e-5)


def test_a_layer_map_is_inverted_to_a_thousandth_of_a_pixel() -> None:
    bent = wall([(1, 2), (4, -3)], 64, 64)
    bent = Layer(**{**vars(bent), "amplitude": np.array([6.0, 9.0]), "frequency": np.array([0.1, 0.05])})
    x, y = np.moveaxis(grid(64, 64), -1, 0)
    np.testing.assert_allclose(bent.project(*bent.unproject(x, y, 1), 1), (x, y), atol=1e-3)
    assert np.abs(np.subtract(bent.project(x, y, 1), (x + 35.5, y + 28.5))).max() > 5  # it does bend


def seen_twice(clip: Clip, t: int, margin: int) -> np.ndarray:
    """Pixels of frame t, `margin` away from any edge, whose bilinear neighbors in frame t+1 are of the same layer."""
    height, width = clip.layers[t].shape
    place = grid(height, width) + clip.flow[t]
    within = ((place >= 0) & (place <= [width - 1, height - 1])).all(axis=-1)
    same = look_up(clip.layers[t + 1].astype(np.float32), clip.flow[t]) == clip.layers[t]
    size = 2 * margin + 1
    return cv2.erode((within & same & ~clip.occlusion[t]).astype(np.uint8), np.ones((size, size))).astype(bool)


@pytest.mark.parametrize("index", range(4))
def test_warping_the_next_frame_by_the_flow_gives_this_frame_where_it_is_visible(index: int) -> None:
    config = SMALL.model_copy(update={"height": 128, "width": 160, "nonrigid": 0.6})
    clip = render_clip(config, index)
    for t in range(config.frames - 1):
        inside = seen_twice(clip, t, margin=2)  # at an edge the colors of two layers blend
        assert inside.mean() > 0.4
        error = np.abs(look_up(clip.frames[t + 1], clip.flow[t]).astype(float) - clip.frames[t])[inside]
        unmoved = np.abs(clip.frames[t + 1].astype(float) - clip.frames[t])[inside]
        assert error.mean() < min(2.5, 0.6 * unmoved.mean())  # of 255; at most 2.1, and 0.55 in a slow, grainy clip
        # Resampled twice, sharp textures lose some; half a pixel of wrong flow would lose more.
        shifted = np.abs(look_up(clip.frames[t + 1], clip.flow[t] + 0.7).astype(float) - clip.frames[t])[inside]
        assert error.mean() < 0.6 * shifted.mean()


@pytest.mark.parametrize("index", range(4))
def test_forward_and_backward_flow_cancel_where_a_point_is_seen_in_both_frames(index: int) -> None:
    config = SMALL.model_copy(update={"height": 128, "width": 160, "nonrigid": 0.6})
    clip = render_clip(config, index)
    for t in range(config.frames - 1):
        inside = seen_twice(clip, t, margin=1)
        around = clip.flow[t] + look_up(clip.backward_flow[t], clip.flow[t])
        assert np.linalg.norm(around, axis=-1)[inside].max() < 0.1


def test_an_occluded_pixel_does_not_come_back() -> None:
    """Followed there and back, an occluded pixel lands elsewhere, or was carried outside: the definition, read anew."""
    clip = render_clip(SMALL.model_copy(update={"height": 128, "width": 160, "motion": 30.0}), 1)
    place = np.rint(grid(128, 160) + clip.flow[0]).astype(int)
    x, y = place[..., 0], place[..., 1]
    within = (x >= 0) & (x < 160) & (y >= 0) & (y < 128)
    owner_there = clip.layers[1][np.clip(y, 0, 127), np.clip(x, 0, 159)]
    np.testing.assert_array_equal(clip.occlusion[0], ~within | (owner_there > clip.layers[0]))
    assert 0.01 < clip.occlusion[0].mean() < 0.5


def test_nothing_moves_when_nothing_is_told_to() -> None:
    clip = render_clip(STILL, 0)
    assert not clip.flow.any()
    assert not clip.occlusion.any()
    np.testing.assert_array_equal(clip.frames[0], clip.frames[-1])


def test_distractors_move_with_the_background_and_are_not_in_the_mask() -> None:
    config = SMALL.model_copy(update={"objects": (0, 0), "distractors": (4, 4), "nonrigid": 0.0, "camera": 1.0})
    config = config.model_copy(update={"rotation": 0.0, "zoom": 0.0})
    clip = render_clip(config, 0)
    assert clip.layers.max() == 4
    assert not clip.masks.any()
    np.testing.assert_allclose(clip.flow[0], np.broadcast_to(clip.flow[0, 0, 0], clip.flow[0].shape), atol=1e-4)
    assert np.linalg.norm(clip.flow[0, 0, 0]) > 0.1


def test_the_mask_is_where_the_objects_are_and_objects_move_against_the_background() -> None:
    config = SMALL.model_copy(update={"distractors": (0, 0), "camera": 0.0, "nonrigid": 0.0, "rotation": 0.0})
    clip = render_clip(config, 2)
    np.testing.assert_array_equal(clip.masks, clip.layers > 0)
    moves = np.linalg.norm(clip.flow[0], axis=-1) > 0
    np.testing.assert_array_equal(moves, clip.masks[0] == 1)


def test_mean_displacement_is_what_was_asked_for_and_grows_with_the_image() -> None:
    """All the image is one object's displacement when the camera alone moves; 0.5 of 8 px at 384x512 is 4 px."""
    for height, width in ((48, 64), (96, 128)):
        config = SyntheticConfig(height=height, width=width, objects=(0, 0), distractors=(0, 0), nonrigid=0.0)
        config = config.model_copy(update={"rotation": 0.0, "zoom": 0.0})
        lengths = [float(np.linalg.norm(render_clip(config, index).flow[0, 0, 0])) for index in range(300)]
        assert np.mean(lengths) == pytest.approx(4 * width / 512, rel=0.2)
        assert np.percentile(lengths, 95) > 5 * np.median(lengths)  # a Gaussian's length: 2.1


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    first = render_clip(SMALL, 1)
    render_clip(SMALL, 0)
    for again, before in zip(render_clip(SMALL, 1), first, strict=True):
        np.testing.assert_array_equal(again, before)
    assert (render_clip(SMALL, 2).frames != first.frames).any()
    assert (render_clip(SMALL.model_copy(update={"seed": 1}), 1).frames != first.frames).any()


def test_the_two_domains_differ_in_color() -> None:
    def saturation(domain: str) -> float:
        config = SMALL.model_copy(update={"domain": domain, "cue": 1.0})
        frames = np.stack([render_clip(config, index).frames[0] for index in range(30)]).astype(float)
        return float((frames.max(axis=-1) - frames.min(axis=-1)).mean())

    assert saturation("target") < 0.75 * saturation("source")


def test_photos_become_the_texture_of_the_background(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "green.png"), np.full((50, 70, 3), (0, 200, 0), np.uint8))  # BGR
    frame = render_clip(STILL.model_copy(update={"textures": tmp_path, "objects": (0, 0)}), 0).frames[0]
    assert frame[..., 1].mean() > frame[..., [0, 2]].mean() + 90


def test_a_broken_photo_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png: "):
        render_clip(SMALL.model_copy(update={"textures": tmp_path}), 0)


def test_a_folder_without_photos_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image in"):
        render_clip(SMALL.model_copy(update={"textures": tmp_path}), 0)
    with pytest.raises(FileNotFoundError, match="no folder"):
        render_clip(SMALL.model_copy(update={"textures": tmp_path / "missing"}), 0)


def test_a_range_that_descends_is_refused() -> None:
    with pytest.raises(ValidationError, match="objects must be two ascending numbers"):
        SyntheticConfig(objects=(5, 2))


def test_the_right_view_shows_the_scene_shifted_to_the_left() -> None:
    """The background moves by 1 % of 80 pixels."""
    config = STILL.model_copy(update={"objects": (0, 0), "distractors": (0, 0)})
    left, right = render_clip(config, 0), render_clip(config, 0, view="right")
    back = np.broadcast_to(np.array([0.8, 0], np.float32), (64, 80, 2))
    error = np.abs(look_up(left.frames[0], back).astype(float) - right.frames[0])[:, :-2]
    assert error.mean() < 1.0 < np.abs(left.frames[0].astype(float) - right.frames[0]).mean()


def test_davis_layout(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    write_davis(SMALL, tmp_path / "DAVIS", progress=lambda *counts: done.append(counts))
    root = tmp_path / "DAVIS"
    lines = (root / "ImageSets/480p/train.txt").read_text().splitlines()
    assert lines[0] == "/JPEGImages/480p/clip-0000/00000.jpg /Annotations/480p/clip-0000/00000.png"
    assert len(lines) == 6  # two clips of three frames; the third clip is for validation
    assert (root / "ImageSets/480p/val.txt").read_text().count("clip-0002") == 6  # twice a line
    clip = render_clip(SMALL, 0)
    mask = read_mask(root / "Annotations/480p/clip-0000/00001.png")
    np.testing.assert_array_equal(mask, 255 * clip.masks[1])
    frame = read_image(root / "JPEGImages/480p/clip-0000/00001.jpg")
    assert np.abs(frame.astype(float) - clip.frames[1]).mean() < 6  # JPEG
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_flying_chairs_layout(tmp_path: Path) -> None:
    root = tmp_path / "FlyingChairs_release"
    write_flying_chairs(SMALL, root)
    assert (root / "FlyingChairs_train_val.txt").read_text().split() == ["1", "1", "1", "1", "2", "2"]
    clip = render_clip(SMALL, 1)  # pairs 3 and 4
    np.testing.assert_array_equal(read_image(root / "data/00004_img1.ppm"), clip.frames[1])
    np.testing.assert_array_equal(read_image(root / "data/00004_img2.ppm"), clip.frames[2])
    np.testing.assert_array_equal(read_flo(root / "data/00004_flow.flo"), clip.flow[1])
    assert len(list((root / "data").iterdir())) == 18


@pytest.mark.parametrize(
    ("name", "scene"),
    [("Monkaa", "eating_camera2_x2"), ("Driving", "35mm_focallength/scene_backwards/fast")],
)
def test_scene_flow_layout(tmp_path: Path, name: str, scene: str) -> None:
    write_scene_flow(SMALL, tmp_path / name, name)  # pyright: ignore[reportArgumentType]
    root = tmp_path / name
    assert len(list(root.rglob("*.png"))) == len(list(root.rglob("*.pfm"))) == 3 * 3 * 2 * 2
    clip = render_clip(SMALL.model_copy(update={"frames": 5}), 1, view="right")
    frame = read_image(root / "frames_cleanpass" / scene / "right/0003.png")
    np.testing.assert_array_equal(frame, clip.frames[3])
    folder = root / "optical_flow" / scene
    future = read_pfm(folder / "into_future/right/OpticalFlowIntoFuture_0003_R.pfm")
    past = read_pfm(folder / "into_past/right/OpticalFlowIntoPast_0003_R.pfm")
    np.testing.assert_array_equal(future[..., :2], clip.flow[3])
    np.testing.assert_array_equal(past[..., :2], clip.backward_flow[2])
    final = read_image(root / "frames_finalpass" / scene / "right/0003.png")
    assert 0.5 < np.abs(final.astype(float) - frame).mean() < 30


def test_more_clips_than_driving_has_scenes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Driving has 8 scenes, got clips=9"):
        write_scene_flow(SMALL.model_copy(update={"clips": 9}), tmp_path / "new", "Driving")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        write_davis(SMALL, tmp_path)


def test_an_interrupted_data_set_does_not_appear_under_its_name(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_davis(SMALL, tmp_path / "DAVIS", progress=stop)
    assert not (tmp_path / "DAVIS").exists()
    write_davis(SMALL, tmp_path / "DAVIS")
    assert [path.name for path in tmp_path.iterdir()] == ["DAVIS"]
