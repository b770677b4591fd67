"""List, verify and export the checkpoints of a run: `python -m mtsp.training.checkpoint {list,verify,export} RUN`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mtsp.command_line import program
from mtsp.evaluation.evaluate import describe
from mtsp.evaluation.metrics_by_kind import headlines
from mtsp.files.tensors import write_tensors
from mtsp.tracking.metrics_file import METRICS, read_metrics
from mtsp.training.checkpoint import storage


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; return 1 after an error or if a checkpoint is damaged."""
    parser = argparse.ArgumentParser(prog="python -m mtsp.training.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("list", "show step, size, loss and headline metrics of each checkpoint"),
        ("verify", "compare every byte with its checksum, and load everything"),
        ("export", "write the weights of a checkpoint as a file that `branches.*.weights` and evaluate.py read"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
        if name == "export":
            command.add_argument("--step", type=int, help="step of the checkpoint (default: the newest complete one)")
            command.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    options = parser.parse_args(arguments)
    found = storage.checkpoints(options.run / "checkpoints")
    if not found:
        raise ValueError(f"there is no checkpoint in {options.run / 'checkpoints'}")
    if options.command == "list":
        print("\n".join(_lines(options.run, found)))
    elif options.command == "verify":
        return max([_verify(path) for path in found])
    else:
        export(options.run, options.step, options.out)
    return 0


def _lines(run: Path, found: Sequence[Path]) -> list[str]:
    """Return one line of text for each checkpoint."""
    rows = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
    lines = []
    for path in found:
        step, size = storage.step_of(path), sum(file.stat().st_size for file in path.iterdir())
        values = {name: value for row in rows if row["step"] == step for name, value in row.items()}
        shown = {k: v for k, v in values.items() if k == "train/loss" or k.rpartition("/")[2] in headlines()}
        lines.append(f"{path.name}  {size / 2**20:9,.1f} MiB  {describe(shown)}")
    return lines


def _verify(path: Path) -> int:
    try:
        storage.load(path)
    except storage.CheckpointError as error:
        print(f"DAMAGED  {error}")
        return 1
    print(f"whole    {path}")
    return 0


def export(run: Path, step: int | None, out: Path) -> None:
    """Write the weights of a checkpoint, averaged if the run averages them, as the run itself does at its end.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        OSError: `out` cannot be written.
    """
    folder = run / "checkpoints"
    saved = storage.newest(folder) if step is None else storage.load(folder / storage.name_of(step))
    if saved is None:
        raise storage.CheckpointError(f"all checkpoints in {folder} are damaged")
    weights = saved.model if saved.ema is None else saved.model | saved.ema["averages"]
    weights = {name: tensor.to(saved.model[name].dtype) for name, tensor in weights.items()}
    classes = saved.state["classes"]
    write_tensors(out, weights, {"classes": json.dumps(classes)} if classes else None)
    print(f"{out}: weights of step {saved.state['step']}{'' if saved.ema is None else ', averaged'}")


if __name__ == "__main__":
    sys.exit(main())
