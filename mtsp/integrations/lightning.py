"""L2-SP for Lightning."""

from collections.abc import Sequence
from typing import Any

from mtsp.integrations import known_branches, l2sp_of_loaded, measured, summary
from mtsp.regularizers import Regularizer
from mtsp.regularizers.strength import Strength

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("mtsp.integrations.lightning needs lightning 2; pip install lightning") from error


class L2SPCallback(Callback):
    """Pulls a LightningModule towards its pretrained weights while it is fitted::

        module = Classifier(AutoModel.from_pretrained("..."))
        Trainer(callbacks=[L2SPCallback(alpha=0.01)]).fit(module, loader)

    All convolution and linear weights that transformers' `from_pretrained` loaded are anchored, and others are new; for
    models of other libraries, `new` names the modules that are. The callback prints how many there are. The anchors are
    taken before Lightning loads a checkpoint (`ckpt_path`), which must have been trained with the same, by their
    fingerprint. A regularizer of your own must be built before `fit`, while the network has its pretrained weights.

    It acts once per optimizer step under automatic and manual optimization, gradient accumulation, clipping and mixed
    precision. At the end of each epoch it logs `penalty` and `distance` (the relative distance from the anchors), and
    for each of `branches` its `distance`, `pull_to_gradient` (in the first step of the epoch) and `time_constant`, as
    `pull_to_gradient/backbone`. The older package `pytorch_lightning` does not work: its classes differ.

    Args:
        regularizer: not attached yet; None builds L2-SP of the whole LightningModule from what follows.
        alpha, beta, new, options: see :func:`mtsp.integrations.l2sp_of_loaded`.
        optimizer: index of the module's optimizer to use, if it has several.
        branches: names of modules in the network that the regularizer was built with.

    Raises:
        ValueError: neither or both of `regularizer` and `alpha` are given; a branch has no regularized weight; when
            fitting begins: attaching is refused (see :meth:`mtsp.regularizers.L2SP.attach`), or the module has several
            optimizers and none is chosen, or the checkpoint was trained with other anchors.
    """

    def __init__(
        self,
        regularizer: Regularizer | None = None,
        *,
        alpha: Strength | None = None,
        beta: Strength = 0.0,
        new: Sequence[str] | None = None,
        optimizer: int | None = None,
        branches: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if (regularizer is None) == (alpha is None):
            raise ValueError("give a regularizer, or alpha to have L2-SP built from the weights that are loaded")
        self._regularizer, self._settings = regularizer, {"alpha": alpha, "beta": beta, "new": new, **options}
        self.branches = branches if regularizer is None else known_branches(regularizer, branches)
        self.optimizer = optimizer
        self._saved: dict[str, str] = {}

    @property
    def regularizer(self) -> Regularizer:
        """The regularizer, once fitting has begun."""
        if self._regularizer is None:
            raise ValueError("the regularizer is built when fitting begins")
        return self._regularizer

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Capture the anchors, before a checkpoint is loaded."""
        if self._regularizer is None and stage == "fit":
            self._regularizer = l2sp_of_loaded(pl_module, **self._settings)
            self.branches = known_branches(self._regularizer, self.branches)
            if trainer.is_global_zero:
                print(summary(self._regularizer))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the regularizer; after a failed fit, it may still be attached to an old optimizer."""
        count = len(trainer.optimizers)
        if self.optimizer is None and count != 1:
            raise ValueError(f"the module has {count} optimizers; choose one, as in optimizer=0")
        if not 0 <= (chosen := self.optimizer or 0) < count:
            raise ValueError(f"optimizer={chosen}, but the module has {count}, counted from 0")
        if self._saved:
            self.regularizer.load_state_dict(self._saved)
        self.regularizer.detach()
        self.regularizer.attach(trainer.optimizers[chosen])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log penalty and distances. Runs on every process, because shards are gathered."""
        pl_module.log_dict(measured(self.regularizer, self.branches))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach the regularizer."""
        self.regularizer.detach()

    def state_dict(self) -> dict[str, str]:
        """Return what a checkpoint holds: the fingerprint of the anchors."""
        return self._regularizer.state_dict() if self._regularizer else {}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Keep the fingerprint of a checkpoint, to be compared when training begins."""
        self._saved = state_dict
