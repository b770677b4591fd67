"""Measure images per second on one core and the time to read flow files, in mtsp and in other libraries.

    python tools/bench/pipeline.py [--images 16] [--rounds 7] [--quick]

Each pipeline decodes 480x854 frames with masks, scales them by 0.5-2, rotates by up to 10 degrees, crops 400x400,
flips, and changes brightness, contrast and saturation; it returns tensors in [0, 1]. Reading .flo and .pfm files is
compared with a plain read of the file. Every program has one thread. The programs take turns, and the median of CPU
seconds is shown, which other processes disturb less than wall-clock time. albumentations is measured if installed.
"""

import importlib.util
import os
import sys
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from data.augment.augment import AugmentConfig
from data.augment.color import ColorConfig
from data.files.flow_formats import read_flo, read_pfm, write_flo, write_pfm
from data.files.images import read_image, write_image
from data.files.masks import read_mask, write_mask
from data.prepared import to_tensors
from mtsp.command_line import at_least_one, program
from mtsp.types import Sample
from tools.bench.timing import Program, machine, medians, parser, table

CROP = 400
JITTER = (0.6, 1.4)
TARGETS = {"torchvision": ">= 5", "albumentations": ">= 1.5"}
Files = list[tuple[Path, Path]]


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command_line = parser(__doc__, rounds=7, quick="use two images and one round, only to test that the benchmark runs")
    command_line.add_argument("--images", type=at_least_one, default=16, help="number of images (default: %(default)s)")
    options = command_line.parse_args(arguments)
    images, rounds = (2, 1) if options.quick else (options.images, options.rounds)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(f"{machine()}, OpenCV {cv2.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        files = _made_up(Path(folder), images)
        console.print(_pipelines(files, rounds))
        console.print(_readers(Path(folder), rounds))
    return 0


def _pipelines(files: Files, rounds: int) -> Table:
    programs = {"mtsp": _ours()}
    programs |= {"torchvision v2, PIL": _torchvision(pil=True), "torchvision v2, tensors": _torchvision(pil=False)}
    installed = importlib.util.find_spec("albumentations") is not None
    if installed:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise it checks online for updates
        programs["albumentations, one Affine"] = _albumentations()
    seconds = medians({name: _over(program, files) for name, program in programs.items()}, rounds, clock=process_time)

    title = f"{len(files)} frames with masks, to 3x{CROP}x{CROP} and {CROP}x{CROP}"
    drawn = table(title, "pipeline", "images/s/core", "mtsp is faster by", "target")
    for name, spent in seconds.items():
        target = next((goal for library, goal in TARGETS.items() if name.startswith(library)), "")
        ratio = "" if name == "mtsp" else f"{spent / seconds['mtsp']:.2f}"
        drawn.add_row(name, f"{len(files) / spent:.0f}", ratio, target)
    if not installed:
        drawn.add_row("albumentations", "not installed", "", TARGETS["albumentations"])
    return drawn


def _readers(folder: Path, rounds: int) -> Table:
    from torchvision.datasets._optical_flow import _read_flo, _read_pfm

    rng = np.random.default_rng(0)
    flo, pfm = folder / "a.flo", folder / "a.pfm"
    write_flo(flo, rng.normal(size=(436, 1024, 2)).astype(np.float32))
    write_pfm(pfm, rng.normal(size=(540, 960, 3)).astype(np.float32))
    title = "Flow files from the page cache: .flo 436x1024, .pfm 540x960x3"
    drawn = table(title, "reader", "ms", "times a plain read()", "target")
    readers: dict[Path, dict[str, Program]] = {
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
    for path, programs in readers.items():
        seconds = medians({"read()": path.read_bytes, **programs}, 5 * rounds, clock=process_time)
        for name, spent in seconds.items():
            target = "<= 2" if name == "mtsp" else ""
            drawn.add_row(f"{path.suffix} {name}", f"{1e3 * spent:.2f}", f"{spent / seconds['read()']:.2f}", target)
    return drawn


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


def _torchvision(*, pil: bool) -> Callable[[Path, Path], object]:
    from torchvision import io, tv_tensors
    from torchvision.transforms import v2

    steps = v2.Compose(
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

    def decode(frame: Path) -> Any:
        if pil:
            return Image.open(frame).convert("RGB")
        return tv_tensors.Image(io.decode_jpeg(io.read_file(str(frame))))

    return lambda frame, mask: steps(decode(frame), tv_tensors.Mask(np.array(Image.open(mask))))


def _albumentations() -> Callable[[Path, Path], object]:
    import albumentations as A  # pyright: ignore[reportMissingImports]

    warp = A.Affine(scale=(0.5, 2.0), rotate=(-10, 10), p=1)
    crop = A.RandomCrop(CROP, CROP, pad_if_needed=True)
    jitter = A.ColorJitter(JITTER, JITTER, JITTER, hue=(0, 0), p=1)
    steps = A.Compose([warp, crop, A.HorizontalFlip(p=0.5), jitter])

    def load(frame: Path, mask: Path) -> object:
        image = cv2.imread(str(frame), cv2.IMREAD_COLOR_RGB)
        out = steps(image=image, mask=cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))
        pixels = torch.from_numpy(out["image"]).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels, torch.from_numpy(out["mask"])

    return load


def _made_up(folder: Path, count: int) -> Files:
    """Write frames of smooth noise, with files about as large as in DAVIS, and masks of ellipses."""
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
    sys.exit(main())
