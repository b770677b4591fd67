"""Callbacks that use a regularizer in the training loops of other libraries.

`mtsp.integrations.transformers` is for the `Trainer` of transformers, `mtsp.integrations.lightning` for Lightning; each
needs that library. Pass a strength, and the callback builds L2-SP before training from the weights that
`from_pretrained` loaded; or pass a regularizer that you built while the model had its pretrained weights. The callback
attaches the regularizer when the training loop has created the optimizer. The pull then acts exactly once per optimizer
step with any gradient accumulation, mixed precision and clipping, which would distort a term in the loss.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from mtsp.anchors import named_weights, penalized
from mtsp.regularizers import L2SP, Regularizer
from mtsp.regularizers.strength import Strength
from mtsp.regularizers.targets import under


def l2sp_of_loaded(
    model: nn.Module, *, alpha: Strength, beta: Strength = 0.0, new: Sequence[str] | None = None, **options: Any
) -> L2SP:
    """Return L2-SP with the model's current weights as anchors, except for newly initialized modules.

    `from_pretrained` of transformers 5 marks the weights that it loads, so weights without a mark are known to be new.
    For models of other libraries, `new` must name the new modules.

    Args:
        model: the model with loaded weights, before any training.
        alpha: strength of the pull on loaded convolution and linear weights; see :class:`mtsp.regularizers.L2SP`. This
            includes linear layers that share their weight with an embedding; other embeddings are pulled only with
            `every`.
        beta: strength of the pull of new weights to zero.
        new: names of new modules. In a model with marks, weights without a mark are new, too.
        options: `mode`, `every`, `anchor_dtype` and `offload` of :class:`mtsp.regularizers.L2SP`.

    Raises:
        ValueError: no weight is marked and `new` is None; a name in `new` matches no weight; or no weight is left to
            anchor.
    """
    weights = named_weights(model)
    new = (new,) if isinstance(new, str) else new
    if unknown := [name for name in new or () if not any(under(weight, name) for weight in weights)]:
        raise ValueError(f"new={unknown[0]!r}: no weight's name in {type(model).__name__} begins with it")
    marked = {name for name, weight in weights.items() if getattr(weight, "_is_hf_initialized", False)}
    marked |= {name for name in weights if _original(name) in marked}  # a copy that PEFT trains in full
    if not marked and new is None:
        raise ValueError(
            f"nothing in {type(model).__name__} is marked as loaded by from_pretrained (of transformers 5), so its "
            "pretrained weights are unknown; name the new modules, such as new=['head'] or new=[], or give a "
            "regularizer"
        )
    chosen = penalized(model, every=options.get("every", False))
    anchors = {
        name: weights[name].detach()
        for name in chosen
        if (name in marked or not marked) and not any(under(name, module) for module in new or ())
    }
    if not anchors:
        raise ValueError(f"no convolution or linear weight of {type(model).__name__} is pretrained")
    return L2SP(model, anchors=anchors, alpha=alpha, beta=beta, **options)


def _original(name: str) -> str:
    return re.sub(r"\bmodules_to_save\.[^.]+", "original_module", name)


def summary(regularizer: Regularizer) -> str:
    """Return one line with the numbers of trained weights that are anchored, new (pulled to zero) and free."""
    weights, targets = named_weights(regularizer.model), regularizer.targets
    kinds: dict[str, list[int]] = {"anchored": [], "new": [], "free": []}
    for name, weight in weights.items():
        if weight.requires_grad:
            if name not in targets:
                kinds["free"].append(weight.numel())
            for part in targets[name].parts if name in targets else ():
                kinds["anchored" if part.shared else "new"].append(part.size(weight))
    counts = ", ".join(f"{len(sizes)} weights {kind} ({sum(sizes):,})" for kind, sizes in kinds.items())
    embeddings = [name for name, module in regularizer.model.named_modules() if isinstance(module, nn.Embedding)]
    held = [name for name in embeddings if any(under(target, name) for target in targets)]
    told = f"; embeddings pulled: {', '.join(held) or 'none'}" if embeddings else ""
    return f"{type(regularizer).__name__}: {counts}{told}"


def measured(regularizer: Regularizer, branches: Sequence[str] = ()) -> dict[str, float]:
    """Return the values to log, under the same names as in tools/train.py.

    The values are `penalty`, `distance` (||w - w0|| / ||w0|| over all anchored weights), and the finite values of
    :class:`mtsp.regularizers.Report` for each branch, such as `pull_to_gradient/backbone`.
    """
    values = {"penalty": regularizer.penalty(), "distance": regularizer.distances([""]).get("", 0.0)}
    if branches:  # each report needs a measurement in a step
        for branch, report in regularizer.report(branches).items():
            found = report._asdict().items()
            values |= {f"{name}/{branch}": value for name, value in found if math.isfinite(value)}
    return values


def known_branches(regularizer: Regularizer, branches: Sequence[str]) -> tuple[str, ...]:
    """Return `branches` as a tuple. Raises ValueError if a branch has no regularized weight."""
    branches = (branches,) if isinstance(branches, str) else tuple(branches)
    for branch in branches:
        if not branch or not any(under(name, branch) for name in regularizer.targets):
            first = next(iter(regularizer.targets), "none")
            raise ValueError(
                f"branch {branch!r}: no regularized weight's name begins with it; give the name of a module of "
                f"{type(regularizer.model).__name__}, whose first weight is {first}"
            )
    return branches
