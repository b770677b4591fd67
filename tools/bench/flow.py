"""Compare the flow networks: end-point error on real pairs, parameters, time per pair.

    python tools/bench/flow.py --weights spynet=FILE raft_large=torchvision \\
      --data '{name: middlebury, root: DIR}' '{name: sintel, root: DIR, split: all}' [--size 384 512] [--quick]

The error is the mean over the known pixels of each pair, then over pairs, in pixels; beside it is that of no motion.
Networks without weights have no error. Pairs are predicted one at a time and at their full size. RAFT makes 24 updates.
Time is CPU time with one thread, which other processes disturb less than wall-clock time: the median of several turns.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from data import AnyDataset, SampleDataset
from data.prepared import to_tensors
from models.flow.branch import FlowNet
from models.flow.flownets import FlowNetSConfig
from models.flow.pwcnet import PwcNetConfig
from models.flow.raft import RAFTConfig
from models.flow.spynet import SPyNetConfig
from models.pretrained.load import load_branch
from mtsp.command_line import at_least_one, program
from mtsp.config import Config, ConfigError, parse, parse_yaml
from mtsp.metrics import FlowErrors
from tools.bench.timing import machine, medians, parser, table

NETWORKS = {
    "flownets": FlowNetSConfig(),
    "flownets_quarter": FlowNetSConfig(width=0.25),
    "pwcnet": PwcNetConfig(name="pwcnet"),
    "spynet": SPyNetConfig(name="spynet"),
    "raft_small": RAFTConfig(name="raft", size="small"),
    "raft_large": RAFTConfig(name="raft", size="large"),
}


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command_line = parser(__doc__, rounds=5, quick="use frames of 64x64 and one round, only to test the benchmark")
    command_line.add_argument("--weights", nargs="+", default=[], metavar="NETWORK=WEIGHTS", help="as in a config")
    command_line.add_argument(
        "--data", nargs="+", default=[], metavar="CONFIG", help="data sets of pairs, as in a config"
    )
    command_line.add_argument(
        "--size", type=at_least_one, nargs=2, default=(384, 512), help="size of the pairs that are timed"
    )
    options = command_line.parse_args(arguments)
    size, rounds = ((64, 64), 1) if options.quick else (tuple(options.size), options.rounds)
    weights = dict(_source(text) for text in options.weights)
    if unknown := weights.keys() - NETWORKS.keys():
        raise ConfigError(f"--weights: no network {min(unknown)!r}; there are {', '.join(NETWORKS)}")
    datasets = dict(_dataset(text) for text in options.data)
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(machine())
    networks = {name: config.build().eval() for name, config in NETWORKS.items()}
    for name, source in weights.items():
        console.print(f"{name}: {load_branch(networks[name], 'flow', source).description}")
    drawn = table(
        f"flow of one pair of {size[0]}x{size[1]}", "network", "parameters", "CPU ms", *(f"{n}: px" for n in datasets)
    )
    drawn.add_row("no motion", "", "", *(f"{_error(None, data):.2f}" for data in datasets.values()))
    frames = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        turns = {name: lambda network=network: network(*frames) for name, network in networks.items()}
        spent = medians(turns, rounds, clock=process_time)
        for name, network in networks.items():
            errors = [f"{_error(network, data):.2f}" if name in weights else "-" for data in datasets.values()]
            parameters = sum(weight.numel() for weight in network.parameters())
            drawn.add_row(name, f"{parameters:,}", f"{spent[name] * 1e3:.0f}", *errors)
    console.print(drawn)
    return 0


class Entry(Config):
    """A data set of the command line."""

    dataset: AnyDataset


def _source(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals:
        raise ConfigError(f"--weights: {text!r} is not NETWORK=WEIGHTS")
    return name, source


def _dataset(text: str) -> tuple[str, SampleDataset]:
    config = parse(Entry, {"dataset": parse_yaml(text)}).dataset
    if config.kind != "pairs":
        raise ConfigError(f"--data: {config.name} has no pairs with flow")
    return config.name, config.build()


def _error(network: FlowNet | None, data: SampleDataset) -> float:
    """Return the mean end-point error of the pairs with flow; None predicts no motion."""
    errors = FlowErrors(angular=False)
    for index in range(len(data)):
        batch = to_tensors(data[index])
        if "flow" not in batch or "next_frame" not in batch:
            continue
        truth = batch["flow"][None]
        found = torch.zeros_like(truth)
        if network is not None:
            found = network(batch["frame"][None], batch["next_frame"][None])["flow"]
        errors.update(found, truth, batch["flow_valid"][None] if "flow_valid" in batch else None)
    return errors.compute()["epe_per_image"]


if __name__ == "__main__":
    sys.exit(main())
