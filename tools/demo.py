"""Train the whole job small, on data that is made on the spot: `make demo`, or `python tools/demo.py [--fresh]`.

Everything is written to `runs/demo`: synthetic clips of a source and of a target domain in the layouts of DAVIS and
FlyingChairs (`data/`), the run of configs/demo_source.yaml, which learns segmentation and flow from nothing on the
source domain (`source/`), two fine-tunings of its weights on a few target examples (`l2/`, `l2sp/`), a table
(`table.md`) and a sheet of figures (`figures.png`).

Ctrl-C stops it and saves; the same command goes on from there, and does not repeat what is done. --fresh starts over.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_davis, write_flying_chairs
from mtsp.batches import collate
from mtsp.config import ConfigError, parse_yaml
from mtsp.evaluation.evaluate import at_resolution
from mtsp.figures.colors import color_wheel, flow_to_color, overlay
from mtsp.files.atomic import write_atomically
from mtsp.files.progress import clips_progress
from mtsp.metrics.flow import FlowErrors
from mtsp.reports.runs import Run, comparison, comparison_markdown
from mtsp.training.experiment import check_resumable
from mtsp.types import Batch, Examples, Outputs
from tools.build import AnyExperiment, read_experiment, run_or_say_why
from tools.train import train

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/demo")
RUNS = {"source": "demo_source.yaml", "l2": "demo_l2.yaml", "l2sp": "demo_l2sp.yaml"}
COLUMNS = {"J_mean": "J", "F_mean": "F", "iou": "IoU", "epe": "EPE"}
THREADS = 4  # more only get in each other's way in a network this small
SHOWN = 3  # validation examples of each task on the sheet

_WORLD = SyntheticConfig(
    height=96, width=128, objects=(1, 3), distractors=(0, 2), object_size=(0.15, 0.4), motion=5.0, nonrigid=0.1, cue=0.8
)


class DataSet(NamedTuple):
    """One data set of the demo."""

    write: Callable[..., None]
    config: SyntheticConfig
    validation: float
    """Share of the clips."""


def _clips(domain: str, seed: int, clips: int, frames: int) -> SyntheticConfig:
    return _WORLD.model_copy(update={"domain": domain, "seed": seed, "clips": clips, "frames": frames})


DATA = {
    "source/DAVIS": DataSet(write_davis, _clips("source", 1, 120, 4), 0.05),
    "source/FlyingChairs_release": DataSet(write_flying_chairs, _clips("source", 2, 300, 3), 0.05),
    "target/DAVIS": DataSet(write_davis, _clips("target", 3, 24, 4), 0.5),
    "target/FlyingChairs_release": DataSet(write_flying_chairs, _clips("target", 4, 120, 2), 0.5),
}
"""A large source and a small target: half of the target's clips are for validation, so few are left to learn from."""


def demo(
    folder: Path = FOLDER,
    data: Mapping[str, DataSet] = DATA,
    overrides: Sequence[str] = (),
    *,
    fresh: bool = False,
) -> dict[str, dict[str, float]] | None:
    """Do what is not done yet of the demo, show it, and return the table.

    Args:
        folder: where everything goes.
        data: what is synthesized, by folder below `folder/data`.
        overrides: `key=value` for all three runs.
        fresh: remove what is there first.

    Returns:
        Metrics of the target's validation set by row: "nothing moves" (EPE only), "start", "L2", "L2-SP". None if
        Ctrl-C stopped a run.

    Raises:
        ValueError, OSError: what a person can mend, in one line.
    """
    if fresh:
        for name in ("data", *RUNS):
            shutil.rmtree(folder / name, ignore_errors=True)
    experiments = {name: _experiment(name, folder, overrides) for name in RUNS}
    _say(f"1/4 data: synthetic clips of two domains, in {folder / 'data'}")
    synthesize(folder / "data", data)
    for number, (name, story) in enumerate(
        {
            "source": "both branches learn from nothing on the source domain",
            "l2": "fine-tune both branches on a few target examples, weights pulled to zero (L2)",
            "l2sp": "the same, weights pulled to where they started (L2-SP)",
        }.items(),
        start=2,
    ):
        _say(f"{number}/4 {name}: {story}")
        if not _train(experiments[name], folder / name):
            return None
    rows = table(folder, experiments["l2sp"])
    write_atomically(folder / "table.md", comparison_markdown(rows, COLUMNS).encode())
    networks = {
        "start": _network(experiments["source"], folder / "source"),
        "L2": _network(experiments["l2"], folder / "l2"),
        "L2-SP": _network(experiments["l2sp"], folder / "l2sp"),
    }
    sheet = contact_sheet(networks, *_validation(experiments["l2sp"]))
    Image.fromarray(sheet).save(folder / "figures.png")
    _conclude(folder, rows)
    return rows


def synthesize(root: Path, data: Mapping[str, DataSet]) -> None:
    """Write the data sets that are not there yet.

    Raises:
        ConfigError: what is there was made with other settings.
    """
    made_from = {name: [one.config.model_dump(mode="json"), one.validation] for name, one in data.items()}
    note = root / "made_from.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_from:
        raise ConfigError(f"{root} was made with other settings; start over with --fresh")
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(made_from, indent=1).encode())
    for name, one in data.items():
        if not (root / name).exists():  # it appears under its name when it is complete
            with clips_progress(name) as progress:
                one.write(one.config, root / name, validation=one.validation, progress=progress)


def table(folder: Path, experiment: AnyExperiment) -> dict[str, dict[str, float]]:
    """Return the metrics on the target's validation set by row; the start is what a fine-tuning measures at step 0."""
    masks, flows = experiment.evaluation.data
    names = {metric: f"{flows if metric == 'epe' else masks}/{metric}" for metric in COLUMNS}
    l2, l2sp = Run.read(folder / "l2"), Run.read(folder / "l2sp")
    still = FlowErrors()
    for sample in _examples(experiment, flows):
        assert "flow" in sample
        truth = sample["flow"][None]
        still.update(torch.zeros_like(truth), truth, None, sample["name"][0])
    return {
        "nothing moves": {"epe": float(still.compute()["epe"])},
        "start": {metric: l2sp.curve(name)[0] for metric, name in names.items()},
        "L2": {metric: l2.curve(name)[max(l2.curve(name))] for metric, name in names.items()},
        "L2-SP": {metric: l2sp.curve(name)[max(l2sp.curve(name))] for metric, name in names.items()},
    }


def contact_sheet(networks: Mapping[str, nn.Module], masks: Examples, flows: Examples) -> np.ndarray:
    """Return figures of evenly spaced examples, a row for each: frame, truth, and what each network says; HW3 uint8.

    Masks lie over the frame; flow is in the usual color wheel, drawn once below, in the same scale within a row.
    """
    rows = [_mask_row(networks, batch) for batch in _evenly(masks, SHOWN)]
    rows += [_flow_row(networks, batch) for batch in _evenly(flows, SHOWN)]
    height, width = next(iter(rows[-1].values())).shape[:2]
    wheel = np.full((height, width, 3), 255, np.uint8)
    side = min(height, width)
    wheel[:side, :side] = color_wheel(side)
    return _grid([*rows, {"direction and length": wheel}])


def _mask_row(networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, np.ndarray]:
    assert "mask" in batch
    frame = _pixels(batch)
    row = {batch["name"][0]: frame, "true mask": overlay(frame, batch["mask"][0].numpy())}
    for name, outputs in _predictions(networks, batch).items():
        assert "mask_logits" in outputs
        row[f"mask, {name}"] = overlay(frame, outputs["mask_logits"][0].argmax(0).numpy())
    return row


def _flow_row(networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, np.ndarray]:
    assert "flow" in batch
    truth = _vectors(batch["flow"])
    radius = max(1.0, float(np.hypot(truth[..., 0], truth[..., 1]).max()))
    row = {batch["name"][0]: _pixels(batch), f"true flow, up to {radius:.1f} px": flow_to_color(truth, radius)}
    for name, outputs in _predictions(networks, batch).items():
        assert "flow" in outputs
        flow = _vectors(outputs["flow"])
        error = float(np.hypot(*np.moveaxis(flow - truth, -1, 0)).mean())
        row[f"flow, {name}, error {error:.2f} px"] = flow_to_color(flow, radius)
    return row


def _experiment(name: str, folder: Path, overrides: Sequence[str]) -> AnyExperiment:
    """The shipped config; its paths, which begin with runs/demo, are moved to `folder`."""
    file = ROOT / "configs" / RUNS[name]
    if folder == FOLDER:
        return read_experiment(file, overrides)
    shipped = read_experiment(file).model_dump(mode="json")
    paths = {f"data.{key}.dataset.root": section["dataset"]["root"] for key, section in shipped["data"].items()}
    paths |= {f"branches.{key}.weights": branch["weights"] for key, branch in shipped["branches"].items()}
    moved = [f"{key}={folder / Path(path).relative_to(FOLDER)}" for key, path in paths.items() if path is not None]
    return read_experiment(file, [*moved, *overrides])


def _train(experiment: AnyExperiment, run_dir: Path) -> bool:
    """Train if it is not done, going on from a checkpoint if there is one; return False if Ctrl-C stopped it."""
    if (run_dir / "results.json").exists():
        then = parse_yaml((run_dir / "experiment.yaml").read_text(encoding="utf-8"))
        try:
            changed = check_resumable(experiment.model_dump(mode="json"), then)
        except ConfigError as error:
            changed = str(error).splitlines()[1:]
        if odd := [line.strip() for line in changed if not line.strip().startswith(("tracking", "evaluation"))]:
            raise ConfigError(f"{run_dir} is finished, but with other settings; start over with --fresh: {odd[0]}")
        _say("done before; --fresh starts over")
        return True
    return train(experiment, run_dir, resume="auto") is not None


def _validation(experiment: AnyExperiment) -> tuple[Examples, Examples]:
    masks, flows = experiment.evaluation.data
    return _examples(experiment, masks), _examples(experiment, flows)


def _examples(experiment: AnyExperiment, name: str) -> Examples:
    return experiment.data[name].build()


def _network(experiment: AnyExperiment, run_dir: Path) -> nn.Module:
    model = experiment.model.build().eval()
    model.load_state_dict(load_file(run_dir / "weights.safetensors"))
    return model


def _evenly(examples: Examples, count: int) -> Iterator[Batch]:
    """Batches of one, from the middle of each of `count` equal parts: not picked for how they look."""
    count = min(count, len(examples))
    for part in range(count):
        yield collate([examples[int((part + 0.5) * len(examples) / count)]])


@torch.no_grad()
def _predictions(networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Outputs]:
    return {
        name: at_resolution(model(batch["frame"], batch.get("next_frame")), batch) for name, model in networks.items()
    }


def _pixels(batch: Batch) -> np.ndarray:
    return (batch["frame"][0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def _vectors(flow: Tensor) -> np.ndarray:
    return flow[0].permute(1, 2, 0).numpy()


def _grid(rows: Sequence[Mapping[str, np.ndarray]], tile: int = 320, gap: int = 8, title: int = 22) -> np.ndarray:
    """The images of each row beside each other, every one with its title above it."""
    height, width = next(iter(rows[0].values())).shape[:2]
    height = round(height * tile / width)
    columns = max(len(row) for row in rows)
    canvas = Image.new("RGB", (gap + columns * (tile + gap), gap + len(rows) * (height + title + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=14)
    for j, row in enumerate(rows):
        for i, (text, image) in enumerate(row.items()):
            x, y = gap + i * (tile + gap), gap + j * (height + title + gap)
            draw.text((x, y), text, fill="black", font=font)
            canvas.paste(Image.fromarray(image).resize((tile, height), Image.Resampling.NEAREST), (x, y + title))
    return np.asarray(canvas)


def _conclude(folder: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    Console().print(comparison(rows, COLUMNS, "Target domain, clips that no run has seen"))
    start, l2, l2sp = (rows[name] for name in ("start", "L2", "L2-SP"))
    lines = [
        "J, F, IoU: how well the moving objects are found, 1 is perfect. EPE: mean error of the flow, pixels.",
        f"Fine-tuning with L2-SP took J from {start['J_mean']:.3f} to {l2sp['J_mean']:.3f} (L2: {l2['J_mean']:.3f}) "
        f"and EPE from {start['epe']:.2f} to {l2sp['epe']:.2f} px (L2: {l2['epe']:.2f}).",
        "One seed of a toy says nothing about L2 against L2-SP; for measurements with several seeds see README.md.",
        "",
        f"figures  {folder / 'figures.png'}  (frame, truth, start, L2, L2-SP)",
        f"table     {folder / 'table.md'}",
        f"curves    {sys.executable} tools/report.py curves {folder / 'l2'} {folder / 'l2sp'} --out curves.png",
        "",
        "Next, another pull, or your own data in place of the synthetic clips (README.md):",
        f"  {_program('accelerate')} launch tools/train.py --config demo_l2sp.yaml --run-dir runs/demo_weaker \\",
        "    regularizer.alpha=0.3",
    ]
    print("\n".join(lines))


def _program(name: str) -> str:
    """How to call a program that lies beside this Python."""
    path = Path(sys.executable).with_name(name)
    return os.path.relpath(path) if path.exists() else name


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None, **settings: Any) -> int:
    """Parse the command line and run :func:`demo` from the checkout's root, where the configs' paths begin."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier demo left and start over")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mtsp").setLevel(logging.INFO)
    os.chdir(ROOT)
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    if demo(fresh=options.fresh, **settings) is None:
        _say("stopped; the same command goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
