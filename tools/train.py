"""Train: `python tools/train.py --config davis_segflow.yaml [key=value ...]`.

The run folder receives the resolved config (`experiment.yaml`), the curves (`metrics.jsonl`), figures, checkpoints, the
final weights (`weights.safetensors`) and their metrics (`results.json`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import STOPPED, add_config, program

if TYPE_CHECKING:
    from tools.build import AnyExperiment


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train; return `STOPPED` if a signal stopped the run, which is then saved."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    add_config(parser, required=False)
    parser.add_argument("--run-dir", type=Path, help="where to write the results (default: runs/NAME)")
    parser.add_argument(
        "--resume",
        metavar="auto|must|PATH",
        help="continue from the newest checkpoint (auto: start if there is none; must: stop then) or from this one",
    )
    parser.add_argument("--new", type=Path, metavar="FILE", help="write a config for your own data to FILE and stop")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--masks", nargs=2, type=Path, metavar=("IMAGES", "MASKS"), help="--new: images and their masks")
    kinds.add_argument("--images", nargs=1, type=Path, metavar="FOLDER", help="--new: a folder of images per class")
    kinds.add_argument("--videos", nargs=2, type=Path, metavar=("FRAMES", "MASKS"), help="--new: a folder per video")
    kinds.add_argument(
        "--flow", nargs=1, type=Path, metavar="FOLDER", help="--new: folders called frames and flow in it"
    )
    parser.add_argument("--val", nargs="+", type=Path, metavar="FOLDER", help="--new: the same for validation")
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    parser.add_argument("--print-schema", action="store_true", help="show the JSON schema of configs and stop")
    options = parser.parse_intermixed_args(arguments)
    if options.print_schema:
        from mtsp.config import json_schema
        from tools.build import AnyExperiment

        print(json.dumps(json_schema(AnyExperiment), indent=1))
        return 0
    if options.new is not None:
        return _new(parser, options)
    if options.config is None:
        parser.error("--config is missing; name a YAML file, for example --config davis_segflow.yaml")

    from mtsp.training.experiment import as_yaml
    from tools.build import read_experiment

    experiment = read_experiment(options.config, options.overrides)
    if options.print_config:
        print(as_yaml(experiment), end="")
        return 0
    results = train(experiment, options.run_dir or Path("runs") / experiment.name, options.resume)
    return STOPPED if results is None else 0


def _new(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Write a config for the data that the options name, and say what it assumes."""
    kind = next((kind for kind in ("masks", "images", "videos", "flow") if getattr(options, kind) is not None), None)
    if kind is None:
        parser.error(
            "--new needs your data: --masks IMAGES MASKS, --images FOLDER, --videos FRAMES MASKS, or --flow FOLDER"
        )
    folders = getattr(options, kind)
    if options.val is not None and len(options.val) != len(folders):
        parser.error(f"--val needs {len(folders)} folders, as --{kind} has")
    if options.overrides:
        parser.error(f"{options.overrides[0]}: give key=value when you train, or edit {options.new}")
    from tools.new_config.write import write_config

    for line in write_config(options.new, kind, folders, options.val):
        print(f"- {line}")
    print(f"wrote {options.new}; to train: python tools/train.py --config {options.new}")
    return 0


def train(experiment: "AnyExperiment", run_dir: Path, resume: str | None = None) -> dict[str, dict[str, float]] | None:
    """Run an experiment with the networks and data sets of mtsp; see :func:`mtsp.training.run.run_experiment`."""
    from mtsp.training.run import run_experiment
    from tools.build import build_network, missing_weights

    return run_experiment(
        experiment, run_dir, build_network=build_network, missing_weights=missing_weights, resume=resume
    )


if __name__ == "__main__":
    sys.exit(main())
