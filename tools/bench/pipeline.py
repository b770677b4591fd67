"""Images and flow files per second of one core: ours beside torchvision's and albumentations'.

    python -m tools.bench.pipeline [--root DAVIS] [--images 16] [--repeats 7]

Decode, scale 0.5-2, rotate 10 degrees, crop 400x400, flip, brightness, contrast and saturation of 480x854 frames with
masks, to tensors in [0, 1]; then .flo and .pfm against a plain read of the file. Every program has one thread. They
take turns, repeat after repeat, and the median is shown: seconds of CPU time, which other programs on the machine slow
down less than they do the clock. albumentations is not needed to use mtsp; the table says so where it is absent.
"""

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from data.augment.augment import AugmentConfig
from data.augment.color import ColorConfig
from data.files.flow_formats import read_flo, read_pfm, write_flo, write_pfm
from data.files.images import read_image, write_image
from data.files.masks import read_mask, write_mask
from data.prepared import to_tensors
from mtsp.types import Sample
from tools.bench.timing import Program, machine, medians

CROP = 400
JITTER = (0.6, 1.4)
TARGETS = {"torchvision": ">= 5", "albumentations": ">= 1.5"}
Files = list[tuple[Path, Path]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Images per second of one core, ours and others'.")
    parser.add_argument("--root", type=Path, help="a DAVIS folder whose 480p frames to use; else made up on the fly")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    if options.images < 1 or options.repeats < 1:
        parser.error("--images and --repeats must be 1 or more")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(f"{machine()}; OpenCV {cv2.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        files = _davis(options.root, options.images) if options.root else _made_up(Path(folder), options.images)
        console.print(_pipelines(files, options.repeats))
        console.print(_readers(Path(folder), options.repeats))


def _pipelines(files: Files, repeats: int) -> Table:
    programs = {"mtsp": _ours(), "torchvision v2, PIL": _torchvision_pil(), "torchvision v2, tensors": _torchvision()}
    installed = importlib.util.find_spec("albumentations") is not None
    if installed:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for its newest version
        programs["albumentations, one Affine"] = _albumentations(one_warp=True)
        programs["albumentations, step by step"] = _albumentations(one_warp=False)
    seconds = medians({name: _over(program, files) for name, program in programs.items()}, repeats, clock=process_time)

    table = Table(title=f"{len(files)} frames with masks, to 3x{CROP}x{CROP} and {CROP}x{CROP}")
    table.add_column("pipeline")
    table.add_column("images/s/core", justify="right")
    table.add_column("mtsp is faster by", justify="right")
    table.add_column("target", justify="right")
    for name, spent in seconds.items():
        target = next((goal for library, goal in TARGETS.items() if name.startswith(library)), "")
        ratio = "" if name == "mtsp" else f"{spent / seconds['mtsp']:.2f}"
        table.add_row(name, f"{len(files) / spent:.0f}", ratio, target)
    if not installed:
        table.add_row("albumentations", "not installed", "", TARGETS["albumentations"])
    return table


def _readers(folder: Path, repeats: int) -> Table:
    from torchvision.datasets._optical_flow import _read_flo, _read_pfm

    rng = np.random.default_rng(0)
    flo, pfm = folder / "a.flo", folder / "a.pfm"
    write_flo(flo, rng.normal(size=(436, 1024, 2)).astype(np.float32))
    write_pfm(pfm, rng.normal(size=(540, 960, 3)).astype(np.float32))
    table = Table(title="Flow files from the page cache: .flo 436x1024, .pfm 540x960x3")
    table.add_column("reader")
    table.add_column("ms", justify="right")
    table.add_column("of a plain read()", justify="right")
    table.add_column("target", justify="right")
    by_path: dict[Path, dict[str, Program]] = {
        flo: {
            "mtsp": lambda: read_flo(flo),
            "torchvision": lambda: np.ascontiguousarray(_read_flo(str(flo))),
            "cv2": lambda: cv2.readOpticalFlow(str(flo)),
        },
        pfm: {
            "mtsp": lambda: read_pfm(pfm),
            "torchvision": lambda: np.ascontiguousarray(_read_pfm(str(pfm))),
            "cv2": lambda: cv2.imread(str(pfm), cv2.IMREAD_UNCHANGED),
        },
    }
    for path, programs in by_path.items():
        seconds = medians({"read()": path.read_bytes, **programs}, 5 * repeats, clock=process_time)
        for name, spent in seconds.items():
            target = "<= 2" if name == "mtsp" else ""
            table.add_row(f"{path.suffix} {name}", f"{1e3 * spent:.2f}", f"{spent / seconds['read()']:.2f}", target)
    return table


def _over(load: Callable[[Path, Path], object], files: Files) -> Program:
    def program() -> None:
        for frame, mask in files:
            load(frame, mask)

    return program


def _ours() -> Callable[[Path, Path], object]:
    color = ColorConfig(brightness=JITTER, contrast=JITTER, saturation=JITTER)
    config = AugmentConfig(crop=(CROP, CROP), position="random", scale=(0.5, 2.0), rotate=10.0, flip=0.5, color=color)
    augmentation, rng = config.build(), np.random.default_rng(0)

    def load(frame: Path, mask: Path) -> object:
        return to_tensors(augmentation(Sample(name=frame.stem, frame=read_image(frame), mask=read_mask(mask)), rng))

    return load


def _torchvision_steps() -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.ScaleJitter((480, 854), scale_range=(0.5, 2.0)),
            v2.RandomRotation([-10, 10], interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomCrop(CROP, pad_if_needed=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(JITTER, JITTER, JITTER),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def _torchvision_pil() -> Callable[[Path, Path], object]:
    from torchvision import tv_tensors

    steps = _torchvision_steps()

    def load(frame: Path, mask: Path) -> object:
        return steps(Image.open(frame).convert("RGB"), tv_tensors.Mask(np.array(Image.open(mask))))

    return load


def _torchvision() -> Callable[[Path, Path], object]:
    from torchvision import io, tv_tensors

    steps = _torchvision_steps()

    def load(frame: Path, mask: Path) -> object:
        image = tv_tensors.Image(io.decode_jpeg(io.read_file(str(frame))))
        return steps(image, tv_tensors.Mask(np.array(Image.open(mask))))

    return load


def _albumentations(one_warp: bool) -> Callable[[Path, Path], object]:
    import albumentations as A  # pyright: ignore[reportMissingImports]

    moves = [A.Affine(scale=(0.5, 2.0), rotate=(-10, 10))] if one_warp else [A.RandomScale((-0.5, 1.0)), A.Rotate(10)]
    crop = A.RandomCrop(CROP, CROP, pad_if_needed=True)
    jitter = A.ColorJitter(JITTER, JITTER, JITTER, hue=(0, 0), p=1)
    for move in moves:
        move.p = 1
    steps = A.Compose([*moves, crop, A.HorizontalFlip(p=0.5), jitter])

    def load(frame: Path, mask: Path) -> object:
        image = cv2.imread(str(frame), cv2.IMREAD_COLOR_RGB)
        out = steps(image=image, mask=cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))
        pixels = torch.from_numpy(out["image"]).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels, torch.from_numpy(out["mask"])

    return load


def _davis(root: Path, count: int) -> Files:
    frames = sorted((root / "JPEGImages" / "480p").glob("*/*.jpg"))
    if not frames:
        raise SystemExit(f"error: no JPEGImages/480p/<sequence>/<frame>.jpg in {root}")
    picked = [frames[i * len(frames) // count] for i in range(min(count, len(frames)))]
    return [(f, root / "Annotations" / "480p" / f.parent.name / f"{f.stem}.png") for f in picked]


def _made_up(folder: Path, count: int) -> Files:
    """Frames of smooth noise at several scales, about as large on disk as DAVIS's, with masks of ellipses."""
    rng, files = np.random.default_rng(0), []
    for index in range(count):
        layers = [cv2.resize(rng.normal(size=(480 // s, 854 // s, 3)), (854, 480)) * s**0.5 for s in (2, 8, 32, 128)]
        frame = np.clip(110 + 6 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)
        mask = np.zeros((480, 854), np.uint8)
        center = (int(rng.integers(200, 650)), int(rng.integers(100, 380)))
        cv2.ellipse(mask, center, (150, 90), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        files.append((folder / f"{index:05d}.jpg", folder / f"{index:05d}.png"))
        write_image(files[-1][0], frame)
        write_mask(files[-1][1], mask)
    return files


if __name__ == "__main__":
    main()
