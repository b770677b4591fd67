"""Run the whole pipeline on a small scale, on synthetic data: `make demo`, or `python tools/demo.py [--fresh]`.

Everything is written to `runs/demo`: synthetic clips of a source and a target domain in the layouts of DAVIS and
FlyingChairs (`data/`); a run that learns segmentation and flow from random weights on the source domain (`source/`,
configs/demo_source.yaml); two runs that fine-tune its weights on a few target examples (`l2/`, `l2sp/`); a table of
their metrics (`table.md`) and a figure of their predictions (`figures.png`).

Ctrl-C stops the demo and saves; the same command continues it and skips finished steps. --fresh starts over.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from tools.command_line import program, stopped

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from data.synthetic.clips import SyntheticConfig
    from mtsp.types import Batch, Examples, Outputs
    from tools.build import AnyExperiment

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/demo")
RUNS = {"source": "demo_source.yaml", "l2": "demo_l2.yaml", "l2sp": "demo_l2sp.yaml"}
STORIES = {
    "source": "train both branches from random weights on the source domain",
    "l2": "fine-tune both branches on a few target examples, with weights pulled to zero (L2)",
    "l2sp": "the same fine-tuning, with weights pulled to their starting point (L2-SP)",
}
COLUMNS = {"J_mean": "J", "F_mean": "F", "iou": "IoU", "epe": "EPE"}
THREADS = 4  # more threads slow down a network this small
EXAMPLES = 3  # number of validation examples of each task in the figure


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
    from mtsp.reports.runs import comparison_markdown

    if fresh:
        for name in ("data", *RUNS):
            shutil.rmtree(folder / name, ignore_errors=True)
    experiments = {name: _experiment(name, folder, overrides) for name in RUNS}
    _say(f"1/4 data: synthetic clips of two domains, in {folder / 'data'}")
    synthesize(folder / "data", data_sets() if data is None else data)
    for number, (name, experiment) in enumerate(experiments.items(), start=2):
        _say(f"{number}/4 {name}: {STORIES[name]}")
        if not _train(experiment, folder / name):
            return None
    rows = table(folder, experiments["l2sp"])
    write_atomically(folder / "table.md", comparison_markdown(rows, COLUMNS).encode())
    runs = {"start": "source", "L2": "l2", "L2-SP": "l2sp"}
    networks = {title: _network(experiments[name], folder / name) for title, name in runs.items()}
    Image.fromarray(figure(networks, experiments["l2sp"])).save(folder / "figures.png")
    _conclude(folder, rows)
    return rows


def data_sets() -> dict[str, DataSet]:
    """Return a large source and a small target data set. Half of the target's clips are for validation."""
    from data.synthetic.clips import SyntheticConfig
    from data.synthetic.writers import write_davis, write_flying_chairs

    look: dict[str, Any] = {"height": 96, "width": 128, "motion": 5.0, "nonrigid": 0.1, "cue": 0.8}
    look |= {"objects": (1, 3), "distractors": (0, 2), "object_size": (0.15, 0.4)}

    def clips(domain: Literal["source", "target"], seed: int, clips: int, frames: int) -> SyntheticConfig:
        return SyntheticConfig(domain=domain, seed=seed, clips=clips, frames=frames, **look)

    return {
        "source/DAVIS": DataSet(write_davis, clips("source", 1, 120, 4), 0.05),
        "source/FlyingChairs_release": DataSet(write_flying_chairs, clips("source", 2, 300, 3), 0.05),
        "target/DAVIS": DataSet(write_davis, clips("target", 3, 24, 4), 0.5),
        "target/FlyingChairs_release": DataSet(write_flying_chairs, clips("target", 4, 120, 2), 0.5),
    }


def synthesize(root: Path, data: Mapping[str, DataSet]) -> None:
    """Write the data sets that do not exist yet.

    Raises:
        ConfigError: data sets that exist were made with other settings.
    """
    from mtsp.config import ConfigError
    from mtsp.files.atomic_file import write_atomically
    from mtsp.files.progress import progress

    made_from = {name: [one.config.model_dump(mode="json"), one.validation] for name, one in data.items()}
    note = root / "made_from.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_from:
        raise ConfigError(f"{root} was made with other settings; start over with --fresh")
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(made_from, indent=1).encode())
    for name, one in data.items():
        if not (root / name).exists():  # a data set gets this name only when it is complete
            with progress(name, one.config.clips, "clips") as advance:
                one.write(one.config, root / name, validation=one.validation, progress=lambda done, _: advance(done))


def table(folder: Path, experiment: "AnyExperiment") -> dict[str, dict[str, float]]:
    """Return metrics on the target's validation set, by table row and name of the metric.

    The row "zero flow" is the error of predicting no motion; "start" is the network before fine-tuning.
    """
    import torch

    from mtsp.metrics.flow import FlowErrors
    from mtsp.reports.runs import RunLog

    masks, flows = experiment.evaluation.data
    names = {metric: f"{flows if metric == 'epe' else masks}/{metric}" for metric in COLUMNS}
    l2, l2sp = ({m: RunLog.read(folder / run).curve(n) for m, n in names.items()} for run in ("l2", "l2sp"))
    zero_flow = FlowErrors()
    for sample in experiment.data[flows].build():
        assert "flow" in sample
        truth = sample["flow"][None]
        zero_flow.update(torch.zeros_like(truth), truth, None, sample["name"][0])
    return {
        "zero flow": {"epe": float(zero_flow.compute()["epe"])},
        "start": {metric: curve[0] for metric, curve in l2sp.items()},
        "L2": {metric: curve[max(curve)] for metric, curve in l2.items()},
        "L2-SP": {metric: curve[max(curve)] for metric, curve in l2sp.items()},
    }


def figure(networks: Mapping[str, "nn.Module"], experiment: "AnyExperiment") -> "np.ndarray":
    """Return a figure of a few validation examples: frame, ground truth and the networks' predictions; HW3 uint8."""
    import torch

    from mtsp.evaluation.evaluate import at_resolution
    from mtsp.figures.comparison import comparison

    def predictions(batch: "Batch") -> dict[str, "Outputs"]:
        frames = batch["frame"], batch.get("next_frame")
        return {name: at_resolution(network(*frames), batch) for name, network in networks.items()}

    data = [experiment.data[name].build() for name in experiment.evaluation.data]
    with torch.no_grad():
        return comparison([(batch, predictions(batch)) for examples in data for batch in _evenly_spaced(examples)])


def _experiment(name: str, folder: Path, overrides: Sequence[str]) -> "AnyExperiment":
    """Return the shipped config with its paths changed from runs/demo to `folder`."""
    from tools.build import read_experiment

    file = ROOT / "configs" / RUNS[name]
    if folder == FOLDER:
        return read_experiment(file, overrides)
    shipped = read_experiment(file).model_dump(mode="json")
    paths = {f"data.{key}.dataset.root": section["dataset"]["root"] for key, section in shipped["data"].items()}
    paths |= {f"branches.{key}.weights": branch["weights"] for key, branch in shipped["branches"].items()}
    moved = [f"{key}={folder / Path(path).relative_to(FOLDER)}" for key, path in paths.items() if path is not None]
    return read_experiment(file, [*moved, *overrides])


def _train(experiment: "AnyExperiment", run_dir: Path) -> bool:
    """Train unless the run is finished, from a checkpoint if there is one; return False if Ctrl-C stopped the run."""
    from mtsp.training.checkpoint.resume import is_finished
    from tools.train import train

    may_differ = ("tracking", "evaluation")
    if is_finished(experiment, run_dir, may_differ=may_differ, otherwise="start over with --fresh"):
        _say("done already; --fresh starts over")
        return True
    return train(experiment, run_dir, resume="auto") is not None


def _network(experiment: "AnyExperiment", run_dir: Path) -> "nn.Module":
    from safetensors.torch import load_file

    model = experiment.model.build().eval()
    model.load_state_dict(load_file(run_dir / "weights.safetensors"))
    return model


def _evenly_spaced(examples: "Examples") -> Iterator["Batch"]:
    """Yield a few evenly spaced examples as batches of one; they are not chosen for good predictions."""
    from mtsp.batches import collate

    count = min(EXAMPLES, len(examples))
    for part in range(count):
        yield collate([examples[int((part + 0.5) * len(examples) / count)]])


def _conclude(folder: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    from rich.console import Console

    from mtsp.reports.runs import comparison

    Console().print(comparison(rows, COLUMNS, "Target domain, clips that no run was trained on"))
    start, l2, l2sp = (rows[name] for name in ("start", "L2", "L2-SP"))
    beside = Path(sys.executable).with_name("accelerate")
    accelerate = os.path.relpath(beside) if beside.exists() else "accelerate"
    lines = [
        "J, F, IoU: how well the masks of moving objects match, 1 is perfect. EPE: mean error of the flow in pixels.",
        f"Fine-tuning with L2-SP took J from {start['J_mean']:.3f} to {l2sp['J_mean']:.3f} (L2: {l2['J_mean']:.3f}) "
        f"and EPE from {start['epe']:.2f} to {l2sp['epe']:.2f} px (L2: {l2['epe']:.2f}).",
        "One seed on synthetic clips does not compare L2 with L2-SP; docs/results.md has several seeds.",
        "",
        f"figure  {folder / 'figures.png'}  (frame, truth, start, L2, L2-SP)",
        f"table   {folder / 'table.md'}",
        f"curves  {sys.executable} tools/report.py curves {folder / 'l2'} {folder / 'l2sp'} --out curves.png",
        "",
        "Next: try another alpha, or your own data in place of the synthetic clips (docs/your_own_data.md):",
        f"  {accelerate} launch tools/train.py --config demo_l2sp.yaml --run-dir runs/demo_weaker \\",
        "    regularizer.alpha=0.3",
    ]
    print("\n".join(lines))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
