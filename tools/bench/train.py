"""Compare whole training programs: mtsp, a bare PyTorch loop, timm, Lightning, smp, and the Trainer of transformers.

    python tools/bench/train.py [--case classification] [--steps 30] [--rounds 3] [--quick]

All programs of a case train the same network, but for smp, which has no EncNet, on the same generated files with the
same batch size, in float32, with one worker process, and pull the weights towards their start: mtsp and the bare loop
with `L2SP`, the others with the loss term that tllib adds. The bare loop has its batches in memory and writes nothing,
so it is the limit; mtsp logs and tracks, and saves checkpoints once a minute. Each program runs in its own process, the
programs take turns, and the median over the rounds is shown. The first five steps do not count.

`--evaluation` runs tools/evaluate.py on videos of the size of DAVIS, with SegFlow, and over scales, with EncNet, both
on ResNet-18. It shows how long the main thread does not run the network.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from mtsp.command_line import at_least_one, program
from tools.bench import loops
from tools.bench.timing import machine, parser, peak_memory, table

WARM_UP = 5  # steps
LIMIT = "bare loop, data in memory"


class Case(NamedTuple):
    """A network and its data, and the programs that train it."""

    write: Callable[[Path], dict[str, Any]]
    programs: dict[str, Callable[[dict[str, Any], Path, loops.Tick], None]]


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command_line = parser(__doc__, rounds=3, quick="run six steps of each program, only to test that they run")
    add = command_line.add_argument
    add("--case", choices=list(CASES), nargs="*", default=list(CASES), help="cases to measure (default: all)")
    add("--steps", type=at_least_one, default=30, help="measured steps of each program (default: %(default)s)")
    add("--child", nargs=3, metavar=("CASE", "PROGRAM", "FOLDER"), help="run one program; used by this program itself")
    add(
        "--evaluation",
        action="store_true",
        help="measure evaluations instead: the part of the time outside the network",
    )
    options = command_line.parse_args(arguments)
    rounds, steps = (1, 1) if options.quick else (options.rounds, options.steps)
    if options.child:
        case, name, folder = options.child
        print(json.dumps(_measured(CASES[case], name, Path(folder), steps)))
        return 0
    console = Console(width=100)
    console.print(machine(), highlight=False)
    if options.evaluation:
        console.print(_evaluations(rounds, 2 if options.quick else 10))
        return 0
    for case in options.case:
        with tempfile.TemporaryDirectory() as folder:
            CASES[case].write(Path(folder))
            found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES[case].programs}
            for _ in range(rounds):
                for name in found:
                    found[name] += _child(case, name, Path(folder), steps)
        console.print(_table(case, found))
    return 0


def _child(case: str, name: str, folder: Path, steps: int) -> list[dict[str, float]]:
    """Run one program in its own process; return what it measured, or nothing if its library is not installed."""
    if (library := name.split()[0].lower()) in ("timm", "lightning", "transformers") and find_spec(library) is None:
        return []
    command = [sys.executable, __file__, "--steps", str(steps), "--child", case, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{name} failed:\n{done.stderr}")
    return [json.loads(done.stdout.splitlines()[-1])]


def _measured(case: Case, name: str, folder: Path, steps: int) -> dict[str, float]:
    values = json.loads((folder / "experiment.json").read_text())
    values["train"]["steps"] = WARM_UP + steps
    ticks: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        case.programs[name](values, Path(scratch), lambda: ticks.append(time.perf_counter()))
    size = sum(values["train"]["stages"][0]["batch_size"].values())
    seconds = (ticks[-1] - ticks[WARM_UP - 1]) / (len(ticks) - WARM_UP)
    return {"images_per_second": size / seconds, "seconds": seconds, "peak": peak_memory()}


def _table(case: str, found: dict[str, list[dict[str, float]]]) -> Any:
    drawn = table(case, "program", "images/s", "s/step", "of the bare loop", "peak MiB")
    limit = median(run["images_per_second"] for run in found[LIMIT])
    for name, runs in found.items():
        if not runs:
            drawn.add_row(name, "not installed")
            continue
        speed, seconds, peak = (median(run[key] for run in runs) for key in ("images_per_second", "seconds", "peak"))
        drawn.add_row(name, f"{speed:.1f}", f"{seconds:.3f}", f"{100 * speed / limit:.0f} %", f"{peak / 2**20:.0f}")
    return drawn


def _evaluations(rounds: int, images: int) -> Any:
    drawn = table(f"evaluation of {images} images", "data and network", "s/image", "outside the network", "target")
    for name, write in EVALUATIONS.items():
        seconds, outside = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), images)
                found = loops.evaluation(Path(folder))
            seconds.append(found.seconds / images)
            outside.append(found.outside)
        drawn.add_row(name, f"{median(seconds):.2f}", f"{100 * median(outside):.1f} %", "<= 10 %")
    return drawn


def _evaluated(folder: Path, values: dict[str, Any], entry: str, **changes: Any) -> None:
    """Let the experiment in `folder` evaluate `entry`."""
    values["data"] = {entry: values["data"][entry] | {"augment": None} | changes.pop("data")}
    values["train"]["stages"][0]["batch_size"] = {entry: 2}
    values["evaluation"] = {"data": [entry], "at_start": False, **changes}
    (folder / "experiment.json").write_text(json.dumps(values))


def _davis_evaluation(folder: Path, images: int) -> None:
    from data.synthetic.clips import SyntheticConfig
    from data.synthetic.writers import write_davis

    values = _segflow(folder, encoder="resnet18")
    clips = SyntheticConfig(clips=2, frames=images, height=480, width=854)
    write_davis(clips, folder / "large" / "DAVIS", validation=0.5)
    dataset = {"name": "davis", "root": str(folder / "large" / "DAVIS"), "split": "val"}
    _evaluated(folder, values, "davis", data={"dataset": dataset})


def _multi_scale_evaluation(folder: Path, images: int) -> None:
    values = _encnet(folder, size=(375, 500), classes=59)
    tta = {"name": "multi_scale", "base": 260, "crop": 240}  # half of the usual sizes
    _evaluated(folder, values, "train", data={"limit": images}, tta=tta)


EVALUATIONS = {
    "frames of 480x854, SegFlow": _davis_evaluation,
    "images of 375x500, six scales, EncNet": _multi_scale_evaluation,
}


def _experiment(folder: Path, **sections: Any) -> dict[str, Any]:
    """Write and return an experiment whose one entry of data is called train, with batches of 8 or 16."""
    (size,) = sections.pop("batch")
    values = {
        "name": "bench",
        "regularizer": {"name": "l2sp", "alpha": loops.ALPHA, "beta": loops.BETA},
        "optimizer": {"name": "sgd", "lr": loops.LR, "momentum": 0.9},
        "train": {
            "steps": 1, "save_every": {"seconds": 60}, "workers": 1,
            "stages": [{"steps": 1, "batch_size": {name: size for name in sections["data"]}}],
        },
        "evaluation": {"data": [], "at_start": False},
        **sections,
    }  # fmt: skip
    (folder / "experiment.json").write_text(json.dumps(values))
    return values


def _pretrained(folder: Path, values: dict[str, Any], branches: Sequence[str]) -> dict[str, Any]:
    """Save weights of the network as it starts, and name them as pretrained weights of `branches`."""
    from mtsp.config import parse
    from mtsp.files.tensors import write_tensors
    from tools.build import AnyExperiment, build_network

    plain = {**values, "regularizer": {"name": "none"}}
    write_tensors(folder / "start.safetensors", build_network(parse(AnyExperiment, plain)).model.state_dict(), None)
    for branch in branches:
        values["branches"][branch] = {"weights": str(folder / "start.safetensors")}
    (folder / "experiment.json").write_text(json.dumps(values))
    return values


def _photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return smooth noise, which makes a JPEG about as large as that of a photo."""
    layers = [cv2.resize(rng.normal(size=(height // s, width // s, 3)), (width, height)) * s**0.5 for s in (2, 8, 32)]
    return np.clip(110 + 8 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)


def _classification(folder: Path) -> dict[str, Any]:
    from data.files.images import write_image

    rng = np.random.default_rng(0)
    for number in range(128):
        place = folder / "images" / f"class{number % 8}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_image(place, _photo(rng, 240, 320))
    values = _experiment(
        folder, batch=(16,),
        model={"name": "classifier", "backbone": "resnet18", "classes": 8}, branches={"backbone": {}, "head": {}},
        data={"train": {"dataset": {"name": "image_folder", "root": str(folder / "images")},
                        "augment": {"crop": [128, 128], "area": [0.25, 1.0], "flip": 0.5}}},
        tasks={"classification": {}},
    )  # fmt: skip
    return _pretrained(folder, values, ["backbone"])


def _segflow(folder: Path, encoder: str = "mobilenetv3_small_050") -> dict[str, Any]:
    from data.synthetic.clips import SyntheticConfig
    from data.synthetic.writers import write_davis, write_flying_chairs

    write_davis(SyntheticConfig(clips=8, frames=5, height=96, width=128), folder / "DAVIS", validation=0.2)
    write_flying_chairs(SyntheticConfig(clips=32, frames=2, height=96, width=128), folder / "Chairs", validation=0.1)
    augment = {"scale": [0.9, 1.2], "rotate": 10, "translate": [0.1, 0.1], "flip": 0.5}
    values = _experiment(
        folder, batch=(6,),
        model={"name": "segflow", "encoder": encoder, "width": 32, "flow_width": 16,
               "flow": {"width": 0.125}},
        branches={"segmentation": {}, "flow": {}},
        data={"davis": {"dataset": {"name": "davis", "root": str(folder / "DAVIS"), "split": "train"},
                        "augment": augment},
              "chairs": {"dataset": {"name": "flying_chairs", "root": str(folder / "Chairs"), "split": "train"},
                         "augment": augment}},
        tasks={"segmentation": {"class_balance": False}, "flow": {}},
    )  # fmt: skip
    return _pretrained(folder, values, ["segmentation", "flow"])


def _encnet(folder: Path, size: tuple[int, int] = (240, 320), classes: int = 4) -> dict[str, Any]:
    from data.files.images import write_image
    from data.files.masks import write_mask

    rng = np.random.default_rng(0)
    for kind in ("frames", "masks"):
        (folder / kind).mkdir()
    for number in range(48):
        write_image(folder / "frames" / f"{number:03d}.jpg", _photo(rng, *size))
        blobs = cv2.resize(rng.normal(size=(6, 8)), size[::-1])
        write_mask(folder / "masks" / f"{number:03d}.png", np.digitize(blobs, [-1, 0, 1]).astype(np.uint8))
    values = _experiment(
        folder, batch=(4,),
        model={"name": "encnet", "encoder": "resnet18", "classes": classes, "output_stride": 8},
        branches={"backbone": {}, "head": {}},
        data={"train": {"dataset": {"name": "mask_folder", "frames": str(folder / "frames"),
                                    "masks": str(folder / "masks"), "classes": [str(i) for i in range(classes)]},
                        "augment": {"crop": [128, 128], "position": "random", "scale": [0.8, 1.25], "flip": 0.5}}},
        tasks={"segmentation": {"class_balance": False, "aux_loss": 0.2, "se_loss": 0.2}},
    )  # fmt: skip
    return _pretrained(folder, values, ["backbone"])


CASES = {
    "classification": Case(
        _classification,
        {
            LIMIT: loops.bare,
            "mtsp": loops.mtsp,
            "timm loader and loop": loops.timm_loop,
            "transformers Trainer": loops.transformers_trainer,
            "Lightning Trainer": loops.lightning_trainer,
        },
    ),
    "segflow": Case(_segflow, {LIMIT: loops.bare, "mtsp": loops.mtsp}),
    "encnet": Case(
        _encnet,
        {
            LIMIT: loops.bare,
            "mtsp": loops.mtsp,
            "plain loop, PIL and torchvision v2": loops.masks_loader,
            "the same with DeepLabV3 of smp": loops.smp_loop,
        },
    ),
}

if __name__ == "__main__":
    sys.exit(main())
