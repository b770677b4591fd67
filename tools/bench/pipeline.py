"""Measure images per second on one core and the time to read flow files, in mtsp and in other libraries.

    python tools/bench/pipeline.py [--images 16] [--rounds 7] [--quick]

Pipelines for segmentation decode frames of 480x854 or 1440x2562 with masks, stretch them to 480x854 times 0.5-2, rotate
by up to 10 degrees, crop 400x400, flip, and change brightness, contrast and saturation. Those for classification decode
photos of 1440x2562, stretch a random rectangle of 8-100 % of the area to 224x224, flip and change colors alike. All
return tensors in [0, 1]. Reading .flo and .pfm files is compared with a plain read of the file. Every program has one
thread. The programs take turns, and the median of CPU seconds is shown, which other processes disturb less than
wall-clock time. albumentations is measured if installed.
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
from data.files.flow_formats.flo import read_flo, write_flo
from data.files.flow_formats.pfm import read_pfm, write_pfm
from data.files.images import read_image, write_image
from data.files.masks import read_mask, write_mask
from data.files.undecoded import UndecodedSample, read_undecoded
from data.prepared import to_tensors
from mtsp.command_line import at_least_one, program
from tools.bench.timing import Program, machine, medians, parser, table

CROP, LABELED_CROP = 400, 224
FRAME, PHOTO = (480, 854), (1440, 2562)
JITTER = (0.6, 1.4)
COLOR = ColorConfig(brightness=JITTER, contrast=JITTER, saturation=JITTER)
AREA = (0.08, 1.0)
TARGETS = {"torchvision": ">= 5", "albumentations": ">= 1.5"}
Files = list[tuple[Path, Path]]
Load = Callable[[Path, Path], object]


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
        for size in (FRAME, PHOTO):
            files = _made_up(Path(folder), images, size)
            heights = "x".join(map(str, size))
            title = f"{images} frames of {heights} with masks, to 3x{CROP}x{CROP} and {CROP}x{CROP}"
            console.print(_pipelines(title, _segmentation(), files, rounds))
        title = f"{images} photos of {heights}, to 3x{LABELED_CROP}x{LABELED_CROP}"
        console.print(_pipelines(title, _classification(), files, rounds))
        console.print(_readers(Path(folder), rounds))
    return 0


def _pipelines(title: str, programs: dict[str, Load], files: Files, rounds: int) -> Table:
    seconds = medians({name: _over(program, files) for name, program in programs.items()}, rounds, clock=process_time)
    drawn = table(title, "pipeline", "images/s/core", "mtsp is faster by", "target")
    for name, spent in seconds.items():
        target = next((goal for library, goal in TARGETS.items() if name.startswith(library)), "")
        ratio = "" if name == "mtsp" else f"{spent / seconds['mtsp']:.2f}"
        drawn.add_row(name, f"{len(files) / spent:.0f}", ratio, target)
    return drawn


def _segmentation() -> dict[str, Load]:
    from torchvision.transforms import v2

    ours = AugmentConfig(
        resize=FRAME, crop=(CROP, CROP), position="random", scale=(0.5, 2.0), rotate=10.0, flip=0.5, color=COLOR
    )
    theirs = [
        v2.ScaleJitter(FRAME, scale_range=(0.5, 2.0)),
        v2.RandomRotation([-10, 10], interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomCrop(CROP, pad_if_needed=True),
    ]
    programs = _programs(ours, theirs, masks=True)
    if importlib.util.find_spec("albumentations") is not None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise it checks online for updates
        programs["albumentations, one Affine"] = _albumentations()
    return programs


def _classification() -> dict[str, Load]:
    from torchvision.transforms import v2

    ours = AugmentConfig(crop=(LABELED_CROP, LABELED_CROP), area=AREA, flip=0.5, color=COLOR)
    return _programs(ours, [v2.RandomResizedCrop(LABELED_CROP, scale=AREA)], masks=False)


def _programs(ours: AugmentConfig, theirs: list[Any], *, masks: bool) -> dict[str, Load]:
    return {
        "mtsp": _ours(ours, read_undecoded, masks),
        "mtsp, decode: full": _ours(ours, read_image, masks),
        "torchvision v2, PIL": _torchvision(theirs, masks, pil=True),
        "torchvision v2, tensors": _torchvision(theirs, masks, pil=False),
    }


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


def _over(load: Load, files: Files) -> Program:
    def program() -> None:
        for frame, mask in files:
            load(frame, mask)

    return program


def _ours(config: AugmentConfig, read: Callable[[Path], Any], masks: bool) -> Load:
    augmentation, rng = config.build(), np.random.default_rng(0)

    def load(frame: Path, mask: Path) -> object:
        sample = UndecodedSample(name=frame.stem, frame=read(frame))
        if masks:
            sample["mask"] = read_mask(mask)
        return to_tensors(augmentation(sample, rng))

    return load


def _torchvision(crop: list[Any], masks: bool, *, pil: bool) -> Load:
    from torchvision import io, tv_tensors
    from torchvision.transforms import v2

    color = v2.ColorJitter(JITTER, JITTER, JITTER)
    ends = [v2.RandomHorizontalFlip(), color, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps = v2.Compose([*crop, *ends])

    def decode(frame: Path) -> Any:
        if pil:
            return Image.open(frame).convert("RGB")
        return tv_tensors.Image(io.decode_jpeg(io.read_file(str(frame))))

    def load(frame: Path, mask: Path) -> object:
        return steps(decode(frame), tv_tensors.Mask(np.array(Image.open(mask)))) if masks else steps(decode(frame))

    return load


def _albumentations() -> Load:
    import albumentations as A  # pyright: ignore[reportMissingImports]

    resize = A.Resize(*FRAME)
    warp = A.Affine(scale=(0.5, 2.0), rotate=(-10, 10), p=1)
    crop = A.RandomCrop(CROP, CROP, pad_if_needed=True)
    jitter = A.ColorJitter(JITTER, JITTER, JITTER, hue=(0, 0), p=1)
    steps = A.Compose([resize, warp, crop, A.HorizontalFlip(p=0.5), jitter])

    def load(frame: Path, mask: Path) -> object:
        image = cv2.imread(str(frame), cv2.IMREAD_COLOR_RGB)
        out = steps(image=image, mask=cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))
        pixels = torch.from_numpy(out["image"]).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels, torch.from_numpy(out["mask"])

    return load


def _made_up(folder: Path, count: int, size: tuple[int, int]) -> Files:
    """Write frames of smooth noise, with files about as large as in DAVIS for their size, and masks of ellipses."""
    rng, files, (height, width) = np.random.default_rng(0), [], size
    for index in range(count):
        noise = [rng.normal(size=(height // s, width // s, 3)) for s in (2, 8, 32, 128)]
        layers = [
            cv2.resize(values, (width, height)) * s**0.5 for values, s in zip(noise, (2, 8, 32, 128), strict=True)
        ]
        frame = np.clip(110 + 6 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)
        mask = np.zeros(size, np.uint8)
        center = (int(rng.integers(width // 4, 3 * width // 4)), int(rng.integers(height // 4, 3 * height // 4)))
        cv2.ellipse(mask, center, (150, 90), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        files.append((folder / f"{height}-{index:03d}.jpg", folder / f"{height}-{index:03d}.png"))
        write_image(files[-1][0], frame)
        write_mask(files[-1][1], mask)
    return files


if __name__ == "__main__":
    sys.exit(main())
