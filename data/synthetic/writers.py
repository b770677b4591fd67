"""Write synthetic clips in the layouts of DAVIS 2016, FlyingChairs and the Scene Flow data sets.

The classes that read the real data also read the written data, so a first run needs no download. A data set is first
written to `NAME.partial` and renamed when it is complete. Writers raise FileExistsError if `root` exists and is not
empty. The last clips, a fraction `validation` of all but at least one of two, become the validation split.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from data.files.flow_formats.flo import write_flo
from data.files.flow_formats.pfm import write_pfm
from data.files.images import write_image
from data.files.masks import write_mask
from data.synthetic.clips import SyntheticConfig, render_clip
from data.synthetic.layers import Clip

Progress = Callable[[int, int], None]
"""Called after each clip with the number of clips written and the total number of clips."""

_MONKAA = """
a_rain_of_stones eating_camera2 eating_naked_camera2 eating family flower_storm_augmented0 flower_storm_augmented1
flower_storm funnyworld_augmented0 funnyworld_augmented1 funnyworld_camera2_augmented0 funnyworld_camera2_augmented1
funnyworld_camera2 funnyworld lonetree_augmented0 lonetree_augmented1 lonetree_difftex2 lonetree_difftex lonetree_winter
lonetree top_view treeflight_augmented0 treeflight_augmented1 treeflight
"""
MONKAA_SCENES = tuple(f"{scene}_x2" for scene in _MONKAA.split())
DRIVING_SCENES = tuple(
    f"{focal}_focallength/scene_{drive}/{speed}"
    for drive, speed, focal in product(("backwards", "forwards"), ("fast", "slow"), ("15mm", "35mm"))
)


def write_davis(
    config: SyntheticConfig,
    root: Path,
    *,
    validation: float = 0.2,
    resolution: str = "480p",
    progress: Progress | None = None,
) -> None:
    """Write clips to the new folder `root` as sequences `clip-0000` ... of DAVIS 2016.

    The files are `JPEGImages/480p/<sequence>/00000.jpg`, `Annotations/480p/<sequence>/00000.png` (0 and 255), and
    `ImageSets/480p/{train,val}.txt` with one line per frame and both paths relative to `root`. `resolution` replaces
    `480p` in all paths; it does not change the size of the frames.
    """
    train = config.clips - _validation_clips(validation, config.clips)
    with published_folder(root) as folder:
        lists: dict[str, list[str]] = {"train": [], "val": []}
        for index, clip in _render(config, progress):
            sequence = f"{resolution}/clip-{index:04d}"
            for number, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
                stem = f"{sequence}/{number:05d}"
                image, annotation = f"JPEGImages/{stem}.jpg", f"Annotations/{stem}.png"
                write_image(_made(folder / image), frame)
                write_mask(_made(folder / annotation), 255 * mask)
                lists["train" if index < train else "val"].append(f"/{image} /{annotation}\n")
        for split, lines in lists.items():
            _made(folder / "ImageSets" / resolution / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def write_flying_chairs(
    config: SyntheticConfig, root: Path, *, validation: float = 0.1, progress: Progress | None = None
) -> None:
    """Write each pair of consecutive frames, `frames - 1` per clip, to the new folder `root` as a pair of FlyingChairs.

    The files are `data/00001_{img1,img2}.ppm`, `data/00001_flow.flo` and `FlyingChairs_train_val.txt` (a line per
    pair, 1 = train, 2 = validation), as in the folder `FlyingChairs_release`.
    """
    train = config.clips - _validation_clips(validation, config.clips)
    steps = config.frames - 1
    with published_folder(root) as folder:
        for index, clip in _render(config, progress):
            for step in range(steps):
                stem = folder / "data" / f"{index * steps + step + 1:05d}"
                write_image(_made(Path(f"{stem}_img1.ppm")), clip.frames[step])
                write_image(Path(f"{stem}_img2.ppm"), clip.frames[step + 1])
                write_flo(Path(f"{stem}_flow.flo"), clip.flow[step])
        lines = ["1\n"] * (train * steps) + ["2\n"] * ((config.clips - train) * steps)
        (folder / "FlyingChairs_train_val.txt").write_text("".join(lines), encoding="utf-8")


def write_scene_flow(
    config: SyntheticConfig,
    root: Path,
    name: Literal["Monkaa", "Driving"] = "Monkaa",
    *,
    progress: Progress | None = None,
) -> None:
    """Write clips to the new folder `root` as the published scenes of Monkaa or Driving, in both views and directions.

    The files are `frames_{clean,final}pass/<scene>/{left,right}/0001.png` and
    `optical_flow/<scene>/into_{future,past}/{left,right}/OpticalFlowInto{Future,Past}_0001_{L,R}.pfm`, rows bottom-up,
    a third channel of zeros. As in the originals, every frame has both flows, including the first and the last frame.
    The final pass is the clean pass with a little blur and noise; the originals add motion blur and depth of field.
    Raises ValueError if there are more clips than scenes: 24 in Monkaa, 8 in Driving.
    """
    scenes = MONKAA_SCENES if name == "Monkaa" else DRIVING_SCENES
    if config.clips > len(scenes):
        raise ValueError(f"{name} has {len(scenes)} scenes, got clips={config.clips}; set fewer clips with more frames")
    # Render one more frame at both ends, so that the first frame has a past and the last frame has a future.
    longer = config.model_copy(update={"frames": config.frames + 2})
    with published_folder(root) as folder:
        for index, scene in enumerate(scenes[: config.clips]):
            for view in ("left", "right"):
                _write_view(folder, scene, view, render_clip(longer, index, view))
            if progress is not None:
                progress(index + 1, config.clips)


def _write_view(folder: Path, scene: str, view: Literal["left", "right"], clip: Clip) -> None:
    rng = np.random.default_rng(0)
    for number in range(1, len(clip.frames) - 1):
        frame, letter = clip.frames[number], view[0].upper()
        soft = cv2.GaussianBlur(frame, (3, 3), 0) + 3 * rng.standard_normal(frame.shape, dtype=np.float32)
        final = np.clip(soft, 0, 255).astype(np.uint8)
        write_image(_made(folder / "frames_cleanpass" / scene / view / f"{number:04d}.png"), frame)
        write_image(_made(folder / "frames_finalpass" / scene / view / f"{number:04d}.png"), final)
        for direction, flow in (("Future", clip.flow[number]), ("Past", clip.backward_flow[number - 1])):
            file = f"OpticalFlowInto{direction}_{number:04d}_{letter}.pfm"
            path = folder / "optical_flow" / scene / f"into_{direction.lower()}" / view / file
            write_pfm(_made(path), np.dstack([flow, np.zeros_like(flow[..., 0])]))


def _render(config: SyntheticConfig, progress: Progress | None) -> Iterator[tuple[int, Clip]]:
    for index in range(config.clips):
        yield index, render_clip(config, index)
        if progress is not None:
            progress(index + 1, config.clips)


def _validation_clips(fraction: float, clips: int) -> int:
    return 0 if clips < 2 or fraction <= 0 else min(clips - 1, max(1, round(fraction * clips)))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def published_folder(root: Path) -> Iterator[Path]:
    """Yield a folder to write to. It is renamed to `root` at the end, and kept for inspection after an error."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not empty; choose another folder or delete it first")
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if root.exists():
        root.rmdir()
    os.replace(partial, root)
