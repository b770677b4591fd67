"""Estimate the Fisher information of an experiment's pretrained weights: how much each matters to the predictions.

    python tools/fisher.py --config cub_small.yaml --out runs/fisher.safetensors [key=value ...]
    accelerate launch tools/train.py --config cub_small.yaml \\
      regularizer='{name: l2spfisher, fisher: runs/fisher.safetensors, alpha: 0.1, beta: 0.01}'

The estimate is made at the experiment's pretrained weights, on its own training images (augmented as in training), with
its own head. The paper (section 3) uses the source's images and head: for that, give a config of the source task whose
branch starts from the same weights. With an untrained head, the estimate measures the effect on features, not on
classes; train the head first, with the rest frozen, to measure that.

The same command continues an interrupted estimate. Several processes share the images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from tools.command_line import add_config, at_least_one, program, stopped


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and estimate; return 130 if a signal stopped it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    add(
        "--mode",
        choices=("exact", "sampled", "empirical"),
        help="labels: exact (expectation over all classes), sampled (drawn from the predictions, an estimate of "
        "exact) or empirical (the data's own, a different quantity); default: exact for images, sampled for pixels",
    )
    number: dict[str, Any] = {"type": at_least_one, "metavar": "N"}
    add("--examples", **number, default=1000, help="number of images, at most all of them (default: 1000)")
    add("--draws", **number, default=1, help="sampled labels per image (default: 1)")
    add("--seed", type=int, default=0, help="seed of the choice of images and labels (default: 0)")
    add("--batch-size", **number, default=8, help="images per batch and process, all of one size (default: 8)")
    add("--chunk", **number, default=16, help="gradients in memory at once (default: 16)")
    add("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_intermixed_args(arguments)

    from mtsp.training.estimate_fisher import Settings, estimate
    from tools.build import build_network, read_experiment

    if options.seed < 0:
        raise ValueError(f"--seed must be from 0 up, got {options.seed}")
    settings = Settings(options.mode, options.examples, options.draws, options.seed, options.batch_size, options.chunk)
    experiment = read_experiment(options.config, options.overrides)
    done = estimate(experiment, options.out, settings, build_network=build_network, overwrite=options.overwrite)
    return 0 if done else stopped()


if __name__ == "__main__":
    sys.exit(main())
