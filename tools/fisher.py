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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from tools.command_line import at_least_one, program


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and estimate; return 130 if a signal stopped it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, help="experiment config; names without a folder are looked up in configs/"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    parser.add_argument(
        "--mode",
        choices=("exact", "sampled", "empirical"),
        help="labels: exact (expectation over all classes), sampled (drawn from the predictions, an estimate of "
        "exact) or empirical (the data's own, a different quantity); default: exact for images, sampled for pixels",
    )
    parser.add_argument(
        "--examples",
        type=at_least_one,
        default=1000,
        metavar="N",
        help="number of images (default: 1000, or all if there are fewer)",
    )
    parser.add_argument(
        "--draws", type=at_least_one, default=1, metavar="N", help="sampled labels per image (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images and labels (default: 0)")
    parser.add_argument(
        "--batch-size",
        type=at_least_one,
        default=8,
        metavar="N",
        help="images per batch and process; they need one size (default: 8)",
    )
    parser.add_argument(
        "--chunk", type=at_least_one, default=16, metavar="N", help="gradients in memory at once (default: 16)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to change, such as data.cub.dataset.root=DIR"
    )
    options = parser.parse_intermixed_args(arguments)

    from mtsp.training.estimate_fisher import Settings, estimate
    from tools.build import build_network, read_experiment

    if options.seed < 0:
        raise ValueError(f"--seed must be from 0 up, got {options.seed}")
    settings = Settings(options.mode, options.examples, options.draws, options.seed, options.batch_size, options.chunk)
    experiment = read_experiment(options.config, options.overrides)
    if estimate(experiment, options.out, settings, build_network=build_network, overwrite=options.overwrite):
        return 0
    print("stopped; the same command continues from here", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
