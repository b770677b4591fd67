"""Callbacks that use a regularizer in the training loops of other libraries; each module needs its library.

`mtsp.integrations.transformers` is for the `Trainer` of transformers, `mtsp.integrations.lightning` for Lightning. Both
take a regularizer that was built while the model had its pretrained weights, and attach it when the loop has made its
optimizer. It acts exactly once per optimizer step, with any gradient accumulation, mixed precision and clipping; a term
in the loss would be multiplied, scaled and clipped.
"""

import math
from collections.abc import Sequence

from mtsp.regularizers import Regularizer
from mtsp.regularizers.targets import under


def measured(regularizer: Regularizer, branches: Sequence[str] = ()) -> dict[str, float]:
    """Return the values to log, under the same names as in tools/train.py.

    These are `penalty`, `distance` (||w - w0|| / ||w0|| over all anchored weights), and the finite values of
    :class:`mtsp.regularizers.Report` for each branch, such as `pull_to_gradient/backbone`.
    """
    values = {"penalty": regularizer.penalty(), "distance": regularizer.distances([""]).get("", 0.0)}
    if branches:  # a report costs a measurement in a step
        for branch, report in regularizer.report(branches).items():
            found = report._asdict().items()
            values |= {f"{name}/{branch}": value for name, value in found if math.isfinite(value)}
    return values


def known_branches(regularizer: Regularizer, branches: Sequence[str]) -> tuple[str, ...]:
    """Return `branches` as a tuple. Raises ValueError if one has no regularized weight."""
    branches = (branches,) if isinstance(branches, str) else tuple(branches)
    for branch in branches:
        if not branch or not any(under(name, branch) for name in regularizer.targets):
            first = next(iter(regularizer.targets), "none")
            raise ValueError(
                f"branch {branch!r}: no regularized weight has a name that begins so; give the name of a module of "
                f"{type(regularizer.model).__name__}, whose first weight is {first}"
            )
    return branches
