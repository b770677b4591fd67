"""Fine-tune a small trained network on a new domain, and see what it learns and what it forgets: `make demo`.

mtsp comes with a small SegFlow that finds moving objects and optical flow. The demo teaches it a new look of the world
from a few labels, three times: freely, with weights pulled to zero (L2), and with weights pulled to where they started
(L2-SP). It ends with a table of how well each network does in the new domain (target) and in the old one (source), a
figure, and a page with curves, tables and figures for a browser. Everything is written to `runs/demo`.

Ctrl-C stops the demo and saves; the same command continues it and skips finished steps. --fresh starts over.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import program, stopped

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from data.synthetic.clips import SyntheticConfig
    from mtsp.types import Batch, Outputs
    from tools.build import AnyExperiment

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/demo")
CONFIG = "demo.yaml"
PAGE = "report.html"
RUNS = {
    "free": ["regularizer={name: none}"],
    "l2": ["regularizer={name: l2, alpha: 0.01, beta: 0.01}", "evaluation.at_start=false"],
    "l2sp": ["evaluation.at_start=false"],
}
"""Overrides of the config in each run. alpha 0.01 is the usual weight decay of AdamW."""

TITLES = {"free": "fine-tuned freely", "l2": "with L2", "l2sp": "with L2-SP"}
STILL, START = "no motion", "before"
COLUMNS = {"target/J": "target J", "target/epe": "target px", "source/J": "source J", "source/epe": "source px"}
THREADS = 4  # more threads slow down a network this small


class DataSet(NamedTuple):
    """One data set of the demo."""

    write: Callable[..., None]
    config: "SyntheticConfig"
    validation: float
    """Fraction of the clips that is used for validation."""


@program
def main(arguments: Sequence[str] | None = None, **settings: Any) -> int:
    """Parse the command line and run :func:`demo` in the root of the checkout, where paths in configs begin."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--fresh", action="store_true", help="delete the results of an earlier demo and start over")
    options = parser.parse_args(arguments)

    import torch

    logging.getLogger("mtsp").setLevel(logging.WARNING)  # a run's own report is for those who know what it does
    os.chdir(ROOT)
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    if demo(fresh=options.fresh, **settings) is None:
        return stopped()
    return 0


def demo(
    folder: Path = FOLDER,
    data: Mapping[str, DataSet] | None = None,
    overrides: Sequence[str] = (),
    *,
    fresh: bool = False,
) -> dict[str, dict[str, float]] | None:
    """Run the steps of the demo that are not done yet, print the results, and return the table.

    Args:
        folder: folder for all data and results.
        data: the data sets to write, by subfolder of `folder/data`; default: :func:`data_sets`.
        overrides: `key=value` overrides for all three runs.
        fresh: delete the results of an earlier demo first.

    Returns:
        The metrics of :func:`table`, or None if Ctrl-C stopped a run.

    Raises:
        ValueError, OSError: with a message that says how to fix it.
    """
    from PIL import Image

    from mtsp.files.atomic_file import write_atomically
    from mtsp.reports.page import write_page
    from mtsp.reports.runs import RunLog, comparison_markdown

    began = time.monotonic()
    if fresh:
        for name in ("data", *RUNS):
            shutil.rmtree(folder / name, ignore_errors=True)
    experiments = {name: _experiment(folder, [*changes, *overrides]) for name, changes in RUNS.items()}
    _say("About two minutes on two idle cores. Ctrl-C stops and saves; the same command continues.")
    _say("1/4  Draw short videos of two worlds: the source, which the network knows, and the target, new to it.")
    synthesize(folder / "data", folder / "leaves", data)
    for number, (name, experiment) in enumerate(experiments.items(), start=2):
        _say(f"{number}/4  {_STORIES[name]}")
        if not _train(experiment, folder / name):
            return None
    rows = table(folder, experiments["l2sp"])
    write_atomically(folder / "table.md", comparison_markdown(rows, COLUMNS).encode())
    networks = {"before": experiments["free"].model.build().eval()}
    _load_shipped(networks["before"])
    networks |= {title: _network(experiments[name], folder / name) for title, name in _SHOWN.items()}
    Image.fromarray(figure(networks, experiments["l2sp"])).save(folder / "figures.png")
    write_page([RunLog.read(folder / name) for name in RUNS], folder / PAGE)
    _conclude(folder, rows, time.monotonic() - began)
    return rows


_STORIES = {
    "free": "Measure the network as it comes, then fine-tune it on a few target videos, freely.",
    "l2": "The same fine-tuning, with every weight pulled to zero (L2, the usual weight decay).",
    "l2sp": "The same fine-tuning, with every weight pulled to where it started (L2-SP).",
}
_SHOWN = {"L2": "l2", "L2-SP": "l2sp"}


def data_sets(leaves: Path) -> dict[str, DataSet]:
    """Return a source like the one that the shipped network learned from, and a target of few clips and another look.

    Textures of the source are in the folder `leaves`.
    """
    from data.synthetic.clips import SyntheticConfig
    from data.synthetic.writers import write_davis, write_flying_chairs

    size: dict[str, Any] = {"height": 192, "width": 288, "objects": (1, 2), "object_size": (0.15, 0.4)}
    source = size | {"textures": leaves, "textures_alike": True, "cue": 0.0, "motion": 7.0, "camera": 1.0}
    target = size | {"domain": "target", "cue": 1.0, "motion": 5.0, "distractors": (1, 3), "noise": 6.0}
    davis, chairs = write_davis, write_flying_chairs
    return {
        "target/DAVIS": DataSet(davis, SyntheticConfig(seed=3, clips=16, frames=3, **target), 0.5),
        "target/FlyingChairs_release": DataSet(chairs, SyntheticConfig(seed=4, clips=32, frames=2, **target), 0.5),
        "source/DAVIS": DataSet(davis, SyntheticConfig(seed=5, clips=9, frames=3, **source), 0.9),
        "source/FlyingChairs_release": DataSet(chairs, SyntheticConfig(seed=6, clips=17, frames=2, **source), 0.9),
    }


def synthesize(root: Path, leaves: Path, data: Mapping[str, DataSet] | None) -> None:
    """Write the data sets that do not exist yet; None: those of :func:`data_sets`, with textures in `leaves`.

    Raises:
        ConfigError: data sets that exist were made with other settings.
    """
    from data.synthetic.dead_leaves import DeadLeavesConfig, write_dead_leaves
    from mtsp.config import ConfigError
    from mtsp.files.atomic_file import write_atomically
    from mtsp.files.progress import progress

    if data is None:
        data = data_sets(leaves)
        if not leaves.exists():
            write_dead_leaves(DeadLeavesConfig(images=12, seed=7), leaves)
    made_from = {name: [one.config.model_dump(mode="json"), one.validation] for name, one in data.items()}
    note = root / "made_from.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_from:
        raise ConfigError(f"{root} was made with other settings; start over with --fresh")
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(made_from, indent=1).encode())
    for name, one in data.items():
        if not (root / name).exists():  # a data set gets this name only when it is complete
            with progress(f"     {name}", one.config.clips, "clips", brief=True) as advance:
                one.write(one.config, root / name, validation=one.validation, progress=lambda done, _: advance(done))


def table(folder: Path, experiment: "AnyExperiment") -> dict[str, dict[str, float]]:
    """Return the metrics in the target and the source domain, by table row and column."""
    import torch

    from mtsp.metrics.flow import FlowErrors
    from mtsp.reports.runs import RunLog

    names = dict(zip(COLUMNS, experiment.evaluation.data, strict=True))
    curves = {
        run: {
            column: RunLog.read(folder / run).curve(f"{entry}/{'epe' if column.endswith('epe') else 'J_mean'}")
            for column, entry in names.items()
        }
        for run in RUNS
    }
    still = {}
    for column, entry in names.items():
        if column.endswith("epe"):
            errors = FlowErrors()
            for sample in experiment.data[entry].build():
                assert "flow" in sample
                truth = sample["flow"][None]
                errors.update(torch.zeros_like(truth), truth, None, sample["name"][0])
            still[column] = float(errors.compute()["epe"])
    rows = {STILL: still, START: {column: curve[0] for column, curve in curves["free"].items()}}
    return rows | {TITLES[run]: {c: curve[max(curve)] for c, curve in curves[run].items()} for run in RUNS}


def figure(networks: Mapping[str, "nn.Module"], experiment: "AnyExperiment") -> "np.ndarray":
    """Return a figure of an example of each data set: frame, ground truth and the networks' predictions; HW3 uint8."""
    import torch

    from mtsp.batches import collate
    from mtsp.evaluation.evaluate import at_resolution
    from mtsp.figures.comparison import comparison
    from mtsp.indices import evenly_spaced

    def predictions(batch: "Batch") -> dict[str, "Outputs"]:
        frames = batch["frame"], batch.get("next_frame")
        return {name: at_resolution(network(*frames), batch) for name, network in networks.items()}

    batches = []
    for entry in experiment.evaluation.data:
        examples = experiment.data[entry].build()
        for index in evenly_spaced(len(examples), 2 if entry.startswith("target") else 1, centered=True):
            batch = collate([examples[index]])
            batch["name"] = [entry.partition("_")[0]]
            batches.append(batch)
    with torch.no_grad():
        return comparison([(batch, predictions(batch)) for batch in batches])


def _experiment(folder: Path, overrides: Sequence[str]) -> "AnyExperiment":
    """Return the shipped config with its paths changed from runs/demo to `folder`."""
    from tools.build import read_experiment

    file = ROOT / "configs" / CONFIG
    if folder == FOLDER:
        return read_experiment(file, overrides)
    shipped = read_experiment(file).model_dump(mode="json")
    paths = {f"data.{key}.dataset.root": section["dataset"]["root"] for key, section in shipped["data"].items()}
    moved = [f"{key}={folder / Path(path).relative_to(FOLDER)}" for key, path in paths.items()]
    return read_experiment(file, [*moved, *overrides])


def _train(experiment: "AnyExperiment", run_dir: Path) -> bool:
    """Train unless the run is finished, from a checkpoint if there is one; return False if Ctrl-C stopped the run."""
    from mtsp.training.checkpoint.resume import is_finished
    from tools.train import train

    may_differ = ("tracking", "evaluation")
    if is_finished(experiment, run_dir, may_differ=may_differ, otherwise="start over with --fresh"):
        _say("     done already; --fresh starts over")
        return True
    return train(experiment, run_dir, resume="auto") is not None


def _network(experiment: "AnyExperiment", run_dir: Path) -> "nn.Module":
    from models.pretrained.load_trained import load_trained

    return load_trained(experiment, run_dir / "weights.safetensors").eval()


def _load_shipped(model: "nn.Module") -> None:
    from models.pretrained.load import load_branch

    for branch in model.branches:  # pyright: ignore[reportGeneralTypeIssues]
        load_branch(model, branch, "shipped")


def _conclude(folder: Path, rows: Mapping[str, Mapping[str, float]], seconds: float) -> None:
    from rich.console import Console

    from mtsp.reports.runs import comparison

    Console().print(comparison(rows, COLUMNS, "Measured on videos that no run was trained on"))
    python = os.path.relpath(sys.executable)
    beside = Path(sys.executable).with_name("accelerate")
    accelerate = os.path.relpath(beside) if beside.exists() else "accelerate"
    lines = [
        "J: overlap of predicted and true masks of what moves, 1 is perfect. px: mean error of the flow in pixels.",
        "Target: the new domain, what was learned. Source: the old one, what is remembered.",
        "One run on drawn videos shows how it works, not which is better: docs/results.md has several seeds.",
        "",
        f"figure  {folder / 'figures.png'}",
        f"table   {folder / 'table.md'}",
        f"page    {folder / PAGE}: open it in a browser to see curves, videos and every layer",
        "",
        f"Done in {seconds:.0f} s. Next, another strength of the pull, or your own data (docs/your_own_data.md):",
        f"  {accelerate} launch tools/train.py --config {CONFIG} --run-dir runs/demo_stronger regularizer.alpha=100",
        "Or find what moves in a video of yours:",
        f"  {python} tools/predict.py --video VIDEO.mp4 --out runs/video --movie",
    ]
    print("\n".join(lines))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
