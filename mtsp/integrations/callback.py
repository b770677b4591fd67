"""Base of the callbacks for Lightning and transformers: build a regularizer, attach it, and measure it."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations import known_branches, l2sp_of_loaded, measured, summary
from mtsp.regularizers import Regularizer
from mtsp.regularizers.strength import Strength


class RegularizerCallback:
    """Holds a regularizer, or builds L2-SP when the network has its pretrained weights.

    Args:
        regularizer: a regularizer that is not attached yet. None: build L2-SP with `alpha`, `beta`, `new` and
            `options`.
        alpha, beta, new, options: see :func:`mtsp.integrations.l2sp_of_loaded`.
        branches: names of modules in the model, to be logged separately.

    Raises:
        ValueError: neither or both of `regularizer` and `alpha` are given, or a branch has no regularized weight.
    """

    def __init__(
        self,
        regularizer: Regularizer | None = None,
        *,
        alpha: Strength | None = None,
        beta: Strength = 0.0,
        new: Sequence[str] | None = None,
        branches: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if (regularizer is None) == (alpha is None):
            raise ValueError("give a regularizer, or alpha to build L2-SP from the weights that from_pretrained loads")
        self._regularizer, self._settings = regularizer, {"alpha": alpha, "beta": beta, "new": new, **options}
        self.branches = branches if regularizer is None else known_branches(regularizer, branches)

    @property
    def regularizer(self) -> Regularizer:
        """The regularizer; if the callback builds it, it is available only once the training is set up."""
        if self._regularizer is None:
            raise ValueError("the regularizer is built when the training is set up with this callback")
        return self._regularizer

    @property
    def is_built(self) -> bool:
        """Whether there is a regularizer yet."""
        return self._regularizer is not None

    def build(self, model: Any, *, told: bool) -> None:
        """Build L2-SP, with the model's present weights as anchors; print a summary if `told`."""
        self._regularizer = l2sp_of_loaded(model, **self._settings)
        self.branches = known_branches(self._regularizer, self.branches)
        if told:
            print(summary(self._regularizer))

    def attach_to(self, optimizer: Any, saved: dict[str, str]) -> None:
        """Attach the regularizer, after detaching it from the optimizer of an earlier training that failed.

        Raises:
            ValueError: the regularizer cannot be attached, or `saved`, from a checkpoint, names other anchors.
        """
        if saved:
            self.regularizer.load_state_dict(saved)
        self.regularizer.detach()
        self.regularizer.attach(optimizer)

    def anchor_state(self) -> dict[str, str]:
        """Return the fingerprint of the anchors, to be saved in a checkpoint."""
        return self._regularizer.state_dict() if self._regularizer else {}

    def measured(self) -> dict[str, float]:
        """Return penalty and distances, to be logged. Call it on every process, because shards are gathered."""
        return measured(self.regularizer, self.branches)
