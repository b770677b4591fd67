"""Small copies of the flow data sets in their own layouts, for the tests."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import SampleDataset
from data.files.flow_formats.flo import write_flo
from data.files.flow_formats.kitti import write_kitti_flow
from data.files.flow_formats.pfm import write_pfm
from data.files.images import write_image
from data.flow.flying_chairs import FlyingChairsConfig
from data.flow.kitti import KittiConfig
from data.flow.scene_flow import FlyingThingsConfig, MonkaaConfig
from data.flow.sintel import SintelConfig
from mtsp.types import Sample

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")
HEIGHT, WIDTH = 4, 6
NONE: np.ndarray = np.zeros((0, 0, 0), bool)


def gray(level: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def flow(dx: float) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 2), (dx, 0), np.float32)


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def first(sample: Sample) -> tuple[int, int, float]:
    """The gray level of both frames and the horizontal flow."""
    both = sample["frame"], sample.get("next_frame", np.zeros((1, 1, 1)))
    return int(both[0][0, 0, 0]), int(both[1][0, 0, 0]), float(sample.get("flow", np.zeros((1, 1, 2)))[0, 0, 0])


def write_chairs(root: Path, numbers: Sequence[int], marks: str) -> Path:
    for number in numbers:
        write_image(made(root / "data" / f"{number:05d}_img1.ppm"), gray(number))
        write_image(root / "data" / f"{number:05d}_img2.ppm", gray(number + 100))
        write_flo(root / "data" / f"{number:05d}_flow.flo", flow(number))
    (root / "FlyingChairs_train_val.txt").write_text("\n".join(marks) + "\n")
    return root


def chairs(root: Path, **options: Any) -> SampleDataset:
    return FlyingChairsConfig(name="flying_chairs", root=root, **options).build()


def write_film(root: Path, sequence: str, numbers: Sequence[int], cameras: Sequence[str] = ("left", "right")) -> None:
    """Frame n is gray level n (clean) or n + 100 (final), flow into the future n and into the past -n."""
    for camera in cameras:
        for n in numbers:
            write_image(made(root / "frames_cleanpass" / sequence / camera / f"{n:04d}.png"), gray(n))
            write_image(made(root / "frames_finalpass" / sequence / camera / f"{n:04d}.png"), gray(n + 100))
            for direction, sign in {"Future": 1, "Past": -1}.items():
                folder = root / "optical_flow" / sequence / f"into_{direction.lower()}" / camera
                file = made(folder / f"OpticalFlowInto{direction}_{n:04d}_{camera[0].upper()}.pfm")
                write_pfm(file, np.dstack([flow(sign * n), np.full((HEIGHT, WIDTH), 9, np.float32)]))


def monkaa(root: Path, **options: Any) -> SampleDataset:
    return MonkaaConfig(name="monkaa", root=root, **options).build()


def things(root: Path, **options: Any) -> SampleDataset:
    return FlyingThingsConfig(name="flying_things", root=root, **options).build()


def write_sintel(root: Path, scene: str, count: int) -> None:
    for n in range(1, count + 1):
        for which in ("clean", "final"):
            write_image(made(root / "training" / which / scene / f"frame_{n:04d}.png"), gray(n))
        if n < count:
            write_flo(made(root / "training" / "flow" / scene / f"frame_{n:04d}.flo"), flow(n))


def sintel(root: Path, **options: Any) -> SampleDataset:
    return SintelConfig(name="sintel", root=root, **options).build()


def write_kitti(root: Path, count: int) -> None:
    valid = np.zeros((HEIGHT, WIDTH), bool)
    valid[2:] = True
    for n in range(count):
        for suffix, level in {"10": n, "11": n + 100}.items():
            write_image(made(root / "training" / "image_2" / f"{n:06d}_{suffix}.png"), gray(level))
        for kind, known in {"occ": valid, "noc": np.roll(valid, 1, axis=0)}.items():
            write_kitti_flow(made(root / "training" / f"flow_{kind}" / f"{n:06d}_10.png"), flow(n), known)


def kitti(root: Path, **options: Any) -> SampleDataset:
    return KittiConfig(name="kitti", root=root, **options).build()
