"""Train: `accelerate launch tools/train.py --config davis_segflow.yaml [key=value ...]`.

The run's folder receives the resolved experiment (`experiment.yaml`), the curves (`metrics.jsonl`), figures,
checkpoints, the weights at the end (`weights.safetensors`) and what they measure (`results.json`).
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mtsp.training.experiment import as_yaml
from mtsp.training.run import run
from tools.build import AnyExperiment, read_experiment, run_or_say_why, start

_LOG = logging.getLogger("mtsp")


def train(experiment: AnyExperiment, run_dir: Path, resume: str | None = None) -> dict[str, dict[str, float]] | None:
    """Run an experiment of our networks and data; see :func:`mtsp.training.run.run`."""
    return run(experiment, run_dir, start=start, resume=resume)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--config", help="a YAML file, looked for in configs/ if no folder is named")
    parser.add_argument("--run-dir", type=Path, help="where the results go (default: runs/NAME)")
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from the newest checkpoint, or from this one")
    parser.add_argument("--print-config", action="store_true", help="show the resolved experiment and stop")
    parser.add_argument("--print-schema", action="store_true", help="show the JSON schema of configs and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in train.steps=100")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if int(os.environ.get("RANK", "0")) == 0:
        _LOG.setLevel(logging.INFO)
    if options.print_schema:
        print(json.dumps(AnyExperiment.model_json_schema(), indent=1))
        return 0
    if options.config is None:
        parser.error("--config is missing: a YAML file, as in --config davis_segflow.yaml")
    experiment = read_experiment(options.config, options.overrides)
    if options.print_config:
        print(as_yaml(experiment), end="")
        return 0
    train(experiment, options.run_dir or Path("runs") / experiment.name, options.resume)
    return 0


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
