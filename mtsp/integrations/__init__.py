"""The regularizer in training loops of others; each module needs the library it is for, and says so.

`mtsp.integrations.transformers` is for the `Trainer` of transformers, `mtsp.integrations.lightning` for Lightning. Both
take a regularizer that was built from the model while it held its pretrained weights, and attach it when the loop has
made its optimizer: exactly one pull for each optimizer step, whatever the loop does about gradient accumulation, mixed
precision and clipping. A term in the loss would be multiplied, scaled and clipped.
"""

import math
from collections.abc import Sequence

from mtsp.regularizers import Anchored
from mtsp.regularizers.targets import under


def measured(regularizer: Anchored, branches: Sequence[str] = ()) -> dict[str, float]:
    """Return what is logged, under the names that tools/train.py gives it.

    The `penalty`, as `distance` ||w - w0|| / ||w0|| over all anchored weights; and of each branch what
    :class:`mtsp.regularizers.Report` has, as in `pull_to_gradient/backbone`, without what is not finite.
    """
    values = {"penalty": regularizer.penalty(), "distance": regularizer.distances([""]).get("", 0.0)}
    if branches:  # or else nothing is measured in a step
        for branch, report in regularizer.report(branches).items():
            told = report._asdict().items()
            values |= {f"{name}/{branch}": value for name, value in told if math.isfinite(value)}
    return values


def known_branches(regularizer: Anchored, branches: Sequence[str]) -> tuple[str, ...]:
    """Return `branches`; ValueError if one has no weight that the regularizer pulls."""
    branches = (branches,) if isinstance(branches, str) else tuple(branches)
    for branch in branches:
        if not branch or not any(under(name, branch) for name in regularizer.pulls):
            first = next(iter(regularizer.pulls), "none")
            raise ValueError(
                f"branch {branch!r}: no weight that is pulled has a name that begins so; give the name of a module of "
                f"{type(regularizer.model).__name__}, whose first weight is {first}"
            )
    return branches
