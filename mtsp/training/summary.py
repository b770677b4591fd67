"""Print a summary before the first step: regularization strengths and source of the weights of each branch."""

import logging

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mtsp.training.checks.memory import predict_memory
from mtsp.training.state import TrainingRun

_LOG = logging.getLogger("mtsp")


def print_summary(run: TrainingRun) -> None:
    """Print the numbers of pretrained, new and free weights, alpha, beta and learning rate, and the weights' source;
    then the memory that a training step will take.

    There is a row for each branch, and for each module with settings of its own. With the regularizer mars, a column
    `radius` replaces `alpha`. A logger that shows only warnings prints nothing.
    """
    if not _LOG.isEnabledFor(logging.INFO):
        return
    experiment, regularizer = run.experiment, run.regularizer
    title = f"{experiment.name}: regularization of each branch ({experiment.regularizer.name})"
    table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
    alpha_column = "radius" if experiment.regularizer.name == "mars" else "alpha"
    for column in ("branch", "pretrained", "new", "free", alpha_column, "beta", "lr", "steps to 1/e"):
        table.add_column(column, justify="left" if column == "branch" else "right", no_wrap=True)
    alpha, beta = experiment.strengths()
    targets = regularizer.targets if regularizer is not None else {}
    frozen = experiment.frozen
    for prefix, lr in experiment.learning_rates().items():
        sizes = {"shared": 0, "new": 0, "free": 0}
        for name, weight in run.network.named_parameters():
            if name.startswith(f"{prefix}."):
                if name not in targets:
                    sizes["free"] += weight.numel()
                for part in targets[name].parts if name in targets else ():
                    sizes["shared" if part.shared else "new"] += part.size(weight)
        pulled = regularizer is not None and not frozen[prefix]
        tau = regularizer.time_constant(prefix) if regularizer is not None and pulled else None
        table.add_row(
            prefix + (" (frozen)" if frozen[prefix] else ""),
            *(f"{size / 1e6:.2f} M" for size in sizes.values()),
            *(f"{strength[prefix]:g}" if pulled else "-" for strength in (alpha, beta)),
            "-" if frozen[prefix] else f"{lr:g}",
            "-" if tau is None else f"{tau:,.0f}",
        )
    Console(stderr=True).print(table)
    scales = experiment.lr_scales(run.network, run.pretrained.anchors)
    for branch in run.state.branches:
        if own := {scale for name, scale in scales.items() if name.startswith(f"{branch}.")}:
            _LOG.info("%s: %d blocks, the first learns at %.2g times the rate", branch, len(own), min(own))
        loaded = run.pretrained.loaded.get(branch)
        _LOG.info("%s starts from %s", branch, loaded.description if loaded else "random weights, all of them new")
        if loaded and loaded.left_out:
            _LOG.info("%s left out %d tensors of its source: %s", branch, len(loaded.left_out), loaded.left_out[0])
    if (memory := predict_memory(run)) is not None:
        now, optimizer, gradients, activations = (size / 2**30 for size in memory)
        _LOG.info(
            "memory of a step: about %.2f GiB (now %.2f, optimizer %.2f, gradients %.2f, activations %.2f)",
            memory.peak / 2**30, now, optimizer, gradients, activations,
        )  # fmt: skip
