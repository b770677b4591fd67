"""Notice when the loss suddenly becomes many times larger."""

FACTOR = 10.0
"""A loss is a spike if it is this many times larger than the largest of the last `WINDOW` losses of its stage."""
WINDOW = 20


class Spikes:
    """The last losses of each stage, and the checkpoints before loss spikes."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}
        """The last losses by stage. Checkpoints keep them, so that a resumed run notices the same spikes."""
        self.saved_before: list[int] = []
        """Steps of the last checkpoint before each spike, in order."""

    def add(self, stage: str, loss: float) -> float | None:
        """Add a loss; return the largest of those before if this one is a spike, else None."""
        before = self.losses.setdefault(stage, [])
        largest = max(before, default=loss)
        self.losses[stage] = [*before[-WINDOW + 1 :], loss]
        return largest if loss > FACTOR * max(largest, 0.0) and before else None
