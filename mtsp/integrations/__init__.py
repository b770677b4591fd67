"""The regularizer in training loops of others; each module needs the library it is for, and says so.

`mtsp.integrations.trainer` is for the `Trainer` of transformers, `mtsp.integrations.lightning` for Lightning. Both take
a regularizer that was built from the model while it held its pretrained weights, and attach it when the loop has made
its optimizer: exactly one pull for each optimizer step, whatever the loop does about gradient accumulation, mixed
precision and clipping. A term in the loss would be multiplied, scaled and clipped.
"""

from mtsp.regularizers import Anchored


def measured(regularizer: Anchored) -> dict[str, float]:
    """Return the `penalty`, and as `distance` ||w - w0|| / ||w0|| over all anchored weights."""
    return {"penalty": regularizer.penalty(), "distance": regularizer.distances([""]).get("", 0.0)}
