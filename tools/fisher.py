"""Estimate the Fisher information of an experiment's pretrained weights: how much each weight affects predictions.

    python tools/fisher.py --config cub_small.yaml --out runs/fisher.safetensors [key=value ...]
    python tools/train.py --config cub_small.yaml \\
      regularizer='{name: l2spfisher, fisher: runs/fisher.safetensors, alpha: 0.1, beta: 0.01}'

The estimate uses the experiment's pretrained weights, its training images (augmented as in training) and its head. The
paper (section 3) uses images and head of the source task: to do so, pass a config of the source task in which a branch
starts from the same weights. With an untrained head, the estimate measures the effect of weights on features, not on
classes; to measure the effect on classes, first train the head with the backbone frozen.

The same command continues an interrupted estimate. Several processes share the images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import add_config, at_least_one, program, stopped


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and estimate; return 75 if a signal stopped it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    add(
        "--mode",
        choices=("exact", "sampled", "empirical"),
        help="labels to use: exact (expectation over all classes), sampled (drawn from the predictions, approximates "
        "exact) or empirical (ground truth, another quantity); default: exact for classification, else sampled",
    )
    number: dict[str, Any] = {"type": at_least_one, "metavar": "N"}
    add("--examples", **number, default=1000, help="largest number of images to use (default: 1000)")
    add("--draws", **number, default=1, help="number of labels to sample per image (default: 1)")
    add("--seed", type=int, default=0, help="seed for choosing images and labels (default: 0)")
    add("--batch-size", **number, default=8, help="images per batch and process, all of equal size (default: 8)")
    add("--chunk", **number, default=16, help="number of gradients in memory at once (default: 16)")
    add("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_intermixed_args(arguments)

    from mtsp.training.estimate_fisher import Settings, estimate
    from tools.build import build_network, missing_weights, read_experiment

    if options.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {options.seed}")
    settings = Settings(options.mode, options.examples, options.draws, options.seed, options.batch_size, options.chunk)
    experiment = read_experiment(options.config, options.overrides)
    build = {"build_network": build_network, "missing_weights": missing_weights}
    done = estimate(experiment, options.out, settings, **build, overwrite=options.overwrite)
    return 0 if done else stopped()


if __name__ == "__main__":
    sys.exit(main())
